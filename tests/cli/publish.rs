//! `convoke publish`.

use super::{File, convoke, end, run, run_with_input};
use crate::support::{self, Redis, name};
use std::io::Write;
use std::process::Stdio;

fn entries(redis: &Redis, key: &str) -> Vec<convoke::protocol::event::Entry> {
    let mut connection = redis.connect();
    let mut range = redis::cmd("XRANGE");
    let reply = range.arg(key).arg("-").arg("+").query(&mut connection);
    convoke::streams::read::entries_of(reply.unwrap()).unwrap()
}

fn text<'a>(entry: &'a convoke::protocol::event::Entry, name: &str) -> &'a str {
    std::str::from_utf8(entry.get(name).unwrap_or(b"absent")).unwrap()
}

#[test]
fn an_event_is_stored_with_what_was_given_and_its_entry_id_printed() {
    let redis = Redis::start();
    let reply_to = name("image", "cb:reply:me");
    let args = [
        "publish",
        "image.resize",
        "--data",
        r#"{"width": 80}"#,
        "--id",
        "e-1",
        "--subject",
        "user-7",
        "--source",
        "shop",
        "--reply-to",
        &reply_to,
        "--deadline",
        "1h",
    ];
    let ended = run(&redis, &args).done();
    let stored = entries(&redis, "cb:events:image");
    assert_eq!(stored.len(), 1);
    assert_eq!(ended.out.trim(), stored[0].id.to_string());
    let fields = [
        ("type", "image.resize"),
        ("id", "e-1"),
        ("subject", "user-7"),
        ("source", "shop"),
        ("replyto", "cb:reply:me"),
    ];
    for (name, value) in fields {
        assert_eq!(text(&stored[0], name), value);
    }
    assert_eq!(stored[0].get("data").unwrap(), b"\x81\xa5width\x50");
    let lasts: u64 = text(&stored[0], "deadline").parse::<u64>().unwrap() - stored[0].id.ms;
    assert!((3_540_000..=3_660_000).contains(&lasts), "{lasts}");
}

#[test]
fn a_payload_comes_from_an_argument_a_file_or_standard_input() {
    let redis = Redis::start();
    let file = File::new("payload.json", "[1]\n");
    run(
        &redis,
        &["publish", "a.b", "--data", &format!("@{}", file.path())],
    )
    .done();
    run_with_input(&redis, &["publish", "a.b", "--data", "-"], b"\n[2]\n").done();
    run(&redis, &["publish", "a.b"]).done();
    let stored = entries(&redis, "cb:events:a");
    let data: Vec<_> = stored.iter().map(|entry| entry.get("data")).collect();
    assert_eq!(data, [Some(&b"\x91\x01"[..]), Some(b"\x91\x02"), None]);
}

#[test]
fn what_is_no_json_is_refused_with_its_place() {
    let redis = Redis::start();
    let bad = File::new("bad.json", "{\n \"a\": }\n");
    let cases = ["", "{", "[1,]", "1 2", "{'a': 1}", "NaN"];
    for data in cases {
        let ended = run(&redis, &["publish", "a.b", "--data", data]);
        ended.failed(2, &["--data", "not JSON", "line 1 column"]);
    }
    run(
        &redis,
        &["publish", "a.b", "--data", &format!("@{}", bad.path())],
    )
    .failed(2, &[bad.path(), "line 2 column 7"]);
    run(&redis, &["publish", "a.b", "--data", "@/nowhere"]).failed(2, &["/nowhere"]);
    run_with_input(&redis, &["publish", "a.b", "--data", "-"], b"\xff")
        .failed(2, &["standard input", "not JSON"]);
    assert!(entries(&redis, "cb:events:a").is_empty());
}

#[test]
fn a_rejected_event_and_one_in_doubt_are_told_apart() {
    let redis = Redis::start();
    let long = "x".repeat(300);
    run(&redis, &["publish", "a.b", "--id", &long]).failed(1, &["not stored", "id"]);
    run(&redis, &["publish", "a.b", "--reply-to", "elsewhere"])
        .failed(1, &["not stored", "replyto"]);
    let big = format!("\"{}\"", "x".repeat(100));
    let ended = run(
        &redis,
        &["publish", "a.b", "--max-payload", "64", "--data", &big],
    );
    ended.failed(1, &["not stored", "data"]);
    let args = [
        "publish",
        "a.b",
        "--confirm",
        "1",
        "--confirm-within",
        "10ms",
    ];
    run(&redis, &args).failed(1, &["may be stored", "0 of 1 replicas"]);
    let mut json = args.to_vec();
    json.extend(["--format", "json"]);
    run(&redis, &json).failed(1, &["{\"error\":\"unknown\""]);
}

