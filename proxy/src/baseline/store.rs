//! Files of baselines: one per template, `TEMPLATE.baseline`, in the format of docs/formats/baseline.md.
//!
//! Promises: a file is replaced as a whole; one that is damaged or too large is refused with its name, and harms nobody.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use baseline::State;

use crate::config;

/// The end of a file's name.
const SUFFIX: &str = ".baseline";
/// Bytes of a file at most: all edges that a state may hold, each at its largest.
const FILE_BYTES_MAX: u64 = 128 << 20;

/// What an engine starts from.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) state: State,
    pub(super) template: String,
    pub(super) file: PathBuf,
}

/// Our own baseline, else that of the workload for our template, else the newest one of another template.
pub(super) fn find(config: &config::Baseline) -> Option<Found> {
    let dirs = || [&config.dir, &config.workload_dir].into_iter().flatten();
    let ours = dirs().map(|dir| (config.template.clone(), path(dir, &config.template)));
    let mut others: Vec<_> = dirs().flat_map(|dir| templates(dir)).collect();
    others.sort_by_key(|(modified, ..)| std::cmp::Reverse(*modified));
    let others = others.into_iter().map(|(_, template, file)| (template, file));
    ours.chain(others).find_map(|(template, file)| match read(&file) {
        Ok(state) => Some(Found { state, template, file }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(?file, %error, "a baseline cannot be used");
            None
        }
    })
}

/// The templates in a directory, each with its age and file.
fn templates(dir: &Path) -> Vec<(SystemTime, String, PathBuf)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let template = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let modified = entry.metadata().ok()?.modified().ok()?;
        Some((modified, name.strip_suffix(SUFFIX)?.to_owned(), entry.path()))
    };
    entries.flatten().filter_map(template).collect()
}

fn path(dir: &Path, template: &str) -> PathBuf {
    dir.join(format!("{template}{SUFFIX}"))
}

fn read(file: &Path) -> io::Result<State> {
    let mut bytes = Vec::new();
    File::open(file)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    State::decode(&bytes).map_err(io::Error::other)
}

/// Replaces the file of a template.
///
/// # Errors
/// As the system says; the file is as before then.
pub(super) fn save(dir: &Path, template: &str, state: &State) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let (file, fresh) = (path(dir, template), dir.join(format!(".{template}.new")));
    // It names peers and services.
    let mut writer = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    writer.write_all(&state.encode())?;
    writer.sync_all()?;
    fs::rename(&fresh, &file)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path, template: &str) -> config::Baseline {
        config::Baseline {
            enabled: true,
            dir: Some(dir.to_owned()),
            workload_dir: None,
            template: template.to_owned(),
            learn: std::time::Duration::from_secs(60),
            adopt: std::time::Duration::from_secs(60),
            edges: 10,
            cgroup: None,
        }
    }

    #[test]
    fn the_own_template_wins_over_another_and_damage_is_passed_over() {
        let dir = std::env::temp_dir().join(format!("picket-baseline-store-{}", std::process::id()));
        let dir = dir.as_path();
        assert!(find(&config(dir, "new")).is_none());
        save(dir, "old", &State::default()).unwrap();
        assert_eq!(find(&config(dir, "new")).unwrap().template, "old");
        save(dir, "new", &State::default()).unwrap();
        assert_eq!(find(&config(dir, "new")).unwrap().template, "new");
        fs::write(path(dir, "new"), b"no baseline").unwrap();
        assert_eq!(find(&config(dir, "new")).unwrap().template, "old");
        fs::remove_dir_all(dir).unwrap();
    }
}
