//! The pod's annotations, as the downward API mounts them: what may be changed while the proxy runs.
//!
//! One annotation counts, `picket.dev/access-log`. The file is looked at by content, so that it does not matter how it is
//! replaced. A value that is none changes nothing and is said once; without the annotation the configured mode is in force.

use std::{
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use export::access_log::{Mode, ModeHandle};

/// The annotation for the access log.
const ACCESS_LOG: &str = "picket.dev/access-log";
/// How often the file is looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Follows the file for ever.
pub async fn follow(file: PathBuf, configured: Mode, mode: ModeHandle) {
    // Nothing was seen yet, which is not the same as an annotation that is not there.
    let mut seen: Option<Option<String>> = None;
    let mut readable = true;
    loop {
        match read(&file) {
            Ok(text) => {
                let found = annotation(&text, ACCESS_LOG);
                if seen.as_ref() != Some(&found) {
                    let first = seen.is_none();
                    apply(found.as_deref(), configured, &mode, first);
                    seen = Some(found);
                }
                readable = true;
            }
            Err(error) => {
                if std::mem::replace(&mut readable, false) {
                    tracing::warn!(%error, ?file, "the annotations cannot be read; the access log stays as it is");
                }
            }
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

fn apply(found: Option<&str>, configured: Mode, mode: &ModeHandle, first: bool) {
    match found.map_or(Ok(configured), str::parse) {
        // What is not annotated at the start stays as it is.
        Ok(wanted) if !first || found.is_some() => {
            mode.set(wanted);
            tracing::info!(mode = %wanted, "the access log follows the annotation");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(annotation = ACCESS_LOG, %error, "the access log stays as it is"),
    }
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(file)?.take(settings::FILE_LIMIT_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// The value of an annotation: one `key="value"` a line. Values with escapes are none of ours.
fn annotation(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'));
    value.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotation_is_found_among_others() {
        let text = "a=\"picket.dev/access-log=\\\"all\\\"\"\npicket.dev/access-log=\"sampled:0.5\"\nz=\"\"\n";
        assert_eq!(annotation(text, ACCESS_LOG).as_deref(), Some("sampled:0.5"));
        assert_eq!(annotation("picket.dev/access-logs=\"all\"\n", ACCESS_LOG), None);
    }

    #[test]
    fn what_is_no_mode_changes_nothing_and_without_one_the_configuration_counts() {
        let (mode, configured) = (ModeHandle::new(Mode::Errors), Mode::Errors);
        for (found, expected) in
            [(Some("all"), Mode::All), (Some("loud"), Mode::All), (None, Mode::Errors), (Some("off"), Mode::Off)]
        {
            apply(found, configured, &mode, false);
            assert_eq!(mode.get(), expected, "{found:?}");
        }
        apply(None, configured, &mode, true);
        assert_eq!(mode.get(), Mode::Off, "at the start nothing is said where nothing is annotated");
    }
}
