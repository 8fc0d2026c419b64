//! Repairs of pending entries and of ranges: each once, whoever dies, and nothing that a repair added itself.

use crate::fleet::Fleet;
use crate::repairs::{draft, repairs};
use crate::support::name;
use convoke::connect::connector::Connector;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::repairs::{RepairDraft, Right};
use convoke::operator::browse::Sight;
use convoke::operator::replay::planning::Candidate;
use convoke::operator::replay::repair::{Plan, Progress, RepairStep, Stepped, Way};
use convoke::operator::replay::{Move, Operator, Source};
use convoke::protocol::event::{EntryId, Limits};
use convoke::protocol::keys::StreamName;
use convoke::settings::RedisUrl;
use convoke::streams::claim::{self, Pending};
use std::time::Duration;

const EVENTS: &str = "cb:events:image";
const GROUP: &str = "workers";
const NOTED: &str = "r-1:0";
const HELD: Way<'_> = Way::Pending { group: GROUP };
const RANGE: Way<'_> = Way::Range { force: false };

fn events() -> String {
    name("image", EVENTS)
}

fn stream(fleet: &Fleet) -> StreamName {
    fleet.keys.stream_name(&events()).unwrap()
}

fn id(ms: u64) -> EntryId {
    EntryId { ms, seq: 1 }
}

/// Entries 1-1, 2-1, …, all delivered to w-1.
async fn deliver(fleet: &mut Fleet, count: u64) {
    fleet
        .run(&format!("XGROUP CREATE {EVENTS} {GROUP} 0 MKSTREAM"))
        .await;
    for ms in 1..=count {
        let add = format!("XADD {EVENTS} {ms}-1 type image.was n {ms}");
        fleet.run(&add).await;
    }
    fleet
        .run(&format!("XREADGROUP GROUP {GROUP} w-1 STREAMS {EVENTS} >"))
        .await;
}

async fn pending(fleet: &mut Fleet) -> Vec<Pending> {
    let from = EntryId::default();
    let connection = &mut fleet.connection;
    let held = claim::pending(connection, EVENTS, GROUP, from, 100, None);
    held.await.unwrap()
}

fn candidate(fleet: &Fleet, entry: EntryId, pending: Option<Pending>) -> Candidate {
    let fields = ["type", "image.was", "n", &entry.ms.to_string()];
    Candidate {
        stream: stream(fleet),
        to: events(),
        kind: "image.was".into(),
        replays: 1,
        act: Move {
            entry,
            fields: fields.iter().map(|word| word.as_bytes().to_vec()).collect(),
            pending: pending.map(|pending| (pending, Duration::ZERO)),
        },
        before: None,
        left: None,
    }
}

async fn step(
    fleet: &mut Fleet,
    way: Way<'_>,
    fence: u64,
    (before, after): (Option<u64>, u64),
    moves: &[Candidate],
) -> Stepped {
    let operator = Operator::new(fleet.keys.clone(), "r-1", "ann");
    let step = RepairStep {
        way,
        stream: &stream(fleet),
        noted: NOTED,
        fence,
        before: before.map(id),
        after: id(after),
        left: &[],
        moves,
    };
    let stepped = operator.step_repair(&mut fleet.connection, step).await;
    stepped.unwrap().0
}

async fn take(fleet: &mut Fleet, from: Source, fence: u64) -> Progress {
    let operator = Operator::new(fleet.keys.clone(), "r-1", "ann");
    let stream = stream(fleet);
    let connection = &mut fleet.connection;
    let taken = operator.take_repair(connection, (from, &stream), NOTED, fence);
    match taken.await.unwrap() {
        Stepped::Done(progress) => progress,
        other => panic!("{other:?}"),
    }
}

fn done(stepped: Stepped) -> (u64, u64) {
    match stepped {
        Stepped::Done(done) => (done.replayed, done.gone),
        other => panic!("{other:?}"),
    }
}

async fn length(fleet: &mut Fleet) -> u64 {
    fleet.ask(&format!("XLEN {EVENTS}")).await
}

/// Where the replays told on the broadcast came from, and how many they were.
async fn told(fleet: &mut Fleet) -> Vec<(String, u64)> {
    let told = fleet.facts().await;
    let told = told.iter().map(|(_, fact)| {
        let from = fact["from"].as_str().unwrap().to_owned();
        (from, fact["count"].as_u64().unwrap())
    });
    told.collect()
}

