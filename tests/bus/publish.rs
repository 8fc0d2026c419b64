//! What a publisher learns, whatever happens to the server: stored, rejected or unknown.

use crate::setup::{Bus, connector, text};
use crate::support::keys;
use crate::support::users;
use convoke::client::publish::{Doubt, Outgoing, PublishError, Published};
use convoke::client::{Client, ClientOptions};
use std::time::Duration;

const STREAM: &str = "cb:events:image";

pub(crate) fn options() -> ClientOptions {
    ClientOptions {
        name: Some("me".into()),
        patience: Duration::ZERO,
        ..ClientOptions::default()
    }
}

pub(crate) fn client_at(url: &str, options: ClientOptions) -> Client {
    Client::new(connector(url), keys(), options).unwrap()
}

pub(crate) fn client(bus: &Bus) -> Client {
    client_at(&bus.redis.url_for(users::PUBLISHER), options())
}

pub(crate) fn event(id: &str) -> Outgoing {
    Outgoing::new("image.made", &7).id(id)
}

pub(crate) fn code(outcome: Result<Published, PublishError>) -> String {
    match outcome {
        Err(PublishError::Rejected { code, reason, .. }) => code.unwrap_or(reason),
        other => panic!("not rejected: {other:?}"),
    }
}

pub(crate) fn is_unknown(outcome: &Result<Published, PublishError>) -> bool {
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
    let found = convoke::streams::read::entries_of(found).unwrap();
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
    let mut keys: Vec<String> = bus.ask("KEYS *").await;
    keys.retain(|key| !users::is_clock(key));
    assert!(keys.is_empty(), "{keys:?}");
    // None of the refusals was remembered as a publish.
    for outcome in client.publish_many(&kinds).await {
        assert!(!outcome.unwrap().is_duplicate());
    }
    assert_eq!(bus.entries(STREAM).await.len(), 2);
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
    // What runs later than the window lasts is deduplicated until it ran, and for the window after that.
    let tomorrow = event("e2").dedup(true).delay(Duration::from_secs(86_400));
    for duplicate in [false, true, true] {
        assert_eq!(due(client.publish(&tomorrow).await.unwrap()).1, duplicate);
        let ttl: u64 = bus.ask("PTTL cb:dedup:image:e2").await;
        assert!((89_900_000..=90_000_000).contains(&ttl), "{ttl}");
    }
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
async fn a_domain_that_is_called_like_a_stream_of_the_bus_is_rejected() {
    let mut bus = Bus::start().await;
    let refused = client(&bus).publish(&Outgoing::bare("inbox.open")).await;
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("a domain cannot be called"), "{said}");
    let keys: Vec<String> = bus.ask("KEYS *inbox*").await;
    assert!(keys.is_empty(), "{keys:?}");
}

#[tokio::test]
async fn the_field_by_which_an_event_would_be_a_repeat_of_itself_is_rejected() {
    let mut bus = Bus::start().await;
    let client = client(&bus);
    for value in ["1", "7-1"] {
        let event = || event("e0").field("dedup", value).dedup(true);
        for event in [event(), event().delay(Duration::from_millis(1))] {
            let why = code(client.publish(&event).await);
            assert!(why.contains("dedup"), "{why}");
        }
    }
    let stored: u32 = bus.ask(&format!("XLEN {STREAM}")).await;
    let delayed: u32 = bus.ask("EXISTS cb:delayed:image").await;
    assert_eq!((stored, delayed), (0, 0));
}
