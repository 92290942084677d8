//! Disks that are full, stuck, read-only, damaged or gone, below the spool of a real proxy under load: traffic goes on as
//! the policy says, nothing waits for the disk, and what is missing at the collector is exactly what the gap records say.
//!
//! The file systems are mounted in the pod's own mount namespace and end with it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::atomic::Ordering::SeqCst,
    time::Duration,
};

use integration::{
    DEADLINE, Stage, service,
    steady::{Answered, LOCATION, Load},
    streams::Streams,
};
use serde_json::{Value, json};
use testkit::{Collector, LINK_IPV4, PROXY_UID, Process, Settings, run, until};

const TARGET: u16 = 8084;
const COLLECTOR: u16 = 4320;
/// Nothing may wait for the disk: much more than a request takes on a loaded machine, much less than the disk is stuck.
const ANSWER_MAX: Duration = Duration::from_millis(1500);
const STUCK: Duration = Duration::from_secs(3);

/// A mesh whose client keeps its records on a file system of its own, with nobody at the collector's address.
struct Scene {
    stage: Stage,
    _web: Process,
    to: SocketAddr,
    collector: SocketAddr,
}

impl Scene {
    /// `mount` is a script that mounts something at `$SPOOL`; `$UID` is the proxy's user.
    fn new(spool: Value, mount: &str) -> Self {
        let collector = SocketAddr::from((LINK_IPV4, COLLECTOR));
        let web = service("steady", 20, 80, TARGET, Some("http"));
        let settings = Settings { collector: Some(collector), spool: Some(spool), ..Settings::default() };
        let mut stage = Stage::with_services(&settings, std::slice::from_ref(&web)).unwrap();
        let nginx = stage.nginx(TARGET, "", LOCATION).unwrap();
        let directory = stage.mesh.directory.path().join("client/spool");
        stage
            .mesh
            .restart_proxy("client", |mesh| {
                std::fs::remove_dir_all(&directory)?;
                std::fs::create_dir(&directory)?;
                std::os::unix::fs::chown(&directory, Some(PROXY_UID), Some(PROXY_UID))?;
                let mut script = mesh.pod("client")?.pod.namespace.command_with_mounts(0, "sh");
                run(script.args(["-ec", mount]).env("SPOOL", &directory).env("UID", PROXY_UID.to_string()))?;
                Ok(())
            })
            .unwrap();
        stage.mesh.wait_ready("client").unwrap();
        Self { stage, _web: nginx, to: (IpAddr::from(web.ipv4()), 80).into(), collector }
    }

    /// The spool's directory, as the test has it before its eyes; what is mounted there only the proxy sees.
    fn directory(&self) -> PathBuf {
        self.stage.mesh.directory.path().join("client/spool")
    }

    fn script(&self, script: &str) -> String {
        let mut command = self.stage.mesh.pod("client").unwrap().pod.namespace.command_with_mounts(0, "sh");
        run(command.args(["-ec", script]).env("SPOOL", self.directory())).unwrap()
    }

    fn metric(&self, sample: &str) -> u64 {
        self.stage.metric("client", sample).unwrap()
    }

    fn lost(&self) -> u64 {
        let reasons = ["spool_full", "age", "disk_low", "queue_full", "write_failed", "sync_failed", "damaged"];
        let reasons = reasons.into_iter().chain(["vanished", "malformed"]);
        reasons.map(|reason| self.metric(&format!("picket_spool_records_lost_total{{reason=\"{reason}\"}}"))).sum()
    }

    fn load(&self) -> Load {
        self.stage.steady_load(2, self.to, Duration::from_millis(1)).unwrap()
    }

    /// Waits for so many answers more.
    fn answers(&self, load: &Load, more: u64) {
        let before = load.shared.answered.load(SeqCst);
        until("answers", DEADLINE, || Ok((load.shared.answered.load(SeqCst) >= before + more).then_some(()))).unwrap();
    }

    /// Waits until so many records more are lost.
    fn losses(&self, more: u64) {
        let before = self.lost();
        until("losses", DEADLINE, || Ok((self.lost() >= before + more).then_some(()))).unwrap();
    }

    /// How often the proxy's log says this.
    fn said(&self, words: &str) -> usize {
        let pod = self.stage.mesh.pod("client").unwrap();
        let output = pod.proxy.as_ref().unwrap().output(testkit::Stream::Err).unwrap();
        output.lines().filter(|line| line.contains(words)).count()
    }