#[test]
fn a_repeated_publish_with_dedup_is_stored_once() {
    let redis = Redis::start();
    let args = [
        "publish", "a.b", "--id", "once", "--dedup", "--format", "json",
    ];
    let first = run(&redis, &args).done().json();
    let again = run(&redis, &args).done().json();
    assert_eq!(first["duplicate"], false);
    assert_eq!(again["duplicate"], true);
    assert_eq!(first["entry"], again["entry"]);
    assert_eq!(entries(&redis, "cb:events:a").len(), 1);
}

#[test]
fn a_delayed_event_waits_in_the_delay_queue() {
    let redis = Redis::start();
    let at = "2100-01-01T00:00:00Z";
    let ended = run(&redis, &["publish", "a.b", "--at", at]).done();
    assert_eq!(ended.out, "scheduled for 2100-01-01T00:00:00.000Z\n");
    let json = [
        "publish",
        "a.b",
        "--at",
        "4102444800000",
        "--format",
        "json",
    ];
    assert_eq!(
        run(&redis, &json).done().json()["due_ms"],
        4_102_444_800_000_u64
    );
    run(&redis, &["publish", "a.b", "--delay", "1h"]).done();
    let mut connection = redis.connect();
    let waiting: u64 = redis::cmd("ZCARD")
        .arg("cb:delayed:a")
        .query(&mut connection)
        .unwrap();
    assert_eq!(waiting, 3);
    assert!(entries(&redis, "cb:events:a").is_empty());
    run(&redis, &["publish", "a.b", "--at", at, "--delay", "1h"]).failed(2, &["--delay"]);
    run(&redis, &["publish", "a.b", "--at", "tomorrow"]).failed(2, &["tomorrow"]);
    run(&redis, &["publish", "a.b", "--delay", "1x"]).failed(2, &["1x"]);
}

#[test]
fn lines_are_published_in_order_and_a_bad_one_is_named() {
    let redis = Redis::start();
    let input = b"1\n\n{oops\n4\n\"\xff\"\n6";
    let ended = run_with_input(&redis, &["publish", "a.b", "--data", "-", "--lines"], input);
    let ended = ended.failed(1, &["line 3: not JSON", "line 5: not JSON"]);
    let stored = entries(&redis, "cb:events:a");
    let data: Vec<_> = stored
        .iter()
        .filter_map(|entry| entry.get("data"))
        .collect();
    assert_eq!(data, [[1], [4], [6]]);
    let ids: Vec<_> = stored.iter().map(|entry| entry.id.to_string()).collect();
    assert_eq!(ended.out.lines().collect::<Vec<_>>(), ids);
    run(&redis, &["publish", "a.b", "--lines"]).failed(2, &["--data -"]);
}

#[test]
fn many_lines_are_all_published_in_order() {
    let redis = Redis::start();
    let input: String = (0..2000).map(|n| format!("{n}\n")).collect();
    let args = ["publish", "a.b", "--data=-", "--lines", "--format=json"];
    let ended = run_with_input(&redis, &args, input.as_bytes()).done();
    let stored = entries(&redis, "cb:events:a");
    let numbers: Vec<u32> = stored
        .iter()
        .map(|entry| rmp_serde::from_slice(entry.get("data").unwrap()).unwrap())
        .collect();
    assert_eq!(numbers, (0..2000).collect::<Vec<_>>());
    let last: serde_json::Value = serde_json::from_str(ended.out.lines().last().unwrap()).unwrap();
    assert_eq!(last["line"], 2000);
    assert_eq!(last["entry"], stored[1999].id.to_string());
}

#[test]
fn a_line_is_published_when_it_comes_not_when_the_input_ends() {
    let redis = Redis::start();
    let mut child = convoke(&redis, &["publish", "a.b", "--data", "-", "--lines"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"1\n").unwrap();
    support::eventually("the first line is stored", || {
        entries(&redis, "cb:events:a").len() == 1
    });
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn lines_are_published_even_if_nobody_reads_the_ids() {
    let redis = Redis::start();
    let input: String = (0..3000).map(|n| format!("{n}\n")).collect();
    let mut child = convoke(&redis, &["publish", "a.b", "--data", "-", "--lines"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
    assert_eq!(entries(&redis, "cb:events:a").len(), 3000);
}

#[test]
fn a_closed_output_ends_quietly() {
    let redis = Redis::start();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended = end_with_stdout(&redis, writer);
    assert_eq!((ended.code, &*ended.err), (0, ""));
}

fn end_with_stdout(redis: &Redis, stdout: std::io::PipeWriter) -> super::Ended {
    let mut command = convoke(redis, &["publish", "a.b"]);
    let child = command
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(command);
    let output = child.wait_with_output().unwrap();
    super::Ended {
        code: output.status.code().unwrap(),
        out: String::new(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn a_server_that_is_full_rejects() {
    let redis = Redis::with(&[
        "--save",
        "",
        "--maxmemory",
        "1",
        "--maxmemory-policy",
        "noeviction",
    ]);
    end(&mut convoke(&redis, &["publish", "a.b"])).failed(1, &["not stored", "OOM"]);
}
