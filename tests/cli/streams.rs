//! `convoke streams` and `convoke pending`.

use super::rig::{add, deliver, lines, names, register, say};
use super::worker::Worker;
use super::{convoke, run};
use crate::support::{self, Redis, name};
use serde_json::json;

/// Two entries with a living instance, one with nobody, one not delivered, one dead letter.
async fn busy() -> Redis {
    let redis = Redis::start();
    let data = json!({"user": {"name": "ada"}, "n": 7});
    add(
        &redis,
        "cb:events:image",
        "1-1",
        "image.resize",
        &data,
        "subject s-1 id mine attempt 2 lasterror broken firstfailed 5",
    );
    add(
        &redis,
        "cb:events:image",
        "2-1",
        "image.resize",
        &json!(8),
        "",
    );
    deliver(&redis, "w-1");
    register(&redis, "w-1").await;
    add(
        &redis,
        "cb:events:image",
        "3-1",
        "image.crop",
        &json!("x"),
        "",
    );
    deliver(&redis, "w-9");
    add(
        &redis,
        "cb:events:image",
        "4-1",
        "image.crop",
        &json!(9),
        "",
    );
    say(&redis, "XADD cb:dead:image 5-1 type image.crop");
    let reply = name("image", "cb:reply:me");
    say(&redis, &format!("XADD {reply} 5-1 status ok"));
    say(&redis, "XADD other:events:image 5-1 type image.crop");
    say(&redis, "SET cb:events:string x");
    redis
}

#[tokio::test]
async fn streams_groups_and_consumers_are_counted() {
    let redis = busy().await;
    let out = run(&redis, &["streams", "--format", "json"]).done().out;
    let streams = lines(&out);
    let keys: Vec<&str> = streams
        .iter()
        .map(|s| s["stream"].as_str().unwrap())
        .collect();
    let there = ["cb:events:image", "cb:dead:image", "cb:broadcast"];
    assert_eq!(keys, there.map(|key| name("image", key)));
    let image = &streams[0];
    assert_eq!(
        names(image),
        [
            "stream",
            "kind",
            "length",
            "first_entry",
            "last_entry",
            "age_ms",
            "bytes",
            "delayed",
            "groups",
            "parked",
            "seats"
        ]
    );
    assert_eq!(
        (&image["kind"], &image["length"]),
        (&json!("events"), &json!(4))
    );
    assert_eq!(
        (&image["first_entry"], &image["last_entry"]),
        (&json!("1-1"), &json!("4-1"))
    );
    assert!(image["bytes"].as_u64().unwrap() > 100, "{image}");
    let group = &image["groups"][0];
    assert_eq!(
        names(group),
        [
            "group",
            "lag",
            "pending",
            "last_delivered",
            "oldest_entry",
            "oldest_ms",
            "consumers"
        ]
    );
    assert_eq!((&group["lag"], &group["pending"]), (&json!(1), &json!(3)));
    assert_eq!(
        (&group["last_delivered"], &group["oldest_entry"]),
        (&json!("3-1"), &json!("1-1"))
    );
    assert!(group["oldest_ms"].as_u64().unwrap() > 1_000_000_000_000);
    let consumers = group["consumers"].as_array().unwrap();
    assert_eq!(
        names(&consumers[0]),
        ["consumer", "alive", "pending", "idle_ms"]
    );
    let who = |n: usize| {
        (
            &consumers[n]["consumer"],
            &consumers[n]["alive"],
            &consumers[n]["pending"],
        )
    };
    assert_eq!(who(0), (&json!("w-1"), &json!(true), &json!(2)));
    assert_eq!(who(1), (&json!("w-9"), &json!(false), &json!(1)));

    let text = run(&redis, &["streams"]).done().out;
    let dead = name("image", "cb:dead:image");
    for part in ["w-1 (alive)", "w-9 (gone)", &dead, "PENDING"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains('\x1b') && !text.contains("reply"), "{text}");
    let all = run(&redis, &["streams", "--all"]).done().out;
    assert!(all.contains(&name("image", "cb:reply:me")), "{all}");
}

