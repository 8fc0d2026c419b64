//! What stays on the server for good, and why it does not grow.

use crate::batches::{batch, process};
use crate::rig::Rig;
use crate::support::{keys, name};
use convoke::client::publish::Outgoing;
use convoke::connect::connector::Connector;
use convoke::coordination::ballots::Ballots;
use convoke::coordination::ballots::ballot::Vote;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::gossip::{Observed, Opinion};
use convoke::coordination::instances::instance::{Beat, Registering};
use convoke::operator::replay::{Move, Operator};
use convoke::protocol::event::EntryId;
use convoke::settings::{RedisUrl, Settings};
use convoke::{Context, HandlerError, Policy, Worker};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

/// How many keys of a family there may be.
#[derive(Clone, Copy, PartialEq)]
enum Many {
    /// The one of that name.
    One,
    /// One for each domain that somebody named.
    Domain,
    /// One for each instance that is active.
    Active,
    /// One for each role that an active instance holds.
    Role,
}

/// The keys that do not go away by themselves: what they begin with, how many there may be, and what
/// bounds the size of each.
const FOR_GOOD: &[(&str, Many, &str)] = &[
    ("cb:broadcast", Many::One, "trimmed to the history"),
    (
        "cb:events:",
        Many::Domain,
        "trimmed to the history and what a group still needs",
    ),
    ("cb:results:", Many::Domain, "trimmed to the history"),
    (
        "cb:dead:",
        Many::Domain,
        "kept until an operator acts; `doctor` and `top` show it",
    ),
    (
        "cb:delayed:",
        Many::Domain,
        "each event leaves it when it is due",
    ),
    (
        "cb:inbox:",
        Many::Active,
        "trimmed; gone a day after its instance",
    ),
    (
        "cb:inbox_delayed:",
        Many::Active,
        "retries of its inbox; gone a day after its instance",
    ),
    (
        "cb:instance:",
        Many::Active,
        "roles, capabilities, metadata and report are bounded",
    ),
    ("cb:role:", Many::Role, "the active instances that hold it"),
    ("cb:state", Many::One, "three fields"),
    ("cb:instances:active", Many::One, "the active instances"),
    ("cb:instances:external", Many::One, "1,000"),
    ("cb:instances:suspect", Many::One, "the active instances"),
    (
        "cb:capabilities",
        Many::One,
        "1,024 for each active instance",
    ),
    ("cb:leader", Many::One, "five fields"),
    ("cb:partition", Many::One, "three fields"),
    ("cb:metrics", Many::One, "1,024 event types"),
    ("cb:domains", Many::One, "256"),
    ("cb:made:", Many::Domain, "a bit of each partition"),
    (
        "cb:domains:read",
        Many::One,
        "256: the name of the same on a cluster",
    ),
    (
        "cb:outbox",
        Many::One,
        "each event leaves it once it is in its stream",
    ),
    ("cb:moved", Many::One, "one field for each outbox"),
    ("cb:batches", Many::One, "1,000"),
    (
        "cb:tasks",
        Many::One,
        "10,000 that wait, 10,000 that are over, and the capacities of the active",
    ),
    (
        "cb:tasks:data",
        Many::One,
        "the same; 64 MiB of those that wait and 64 MiB of those that are over",
    ),
    ("cb:tasks:waiting", Many::One, "as the tasks that wait"),
    ("cb:tasks:heads", Many::One, "as the tasks that wait"),
    ("cb:tasks:queue", Many::One, "as the tasks that wait"),
    (
        "cb:tasks:held",
        Many::One,
        "the capacities of the active instances",
    ),
    ("cb:tasks:slots", Many::One, "the active instances"),
    ("cb:tasks:free", Many::One, "32 for each active instance"),
    ("cb:tasks:done", Many::One, "10,000"),
    ("cb:tasks:counts", Many::One, "ten fields"),
];

/// The domains that anything here is of; `inbox` is what the inboxes have instead.
const DOMAINS: [&str; 6] = ["number", "effect", "system", "task", "inbox", "gone"];

async fn ask<T: redis::FromRedisValue>(rig: &Rig, command: &str) -> T {
    let mut words = command.split(' ');
    let mut cmd = redis::cmd(words.next().unwrap());
    words.for_each(|word| _ = cmd.arg(word));
    let mut connection = rig.connection.clone();
    cmd.query_async(&mut connection).await.unwrap()
}

