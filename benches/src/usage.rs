//! What processes use, from /proc: CPU time of all their threads, resident memory.

use std::fs;

use anyhow::{Context, Result};

/// A process and its children (nginx: master and worker), all threads: CPU time in microseconds since their start.
///
/// The clock has ticks of 10 ms; what is shown between two ticks is exact to one of them.
pub(crate) fn cpu_micros(pid: u32) -> Result<u64> {
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    let mut ticks = 0;
    for pid in family(pid)? {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("a proxy has ended")?;
        ticks += ticks_of(&stat).context("/proc/PID/stat is not as proc(5) says")?;
    }
    Ok(ticks * 1_000_000 / ticks_per_second)
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

/// utime + stime, the 14th and 15th field; the second, the name, may hold spaces and parentheses.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 3 0 99";
        assert_eq!(ticks_of(stat), Some(12));
    }

    #[test]
    fn our_own_use_is_there_and_grows() {
        let pid = std::process::id();
        let before = cpu_micros(pid).unwrap();
        let started = std::time::Instant::now();
        while started.elapsed() < std::time::Duration::from_millis(100) {}
        assert!(cpu_micros(pid).unwrap() > before);
        assert!(resident_bytes(pid).unwrap() > 100_000);
    }
}
