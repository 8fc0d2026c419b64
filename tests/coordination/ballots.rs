//! Ballots: every branch of the script, and what is read back.

mod counted;
mod kept;
mod raced;

use crate::fleet::Fleet;
use convoke::coordination::ballots::Voted;
use convoke::coordination::ballots::ballot::{BallotStatus, Vote};
use convoke::coordination::error::CoordinationError;
use convoke::protocol::json::{from_json, to_json};
use serde_json::{Value, json};

fn vote(voter: &str, value: Value) -> Vote {
    Vote::new("d", voter, from_json(&value))
}

fn in_role(vote: Vote, role: &str) -> Vote {
    Vote {
        role: Some(role.into()),
        ..vote
    }
}

/// voted, status, votes counted, quorum, electorate
fn told(voted: &Voted) -> (bool, BallotStatus, u64, u64, u64) {
    let Voted {
        voted,
        status,
        vote_count,
        quorum,
        electorate,
        ..
    } = *voted;
    (voted, status, vote_count, quorum, electorate)
}

fn decided(voted: &Voted) -> Value {
    to_json(voted.decision.as_deref().expect("a decision")).unwrap()
}

impl Fleet {
    async fn with_voters(count: usize) -> Fleet {
        let fleet = Fleet::start().await;
        for number in 1..=count {
            fleet.register(&format!("w-{number}"), &["worker"]).await;
        }
        fleet
    }

    async fn vote(&self, voter: &str, value: Value) -> Voted {
        self.ballots.vote(&vote(voter, value)).await.unwrap()
    }

