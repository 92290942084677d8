//! Places at which a test lets the program die, as if the machine had: compiled in with the feature `fault-points` only.
//!
//! The variable `PICKET_FAULT_POINT` names one place; reaching it is SIGKILL, so that nothing is cleaned up. Without the
//! feature this is nothing at all.

/// Dies here when the test says so.
#[cfg(feature = "fault-points")]
pub(crate) fn point(change: &str, place: &str) {
    if std::env::var("PICKET_FAULT_POINT").is_ok_and(|name| name == format!("{change}:{place}")) {
        // Nothing to do when it fails: the test then finds the program alive.
        let _killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Nothing, in what is released.
#[cfg(not(feature = "fault-points"))]
pub(crate) fn point(_change: &str, _place: &str) {}