#[tokio::test]
async fn streams_are_named_as_people_do() {
    let redis = busy().await;
    let shown = |names: &[&str]| {
        let args = [&["streams", "--format=json"], names].concat();
        let streams = lines(&run(&redis, &args).done().out);
        let keys = streams
            .iter()
            .map(|s| s["stream"].as_str().unwrap().to_owned());
        keys.collect::<Vec<_>>().join(" ")
    };
    let (events, dead) = (
        name("image", "cb:events:image"),
        name("image", "cb:dead:image"),
    );
    let both = format!("{events} {dead}");
    assert_eq!(shown(&["image"]), events);
    assert_eq!(shown(&["dead:image", &events]), both);
    assert_eq!(shown(&["*:image"]), both);
    assert_eq!(shown(&["reply:*"]), name("image", "cb:reply:me"));
    run(&redis, &["streams", "nothing"])
        .done()
        .failed(0, &["no such streams"]);
    run(&redis, &["streams", "other:events:image"]).failed(2, &["no stream"]);
    run(&redis, &["pending", "--stream", "dead:image"]).failed(2, &["events, inbox"]);
}

#[tokio::test]
async fn pending_entries_are_shown_decoded_with_their_owners() {
    let redis = busy().await;
    let out = run(&redis, &["pending", "--format", "json"]).done().out;
    let pending = lines(&out);
    assert_eq!(pending.len(), 3);
    assert_eq!(
        names(&pending[0]),
        [
            "stream",
            "group",
            "entry",
            "type",
            "id",
            "subject",
            "source",
            "owner",
            "owner_alive",
            "idle_ms",
            "running_ms",
            "age_ms",
            "deliveries",
            "attempt",
            "replays",
            "last_error",
            "first_failed_at",
            "deleted",
            "data"
        ]
    );
    let first = &pending[0];
    for (field, value) in [
        ("stream", json!(name("image", "cb:events:image"))),
        ("group", json!("workers")),
        ("entry", json!("1-1")),
        ("type", json!("image.resize")),
        ("id", json!("mine")),
        ("subject", json!("s-1")),
        ("owner", json!("w-1")),
        ("owner_alive", json!(true)),
        ("deliveries", json!(1)),
        ("attempt", json!(2)),
        ("last_error", json!("broken")),
        ("first_failed_at", json!(5)),
        ("deleted", json!(false)),
        ("data", json!({"user": {"name": "ada"}, "n": 7})),
    ] {
        assert_eq!(first[field], value, "{field}");
    }
    assert_eq!(pending[2]["owner_alive"], false);
    let text = run(&redis, &["pending"]).done();
    for part in [
        "w-1",
        "w-9 (gone)",
        "image.resize",
        "broken",
        r#"{"user":{"name":"ada"},"n":7}"#,
    ] {
        assert!(text.out.contains(part), "{part}: {}", text.out);
    }
    assert!(
        text.err
            .contains("3 pending entries, 1 of an owner that is gone"),
        "{}",
        text.err
    );
}

