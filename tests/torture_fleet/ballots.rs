//! Votes while workers are killed and stopped, in each pattern that counts apart from storing.

use super::Look;
use super::patterns::choose;
use crate::support::fleet::{self, Fleet, TTL};
use crate::support::torture::{Report, dice, size};
use crate::support::{signal, until};
use convoke::client::Client;
use convoke::client::publish::Outgoing;
use convoke::client::request::RequestError;
use convoke::coordination::ballots::Ballots;
use convoke::coordination::ballots::ballot::BallotStatus;
use convoke::coordination::instances::instance::Registering;
use convoke::protocol::json::to_json;
use convoke::protocol::pattern::{Pattern, Patterned};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const WORKERS: usize = 4;
const VOTERS: usize = 5;

/// A vote that was answered.
struct Answer {
    decision: u64,
    voter: usize,
    value: u64,
    /// When it was asked and when it was answered, in steps that all count together.
    asked: u64,
    answered: u64,
    told: Value,
}

fn name(decision: u64) -> String {
    format!("d-{decision}")
}

/// Votes until it is answered.
async fn vote(client: &Client, decision: u64, voter: usize, value: u64) -> Value {
    let data = json!({
        "decision": name(decision), "instance_id": format!("v-{voter}"), "value": value, "role": "voter",
    });
    loop {
        let event = Outgoing::new("system.quorum.vote", &data);
        match client.request(event, Duration::from_secs(60)).await {
            Ok(reply) => return reply.decode().unwrap(),
            Err(RequestError::Remote(error)) if error.retryable => {}
            Err(error) => panic!("{decision} {voter}: {error}"),
        }
    }
}

/// All vote on one thing after the other; mostly for the same, sometimes so that nothing is decided.
async fn vote_until(client: Client, over: Arc<AtomicBool>) -> Vec<Answer> {
    let time = Arc::new(AtomicU64::new(0));
    let mut dice = dice("votes");
    let mut answers = Vec::new();
    let mut decision = 0;
    while !over.load(Ordering::Relaxed) {
        decision += 1;
        let values = if dice.u8(..4) == 0 { 4 } else { 2 };
        let voting = (0..VOTERS).map(|voter| {
            let (client, time, value) = (client.clone(), time.clone(), dice.u64(..values));
            tokio::spawn(async move {
                let asked = time.fetch_add(1, Ordering::SeqCst);
                let told = vote(&client, decision, voter, value).await;
                let answered = time.fetch_add(1, Ordering::SeqCst);
                Answer {
                    decision,
                    voter,
                    value,
                    asked,
                    answered,
                    told,
                }
            })
        });
        let voting: Vec<_> = voting.collect();
        for voted in voting {
            answers.push(voted.await.unwrap());
        }
    }
    answers
}

/// What the votes of a ballot give.
fn given(votes: &BTreeMap<usize, u64>) -> (BallotStatus, Option<u64>) {
    let quorum = VOTERS / 2 + 1;
    let support = |value: u64| votes.values().filter(|vote| **vote == value).count();
    let first = votes.values().copied().max_by_key(|value| support(*value));
    let leading = first.map_or(0, support);
    match first {
        Some(value) if leading >= quorum => (BallotStatus::Decided, Some(value)),
        _ if leading + VOTERS - votes.len() < quorum => (BallotStatus::Deadlocked, None),
        _ => (BallotStatus::Open, None),
    }
}

