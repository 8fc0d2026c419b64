//! Replays that are killed at random: every event is in one place at every moment.

#![allow(clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod measure;

use convoke::protocol::event::EntryId;
use convoke::streams::read::entries_of;
use redis::Connection;
use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::time::Duration;
use support::{Redis, torture, users};

const EVENTS: &str = "cb:events:load";
const DEAD: &str = "cb:dead:load";

fn convoke(redis: &Redis) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CONVOKE_") {
            command.env_remove(name);
        }
    }
    command.env("CONVOKE_REDIS_URL", redis.url_for(users::OPERATOR));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// How often each event number is on the stream.
fn numbers(connection: &mut Connection, key: &str) -> HashMap<u64, u32> {
    let mut counts = HashMap::new();
    let mut from = EntryId::default();
    loop {
        let page = redis::cmd("XRANGE")
            .arg(key)
            .arg(from.to_string())
            .arg(&["+", "COUNT", "1000"])
            .query(connection)
            .expect("a page");
        let page = entries_of(page).expect("entries");
        let Some(last) = page.last() else {
            return counts;
        };
        from = last.id.next();
        for entry in &page {
            let n = std::str::from_utf8(entry.get("n").expect("a number")).expect("text");
            *counts.entry(n.parse().expect("a number")).or_default() += 1;
        }
    }
}

fn length(connection: &mut Connection, key: &str) -> u64 {
    redis::cmd("XLEN")
        .arg(key)
        .query(connection)
        .expect("a length")
}

/// Runs the replay, killing it at random moments: mostly after it began to move entries, sometimes
/// before; then to its end.
fn killed_at_random(redis: &Redis, kills: u64, args: &[&str], mut check: impl FnMut(bool)) -> u64 {
    fastrand::seed(torture::seed());
    let mut connection = redis.connect();
    let mut killed = 0;
    for round in 0..kills {
        let before = length(&mut connection, EVENTS);
        let mut child = convoke(redis).args(args).spawn().expect("it starts");
        if round % 4 != 0 {
            support::eventually("it moves entries", || {
                let ended = child.try_wait().expect("a status").is_some();
                ended || length(&mut connection, EVENTS) > before
            });
        }
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..100)));
        if child.try_wait().expect("a status").is_none() {
            // SIGKILL, by its process id.
            child.kill().expect("killed");
            killed += 1;
        }
        child.wait().expect("ended");
        check(false);
    }
    let args: Vec<&str> = args
        .iter()
        .filter(|arg| !arg.starts_with("--rate"))
        .copied()
        .collect();
    assert!(
        convoke(redis)
            .args(args)
            .status()
            .expect("it runs")
            .success()
    );
    check(true);
    killed
}

/// How many entries the facts on the broadcast count.
fn told(connection: &mut Connection) -> u64 {
    let facts = redis::cmd("XRANGE")
        .arg(&["cb:broadcast", "-", "+"])
        .query(connection)
        .expect("facts");
    let facts = entries_of(facts).expect("entries");
    let counts = facts.iter().map(|fact| {
        let data =
            convoke::protocol::json::to_json(fact.get("data").expect("data")).expect("MessagePack");
        data["count"].as_u64().expect("a count")
    });
    counts.sum()
}

#[test]
fn dead_letters_are_back_once_or_still_dead() {
    let kills = torture::size("TORTURE_REPLAY_KILLS", 20, 40);
    let count = torture::size("TORTURE_LETTERS", 10_000, 10_000);
    let redis = Redis::start();
    let mut connection = redis.connect();
    for chunk in 0..count / 1000 {
        let mut pipe = redis::pipe();
        for n in chunk * 1000..(chunk + 1) * 1000 {
            pipe.cmd("XADD")
                .arg(DEAD)
                .arg("*")
                .arg(&["type", "load.made", "n", &n.to_string()]);
            pipe.arg(&["deadreason", "internal", "deadattempts", "5"])
                .ignore();
        }
        pipe.query::<()>(&mut connection).expect("buried");
    }
    let (mut seen, mut moved_between) = (0, 0u64);
    // Slow enough that something is left for the last kills, though some come a second late.
    let args = ["replay", "dead", "load", "--yes", "--rate=1000"];
    let killed = killed_at_random(&redis, kills, &args, |last| {
        let mut all = numbers(&mut connection, EVENTS);
        let back = all.len() as u64;
        for (n, times) in numbers(&mut connection, DEAD) {
            *all.entry(n).or_default() += times;
        }
        assert_eq!(all.len() as u64, count, "lost");
        assert!(all.values().all(|times| *times == 1), "doubled");
        moved_between += u64::from(back > seen && back < count);
        seen = back;
        assert!(!last || back == count);
    });
    assert_eq!(
        (
            length(&mut connection, DEAD),
            length(&mut connection, EVENTS)
        ),
        (0, count)
    );
    assert_eq!(told(&mut connection), count, "each step is told once");
    assert!(
        moved_between >= kills / 2,
        "the kills must hit it at work: {moved_between}"
    );
    torture::Report::default()
        .fault(killed, "kills of the replayer")
        .fault(moved_between, "of them while it moved letters")
        .event(count, "dead letters replayed once")
        .tell("replay");
}

