//! `convoke domain`, and what `doctor` says of partitions.

use super::rig::{lines, names, say, send};
use super::{convoke, end, run};
use crate::support::{self, Redis};
use convoke::streams::hold::Held;
use serde_json::{Value, json};

/// A command that is set to have two partitions.
fn tagged(redis: &Redis, words: &[&str]) -> super::Ended {
    end(convoke(redis, words).env("CONVOKE_PARTITIONS", "2"))
}

fn told(redis: &Redis, words: &[&str]) -> Vec<Value> {
    let words = [words, &["--format", "json"]].concat();
    lines(&tagged(redis, &words).done().out)
}

#[test]
fn domains_are_split_listed_and_shown() {
    let redis = Redis::start();
    assert_eq!(told(&redis, &["domain", "list"]), [] as [Value; 0]);
    // Who publishes first says how many there are.
    tagged(&redis, &["publish", "image.made", "--subject", "a"]).done();
    let listed = told(&redis, &["domain", "list"]);
    assert_eq!(
        names(&listed[0]),
        [
            "domain",
            "partitions",
            "order",
            "version",
            "before",
            "at",
            "by"
        ]
    );
    assert_eq!(
        (&listed[0]["partitions"], &listed[0]["version"]),
        (&json!(2), &json!(1))
    );
    let set = tagged(&redis, &["domain", "set", "image", "--partitions", "8"]);
    assert_eq!(set.done().out, "image: 8 partitions, version 2\n");
    let shown = told(&redis, &["domain", "show", "image"]);
    assert_eq!(shown[0]["before"][0]["partitions"], 2);
    let each = shown[0]["each"].as_array().unwrap();
    assert_eq!(each.len(), 8);
    let entries: u64 = each
        .iter()
        .map(|one| one["entries"].as_u64().unwrap())
        .sum();
    assert_eq!(entries, 1);
    // Nobody reads what lies in the old one.
    let keys = convoke::protocol::keys::Keys::tagged("cb", 2).unwrap();
    let old = usize::from(keys.partition_of("image", "a"));
    assert_eq!(each[old]["waits_for"], Value::Null);
    for new in [old + 2, old + 4, old + 6] {
        assert_eq!(each[new]["waits_for"], json!(old));
    }
    let table = tagged(&redis, &["domain", "show", "image"]).done().out;
    assert!(table.contains(&format!("after {old}")), "{table}");
    let table = tagged(&redis, &["domain", "list"]).done().out;
    assert!(table.contains("image") && table.contains("none"), "{table}");
}

#[test]
fn what_cannot_be_is_refused_with_why() {
    let redis = Redis::start();
    tagged(&redis, &["publish", "image.made"]).done();
    for (words, code, why) in [
        (
            &["domain", "set", "image", "--partitions", "3"][..],
            2,
            "by a factor",
        ),
        (
            &["domain", "set", "image", "--partitions", "1"],
            2,
            "can only grow",
        ),
        (
            &["domain", "set", "system", "--partitions", "2"],
            2,
            "control plane",
        ),
        (
            &["domain", "show", "mail"],
            1,
            "nobody has used the domain mail",
        ),
        (
            &[
                "domain",
                "set",
                "image",
                "--partitions",
                "4",
                "--version",
                "7",
            ],
            1,
            "at version 1",
        ),
    ] {
        tagged(&redis, words).failed(code, &[why]);
    }
    if support::is_cluster() {
        // It has no plain names.
        let names = run(&redis, &["domain", "list", "--format", "json"]).done();
        assert_eq!(names.json()["partitions"], 2);
        return;
    }
    // The number that is to be is not the one that this command is set to have.
    let plain = run(&redis, &["domain", "set", "image", "--partitions", "4"]);
    plain.failed(2, &["plain names"]);
    run(&redis, &["domain", "list"]).failed(2, &["plain names"]);
}

