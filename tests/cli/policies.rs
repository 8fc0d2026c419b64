//! `pause`, `resume` and `policy`.

use super::worker::Worker;
use super::{File, convoke, run};
use crate::support::{Redis, eventually};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_paused_is_listed_until_it_is_resumed() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, "w-1", &mut convoke(&redis, &["worker", "--id=w-1"]));
    let paused = run(
        &redis,
        &["pause", "mail.send", "--for", "20m", "--reason", "repair"],
    );
    let paused = paused.done();
    assert_eq!(paused.out, "type:mail.send: paused for 20m, version 1\n");
    run(&redis, &["pause", "--subject", "mail:shop-7"]).done();
    let shown = run(&redis, &["policy", "show", "type:mail.send"]).done();
    for part in ["type:mail.send", "repair", "ends in 19m"] {
        assert!(shown.out.contains(part), "{}", shown.out);
    }
    let all = run(&redis, &["policy", "list", "--format", "json"]).done();
    assert_eq!(all.out.lines().count(), 2);
    assert!(all.out.contains("subject:mail:shop-7"), "{}", all.out);
    run(&redis, &["pause", "mail.send", "--version", "9"])
        .failed(1, &["aborted", "is at version 1"]);
    let resumed = run(&redis, &["resume", "mail.send", "--format", "json"]).done();
    assert_eq!(
        resumed.json(),
        json!({"scope": "type:mail.send", "version": 3})
    );
    run(&redis, &["resume", "mail.send"]).failed(1, &["no policy of type:mail.send"]);
    run(&redis, &["pause", "system.ping"]).failed(1, &["control plane"]);
    run(&redis, &["pause", "mail.send", "--domain", "mail"]).failed(2, &["cannot be used with"]);
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_set_shown_and_taken_back_and_who_did_so_is_told() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, "w-1", &mut convoke(&redis, &["worker", "--id=w-1"]));
    let limited = run(
        &redis,
        &[
            "limit",
            "mail.send",
            "--rate",
            "10/s",
            "--per",
            "source",
            "--concurrency",
            "4",
            "--total",
            "7",
            "--timeout",
            "5s",
            "--attempts",
            "3",
            "--reason",
            "the relay",
        ],
    );
    assert_eq!(limited.done().out, "type:mail.send: limited, version 1\n");
    run(&redis, &["pause", "mail.send"]).done();
    let shown = run(&redis, &["policy", "list", "--format", "json"]).done();
    let shown = shown.json();
    assert_eq!(
        shown["rate"],
        json!({"limit": 10, "period_ms": 1000, "per": "source"})
    );
    assert_eq!(shown["concurrency"], json!({"worker": 4, "total": 7}));
    assert_eq!(
        (&shown["timeout_ms"], &shown["max_attempts"]),
        (&json!(5000), &json!(3))
    );
    let shown = run(&redis, &["policy", "show", "type:mail.send"]).done();
    for part in [
        "until resumed",
        "rate 10/s per source",
        "concurrency 4, total 7",
        "timeout 5s",
        "attempts 3",
        "0 taken",
    ] {
        assert!(shown.out.contains(part), "{part}: {}", shown.out);
    }
    run(
        &redis,
        &[
            "limit",
            "mail.send",
            "--clear",
            "rate",
            "attempts",
            "--version",
            "9",
        ],
    )
    .failed(1, &["aborted", "is at version 2"]);
    let cleared = run(
        &redis,
        &["limit", "mail.send", "--clear", "rate", "attempts", "total"],
    )
    .done();
    assert_eq!(
        cleared.out,
        "type:mail.send: not limited any more, version 3\n"
    );
    let left = run(&redis, &["policy", "list", "--format", "json"]).done();
    assert_eq!(left.json()["concurrency"], json!({"worker": 4}));
    run(&redis, &["resume", "mail.send"]).done();
    run(
        &redis,
        &["limit", "mail.send", "--clear", "--reason", "it is well"],
    )
    .done();
    run(&redis, &["policy", "show", "type:mail.send"]).failed(1, &["no policy"]);
    let told = run(&redis, &["policy", "history", "type:mail.send"]).done();
    for part in [
        "the relay",
        "it is well",
        "rate 10/s per source",
        "concurrency 4, total 7, paused",
    ] {
        assert!(told.out.contains(part), "{part}: {}", told.out);
    }
    let told = run(
        &redis,
        &["policy", "history", "--limit", "2", "--format", "json"],
    )
    .done();
    let versions: Vec<u64> = told
        .out
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|one| one["version"].as_u64().unwrap())
        .collect();
    assert_eq!(versions, [5, 4]);
    run(&redis, &["limit", "--domain", "mail", "--timeout", "5s"]).done();
    run(&redis, &["limit", "--domain", "mail", "--rate", "1/s"])
        .failed(1, &["domain:mail can have pause, timeout_ms, max_attempts"]);
    run(&redis, &["limit", "mail.send"]).failed(2, &["give a limit"]);
    run(&redis, &["limit", "mail.send", "--rate", "fast"]).failed(2, &["RUNS/PERIOD"]);
    run(&redis, &["limit", "mail.send", "--rate", "1/s", "--clear"]).failed(2, &["cannot be used"]);
    run(&redis, &["limit", "mail.send", "--rate", "0/s"]).failed(1, &["pause it"]);
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_parked_is_counted_by_type_named_with_its_pause_and_traced() {
    let redis = Redis::start();
    let start = ["worker", "--id=w-1", "--exec", "mail.send=true"];
    let worker = Worker::start(&redis, "w-1", &mut convoke(&redis, &start));
    run(&redis, &["pause", "mail.send", "--reason", "repair"]).done();
    for id in ["m-1", "m-2", "m-3"] {
        run(&redis, &["publish", "mail.send", "--id", id, "--data", "1"]).done();
    }
    let parked = || {
        let words = ["streams", "events:mail", "--format", "json"];
        run(&redis, &words).done().json()["parked"].clone()
    };
    eventually("all are parked", || parked()[0]["count"] == json!(3));
    assert_eq!(parked()[0]["type"], json!("mail.send"));
    assert!(parked()[0]["first_at"].is_u64(), "{}", parked());
    let shown = run(&redis, &["streams", "mail"]).done().out;
    assert!(shown.contains("parked mail.send"), "{shown}");
    let checked = run(&redis, &["doctor"]).out;
    for part in [
        "mail.send: 3 events are parked, the first of",
        "type:mail.send is paused by",
        "until it is resumed: repair",
        "mend: convoke resume mail.send",
    ] {
        assert!(checked.contains(part), "{part}: {checked}");
    }
    let traced = run(&redis, &["trace", "m-2"]).done().out;
    let said = "parked: type:mail.send is paused: repair";
    assert!(traced.contains(said), "{traced}");
    run(&redis, &["resume", "mail.send"]).done();
    eventually("nothing is parked", || parked() == json!([]));
    let checked = run(&redis, &["doctor", "--all"]).out;
    assert!(
        checked.contains("nothing is paused, and nothing parked"),
        "{checked}"
    );
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_total_is_counted_by_type_and_named_with_it() {
    let redis = Redis::start();
    let holds = File::new("holds", "");
    let exec = format!(
        "mail.send=while [ -e '{}' ]; do sleep 0.1; done",
        holds.path()
    );
    let start = ["worker", "--id=w-1", "--exec", &exec];
    let worker = Worker::start(&redis, "w-1", &mut convoke(&redis, &start));
    run(&redis, &["limit", "mail.send", "--total", "1"]).done();
    let seats = || {
        let words = ["streams", "events:mail", "--format", "json"];
        run(&redis, &words).done().json()["seats"][0].clone()
    };
    let publish = |id| {
        run(&redis, &["publish", "mail.send", "--id", id, "--data", "1"]).done();
    };
    publish("m-1");
    eventually("the total holds", || seats()["taken"] == json!(1));
    publish("m-2");
    publish("m-3");
    // What waits counts as long as its worker asks: one that stands still does not, for that moment.
    eventually("it is said what runs and waits, and of which total", || {
        let seen = seats();
        let said = ["total", "taken", "waits", "workers"].map(|part| seen[part].clone());
        said == [json!(1), json!(1), json!(2), json!(1)]
    });
    let shown = run(&redis, &["streams", "mail"]).done().out;
    assert!(shown.contains("mail.send: 1 of 1 run"), "{shown}");
    eventually("its policy says so", || {
        let policy = run(&redis, &["policy", "show", "type:mail.send"]).done();
        policy.out.contains("1 taken, 2 wait")
    });
    eventually("doctor says so", || {
        let checked = run(&redis, &["doctor"]).out;
        let parts = [
            "mail.send: 1 run goes on of the total of 1",
            "2 wait for it in 1 worker",
            "mend: convoke limit mail.send --total MORE",
        ];
        parts.iter().all(|part| checked.contains(part))
    });
    drop(holds);
    eventually("all ran", || seats()["taken"] == json!(0));
    drop(worker);
}
