//! `convoke trace`.

use super::rig::{add, bury, deliver, lines, names, say};
use super::run;
use crate::support::Redis;
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
            "at", "event", "type", "step", "by", "stream", "entry", "said"
        ]
    );
    assert_eq!(steps[0]["type"], "image.make");
}
