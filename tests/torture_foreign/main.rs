//! Programs in another language, that know Redis, MessagePack and the protocol, and nothing of ours.

#[path = "../support/mod.rs"]
mod support;

use std::process::Command;
use support::fleet::{self, Fleet};
use support::{Redis, eventually, users};

#[test]
fn a_worker_process() {
    fleet::worker_process(|worker| worker.handler("load.work", fleet::work));
}

fn python(script: &str, url: &str, arguments: &[&str]) -> String {
    let path = format!(
        "{}/tests/torture_foreign/{script}",
        env!("CARGO_MANIFEST_DIR")
    );
    // The interpreter for which scripts/install brings the modules.
    let ended = Command::new("/usr/bin/python3")
        .arg(path)
        .arg(url)
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{script}: {said}");
    String::from_utf8(ended.stdout).unwrap()
}

fn started(redis: &Redis, size: u32) -> Fleet {
    let fleet = Fleet::start(redis, size as usize);
    let mut connection = redis.connect();
    eventually("the workers are there", || {
        let active: u32 = redis::cmd("ZCARD")
            .arg("cb:instances:active")
            .query(&mut connection)
            .unwrap();
        active == size
    });
    fleet
}

#[test]
fn ten_thousand_concurrent_requests_get_their_replies_exactly_once() {
    let redis = Redis::start();
    let fleet = started(&redis, 3);
    let publisher = redis.url_for(users::PUBLISHER);
    print!("{}", python("requests.py", &publisher, &["10", "1000"]));
    fleet.drain();
}

#[test]
fn every_system_and_task_event_can_be_spoken_without_a_library() {
    let redis = Redis::start();
    let fleet = started(&redis, 2);
    print!(
        "{}",
        python("coordination.py", &redis.url_for(users::INSTANCE), &[])
    );
    fleet.drain();
}