#[tokio::test]
async fn a_pending_entry_is_replayed_once_and_its_owner_is_fenced_in_that_step() {
    let mut fleet = Fleet::start().await;
    deliver(&mut fleet, 4).await;
    let seen = pending(&mut fleet).await;
    // One of them was taken over since it was seen.
    fleet
        .run(&format!("XCLAIM {EVENTS} {GROUP} w-2 0 2-1"))
        .await;
    let moves: Vec<_> = seen[..3]
        .iter()
        .map(|one| candidate(&fleet, one.id, Some(one.clone())))
        .collect();
    for _ in 0..2 {
        let first = step(&mut fleet, HELD, 1, (None, 3), &moves).await;
        assert_eq!(done(first), (2, 1));
        assert_eq!(length(&mut fleet).await, 6);
    }
    let held = pending(&mut fleet).await;
    let held: Vec<_> = held.iter().map(|one| (one.id.ms, &*one.consumer)).collect();
    assert_eq!(held, [(2, "w-2"), (4, "w-1")]);
    let counter = |of: &str| name("image", &format!("cb:claims:{of}"));
    let counted: (Option<u64>, Option<u64>) = (
        fleet.ask(&format!("GET {}", counter("w-1"))).await,
        fleet.ask(&format!("GET {}", counter("w-2"))).await,
    );
    assert_eq!(counted, (Some(1), None));
    assert_eq!(told(&mut fleet).await, [("pending".to_owned(), 2)]);
    // Whoever has a newer right fences the older one.
    take(&mut fleet, Source::Pending, 2).await;
    let last = candidate(&fleet, id(4), Some(seen[3].clone()));
    let stale = step(&mut fleet, HELD, 1, (Some(3), 4), &[last]).await;
    assert_eq!(stale, Stepped::Lost);
    assert_eq!(length(&mut fleet).await, 6);
}

