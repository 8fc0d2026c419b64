//! `convoke delayed`.

use super::rig::{entries, lines, names, text};
use super::run;
use crate::support::{Redis, name};
use serde_json::json;

/// Two for later, one of them in 2030, and a retry.
fn waiting() -> Redis {
    let redis = Redis::start();
    let publish = |words: &[&str]| {
        let mut all = vec!["publish"];
        all.extend(words);
        run(&redis, &all).done();
    };
    publish(&["report.make", "--id=order-1", "--delay=1h", "--data=1"]);
    let far = "--at=2030-01-31T06:00:00Z";
    publish(&[
        "report.make",
        "--id=order-2",
        far,
        "--data={\"tenant\":\"a\"}",
    ]);
    let fields = [
        "type",
        "image.make",
        "id",
        "e-1",
        "attempt",
        "3",
        "lasterror",
        "disk full",
    ];
    let member = convoke::streams::delay::encode_member("7-1", &fields);
    redis::cmd("ZADD")
        .arg("cb:delayed:image")
        .arg(4_102_444_800_000_u64)
        .arg(&member[..])
        .exec(&mut redis.connect())
        .unwrap();
    redis
}

#[test]
fn what_waits_is_counted_by_stream_and_type() {
    let redis = waiting();
    let sums = lines(
        &run(&redis, &["delayed", "list", "--format=json"])
            .done()
            .out,
    );
    assert_eq!(
        names(&sums[0]),
        [
            "stream",
            "type",
            "count",
            "retries",
            "next_due_at",
            "last_due_at"
        ]
    );
    let of = |n: usize| (&sums[n]["stream"], &sums[n]["count"], &sums[n]["retries"]);
    let stream = |domain: &str| {
        let key = name(domain, &format!("cb:events:{domain}"));
        json!(key.strip_prefix("cb:").unwrap_or(&key))
    };
    assert_eq!(of(0), (&stream("image"), &json!(1), &json!(1)));
    assert_eq!(of(1), (&stream("report"), &json!(2), &json!(0)));
    assert_eq!(sums[1]["last_due_at"], 1_896_069_600_000_u64);
    let told = run(&redis, &["delayed", "list"]).done();
    assert!(told.err.contains("3 events wait"), "{}", told.err);
    let none = run(&redis, &["delayed", "list", "mail"]).done();
    assert!(none.out.is_empty() && none.err.contains("0 events wait"));
}

#[test]
fn what_waits_is_listed_and_chosen() {
    let redis = waiting();
    let listed = |words: &[&str]| -> Vec<String> {
        let mut all = vec!["delayed", "list", "--entries", "--format=json"];
        all.extend(words);
        let lines = lines(&run(&redis, &all).done().out);
        let ids = lines
            .iter()
            .map(|line| line["id"].as_str().unwrap().to_owned());
        ids.collect()
    };
    assert_eq!(listed(&[]), ["e-1", "order-1", "order-2"]);
    assert_eq!(listed(&["report"]), ["order-1", "order-2"]);
    assert_eq!(listed(&["--retries"]), ["e-1"]);
    assert_eq!(listed(&["--type=report.*", "--due-before=2h"]), ["order-1"]);
    assert_eq!(listed(&["report", "--due-after=2h"]), ["order-2"]);
    assert_eq!(listed(&["--where=tenant=a"]), ["order-2"]);
    assert_eq!(listed(&["--id=7-1,order-1"]), ["e-1", "order-1"]);
    assert_eq!(listed(&["--limit=1"]), ["e-1"]);
}

#[test]
fn one_that_waits_is_shown_whole() {
    let redis = waiting();
    let shown = run(&redis, &["delayed", "show", "e-1"]).done().out;
    let queue = name("image", "cb:delayed:image");
    for part in [&queue, "2100-01-01", "disk full", "attempt  3"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let shown = run(&redis, &["delayed", "show", "order-2", "--format=json"]).done();
    let shown = &lines(&shown.out)[0];
    assert_eq!(shown["data"], json!({"tenant": "a"}));
    assert_eq!(shown["due_at"], 1_896_069_600_000_u64);
    assert_eq!(shown["stream"], name("report", "cb:events:report"));
    run(&redis, &["delayed", "show", "order-9"]).failed(1, &["order-9: no event of that id waits"]);
}

#[test]
fn what_waits_is_run_changed_and_dropped() {
    let redis = waiting();
    run(&redis, &["delayed", "run-now", "--id=order-1"]).failed(2, &["--yes"]);
    run(&redis, &["delayed", "drop"]).failed(2, &["--all"]);
    let dry = ["delayed", "drop", "--all", "--dry-run"];
    assert!(
        run(&redis, &dry)
            .done()
            .err
            .contains("3 events would be dropped")
    );
    let ran = run(&redis, &["delayed", "run-now", "--id=order-1", "--yes"]).done();
    assert_eq!(ran.out, "published 1 event\n");
    let published = entries(&redis, "cb:events:report");
    assert_eq!(published.len(), 1);
    assert_eq!(text(&published[0], "id"), "order-1");
    run(&redis, &["delayed", "edit", "--id=order-2", "--yes"]).failed(2, &["--due, --data"]);
    let edit = [
        "delayed",
        "edit",
        "--id=order-2",
        "--due=2031-01-01",
        "--data=[5]",
        "--yes",
    ];
    assert_eq!(run(&redis, &edit).done().out, "changed 1 event\n");
    let shown = run(&redis, &["delayed", "show", "order-2", "--format=json"]).done();
    let shown = &lines(&shown.out)[0];
    assert_eq!(
        (&shown["data"], &shown["due_at"]),
        (&json!([5]), &json!(1_924_992_000_000_u64))
    );
    let again = run(&redis, &edit).done();
    assert!(
        again.err.contains("0 events would be changed"),
        "{}",
        again.err
    );
    let drop = [
        "delayed",
        "drop",
        "--due-after=30d",
        "--yes",
        "--format=json",
    ];
    assert_eq!(lines(&run(&redis, &drop).done().out)[0]["dropped"], 2);
    let left = run(&redis, &["delayed", "list"]).done();
    assert!(left.err.contains("0 events wait"), "{}", left.err);
}

#[test]
fn streams_count_what_waits_even_where_no_stream_is_yet() {
    let redis = waiting();
    let streams = lines(&run(&redis, &["streams", "--format=json"]).done().out);
    let report = streams
        .iter()
        .find(|one| one["stream"] == name("report", "cb:events:report"));
    let report = report.expect("a stream of which all waits");
    assert_eq!(
        (&report["length"], &report["delayed"]["count"]),
        (&json!(0), &json!(2))
    );
    assert!(report["delayed"]["next_due_at"].is_u64());
    let told = run(&redis, &["streams"]).done().out;
    assert!(told.contains("delayed, next in 59m"), "{told}");
}
