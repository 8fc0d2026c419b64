//! Entries that are larger than any event.

use super::rig::{entries, lines, say, send, text};
use super::worker::Worker;
use super::{Ended, convoke, end};
use crate::support::{self, Redis};
use std::process::Command;

/// Fields of an entry, and bytes of each.
const FIELDS: usize = 40;
const FIELD: usize = 4 << 20;
/// What a worker may ever have needed, KiB: far less than one of the entries.
const PEAK: u64 = 80 << 10;

/// Adds an entry whose other fields stand behind what is too large.
fn add_large(redis: &Redis, key: &str, id: &str) {
    let value = vec![b'x'; FIELD];
    let names: Vec<String> = (0..FIELDS).map(|n| format!("f{n}")).collect();
    let mut words: Vec<&[u8]> = vec![b"XADD", key.as_bytes(), id.as_bytes()];
    words.extend([&b"type"[..], b"text.echo", b"data", &value]);
    words.extend([&b"id"[..], id.as_bytes(), b"replyto", b"cb:reply:me"]);
    for name in &names {
        words.extend([name.as_bytes(), &value]);
    }
    send(redis, &words);
}

fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

#[test]
fn a_worker_gets_past_entries_that_are_larger_than_its_memory_may_grow() {
    let redis = Redis::start();
    // One is in the hands of a consumer that is gone; nobody read it.
    add_large(&redis, "cb:events:text", "1-1");
    say(&redis, "XGROUP CREATE cb:events:text workers 1-1");
    say(
        &redis,
        "XCLAIM cb:events:text workers gone 0 1-1 IDLE 100000 FORCE JUSTID",
    );
    add_large(&redis, "cb:events:text", "2-1");
    say(&redis, "XADD cb:events:text 3-1 type text.echo id small");
    let mut command = convoke(&redis, &["worker", "--id=w-1", "--exec=text.echo=cat"]);
    command.env("CONVOKE_CLAIM_IDLE", "2s");
    let worker = Worker::start(&redis, "w-1", &mut command);
    support::eventually("both are answered", || {
        entries(&redis, "cb:reply:me").len() == 2
    });
    support::eventually("the small one ran", || {
        entries(&redis, "cb:results:text").len() == 1
    });
    let mut answered = Vec::new();
    for reply in entries(&redis, "cb:reply:me") {
        assert_eq!(text(&reply, "status"), "invalid_argument");
        let said = String::from_utf8_lossy(reply.get("data").unwrap()).into_owned();
        assert!(said.contains("over the limit of 1114112"), "{said}");
        answered.push(text(&reply, "correlationid"));
    }
    answered.sort();
    assert_eq!(answered, ["1-1", "2-1"]);
    // Without one who asked it is a dead letter, cut.
    let value = vec![b'x'; FIELD];
    let words: [&[u8]; 7] = [
        b"XADD",
        b"cb:events:text",
        b"4-1",
        b"type",
        b"text.echo",
        b"data",
        &value,
    ];
    send(&redis, &words);
    support::eventually("the dead letter", || {
        entries(&redis, "cb:dead:text").len() == 1
    });
    let letter = &entries(&redis, "cb:dead:text")[0];
    assert_eq!(text(letter, "deadreason"), "invalid_argument");
    assert_eq!(text(letter, "type"), "text.echo");
    assert_eq!(letter.get("data").unwrap().len(), 257);
    assert_eq!(text(letter, "deadentry"), "4-1");
    support::eventually("what is too large is gone", || {
        entries(&redis, "cb:events:text").len() == 1
    });
    let peak = peak(worker.pid());
    assert!(peak < PEAK, "{peak} KiB");
    let pending = format!("{:?}", say(&redis, "XPENDING cb:events:text workers"));
    assert!(pending.contains("int(0)"), "{pending}");
    worker.stop();
}

/// Runs an operator's command that may have no more memory than a worker may ever need.
fn within_bounds(redis: &Redis, args: &[&str]) -> Ended {
    let command = convoke(redis, args);
    let mut bounded = Command::new("sh");
    bounded.args(["-c", &format!("ulimit -d {PEAK} && exec \"$0\" \"$@\"")]);
    bounded.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bounded.env(name, value),
            None => bounded.env_remove(name),
        };
    }
    end(&mut bounded)
}

#[test]
fn operators_see_entries_that_are_larger_than_their_memory_may_grow() {
    let redis = Redis::start();
    for key in ["cb:events:text", "cb:dead:text"] {
        add_large(&redis, key, "1-1");
        say(&redis, &format!("XADD {key} 2-1 type text.echo id small"));
    }
    say(&redis, "XGROUP CREATE cb:events:text workers 2-1");
    for id in ["1-1", "2-1"] {
        say(
            &redis,
            &format!("XCLAIM cb:events:text workers gone 0 {id} IDLE 100000 FORCE JUSTID"),
        );
    }
    let bytes = (FIELDS + 1) * FIELD;
    let sums = within_bounds(&redis, &["dead", "list"]).done();
    assert!(sums.err.contains("2 dead letters"), "{sums:?}");
    let shows: [&[&str]; 6] = [
        &["pending"],
        &["dead", "list", "--entries"],
        &["dead", "show", "1-1"],
        &["dead", "drop", "--all", "--dry-run"],
        &["tail", "events:text", "--since", "0", "--no-follow"],
        &["tail", "dead:text", "--since", "0", "--no-follow"],
    ];
    for args in shows {
        let ended = within_bounds(&redis, args).done();
        assert!(
            ended.out.contains("too large to show: 164"),
            "{args:?}: {ended:?}"
        );
    }
    for args in [&shows[0], &shows[1], &shows[2], &shows[4]] {
        let args = [*args, &["--format", "json"]].concat();
        let ended = within_bounds(&redis, &args).done();
        let shown = lines(&ended.out);
        let large = shown.iter().find(|one| one["entry"] == "1-1").unwrap();
        let told = large["too_large"]["bytes"].as_u64().unwrap();
        assert!(told > bytes as u64, "{args:?}: {large}");
        assert_eq!(large["type"], "text.echo");
        let other = shown.iter().find(|one| one["entry"] == "2-1");
        assert!(other.is_none_or(|one| one.get("too_large").is_none()));
    }
    // Whoever replays is told why it is left alone; the small one goes.
    for source in ["pending", "dead", "range"] {
        let args = ["replay", source, "text", "--force", "--dry-run"];
        let ended = within_bounds(&redis, &args).done();
        let said = format!("{}{}", ended.out, ended.err);
        assert!(
            said.contains("too large: 164") && said.contains("no worker takes"),
            "{source}: {ended:?}"
        );
    }
    let done = within_bounds(&redis, &["replay", "pending", "--force", "--yes"]).done();
    assert_eq!(entries(&redis, "cb:events:text").len(), 3, "{done:?}");
    let pending = format!("{:?}", say(&redis, "XPENDING cb:events:text workers"));
    assert!(
        pending.contains("1-1") && pending.contains("int(1)"),
        "{pending}"
    );
    within_bounds(&redis, &["dead", "drop", "--id", "1-1", "--yes"]).done();
    assert_eq!(entries(&redis, "cb:dead:text").len(), 1);
}
