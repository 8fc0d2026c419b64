//! Repairs: each letter once, by whoever has the right, whoever dies.

use crate::fleet::Fleet;
use crate::support::name;
use convoke::connect::connector::Connector;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::repairs::{MAX_REPAIRS, RepairDraft, Repairs, Right};
use convoke::operator::replay::mending::Mend;
use convoke::operator::replay::planning::Candidate;
use convoke::operator::replay::repair::{Plan, Progress, RepairStep, Stepped, Stretch, Way};
use convoke::operator::replay::wanted::Where;
use convoke::operator::replay::{Move, Operator, Source};
use convoke::protocol::event::EntryId;
use convoke::protocol::keys::{Keys, StreamName};
use convoke::settings::RedisUrl;
use std::collections::BTreeMap;
use std::time::Duration;

const DEAD: &str = "cb:dead:image";
const EVENTS: &str = "cb:events:image";
const LEASE: Duration = Duration::from_secs(60);

pub(crate) fn repairs(fleet: &Fleet) -> Repairs {
    let connector = Connector::new(&RedisUrl::new(fleet.redis.url()), 4).unwrap();
    Repairs::new(connector, fleet.keys.clone())
}

pub(crate) fn draft(name: &str) -> RepairDraft {
    let stretch = Stretch {
        stream: crate::support::name("image", DEAD),
        from: (0, 0),
        to: (1000, 0),
    };
    RepairDraft {
        name: name.into(),
        plan: Plan {
            stretches: vec![stretch],
            ..Plan::default()
        },
        why: "a test".into(),
        total: Some(4),
    }
}

fn dead(keys: &Keys) -> StreamName {
    keys.stream_name(&name("image", DEAD)).unwrap()
}

fn id(ms: u64) -> EntryId {
    EntryId { ms, seq: 1 }
}

async fn bury(fleet: &mut Fleet, count: u64) {
    for ms in 1..=count {
        fleet
            .run(&format!(
                "XADD {DEAD} {ms}-1 type image.was deadreason internal"
            ))
            .await;
    }
}

fn candidate(keys: &Keys, ms: u64, left: Option<&str>) -> Candidate {
    let fields = ["type", "image.was", "n", &ms.to_string()];
    Candidate {
        stream: dead(keys),
        to: name("image", EVENTS),
        kind: "image.was".into(),
        replays: 1,
        act: Move {
            entry: id(ms),
            fields: fields.iter().map(|word| word.as_bytes().to_vec()).collect(),
            pending: None,
        },
        before: None,
        left: left.map(str::to_owned),
    }
}

/// How the repair r-1 is noted, where it is one.
async fn noted(fleet: &Fleet) -> String {
    match repairs(fleet).read("r-1").await {
        Ok((_, state)) => state.noted("r-1"),
        Err(_) => "r-1:0".into(),
    }
}

/// Replays these, from one position to the other.
async fn step(
    fleet: &mut Fleet,
    fence: u64,
    (before, after): (Option<u64>, u64),
    moves: &[u64],
    left: &[&str],
) -> Stepped {
    let keys = fleet.keys.clone();
    let operator = Operator::new(keys.clone(), "r-1", "ann");
    let moves: Vec<_> = moves.iter().map(|ms| candidate(&keys, *ms, None)).collect();
    let left: Vec<_> = left
        .iter()
        .map(|why| candidate(&keys, after, Some(why)))
        .collect();
    let step = RepairStep {
        way: Way::Dead,
        stream: &dead(&keys),
        noted: &noted(fleet).await,
        fence,
        before: before.map(id),
        after: id(after),
        left: &left,
        moves: &moves,
    };
    let stepped = operator.step_repair(&mut fleet.connection, step).await;
    stepped.unwrap().0
}

