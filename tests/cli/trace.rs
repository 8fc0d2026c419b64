//! `convoke trace`.

use super::rig::{add, bury, deliver, lines, names, say};
use super::worker::Worker;
use super::{File, convoke, run};
use crate::support::{self, Redis};
use serde_json::{Value, json};

/// One event that is held, one that was answered and settled, one that waits for its next try, one that died.
fn busy() -> Redis {
    let redis = Redis::start();
    let image = "cb:events:image";
    add(
        &redis,
        image,
        "1000-1",
        "image.make",
        &json!(1),
        "id a subject shop-7 source shop",
    );
    add(
        &redis,
        image,
        "2000-1",
        "image.make",
        &json!(2),
        "id b subject shop-7 source shop",
    );
    add(
        &redis,
        image,
        "3000-1",
        "image.make",
        &json!(3),
        "id c subject other source shop",
    );
    add(
        &redis,
        image,
        "4000-1",
        "image.make",
        &json!(4),
        "source shop",
    );
    deliver(&redis, "w-1");
    say(&redis, "XACK cb:events:image workers 2000-1 3000-1");
    add(&redis, image, "5000-1", "image.make", &json!(5), "id e");
    let answer = "correlationid b status internal source w-1 time 2100";
    let failed = json!({"code": "internal", "message": "disk full", "retryable": true});
    add(
        &redis,
        "cb:reply:shop",
        "2100-1",
        "image.make.result",
        &failed,
        answer,
    );
    let fields = [
        "type",
        "image.make",
        "id",
        "c",
        "subject",
        "other",
        "attempt",
        "2",
        "lasterror",
        "too hot",
    ];
    let member = convoke::streams::delay::encode_member("3000-1", &fields);
    redis::cmd("ZADD")
        .arg("cb:delayed:image")
        .arg(4_102_444_800_000_u64)
        .arg(&member[..])
        .exec(&mut redis.connect())
        .unwrap();
    bury(
        &redis,
        "6000-1",
        "image.make",
        "poison",
        &json!(4),
        "subject gone id d",
    );
    redis
}

fn traced(redis: &Redis, words: &[&str]) -> Vec<(String, String, String)> {
    let mut all = vec!["trace", "--format=json"];
    all.extend(words);
    let steps = lines(&run(redis, &all).done().out);
    let text = |step: &Value, name: &str| step[name].as_str().unwrap_or_default().to_owned();
    let steps = steps.iter();
    steps
        .map(|step| (text(step, "event"), text(step, "step"), text(step, "said")))
        .collect()
}

fn said(steps: &[(String, String, String)], step: &str) -> Vec<String> {
    let of = steps.iter().filter(|(_, is, _)| is == step);
    of.map(|(_, _, said)| said.clone()).collect()
}

#[test]
fn one_event_is_followed_from_its_entry_to_how_it_stands() {
    let redis = busy();
    let held = traced(&redis, &["a"]);
    assert_eq!(
        said(&held, "published"),
        ["published by shop, subject shop-7"]
    );
    let stands = said(&held, "stands");
    assert_eq!(stands.len(), 1);
    assert!(
        stands[0].starts_with("held by w-1 of group workers"),
        "{stands:?}"
    );
    let answered = traced(&redis, &["b"]);
    assert_eq!(
        said(&answered, "answered"),
        ["answered internal by w-1: disk full"]
    );
    assert_eq!(said(&answered, "stands"), ["settled by group workers"]);
    let order: Vec<&str> = answered.iter().map(|(_, step, _)| step.as_str()).collect();
    assert_eq!(order, ["published", "answered", "stands"]);
    let retried = traced(&redis, &["c"]);
    let waits = "waits for attempt 2 at 2100-01-01T00:00:00.000Z, after: too hot";
    assert!(
        said(&retried, "stands").iter().any(|said| said == waits),
        "{retried:?}"
    );
    let unread = traced(&redis, &["e"]);
    assert_eq!(
        said(&unread, "stands"),
        ["not delivered to group workers yet"]
    );
}

#[test]
fn an_event_without_an_id_is_known_by_its_entry_and_one_that_is_dead_by_its_letter() {
    let redis = busy();
    assert_eq!(
        said(&traced(&redis, &["4000-1"]), "published"),
        ["published by shop"]
    );
    let dead = traced(&redis, &["d"]);
    assert_eq!(said(&dead, "died"), ["dead after 5 tries: poison: broken"]);
    assert_eq!(said(&dead, "published"), Vec::<String>::new());
    run(&redis, &["trace", "nobody"]).failed(1, &["nobody: nothing is known of it; --ledger"]);
    run(&redis, &["trace"]).failed(2, &["--subject"]);
}

#[test]
fn all_about_a_subject_or_from_a_source_is_followed_event_by_event() {
    let redis = busy();
    let events = |words: &[&str]| -> Vec<String> {
        let steps = traced(&redis, words);
        let published = steps.into_iter().filter(|(_, step, _)| step == "published");
        published.map(|(event, ..)| event).collect()
    };
    assert_eq!(events(&["--subject=shop-7"]), ["a", "b"]);
    assert_eq!(events(&["--source=shop"]), ["a", "b", "c", "4000-1"]);
    assert_eq!(
        events(&["--source=shop", "--since=3000-0"]),
        ["c", "4000-1"]
    );
    assert_eq!(
        events(&["--source=shop", "--subject=other", "--in=image"]),
        ["c"]
    );
    let text = run(&redis, &["trace", "--subject=shop-7"]).done().out;
    let (a, b) = (
        text.find("a image.make").unwrap(),
        text.find("b image.make").unwrap(),
    );
    assert!(a < b && text.contains("  held by w-1"), "{text}");
    let cut = run(&redis, &["trace", "--source=shop", "--limit=2"]).done();
    assert!(cut.err.contains("more than 2 events"), "{}", cut.err);
    run(&redis, &["trace", "--subject=shop-7", "--in=mail"])
        .failed(1, &["shop-7: nothing is known"]);
}