/// The keys without an end that are in no family of the list, or more than there may be.
async fn astray(rig: &Rig) -> Vec<String> {
    let mut connection = rig.connection.clone();
    let active: BTreeSet<String> = ask(rig, "ZRANGE cb:instances:active 0 -1").await;
    let mut astray = Vec::new();
    let mut cursor = 0u64;
    loop {
        let (next, keys): (u64, Vec<String>) = ask(rig, &format!("SCAN {cursor} COUNT 1000")).await;
        for key in keys {
            let mut left = redis::cmd("PTTL");
            let left: i64 = left.arg(&key).query_async(&mut connection).await.unwrap();
            // -2: it went meanwhile.
            if left != -1 {
                continue;
            }
            let known = FOR_GOOD.iter().find_map(|(family, many, _)| {
                let part = key.strip_prefix(family)?;
                (part.is_empty() == (*many == Many::One)).then_some((part, *many))
            });
            let fits = match known {
                None => false,
                Some((_, Many::One)) => true,
                Some((part, Many::Domain)) => DOMAINS.contains(&part),
                Some((part, Many::Active)) => active.contains(part),
                Some((_, Many::Role)) => {
                    let members: BTreeSet<String> = ask(rig, &format!("SMEMBERS {key}")).await;
                    members.is_subset(&active)
                }
            };
            if !fits {
                astray.push(key);
            }
        }
        cursor = next;
        if cursor == 0 {
            return astray;
        }
    }
}

fn builder(rig: &Rig, id: &str) -> convoke::worker::builder::Builder {
    let settings = Settings {
        id: id.to_owned(),
        capacity: 4,
        max_attempts: 2,
        ..rig.settings()
    };
    Worker::builder()
        .settings(settings)
        .handler("number.add", async |context: Context, n: u64| {
            context.publish("effect.made", &n)?;
            Ok::<_, HandlerError>(n)
        })
        .handler("number.fail", async |_: Context, _: u64| {
            Err::<u64, _>(HandlerError::internal("it fails"))
        })
        .handler_with(
            "number.seldom",
            async |_: Context, n: u64| Ok::<_, HandlerError>(n),
            Policy::new().rate_limit(1, Duration::from_millis(100)),
        )
}

/// Whatever publishers can do.
async fn publishes(rig: &Rig) {
    let client = &rig.client;
    for n in 0..20u64 {
        client
            .publish(&Outgoing::new("number.add", &n))
            .await
            .unwrap();
        client
            .publish(&Outgoing::new("number.seldom", &n))
            .await
            .unwrap();
        rig.ask("number.add", &n).await.unwrap();
    }
    for n in 0..3u64 {
        client
            .publish(&Outgoing::new("number.fail", &n))
            .await
            .unwrap();
        let once = Outgoing::new("number.add", &n).id("once").dedup(true);
        client.publish(&once).await.unwrap();
        let delay = Duration::from_millis(50 * n);
        let later = Outgoing::new("number.add", &n)
            .delay(delay)
            .id(format!("later-{n}"));
        client.publish(&later.dedup(true)).await.unwrap();
        let later = Outgoing::new("number.add", &n).delay(Duration::from_secs(3600));
        client.publish(&later).await.unwrap();
        // Whoever asks and goes away, or never was there.
        for ghost in ["reply", "inbox"] {
            // An inbox is in another slot than the event.
            if ghost == "inbox" && rig.redis.is_cluster() {
                continue;
            }
            let to = name("number", &format!("cb:{ghost}:ghost-{n}"));
            let asks = Outgoing::new("number.add", &n).reply_to(to);
            client.publish(&asks).await.unwrap();
        }
    }
    // Nobody has it, and what is no event.
    client
        .publish(&Outgoing::new("number.nobody", &1))
        .await
        .unwrap();
    rig.wait_for("cb:dead:number", 4).await;
    rig.wait_for("cb:results:number", 20).await;
}

async fn tasks(rig: &Rig) {
    let create = async |id: &str, kind: &str| {
        let task = json!({"task_id": id, "kind": kind, "payload": 1, "max_attempts": 2});
        rig.ask("task.create", &task).await.unwrap();
    };
    for (id, kind) in [("t-1", "number.add"), ("t-2", "number.fail")] {
        create(id, kind).await;
    }
    for id in ["t-3", "t-4"] {
        create(id, "number.nobody").await;
    }
    rig.ask("task.cancel", &json!({"task_id": "t-3"}))
        .await
        .unwrap();
    rig.wait_for_fact("task.completed", 1).await;
    rig.wait_for_fact("task.failed", 1).await;
    rig.wait_for_fact("task.cancelled", 1).await;
}

