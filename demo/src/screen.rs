//! What the demo prints: colours on a terminal, plain text elsewhere.

use std::io::IsTerminal;

/// How to print.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    colours: bool,
}

impl Screen {
    /// Colours when standard output is a terminal and `NO_COLOR` (no-color.org) is not set.
    pub(crate) fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colours: wanted && std::io::stdout().is_terminal() }
    }

    /// A heading with an empty line before it.
    pub(crate) fn heading(self, text: &str) {
        println!("\n{}", self.paint("1", text));
    }

    /// What is being done now.
    pub(crate) fn step(self, text: &str) {
        println!("  {}", self.paint("2", text));
    }

    /// One line of content.
    pub(crate) fn line(self, text: &str) {
        println!("  {text}");
    }

    /// One check and its evidence.
    pub(crate) fn check(self, holds: bool, claim: &str, evidence: &str) {
        let mark = if holds { self.paint("32", "✓") } else { self.paint("1;31", "✗") };
        println!("  {mark} {claim}  {}", self.paint("2", evidence));
    }

    /// A table whose columns are as wide as their longest cell. `right` says which columns are numbers.
    pub(crate) fn table(self, head: &[&str], right: &[bool], rows: &[Vec<String>]) {
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([head[column].chars().count()]).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let align = |cells: &mut dyn Iterator<Item = &str>| -> String {
            let padded: Vec<String> = cells
                .zip(widths.iter().zip(right))
                .map(
                    |(cell, (width, right))| if *right { format!("{cell:>width$}") } else { format!("{cell:<width$}") },
                )
                .collect();
            padded.join("  ").trim_end().to_owned()
        };
        println!("  {}", self.paint("2", &align(&mut head.iter().copied())));
        for row in rows {
            println!("  {}", align(&mut row.iter().map(String::as_str)));
        }
    }

    fn paint(self, style: &str, text: &str) -> String {
        if self.colours { format!("\u{1b}[{style}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}
