//! Writes numbered records to a spool until it is killed, and says after each batch which numbers were written; for the
//! test that kills it. `writer DIRECTORY FIRST`.

use std::{io::Write, path::Path, sync::Arc, time::Duration};

use record::{Event, EventName, Severity, UidSource, Value, key};
use spool::{Config, Disk, OnFull, Spool, Sync};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, directory, first] = arguments.as_slice() else { return Err("usage: writer DIRECTORY FIRST".into()) };
    let mut next: u64 = first.parse()?;
    let config = Config {
        max_bytes: 64 << 20,
        max_age: Duration::from_secs(3600),
        min_free_bytes: 0,
        sync: Sync::Interval(Duration::from_millis(100)),
        on_full: OnFull::DropOldest,
        uid_seed: 1,
    };
    let (mut spool, _reader, _) = Spool::open(Arc::new(Disk::open(Path::new(directory))?), config, now())?;
    let mut uids = UidSource::new(u128::from(next) << 40);
    let mut out = std::io::stdout().lock();
    loop {
        let records = next % 7 + 1;
        let mut fields = Vec::new();
        for number in next..next + records {
            let attributes =
                [(key::DETAIL, Value::Text(&"x".repeat((number % 400) as usize))), ("n", Value::Int(number))];
            let (uid, name, severity) = (uids.next(1), EventName::Alert, Severity::Info);
            Event { uid, name, time_unix_nanos: now(), severity, attributes: &attributes }.encode(&mut fields);
        }
        spool.append(now(), records as u32, &fields)?;
        next += records;
        if next % 50 < records {
            spool.sync()?;
        }
        writeln!(out, "{next}")?;
        out.flush()?;
    }
}

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64)
}
