//! Ballots that an arbiter or everyone counts.

use super::{decided, told, vote};
use crate::fleet::Fleet;
use convoke::coordination::ballots::ballot::{BallotStatus, Vote};
use convoke::coordination::ballots::counting::{Counter, Taken};
use convoke::coordination::error::CoordinationError;
use convoke::protocol::pattern::Pattern;
use serde_json::{Value, json};

const EVERYONE: Pattern = Pattern::Distributed;
const ARBITER: Pattern = Pattern::Centralized;

impl Fleet {
    async fn take(&self, voter: &str, value: Value, pattern: Pattern) -> Taken {
        let vote = vote(voter, value);
        self.ballots.take(&vote, pattern).await.unwrap()
    }

    async fn status(&self) -> BallotStatus {
        let shown = self.ballots.show("d").await.unwrap();
        shown.expect("it is there").ballot.status
    }
}

#[tokio::test]
async fn votes_that_may_decide_are_counted_by_whoever_likes_and_told_once() {
    let mut fleet = Fleet::with_voters(4).await;
    let first = fleet.take("w-1", json!("yes"), EVERYONE).await;
    assert_eq!(told(&first.voted), (true, BallotStatus::Open, 1, 3, 4));
    assert_eq!(first.counts, None);
    // Two of four: a deadlock could be, a decision not.
    let second = fleet.take("w-2", json!("yes"), EVERYONE).await;
    assert_eq!(second.counts, Some(EVERYONE));
    let counted = fleet.ballots.count("d", Counter::Everyone).await.unwrap();
    assert_eq!(counted.status, BallotStatus::Open);
    assert!(fleet.ballots.uncounted().await.unwrap().is_empty());
    let third = fleet.take("w-3", json!("yes"), EVERYONE).await;
    assert_eq!(
        (third.voted.status, third.counts),
        (BallotStatus::Open, Some(EVERYONE))
    );
    assert_eq!(fleet.ballots.uncounted().await.unwrap().len(), 1);
    assert!(fleet.quorum_facts().await.is_empty());
    // One that comes before anybody has counted is stored, and changes nothing.
    let fourth = fleet.take("w-4", json!("no"), EVERYONE).await;
    assert!(fourth.voted.voted);
    for _ in 0..3 {
        let counted = fleet.ballots.count("d", Counter::Everyone).await.unwrap();
        assert_eq!(told(&counted), (false, BallotStatus::Decided, 4, 3, 4));
        assert_eq!(decided(&counted), json!("yes"));
    }
    let facts = fleet.quorum_facts().await;
    let votes = json!({"w-1": "yes", "w-2": "yes", "w-3": "yes", "w-4": "no"});
    let fact = json!({
        "decision": "d", "value": "yes", "vote_count": 4, "quorum": 3, "electorate": 4, "votes": votes,
    });
    assert_eq!(facts, [("quorum.decided".to_owned(), fact)]);
    // The same vote again, another one's, another value.
    let again = fleet.take("w-4", json!("no"), EVERYONE).await;
    assert_eq!(decided(&again.voted), json!("yes"));
    assert_eq!((again.voted.voted, again.counts), (true, None));
    fleet.refused(&vote("w-9", json!("yes"))).await;
    let changed = vote("w-4", json!("yes"));
    let changed = fleet.ballots.take(&changed, EVERYONE).await.unwrap_err();
    assert!(
        matches!(changed, CoordinationError::AlreadyExists(_)),
        "{changed}"
    );
    assert!(fleet.ballots.uncounted().await.unwrap().is_empty());
}

#[tokio::test]
async fn votes_that_make_a_decision_impossible_end_the_ballot_when_they_are_counted() {
    let mut fleet = Fleet::with_voters(3).await;
    for (voter, value) in [("w-1", 1), ("w-2", 2), ("w-3", 3)] {
        fleet.take(voter, json!(value), EVERYONE).await;
    }
    let counted = fleet.ballots.count("d", Counter::Everyone).await.unwrap();
    assert_eq!(told(&counted), (false, BallotStatus::Deadlocked, 3, 2, 3));
    let facts = fleet.quorum_facts().await;
    assert_eq!(facts.len(), 1);
    assert_eq!(facts[0].0, "quorum.deadlocked");
}

