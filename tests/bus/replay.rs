//! Publishing again: each entry is in one place, whatever happens, and every step tells what it did.

use crate::setup::{Bus, GROUP, text};
use crate::support::{name, users};
use convoke::operator::replay::{Move, Operator, Step};
use convoke::protocol::event::EntryId;
use convoke::protocol::keys::Keys;
use convoke::streams::claim::Pending;
use std::time::Duration;

const DEAD: &str = "cb:dead:image";
const EVENTS: &str = "cb:events:image";

pub(crate) fn operator(keys: &Keys) -> Operator {
    Operator::new(keys.clone(), "run-1", "ada@desk")
}

fn id(ms: u64) -> EntryId {
    EntryId { ms, seq: 1 }
}

fn fields(n: &str) -> Vec<Vec<u8>> {
    ["type", "image.again", "n", n]
        .iter()
        .map(|word| word.as_bytes().to_vec())
        .collect()
}

fn one(ms: u64) -> Move {
    Move {
        entry: id(ms),
        fields: fields(&ms.to_string()),
        pending: None,
    }
}

fn held(pending: &Pending, idle: Duration) -> Move {
    Move {
        entry: pending.id,
        fields: fields(&pending.id.ms.to_string()),
        pending: Some((pending.clone(), idle)),
    }
}

fn there(step: &Step) -> Vec<bool> {
    step.moved.iter().map(Option::is_some).collect()
}

async fn bury(bus: &mut Bus, count: u64) {
    for ms in 1..=count {
        bus.run(&format!(
            "XADD {DEAD} {ms}-1 type image.was deadreason internal"
        ))
        .await;
    }
}

/// The facts on the broadcast: type and payload.
pub(crate) async fn facts(bus: &mut Bus, broadcast: &str) -> Vec<(String, serde_json::Value)> {
    let facts = bus.entries(broadcast).await;
    let facts = facts.iter();
    facts
        .map(|fact| {
            let data = convoke::protocol::json::to_json(&fact["data"]).unwrap();
            (text(fact, "type"), data)
        })
        .collect()
}

#[tokio::test]
async fn a_dead_letter_is_moved_once_with_the_fact() {
    let mut bus = Bus::start().await;
    bury(&mut bus, 3).await;
    let operator = operator(&bus.keys);
    let moves = [one(1), one(2), one(9)];
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let step = operator
        .replay_dead(connection, DEAD, EVENTS, &moves)
        .await
        .unwrap();
    assert_eq!(there(&step), [true, true, false]);
    let again = operator
        .replay_dead(connection, DEAD, EVENTS, &moves)
        .await
        .unwrap();
    assert_eq!(there(&again), [false, false, false]);
    let events = bus.entries(EVENTS).await;
    assert_eq!(events.len(), 2);
    assert_eq!(text(&events[1], "n"), "2");
    assert_eq!(bus.entries(DEAD).await.len(), 1);
    let facts = facts(&mut bus, "cb:broadcast").await;
    assert_eq!(facts.len(), 1);
    assert_eq!(facts[0].0, "operator.replayed");
    let expected = serde_json::json!({
        "run": "run-1", "by": "ada@desk", "from": "dead", "stream": DEAD, "to": EVENTS,
        "count": 2, "entries": ["1-1", "2-1"],
    });
    assert_eq!(sorted(&facts[0].1), sorted(&expected));
}

/// With the fields in one order: the server's encoder has none.
pub(crate) fn sorted(
    value: &serde_json::Value,
) -> std::collections::BTreeMap<String, serde_json::Value> {
    serde_json::from_value(value.clone()).unwrap()
}

