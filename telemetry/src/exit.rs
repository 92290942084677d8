//! What the exit code of each of our programs means.

use std::process::ExitCode;

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// 0: it did what was asked, or the answer is yes.
    Success = 0,
    /// 1: it worked, and the answer is no.
    No = 1,
    /// 2: it failed.
    Failed = 2,
    /// 64: wrong usage or configuration; `EX_USAGE` of sysexits.h. Trying again without a change is of no use.
    Usage = 64,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