#[tokio::test]
async fn a_ballot_keeps_the_pattern_in_which_it_was_opened() {
    let mut fleet = Fleet::with_voters(3).await;
    fleet.take("w-1", json!("yes"), EVERYONE).await;
    // Whatever is chosen by now.
    let second = fleet.take("w-2", json!("yes"), Pattern::Hybrid).await;
    assert_eq!(
        (second.voted.status, second.counts),
        (BallotStatus::Open, Some(EVERYONE))
    );
    let third = fleet.take("w-3", json!("no"), ARBITER).await;
    assert_eq!(third.counts, Some(EVERYONE));
    assert!(fleet.quorum_facts().await.is_empty());
    let shown = fleet.ballots.show("d").await.unwrap().unwrap();
    assert_eq!(shown.ballot.pattern, EVERYONE);
    let counted = fleet.ballots.count("d", Counter::Everyone).await.unwrap();
    assert_eq!(decided(&counted), json!("yes"));

    let other = |voter: &str| Vote {
        decision: "e".into(),
        ..vote(voter, json!("no"))
    };
    fleet.ballots.vote(&other("w-1")).await.unwrap();
    let decides = fleet.ballots.take(&other("w-2"), EVERYONE).await.unwrap();
    assert_eq!(
        (decided(&decides.voted), decides.counts),
        (json!("no"), None)
    );
    assert_eq!(fleet.quorum_facts().await.len(), 2);
    let shown = fleet.ballots.show("e").await.unwrap().unwrap();
    assert_eq!(shown.ballot.pattern, Pattern::Hybrid);
}

#[tokio::test]
async fn an_arbiter_decides_only_while_it_leads() {
    let mut fleet = Fleet::start().await;
    let mut incarnations = Vec::new();
    for id in ["w-1", "w-2", "w-3"] {
        let registered = fleet.register(id, &["worker"]).await;
        incarnations.push(registered.incarnation);
    }
    for voter in ["w-1", "w-2"] {
        fleet.take(voter, json!("yes"), ARBITER).await;
    }
    let refused = async |fleet: &Fleet, counter: Counter<'_>| {
        let counted = fleet.ballots.count("d", counter).await;
        matches!(counted, Err(CoordinationError::Aborted(_)))
    };
    assert!(refused(&fleet, Counter::Everyone).await);
    assert!(refused(&fleet, Counter::Arbiter("w-1")).await);
    let contest = fleet.instances.contend("w-1", incarnations[0]).await;
    assert!(contest.unwrap().lead.is_some());
    assert!(refused(&fleet, Counter::Arbiter("w-2")).await);
    assert!(refused(&fleet, Counter::Everyone).await);
    // It is not there any more, and nobody has noticed yet.
    fleet.expire("w-1").await;
    assert!(refused(&fleet, Counter::Arbiter("w-1")).await);
    assert_eq!(fleet.status().await, BallotStatus::Open);
    let contest = fleet.instances.contend("w-2", incarnations[1]).await;
    assert!(contest.unwrap().lead.is_some());
    assert!(refused(&fleet, Counter::Arbiter("w-1")).await);
    let counted = fleet.ballots.count("d", Counter::Arbiter("w-2")).await;
    assert_eq!(decided(&counted.unwrap()), json!("yes"));
    assert_eq!(fleet.quorum_facts().await.len(), 1);
}