#[tokio::test]
async fn where_the_target_can_not_be_written_the_dead_letter_stays() {
    let mut bus = Bus::start().await;
    bury(&mut bus, 2).await;
    let operator = operator(&bus.keys);
    bus.run(&format!("DEL {EVENTS}")).await;
    bus.run(&format!("SET {EVENTS} x")).await;
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let moves = [one(1), one(2)];
    let step = operator
        .replay_dead(connection, DEAD, EVENTS, &moves)
        .await
        .unwrap();
    assert!(step.stopped.unwrap().contains("WRONGTYPE"));
    assert!(step.moved.is_empty());
    // A stream whose ids are used up.
    bus.run(&format!("DEL {EVENTS}")).await;
    bus.run(&format!(
        "XADD {EVENTS} 18446744073709551615-18446744073709551615 type a.b"
    ))
    .await;
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let step = operator
        .replay_dead(connection, DEAD, EVENTS, &moves)
        .await
        .unwrap();
    assert!(step.stopped.is_some() && step.moved.is_empty());
    assert_eq!(bus.entries(DEAD).await.len(), 2);
    assert!(bus.entries("cb:broadcast").await.is_empty());
}

#[tokio::test]
async fn dead_letters_are_dropped_once_with_the_fact() {
    let mut bus = Bus::start().await;
    bury(&mut bus, 3).await;
    let operator = operator(&bus.keys);
    let ids = [id(1), id(3), id(7)];
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let dropped = operator.drop_dead(connection, DEAD, &ids).await.unwrap();
    assert_eq!(dropped, [true, true, false]);
    let again = operator.drop_dead(connection, DEAD, &ids).await.unwrap();
    assert_eq!(again, [false; 3]);
    assert_eq!(bus.entries(DEAD).await.len(), 1);
    let facts = facts(&mut bus, "cb:broadcast").await;
    assert_eq!(facts.len(), 1);
    assert_eq!(facts[0].0, "operator.dropped");
    assert_eq!(facts[0].1["count"], 2);
    assert_eq!(facts[0].1["entries"], serde_json::json!(["1-1", "3-1"]));
}

/// This many entries pending with `w-1`, and what the committer of it would commit of the first.
async fn delivered(count: usize) -> (Bus, Vec<Pending>) {
    let mut bus = Bus::start().await;
    bus.add(count).await;
    let claims = bus.committer("w-1").claims();
    bus.deliver("w-1", &claims, count).await;
    let pending = bus.pending().await;
    (bus, pending)
}

#[tokio::test]
async fn a_pending_entry_is_published_anew_and_its_owner_is_fenced_in_the_same_step() {
    let (mut bus, pending) = delivered(3).await;
    let operator = operator(&bus.keys);
    let stream = bus.keys.stream_name(&name("image", EVENTS)).unwrap();
    let moves: Vec<Move> = pending[..2]
        .iter()
        .map(|p| held(p, Duration::ZERO))
        .collect();
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let step = operator
        .replay_pending(connection, &stream, GROUP, &moves)
        .await
        .unwrap();
    assert_eq!(there(&step), [true, true]);
    let again = operator
        .replay_pending(connection, &stream, GROUP, &moves)
        .await
        .unwrap();
    assert_eq!(there(&again), [false, false]);
    let counter: Option<u64> = bus.ask(&format!("GET {}", bus.claims("w-1"))).await;
    assert_eq!(counter, Some(1));
    let ttl: i64 = bus.ask(&format!("PTTL {}", bus.claims("w-1"))).await;
    assert!(ttl > 0);
    let left = bus.pending().await;
    assert_eq!(
        left.iter().map(|p| p.id).collect::<Vec<_>>(),
        [pending[2].id]
    );
    assert_eq!(bus.entries(EVENTS).await.len(), 5);
    let facts = facts(&mut bus, "cb:broadcast").await;
    assert_eq!((facts.len(), &facts[0].1["count"]), (1, &2.into()));
    assert_eq!(facts[0].1["from"], "pending");
}

#[tokio::test]
async fn what_moved_since_the_operator_looked_is_left_alone() {
    let (mut bus, pending) = delivered(4).await;
    let operator = operator(&bus.keys);
    let stream = bus.keys.stream_name(&name("image", EVENTS)).unwrap();
    // Taken over, acknowledged, not idle for long enough; the last may go.
    bus.take("w-2", &pending[..1]).await;
    bus.run(&format!("XACK {EVENTS} {GROUP} {}", pending[1].id))
        .await;
    let moves = [
        held(&pending[0], Duration::ZERO),
        held(&pending[1], Duration::ZERO),
        held(&pending[2], Duration::from_secs(60)),
        held(&pending[3], Duration::ZERO),
    ];
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let step = operator
        .replay_pending(connection, &stream, GROUP, &moves)
        .await
        .unwrap();
    assert_eq!(there(&step), [false, false, false, true]);
    let counter: Option<u64> = bus.ask(&format!("GET {}", bus.claims("w-2"))).await;
    assert_eq!(counter, None);
    assert_eq!(bus.pending().await.len(), 2);
}

