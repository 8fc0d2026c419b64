//! Replays that stay with their terminal, since a program mends what they replay: followed from another one.

use super::super::rig::lines;
use super::super::{convoke, run};
use super::repairs::{
    DEAD, EVENTS, all_are_replayed, each_once, last, length, listed, orders, worker,
};
use crate::support::{self, Redis};
use serde_json::json;
use std::process::{Child, Stdio};

/// Mends what `orders` made.
const MENDS: &str = "--edit-with=sed s/.version.:1/\\\"version\\\":2/";

/// A terminal of its own that does it.
fn terminal(redis: &Redis, name: &str, rate: &str) -> Child {
    let (run, rate) = (format!("--run={name}"), format!("--rate={rate}"));
    let words = ["replay", "dead", "order", "--yes", &rate, &run, MENDS];
    convoke(redis, &words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Goes on under that name, as whoever follows is told.
fn go_on(redis: &Redis, name: &str, rate: &str) -> Child {
    terminal(redis, name, rate)
}

fn begun(redis: &Redis, least: usize) {
    support::eventually("some are replayed", || length(redis, EVENTS) > least);
}

/// Kills the terminal in the middle; another one is told how far it was, and one goes on.
fn the_terminal_is_killed(redis: &Redis, count: usize, rate: &str) {
    orders(redis, count);
    let began = std::time::Instant::now();
    let mut first = terminal(redis, "mend", rate);
    begun(redis, (count / 20).min(500));
    let mut second = convoke(redis, &["replay", "follow", "mend"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let at_work = listed(redis);
    assert_eq!(
        (&at_work["state"], &at_work["terminal"]),
        (&json!("running"), &json!(true))
    );
    assert!(second.try_wait().unwrap().is_none(), "it follows");
    first.kill().unwrap();
    first.wait().unwrap();
    let so_far = length(redis, EVENTS);
    assert!(so_far < count);
    let told = second.wait_with_output().unwrap();
    let (out, err) = (
        String::from_utf8(told.stdout).unwrap(),
        String::from_utf8(told.stderr).unwrap(),
    );
    let shown = convoke_number(so_far);
    let line = format!("replayed {shown} dead letters of {}", convoke_number(count));
    assert!(out.contains(&line), "{out} {err}");
    assert!(err.contains("its terminal is gone"), "{err}");
    assert!(err.contains("the same command, with --run mend"), "{err}");
    assert_eq!(listed(redis)["state"], "stopped");
    let rest = go_on(redis, "mend", "1000000").wait_with_output().unwrap();
    assert!(rest.status.success(), "{rest:?}");
    all_are_replayed(redis, "mend", count);
    each_once(redis, count);
    println!(
        "{count}: {so_far} when the terminal died, {:.1} s from the command to the end",
        began.elapsed().as_secs_f64()
    );
}

/// `1234567` as the program writes it.
fn convoke_number(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[test]
fn a_killed_terminal_is_told_to_whoever_follows_and_another_one_goes_on_each_once() {
    let redis = Redis::start();
    the_terminal_is_killed(&redis, 300, "20");
}

#[test]
#[ignore = "100,000 runs of a program: some minutes"]
fn a_hundred_thousand_are_mended_by_a_program_though_its_terminal_is_killed() {
    let redis = Redis::start();
    the_terminal_is_killed(&redis, 100_000, "1000000");
}

#[test]
fn an_interrupted_terminal_gives_its_replay_back_at_once() {
    let redis = Redis::start();
    orders(&redis, 200);
    let first = terminal(&redis, "mend", "20");
    begun(&redis, 10);
    support::signal(first.id(), "INT");
    let ended = first.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let err = String::from_utf8(ended.stderr).unwrap();
    assert!(err.contains("replay follow mend"), "{err}");
    assert!(err.contains("the same command, with --run mend"), "{err}");
    let so_far = length(&redis, EVENTS);
    let told = run(&redis, &["replay", "follow", "--format=json"]);
    let told = last(&told.failed(1, &[]));
    assert_eq!(
        (&told["state"], &told["note"]),
        (&json!("stopped"), &json!("interrupted"))
    );
    assert_eq!(told["replayed"], json!(so_far));
    // Other conditions are another replay, and the name is taken.
    let other = ["--run=mend", "--edit-with=cat"];
    let other = [&["replay", "dead", "order", "--yes"], &other[..]].concat();
    run(&redis, &other).failed(2, &["other conditions"]);
    let mut elsewhere = convoke(&redis, &["replay", "dead", "image", "--yes", "--run=mend"]);
    super::super::end(elsewhere.arg(MENDS)).failed(2, &["other conditions"]);
    run(&redis, &["replay", "dead", "order", "--yes"]).done();
    assert_eq!((length(&redis, EVENTS), length(&redis, DEAD)), (200, 0));
    // Nothing is left for it to do, which ends it.
    let rest = go_on(&redis, "mend", "40").wait_with_output().unwrap();
    assert!(rest.status.success(), "{rest:?}");
    assert_eq!(listed(&redis)["state"], "finished");
}

#[test]
fn one_terminal_at_a_time_does_a_replay_and_one_that_was_stopped_does_nothing_more() {
    let redis = Redis::start();
    orders(&redis, 200);
    let first = terminal(&redis, "mend", "5");
    begun(&redis, 5);
    let second = go_on(&redis, "mend", "40").wait_with_output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let err = String::from_utf8(second.stderr).unwrap();
    assert!(err.contains("another terminal does mend"), "{err}");
    support::signal(first.id(), "STOP");
    let told = run(&redis, &["replay", "follow", "mend"]);
    told.failed(1, &["its terminal is gone"]);
    let so_far = length(&redis, EVENTS);
    let rest = go_on(&redis, "mend", "20");
    begun(&redis, so_far + 10);
    support::signal(first.id(), "CONT");
    let ended = first.wait_with_output().unwrap();
    // It says why, unless it was stopped in the middle of a call: that has failed by now.
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let rest = rest.wait_with_output().unwrap();
    assert!(rest.status.success(), "{rest:?}");
    each_once(&redis, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_of_a_terminal_is_cancelled_from_another_one_and_no_worker_does_it() {
    let redis = Redis::start();
    let _worker = worker(&redis, "w-1");
    orders(&redis, 200);
    let first = terminal(&redis, "mend", "10");
    begun(&redis, 5);
    let cancelled = run(&redis, &["replay", "cancel", "mend", "--format=json"]).done();
    let replayed = cancelled.json()["replayed"].as_u64().unwrap() as usize;
    assert_eq!(length(&redis, EVENTS), replayed);
    let ended = first.wait_with_output().unwrap();
    let err = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{err}");
    assert!(err.contains("mend: cancelled by"), "{err}");
    assert_eq!(length(&redis, EVENTS), replayed);
    // What comes over the bus cannot pretend to be a terminal's.
    let plan = json!({"name": "odd", "plan": {"stretches": [], "program": true}});
    let asked = [
        "request",
        "system.repair.start",
        "--data",
        &plan.to_string(),
    ];
    run(&redis, &asked).failed(1, &["only the terminal"]);
    let told = lines(&run(&redis, &["replay", "list", "--format=json"]).done().out);
    assert_eq!((told.len(), &told[0]["state"]), (1, &json!("cancelled")));
}
