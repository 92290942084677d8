//! The access log: one line on stdout per record, written by a thread of its own, so that a stdout nobody reads stops
//! no traffic.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use record::line;

use crate::Receiver;

/// Which records get a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// None.
    Off,
    /// Those with a severity above INFO.
    Errors,
    /// Each.
    All,
}

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// The mode, changeable while the log runs.
#[derive(Debug, Clone)]
pub struct ModeHandle(Arc<AtomicU8>);

impl ModeHandle {
    /// A handle that begins with `mode`.
    pub fn new(mode: Mode) -> Self {
        Self(Arc::new(AtomicU8::new(mode as u8)))
    }

    /// Changes the mode, from the next batch on.
    pub fn set(&self, mode: Mode) {
        self.0.store(mode as u8, Relaxed);
    }

    /// The mode in force.
    pub fn get(&self) -> Mode {
        match self.0.load(Relaxed) {
            0 => Mode::Off,
            1 => Mode::Errors,
            _ => Mode::All,
        }
    }
}

/// Writes lines to stdout until all senders are gone and the queue is empty.
///
/// # Errors
/// When the system refuses a thread.
pub fn spawn(receiver: Receiver, mode: ModeHandle, format: Format) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("access-log".to_owned())
        .spawn(move || write(receiver, &mode, format, &mut std::io::stdout()))
}

fn write(mut receiver: Receiver, mode: &ModeHandle, format: Format, to: &mut impl Write) {
    let mut lines = Vec::new();
    while let Some(batch) = receiver.recv_blocking() {
        let mode = mode.get();
        lines.clear();
        if mode != Mode::Off {
            for record in line::records(&batch.fields).filter(|record| mode == Mode::All || line::is_error(record)) {
                match format {
                    Format::Text => line::text(record, &mut lines),
                    Format::Json => line::json(record, &mut lines),
                }
            }
        }
        match to.write_all(&lines).and_then(|()| to.flush()) {
            Ok(()) => receiver.counters().acknowledge(u64::from(batch.records)),
            Err(_) => receiver.counters().reject(u64::from(batch.records)),
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::logs::v1::{LogRecord, ScopeLogs};
    use prost::Message;

    use super::*;
    use crate::{Batch, queue};

    fn lines(mode: Mode, format: Format) -> Vec<String> {
        let record = |event_name: &str, severity_number| LogRecord {
            event_name: event_name.to_owned(),
            severity_number,
            ..LogRecord::default()
        };
        let log_records = vec![record("good", 9), record("bad", 13)];
        let fields = ScopeLogs { log_records, ..ScopeLogs::default() }.encode_to_vec().into();
        let (sender, receiver) = queue(1000);
        sender.send(Batch { records: 2, fields }).unwrap();
        let counters = Arc::clone(sender.counters());
        drop(sender);
        let mut out = Vec::new();
        write(receiver, &ModeHandle::new(mode), format, &mut out);
        assert_eq!(counters.acknowledged(), 2);
        String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_mode_chooses_the_records() {
        assert!(lines(Mode::Off, Format::Json).is_empty());
        let errors = lines(Mode::Errors, Format::Json);
        assert!(errors.len() == 1 && errors[0].contains("\"event\":\"bad\""), "{errors:?}");
        let all = lines(Mode::All, Format::Text);
        assert!(all.len() == 2 && all[0].contains("good") && all[1].contains("bad"), "{all:?}");
    }
}
