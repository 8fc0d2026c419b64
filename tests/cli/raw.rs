//! Whoever read the protocol page, and nothing else, can write a client: `raw.py` is one, with a MessagePack and a
//! connection of its own.

use super::convoke;
use super::worker::Worker;
use crate::support::{self, Redis, eventually, users};
use std::process::Command;

#[test]
fn a_program_that_knows_the_page_alone_asks_votes_and_takes_tasks() {
    if support::skip_on_cluster("the program asks one server, by plain names") {
        return;
    }
    let redis = Redis::start();
    let mut worker = convoke(&redis, &["worker", "--id=w-1", "--exec=raw.echo=cat"]);
    let worker = Worker::start(&redis, "w-1", &mut worker);
    let mut there = redis.connect();
    eventually("the worker leads", || {
        let leads: bool = redis::cmd("EXISTS")
            .arg("cb:leader")
            .query(&mut there)
            .unwrap();
        leads
    });
    let ended = Command::new("/usr/bin/python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/raw.py"))
        .arg("w-1")
        .arg(redis.url_for(users::SERVICE))
        .arg(redis.url_for(users::INSTANCE))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");
    assert_eq!(worker.stop().code, 0);
}
