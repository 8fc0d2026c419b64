//! What a publisher learns, whatever happens to the server: stored, rejected or unknown.

use crate::proxy::Proxy;
use crate::setup::{Bus, connector, text};
use crate::support::{Redis, signal};
use convoke::bus::client::{Client, ClientOptions};
use convoke::bus::keys::Keys;
use convoke::bus::publish::{Doubt, Outgoing, PublishError, Published};
use std::time::Duration;

const STREAM: &str = "cb:events:image";

pub fn options() -> ClientOptions {
    ClientOptions {
        name: Some("me".into()),
        patience: Duration::ZERO,
        ..ClientOptions::default()
    }
}

pub fn client_at(url: &str, options: ClientOptions) -> Client {
    Client::new(connector(url), Keys::new("cb").unwrap(), options).unwrap()
}

fn client(bus: &Bus) -> Client {
    client_at(&bus.redis.url(), options())
}

pub fn event(id: &str) -> Outgoing {
    Outgoing::new("image.made", &7).id(id)
}

fn code(outcome: Result<Published, PublishError>) -> String {
    match outcome {
        Err(PublishError::Rejected { code, reason }) => code.unwrap_or(reason),
        other => panic!("not rejected: {other:?}"),
    }
}

fn is_unknown(outcome: &Result<Published, PublishError>) -> bool {
    matches!(
        outcome,
        Err(PublishError::Unknown {
            source: Doubt::NoAnswer(_),
            ..
        })
    )
}

#[tokio::test]
async fn a_stored_event_is_on_its_stream_as_it_was_given() {
    let mut bus = Bus::start().await;
    let stored = client(&bus)
        .publish(&event("e0").subject("s").field("x", "y"))
        .await
        .unwrap();
    let id = stored.entry().unwrap().to_string();
    let found: redis::Value = bus.ask(&format!("XRANGE {STREAM} {id} {id}")).await;
    let found = convoke::bus::read::entries_of(found).unwrap();
    let found = crate::setup::fields(&found[0]);
    assert_eq!(text(&found, "type"), "image.made");
    assert_eq!(
        (text(&found, "id"), text(&found, "subject")),
        ("e0".into(), "s".into())
    );
    assert_eq!(
        (text(&found, "x"), &found["data"][..]),
        ("y".into(), &[7][..])
    );
}

#[tokio::test]
async fn what_the_server_refuses_is_rejected_and_certainly_not_stored() {
    let mut bus = Bus::start().await;
    let client = client(&bus);
    let kinds = [
        event("plain"),
        event("once").dedup(true),
        event("later").delay(Duration::from_secs(1)),
        event("once-later")
            .dedup(true)
            .delay(Duration::from_secs(1)),
    ];
    bus.run("CONFIG SET maxmemory 1").await;
    for event in &kinds {
        assert_eq!(code(client.publish(event).await), "OOM", "{event:?}");
    }
    for outcome in client.publish_many(&kinds).await {
        assert_eq!(code(outcome), "OOM");
    }
    bus.run("CONFIG SET maxmemory 0").await;
    bus.run("CONFIG SET min-replicas-to-write 1").await;
    for event in &kinds {
        assert_eq!(code(client.publish(event).await), "NOREPLICAS", "{event:?}");
    }
    bus.run("CONFIG SET min-replicas-to-write 0").await;
    bus.run(&format!("DEL {STREAM}")).await;
    bus.run(&format!("SET {STREAM} text")).await;
    bus.run("SET cb:delayed:image text").await;
    for event in &kinds {
        assert_eq!(code(client.publish(event).await), "WRONGTYPE", "{event:?}");
    }
    bus.run(&format!("DEL {STREAM} cb:delayed:image")).await;
    let keys: Vec<String> = bus.ask("KEYS *").await;
    assert!(keys.is_empty(), "{keys:?}");
    // None of the refusals was remembered as a publish.
    for outcome in client.publish_many(&kinds).await {
        assert!(!outcome.unwrap().is_duplicate());
    }
    assert_eq!(bus.entries(STREAM).await.len(), 2);
}

