//! `convoke replay`.

mod mended;
mod of_events;
mod repairs;
mod terminals;

use super::rig::{add, bury, deliver, entries, lines, names, register, say, text};
use super::{convoke, run};
use crate::support::{self, Redis, name};
use serde_json::json;

const EVENTS: &str = "cb:events:image";
const DEAD: &str = "cb:dead:image";

fn graveyard(count: u32) -> Redis {
    let redis = Redis::start();
    for n in 1..=count {
        let fields = format!("id e-{n} attempt 5 replyto cb:reply:me deadline 9 x kept");
        bury(
            &redis,
            &format!("{n}-1"),
            "image.resize",
            "internal",
            &json!({"n": n}),
            &fields,
        );
    }
    redis
}

#[test]
fn a_dead_letter_goes_back_as_the_same_event_with_its_first_attempt() {
    let redis = graveyard(2);
    let done = run(&redis, &["replay", "dead", "--id", "1-1", "--yes"]).done();
    assert!(done.out.contains("replayed 1 dead letter"), "{}", done.out);
    let events = entries(&redis, EVENTS);
    let names: Vec<String> = events[0]
        .pairs()
        .map(|(n, _)| String::from_utf8(n.to_vec()).unwrap())
        .collect();
    assert_eq!(names, ["type", "data", "id", "x", "replays"]);
    assert_eq!(
        (text(&events[0], "id"), text(&events[0], "replays")),
        ("e-1".into(), "1".into())
    );
    assert_eq!(entries(&redis, DEAD).len(), 1);
    let facts = entries(&redis, "cb:broadcast");
    assert_eq!(text(&facts[0], "type"), "operator.replayed");
}

#[test]
fn a_dry_run_shows_what_would_happen_and_changes_nothing() {
    let redis = graveyard(2);
    bury(
        &redis,
        "3-1",
        "image.resize",
        "internal",
        &json!(3),
        "replays 3",
    );
    say(
        &redis,
        "XADD cb:dead:image 4-1 member x deadreason invalid_argument",
    );
    say(
        &redis,
        "XADD cb:dead:image 5-1 type image.crop data \x01\x02 deadreason invalid_argument deadattempts 0",
    );
    let out = run(&redis, &["replay", "dead", "--dry-run", "--format=json"])
        .done()
        .out;
    let planned = lines(&out);
    assert_eq!(
        names(&planned[0]),
        [
            "would", "why", "stream", "entry", "to", "type", "replays", "fields", "data"
        ]
    );
    let would: Vec<&str> = planned[..5]
        .iter()
        .map(|p| p["would"].as_str().unwrap())
        .collect();
    assert_eq!(would, ["replay", "replay", "leave", "leave", "leave"]);
    assert!(planned[2]["why"].as_str().unwrap().contains("3 times"));
    assert!(planned[3]["why"].as_str().unwrap().contains("no event"));
    assert!(planned[4]["why"].as_str().unwrap().contains("data"));
    assert_eq!(
        (&planned[0]["to"], &planned[0]["fields"]["x"]),
        (&json!(name("image", EVENTS)), &json!("kept"))
    );
    assert_eq!(planned[0]["data"], json!({"n": 1}));
    assert_eq!(names(&planned[5]), ["would_replay", "left"]);
    assert_eq!(planned[5]["would_replay"], 2);
    let text = run(&redis, &["replay", "dead", "--dry-run"]).done();
    assert!(
        text.err.contains("2 dead letters would be replayed"),
        "{}",
        text.err
    );
    assert_eq!(
        (entries(&redis, DEAD).len(), entries(&redis, EVENTS).len()),
        (5, 0)
    );
    run(&redis, &["replay", "dead"])
        .failed(2, &["Replay 2 dead letters (image.resize 2)", "--yes"]);
    assert_eq!(entries(&redis, DEAD).len(), 5);
}

#[test]
fn what_came_back_too_often_or_is_malformed_needs_force() {
    let redis = Redis::start();
    bury(
        &redis,
        "1-1",
        "image.resize",
        "internal",
        &json!(1),
        "replays 3",
    );
    say(
        &redis,
        "XADD cb:dead:image 2-1 type image.crop data \x01\x02 deadreason invalid_argument deadattempts 0",
    );
    run(&redis, &["replay", "dead", "--yes"])
        .done()
        .failed(0, &["replayed 3 times already"]);
    assert_eq!(entries(&redis, DEAD).len(), 2);
    run(&redis, &["replay", "dead", "--yes", "--force"]).done();
    assert!(entries(&redis, DEAD).is_empty());
    assert_eq!(text(&entries(&redis, EVENTS)[0], "replays"), "4");
}

