//! What looking at a million pending entries costs: memory here, time there. By hand:
//!
//!     cargo test --release --test torture_replay -- --ignored --nocapture

use super::{DEAD, EVENTS, convoke};
use crate::support::Redis;
use redis::Connection;
use std::process::Child;
use std::time::{Duration, Instant};

const PENDING: u64 = 1_000_000;
const BURIED: u64 = 100_000;
/// Commands that take less are not logged, in µs.
const LOGGED_US: u64 = 200;

fn fill(connection: &mut Connection) {
    let data = convoke::protocol::json::from_json(&serde_json::json!({
        "user": {"name": "ada", "id": 7}, "url": "https://example.org/a/picture.png", "width": 640,
    }));
    let add = |connection: &mut Connection, key: &str, count: u64, dead: bool| {
        for chunk in 0..count / 10_000 {
            let mut pipe = redis::pipe();
            for n in 0..10_000 {
                let n = (chunk * 10_000 + n).to_string();
                pipe.cmd("XADD")
                    .arg(key)
                    .arg("*")
                    .arg(&["type", "load.made", "n", &n, "data"])
                    .arg(&data);
                if dead {
                    pipe.arg(&[
                        "deadreason",
                        "internal",
                        "deadmessage",
                        "no such file",
                        "deadinstance",
                        "w-1",
                    ]);
                }
                pipe.ignore();
            }
            pipe.query::<()>(connection).expect("filled");
        }
    };
    add(connection, EVENTS, PENDING, false);
    add(connection, DEAD, BURIED, true);
    redis::cmd("XGROUP")
        .arg(&["CREATE", EVENTS, "workers", "0"])
        .exec(connection)
        .expect("a group");
    for reader in 0..PENDING / 10_000 {
        let reader = format!("w-{}", reader % 4);
        redis::cmd("XREADGROUP")
            .arg(&[
                "GROUP", "workers", &reader, "COUNT", "10000", "STREAMS", EVENTS, ">",
            ])
            .exec(connection)
            .expect("delivered");
    }
}

/// Waits for its end; the most memory that it had, in KiB.
fn peak(child: &mut Child) -> u64 {
    let path = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().expect("a status").is_none() {
        let status = std::fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        peak = peak.max(kib.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    }
    peak
}

/// An entry of the slow log: id, time, µs, words, client, its name.
type Logged = (u64, u64, u64, Vec<Vec<u8>>, String, String);

/// The longest command in the server's log, in µs, and which.
fn slowest(connection: &mut Connection) -> (u64, String) {
    let log: Vec<Logged> = redis::cmd("SLOWLOG")
        .arg(&["GET", "1000"])
        .query(connection)
        .expect("the log");
    let slowest = log
        .into_iter()
        .filter(|entry| entry.3[0] != b"SLOWLOG")
        .max_by_key(|entry| entry.2);
    slowest.map_or((0, "none".into()), |entry| {
        let words = entry
            .3
            .iter()
            .take(3)
            .map(|word| String::from_utf8_lossy(word));
        let words: Vec<_> = words.collect();
        (entry.2, words.join(" "))
    })
}

#[test]
#[ignore = "takes minutes and a gigabyte; its figures are for people"]
fn looking_at_a_million_entries_is_bounded() {
    let redis = Redis::start();
    let mut connection = redis.connect();
    fill(&mut connection);
    let limit = LOGGED_US.to_string();
    redis::cmd("CONFIG")
        .arg(&[
            "SET",
            "slowlog-log-slower-than",
            &limit,
            "slowlog-max-len",
            "1000",
        ])
        .exec(&mut connection)
        .expect("logged");
    for args in [
        &["streams"][..],
        &["doctor"],
        &["dead", "list"],
        &["dead", "list", "--entries"],
        &["replay", "dead", "--dry-run"],
        &["replay", "dead", "--yes"],
        &["pending"],
    ] {
        redis::cmd("SLOWLOG")
            .arg("RESET")
            .exec(&mut connection)
            .expect("emptied");
        let began = Instant::now();
        let mut child = convoke(&redis).args(args).spawn().expect("it starts");
        let kib = peak(&mut child);
        let took = began.elapsed();
        let (us, which) = slowest(&mut connection);
        println!(
            "{:40} {:7.1} MiB  {:6.1} s  slowest {us} us: {which}",
            args.join(" "),
            kib as f64 / 1024.0,
            took.as_secs_f64()
        );
        assert!(kib < 100 << 10, "{args:?}: {kib} KiB");
    }
}