/// Checks all ballots against what was answered and what was told; how many were decided.
async fn check(look: &Look, ballots: &Ballots, answers: &[Answer]) -> u64 {
    let mut facts: BTreeMap<String, Vec<(String, Value)>> = BTreeMap::new();
    for (_, kind, data) in look.facts().await {
        if kind.starts_with("quorum.") {
            let of = facts.entry(data["decision"].as_str().unwrap().to_owned());
            of.or_default().push((kind, data));
        }
    }
    let mut decided = 0;
    let last = answers.iter().map(|answer| answer.decision).max().unwrap();
    for decision in 1..=last {
        let shown = ballots.show(&name(decision)).await.unwrap().unwrap();
        let votes = shown.votes.iter().filter_map(|(id, value)| {
            let voter = id.strip_prefix("v-")?.parse().ok()?;
            Some((voter, to_json(value.as_ref()?).unwrap().as_u64()?))
        });
        let votes: BTreeMap<usize, u64> = votes.collect();
        let (status, value) = given(&votes);
        let said = shown
            .ballot
            .value
            .as_ref()
            .map(|value| to_json(value).unwrap());
        assert_eq!(
            (shown.ballot.status, said.clone()),
            (status, value.map(Value::from)),
            "{shown:?}"
        );
        let told = facts.remove(&name(decision)).unwrap_or_default();
        assert_eq!(told.len(), 1, "{decision}: {told:?}");
        assert_eq!(told[0].0, format!("quorum.{}", status.as_str()));
        assert_eq!(told[0].1.get("value"), said.as_ref());
        decided += u64::from(status == BallotStatus::Decided);
        let of = |answer: &&Answer| answer.decision == decision;
        let mut ended = u64::MAX;
        for answer in answers.iter().filter(of) {
            let told = &answer.told;
            let vote = votes.get(&answer.voter);
            match told["voted"].as_bool().unwrap() {
                true => assert_eq!(vote, Some(&answer.value), "{told} is not stored"),
                false => assert_eq!(vote, None, "{told} is stored"),
            }
            if told["status"] != "open" {
                assert_eq!(
                    told["status"],
                    status.as_str(),
                    "{told}, and it is {shown:?}"
                );
                assert_eq!(told.get("final_decision"), said.as_ref());
                ended = ended.min(answer.answered);
            }
        }
        for answer in answers
            .iter()
            .filter(of)
            .filter(|answer| answer.asked > ended)
        {
            assert_ne!(
                answer.told["status"], "open",
                "it had ended: {}",
                answer.told
            );
        }
    }
    assert!(facts.is_empty(), "{facts:?}");
    decided
}

/// Kills and stops workers while all vote, in that pattern, or in another one after each fault.
async fn votes_hold(pattern: Option<Pattern>) {
    let kills = size("TORTURE_PATTERN_KILLS", 5, 50);
    let stops = size("TORTURE_PATTERN_STOPS", 2, 20);
    let look = Look::new();
    let mut fleet = Fleet::start(&look.redis, WORKERS);
    look.all_are_there(WORKERS).await;
    let client = fleet::client(&look.redis);
    choose(&client, Patterned::Quorum, pattern.unwrap_or_default()).await;
    for voter in 0..VOTERS {
        let mut registering = Registering::new(format!("v-{voter}"), ["voter"]);
        registering.ttl_ms = 3_600_000;
        look.instances.register(&registering).await.unwrap();
    }
    let ballots = Ballots::new(look.connector(), look.keys());
    let over = Arc::new(AtomicBool::new(false));
    let voting = tokio::spawn(vote_until(client.clone(), over.clone()));
    let mut dice = dice("ballots");
    for fault in 0..kills + stops {
        if pattern.is_none() {
            let next = Pattern::ALL[fault as usize % Pattern::ALL.len()];
            choose(&client, Patterned::Quorum, next).await;
        }
        // The arbiter as often as anybody.
        let place = match look.instances.leader().await.unwrap() {
            Some(leader) if dice.bool() => fleet.position(&leader),
            _ => None,
        };
        let place = place.unwrap_or_else(|| dice.usize(..fleet.len()));
        if fault < kills {
            fleet.kill(place, dice.bool());
        } else {
            signal(fleet.pid(place), "STOP");
            tokio::time::sleep(TTL.mul_f64(1.5)).await;
            signal(fleet.pid(place), "CONT");
        }
        tokio::time::sleep(TTL.mul_f64(dice.f64())).await;
    }
    over.store(true, Ordering::Relaxed);
    let answers = voting.await.unwrap();
    let last = answers.iter().map(|answer| answer.decision).max().unwrap();
    until("all ballots have ended", || async {
        let listed = ballots.list(1000).await.unwrap();
        listed
            .iter()
            .all(|ballot| ballot.status != BallotStatus::Open)
    })
    .await;
    let decided = check(&look, &ballots, &answers).await;
    assert!(decided > 0);
    let open = answers
        .iter()
        .filter(|answer| answer.told["status"] == "open");
    Report::default()
        .fault(kills, "workers killed")
        .fault(stops, "workers stopped past their lease")
        .event(
            last,
            "ballots, each decided as its votes give it, and told once",
        )
        .event(answers.len() as u64, "votes")
        .note(format!(
            "{decided} decided, {} votes answered while the ballot was open",
            open.count()
        ))
        .tell(match pattern {
            Some(Pattern::Centralized) => "ballots of an arbiter",
            Some(Pattern::Distributed) => "ballots that everyone counts",
            _ => "ballots while their pattern changes",
        });
    fleet.drain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_dies_an_arbiter_decides_what_the_votes_give_and_tells_it_once() {
    votes_hold(Some(Pattern::Centralized)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_dies_everyone_decides_what_the_votes_give_and_it_is_told_once() {
    votes_hold(Some(Pattern::Distributed)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pattern_that_changes_between_votes_flips_no_decision() {
    votes_hold(None).await;
}