    async fn refused(&self, vote: &Vote) -> String {
        match self.ballots.vote(vote).await {
            Err(CoordinationError::FailedPrecondition(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    async fn quorum_facts(&mut self) -> Vec<(String, Value)> {
        let facts = self.facts().await.into_iter();
        facts
            .filter(|(kind, _)| kind.starts_with("quorum."))
            .collect()
    }

    async fn ballot_keys(&mut self) -> Vec<String> {
        let keys = self.all_keys().await.into_iter();
        keys.filter(|key| key.contains("ballot")).collect()
    }
}

#[tokio::test]
async fn the_vote_that_reaches_quorum_decides_in_one_step_with_the_fact() {
    let mut fleet = Fleet::with_voters(3).await;
    let first = fleet.vote("w-1", json!("yes")).await;
    assert_eq!(told(&first), (true, BallotStatus::Open, 1, 2, 3));
    assert_eq!(first.decision, None);
    assert!(fleet.quorum_facts().await.is_empty());
    let second = fleet.vote("w-3", json!("yes")).await;
    assert_eq!(told(&second), (true, BallotStatus::Decided, 2, 2, 3));
    assert_eq!(decided(&second), "yes");
    let fact = json!({
        "decision": "d", "value": "yes", "vote_count": 2, "quorum": 2, "electorate": 3,
        "votes": {"w-1": "yes", "w-3": "yes"}
    });
    assert_eq!(
        fleet.quorum_facts().await,
        [("quorum.decided".into(), fact)]
    );
}

#[tokio::test]
async fn a_vote_after_the_decision_is_not_counted_and_is_told_it() {
    let mut fleet = Fleet::with_voters(3).await;
    fleet.vote("w-1", json!("yes")).await;
    fleet.vote("w-2", json!("yes")).await;
    for value in ["no", "yes", "no"] {
        let late = fleet.vote("w-3", json!(value)).await;
        assert_eq!(
            told(&late),
            (false, BallotStatus::Decided, 2, 2, 3),
            "{value}"
        );
        assert_eq!(decided(&late), "yes");
    }
    let votes: Vec<String> = fleet.ask("HKEYS cb:ballot:d:votes").await;
    assert_eq!(votes.len(), 2);
    assert_eq!(fleet.quorum_facts().await.len(), 1);
}

#[tokio::test]
async fn the_same_vote_again_changes_nothing_in_whatever_encoding() {
    let mut fleet = Fleet::with_voters(3).await;
    let one = |bytes: &[u8]| Vote::new("d", "w-1", bytes.to_vec());
    let first = fleet.ballots.vote(&one(&[1])).await.unwrap();
    for bytes in [&[1][..], &[0xcc, 1], &[0xd3, 0, 0, 0, 0, 0, 0, 0, 1]] {
        assert_eq!(fleet.ballots.vote(&one(bytes)).await.unwrap(), first);
    }
    fleet.vote("w-2", json!(1)).await;
    // It is still this instance's vote when the ballot has ended.
    let after = fleet.ballots.vote(&one(&[1])).await.unwrap();
    assert_eq!(told(&after), (true, BallotStatus::Decided, 2, 2, 3));
    assert_eq!(fleet.quorum_facts().await.len(), 1);
}

#[tokio::test]
async fn another_value_is_refused_before_and_after_the_decision() {
    let fleet = Fleet::with_voters(3).await;
    fleet.vote("w-1", json!("yes")).await;
    for status in ["open", "decided"] {
        // Another type is another value.
        for value in [json!("no"), json!(["yes"]), json!(null)] {
            let error = fleet.ballots.vote(&vote("w-1", value)).await.unwrap_err();
            let CoordinationError::AlreadyExists(message) = error else {
                panic!("{error}");
            };
            assert!(
                message.contains("w-1") && message.contains(status),
                "{message}"
            );
        }
        fleet.vote("w-2", json!("yes")).await;
    }
    let shown = fleet.ballots.show("d").await.unwrap().unwrap();
    assert_eq!(shown.ballot.vote_count, 2);
    assert_eq!(shown.votes[0].1, Some(from_json(&json!("yes"))));
}

#[tokio::test]
async fn the_electorate_is_who_was_active_at_the_first_vote() {
    let mut fleet = Fleet::with_voters(3).await;
    fleet.register("gone", &["worker"]).await;
    fleet.instances.unregister("gone", None).await.unwrap();
    fleet.register("expired", &["worker"]).await;
    fleet.expire("expired").await;
    let first = fleet.vote("w-1", json!(1)).await;
    assert_eq!((first.quorum, first.electorate), (2, 3));
    fleet.register("late", &["worker"]).await;
    fleet.register("expired", &["worker"]).await;
    for stranger in ["late", "expired", "gone", "nobody"] {
        let message = fleet.refused(&vote(stranger, json!(1))).await;
        assert!(message.starts_with("instance_id: "), "{message}");
    }
    // Who goes keeps the vote that it has, and still counts.
    fleet.instances.unregister("w-2", None).await.unwrap();
    let second = fleet.vote("w-2", json!(1)).await;
    assert_eq!(told(&second), (true, BallotStatus::Decided, 2, 2, 3));
    let message = fleet.refused(&vote("late", json!(1))).await;
    assert!(message.contains("electorate"), "{message}");
}

#[tokio::test]
async fn with_a_role_only_its_active_holders_vote() {
    let mut fleet = Fleet::with_voters(2).await;
    for id in ["g-1", "g-2", "g-3", "g-4"] {
        fleet.register(id, &["worker", "gpu"]).await;
    }
    fleet.expire("g-4").await;
    let by_role = |voter: &str| in_role(vote(voter, json!(1)), "gpu");
    let message = fleet.refused(&by_role("w-1")).await;
    assert!(message.contains("gpu"), "{message}");
    fleet.refused(&by_role("g-4")).await;
    assert!(fleet.ballot_keys().await.is_empty());
    let first = fleet.ballots.vote(&by_role("g-1")).await.unwrap();
    assert_eq!(told(&first), (true, BallotStatus::Open, 1, 2, 3));
    fleet.refused(&vote("w-1", json!(1))).await;
    let shown = fleet.ballots.show("d").await.unwrap().unwrap();
    let ids: Vec<&str> = shown.votes.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["g-1", "g-2", "g-3"]);
    assert_eq!(shown.ballot.role.as_deref(), Some("gpu"));
}

#[tokio::test]
async fn a_vote_that_means_another_electorate_is_refused_and_another_time_is_ignored() {
    let mut fleet = Fleet::with_voters(3).await;
    let opening = Vote {
        expires_in_ms: 60_000,
        ..in_role(vote("w-1", json!(1)), "worker")
    };
    fleet.ballots.vote(&opening).await.unwrap();
    for (voter, role) in [("w-2", "gpu"), ("w-1", "gpu")] {
        let message = fleet.refused(&in_role(vote(voter, json!(1)), role)).await;
        assert!(message.starts_with("role: "), "{message}");
    }
    let before: u64 = fleet.ask("HGET cb:ballot:d expires_at").await;
    // No role takes part in whatever ballot there is.
    let other_time = Vote {
        expires_in_ms: 1,
        ..vote("w-2", json!(1))
    };
    let second = fleet.ballots.vote(&other_time).await.unwrap();
    assert_eq!(told(&second), (true, BallotStatus::Decided, 2, 2, 3));
    assert_eq!(
        fleet.ask::<u64>("HGET cb:ballot:d expires_at").await,
        before
    );
    // A ballot of all is not one of a role.
    let all = Vote::new("all", "w-1", vec![1]);
    fleet.ballots.vote(&all).await.unwrap();
    let message = fleet.refused(&in_role(all, "worker")).await;
    assert!(message.contains("all instances"), "{message}");
}

#[tokio::test]
async fn who_may_not_vote_opens_nothing() {
    let mut fleet = Fleet::start().await;
    fleet.refused(&vote("w-1", json!(1))).await;
    assert!(fleet.all_keys().await.is_empty(), "an empty electorate");
    fleet.register("w-1", &["worker"]).await;
    fleet.register("w-2", &["worker"]).await;
    fleet.expire("w-2").await;
    let before = fleet.all_keys().await;
    for vote in [
        vote("stranger", json!(1)),
        vote("w-2", json!(1)),
        in_role(vote("w-1", json!(1)), "gpu"),
    ] {
        fleet.refused(&vote).await;
    }
    assert_eq!(fleet.all_keys().await, before);
}

#[tokio::test]
async fn one_instance_alone_decides_with_its_first_vote() {
    let mut fleet = Fleet::with_voters(1).await;
    let only = fleet.vote("w-1", json!(true)).await;
    assert_eq!(told(&only), (true, BallotStatus::Decided, 1, 1, 1));
    assert_eq!(fleet.quorum_facts().await.len(), 1);
}

#[tokio::test]
async fn a_ballot_that_can_not_reach_quorum_any_more_is_deadlocked_once() {
    let mut fleet = Fleet::with_voters(4).await;
    for (voter, value, status) in [
        ("w-1", "a", BallotStatus::Open),
        ("w-2", "b", BallotStatus::Open),
        // a: 1, b: 1, two left; 3 are needed: a or b could still have it.
        ("w-3", "a", BallotStatus::Open),
    ] {
        assert_eq!(fleet.vote(voter, json!(value)).await.status, status);
    }
    let last = fleet.vote("w-4", json!("b")).await;
    assert_eq!(told(&last), (true, BallotStatus::Deadlocked, 4, 3, 4));
    assert_eq!(last.decision, None);
    fleet.vote("w-4", json!("b")).await;
    let votes = json!({"w-1": "a", "w-2": "b", "w-3": "a", "w-4": "b"});
    let fact =
        json!({"decision": "d", "vote_count": 4, "quorum": 3, "electorate": 4, "votes": votes});
    assert_eq!(
        fleet.quorum_facts().await,
        [("quorum.deadlocked".into(), fact)]
    );

    // Sooner than the last vote: three values for three of four voters.
    for (voter, value) in [("w-1", 1), ("w-2", 2)] {
        fleet
            .ballots
            .vote(&Vote::new("e", voter, vec![value]))
            .await
            .unwrap();
    }
    let third = fleet
        .ballots
        .vote(&Vote::new("e", "w-3", vec![3]))
        .await
        .unwrap();
    assert_eq!(third.status, BallotStatus::Deadlocked);
    let late = fleet
        .ballots
        .vote(&Vote::new("e", "w-4", vec![3]))
        .await
        .unwrap();
    assert_eq!(told(&late), (false, BallotStatus::Deadlocked, 3, 3, 4));
}

#[tokio::test]
async fn a_ballot_expires_by_the_servers_clock_and_stays_so() {
    let mut fleet = Fleet::with_voters(3).await;
    fleet.vote("w-1", json!(1)).await;
    let opened_at: u64 = fleet.ask("HGET cb:ballot:d opened_at").await;
    let expires_at: u64 = fleet.ask("HGET cb:ballot:d expires_at").await;
    assert_eq!(expires_at - opened_at, 300_000);
    fleet.run("HSET cb:ballot:d expires_at 1000").await;
    // Seen as expired before any vote finds it so.
    let shown = fleet.ballots.show("d").await.unwrap().unwrap();
    assert_eq!(
        (shown.ballot.status, shown.ballot.ended_at),
        (BallotStatus::Expired, Some(1000))
    );
    assert_eq!(
        fleet.ballots.list(9).await.unwrap()[0].status,
        BallotStatus::Expired
    );
    let late = fleet.vote("w-2", json!(1)).await;
    assert_eq!(told(&late), (false, BallotStatus::Expired, 1, 2, 3));
    // The clock goes back: it does not open again.
    fleet.run("HSET cb:ballot:d expires_at 9000000000000").await;
    assert_eq!(
        told(&fleet.vote("w-3", json!(1)).await),
        (false, BallotStatus::Expired, 1, 2, 3)
    );
    assert_eq!(
        told(&fleet.vote("w-1", json!(1)).await),
        (true, BallotStatus::Expired, 1, 2, 3)
    );
    assert!(fleet.quorum_facts().await.is_empty());
    // Time does not undo a decision.
    for voter in ["w-1", "w-2"] {
        fleet
            .ballots
            .vote(&Vote::new("e", voter, vec![1]))
            .await
            .unwrap();
    }
    fleet.run("HSET cb:ballot:e expires_at 1000").await;
    let late = fleet
        .ballots
        .vote(&Vote::new("e", "w-3", vec![2]))
        .await
        .unwrap();
    assert_eq!(told(&late), (false, BallotStatus::Decided, 2, 2, 3));
}

#[tokio::test]
async fn a_ballot_of_a_moment_runs_out_by_itself() {
    let fleet = Fleet::with_voters(3).await;
    let short = Vote {
        expires_in_ms: 1,
        ..vote("w-1", json!(1))
    };
    fleet.ballots.vote(&short).await.unwrap();
    crate::support::until("it is expired", || async {
        let shown = fleet.ballots.show("d").await.unwrap().unwrap();
        shown.ballot.status == BallotStatus::Expired
    })
    .await;
    assert!(!fleet.vote("w-2", json!(1)).await.voted);
}

#[tokio::test]
async fn the_decision_comes_back_in_the_type_in_which_it_was_given() {
    let mut fleet = Fleet::with_voters(1).await;
    let values = [
        rmpv::Value::Nil,
        true.into(),
        0.into(),
        u64::MAX.into(),
        i64::MIN.into(),
        1.0.into(),
        "".into(),
        "zwölf\0\n".into(),
        rmpv::Value::Binary(vec![0, 255, 10]),
        rmpv::Value::Ext(7, vec![1, 2, 3]),
        rmpv::Value::Array(vec![1.into(), "a".into()]),
        rmpv::Value::Map(vec![("a".into(), 1.into()), ("b".into(), rmpv::Value::Nil)]),
        rmpv::Value::from("x".repeat(1000)),
    ];
    for (number, value) in values.into_iter().enumerate() {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &value).unwrap();
        let voted = fleet
            .ballots
            .vote(&Vote::new(format!("d-{number}"), "w-1", bytes.clone()))
            .await
            .unwrap();
        assert_eq!(voted.decision.as_deref(), Some(bytes.as_slice()), "{value}");
        let shown = fleet.ballots.show(&format!("d-{number}")).await.unwrap();
        assert_eq!(shown.unwrap().ballot.value, Some(bytes));
        let broadcast: redis::Value = fleet.ask("XREVRANGE cb:broadcast + - COUNT 1").await;
        let fact = convoke::streams::read::entries_of(broadcast)
            .unwrap()
            .remove(0);
        let data = rmpv::decode::read_value(&mut fact.get("data").unwrap()).unwrap();
        let pairs = data.as_map().unwrap();
        let told = |wanted| pairs.iter().find(|(name, _)| name.as_str() == Some(wanted));
        assert_eq!(told("value").unwrap().1, value);
        let votes = told("votes").unwrap().1.as_map().unwrap();
        assert_eq!(votes[..], [("w-1".into(), value)]);
        assert_eq!(pairs.len(), 6);
    }
}