    /// The collector comes; waits until each number of the client's stream came or stands in a gap record, and gives what
    /// the gap records say.
    fn settle(&self) -> Vec<integration::streams::Gap> {
        self.settle_with(&Collector::start(&self.stage.mesh.net.link, self.collector).unwrap())
    }

    fn settle_with(&self, collector: &Collector) -> Vec<integration::streams::Gap> {
        let mark = "/mark/of-the-end";
        self.stage.run("client", "curl", &["--silent", "--show-error", &format!("http://{}{mark}", self.to)]).unwrap();
        let mut streams = Streams::default();
        let settled = until("the mark and an exact account", DEADLINE, || {
            streams.take(&collector.take())?;
            let stream = streams.0.values().find(|stream| stream.requests.contains_key(mark));
            Ok(stream.filter(|stream| stream.exact().is_ok()).map(|stream| stream.gaps.clone()))
        });
        let Ok(gaps) = settled else {
            let faults: Vec<_> = streams.0.values().map(|stream| stream.exact()).collect();
            panic!("{faults:?}")
        };
        assert_eq!(gaps.iter().map(|gap| gap.records).sum::<u64>(), self.lost(), "{gaps:?}");
        gaps
    }
}

/// Every request was answered, and none waited for the disk.
fn went_on(load: Load) -> Vec<Answered> {
    let sent = std::sync::Arc::clone(&load.shared);
    let answered: Vec<Answered> = load.stop().unwrap().into_iter().flatten().collect();
    assert_eq!(answered.len() as u64, sent.sent.load(SeqCst), "a request had no answer");
    let slowest = answered.iter().max_by_key(|request| request.took).unwrap();
    assert!(slowest.took < ANSWER_MAX, "{slowest:?}");
    answered
}

const TMPFS: &str = "mount -t tmpfs -o size=1m,mode=0700,uid=$UID,gid=$UID tmpfs $SPOOL";

#[test]
fn on_a_full_disk_traffic_goes_on_and_the_oldest_records_are_lost_by_name() {
    let scene = Scene::new(json!({ "minFreeBytes": 1 }), TMPFS);
    let load = scene.load();
    scene.losses(1);
    scene.losses(500);
    went_on(load);
    assert_eq!(scene.said("records are being lost") + scene.said("the spool loses records"), 1);
    let gaps = scene.settle();
    assert!(gaps.iter().any(|gap| gap.reason == "disk_low"), "{gaps:?}");
}

#[test]
fn on_a_full_disk_with_refuse_connections_are_refused_until_there_is_room() {
    let scene = Scene::new(json!({ "minFreeBytes": "512KiB", "onFull": "refuse" }), TMPFS);
    let load = scene.load();
    let full = |wanted: u64| {
        until("the spool to be full, or not", DEADLINE, || {
            Ok((scene.metric("picket_spool_full") == wanted).then_some(()))
        })
    };
    full(1).unwrap();
    load.stop().unwrap();
    let curl =
        || scene.stage.run("client", "curl", &["--silent", "--show-error", &format!("http://{}/steady/x", scene.to)]);
    curl().expect_err("a full spool refuses connections");
    // The collector takes what is there: there is room again.
    let collector = Collector::start(&scene.stage.mesh.net.link, scene.collector).unwrap();
    full(0).unwrap();
    curl().unwrap();
    until("the alert disk_low", DEADLINE, || Ok((scene.said("less free than spool.minFreeBytes") == 1).then_some(())))
        .unwrap();
    // Each refused connection was to be on record; where there was no room for that, a gap record says so.
    let gaps = scene.settle_with(&collector);
    assert!(gaps.iter().all(|gap| gap.reason == "disk_low"), "{gaps:?}");
}