async fn replays(rig: &Rig) {
    let operator = Operator::new(keys(), "run-1", "me");
    let mut connection = rig.connection.clone();
    let keys = rig.client.keys();
    let moves = |entries: &[EntryId]| -> Vec<Move> {
        let again = |entry: &EntryId| Move {
            entry: *entry,
            fields: ["type", "number.add", "data", "\u{1}"]
                .map(Vec::from)
                .into(),
            pending: None,
        };
        entries.iter().map(again).collect()
    };
    let done: Vec<EntryId> = rig
        .entries("cb:events:number")
        .await
        .iter()
        .map(|e| e.id)
        .collect();
    let [events, letters] = ["cb:events:number", "cb:dead:number"].map(|key| name("number", key));
    let stream = keys.stream_name(&events).unwrap();
    let again = moves(&done[..3]);
    let range = operator.replay_range(&mut connection, &stream, &again, false);
    range.await.unwrap();
    let dead: Vec<EntryId> = rig
        .entries("cb:dead:number")
        .await
        .iter()
        .map(|e| e.id)
        .collect();
    let again = moves(&dead[..1]);
    let back = operator.replay_dead(&mut connection, &letters, &events, &again);
    back.await.unwrap();
    operator
        .drop_dead(&mut connection, &letters, &dead[1..2])
        .await
        .unwrap();
}

/// Instances come and go in each way; ballots end in each way.
async fn fleet(rig: &Rig) {
    let connector = Connector::new(&RedisUrl::new(rig.redis.url()), 2).unwrap();
    let keys = keys();
    let ballots = Ballots::new(connector.clone(), keys.clone());
    let own = |name: &str| Instances::of_process(connector.clone(), keys.clone(), name);
    let asked = Instances::new(connector.clone(), keys.clone());
    let mut registering = Registering::new("lost-0", ["lost-role"]);
    registering.capabilities = vec!["gone.kind".into()];
    for n in 0..4 {
        registering.id = format!("lost-{n}");
        registering.ttl_ms = 4000;
        let lost = own(&registering.id);
        lost.register(&registering).await.unwrap();
        lost.reads("workers", &registering.id, &registering.capabilities)
            .await
            .unwrap();
        let beat = Beat {
            metrics: Some(convoke::coordination::metrics::Report {
                process: registering.id.clone(),
                ..Default::default()
            }),
            ..Beat::new(&registering.id, None)
        };
        lost.heartbeat(&beat).await.unwrap();
        // A retry of what was in its inbox, and entries that it was handed.
        for queue in ["inbox", "inbox_delayed"] {
            let key = format!("cb:{queue}:{}", registering.id);
            match queue {
                "inbox" => ask::<String>(rig, &format!("XADD {key} * type task.assigned")).await,
                _ => ask::<i64>(rig, &format!("ZADD {key} 4000000000000 x"))
                    .await
                    .to_string(),
            };
        }
    }
    for n in 0..4 {
        registering.id = format!("external-{n}");
        registering.ttl_ms = 1000;
        asked.register(&registering).await.unwrap();
    }
    asked.unregister("external-0", None).await.unwrap();
    for (decision, second) in [("decided", 1), ("deadlocked", 2)] {
        for (voter, value) in [
            ("lost-0", 1),
            ("lost-1", second),
            ("lost-2", 3),
            ("lost-3", 3),
        ] {
            let vote = Vote {
                role: Some("lost-role".into()),
                ..Vote::new(decision, voter, vec![value])
            };
            ballots.vote(&vote).await.ok();
        }
    }
    let open = Vote::new("open", "lost-0", vec![1]);
    ballots.vote(&open).await.unwrap();
    let suspects: Observed = [("lost-1".to_owned(), Opinion::Suspect)].into();
    own("lost-0")
        .observe("lost-0", None, &suspects)
        .await
        .unwrap();
    rig.wait_for_fact("instance.lost", 7).await;
    rig.wait_for_fact("partition.detected", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_end_is_of_a_family_that_is_bounded() {
    let rig = Rig::new().await;
    let one = rig.start(builder(&rig, "w-1"));
    let two = rig.start(builder(&rig, "w-2"));
    rig.wait_for_fact("instance.registered", 2).await;
    publishes(&rig).await;
    tasks(&rig).await;
    for mode in ["exclusive", "fan_out"] {
        process(&rig, &batch(mode, mode, 0..20)).await;
    }
    replays(&rig).await;
    fleet(&rig).await;
    for kind in [
        "system.health",
        "system.get_state",
        "system.metrics",
        "system.discover",
    ] {
        rig.ask(kind, &json!({})).await.unwrap();
    }
    let nothing: Vec<String> = Vec::new();
    assert_eq!(astray(&rig).await, nothing);
    // Nothing that was is anywhere but in the history, for a while.
    two.stop().await;
    one.stop().await;
    rig.client.close().await;
    assert_eq!(astray(&rig).await, nothing);
    // What the test would see.
    let _: String = ask(&rig, "SET cb:limit:made:up x").await;
    let _: String = ask(&rig, "XADD cb:inbox:ghost * type made.up").await;
    let mut seen = astray(&rig).await;
    seen.sort();
    assert_eq!(seen, ["cb:inbox:ghost", "cb:limit:made:up"]);
}