#[test]
fn dead_letters_are_chosen_limited_and_paced() {
    let redis = graveyard(30);
    bury(&redis, "31-1", "image.crop", "poison", &json!(1), "");
    let began = std::time::Instant::now();
    let args = [
        "replay",
        "dead",
        "image",
        "--type",
        "*.resize",
        "--limit=15",
        "--rate=100",
        "--yes",
        "--format=json",
    ];
    let out = lines(&run(&redis, &args).done().out);
    assert!(began.elapsed().as_millis() >= 50, "{:?}", began.elapsed());
    assert_eq!(out.len(), 16);
    assert_eq!(
        names(&out[0]),
        ["replayed", "stream", "to", "entry", "type", "replays"]
    );
    assert_eq!(
        names(&out[15]),
        [
            "run",
            "replayed_total",
            "gone_meanwhile",
            "left",
            "of",
            "interrupted",
            "stopped"
        ]
    );
    assert_eq!(
        (&out[15]["replayed_total"], &out[15]["of"]),
        (&json!(15), &json!(15))
    );
    let ids: Vec<String> = entries(&redis, EVENTS)
        .iter()
        .map(|e| text(e, "id"))
        .collect();
    assert_eq!(ids, (1..=15).map(|n| format!("e-{n}")).collect::<Vec<_>>());
    run(
        &redis,
        &[
            "replay", "dead", "--where", "n=20", "--reason", "internal", "--yes",
        ],
    )
    .done();
    assert_eq!(text(entries(&redis, EVENTS).last().unwrap(), "id"), "e-20");
    // Each step at a rate of 100 a second is 10 long; each tells once, with what it did.
    let counts: Vec<u64> = entries(&redis, "cb:broadcast")
        .iter()
        .map(|fact| {
            convoke::protocol::json::to_json(fact.get("data").unwrap()).unwrap()["count"]
                .as_u64()
                .unwrap()
        })
        .collect();
    assert_eq!(counts, [10, 5, 1]);
}

#[test]
fn a_server_that_refuses_stops_it_with_all_in_one_place() {
    let redis = graveyard(3);
    say(&redis, "SET cb:events:image x");
    let ended = run(&redis, &["replay", "dead", "--yes"]);
    assert!(ended.failed(1, &["WRONGTYPE"]).out.contains("replayed 0"));
    assert_eq!(entries(&redis, DEAD).len(), 3);
}

/// One entry with a living instance, one with one that was lost, one with a stranger.
async fn held() -> Redis {
    let redis = Redis::start();
    for (n, owner) in [(1, "w-alive"), (2, "w-lost"), (3, "stranger")] {
        add(
            &redis,
            EVENTS,
            &format!("{n}-1"),
            "image.resize",
            &json!(n),
            "replyto cb:reply:me attempt 2",
        );
        deliver(&redis, owner);
    }
    register(&redis, "w-alive").await;
    say(&redis, "HSET cb:instance:w-lost status lost");
    redis
}

