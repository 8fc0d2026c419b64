//! Replays that are handed to the workers.

use super::super::rig::{add, entries, lines, text};
use super::super::worker::Worker;
use super::super::{Ended, convoke, run};
use crate::support::{self, Redis, name};
use convoke::protocol::json;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) const EVENTS: &str = "cb:events:order";
pub(super) const DEAD: &str = "cb:dead:order";

/// Dead letters of a domain that no worker here reads.
pub(super) fn orders(redis: &Redis, count: usize) {
    let mut connection = redis.connect();
    let told = "deadreason internal deadmessage broken deadattempts 5 deaddeliveries 1 \
                deadstream cb:events:order deadinstance w-1 deadtime 1700000000000";
    for from in (1..=count).step_by(1000) {
        let mut pipe = redis::pipe();
        for n in from..=count.min(from + 999) {
            let data = json::from_json(&json!({"n": n, "version": 1}));
            let mut command = redis::cmd("XADD");
            command.arg(DEAD).arg(format!("{n}-1"));
            command.arg(&["type", "order.make", "id", &format!("o-{n}"), "data"]);
            command.arg(data).arg(told.split(' ').collect::<Vec<_>>());
            pipe.add_command(command).ignore();
        }
        pipe.exec(&mut connection).unwrap();
    }
}

pub(super) fn length(redis: &Redis, key: &str) -> usize {
    redis::cmd("XLEN")
        .arg(key)
        .query(&mut redis.connect())
        .unwrap()
}

pub(super) fn worker(redis: &Redis, id: &str) -> Worker {
    let args = ["worker", &format!("--id={id}")];
    Worker::start(redis, id, &mut convoke(redis, &args))
}

/// The last line of what a terminal shows until the end.
pub(super) fn last(ended: &Ended) -> Value {
    lines(&ended.out).pop().unwrap()
}

pub(super) fn listed(redis: &Redis) -> Value {
    let listed = run(redis, &["replay", "list", "--format=json"]).done();
    lines(&listed.out).remove(0)
}

/// Whether each is an event once, changed, and none is dead any more.
pub(super) fn each_once(redis: &Redis, count: usize) {
    let events = entries(redis, EVENTS);
    assert_eq!(events.len(), count);
    let ids: BTreeSet<String> = events.iter().map(|event| text(event, "id")).collect();
    assert_eq!(ids.len(), count);
    for event in &events {
        let data = json::to_json(event.get("data").unwrap()).unwrap();
        assert_eq!(data["version"], 2, "{data}");
        assert!(text(event, "edited").contains('@'));
    }
    assert_eq!(length(redis, DEAD), 0);
}

/// Follows a replay to its end: all were replayed.
pub(super) fn all_are_replayed(redis: &Redis, name: &str, count: usize) {
    let followed = run(redis, &["replay", "follow", name, "--format=json"]).done();
    let end = last(&followed);
    assert_eq!(
        (&end["state"], &end["replayed"]),
        (&json!("finished"), &json!(count))
    );
    assert_eq!((&end["gone"], &end["left"]), (&json!(0), &json!(0)));
}

