//! Who takes records out of a spool. Each has a cursor of its own, and none waits for another.

/// A sink that reads a spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sink {
    /// The OTLP collector.
    Otlp,
    /// The syslog server.
    Syslog,
}

impl Sink {
    /// Every sink.
    pub const ALL: [Self; 2] = [Self::Otlp, Self::Syslog];

    /// The word in records and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Otlp => "otlp",
            Self::Syslog => "syslog",
        }
    }

    /// Where its cursor is kept.
    pub(crate) const fn cursor_file(self) -> &'static str {
        match self {
            Self::Otlp => "cursor",
            Self::Syslog => "cursor-syslog",
        }
    }

    /// True when what was given out may have to be read again: it counts as taken only when it is acknowledged.
    pub(crate) const fn reads_again(self) -> bool {
        match self {
            Self::Otlp => false,
            Self::Syslog => true,
        }
    }
}
