//! `convoke tail`.

use super::{convoke, run, run_with_input};
use crate::support::{self, Redis, name};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

fn add(redis: &Redis, key: &str, id: &str, fields: &[(&str, &[u8])]) {
    let mut command = redis::cmd("XADD");
    command.arg(key).arg(id);
    for (name, value) in fields {
        command.arg(*name).arg(*value);
    }
    let _: String = command.query(&mut redis.connect()).unwrap();
}

fn lines(out: &str) -> Vec<Value> {
    let lines = out.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn what_is_published_is_followed_decoded() {
    let redis = Redis::start();
    let id = run(
        &redis,
        &[
            "publish",
            "image.resize",
            "--data",
            r#"{"width":80}"#,
            "--id=e-1",
        ],
    );
    let id = id.done().out.trim().to_owned();
    let key = name("image", "cb:events:image");
    for stream in ["events:image", &key] {
        let args = ["tail", stream, "--since=0", "--limit=1", "--format=json"];
        let entry = run(&redis, &args).done().json();
        assert_eq!(entry["stream"], key);
        assert_eq!(entry["entry"], *id);
        assert_eq!(entry["type"], "image.resize");
        assert_eq!(entry["fields"]["id"], "e-1");
        assert_eq!(entry["data"], json!({ "width": 80 }));
    }
    let text = run(&redis, &["tail", "events:image", "--since=0", "--limit=1"])
        .done()
        .out;
    let says = format!("Z {key} {id} image.resize id=e-1 time=");
    assert!(text.contains(&says), "{text}");
    assert!(text.ends_with(" {\"width\":80}\n"), "{text}");
}

#[test]
fn by_default_it_follows_what_is_broadcast_from_now_on() {
    let redis = Redis::start();
    add(
        &redis,
        "cb:broadcast",
        "1-0",
        &[("type", b"instance.registered")],
    );
    let mut child = convoke(&redis, &["tail", "--limit", "1", "--format", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut connection = redis.connect();
    support::eventually("it waits for the next entry", || {
        let clients: String = redis::cmd("CLIENT")
            .arg("LIST")
            .query(&mut connection)
            .unwrap();
        clients.contains("cmd=xread")
    });
    add(&redis, "cb:broadcast", "*", &[("type", b"instance.lost")]);
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let entry: Value = serde_json::from_str(&out.next().unwrap().unwrap()).unwrap();
    assert_eq!(entry["type"], "instance.lost");
    assert!(child.wait().unwrap().success());
}

#[test]
fn types_ids_and_streams_choose_what_is_shown() {
    let redis = Redis::start();
    add(&redis, "cb:events:a", "1-0", &[("type", b"a.x")]);
    add(&redis, "cb:events:a", "3-0", &[("type", b"a.y")]);
    add(&redis, "cb:events:b", "2-0", &[("type", b"b.x")]);
    add(
        &redis,
        "cb:dead:b",
        "4-0",
        &[("type", b"b.x"), ("deadreason", b"poison")],
    );
    let tail = |args: &[&str]| {
        let all = [
            &["tail", "--format=json", "events:a", "events:b", "dead:b"],
            args,
        ]
        .concat();
        let shown = lines(&run(&redis, &all).done().out);
        let ids: Vec<String> = shown
            .iter()
            .map(|e| e["entry"].as_str().unwrap().to_owned())
            .collect();
        ids.join(" ")
    };
    assert_eq!(tail(&["--since=0", "--limit=4"]), "1-0 2-0 3-0 4-0");
    assert_eq!(tail(&["--since=2-0", "--limit=2"]), "3-0 4-0");
    assert_eq!(
        tail(&["--since=0", "--limit=3", "--type=*.x"]),
        "1-0 2-0 4-0"
    );
    run(&redis, &["tail", "--since", "yesterday"]).failed(2, &["yesterday"]);
    run(&redis, &["tail", "--limit", "0"]).failed(2, &["--limit"]);
}

#[test]
fn what_takes_several_reads_is_shown_once_each_and_in_order() {
    let redis = Redis::start();
    let input: String = (0..300).map(|n| format!("{n}\n")).collect();
    let lines_of = ["publish", "events.x", "--data=-", "--lines"];
    run_with_input(&redis, &lines_of, input.as_bytes()).done();
    let args = [
        "tail",
        "events:events",
        "--since=0",
        "--limit=300",
        "--format=json",
    ];
    let shown = lines(&run(&redis, &args).done().out);
    let numbers: Vec<u64> = shown
        .iter()
        .filter_map(|entry| entry["data"].as_u64())
        .collect();
    assert_eq!(numbers, (0..300).collect::<Vec<_>>());
}

#[test]
fn untrusted_bytes_neither_fail_it_nor_reach_the_terminal() {
    let redis = Redis::start();
    let evil = "\x1b]0;owned\x07\u{9b}2J\u{202e}".as_bytes();
    let name = std::str::from_utf8(evil).unwrap();
    add(
        &redis,
        "cb:events:a",
        "1-0",
        &[("type", evil), (name, evil), ("data", b"\xc1\x1b[2J")],
    );
    add(
        &redis,
        "cb:events:a",
        "2-0",
        &[("no", b"type"), ("raw", b"\xff\xfe\x9b")],
    );
    add(
        &redis,
        "cb:events:a",
        "3-0",
        &[("type", b"a.b"), ("data", b"\xa3\x1b[m")],
    );
    add(
        &redis,
        "cb:events:a",
        "4-0",
        &[("type", b"a.b"), ("data", &[0xdd; 5000])],
    );
    for format in ["text", "json"] {
        let args = [
            "tail",
            "events:a",
            "--since=0",
            "--limit=4",
            "--format",
            format,
        ];
        let out = run(&redis, &args).done().out;
        let bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!out.contains(bad), "{out:?}");
        assert_eq!(out.lines().count(), 4, "{out}");
        assert!(out.contains("c11b5b324a"), "{out}");
        assert!(out.contains("5000"), "{out}");
    }
    let args = [
        "tail",
        "events:a",
        "--since=0",
        "--limit=4",
        "--format=json",
    ];
    let shown = lines(&run(&redis, &args).done().out);
    assert_eq!(shown[0]["fields"][name], name);
    assert_eq!(shown[2]["data"], "\x1b[m");
    assert_eq!(shown[3]["undecodable"]["bytes"], 5000);
}

#[test]
fn a_key_that_is_no_stream_fails() {
    let redis = Redis::start();
    let _: () = redis::cmd("SET")
        .arg("cb:x")
        .arg(1)
        .query(&mut redis.connect())
        .unwrap();
    let key = name("system", "cb:x");
    run(&redis, &["tail", &key, "--since=0"]).failed(1, &["WRONGTYPE"]);
    run(&redis, &["tail", &key]).failed(1, &["WRONGTYPE"]);
}

#[test]
fn what_is_there_is_shown_by_time_and_payload_and_it_ends() {
    let redis = Redis::start();
    for (stream, n) in [("events.a", 1), ("events.b", 2), ("mail.a", 3)] {
        let data = format!("{{\"n\":{n}}}");
        run(&redis, &["publish", stream, "--data", &data]).done();
    }
    add(&redis, "cb:events:old", "1-0", &[("type", b"old.a")]);
    let tail = |args: &[&str]| {
        let all = [&["tail", "--format=json", "--no-follow"], args].concat();
        let shown = lines(&run(&redis, &all).done().out);
        let kinds = shown.iter().map(|e| e["type"].as_str().unwrap().to_owned());
        kinds.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        tail(&["events:*", "--since=1h"]),
        "events.a events.b mail.a"
    );
    assert_eq!(
        tail(&["events:*", "--since=0"]),
        "old.a events.a events.b mail.a"
    );
    assert_eq!(
        tail(&["events:*", "--since=1h", "--where", "n=2"]),
        "events.b"
    );
    assert_eq!(tail(&["events:*"]), "");
    run(&redis, &["tail", "results:*"]).failed(1, &["no stream is like that"]);
}

#[test]
fn streams_of_different_density_are_told_in_the_order_of_time() {
    let redis = Redis::start();
    for n in 1..=300 {
        add(
            &redis,
            "cb:events:many",
            &format!("{n}-1"),
            &[("type", b"many.x")],
        );
        if n % 30 == 0 {
            add(
                &redis,
                "cb:events:few",
                &format!("{n}-0"),
                &[("type", b"few.x")],
            );
        }
    }
    let args = [
        "tail",
        "events:many",
        "events:few",
        "--since=0",
        "--no-follow",
        "--format=json",
    ];
    let told = lines(&run(&redis, &args).done().out);
    let ids: Vec<(u64, u64)> = told
        .iter()
        .map(|entry| {
            let (ms, seq) = entry["entry"].as_str().unwrap().split_once('-').unwrap();
            (ms.parse().unwrap(), seq.parse().unwrap())
        })
        .collect();
    assert_eq!(ids.len(), 310);
    assert!(ids.is_sorted(), "{ids:?}");
}
