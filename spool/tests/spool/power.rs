//! Power cuts: the disk keeps what was synced, and of the rest what chance has left.

use std::collections::BTreeSet;

use crate::{Random, SECOND, append, memory::Memory, open, read_all};

#[test]
fn fifty_power_cuts_lose_no_synced_record() {
    for seed in 0..50 {
        let mut random = Random(seed);
        let mut disk = Memory::new();
        let (mut next, mut promised, mut arrived) = (0, BTreeSet::new(), BTreeSet::new());
        // Several lives of one machine, so that a cut also meets what the one before has left.
        for life in 0..4 {
            let (mut spool, mut reader, _) = open(&disk);
            let (tip, mut written) = (spool.tip().next, BTreeSet::new());
            for step in 0..random.below(60) + 1 {
                let records = random.below(30) + 1;
                append(&mut spool, (life * 100 + step) * SECOND, next..next + records).unwrap();
                written.extend(next..next + records);
                next += records;
                if random.below(4) == 0 {
                    spool.sync().unwrap();
                    promised.append(&mut written);
                }
                if random.below(6) == 0 {
                    spool.tick((life * 100 + step) * SECOND).unwrap();
                }
                if random.below(5) == 0
                    && let Some(chunk) = reader.next(2000).unwrap()
                {
                    let mut read = crate::Read::default();
                    read.take(&chunk);
                    arrived.extend(read.numbers());
                    if random.below(2) == 0 {
                        reader.acknowledge(&chunk).unwrap();
                    }
                }
            }
            assert!(spool.tip().next > tip);
            disk = disk.after_power_cut(&mut random);
        }
        let (_spool, mut reader, _) = open(&disk);
        let read = read_all(&mut reader, 10_000);
        assert_eq!(read.gaps, [], "seed {seed}");
        arrived.extend(read.numbers());
        let lost: Vec<&u64> = promised.difference(&arrived).collect();
        assert_eq!(lost, Vec::<&u64>::new(), "seed {seed}");
        assert!(promised.len() > 20, "seed {seed}");
    }
}