/// What the check says.
fn examined(redis: &Redis, partitions: &str) -> Vec<(String, String)> {
    let mut command = convoke(redis, &["doctor", "--format", "json"]);
    let ended = end(command.env("CONVOKE_PARTITIONS", partitions));
    let found = lines(&ended.out).into_iter();
    let found = found.filter(|finding| finding["check"] == "partitions");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    found
        .map(|finding| (text(&finding["status"]), text(&finding["what"])))
        .collect()
}

#[test]
fn doctor_names_who_counts_with_another_number() {
    let redis = Redis::start();
    assert_eq!(examined(&redis, "0")[0].0, "fine");
    tagged(&redis, &["publish", "image.made", "--subject", "a"]).done();
    assert_eq!(examined(&redis, "2"), examined(&redis, "9"));
    assert_eq!(examined(&redis, "2")[0].0, "fine");
    // A cluster has no plain names.
    if !support::is_cluster() {
        let plain = examined(&redis, "0");
        assert_eq!(plain[0].0, "danger");
        assert!(plain[0].1.contains("plain names"), "{plain:?}");
    }
    // Somebody who is set to have 16 and does not look.
    say(
        &redis,
        "XADD {cb:image:13}:events * type image.made subject b",
    );
    let unread = examined(&redis, "2");
    assert_eq!(unread[0].0, "danger");
    assert!(
        unread[0]
            .1
            .contains("{cb:image:13}:events is read by nobody"),
        "{unread:?}"
    );
    say(&redis, "DEL {cb:image:13}:events");
    let keys = convoke::protocol::keys::Keys::tagged("cb", 2).unwrap();
    let foreign = 1 - keys.partition_of("image", "b");
    say(
        &redis,
        &format!("XADD {{cb:image:{foreign}}}:events * type image.made subject b"),
    );
    let astray = examined(&redis, "2");
    assert!(
        astray[0].1.contains("another partition than their own"),
        "{astray:?}"
    );
    say(&redis, "DEL {cb:image:0}:events {cb:image:1}:events");
    say(&redis, "HSET {cb}:domains mail nonsense");
    let odd = examined(&redis, "2");
    assert!(odd[0].1.contains("mail"), "{odd:?}");
}

/// Stores an event of a subject of partition 0 of 2, twelve minutes before now, and what the bus says of the domain: how
/// many partitions there are, and were until how many minutes ago. The event's time.
fn grown(redis: &Redis, partitions: u16, before: &[(u16, u64)]) -> u64 {
    let keys = convoke::protocol::keys::Keys::tagged("cb", 2).unwrap();
    let mut subjects = (0..).map(|number| format!("s{number}"));
    let subject = subjects.find(|it| keys.partition_of("image", it) == 0);
    let time: (u64, u64) = redis::cmd("TIME").query(&mut redis.connect()).unwrap();
    let ago = |minutes: u64| (time.0 - 60 * minutes) * 1000;
    let added = ago(12);
    let event = format!("type image.made subject {}", subject.unwrap());
    say(
        redis,
        &format!("XADD {{cb:image:0}}:events {added}-1 {event}"),
    );
    let was = before
        .iter()
        .map(|(partitions, minutes)| json!({"partitions": partitions, "until": ago(*minutes)}));
    let fact = json!({
        "version": before.len() + 1, "partitions": partitions, "order": "none",
        "at": ago(before.last().unwrap().1), "by": "ann", "before": was.collect::<Vec<_>>(),
    });
    let mut set = redis::cmd("HSET");
    set.arg("{cb}:domains").arg("image");
    set.arg(rmp_serde::to_vec_named(&fact).unwrap());
    set.exec(&mut redis.connect()).unwrap();
    added
}