#[tokio::test]
async fn what_a_lost_owner_that_is_back_renewed_since_the_look_stays_with_it() {
    let mut fleet = Fleet::start().await;
    deliver(&mut fleet, 2).await;
    fleet
        .run(&format!(
            "XCLAIM {EVENTS} {GROUP} w-1 0 1-1 2-1 IDLE 60000 JUSTID"
        ))
        .await;
    let connector = Connector::new(&RedisUrl::new(fleet.redis.url()), 4).unwrap();
    let sight = Sight::new(connector, 1 << 20);
    let plan = Plan {
        from: Source::Pending,
        ..Plan::default()
    };
    let planner = plan.planner(&fleet.keys, Limits::default(), "ann");
    let choice = plan.choice(planner, "r-1", GROUP, Duration::from_secs(300));
    let (stream, first, last) = (stream(&fleet), EntryId::default(), id(9));
    let connection = &mut fleet.connection;
    let walk = choice.walk(&sight, connection, &stream, first, last);
    let mut walk = walk.await.unwrap().unwrap();
    let page = walk.next(&choice, connection).await.unwrap().unwrap();
    let moves = choice.judge(&stream, page, &["w-1".to_owned()], 0);
    assert!(moves.iter().all(|one| one.left.is_none()), "{moves:?}");
    fleet
        .run(&format!("XCLAIM {EVENTS} {GROUP} w-1 0 1-1 JUSTID"))
        .await;
    let made = step(&mut fleet, HELD, 1, (None, 2), &moves).await;
    assert_eq!(done(made), (1, 1));
    let held = pending(&mut fleet).await;
    assert_eq!(held.iter().map(|one| one.id.ms).collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn a_range_is_copied_once_whoever_repeats_the_step_or_goes_on_after_it() {
    let mut fleet = Fleet::start().await;
    deliver(&mut fleet, 4).await;
    let copies = |fleet: &Fleet, all: &[u64]| -> Vec<Candidate> {
        let all = all.iter().map(|ms| candidate(fleet, id(*ms), None));
        all.collect()
    };
    let first = copies(&fleet, &[1, 2]);
    for _ in 0..2 {
        let made = step(&mut fleet, RANGE, 1, (None, 2), &first).await;
        assert_eq!(done(made), (2, 0));
        assert_eq!(length(&mut fleet).await, 6);
    }
    // Who took it over thinks that it still stands at the beginning.
    assert_eq!(take(&mut fleet, Source::Range, 2).await.at, Some(id(2)));
    let all = copies(&fleet, &[1, 2, 3]);
    let stale = step(&mut fleet, Way::Range { force: true }, 2, (None, 3), &all).await;
    assert!(matches!(stale, Stepped::Elsewhere(_)), "{stale:?}");
    let stale = step(&mut fleet, RANGE, 1, (Some(2), 3), &all[2..]).await;
    assert_eq!(stale, Stepped::Lost);
    // The same copy is not made a second time, though a caller wants it.
    let rest = step(&mut fleet, RANGE, 2, (Some(2), 3), &all).await;
    assert_eq!(done(rest), (3, 2));
    assert_eq!(length(&mut fleet).await, 7);
    let facts = [("range".to_owned(), 2), ("range".to_owned(), 1)];
    assert_eq!(told(&mut fleet).await, facts);
}

#[tokio::test]
async fn where_the_stream_ended_when_a_repair_began_is_known_to_whoever_goes_on() {
    let mut fleet = Fleet::start().await;
    assert_eq!(take(&mut fleet, Source::Range, 1).await.end, None);
    deliver(&mut fleet, 2).await;
    // What is not in the stream any more counts too: its number is not given again.
    fleet.run(&format!("XDEL {EVENTS} 2-1")).await;
    assert_eq!(take(&mut fleet, Source::Range, 2).await.end, Some(id(2)));
    fleet
        .run(&format!("XADD {EVENTS} 9-1 type image.was"))
        .await;
    assert_eq!(take(&mut fleet, Source::Range, 3).await.end, Some(id(2)));
    let keys = fleet.keys.clone();
    let stream = stream(&fleet);
    let read = Progress::read(&mut fleet.connection, &keys, &stream, NOTED).await;
    assert_eq!(read.unwrap().end, Some(id(2)));
}

#[tokio::test]
async fn a_plan_has_streams_and_conditions_of_its_kind_only() {
    let fleet = Fleet::start().await;
    let repairs = repairs(&fleet);
    let of = |from: Source| -> Plan {
        let mut plan = draft("r-1").plan;
        plan.from = from;
        if from != Source::Dead {
            plan.stretches[0].stream = events();
        }
        plan
    };
    let refused = async |plan: Plan, says: &str| {
        let wanted = RepairDraft {
            plan,
            ..draft("r-1")
        };
        let error = repairs.start(&wanted, "ann").await.unwrap_err();
        assert!(matches!(error, CoordinationError::Invalid(_)), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    };
    let mut plan = of(Source::Range);
    plan.stretches[0].stream = name("image", "cb:dead:image");
    refused(plan, "no stream of events").await;
    let mut plan = of(Source::Pending);
    plan.stretches[0].stream = fleet.keys.inbox("w-1");
    refused(plan, "no stream of events").await;
    let mut plan = of(Source::Range);
    plan.wanted.reason = Some("internal".into());
    refused(plan, "only dead letters have a reason").await;
    let mut plan = of(Source::Range);
    plan.wanted.consumer = Some("w-1".into());
    refused(plan, "only pending entries have").await;
    let mut plan = of(Source::Dead);
    plan.wanted.idle_ms = Some(1);
    refused(plan, "only pending entries have").await;
    let mut plan = of(Source::Dead);
    plan.group = Some(GROUP.into());
    refused(plan, "group: dead letters have none").await;
    // What an earlier version wrote means dead letters, and what they are written as it can read.
    let written = rmp_serde::to_vec_named(&of(Source::Dead)).unwrap();
    let fields: rmpv::Value = rmpv::decode::read_value(&mut &written[..]).unwrap();
    let names = fields.as_map().unwrap().iter();
    let names: Vec<_> = names.map(|(name, _)| name.as_str().unwrap()).collect();
    assert_eq!(names, ["stretches", "wanted", "force"]);
}

#[tokio::test]
async fn what_a_terminal_does_makes_room_once_it_is_gone_and_is_held_while_it_is_there() {
    let fleet = Fleet::start().await;
    let repairs = repairs(&fleet);
    let mut wanted = draft("r-1");
    wanted.plan.program = true;
    repairs.start(&wanted, "ann").await.unwrap();
    // It lasts for all that follows, however slow.
    let lease = Duration::from_secs(3600);
    let held = repairs.take("r-1", "ann:7", lease).await.unwrap();
    assert_eq!(held, Right::Held(1));
    let (_, state) = repairs.read("r-1").await.unwrap();
    let until = state.until.unwrap();
    assert!(state.terminal && state.is_held(until - 1) && !state.is_held(until));
    // A clock that stepped back leaves no right behind.
    assert!(!state.is_held(until - 3_600_000));
    for n in 1..convoke::coordination::repairs::MAX_REPAIRS {
        repairs
            .start(&draft(&format!("s-{n}")), "ann")
            .await
            .unwrap();
    }
    let full = repairs.start(&draft("new"), "ann").await;
    assert!(matches!(full, Err(CoordinationError::Exhausted(_))));
    let back = repairs.keep("r-1", "ann:7", 1, Duration::ZERO, "interrupted");
    assert_eq!(back.await.unwrap(), Right::Held(1));
    repairs.start(&draft("new"), "ann").await.unwrap();
    let all = repairs.list().await.unwrap();
    assert!(all.contains_key("new") && !all.contains_key("r-1"));
}
