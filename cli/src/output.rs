//! How data is written: columns for people, JSON for programs.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The two forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs; fields are only ever added.
    Json,
}

/// Writes to stdout. Who reads a part and closes the pipe has what they want.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Rows in columns as wide as they need to be; the first row is the head. Control characters, which names from records may
/// hold, are shown as `?`: nobody writes to the terminal or forges a row.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let clean = |cell: &String| cell.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(clean).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let widths: Vec<usize> =
        (0..columns).map(|column| cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// How long until `at` (RFC 3339), as a person says it; a minus when it was.
pub(crate) fn until(at: &str, now: &str) -> String {
    let parse = |text| OffsetDateTime::parse(text, &Rfc3339);
    let (Ok(at), Ok(now)) = (parse(at), parse(now)) else { return "?".into() };
    let left = (at - now).whole_seconds();
    let sign = if left < 0 { "-" } else { "" };
    format!("{sign}{}", long(Duration::from_secs(left.unsigned_abs())))
}

/// A duration in its two largest units.
pub(crate) fn long(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) if days < 10 => format!("{days}d{hours}h"),
        (days, ..) => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["NAME", "IN"], ["root 1", "3d"], ["i", "40d2h"]];
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| (*cell).into()).collect()).collect();
        assert_eq!(table(&rows), "NAME    IN\nroot 1  3d\ni       40d2h\n");
        assert_eq!(table(&[]), "");
        assert_eq!(table(&[vec!["a\u{1b}[2J\nb\u{9b}".to_owned()]]), "a?[2J?b?\n");
    }

    #[test]
    fn durations_are_short() {
        let cases = [(5, "5s"), (65, "1m5s"), (3660, "1h1m"), (90_000, "1d1h"), (864_000, "10d"), (31_536_000, "365d")];
        for (seconds, text) in cases {
            assert_eq!(long(Duration::from_secs(seconds)), text);
        }
        assert_eq!(until("2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"), "1d0h");
        assert_eq!(until("2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"), "-1m0s");
        assert_eq!(until("never", "2026-01-01T00:01:00Z"), "?");
    }
}
