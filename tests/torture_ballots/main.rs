//! Ballots with five voters each, over several connections at once; every history of calls
//! must have an order that the model allows.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

use convoke::connect::connector::Connector;
use convoke::coordination::ballots::Ballots;
use convoke::coordination::ballots::ballot::BallotStatus;
use convoke::coordination::instances::Instances;
use convoke::protocol::keys::Keys;
use convoke::settings::RedisUrl;
use convoke::streams::read::entries_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use support::ballots::{self, Call, Claim, HOLDERS, Op, World};
use support::{Redis, torture};

/// Stands for processes: each with connections of its own.
const SITES: usize = 6;
/// Calls of each.
const CALLS: usize = 5;
/// Ballots at a time.
const AT_ONCE: u32 = 4;

/// What one site does: its own vote, repeated; others' votes, forged; strangers'; changed minds;
/// instances that come and go.
fn next(site: u8, dice: &mut fastrand::Rng) -> Op {
    let voter = match dice.u8(..10) {
        0 => HOLDERS,
        1 => HOLDERS + 1,
        2 | 3 => dice.u8(..HOLDERS),
        _ => site % HOLDERS,
    };
    let claim = match dice.u8(..8) {
        0 => Claim::Other,
        1..4 => Claim::Nothing,
        _ => Claim::Role,
    };
    let favourite = 1 + u8::from(site > 2);
    let value = match dice.u8(..4) {
        0 => dice.u8(1..4),
        _ => favourite,
    };
    match dice.u8(..12) {
        0 => Op::Join(voter),
        1 => Op::Leave(voter),
        _ => Op::Vote {
            voter,
            value,
            claim,
        },
    }
}

/// One ballot in a namespace of its own: the calls and what the server has in the end.
async fn one(
    connectors: Arc<Vec<Connector>>,
    url: String,
    number: u32,
) -> (usize, usize, BallotStatus) {
    let keys = Keys::new(&format!("b{number}")).unwrap();
    let time = Arc::new(AtomicU64::new(1));
    let mut calls = Vec::new();
    let here = |at: usize| {
        let connector = connectors[at].clone();
        let ballots = Ballots::new(connector.clone(), keys.clone());
        (
            Instances::of_process(connector, keys.clone(), "test"),
            ballots,
        )
    };
    let (instances, all_ballots) = here(0);
    for voter in 0..HOLDERS {
        let op = Op::Join(voter);
        let began = time.fetch_add(1, Ordering::SeqCst);
        let answer = ballots::perform(&instances, &all_ballots, op).await;
        let answered = Some((time.fetch_add(1, Ordering::SeqCst), answer));
        calls.push(Call {
            op,
            began,
            answered,
        });
    }
    let sites: Vec<_> = (0..SITES)
        .map(|site| {
            let (instances, all_ballots) = here(site);
            let time = time.clone();
            tokio::spawn(async move {
                let mut dice = torture::dice(&format!("ballot {number} {site}"));
                let mut calls = Vec::new();
                for _ in 0..CALLS {
                    let op = next(site as u8, &mut dice);
                    let began = time.fetch_add(1, Ordering::SeqCst);
                    let done = ballots::perform(&instances, &all_ballots, op);
                    // Some callers do not wait for the answer; then nobody knows what it was.
                    let limit = match op {
                        Op::Vote { .. } if dice.u8(..12) == 0 => {
                            Duration::from_micros(dice.u64(..500))
                        }
                        _ => Duration::from_secs(600),
                    };
                    let answer = tokio::time::timeout(limit, done).await.ok();
                    let answered =
                        answer.map(|answer| (time.fetch_add(1, Ordering::SeqCst), answer));
                    calls.push(Call {
                        op,
                        began,
                        answered,
                    });
                    if dice.bool() {
                        tokio::task::yield_now().await;
                    }
                }
                calls
            })
        })
        .collect();
    for site in sites {
        calls.extend(site.await.unwrap());
    }
    let ends = ballots::linearize(&calls).unwrap_or_else(|problem| {
        calls.sort_by_key(|call| call.began);
        panic!("ballot {number}: {problem}:\n{calls:#?}")
    });
    let unknown = calls.iter().filter(|call| call.answered.is_none()).count();
    let status = settled(&keys, &url, &all_ballots, &ends).await;
    (calls.len(), unknown, status)
}