#[test]
fn doctor_names_what_is_waited_for_two_changes_back() {
    let redis = Redis::start();
    grown(&redis, 8, &[(2, 10), (4, 8)]);
    let waits = examined(&redis, "2");
    for part in ["{cb:image:6}:events has", "in {cb:image:0}:events"] {
        assert!(waits[0].1.contains(part), "{part}: {waits:?}");
    }
    assert!(!waits[0].1.contains("in {cb:image:2}"), "{waits:?}");
}

#[test]
fn doctor_names_a_partition_that_waits_for_long_since_when_and_for_what() {
    let redis = Redis::start();
    let added = grown(&redis, 4, &[(2, 10)]);
    let waits = examined(&redis, "2");
    assert_eq!(
        (waits.len(), waits[0].0.as_str()),
        (1, "warning"),
        "{waits:?}"
    );
    for part in [
        "{cb:image:2}:events has waited for 10",
        "for what was in {cb:image:0}:events",
        "nobody reads it",
    ] {
        assert!(waits[0].1.contains(part), "{part}: {waits:?}");
    }
    assert!(!waits[0].1.contains("{cb:image:3}"), "{waits:?}");
    say(&redis, "XGROUP CREATE {cb:image:0}:events workers 0");
    say(
        &redis,
        "XREADGROUP GROUP workers w-1 STREAMS {cb:image:0}:events >",
    );
    let waits = examined(&redis, "2");
    assert!(
        waits[0]
            .1
            .contains("1 are read and not settled, 0 are not read"),
        "{waits:?}"
    );
    say(
        &redis,
        &format!("XACK {{cb:image:0}}:events workers {added}-1"),
    );
    assert_eq!(examined(&redis, "2")[0].0, "fine");
}

#[test]
fn a_domain_gets_an_order_and_who_owns_what_is_shown() {
    let redis = Redis::start();
    let set = ["domain", "set", "image", "--order", "subject"];
    let said = tagged(&redis, &set).done().out;
    assert_eq!(said, "image: 2 partitions, subjects in order, version 2\n");
    tagged(&redis, &["domain", "set", "image"]).failed(2, &["--order"]);
    assert_eq!(told(&redis, &["domain", "list"])[0]["order"], "subject");
    let time: (u64, u64) = redis::cmd("TIME").query(&mut redis.connect()).unwrap();
    let (since, till) = (time.0 * 1000 - 60_000, time.0 * 1000 + 600_000);
    let owner = format!("instance w-1 process p ttl 900000 since {since} till {till}");
    say(
        &redis,
        &format!("HSET {{cb:image:0}}:owner:workers {owner}"),
    );
    say(&redis, "SET {cb:image:0}:fence:workers 7");
    say(&redis, "HSET {cb:image:0}:held:workers 1-1 x 1-2 x");
    let shown = told(&redis, &["domain", "show", "image"]);
    let each = &shown[0]["each"];
    let (owner, lease) = (&each[0]["owner"], each[0]["owner"]["lease_ms"].as_u64());
    assert_eq!(
        (&owner["instance"], &owner["since"]),
        (&json!("w-1"), &json!(since))
    );
    assert!(lease > Some(0) && lease <= Some(601_000), "{lease:?}");
    assert_eq!((&each[0]["held"], &each[1]["held"]), (&json!(2), &json!(0)));
    assert_eq!(each[1]["owner"], Value::Null);
    let table = tagged(&redis, &["domain", "show", "image"]).done().out;
    assert!(table.contains("w-1") && table.contains("nobody"), "{table}");
    let found = examined(&redis, "2");
    let unowned = "nobody owns {cb:image:1}:events";
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].0 == "danger" && found[0].1 == unowned, "{found:?}");
    say(&redis, "DEL {cb:image:0}:fence:workers");
    let lapsed = format!("instance w-2 process p ttl 9000 since {since} till {since}");
    say(
        &redis,
        &format!("HSET {{cb:image:1}}:owner:workers {lapsed}"),
    );
    let found = examined(&redis, "2");
    assert!(found[0].1.contains("w-2 let it lapse "), "{found:?}");
    assert!(
        found[1].1.contains("{cb:image:0}:fence:workers"),
        "{found:?}"
    );
    let unset = ["domain", "set", "image", "--order", "none"];
    let said = tagged(&redis, &unset).done().out;
    assert_eq!(said, "image: 2 partitions, version 3\n");
    assert_eq!(examined(&redis, "2")[0].0, "fine");
}

