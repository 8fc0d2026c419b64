//! A disk that is full, for real: a small file system in a mount namespace of the test's own, which
//! ends with the test.

use crate::outage::complete;
use crate::rig::{BROADCAST, Rig, Store};
use crate::support::new_directory;
use convoke::ledger::LedgerError;
use convoke::ledger::fact::Fact;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Says that the process has the small file system, and where.
const ROOM: &str = "LEDGER_TEST_ROOM";

/// The small file system. In the first process of a test it is made, and the test runs in a second
/// one; `None` then, and where making one is not permitted.
fn room(test: &str) -> Option<PathBuf> {
    if let Some(room) = std::env::var_os(ROOM) {
        return Some(room.into());
    }
    let room = new_directory("room");
    let inside = |program: &[&str]| {
        let root = std::fs::metadata("/proc/self").is_ok_and(|me| {
            use std::os::unix::fs::MetadataExt;
            me.uid() == 0
        });
        let mut command = Command::new("unshare");
        if !root {
            command.args(["--user", "--map-current-user", "--keep-caps"]);
        }
        command
            .args(["--mount", "sh", "-c"])
            .arg("mount -t tmpfs -o size=160m,mode=0777 none \"$0\" && exec \"$@\"")
            .arg(&room)
            .args(program)
            .env(ROOM, &room)
            .env("TMPDIR", &room)
            .output()
    };
    let me = std::env::current_exe().unwrap();
    match inside(&["true"]) {
        Ok(tried) if tried.status.success() => {
            let ran = inside(&[me.to_str().unwrap(), "--exact", test, "--nocapture"]).unwrap();
            let said = [&ran.stdout[..], &ran.stderr].map(String::from_utf8_lossy);
            assert!(ran.status.success(), "{}{}", said[0], said[1]);
            assert!(said[0].contains("1 passed"), "{}", said[0]);
        }
        tried => eprintln!("SKIPPED: no file system can be mounted here: {tried:?}"),
    }
    std::fs::remove_dir(&room).unwrap();
    None
}

/// Takes all room that is left.
fn fill_up(ballast: &Path) {
    let mut file = std::fs::File::create(ballast).unwrap();
    let mut piece = vec![0; 1 << 20];
    while !piece.is_empty() {
        if file.write_all(&piece).is_err() {
            piece.truncate(piece.len() / 2);
        }
    }
}

async fn a_full_disk_delays(store: Store, room: &Path) {
    let rig = Rig::new(store).await;
    let running = rig.fill("w-1");
    rig.tell_many("task.completed", 0, 10).await;
    rig.until_written().await;

    let ballast = room.join("ballast");
    fill_up(&ballast);
    rig.tell_many("task.completed", 10, 20_000).await;
    running.until_in_vain(3).await;
    assert!(
        rig.backlog(BROADCAST).await > 0,
        "nothing is acknowledged that is not written"
    );
    let large = Fact {
        namespace: "cb".into(),
        stream: "elsewhere".into(),
        at: 1,
        seq: 0,
        kind: "large".into(),
        time: None,
        source: None,
        subject: None,
        instance: None,
        reason: None,
        data: Value::String((0..1 << 20).map(|_| fastrand::alphanumeric()).collect()),
        fields: json!({}),
    };
    let error = rig.store.database().insert(&[large]).await.unwrap_err();
    assert!(matches!(error, LedgerError::Full(_)), "{error}");

    std::fs::remove_file(&ballast).unwrap();
    rig.until_written().await;
    running.stop().await;
    complete(&rig, 20_010).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_delays_a_file() {
    if let Some(room) = room("full::a_disk_that_is_full_delays_a_file") {
        a_full_disk_delays(Store::file(), &room).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_delays_a_server() {
    if let Some(room) = room("full::a_disk_that_is_full_delays_a_server") {
        a_full_disk_delays(Store::server(), &room).await;
    }
}
