//! `convoke replay`.

use super::rig::{add, bury, deliver, entries, lines, names, register, say, text};
use super::{File, convoke, end, run};
use crate::support::{self, Redis};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;

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
        (&json!(EVENTS), &json!("kept"))
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

fn editor(name: &str, script: &str) -> File {
    let file = File::new(name, &format!("#!/bin/sh\n{script}\n"));
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[test]
fn a_payload_is_mended_in_the_editor() {
    let redis = graveyard(2);
    let mends = editor("mends", r#"sed -i 's/"n": 1/"n": "mended"/' "$1""#);
    let edit = |editor: &File, args: &[&str]| {
        let args = [&["replay", "dead", "--edit", "--yes"], args].concat();
        end(convoke(&redis, &args)
            .env("EDITOR", editor.path())
            .env_remove("VISUAL"))
    };
    edit(&mends, &[]).failed(2, &["single entry", "--id"]);
    edit(&mends, &["--id", "1-1"]).done();
    let data = |n: usize| -> Value {
        convoke::protocol::json::to_json(entries(&redis, EVENTS)[n].get("data").unwrap()).unwrap()
    };
    assert_eq!(data(0), json!({"n": "mended"}));
    assert!(text(&entries(&redis, EVENTS)[0], "edited").contains('@'));
    edit(&editor("fails", "exit 3"), &["--id", "2-1"]).failed(1, &["nothing was changed"]);
    edit(&editor("garbage", "echo '{' > \"$1\""), &["--id", "2-1"])
        .failed(2, &["the mended payload is not JSON"]);
    assert_eq!(entries(&redis, DEAD).len(), 1);
    // Bytes have a form of their own in JSON, and stay what they are.
    super::rig::send(
        &redis,
        &[
            b"XADD",
            b"cb:dead:image",
            b"9-1",
            b"type",
            b"image.raw",
            b"data",
            b"\x81\xa3raw\xc4\x01\xff",
            b"deadreason",
            b"internal",
        ],
    );
    let adds = editor("adds", r#"sed -i '1s/{/{"n": 1,/' "$1""#);
    edit(&adds, &["--id", "9-1"]).done();
    assert_eq!(
        entries(&redis, EVENTS)[1].get("data").unwrap(),
        b"\x82\xa1n\x01\xa3raw\xc4\x01\xff"
    );
    // What could not be decoded is written anew.
    super::rig::send(
        &redis,
        &[
            b"XADD",
            b"cb:dead:image",
            b"10-1",
            b"type",
            b"image.raw",
            b"data",
            b"\xc1",
            b"deadreason",
            b"invalid_argument",
        ],
    );
    let anew = editor("anew", "echo 7 > \"$1\"");
    edit(&anew, &["--id", "10-1", "--force"]).done();
    assert_eq!(data(2), json!(7));
    // What came as JSON text goes back as that: a reply is JSON too.
    let words = "XADD cb:dead:image 99-1 type image.raw data {\"n\":1} datacontenttype application/json \
                 deadreason internal";
    super::rig::say(&redis, words);
    edit(&mends, &["--id", "99-1"]).done();
    let last = entries(&redis, EVENTS).pop().unwrap();
    assert_eq!(text(&last, "datacontenttype"), "application/json");
    assert_eq!(text(&last, "data"), r#"{"n":"mended"}"#);
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
    let child = convoke(&redis, &["replay", "dead", "--rate=50", "--yes"])
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

#[test]
fn payloads_are_mended_by_a_program_and_what_it_cannot_mend_stays() {
    let redis = graveyard(30);
    let mend = "grep -v '\"n\":7}' | sed \"s/\\\"n\\\"/\\\"$CONVOKE_EVENT_ID\\\"/\" | grep . || { echo no seven >&2; exit 3; }";
    let with = format!("--edit-with={mend}");
    let dry = run(
        &redis,
        &["replay", "dead", "--format=json", "--dry-run", &with],
    )
    .done();
    let planned = lines(&dry.out);
    assert_eq!(planned.len(), 31);
    assert_eq!(
        (&planned[0]["before"], &planned[0]["data"]),
        (&json!({"n": 1}), &json!({"e-1": 1}))
    );
    assert_eq!(planned[6]["would"], "leave");
    assert_eq!(planned[30]["would_replay"], 29);
    assert_eq!(entries(&redis, DEAD).len(), 30);
    let told = run(&redis, &["replay", "dead", "--dry-run", "--limit=1", &with]).done();
    assert!(told.out.contains(r#"{"n":1} → {"e-1":1}"#), "{}", told.out);
    let done = run(&redis, &["replay", "dead", "--yes", &with]);
    let done = done.failed(1, &["1 left alone: --edit-with: exit status: 3: no seven"]);
    assert!(
        done.out.contains("replayed 29 dead letters"),
        "{}",
        done.out
    );
    let events = entries(&redis, EVENTS);
    assert_eq!(events.len(), 29);
    let of = |n: usize| {
        let data = convoke::protocol::json::to_json(events[n].get("data").unwrap()).unwrap();
        (
            text(&events[n], "id"),
            data,
            text(&events[n], "edited").is_empty(),
        )
    };
    assert_eq!(of(1), ("e-2".into(), json!({"e-2": 2}), false));
    let left = entries(&redis, DEAD);
    assert_eq!((left.len(), text(&left[0], "id")), (1, "e-7".into()));
    // What leaves it as it is edits nothing; what prints no JSON mends nothing.
    let same = ["replay", "dead", "--yes", "--edit-with=cat"];
    let no_json = ["replay", "dead", "--yes", "--edit-with=echo oops"];
    run(&redis, &no_json).failed(1, &["1 left alone: --edit-with: not JSON"]);
    run(&redis, &same).done();
    assert!(entries(&redis, EVENTS)[29].get("edited").is_none());
}

#[test]
fn a_misspelt_type_is_put_right_and_goes_to_its_domain() {
    let redis = graveyard(3);
    let to = |kind: &str, id: &str| {
        let (kind, id) = (format!("--to-type={kind}"), format!("--id={id}"));
        run(&redis, &["replay", "dead", "--yes", &kind, &id])
    };
    to("image.resized", "1-1").done();
    let event = &entries(&redis, EVENTS)[0];
    assert_eq!(
        (text(event, "type"), text(event, "edited").is_empty()),
        ("image.resized".into(), false)
    );
    to("mail.send", "2-1").done();
    assert_eq!(
        text(&entries(&redis, "cb:events:mail")[0], "type"),
        "mail.send"
    );
    to("nodot", "3-1").failed(2, &["nodot"]);
    bury(
        &redis,
        "9-1",
        "Image.Resize",
        "invalid_argument",
        &json!(9),
        "id e-9",
    );
    to("image.resize", "9-1").done();
    let put_right = entries(&redis, EVENTS).pop().unwrap();
    assert_eq!(
        (text(&put_right, "id"), text(&put_right, "type")),
        ("e-9".into(), "image.resize".into())
    );
    deliver(&redis, "w-1");
    let id = entries(&redis, EVENTS)[0].id;
    say(&redis, &format!("XACK cb:events:image workers {id}"));
    let range = [
        "replay",
        "range",
        "image",
        "--to-type=mail.send",
        "--force",
        "--dry-run",
    ];
    let dry = run(&redis, &range).done();
    assert!(
        dry.err.contains("0 finished events would be replayed"),
        "{dry:?}"
    );
}
