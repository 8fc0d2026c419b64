//! Two who count the votes of one ballot: one has read them when the other one ends it.

use super::{told, vote};
use crate::fleet::Fleet;
use crate::support::between::between_all;
use crate::support::{until, users};
use convoke::connect::connector::Connector;
use convoke::coordination::ballots::ballot::BallotStatus;
use convoke::coordination::ballots::counting::Counter;
use convoke::coordination::ballots::{Ballots, Voted};
use convoke::coordination::error::CoordinationError;
use convoke::protocol::pattern::Pattern;
use convoke::settings::RedisUrl;
use serde_json::json;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// What stands in the votes of these tests, and in nothing else that a server answers.
const MARK: &[u8] = b"held-";

const OPEN: u8 = 0;
const CLOSED: u8 = 1;
const HOLDS: u8 = 2;

/// One for each ballot: what holds back the votes that somebody has read.
static GATES: [AtomicU8; 3] = [const { AtomicU8::new(OPEN) }; 3];

/// Holds back the first answer with votes after the gate was closed, until it is opened.
fn hold<const N: usize>(bytes: &mut [u8]) {
    let closed = || GATES[N].compare_exchange(CLOSED, HOLDS, Ordering::SeqCst, Ordering::SeqCst);
    if !bytes.windows(MARK.len()).any(|part| part == MARK) || closed().is_err() {
        return;
    }
    while GATES[N].load(Ordering::SeqCst) == HOLDS {
        std::thread::sleep(Duration::from_millis(1));
    }
}

type Counting = JoinHandle<Result<Voted, CoordinationError>>;

/// Has the votes counted by somebody who has read them, and gets no further until the gate is opened.
async fn held(counter: Counter<'static>, gate: &AtomicU8, by: Ballots) -> Counting {
    // So that it knows the history that it reads in.
    by.stands("d").await.unwrap();
    gate.store(CLOSED, Ordering::SeqCst);
    let counting = tokio::spawn(async move { by.count("d", counter).await });
    until("it has read the votes", || async {
        assert!(!counting.is_finished(), "it was not held");
        gate.load(Ordering::SeqCst) == HOLDS
    })
    .await;
    counting
}

impl Fleet {
    /// The ballots of another process, whose answers pass there.
    fn through(&self, passes: fn(&mut [u8])) -> Ballots {
        let url = between_all(&self.redis, users::WORKER, passes);
        let connector = Connector::new(&RedisUrl::new(url), 2).unwrap();
        Ballots::new(connector, self.keys.clone())
    }

    async fn all_vote(&self, values: [&str; 3], pattern: Pattern) {
        for (voter, value) in ["w-1", "w-2", "w-3"].into_iter().zip(values) {
            let vote = vote(voter, json!(value));
            self.ballots.take(&vote, pattern).await.unwrap();
        }
    }
}

async fn ended_once(values: [&str; 3], gate: &AtomicU8, passes: fn(&mut [u8])) -> BallotStatus {
    let mut fleet = Fleet::with_voters(3).await;
    fleet.all_vote(values, Pattern::Distributed).await;
    let counting = held(Counter::Everyone, gate, fleet.through(passes)).await;
    let first = fleet.ballots.count("d", Counter::Everyone).await.unwrap();
    let before: Vec<(String, Vec<u8>)> = fleet.ask("HGETALL cb:ballot:d").await;
    gate.store(OPEN, Ordering::SeqCst);
    let second = counting.await.unwrap().unwrap();
    assert_eq!(told(&second), told(&first));
    assert_eq!(second.decision, first.decision);
    let after: Vec<(String, Vec<u8>)> = fleet.ask("HGETALL cb:ballot:d").await;
    assert_eq!(after, before, "it ended a second time");
    let facts = fleet.quorum_facts().await;
    assert_eq!(facts.len(), 1, "{facts:?}");
    first.status
}

#[tokio::test]
async fn a_ballot_that_was_decided_since_its_votes_were_read_is_decided_and_told_once() {
    let status = ended_once(["held-1", "held-2", "held-1"], &GATES[0], hold::<0>).await;
    assert_eq!(status, BallotStatus::Decided);
}

#[tokio::test]
async fn a_ballot_that_was_deadlocked_since_its_votes_were_read_is_told_once() {
    let status = ended_once(["held-1", "held-2", "held-3"], &GATES[1], hold::<1>).await;
    assert_eq!(status, BallotStatus::Deadlocked);
}

#[tokio::test]
async fn an_arbiter_that_was_replaced_since_it_read_the_votes_ends_nothing() {
    let gate = &GATES[2];
    let mut fleet = Fleet::start().await;
    let mut incarnations = Vec::new();
    for id in ["w-1", "w-2", "w-3"] {
        incarnations.push(fleet.register(id, &["worker"]).await.incarnation);
    }
    fleet.all_vote(["held-1"; 3], Pattern::Centralized).await;
    let contest = fleet.instances.contend("w-1", incarnations[0]).await;
    assert!(contest.unwrap().lead.is_some());
    let counting = held(Counter::Arbiter("w-1"), gate, fleet.through(hold::<2>)).await;
    fleet.expire("w-1").await;
    let contest = fleet.instances.contend("w-2", incarnations[1]).await;
    assert!(contest.unwrap().lead.is_some());
    gate.store(OPEN, Ordering::SeqCst);
    let counted = counting.await.unwrap();
    assert!(
        matches!(counted, Err(CoordinationError::Aborted(_))),
        "{counted:?}"
    );
    assert!(fleet.quorum_facts().await.is_empty());
    let counted = fleet.ballots.count("d", Counter::Arbiter("w-2")).await;
    assert_eq!(counted.unwrap().status, BallotStatus::Decided);
    assert_eq!(fleet.quorum_facts().await.len(), 1);
}