/// Checks what is stored, and what was broadcast.
async fn settled(
    keys: &Keys,
    url: &str,
    all_ballots: &Ballots,
    ends: &std::collections::HashSet<World>,
) -> BallotStatus {
    let shown = all_ballots.show(ballots::DECISION).await.unwrap();
    let shown = shown.expect("one of the many calls opened it");
    let votes: Vec<(u8, u8)> = shown
        .votes
        .iter()
        .filter_map(|(id, value)| {
            let number = id.strip_prefix("w-")?.parse().ok()?;
            Some((number, *value.as_ref()?.first()?))
        })
        .collect();
    let explained = ends
        .iter()
        .filter_map(|world| world.ballot.as_ref())
        .any(|ballot| {
            ballot
                .votes
                .iter()
                .map(|(a, b)| (*a, *b))
                .eq(votes.iter().copied())
                && ballot.status() == shown.ballot.status
                && ballot.electorate.len() == shown.votes.len()
        });
    assert!(
        explained,
        "{shown:?} is not what any order of the calls leads to"
    );
    // A second and half a second are the library's own; a server that gets no time for that long has lost nothing.
    let patient = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(30)))
        .set_response_timeout(Some(Duration::from_secs(30)));
    let mut connection = redis::Client::open(url)
        .unwrap()
        .get_multiplexed_async_connection_with_config(&patient)
        .await
        .unwrap();
    let broadcast: redis::Value = redis::cmd("XRANGE")
        .arg(&[&keys.broadcast(), "-", "+"])
        .query_async(&mut connection)
        .await
        .unwrap();
    let broadcast = entries_of(broadcast).unwrap();
    let facts: Vec<_> = broadcast
        .iter()
        .filter(|fact| {
            fact.get("type")
                .is_some_and(|kind| kind.starts_with(b"quorum."))
        })
        .collect();
    match shown.ballot.status {
        BallotStatus::Open | BallotStatus::Expired => assert!(facts.is_empty()),
        status => {
            assert_eq!(facts.len(), 1, "{facts:?}");
            let kind = format!("quorum.{}", status.as_str());
            assert_eq!(facts[0].get("type"), Some(kind.as_bytes()));
        }
    }
    if shown.ballot.status == BallotStatus::Decided {
        let value = shown.ballot.value.clone().unwrap();
        let support = votes.iter().filter(|(_, v)| [*v] == value[..]).count() as u64;
        assert!(support >= shown.ballot.quorum);
        assert_eq!(shown.ballot.quorum, shown.votes.len() as u64 / 2 + 1);
        let data: rmpv::Value = rmp_serde::from_slice(facts[0].get("data").unwrap()).unwrap();
        let told = data
            .as_map()
            .unwrap()
            .iter()
            .find(|(name, _)| name.as_str() == Some("value"));
        assert_eq!(told.unwrap().1.as_u64(), Some(u64::from(value[0])));
    }
    shown.ballot.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_ballots_have_histories_that_one_vote_at_a_time_explains() {
    let redis = Redis::start();
    redis.allow_namespace("b*");
    let url = RedisUrl::new(redis.url());
    let connectors: Vec<Connector> = (0..SITES)
        .map(|_| Connector::new(&url, 4).unwrap())
        .collect();
    let connectors = Arc::new(connectors);
    let (mut calls, mut unknown) = (0, 0);
    let mut ended = std::collections::BTreeMap::new();
    let count = torture::size("TORTURE_BALLOTS", 1000, 10_000) as u32;
    for first in (0..count).step_by(AT_ONCE as usize) {
        let some: Vec<_> = (first..first + AT_ONCE)
            .map(|number| tokio::spawn(one(connectors.clone(), redis.admin_url(), number)))
            .collect();
        for ballot in some {
            let (made, open, status) = ballot.await.unwrap();
            calls += made;
            unknown += open;
            *ended.entry(status.as_str()).or_insert(0) += 1;
        }
    }
    assert!(ended["decided"] > 0 && ended["deadlocked"] > 0, "{ended:?}");
    torture::Report::default()
        .event(count.into(), "ballots, each history linearizable")
        .event(calls as u64, "calls of ballots")
        .event(unknown as u64, "of them without an answer")
        .note(format!("ballots ended {ended:?}"))
        .tell("ballots");
}

#[test]
fn the_search_finds_what_no_order_explains() {
    let mut world = World::default();
    let ops: Vec<Op> = (0..3)
        .map(Op::Join)
        .chain((0..3).map(|voter| Op::Vote {
            voter,
            value: 1,
            claim: Claim::Nothing,
        }))
        .collect();
    let calls: Vec<Call> = ops
        .iter()
        .enumerate()
        .map(|(at, op)| Call {
            op: *op,
            began: 2 * at as u64,
            answered: Some((2 * at as u64 + 1, world.apply(*op))),
        })
        .collect();
    assert_eq!(ballots::linearize(&calls).unwrap().len(), 1);
    // The second vote claims not to have decided.
    let mut wrong = calls.clone();
    wrong[4].answered = Some((9, calls[3].answered.clone().unwrap().1));
    ballots::linearize(&wrong).unwrap_err();
    // The order of calls that were not concurrent is given.
    let mut swapped = calls.clone();
    (swapped[3].answered, swapped[4].answered) = (
        Some((7, calls[4].answered.clone().unwrap().1)),
        Some((9, calls[3].answered.clone().unwrap().1)),
    );
    ballots::linearize(&swapped).unwrap_err();
    // Concurrent ones may be swapped, and what was never answered may have happened, or not.
    for call in &mut swapped[3..5] {
        call.began = 6;
        call.answered.as_mut().unwrap().0 = 9;
    }
    ballots::linearize(&swapped).unwrap();
    let mut open = calls.clone();
    open[3].answered = None;
    ballots::linearize(&open).unwrap();
}