#[tokio::test]
async fn a_replica_rejects_and_the_client_finds_the_primary_again() {
    let mut bus = Bus::start().await;
    let client = client(&bus);
    client.publish(&event("e0")).await.unwrap();
    let other = Redis::start();
    bus.run(&format!("REPLICAOF 127.0.0.1 {}", other.port()))
        .await;
    assert_eq!(code(client.publish(&event("e1")).await), "READONLY");
    let refused = client.publish(&event("e2").dedup(true)).await;
    assert!(code(refused).contains("replica"));
    bus.run("REPLICAOF NO ONE").await;
    client.publish(&event("e3").dedup(true)).await.unwrap();
}

#[tokio::test]
async fn a_server_that_stands_still_leaves_it_unknown_and_the_same_id_is_stored_once() {
    let mut bus = Bus::start().await;
    let client = client(&bus);
    let once = event("e0").dedup(true);
    client.publish(&event("first").dedup(true)).await.unwrap();
    signal(bus.redis.pid(), "STOP");
    let outcome = client.publish(&once).await;
    signal(bus.redis.pid(), "CONT");
    assert!(is_unknown(&outcome), "{outcome:?}");
    client.publish(&once).await.unwrap();
    assert!(client.publish(&once).await.unwrap().is_duplicate());
    assert_eq!(bus.entries(STREAM).await.len(), 2);
}

#[tokio::test]
async fn a_lost_answer_is_unknown_and_with_dedup_the_client_repeats_it_by_itself() {
    let mut bus = Bus::start().await;
    let proxy = Proxy::to(bus.redis.port()).await;
    let client = client_at(&proxy.url(), options());
    client.publish(&event("first").dedup(true)).await.unwrap();
    let later = event("later").delay(Duration::from_secs(9));
    for event in [event("plain"), event("once").dedup(true), later] {
        proxy.cut_next_answer();
        let outcome = client.publish(&event).await;
        assert!(proxy.has_cut() && is_unknown(&outcome), "{outcome:?}");
        // The connection is replaced.
        client.publish(&Outgoing::bare("text.made")).await.unwrap();
    }
    let twice = [event("many-1"), event("many-2").dedup(true)];
    proxy.cut_next_answer();
    assert!(client.publish_many(&twice).await.iter().all(is_unknown));
    let patient = client_at(
        &proxy.url(),
        ClientOptions {
            patience: Duration::from_secs(30),
            ..options()
        },
    );
    patient.publish(&event("warm").dedup(true)).await.unwrap();
    proxy.cut_next_answer();
    let outcome = patient.publish(&event("again").dedup(true)).await.unwrap();
    assert!(proxy.has_cut() && outcome.is_duplicate());
    let entries = bus.entries(STREAM).await;
    let mut ids: Vec<String> = entries.iter().map(|e| text(e, "id")).collect();
    ids.sort();
    assert_eq!(
        ids,
        [
            "again", "first", "many-1", "many-2", "once", "plain", "warm"
        ]
    );
}

#[tokio::test]
async fn within_the_window_an_id_is_stored_once_however_often_and_at_once() {
    let mut bus = Bus::start().await;
    let client = client(&bus);
    let once = event("e0").dedup(true);
    let publishes = (0..20).map(|_| client.publish(&once));
    let outcomes = futures_util::future::join_all(publishes).await;
    let stored: Vec<Published> = outcomes.into_iter().map(Result::unwrap).collect();
    assert_eq!(stored.iter().filter(|s| !s.is_duplicate()).count(), 1);
    assert!(stored.iter().all(|s| s.entry() == stored[0].entry()));
    // Another domain has ids of its own; so has what is scheduled, for its place.
    let other = Outgoing::bare("text.made").id("e0").dedup(true);
    assert!(!client.publish(&other).await.unwrap().is_duplicate());
    let later = event("e1").dedup(true).at(9_000_000_000_000);
    let due = |outcome| match outcome {
        Published::Scheduled { due_ms, duplicate } => (due_ms, duplicate),
        stored => panic!("{stored:?}"),
    };
    let first = client.publish(&later).await.unwrap();
    let second = client.publish(&later).await.unwrap();
    assert_eq!(due(first), (9_000_000_000_000, false));
    assert_eq!(due(second), (9_000_000_000_000, true));
    assert_eq!(bus.ask::<u32>("ZCARD cb:delayed:image").await, 1);
    // After the window it is another event.
    bus.run("DEL cb:dedup:image:e0").await;
    assert!(!client.publish(&once).await.unwrap().is_duplicate());
    assert_eq!(bus.entries(STREAM).await.len(), 2);
    let ttl: u64 = bus.ask("PTTL cb:dedup:image:e0").await;
    assert!((3_500_000..=3_600_000).contains(&ttl));
}