fn done(stepped: Stepped) -> (u64, u64, u64) {
    match stepped {
        Stepped::Done(done) => (done.replayed, done.gone, done.left),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_step_that_is_repeated_moves_and_counts_nothing_twice() {
    let mut fleet = Fleet::start().await;
    bury(&mut fleet, 4).await;
    let ends = (None, 3);
    let first = step(&mut fleet, 1, ends, &[1, 2, 9], &["odd"]).await;
    assert_eq!(done(first), (2, 1, 1));
    let again = step(&mut fleet, 1, ends, &[1, 2, 9], &["odd"]).await;
    assert_eq!(done(again), (2, 1, 1));
    let elsewhere = step(&mut fleet, 1, (Some(2), 4), &[4], &[]).await;
    assert!(matches!(elsewhere, Stepped::Elsewhere(_)), "{elsewhere:?}");
    let second = step(&mut fleet, 1, (Some(3), 4), &[3, 4], &[]).await;
    assert_eq!(done(second), (4, 1, 1));
    let events: u64 = fleet.ask(&format!("XLEN {EVENTS}")).await;
    let letters: u64 = fleet.ask(&format!("XLEN {DEAD}")).await;
    assert_eq!((events, letters), (4, 0));
    let told = fleet.facts().await;
    let counts: Vec<_> = told.iter().map(|(_, fact)| fact["count"].clone()).collect();
    assert_eq!(counts, [2, 2]);
    let all = repairs(&fleet).progress("r-1:0", &draft("r-1").plan).await;
    assert_eq!(all.unwrap().why, BTreeMap::from([("odd".to_owned(), 1)]));
}

#[tokio::test]
async fn whoever_has_lost_the_right_moves_nothing_more() {
    let mut fleet = Fleet::start().await;
    bury(&mut fleet, 2).await;
    let repairs = repairs(&fleet);
    repairs.start(&draft("r-1"), "ann").await.unwrap();
    let take = |who: &'static str| repairs.take("r-1", who, LEASE);
    assert_eq!(take("w-1").await.unwrap(), Right::Held(1));
    assert_eq!(take("w-2").await.unwrap(), Right::Others);
    assert_eq!(done(step(&mut fleet, 1, (None, 1), &[1], &[]).await).0, 1);
    // Its lease ends.
    let kept = repairs.keep("r-1", "w-1", 1, Duration::ZERO, "").await;
    assert_eq!(kept.unwrap(), Right::Held(1));
    // What arrives late does not bring it back, and it may be given back twice.
    let kept = repairs.keep("r-1", "w-1", 1, LEASE, "").await;
    assert_eq!(kept.unwrap(), Right::Others);
    let kept = repairs.keep("r-1", "w-1", 1, Duration::ZERO, "").await;
    assert_eq!(kept.unwrap(), Right::Held(1));
    assert_eq!(take("w-2").await.unwrap(), Right::Held(2));
    let kept = repairs.keep("r-1", "w-1", 1, LEASE, "").await;
    assert_eq!(kept.unwrap(), Right::Others);
    let operator = Operator::new(fleet.keys.clone(), "r-1", "ann");
    let name = dead(&fleet.keys);
    let noted = noted(&fleet).await;
    let connection = &mut fleet.connection;
    let taken = operator
        .take_repair(connection, (Source::Dead, &name), &noted, 2)
        .await;
    assert_eq!(done(taken.unwrap()).0, 1);
    let stale = step(&mut fleet, 1, (Some(1), 2), &[2], &[]).await;
    assert_eq!(stale, Stepped::Lost);
    let letters: u64 = fleet.ask(&format!("XLEN {DEAD}")).await;
    assert_eq!(letters, 1);
    let stale = repairs.finish("r-1", "w-1", 1).await;
    assert!(matches!(stale, Err(CoordinationError::Aborted(_))));
    repairs.finish("r-1", "w-2", 2).await.unwrap();
    repairs.finish("r-1", "w-2", 2).await.unwrap();
    assert_eq!(take("w-3").await.unwrap(), Right::Over);
    let late = repairs.cancel("r-1", "bob").await;
    assert!(matches!(
        late,
        Err(CoordinationError::FailedPrecondition(_))
    ));
}

#[tokio::test]
async fn a_cancelled_repair_moves_nothing_more_and_says_what_was_done() {
    let mut fleet = Fleet::start().await;
    bury(&mut fleet, 2).await;
    let repairs = repairs(&fleet);
    repairs.start(&draft("r-1"), "ann").await.unwrap();
    let held = repairs.take("r-1", "w-1", LEASE).await.unwrap();
    assert_eq!(held, Right::Held(1));
    assert_eq!(done(step(&mut fleet, 1, (None, 1), &[1], &[]).await).0, 1);
    let cancelled = repairs.cancel("r-1", "bob").await.unwrap();
    assert_eq!(cancelled.replayed, 1);
    let late = step(&mut fleet, 1, (Some(1), 2), &[2], &[]).await;
    assert_eq!(late, Stepped::Lost);
    let letters: u64 = fleet.ask(&format!("XLEN {DEAD}")).await;
    assert_eq!(letters, 1);
    // Again it is answered like the first time.
    assert_eq!(repairs.cancel("r-1", "bob").await.unwrap().replayed, 1);
    let none = repairs.cancel("r-2", "bob").await;
    assert!(matches!(none, Err(CoordinationError::NotFound(_))));
    let (_, state) = repairs.read("r-1").await.unwrap();
    assert_eq!((&*state.state, &*state.by), ("cancelled", "ann"));
    assert_eq!(state.ended_by.as_deref(), Some("bob"));
}

#[tokio::test]
async fn where_a_letter_is_refused_the_repair_stands_before_it() {
    let mut fleet = Fleet::start().await;
    bury(&mut fleet, 2).await;
    fleet.run(&format!("SET {EVENTS} x")).await;
    let refused = step(&mut fleet, 1, (None, 2), &[1, 2], &["odd"]).await;
    let Stepped::Refused(why, progress) = refused else {
        panic!("{refused:?}");
    };
    assert!(why.contains("WRONGTYPE"), "{why}");
    assert_eq!((progress.at, progress.left), (None, 0));
    fleet.run(&format!("DEL {EVENTS}")).await;
    let then = step(&mut fleet, 1, (None, 2), &[1, 2], &["odd"]).await;
    assert_eq!(done(then), (2, 0, 1));
}

#[tokio::test]
async fn a_plan_is_bounded_and_holds_nothing_that_a_worker_does_not_know() {
    let fleet = Fleet::start().await;
    let repairs = repairs(&fleet);
    let refused = async |plan: Plan, says: &str| {
        let wanted = RepairDraft {
            plan,
            ..draft("r-1")
        };
        let error = repairs.start(&wanted, "ann").await.unwrap_err();
        assert!(matches!(error, CoordinationError::Invalid(_)), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    };
    let plan = draft("r-1").plan;
    let mut other = plan.clone();
    other.stretches[0].stream = name("image", EVENTS);
    refused(other, "no stream of dead letters").await;
    let mut many = plan.clone();
    many.stretches = vec![plan.stretches[0].clone(); 1001];
    refused(many, "over the limit of 1000").await;
    let mut large = plan.clone();
    large.wanted.entries = (0..100_000).map(|ms| (1_700_000_000_000 + ms, 0)).collect();
    refused(large, "over the limit of 524288").await;
    let mut twice = plan.clone();
    twice.stretches.push(plan.stretches[0].clone());
    refused(twice, "twice").await;
    let mut slow = plan.clone();
    let anything = Where {
        path: "n".into(),
        value: None,
    };
    slow.wanted.fields = vec![anything; 101];
    refused(slow, "over the limit of 100").await;
    let uncounted = RepairDraft {
        total: Some(u64::MAX),
        ..draft("r-1")
    };
    let error = repairs.start(&uncounted, "ann").await.unwrap_err();
    assert!(error.to_string().contains("total"), "{error}");
    let mut odd = plan.clone();
    odd.mends = vec![Mend::Unset {
        path: "a..b".into(),
    }];
    refused(odd, "no path").await;
    let known: Result<Plan, _> = serde_json::from_str(r#"{"stretches": [], "run": "rm -rf /"}"#);
    assert!(known.is_err());
    let known: Result<Plan, _> = serde_json::from_str(r#"{"wanted": {"colour": "red"}}"#);
    assert!(known.is_err());
}

#[tokio::test]
async fn the_same_repair_is_there_once_and_those_that_ended_make_room() {
    let fleet = Fleet::start().await;
    let repairs = repairs(&fleet);
    repairs.start(&draft("r-0"), "ann").await.unwrap();
    repairs.start(&draft("r-0"), "ann").await.unwrap();
    let mut other = draft("r-0");
    other.plan.force = true;
    let taken = repairs.start(&other, "ann").await;
    assert!(matches!(taken, Err(CoordinationError::AlreadyExists(_))));
    for n in 1..MAX_REPAIRS {
        let wanted = draft(&format!("r-{n}"));
        repairs.start(&wanted, "ann").await.unwrap();
    }
    let full = repairs.start(&draft("new"), "ann").await;
    assert!(matches!(full, Err(CoordinationError::Exhausted(_))));
    repairs.cancel("r-7", "ann").await.unwrap();
    repairs.start(&draft("new"), "ann").await.unwrap();
    let all = repairs.list().await.unwrap();
    assert_eq!(all.len(), MAX_REPAIRS);
    assert!(all.contains_key("new") && !all.contains_key("r-7"));
}

#[tokio::test]
async fn a_repair_that_has_ended_does_not_start_again_and_whoever_asks_is_told() {
    let fleet = Fleet::start().await;
    let repairs = repairs(&fleet);
    repairs.start(&draft("r-1"), "ann").await.unwrap();
    repairs.cancel("r-1", "bob").await.unwrap();
    let again = repairs.start(&draft("r-1"), "ann").await.unwrap_err();
    assert!(matches!(again, CoordinationError::FailedPrecondition(_)));
    assert!(again.to_string().contains("cancelled by bob"), "{again}");
}

#[tokio::test]
async fn a_name_that_is_used_again_begins_at_the_beginning() {
    let mut fleet = Fleet::start().await;
    bury(&mut fleet, 2).await;
    let repairs = repairs(&fleet);
    repairs.start(&draft("r-1"), "ann").await.unwrap();
    assert_eq!(done(step(&mut fleet, 5, (None, 1), &[1], &[]).await).0, 1);
    let (plan, state) = repairs.read("r-1").await.unwrap();
    // As a hundred later ones have it forgotten.
    fleet.run("DEL cb:repairs cb:repairs:states").await;
    loop {
        let now: (u64, u64) = fleet.ask("TIME").await;
        if now.0 * 1000 + now.1 / 1000 > state.at {
            break;
        }
    }
    repairs.start(&draft("r-1"), "ann").await.unwrap();
    let begun = repairs.progress(&noted(&fleet).await, &plan).await;
    assert_eq!(begun.unwrap(), Progress::default());
    assert_eq!(done(step(&mut fleet, 1, (None, 2), &[2], &[]).await).0, 1);
}

#[tokio::test]
async fn a_lease_from_before_the_clock_stepped_back_holds_nobody_up() {
    let fleet = Fleet::start().await;
    let repairs = repairs(&fleet);
    repairs.start(&draft("r-1"), "ann").await.unwrap();
    // An hour ahead, as a clock that then stepped back by an hour had it.
    let ahead = Duration::from_secs(3600);
    let held = repairs.take("r-1", "w-1", ahead).await.unwrap();
    assert_eq!(held, Right::Held(1));
    let taken = repairs.take("r-1", "w-2", LEASE).await.unwrap();
    assert_eq!(taken, Right::Held(2));
}