#[test]
fn subjects_that_are_held_up_are_named_with_why_and_since_when() {
    let redis = Redis::start();
    let set = [
        "domain",
        "set",
        "bank",
        "--order",
        "subject",
        "--partitions",
        "2",
    ];
    tagged(&redis, &set).done();
    assert_eq!(
        told(&redis, &["domain", "show", "bank", "--held"]),
        [] as [Value; 0]
    );
    let partition = convoke::protocol::keys::Keys::tagged("cb", 2)
        .unwrap()
        .partition_of("bank", "ada");
    let key = |kind: &str| format!("{{cb:bank:{partition}}}:{kind}");
    let (events, held) = (key("events"), key("held:workers"));
    for entry in ["1-1", "2-1"] {
        let event = format!("XADD {events} {entry} type bank.book subject ada id b-{entry}");
        say(&redis, &event);
    }
    say(&redis, &format!("XGROUP CREATE {events} workers 0"));
    let note = |code: &str| Held {
        attempt: 3,
        due: 1_900_000_000_000,
        deliveries: 1,
        code: code.into(),
        message: String::new(),
    };
    let failed = note("internal").saying("no bank").encode();
    // What has not begun waits behind the other one; the last is no note.
    let behind = note("").encode();
    for (entry, note) in [("1-1", &failed[..]), ("2-1", &behind), ("3-1", b"odd")] {
        send(&redis, &[b"HSET", held.as_bytes(), entry.as_bytes(), note]);
    }
    let owner = "instance w-1 process p till 1900000000000 ttl 10000 since 5";
    say(&redis, &format!("HSET {} {owner}", key("owner:workers")));

    let shown = told(&redis, &["domain", "show", "bank", "--held"]);
    assert_eq!(shown.len(), 1, "{shown:?}");
    for (name, value) in [
        ("partition", json!(partition)),
        ("stream", json!(events)),
        ("subject", json!("ada")),
        ("entry", json!("1-1")),
        ("id", json!("b-1-1")),
        ("type", json!("bank.book")),
        ("attempt", json!(3)),
        ("due_at", json!(1_900_000_000_000u64)),
        ("code", json!("internal")),
        ("message", json!("no bank")),
        ("deleted", json!(false)),
    ] {
        assert_eq!(shown[0][name], value, "{name}");
    }
    let table = tagged(&redis, &["domain", "show", "bank", "--held"]).done();
    assert!(table.out.contains("internal: no bank"), "{}", table.out);

    let streams = told(&redis, &["streams", "bank"]);
    let here = streams.iter().find(|one| one["stream"] == events.as_str());
    let group = &here.unwrap()["groups"][0];
    assert_eq!(
        (&group["owner"]["instance"], &group["held"]),
        (&json!("w-1"), &json!(3))
    );
    let table = tagged(&redis, &["streams", "bank"]).done().out;
    assert!(table.contains("workers (owner w-1, 3 held)"), "{table}");

    let found = told_whatever(&redis, &["doctor"]);
    let found = found.iter().find(|one| one["check"] == "held").unwrap();
    assert_eq!(found["status"], "warning", "{found}");
    let what = found["what"].as_str().unwrap();
    assert!(
        what.contains("ada") && what.contains("internal: no bank"),
        "{what}"
    );
}

/// The lines of a command, however it ends.
fn told_whatever(redis: &Redis, words: &[&str]) -> Vec<Value> {
    let words = [words, &["--format", "json"]].concat();
    lines(&tagged(redis, &words).out)
}