#[tokio::test]
async fn votes_that_came_in_time_decide_though_they_are_counted_late() {
    let mut fleet = Fleet::with_voters(3).await;
    for voter in ["w-1", "w-2"] {
        fleet.take(voter, json!("yes"), EVERYONE).await;
    }
    let other = |voter: &str| Vote {
        decision: "e".into(),
        ..vote(voter, json!("no"))
    };
    fleet.ballots.take(&other("w-1"), EVERYONE).await.unwrap();
    fleet.run("HSET cb:ballot:d expires_at 1000").await;
    fleet.run("HSET cb:ballot:e expires_at 1000").await;
    // Nobody can say yet that it expired.
    assert_eq!(fleet.status().await, BallotStatus::Open);
    let listed = fleet.ballots.list(10).await.unwrap();
    assert!(listed.iter().all(|one| one.status == BallotStatus::Open));
    let late = fleet.take("w-3", json!("yes"), EVERYONE).await;
    assert_eq!((late.voted.voted, late.counts), (false, Some(EVERYONE)));
    let counted = fleet.ballots.count("d", Counter::Everyone).await.unwrap();
    assert_eq!(told(&counted), (false, BallotStatus::Decided, 2, 2, 3));
    // The other one has too few.
    let late = fleet.ballots.take(&other("w-2"), EVERYONE).await.unwrap();
    assert_eq!((late.voted.voted, late.counts), (false, Some(EVERYONE)));
    let counted = fleet.ballots.count("e", Counter::Everyone).await.unwrap();
    assert_eq!(told(&counted), (false, BallotStatus::Expired, 1, 2, 3));
    let late = fleet.ballots.take(&other("w-3"), EVERYONE).await.unwrap();
    assert_eq!(
        (late.voted.status, late.counts),
        (BallotStatus::Expired, None)
    );
    assert_eq!(fleet.quorum_facts().await.len(), 1);
    assert!(fleet.ballots.uncounted().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_gone_is_counted_no_more() {
    let mut fleet = Fleet::with_voters(3).await;
    for voter in ["w-1", "w-2"] {
        fleet.take(voter, json!("yes"), EVERYONE).await;
    }
    fleet.run("DEL cb:ballot:d").await;
    let left = fleet.ballots.uncounted().await.unwrap();
    assert_eq!(left.len(), 1);
    let counted = fleet.ballots.count("d", Counter::Everyone).await;
    assert!(
        matches!(counted, Err(CoordinationError::NotFound(_))),
        "{counted:?}"
    );
    assert!(fleet.ballots.uncounted().await.unwrap().is_empty());
}

/// How often all votes of a ballot were read since the last look.
async fn readings(fleet: &mut Fleet) -> u64 {
    let stats: String = fleet.ask("INFO commandstats").await;
    fleet.run("CONFIG RESETSTAT").await;
    let line = stats
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_hgetall:calls="));
    let calls = line.and_then(|line| line.split(',').next());
    calls.map_or(0, |calls| calls.parse().unwrap())
}

#[tokio::test]
async fn votes_of_which_nothing_can_come_are_not_read_and_those_that_come_together_are_read_once() {
    let mut fleet = Fleet::with_voters(20).await;
    for voter in 1..=9 {
        fleet
            .take(&format!("w-{voter}"), json!("yes"), EVERYONE)
            .await;
    }
    readings(&mut fleet).await;
    let open = fleet.ballots.count("d", Counter::Everyone).await.unwrap();
    assert_eq!(told(&open), (false, BallotStatus::Open, 9, 11, 20));
    assert_eq!(readings(&mut fleet).await, 0);
    fleet.take("w-10", json!("yes"), EVERYONE).await;
    let counts = (0..20).map(|_| fleet.ballots.count("d", Counter::Everyone));
    for counted in futures_util::future::join_all(counts).await {
        assert_eq!(
            told(&counted.unwrap()),
            (false, BallotStatus::Open, 10, 11, 20)
        );
    }
    assert_eq!(readings(&mut fleet).await, 1);
    fleet.take("w-11", json!("yes"), EVERYONE).await;
    for _ in 0..3 {
        let counted = fleet.ballots.count("d", Counter::Everyone).await.unwrap();
        assert_eq!(counted.status, BallotStatus::Decided);
    }
    // The second time for the fact.
    assert_eq!(readings(&mut fleet).await, 2);
}
