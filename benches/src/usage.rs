//! What processes use, from /proc: CPU time of all their threads, resident memory.

use std::fs;

use anyhow::{Context, Result};

/// CPU time in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cpu {
    /// In the programs.
    pub(crate) user: u64,
    /// In the kernel for them.
    pub(crate) system: u64,
}

impl Cpu {
    /// Both.
    pub(crate) fn total(self) -> u64 {
        self.user + self.system
    }

    /// What was used since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { user: self.user.saturating_sub(before.user), system: self.system.saturating_sub(before.system) }
    }
}

impl std::iter::Sum for Cpu {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self { user: sum.user + one.user, system: sum.system + one.system })
    }
}

/// What a process and its children (nginx: master and worker) have used since their start, all threads.
///
/// The clock has ticks of 10 ms; what is shown between two ticks is exact to one of them.
pub(crate) fn cpu(pid: u32) -> Result<Cpu> {
    let one = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("a proxy has ended")?;
        cpu_of(&stat, rustix::param::clock_ticks_per_second()).context("/proc/PID/stat is not as proc(5) says")
    };
    family(pid)?.into_iter().map(one).sum()
}

/// Resident memory of a process and its children, in bytes. What they share counts in each.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let mut kibibytes = 0;
    for pid in family(pid)? {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("a proxy has ended")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        kibibytes += line.trim().trim_end_matches(" kB").parse::<u64>()?;
    }
    Ok(kibibytes * 1024)
}

fn family(pid: u32) -> Result<Vec<u32>> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).context("a proxy has ended")?;
    let children = children.split_whitespace().map(str::parse);
    let mut family = vec![pid];
    for child in children {
        family.push(child?);
    }
    Ok(family)
}

/// utime and stime, the 14th and 15th field; the second, the name, may hold spaces and parentheses.
fn cpu_of(stat: &str, ticks_per_second: u64) -> Option<Cpu> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut micros = || Some(fields.next()?.parse::<u64>().ok()? * 1_000_000 / ticks_per_second);
    Some(Cpu { user: micros()?, system: micros()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 3 0 99";
        assert_eq!(cpu_of(stat, 100), Some(Cpu { user: 70_000, system: 50_000 }));
    }

    #[test]
    fn our_own_use_is_there_and_grows() {
        let pid = std::process::id();
        let before = cpu(pid).unwrap();
        let started = std::time::Instant::now();
        while started.elapsed() < std::time::Duration::from_millis(100) {}
        assert!(cpu(pid).unwrap().since(before).total() > 0);
        assert!(resident_bytes(pid).unwrap() > 100_000);
    }
}