#[tokio::test]
async fn pending_entries_are_chosen() {
    let redis = busy().await;
    say(
        &redis,
        "XCLAIM cb:events:image workers w-9 0 3-1 RETRYCOUNT 4 IDLE 90000 JUSTID",
    );
    let shown = |args: &[&str]| {
        let args = [&["pending", "--format=json"], args].concat();
        let pending = lines(&run(&redis, &args).done().out);
        let ids = pending
            .iter()
            .map(|p| p["entry"].as_str().unwrap().to_owned());
        ids.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(shown(&[]), "1-1 2-1 3-1");
    assert_eq!(shown(&["--idle", "1m"]), "3-1");
    assert_eq!(shown(&["--min-deliveries", "3"]), "3-1");
    assert_eq!(shown(&["--consumer", "w-1"]), "1-1 2-1");
    assert_eq!(shown(&["--type", "*.resize"]), "1-1 2-1");
    assert_eq!(shown(&["--where", "user.name=ada"]), "1-1");
    assert_eq!(shown(&["--id", "2-1,3-1"]), "2-1 3-1");
    assert_eq!(shown(&["--since", "2-0", "--until", "3-0"]), "2-1");
    assert_eq!(shown(&["--limit", "2"]), "1-1 2-1");
    assert_eq!(shown(&["--stream", "image", "--group", "nobodys"]), "");
    assert_eq!(shown(&["--stream", "mail"]), "");
    for wrong in [
        ["--since", "yesterday"],
        ["--where", "=1"],
        ["--idle", "x"],
        ["--id", "x"],
    ] {
        run(&redis, &[&["pending"], &wrong[..]].concat()).failed(2, &[wrong[1]]);
    }
}

#[tokio::test]
async fn what_was_deleted_or_is_no_messagepack_is_told() {
    let redis = Redis::start();
    for id in ["1-1", "2-1"] {
        say(
            &redis,
            &format!("XADD cb:events:image {id} type a.\x1b[2J data \x02\x01"),
        );
    }
    deliver(&redis, "w-\x1b[m");
    say(&redis, "XDEL cb:events:image 1-1");
    let pending = lines(&run(&redis, &["pending", "--format=json"]).done().out);
    assert_eq!(
        (&pending[0]["deleted"], &pending[0]["data"]),
        (&json!(true), &json!(null))
    );
    assert_eq!(pending[1]["undecodable"]["hex"], "0201");
    let text = run(&redis, &["pending"]).done().out;
    assert!(
        text.contains("deleted from its stream") && text.contains("0x0201"),
        "{text}"
    );
    assert!(!text.contains('\x1b'), "{text:?}");
}

#[tokio::test]
async fn more_than_a_page_is_listed_once_each() {
    let redis = Redis::start();
    let mut pipe = redis::pipe();
    for n in 0..1203 {
        pipe.cmd("XADD")
            .arg("cb:events:image")
            .arg("*")
            .arg(&["type", "a.b", "n"])
            .arg(n)
            .ignore();
    }
    pipe.query::<()>(&mut redis.connect()).unwrap();
    deliver(&redis, "w-1");
    let pending = lines(&run(&redis, &["pending", "--format=json"]).done().out);
    let ids: std::collections::HashSet<&str> = pending
        .iter()
        .map(|p| p["entry"].as_str().unwrap())
        .collect();
    assert_eq!((pending.len(), ids.len()), (1203, 1203));
}

#[test]
fn what_runs_for_long_is_shown_though_it_renews_its_lease() {
    let redis = Redis::start();
    let mut command = convoke(&redis, &["worker", "--id=w-1", "--exec=slow.nap=sleep 600"]);
    let command = command.args([
        "--heartbeat-ttl=3s",
        "--drain-timeout=100ms",
        "--concurrency=1",
    ]);
    let worker = Worker::start(&redis, "w-1", command);
    let entry = run(&redis, &["publish", "slow.nap"]).done().out;
    let shown = |least: &str| {
        let args = ["pending", "--format=json", "--running", least];
        lines(&run(&redis, &args).done().out)
    };
    support::eventually("it runs for a second", || !shown("1s").is_empty());
    let runs = shown("1s");
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0]["entry"], entry.trim());
    assert!(
        runs[0]["running_ms"].as_u64().unwrap() >= 1000,
        "{}",
        runs[0]
    );
    assert!(shown("1h").is_empty());
    // Its worker tells it with a pulse.
    support::eventually("it is seen to run for a second", || {
        let words = ["top", "--once", "--interval=100ms", "--format=json"];
        let look = run(&redis, &words).done().json();
        let mut handlers = look["handlers"].as_array().unwrap().iter();
        let nap = handlers.find(|handler| handler["type"] == "slow.nap");
        nap.is_some_and(|nap| nap["running"] == 1 && nap["oldest_ms"].as_u64() >= Some(1000))
    });
    worker.stop();
}
