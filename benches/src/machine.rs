//! What a result was measured on and with: part of every result.

use std::fmt::Write as _;

use testkit::run;

/// A list of the machine and of the versions of everything that took part.
pub(crate) fn describe() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut out = String::new();
    let _ = writeln!(
        out,
        "- {} UTC, picket {}",
        first("date", &["-u", "+%F %H:%M"]),
        first("git", &["describe", "--always", "--dirty"])
    );
    let _ = writeln!(
        out,
        "- {}, {cores} cores, Linux {}, load average before: {}",
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim(),
        load.split(' ').take(3).collect::<Vec<_>>().join(" ")
    );
    let envoy = std::env::var("PICKET_ENVOY").map(|program| first(&program, &["--version"])).unwrap_or_default();
    let envoy =
        envoy.rsplit("version: ").next().and_then(|version| version.split('/').nth(1)).unwrap_or("-").to_owned();
    let _ = writeln!(
        out,
        "- {}, Envoy {envoy}, {}, {}, {}",
        first("nginx", &["-v"]).replace("nginx version: ", ""),
        first("h2load", &["--version"]),
        first("wrk", &["-v"]).split(" Copyright").next().unwrap_or_default(),
        first("curl", &["--version"]).split(" (").next().unwrap_or_default(),
    );
    out
}

/// The first line that a program prints, on either stream; nothing if it cannot run.
fn first(program: &str, arguments: &[&str]) -> String {
    let mut command = std::process::Command::new("sh");
    // wrk prints its version and fails.
    command.args(["-c", "\"$@\" 2>&1; true", "sh", program]).args(arguments);
    let output = run(&mut command).unwrap_or_default();
    output.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned()
}
