//! CPU and memory of the pod, from its cgroup: version 2 (`cpu.stat`, `memory.current`), or version 1 (`cpuacct.usage`,
//! `memory.usage_in_bytes`), whichever is there. Version 1 has a hierarchy for each: they are looked for in `cpuacct` and
//! `memory` below the directory, too, as a container sees them in /sys/fs/cgroup.
//!
//! A sidecar sees the pod's cgroup only if it is mounted for it; what cannot be read is not measured.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What a cgroup uses.
#[derive(Debug)]
pub(super) struct Usage {
    dir: PathBuf,
    /// When CPU was read last, in milliseconds, and how much was used until then, in microseconds.
    last: Option<(u64, u64)>,
}

impl Usage {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), last: None }
    }

    /// CPUs in use since the last call, and bytes of memory.
    pub(super) fn measure(&mut self, now: u64) -> (Option<f64>, Option<f64>) {
        let used = self.cpu_micros();
        let cpu = used.zip(self.last).and_then(|(used, (at, before))| {
            let millis = now.checked_sub(at).filter(|millis| *millis > 0)?;
            Some(used.checked_sub(before)? as f64 / 1e3 / millis as f64)
        });
        self.last = used.map(|used| (now, used));
        (cpu, self.memory_bytes().map(|bytes| bytes as f64))
    }

    fn cpu_micros(&self) -> Option<u64> {
        let v2 = fs::read_to_string(self.dir.join("cpu.stat")).ok();
        let v2 = v2.and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("usage_usec ")).and_then(|micros| micros.trim().parse().ok())
        });
        let v1 = || self.first(&["cpuacct.usage", "cpuacct/cpuacct.usage"]).map(|nanos| nanos / 1000);
        v2.or_else(v1)
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.first(&["memory.current", "memory.usage_in_bytes", "memory/memory.usage_in_bytes"])
    }

    fn first(&self, files: &[&str]) -> Option<u64> {
        files.iter().find_map(|file| self.number(file))
    }

    fn number(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.dir.join(file)).ok()?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        let dir = std::env::temp_dir().join(format!("picket-baseline-cgroup-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let write = |file: &str, text: &str| fs::write(dir.join(file), text).unwrap();
        let mut usage = Usage::new(&dir);
        assert_eq!(usage.measure(1000), (None, None));
        write("cpu.stat", "usage_usec 1000000\nuser_usec 1\n");
        write("memory.current", "4096\n");
        assert_eq!(usage.measure(2000), (None, Some(4096.0)));
        write("cpu.stat", "usage_usec 1500000\nuser_usec 1\n");
        assert_eq!(usage.measure(3000), (Some(0.5), Some(4096.0)));
        // A counter that went back, as a new container's does, is no usage.
        fs::remove_file(dir.join("cpu.stat")).unwrap();
        write("cpuacct.usage", "1000\n");
        assert_eq!(usage.measure(4000).0, None);
        write("cpuacct.usage", "250001000\n");
        assert_eq!(usage.measure(5000).0, Some(0.25));
        fs::remove_file(dir.join("cpuacct.usage")).unwrap();
        fs::remove_file(dir.join("memory.current")).unwrap();
        // As a container has it: a directory for each hierarchy.
        fs::create_dir_all(dir.join("cpuacct")).unwrap();
        fs::create_dir_all(dir.join("memory")).unwrap();
        write("cpuacct/cpuacct.usage", "5000000000\n");
        write("memory/memory.usage_in_bytes", "12288\n");
        let mut usage = Usage::new(&dir);
        assert_eq!(usage.measure(5000), (None, Some(12_288.0)));
        write("cpuacct/cpuacct.usage", "5500000000\n");
        assert_eq!(usage.measure(6000), (Some(0.5), Some(12_288.0)));
        fs::remove_dir_all(&dir).unwrap();
    }
}