#[tokio::test]
async fn many_events_keep_their_order_and_each_its_own_outcome() {
    let mut bus = Bus::start().await;
    let client = client(&bus);
    bus.run("SET cb:events:odd text").await;
    let mut events: Vec<Outgoing> = (0..1500).map(|n| event(&format!("e{n}"))).collect();
    events[3] = Outgoing::bare("odd.one");
    events[700] = Outgoing::bare("no type");
    events[701] = event("e3").dedup(true);
    events[702] = event("e3").dedup(true);
    let outcomes = client.publish_many(&events).await;
    assert_eq!(outcomes.len(), events.len());
    for (at, outcome) in outcomes.into_iter().enumerate() {
        match at {
            3 => assert_eq!(code(outcome), "WRONGTYPE"),
            700 => assert!(code(outcome).contains("event type")),
            702 => assert!(outcome.unwrap().is_duplicate()),
            _ => assert!(!outcome.unwrap().is_duplicate()),
        }
    }
    let entries = bus.entries(STREAM).await;
    let ids: Vec<String> = entries.iter().map(|e| text(e, "id")).collect();
    let left_out = [3, 700, 701, 702];
    let mut wanted: Vec<String> = (0..1500)
        .filter(|n| !left_out.contains(n))
        .map(|n| format!("e{n}"))
        .collect();
    wanted.insert(699, "e3".into());
    assert_eq!(ids, wanted);
}

#[tokio::test]
async fn without_replicas_a_confirmed_publish_is_stored_but_unknown() {
    let mut bus = Bus::start().await;
    let client = client(&bus);
    let wait = Duration::from_millis(50);
    for event in [
        event("e0").confirm(1, wait),
        event("e1").dedup(true).confirm(1, wait),
    ] {
        match client.publish(&event).await {
            Err(PublishError::Unknown {
                source:
                    Doubt::Unconfirmed {
                        published,
                        confirmed,
                        wanted,
                    },
                ..
            }) => {
                assert!(published.entry().is_some());
                assert_eq!((confirmed, wanted), (0, 1));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bus.entries(STREAM).await.len(), 2);
}

#[tokio::test]
async fn a_confirmed_publish_is_on_the_replica() {
    let bus = Bus::start().await;
    let replica = Redis::with(&[
        "--save",
        "",
        "--replicaof",
        "127.0.0.1",
        &bus.redis.port().to_string(),
    ]);
    let client = client(&bus);
    let event = event("e0")
        .dedup(true)
        .confirm(1, Duration::from_millis(200));
    let mut confirmed = client.publish(&event).await;
    // Until the replica has caught up; a repeated publish of the same id is confirmed as well.
    for _ in 0..100 {
        if confirmed.is_ok() {
            break;
        }
        confirmed = client.publish(&event).await;
    }
    confirmed.unwrap();
    let mut connection = replica.connection().await;
    let length: u32 = redis::cmd("XLEN")
        .arg(STREAM)
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(length, 1);
}

#[tokio::test]
async fn a_client_lives_through_restarts_and_killed_connections() {
    let mut bus = Bus::on(Redis::durable(), Keys::new("cb").unwrap()).await;
    let client = client_at(
        &bus.redis.url(),
        ClientOptions {
            patience: Duration::from_secs(30),
            ..options()
        },
    );
    for round in 0..6 {
        let id = format!("e{round}");
        client.publish(&event(&id).dedup(true)).await.unwrap();
        if round % 3 == 2 {
            bus.redis.restart();
            bus.connection = bus.redis.connection().await;
        } else {
            bus.run("CLIENT KILL TYPE normal SKIPME yes").await;
            bus.run("SCRIPT FLUSH").await;
        }
    }
    assert_eq!(bus.entries(STREAM).await.len(), 6);
}

#[tokio::test]
async fn without_a_server_a_publish_is_rejected() {
    let url = format!("redis://127.0.0.1:{}", crate::support::free_port());
    let client = client_at(&url, options());
    assert!(code(client.publish(&event("e0")).await).contains("can not connect"));
    let many = client.publish_many(&[event("e0")]).await;
    assert!(code(many.into_iter().next().unwrap()).contains("can not connect"));
}