/// This many entries on the stream, delivered to an instance that is gone.
fn delivered(connection: &mut Connection, count: u64) {
    let mut pipe = redis::pipe();
    for n in 0..count {
        pipe.cmd("XADD")
            .arg(EVENTS)
            .arg("*")
            .arg(&["type", "load.made", "n", &n.to_string()])
            .ignore();
    }
    pipe.query::<()>(connection).expect("published");
    for words in [
        vec!["XGROUP", "CREATE", EVENTS, "workers", "0"],
        vec![
            "XREADGROUP",
            "GROUP",
            "workers",
            "gone",
            "STREAMS",
            EVENTS,
            ">",
        ],
        vec!["HSET", "cb:instance:gone", "status", "lost"],
    ] {
        redis::cmd(words[0])
            .arg(&words[1..])
            .exec(connection)
            .expect("delivered");
    }
}

#[test]
fn pending_entries_have_one_copy_or_are_still_pending() {
    const COUNT: u64 = 3000;
    let redis = Redis::start();
    let mut connection = redis.connect();
    delivered(&mut connection, COUNT);
    let args = ["replay", "pending", "load", "--yes", "--rate=1500"];
    let kills = torture::size("TORTURE_REPLAY_KILLS", 20, 40) / 2;
    killed_at_random(&redis, kills, &args, |last| {
        let (pending,): (u64,) = redis::pipe()
            .cmd("EVAL")
            .arg("return redis.call('XPENDING', KEYS[1], 'workers')[1]")
            .arg(1)
            .arg(EVENTS)
            .query(&mut connection)
            .expect("a count");
        let copies = numbers(&mut connection, EVENTS);
        assert_eq!(copies.len() as u64, COUNT);
        // The original stays as history; one more for each that is not pending any more.
        let copied = copies.values().filter(|count| **count == 2).count() as u64;
        assert!(
            copies.values().all(|count| matches!(count, 1 | 2)),
            "doubled"
        );
        assert_eq!(copied + pending, COUNT);
        assert!(!last || pending == 0);
    });
    assert_eq!(told(&mut connection), COUNT);
}

#[test]
fn a_range_has_one_copy_of_each() {
    const COUNT: u64 = 3000;
    let redis = Redis::start();
    let mut connection = redis.connect();
    delivered(&mut connection, COUNT);
    let ids = redis::cmd("XRANGE")
        .arg(&[EVENTS, "-", "+"])
        .query(&mut connection)
        .expect("all");
    let ids: Vec<String> = entries_of(ids)
        .expect("entries")
        .iter()
        .map(|e| e.id.to_string())
        .collect();
    redis::cmd("XACK")
        .arg(EVENTS)
        .arg("workers")
        .arg(&ids)
        .exec(&mut connection)
        .expect("finished");
    let until = format!("--until={}", ids[ids.len() - 1]);
    let args = ["replay", "range", "load", &until, "--yes", "--rate=1500"];
    let kills = torture::size("TORTURE_REPLAY_KILLS", 20, 40) / 2;
    killed_at_random(&redis, kills, &args, |last| {
        let copies = numbers(&mut connection, EVENTS);
        assert!(
            copies.values().all(|count| matches!(count, 1 | 2)),
            "doubled"
        );
        let copied = copies.values().filter(|count| **count == 2).count() as u64;
        assert!(!last || copied == COUNT);
    });
    assert_eq!(told(&mut connection), COUNT);
}