#[test]
fn what_operators_did_is_part_of_the_story() {
    let redis = busy();
    run(&redis, &["replay", "dead", "--id=6000-1", "--yes"]).done();
    run(
        &redis,
        &["delayed", "edit", "--id=c", "--due=2101-01-01", "--yes"],
    )
    .done();
    let replayed = traced(&redis, &["d"]);
    let told = said(&replayed, "published");
    assert_eq!(told, ["published, replayed 1 time, subject gone"]);
    assert_eq!(said(&replayed, "died"), Vec::<String>::new());
    let changed = traced(&redis, &["c"]);
    let operated = said(&changed, "operated");
    assert_eq!(operated.len(), 1);
    assert!(
        operated[0].starts_with("changed from delayed by "),
        "{operated:?}"
    );
    let steps = lines(&run(&redis, &["trace", "c", "--format=json"]).done().out);
    assert_eq!(
        names(&steps[0]),
        [
            "at", "event", "type", "step", "by", "stream", "entry", "said", "cause"
        ]
    );
    assert_eq!(steps[0]["type"], "image.make");
}

#[test]
fn what_the_runs_of_an_event_published_stands_under_it() {
    let redis = Redis::start();
    let event = |key: &str, id: &str, kind: &str, fields: &str| {
        add(&redis, key, id, kind, &json!(1), fields);
    };
    // In an order in which no child follows its parent.
    event(
        "cb:events:audit",
        "3000-1",
        "audit.note",
        "id note causationid mail",
    );
    event(
        "cb:events:mail",
        "2000-1",
        "mail.send",
        "id mail causationid 1000-1",
    );
    event(
        "cb:events:mail",
        "2000-2",
        "mail.send",
        "id other causationid 999-1",
    );
    event("cb:events:order", "1000-1", "order.make", "source shop");
    event(
        "cb:events:stock",
        "2500-1",
        "stock.take",
        "causationid 1000-1",
    );
    let traced = traced(&redis, &["1000-1"]);
    let published = traced.iter().filter(|(_, step, _)| step == "published");
    let events: Vec<&str> = published.map(|(event, ..)| event.as_str()).collect();
    assert_eq!(events, ["1000-1", "mail", "2500-1", "note"]);
    let told = run(&redis, &["trace", "1000-1"]).done().out;
    let titles: Vec<&str> = told.lines().filter(|line| !line.contains("cb:")).collect();
    let expected = [
        "1000-1 order.make",
        "  mail mail.send",
        "    note audit.note",
        "  2500-1 stock.take",
    ];
    assert_eq!(titles, expected, "{told}");
    let steps = lines(&run(&redis, &["trace", "mail", "--format=json"]).done().out);
    assert_eq!(steps[0]["cause"], "1000-1");
}

#[test]
fn events_that_name_each_other_as_their_cause_are_told_once() {
    let redis = Redis::start();
    let event = |id: &str, fields: &str| {
        add(
            &redis,
            "cb:events:image",
            id,
            "image.make",
            &json!(1),
            fields,
        );
    };
    event("1000-1", "id a causationid b");
    event("2000-1", "id b causationid a");
    let told = run(&redis, &["trace", "a"]).done().out;
    assert_eq!(told.matches("published").count(), 2, "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_became_of_events_is_shown_when_their_stream_has_forgotten_them() {
    let redis = Redis::start();
    let file = File::new("outcomes.db", "");
    let database = format!("--database-url=sqlite:{}", file.path());
    let args = [
        "worker",
        "--id=w-1",
        &database,
        "--ledger-outcomes=order=all",
    ];
    let mut command = convoke(&redis, &args);
    command.args(["--exec", "order.make=exit 65", "--exec", "order.ship=cat"]);
    let worker = Worker::start(&redis, "w-1", &mut command);
    for (kind, id) in [("order.make", "o-1"), ("order.ship", "o-2")] {
        let id = format!("--id={id}");
        let args = ["publish", kind, &id, "--subject=shop-7", "--source=shop"];
        run(&redis, &args).done();
    }
    let ledger = |words: &[&str]| {
        let all = [&["trace", "--ledger", "--format=json", &database], words].concat();
        run(&redis, &all)
    };
    let ran = |words: &[&str]| -> Vec<(Value, String)> {
        let steps = lines(&ledger(words).out);
        let ran = steps.into_iter().filter(|step| step["step"] == "ran");
        ran.map(|step| {
            (
                step["event"].clone(),
                step["said"].as_str().unwrap().to_owned(),
            )
        })
        .collect()
    };
    support::eventually("both are kept", || ran(&["--subject=shop-7"]).len() == 2);
    say(&redis, "DEL cb:events:order cb:dead:order cb:results:order");
    let failed = ran(&["o-1"]);
    assert_eq!(failed.len(), 1);
    assert!(failed[0].1.starts_with("attempt 1 by w-1, "), "{failed:?}");
    assert!(failed[0].1.contains(": dead, "), "{failed:?}");
    let by_source = ran(&["--source=shop", "--since=1h"]);
    assert_eq!(by_source.len(), 2);
    assert!(
        by_source
            .iter()
            .any(|(id, said)| *id == "o-2" && said.contains(": done"))
    );
    let text = run(&redis, &["trace", "o-2", "--ledger", &database])
        .done()
        .out;
    assert!(
        text.contains("published by shop, subject shop-7 (ledger)"),
        "{text}"
    );
    let status = run(&redis, &["ledger", "status", &database]).done().out;
    assert!(status.contains("2 kept, 0 lost"), "{status}");
    worker.stop().done();
}
