//! `convoke batch`.

use super::worker::Worker;
use super::{Ended, File, convoke, run};
use crate::support::{Redis, eventually};
use serde_json::{Value, json};

fn with_worker(redis: &Redis) -> Worker {
    let mut command = convoke(redis, &["worker", "--id=w-1", "--exec=demo.echo=cat"]);
    command.args([
        "--exec",
        "demo.odd=read n; [ $((n % 2)) = 1 ] || { echo even >&2; exit 3; }; echo $n",
    ]);
    Worker::start(redis, "w-1", &mut command)
}

fn lines(ended: &Ended) -> Vec<Value> {
    let lines = ended.out.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_batch_that_hangs_is_cancelled_with_a_reason() {
    let redis = Redis::start();
    let mut command = convoke(
        &redis,
        &["worker", "--id=w-1", "--exec=demo.hang=sleep 600"],
    );
    let worker = Worker::start(&redis, "w-1", &mut command);
    run(&redis, &["batch", "cancel", "b-1"]).failed(1, &["no batch is named b-1"]);
    let batch = json!({"batch_id": "b-1", "item_type": "demo.hang", "items": [1, 2]}).to_string();
    run(
        &redis,
        &["publish", "system.batch.process", "--data", &batch],
    )
    .done();
    eventually("it runs", || {
        run(&redis, &["batch", "list"])
            .done()
            .out
            .contains("running")
    });
    let cancelled = run(&redis, &["batch", "cancel", "b-1", "--reason", "it hangs"]).done();
    assert_eq!(
        cancelled.out,
        "b-1: cancelled: 0 processed, 0 failed of 2\n"
    );
    let shown = run(&redis, &["batch", "show", "b-1"]).failed(1, &[]);
    assert!(shown.out.starts_with("b-1: cancelled by "), "{}", shown.out);
    assert!(shown.out.ends_with("; it hangs\n"), "{}", shown.out);
    worker.stop();
}

#[test]
fn a_batch_is_run_waited_for_shown_and_listed() {
    let redis = Redis::start();
    let worker = with_worker(&redis);
    let items = File::new("items.json", "[1, 2, \"three\"]");
    let from_file = format!("@{}", items.path());
    for mode in ["exclusive", "fan-out"] {
        let args = ["batch", "run", "demo.echo", "--id", mode, "--mode", mode];
        let ended = run(&redis, &[&args[..], &["--items", &from_file]].concat()).done();
        let said = format!("{mode}: completed by w-1: 3 processed, 0 failed of 3\n");
        assert_eq!(
            (ended.out.as_str(), ended.err.as_str()),
            (said.as_str(), "")
        );
        assert_eq!(run(&redis, &["batch", "show", mode]).done().out, said);
    }
    let shown = run(&redis, &["batch", "show", "fan-out", "--format", "json"]);
    let shown = shown.done().json();
    assert_eq!(shown["mode"], "fan_out");
    assert_eq!(shown["item_type"], "demo.echo");
    assert_eq!(
        (&shown["items_processed"], &shown["total"]),
        (&json!(3), &json!(3))
    );
    assert_eq!(shown["failures"], json!([]));
    let listed = run(&redis, &["batch", "list", "--format", "json"]).done();
    let ids: Vec<Value> = lines(&listed)
        .iter()
        .map(|line| line["id"].clone())
        .collect();
    assert_eq!(ids, ["fan-out", "exclusive"]);
    let table = run(&redis, &["batch", "list", "--limit", "1"]).done().out;
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 2);
    assert!(
        rows[0].starts_with("ID ") && rows[1].starts_with("fan-out "),
        "{table}"
    );
    assert_eq!(worker.stop().code, 0);
}

#[test]
fn failed_items_are_printed_and_make_the_exit_code_1() {
    let redis = Redis::start();
    let worker = with_worker(&redis);
    let args = [
        "batch",
        "run",
        "demo.odd",
        "--id=b-1",
        "--items=[1, 2, 3, 4]",
    ];
    let ended = run(&redis, &args).failed(1, &["item 1: ", "item 3: ", "even"]);
    assert_eq!(
        ended.out,
        "b-1: completed by w-1: 2 processed, 2 failed of 4\n"
    );
    let again = run(&redis, &[&args[..], &["--format=json"]].concat()).failed(1, &[]);
    assert_eq!(again.json()["failures"].as_array().unwrap().len(), 2);
    run(
        &redis,
        &["batch", "run", "demo.odd", "--id=b-1", "--items=[1]"],
    )
    .failed(1, &["already_exists: batch_id: b-1 "]);
    run(&redis, &["batch", "run", "demo.nobodys", "--items=[1]"])
        .failed(1, &["unimplemented: ", "demo.nobodys"]);
    assert_eq!(worker.stop().code, 0);
}

#[test]
fn what_is_no_batch_is_wrong_usage_or_not_there() {
    let redis = Redis::start();
    run(&redis, &["batch", "run", "demo.echo", "--items", "7"]).failed(2, &["not a JSON array"]);
    run(&redis, &["batch", "run", "demo.echo", "--items", "["]).failed(2, &["not JSON"]);
    run(&redis, &["batch", "run", "demo", "--items", "[]"]).failed(2, &["demo"]);
    run(&redis, &["batch", "show", "b-1"]).failed(1, &["no batch b-1"]);
    run(&redis, &["batch", "show", "a b"]).failed(2, &["a b", "is not 1 to 128"]);
    let empty = run(&redis, &["batch", "list"]).done();
    assert_eq!(
        (empty.out.as_str(), empty.err.as_str()),
        ("", "no batches in namespace cb\n")
    );
}