#[test]
fn a_stuck_disk_holds_nobody_up_and_costs_nothing() {
    // Its journal is left out: that a thread of the kernel waits is not what is looked at.
    let scene = Scene::new(
        json!({ "minFreeBytes": 1 }),
        "truncate -s 64m $SPOOL.image; mkfs.ext4 -q -O ^has_journal -m 0 $SPOOL.image; mount -o loop $SPOOL.image $SPOOL;
         chown $UID:$UID $SPOOL; chmod 700 $SPOOL",
    );
    let load = scene.load();
    scene.answers(&load, 100);
    let before = load.shared.answered.load(SeqCst);
    // Whatever writes or syncs waits, as on a network disk that is away; it ends also when the test does.
    let seconds = STUCK.as_secs();
    scene.script(&format!("fsfreeze -f $SPOOL; sleep {seconds}; fsfreeze -u $SPOOL"));
    let meanwhile = load.shared.answered.load(SeqCst) - before;
    scene.answers(&load, 100);
    went_on(load);
    assert!(meanwhile > 200, "{meanwhile} answers while the disk was stuck");
    assert_eq!(scene.said("the spool loses records"), 0);
    assert_eq!(scene.settle(), []);
}

#[test]
fn on_a_disk_that_turned_read_only_traffic_goes_on_and_each_loss_is_counted() {
    let mut scene = Scene::new(
        json!({ "minFreeBytes": 1 }),
        "truncate -s 64m $SPOOL.image; mkfs.ext4 -q -O ^has_journal -m 0 $SPOOL.image;
         mount -o loop,errors=remount-ro $SPOOL.image $SPOOL; chown $UID:$UID $SPOOL; chmod 700 $SPOOL",
    );
    let load = scene.load();
    scene.answers(&load, 100);
    // What the kernel does by itself when it finds an error on the disk; this file system is never writable again.
    scene.script("echo 1 > /sys/fs/ext4/$(basename $(findmnt -no SOURCE $SPOOL))/trigger_fs_error");
    scene.losses(200);
    until("the alert spool_failing", DEADLINE, || {
        Ok((scene.said("the spool cannot be written, and records are lost") == 1).then_some(()))
    })
    .unwrap();
    went_on(load);
    assert_eq!(scene.said("the spool loses records"), 1);
    assert_eq!(scene.said("records are being lost"), 0);
    // With a disk that works, the next process goes on; what was written before arrives.
    let directory = scene.directory();
    scene
        .stage
        .mesh
        .restart_proxy("client", |mesh| {
            let mut script = mesh.pod("client")?.pod.namespace.command_with_mounts(0, "sh");
            let again = "umount $SPOOL; fsck.ext4 -y $SPOOL.image > /dev/null || test $? -le 1; mount -o loop $SPOOL.image $SPOOL";
            run(script.args(["-ec", again]).env("SPOOL", &directory)).map(drop)
        })
        .unwrap();
    scene.stage.mesh.wait_ready("client").unwrap();
    assert_eq!(scene.settle(), []);
}

#[test]
fn flipped_bits_cost_the_records_that_they_hit() {
    let mut scene = Scene::new(json!({ "minFreeBytes": 1 }), "true");
    let load = scene.load();
    scene.answers(&load, 300);
    went_on(load);
    let directory = scene.directory();
    scene
        .stage
        .mesh
        .restart_proxy("client", |_| {
            let segments = std::fs::read_dir(&directory)?.map(|entry| entry.unwrap().path());
            let longest = segments.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
            let mut bytes = std::fs::read(&longest)?;
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            Ok(std::fs::write(&longest, bytes)?)
        })
        .unwrap();
    scene.stage.mesh.wait_ready("client").unwrap();
    let gaps = scene.settle();
    let damaged: Vec<_> = gaps.iter().map(|gap| (gap.records, gap.reason.as_str())).collect();
    assert_eq!(damaged, [(1, "damaged")]);
    assert_eq!(scene.said("a segment of the spool is damaged"), 1);
}

#[test]
fn a_directory_that_vanished_is_made_again_and_what_was_in_it_is_lost_by_name() {
    let scene = Scene::new(json!({ "minFreeBytes": 1 }), "true");
    let load = scene.load();
    // What the export has in its hands is not lost with the directory; the rest is.
    until("records in the spool", DEADLINE, || {
        Ok((scene.metric("picket_spool_records_written_total") >= 500).then_some(()))
    })
    .unwrap();
    std::fs::remove_dir_all(scene.directory()).unwrap();
    scene.losses(100);
    until("the spool to take records again", DEADLINE, || {
        Ok((scene.said("the spool takes records again") == 1).then_some(()))
    })
    .unwrap();
    scene.answers(&load, 100);
    went_on(load);
    assert_eq!(scene.said("the spool loses records"), 1);
    let gaps = scene.settle();
    assert!(gaps.iter().any(|gap| gap.reason == "vanished"), "{gaps:?}");
}
