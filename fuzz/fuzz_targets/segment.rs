//! A segment with any damage: opening and reading it ends, gives no record that was not written, and keeps their order.

#![no_main]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use record::{UidSource, field, key, line, otlp::Attributes};
use spool::{Config, Disk, OnFull, Reader, Spool, Sync};

const CONFIG: Config = Config {
    // Segments of 32 KiB: the two records that hold a context are 4 KiB apart.
    max_bytes: 512 << 10,
    max_age: Duration::from_secs(3600),
    min_free_bytes: 0,
    sync: Sync::Interval(Duration::from_millis(100)),
    on_full: OnFull::DropOldest,
    uid_seed: 1,
};

/// A segment as it should be: its name, its bytes, its records by their numbers.
struct Clean {
    name: String,
    bytes: Vec<u8>,
    records: BTreeMap<u64, Vec<u8>>,
}

static CLEAN: LazyLock<Clean> = LazyLock::new(|| {
    let directory = directory("clean");
    let (mut spool, mut reader, _) = open(&directory);
    let mut uids = UidSource::new(2);
    for batch in 0..8u64 {
        let mut fields = Vec::new();
        for number in 0..5 {
            let mut content = Vec::new();
            let mut attributes = Attributes::new(&mut content);
            // Two connections, and records of none.
            if number % 3 > 0 {
                attributes.text(key::CONNECTION_UID, &(number % 3).to_string());
                attributes.text(key::SERVICE, &"a context ".repeat(25));
            }
            attributes.text(key::LOG_RECORD_UID, std::str::from_utf8(&uids.next(1).text()).expect("it is ASCII"));
            attributes.text(key::DETAIL, &"x".repeat((batch * 31 + number * 7) as usize));
            field::append(&mut fields, &content).expect("it is short");
        }
        spool.append(1 + batch, 5, &fields).expect("the disk has room");
    }
    spool.sync().expect("the disk works");
    let records = read(&mut reader);
    let names = fs::read_dir(&directory).expect("it was made").flatten().map(|entry| entry.path());
    let file = names.into_iter().find(|path| path.extension().is_some_and(|end| end == "seg")).expect("there is one");
    let name = file.file_name().expect("a file has a name").to_string_lossy().into_owned();
    let bytes = fs::read(&file).expect("it can be read");
    assert!(bytes.len() < records.values().map(Vec::len).sum(), "some records leave their context out");
    Clean { name, bytes, records }
});

fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("picket-fuzz-{name}-{}", std::process::id()));
    let _gone = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).expect("the temporary directory can be used");
    path
}

fn open(directory: &Path) -> (Spool, Reader, spool::Recovery) {
    let disk = Disk::open(directory).expect("nobody else uses it");
    Spool::open(Arc::new(disk), CONFIG, 1_000_000_000).expect("damage is no reason not to open")
}

fn read(reader: &mut Reader) -> BTreeMap<u64, Vec<u8>> {
    let mut records = BTreeMap::new();
    let mut last = 0;
    while let Some(chunk) = reader.next(700).expect("the disk works") {
        for content in field::contents(&chunk.fields) {
            let content = content.expect("only whole records are given out");
            let number = line::attributes(content).find(|(name, _)| *name == key::SEQUENCE).map(|(_, value)| value);
            let Some(line::Attribute::Int(number)) = number else { panic!("a record without a number") };
            assert!(number as u64 > last, "{number} after {last}");
            last = number as u64;
            records.insert(last, content.to_vec());
        }
        reader.acknowledge(&chunk).expect("the disk works");
    }
    records
}

// Four bytes are one edit: where (two bytes, scaled), what is done, and with which byte.
fuzz_target!(|edits: &[u8]| {
    let mut bytes = CLEAN.bytes.clone();
    for edit in edits.chunks_exact(4).take(16) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) * bytes.len() / 65_536;
        match edit[2] % 5 {
            _ if bytes.is_empty() => {}
            0 => bytes[at] = edit[3],
            1 => bytes[at] ^= 1 << (edit[3] % 8),
            2 => bytes.truncate(at),
            3 => drop(bytes.splice(at..at, vec![edit[3]; usize::from(edit[3])])),
            _ => {
                let copy = bytes[at..(at + usize::from(edit[3])).min(bytes.len())].to_vec();
                bytes.splice(at..at, copy);
            }
        }
    }
    let directory = directory("damaged");
    fs::write(directory.join(&CLEAN.name), &bytes).expect("the disk works");
    let (mut spool, mut reader, _) = open(&directory);
    for (number, content) in read(&mut reader) {
        assert_eq!(CLEAN.records.get(&number), Some(&content), "record {number} was never written");
    }
    // Damage is reported, and the spool goes on.
    spool.report(2_000_000_000).expect("the disk works");
    spool.sync().expect("the disk works");
    read(&mut reader);
    fs::remove_dir_all(&directory).expect("it was made");
});