fn pending(redis: &Redis) -> Vec<String> {
    let out = run(redis, &["pending", "--format=json"]).done().out;
    lines(&out)
        .iter()
        .map(|p| p["entry"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn only_what_nobody_works_on_is_taken_from_its_owner() {
    let redis = held().await;
    let done = run(&redis, &["replay", "pending", "--yes"]).done();
    assert!(done.err.contains("held by w-alive"), "{}", done.err);
    assert!(done.err.contains("held by stranger"), "{}", done.err);
    assert_eq!(pending(&redis), ["1-1", "3-1"]);
    let copy = entries(&redis, EVENTS).pop().unwrap();
    // Nobody was answered yet, so the reply is still owed.
    let told = ["id", "replyto", "replays", "attempt"].map(|name| text(&copy, name));
    assert_eq!(told, ["2-1", "cb:reply:me", "1", ""]);
    say(
        &redis,
        "XCLAIM cb:events:image workers stranger 0 3-1 IDLE 90000 JUSTID",
    );
    run(&redis, &["replay", "pending", "--idle", "2m", "--yes"]).done();
    assert_eq!(pending(&redis), ["1-1", "3-1"]);
    run(&redis, &["replay", "pending", "image", "--yes"]).done();
    assert_eq!(pending(&redis), ["1-1"]);
    run(&redis, &["replay", "pending", "--force", "--yes"]).done();
    assert!(pending(&redis).is_empty());
    assert_eq!(entries(&redis, EVENTS).len(), 6);
    for owner in ["w-alive", "w-lost", "stranger"] {
        let counter = say(&redis, &format!("GET cb:claims:{owner}"));
        assert_eq!(counter, redis::Value::BulkString(b"1".to_vec()), "{owner}");
    }
}

#[tokio::test]
async fn a_range_copies_what_is_finished_and_nothing_twice() {
    let redis = Redis::start();
    for n in 1..=4 {
        let fields = if n == 2 {
            "attempt 2 id e-1"
        } else {
            "replyto cb:reply:me"
        };
        add(
            &redis,
            EVENTS,
            &format!("{n}-1"),
            "image.resize",
            &json!(n),
            fields,
        );
    }
    run(&redis, &["replay", "range", "image", "--yes"]).failed(2, &["no group workers"]);
    run(&redis, &["replay", "range"]).failed(2, &["STREAM"]);
    deliver(&redis, "w-1");
    say(&redis, "XACK cb:events:image workers 1-1 2-1 3-1");
    add(&redis, EVENTS, "5-1", "image.resize", &json!(5), "");
    let done = run(
        &redis,
        &["replay", "range", "image", "--until", "9-1", "--yes"],
    )
    .done();
    for left in ["pending", "not delivered yet", "retry"] {
        assert!(done.err.contains(left), "{left}: {}", done.err);
    }
    let copied = |redis: &Redis| -> Vec<String> {
        let copies = entries(redis, EVENTS).into_iter().skip(5);
        copies
            .map(|e| format!("{}{}", text(&e, "id"), text(&e, "replyto")))
            .collect()
    };
    assert_eq!(copied(&redis), ["1-1", "3-1"]);
    let again = run(
        &redis,
        &["replay", "range", "image", "--until", "9-1", "--yes"],
    )
    .done();
    assert!(again.err.contains("copied already"), "{}", again.err);
    assert_eq!(copied(&redis).len(), 2);
    let forced = [
        "replay", "range", "image", "--id", "1-1", "--force", "--yes", "--run", "second",
    ];
    for _ in 0..2 {
        run(&redis, &forced).done();
        assert_eq!(copied(&redis).len(), 3);
    }
}

#[test]
fn partitions_and_tagged_names_are_replayed_too() {
    let redis = Redis::start();
    for partition in 0..2 {
        say(
            &redis,
            &format!(
                "XADD {{cb:image:{partition}}}:dead 1-1 type image.resize deadreason internal"
            ),
        );
    }
    run(
        &redis,
        &["replay", "dead", "image", "--partitions", "2", "--yes"],
    )
    .done();
    for partition in 0..2 {
        assert_eq!(
            entries(&redis, &format!("{{cb:image:{partition}}}:events")).len(),
            1
        );
        assert_eq!(
            entries(&redis, &format!("{{cb:image:{partition}}}:dead")).len(),
            0
        );
    }
    assert_eq!(entries(&redis, "{cb}:broadcast").len(), 2);
}

#[test]
fn an_interrupt_ends_it_between_two_steps() {
    let redis = graveyard(200);
    let child = convoke(&redis, &["replay", "dead", "--rate=10", "--yes"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    support::eventually("it is at work", || entries(&redis, EVENTS).len() >= 5);
    support::signal(child.id(), "INT");
    let output = child.wait_with_output().unwrap();
    let (back, dead) = (entries(&redis, EVENTS).len(), entries(&redis, DEAD).len());
    assert_eq!(output.status.code(), Some(1));
    assert!(back < 200 && back + dead == 200, "{back} {dead}");
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(
        out.contains(&format!("replayed {back} dead letters")),
        "{out}"
    );
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(
        err.contains(&format!("{dead} are where they were")),
        "{err}"
    );
}
