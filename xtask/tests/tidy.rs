//! House rules that no compiler knows, as tests: file heads, lengths, forbidden marks, machine paths, crate arrows.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Longest source file, in lines: what a reader can still hold.
const LINES_MAX: usize = 600;

/// Who may depend on whom: each crate with those of ours that it may name in `[dependencies]`.
///
/// `proxy, ca, cli → export, evidence, api, telemetry, settings → spool, baseline → record, identity`; demo, testkit and
/// integration may use anything but each other's tests, xtask nothing.
const ARROWS: [(&str, &[&str]); 12] = [
    ("record", &[]),
    ("identity", &[]),
    ("spool", &["record"]),
    ("baseline", &["record"]),
    ("evidence", &["spool", "record", "identity"]),
    ("settings", &["record", "identity"]),
    ("api", &["record", "identity"]),
    ("telemetry", &["record", "identity"]),
    ("export", &["spool", "record", "identity"]),
    ("ca", &["export", "api", "telemetry", "settings", "record", "identity"]),
    ("cli", &["evidence", "export", "spool", "baseline", "api", "telemetry", "settings", "record", "identity"]),
    ("proxy", &["export", "spool", "baseline", "api", "telemetry", "settings", "record", "identity"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The files that git tracks or would track, relative to the root.
fn files() -> Vec<String> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "git ls-files failed: the rules were not checked");
    let files: BTreeSet<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    assert!(files.len() > 10, "git lists next to nothing: the rules were not checked");
    files.into_iter().filter(|file| root().join(file).is_file()).collect()
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_default()
}

/// Rust sources that people write; generated ones say so in their first lines.
fn sources() -> Vec<(String, String)> {
    let sources = files().into_iter().filter(|file| file.ends_with(".rs")).map(|file| (read(&file), file));
    let by_hand = sources.filter(|(text, _)| !text.lines().take(5).any(|line| line.contains("@generated")));
    by_hand.map(|(text, file)| (file, text)).collect()
}

fn none(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn every_source_file_opens_with_its_purpose() {
    let opens =
        |text: &str| text.lines().next().is_some_and(|line| line.starts_with("//! ") && !line.contains("Placeholder"));
    none(sources().into_iter().filter(|(_, text)| !opens(text)).map(|(file, _)| file).collect());
}

#[test]
fn no_source_file_is_too_long() {
    let long = sources().into_iter().map(|(file, text)| (file, text.lines().count())).filter(|(_, n)| *n > LINES_MAX);
    none(long.map(|(file, lines)| format!("{file}: {lines} lines, at most {LINES_MAX}")).collect());
}

#[test]
fn nothing_is_left_unfinished_or_skipped() {
    // Put together here, so that this file does not find itself.
    let marks = ["to", "dbg", "FIX", "TO", "#[ign"].into_iter().zip(["do!(", "!(", "ME", "DO:", "ore"]);
    let marks: Vec<String> = marks.map(|(start, end)| format!("{start}{end}")).collect();
    let mut problems = Vec::new();
    for (file, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if let Some(mark) = marks.iter().find(|mark| line.contains(mark.as_str())) {
                problems.push(format!("{file}:{}: {mark}", number + 1));
            }
        }
    }
    none(problems);
}

#[test]
fn no_file_names_a_path_of_one_machine() {
    let paths = ["/wo", "/ro", "/ho", "/Us"].into_iter().zip(["rk/", "ot/", "me/", "ers/"]);
    let paths: Vec<String> = paths.map(|(start, end)| format!("{start}{end}")).collect();
    let mut problems = Vec::new();
    for file in files() {
        for (number, line) in read(&file).lines().enumerate() {
            if paths.iter().any(|path| names_path(line, path)) {
                problems.push(format!("{file}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    none(problems);
}

/// Whether `path` starts an absolute path in `line`, and is not the middle of another one or of a URL.
fn names_path(line: &str, path: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '}' | '*' | '/');
    line.match_indices(path).any(|(at, _)| !line[..at].ends_with(inside))
}

#[test]
fn paths_are_told_from_parts_of_paths() {
    assert!(names_path("cd /abc/x", "/abc/"));
    assert!(names_path("\"/abc/x\"", "/abc/"));
    assert!(!names_path("https://example.org/abc/x", "/abc/"));
    assert!(!names_path("${DIR}/abc/x", "/abc/"));
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let ours: BTreeSet<&str> =
        ARROWS.iter().map(|(name, _)| *name).chain(["demo", "testkit", "integration", "benches"]).collect();
    let mut problems = Vec::new();
    for (name, allowed) in ARROWS {
        let manifest = read(&format!("{name}/Cargo.toml"));
        assert!(manifest.contains("[dependencies]"), "{name}/Cargo.toml is not there: the arrows were not checked");
        let named = dependencies(&manifest).into_iter().filter(|dependency| ours.contains(dependency.as_str()));
        for dependency in named.filter(|dependency| !allowed.contains(&dependency.as_str())) {
            problems.push(format!("{name} must not depend on {dependency}"));
        }
    }
    problems
        .extend(dependencies(&read("xtask/Cargo.toml")).iter().map(|name| format!("xtask must not depend on {name}")));
    none(problems);
}

/// The names in `[dependencies]` and `[build-dependencies]`; tests may use anything.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut counted = false;
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            counted = line.ends_with("dependencies]") && !line.contains("dev-");
        } else if counted && !line.starts_with('#') && !line.is_empty() {
            names.extend(line.split(['.', ' ', '=']).next().map(str::to_owned));
        }
    }
    names
}

#[test]
fn dependencies_are_read_from_manifests() {
    let manifest = "[package]\nname = \"a\"\n[dependencies]\nb.workspace = true\nc = \"1\"\n[dev-dependencies]\nd.workspace = true";
    assert_eq!(dependencies(manifest), ["b", "c"]);
}