#[tokio::test]
async fn an_entry_of_a_range_is_copied_once_within_the_window() {
    let mut bus = Bus::start().await;
    for ms in 1..=2 {
        bus.run(&format!("XADD {EVENTS} {ms}-1 type image.was"))
            .await;
    }
    let stream = bus.keys.stream_name(&name("image", EVENTS)).unwrap();
    let first = operator(&bus.keys);
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let moves = [one(1), one(2)];
    let step = first
        .replay_range(connection, &stream, &moves[..1], false)
        .await
        .unwrap();
    assert_eq!(there(&step), [true]);
    for force in [false, true] {
        let again = first
            .replay_range(connection, &stream, &moves[..1], force)
            .await
            .unwrap();
        assert_eq!(there(&again), [false], "the same run, force: {force}");
    }
    let other = Operator::new(bus.keys.clone(), "run-2", "ada@desk");
    let step = other
        .replay_range(connection, &stream, &moves, false)
        .await
        .unwrap();
    assert_eq!(there(&step), [false, true]);
    let step = other
        .replay_range(connection, &stream, &moves[..1], true)
        .await
        .unwrap();
    assert_eq!(there(&step), [true]);
    let ttl: i64 = bus.ask("PTTL cb:replayed:image:1-1").await;
    assert!((86_000_000..=86_400_000).contains(&ttl), "{ttl}");
    assert_eq!(bus.entries(EVENTS).await.len(), 5);
    assert_eq!(facts(&mut bus, "cb:broadcast").await.len(), 3);
}

#[tokio::test]
async fn in_a_cluster_the_fact_follows_the_step() {
    let keys = Keys::tagged("cb", 2).unwrap();
    let mut bus = Bus::with(keys.clone()).await;
    let (dead, events) = (keys.dead("image", 1), keys.events("image", 1));
    bus.run(&format!("XADD {dead} 1-1 type image.was")).await;
    bus.run(&format!("XADD {dead} 2-1 type image.was")).await;
    let operator = operator(&keys);
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let step = operator
        .replay_dead(connection, &dead, &events, &[one(1), one(7)])
        .await
        .unwrap();
    assert_eq!(there(&step), [true, false]);
    operator
        .drop_dead(connection, &dead, &[id(2), id(7)])
        .await
        .unwrap();
    let facts = facts(&mut bus, "{cb}:broadcast").await;
    let told: Vec<_> = facts
        .iter()
        .map(|(kind, data)| (kind.as_str(), data["entries"].clone()))
        .collect();
    let entries = |id: &str| serde_json::json!([id]);
    assert_eq!(
        told,
        [
            ("operator.replayed", entries("1-1")),
            ("operator.dropped", entries("2-1"))
        ]
    );
}

#[tokio::test]
async fn what_the_old_owner_commits_of_it_afterwards_is_discarded() {
    let mut bus = Bus::start().await;
    bus.add(2).await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    let claims = committer.claims();
    let held = bus.deliver("w-1", &claims, 2).await;
    let seen = bus.pending().await;
    let operator = operator(&bus.keys);
    let stream = bus.keys.stream_name(&name("image", EVENTS)).unwrap();
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let moves = [self::held(&seen[0], Duration::ZERO)];
    operator
        .replay_pending(connection, &stream, GROUP, &moves)
        .await
        .unwrap();
    // Both in one batch, which would go the fast way.
    let report = committer
        .commit(held.iter().map(|held| held.done()).collect())
        .await;
    assert_eq!((report.committed, report.fenced), (1, 1));
    assert_eq!(bus.replied().await.len(), 1);
}