/// Has the workers mend and replay all, kills the terminal in the middle, and follows from another one.
fn the_terminal_is_killed(redis: &Redis, count: usize, rate: &str) {
    let args = ["replay", "dead", "order", "--set", "version=2", "--yes"];
    let by_workers = [
        "--detach",
        "--follow",
        "--timeout=30s",
        "--run=v2",
        "--rate",
        rate,
    ];
    let mut terminal = convoke(redis, &[&args[..], &by_workers].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    support::eventually("some are replayed", || length(redis, EVENTS) > count / 20);
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    all_are_replayed(redis, "v2", count);
    each_once(redis, count);
    // Whoever looks later is told the same.
    let later = run(redis, &["replay", "follow"]).done();
    assert!(later.out.contains("(run v2)"), "{later:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_goes_on_when_its_terminal_is_killed_and_each_letter_is_replayed_once() {
    let redis = Redis::start();
    let _worker = worker(&redis, "w-1");
    orders(&redis, 2000);
    the_terminal_is_killed(&redis, 2000, "400");
    let facts = entries(&redis, "cb:broadcast");
    let told = facts
        .iter()
        .filter(|fact| text(fact, "type") == "operator.replayed");
    let count: u64 = told
        .map(|fact| {
            let data = json::to_json(fact.get("data").unwrap()).unwrap();
            assert_eq!(data["run"], "v2");
            data["count"].as_u64().unwrap()
        })
        .sum();
    assert_eq!(count, 2000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "100,000 dead letters: about a minute"]
async fn a_hundred_thousand_are_mended_and_replayed_though_the_terminal_is_killed() {
    let redis = Redis::start();
    let _workers = [worker(&redis, "w-1"), worker(&redis, "w-2")];
    orders(&redis, 100_000);
    let began = std::time::Instant::now();
    the_terminal_is_killed(&redis, 100_000, "1000000");
    println!(
        "{:.1} s from the command to the end of the look",
        began.elapsed().as_secs_f64()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_worker_goes_on_when_the_one_that_repairs_is_killed() {
    let redis = Redis::start();
    let mut workers = vec![
        ("w-1", worker(&redis, "w-1")),
        ("w-2", worker(&redis, "w-2")),
    ];
    orders(&redis, 600);
    let args = [
        "replay",
        "dead",
        "--set=version=2",
        "--yes",
        "--detach",
        "--rate=100",
    ];
    let handed = run(&redis, &args).done();
    assert!(handed.out.contains("600 dead letters handed"), "{handed:?}");
    support::eventually("some are replayed", || length(&redis, EVENTS) > 50);
    let holder = listed(&redis)["holder"].as_str().unwrap().to_owned();
    workers.retain(|(id, _)| *id != holder);
    assert_eq!(workers.len(), 1);
    let at_death = length(&redis, EVENTS);
    assert!(at_death < 600);
    run(&redis, &["replay", "follow"]).done();
    each_once(&redis, 600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_repair_leaves_the_rest_where_it_is_and_the_same_command_goes_on() {
    let redis = Redis::start();
    let _worker = worker(&redis, "w-1");
    orders(&redis, 400);
    let args = ["replay", "dead", "order", "--set=version=2", "--yes"];
    let slow = [&args[..], &["--detach", "--rate=20", "--run=slow"]].concat();
    run(&redis, &slow).done();
    support::eventually("some are replayed", || length(&redis, EVENTS) > 5);
    let cancelled = run(&redis, &["replay", "cancel", "slow", "--format=json"]).done();
    let replayed = cancelled.json()["replayed"].as_u64().unwrap() as usize;
    assert_eq!(length(&redis, EVENTS), replayed);
    assert_eq!(length(&redis, DEAD), 400 - replayed);
    let followed = run(&redis, &["replay", "follow", "slow"]);
    followed.failed(1, &["cancelled by"]);
    run(&redis, &args).done();
    each_once(&redis, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_mended_stays_and_is_told_with_its_reason() {
    let redis = Redis::start();
    let _worker = worker(&redis, "w-1");
    orders(&redis, 3);
    let told = "id o-4 deadreason internal deadattempts 5";
    add(&redis, DEAD, "4-1", "order.make", &json!("a text"), told);
    let args = [
        "replay",
        "dead",
        "--set=version=2",
        "--yes",
        "--detach",
        "--follow",
    ];
    let done = run(&redis, &args);
    let done = done.failed(1, &["1 left alone: it cannot be mended: version"]);
    assert!(done.out.contains("replayed 3 dead letters"), "{done:?}");
    assert_eq!(length(&redis, DEAD), 1);
    // Only what fits is touched.
    orders_again(&redis);
    let which = ["--where=n=11", "--unset=version", "--rename=n=number"];
    let args = [
        &["replay", "dead", "--yes", "--detach", "--follow"],
        &which[..],
    ]
    .concat();
    run(&redis, &args).done();
    let event = entries(&redis, EVENTS).pop().unwrap();
    let data = json::to_json(event.get("data").unwrap()).unwrap();
    assert_eq!(data, json!({"number": 11}));
    assert_eq!(length(&redis, DEAD), 2);
}

fn orders_again(redis: &Redis) {
    for n in [11, 12] {
        let (id, told) = (format!("{n}-1"), "deadreason internal deadattempts 5");
        let data = json!({"n": n, "version": 1});
        add(redis, DEAD, &id, "order.make", &data, told);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_stays_with_the_terminal_and_no_plan_runs_anything() {
    let redis = Redis::start();
    let _worker = worker(&redis, "w-1");
    orders(&redis, 1);
    let with = ["replay", "dead", "--yes", "--detach", "--edit-with=cat"];
    run(&redis, &with).failed(2, &["cannot be used with"]);
    let plan = json!({"name": "odd", "plan": {"stretches": [], "edit_with": "touch /tmp/x"}});
    let asked = [
        "request",
        "system.repair.start",
        "--data",
        &plan.to_string(),
    ];
    run(&redis, &asked).failed(1, &["unknown field `edit_with`"]);
    assert!(
        run(&redis, &["replay", "list", "--format=json"])
            .done()
            .out
            .is_empty()
    );
    run(&redis, &["replay", "follow"]).failed(1, &["no replay was handed"]);
}

#[test]
fn payloads_are_mended_by_what_is_given_from_the_terminal_too() {
    let redis = Redis::start();
    orders(&redis, 2);
    let dry = [
        "replay",
        "dead",
        "--set=user.name=ada",
        "--unset=n",
        "--dry-run",
    ];
    let planned = run(&redis, &[&dry[..], &["--format=json"]].concat()).done();
    let planned = lines(&planned.out);
    assert_eq!(
        planned[0]["data"],
        json!({"version": 1, "user": {"name": "ada"}})
    );
    assert_eq!(planned[0]["before"], json!({"n": 1, "version": 1}));
    for (odd, says) in [
        ("--set=a", "PATH=VALUE"),
        ("--unset=a..b", "no path"),
        ("--set=a={", "JSON"),
    ] {
        run(&redis, &["replay", "dead", odd, "--dry-run"]).failed(2, &[says]);
    }
    run(&redis, &["replay", "dead", "--set=version=2", "--yes"]).done();
    each_once(&redis, 2);
}

/// Replays letters at two a second whose deadlines are fine when it begins, and not when the last one's turn comes.
fn deadlines_pass_meanwhile(redis: &Redis, by: &[&str]) {
    let deadline = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(62);
    for n in 1..=8 {
        let told = format!(
            "id o-{n} deadreason internal deadattempts 5 deadline {}",
            deadline.as_millis()
        );
        let (id, data) = (format!("{n}-1"), json!({"n": n}));
        add(redis, DEAD, &id, "order.make", &data, &told);
    }
    let args = ["replay", "dead", "order", "--yes", "--rate=2"];
    run(redis, &[&args[..], by].concat()).done();
    let events = entries(redis, EVENTS);
    assert_eq!(events.len(), 8);
    let last = events.last().unwrap();
    assert_eq!(last.get("deadline"), None, "it would be dropped unseen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_passes_while_a_repair_waits_is_taken_off() {
    let redis = Redis::start();
    let _worker = worker(&redis, "w-1");
    deadlines_pass_meanwhile(&redis, &["--detach", "--follow"]);
}

#[test]
fn a_deadline_that_passes_while_the_terminal_replays_is_taken_off() {
    let redis = Redis::start();
    deadlines_pass_meanwhile(&redis, &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_meets_nothing_that_dies_long_after_it_began() {
    let redis = Redis::start();
    let _worker = worker(&redis, "w-1");
    orders(&redis, 1);
    let later = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(3600);
    let (id, told) = (
        format!("{}-1", later.as_millis()),
        "id o-9 deadreason internal",
    );
    add(&redis, DEAD, &id, "order.make", &json!({}), told);
    let dead = name("order", DEAD);
    let all = json!([{"stream": dead, "from": [0, 0], "to": [u64::MAX, u64::MAX]}]);
    let asked = json!({"name": "all", "plan": {"stretches": all, "force": true}}).to_string();
    run(
        &redis,
        &["request", "system.repair.start", "--data", &asked],
    )
    .done();
    run(&redis, &["replay", "follow", "all"]).done();
    assert_eq!((length(&redis, EVENTS), length(&redis, DEAD)), (1, 1));
}
