//! Ballots: every branch of the script, and what is read back.

use crate::fleet::Fleet;
use convoke::coordination::ballots::ballot::{BallotStatus, Vote};
use convoke::coordination::ballots::{MAX_ELECTORATE, MAX_ELECTORS, MAX_OPEN, Voted};
use convoke::coordination::error::CoordinationError;
use convoke::protocol::json::{from_json, to_json};
use convoke::protocol::keys::Keys;
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

#[tokio::test]
async fn the_fact_of_a_decision_stays_short_however_many_voted() {
    for (voters, told) in [(50, true), (70, false)] {
        let mut fleet = Fleet::with_voters(voters).await;
        for voter in 1..=voters / 2 + 1 {
            fleet
                .vote(&format!("w-{voter}"), json!("x".repeat(1000)))
                .await;
        }
        let facts = fleet.quorum_facts().await;
        let [(_, fact)] = facts.as_slice() else {
            panic!("{} facts", facts.len());
        };
        assert_eq!(fact["vote_count"], voters / 2 + 1);
        let votes = fact
            .get("votes")
            .map(|votes| votes.as_object().unwrap().len());
        assert_eq!(votes, told.then_some(voters / 2 + 1));
    }
}

#[tokio::test]
async fn a_ballot_is_kept_for_a_day_after_its_end_and_then_goes_whole() {
    let mut fleet = Fleet::with_voters(3).await;
    let day = 24 * 3_600_000;
    let opening = Vote {
        expires_in_ms: 3_600_000,
        ..vote("w-1", json!(1))
    };
    fleet.ballots.vote(&opening).await.unwrap();
    let keys = [
        "cb:ballot:d",
        "cb:ballot:d:electorate",
        "cb:ballot:d:tally",
        "cb:ballot:d:votes",
        "cb:ballots",
        "cb:ballots:electors",
        "cb:ballots:kept",
        "cb:ballots:open",
    ];
    assert_eq!(fleet.ballot_keys().await, keys);
    for (votes, least, most) in [
        (1, day + 3_000_000, day + 3_600_000),
        (2, day - 600_000, day),
    ] {
        let mut ends = Vec::new();
        for key in &keys[..4] {
            let left: i64 = fleet.ask(&format!("PTTL {key}")).await;
            assert!(
                (least..=most).contains(&left),
                "{votes} votes: {key} {left}"
            );
            ends.push(fleet.ask::<i64>(&format!("PEXPIRETIME {key}")).await);
        }
        ends.dedup();
        assert_eq!(ends.len(), 1, "all in the same moment");
        let kept: i64 = fleet.ask("HGET cb:ballot:d kept_until").await;
        assert_eq!(kept, ends[0]);
        fleet.vote("w-2", json!(1)).await;
    }
    for key in &keys[4..7] {
        assert!(
            fleet.ask::<i64>(&format!("PTTL {key}")).await > 7 * day,
            "{key}"
        );
    }
    // Gone: nothing is shown of it, and the name opens another ballot.
    for key in &keys[..4] {
        fleet.run(&format!("DEL {key}")).await;
    }
    assert_eq!(fleet.ballots.show("d").await.unwrap(), None);
    assert!(fleet.ballots.list(10).await.unwrap().is_empty());
    let next = fleet.vote("w-3", json!(2)).await;
    assert_eq!(told(&next), (true, BallotStatus::Open, 1, 2, 3));
}

#[tokio::test]
async fn what_somebody_left_over_of_a_ballot_is_not_counted_in_the_next() {
    let mut fleet = Fleet::with_voters(3).await;
    fleet.vote("w-1", json!(1)).await;
    fleet.run("DEL cb:ballot:d").await;
    let first = fleet.vote("w-2", json!(1)).await;
    assert_eq!(told(&first), (true, BallotStatus::Open, 1, 2, 3));
}

#[tokio::test]
async fn the_list_has_the_latest_first_and_is_bounded() {
    let mut fleet = Fleet::with_voters(2).await;
    for number in 0..5 {
        let decision = format!("d-{number}");
        let vote = Vote::new(&decision, "w-1", vec![1]);
        fleet.ballots.vote(&vote).await.unwrap();
    }
    // Apart, whatever the clock's grain.
    for number in 0..5 {
        let entry = format!("{} d-{number}", number + 1);
        fleet.run(&format!("ZADD cb:ballots {entry}")).await;
    }
    let names = async |limit| {
        let listed = fleet.ballots.list(limit).await.unwrap();
        listed
            .into_iter()
            .map(|ballot| ballot.decision)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(3).await, ["d-4", "d-3", "d-2"]);
    assert_eq!(names(0).await, [""; 0]);
    assert_eq!(names(100).await.len(), 5);
    let latest = &fleet.ballots.list(1).await.unwrap()[0];
    assert_eq!((latest.vote_count, latest.leading), (1, 1));
    assert_eq!((latest.quorum, latest.electorate), (2, 2));
    // What is long past goes when the next ballot is opened, and so does what is too much.
    fleet.vote("w-1", json!(1)).await;
    assert_eq!(fleet.ask::<u64>("ZCARD cb:ballots").await, 1);
    let now: u64 = fleet.ask("HGET cb:ballot:d opened_at").await;
    let many: Vec<String> = (0..1000)
        .map(|n| format!("{} old-{n}", now - 1000))
        .collect();
    fleet
        .run(&format!("ZADD cb:ballots {}", many.join(" ")))
        .await;
    fleet
        .ballots
        .vote(&Vote::new("next", "w-1", vec![1]))
        .await
        .unwrap();
    assert_eq!(fleet.ask::<u64>("ZCARD cb:ballots").await, 1000);
    assert!(
        fleet
            .ask::<Option<f64>>("ZSCORE cb:ballots next")
            .await
            .is_some()
    );
}

#[tokio::test]
async fn who_voted_what_is_shown() {
    let fleet = Fleet::with_voters(5).await;
    for (voter, value) in [("w-5", "b"), ("w-2", "a"), ("w-1", "b")] {
        fleet.vote(voter, json!(value)).await;
    }
    let shown = fleet.ballots.show("d").await.unwrap().unwrap();
    let votes: Vec<(&str, Option<Value>)> = shown
        .votes
        .iter()
        .map(|(id, value)| (id.as_str(), value.as_ref().map(|v| to_json(v).unwrap())))
        .collect();
    assert_eq!(
        votes,
        [
            ("w-1", Some(json!("b"))),
            ("w-2", Some(json!("a"))),
            ("w-3", None),
            ("w-4", None),
            ("w-5", Some(json!("b"))),
        ]
    );
    let (a, b) = (from_json(&json!("a")), from_json(&json!("b")));
    assert_eq!(shown.tally(), [(b.as_slice(), 2), (a.as_slice(), 1)]);
    assert_eq!(shown.ballot.leading, 2);
    assert_eq!(fleet.ballots.show("other").await.unwrap(), None);
    let error = fleet.ballots.show("a b").await.unwrap_err();
    assert!(matches!(error, CoordinationError::Invalid(_)), "{error}");
}

#[tokio::test]
async fn a_full_memory_refuses_a_vote_whole() {
    let mut fleet = Fleet::with_voters(2).await;
    fleet.run("CONFIG SET maxmemory 1").await;
    let error = fleet
        .ballots
        .vote(&vote("w-1", json!(1)))
        .await
        .unwrap_err();
    let CoordinationError::Bus(bus) = &error else {
        panic!("{error}");
    };
    assert_eq!(bus.code(), Some("OOM"));
    fleet.run("CONFIG SET maxmemory 0").await;
    assert!(fleet.ballot_keys().await.is_empty());
    assert!(fleet.vote("w-1", json!(1)).await.voted);
}

#[tokio::test]
async fn an_electorate_that_is_too_large_is_refused_and_a_role_narrows_it_down() {
    let mut fleet = Fleet::with_voters(2).await;
    for page in (0..MAX_ELECTORATE).collect::<Vec<_>>().chunks(1000) {
        let many: Vec<String> = page
            .iter()
            .map(|n| format!("9000000000000 x-{n}"))
            .collect();
        fleet
            .run(&format!("ZADD cb:instances:active {}", many.join(" ")))
            .await;
    }
    let message = fleet.refused(&vote("w-1", json!(1))).await;
    assert!(
        message.contains(&(MAX_ELECTORATE + 2).to_string()),
        "{message}"
    );
    assert!(fleet.ballot_keys().await.is_empty());
    let narrow = in_role(vote("w-1", json!(1)), "worker");
    assert_eq!(fleet.ballots.vote(&narrow).await.unwrap().electorate, 2);
}

#[tokio::test]
async fn hash_tagged_names_work_alike() {
    let mut fleet = Fleet::with(Keys::tagged("cb", 4).unwrap()).await;
    for id in ["w-1", "w-2"] {
        fleet.register(id, &["worker"]).await;
    }
    for voter in ["w-1", "w-2"] {
        let vote = in_role(vote(voter, json!(1)), "worker");
        fleet.ballots.vote(&vote).await.unwrap();
    }
    assert_eq!(fleet.quorum_facts().await.len(), 1);
    let keys = fleet.all_keys().await;
    assert!(keys.iter().all(|key| key.starts_with("{cb}:")), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_ballots_may_be_open_and_one_that_ends_makes_room() {
    let mut fleet = Fleet::start().await;
    for id in ["w-1", "w-2"] {
        fleet.register(id, &["worker"]).await;
    }
    let vote = |decision: &str, id: &str| Vote::new(decision, id, vec![1]);
    for number in 0..MAX_OPEN {
        let opened = fleet
            .ballots
            .vote(&vote(&format!("d-{number}"), "w-1"))
            .await;
        assert_eq!(opened.unwrap().status, BallotStatus::Open);
    }
    let refused = fleet.ballots.vote(&vote("over", "w-1")).await.unwrap_err();
    assert!(
        matches!(&refused, CoordinationError::Exhausted(m) if m.contains("over") && m.contains("1000")),
        "{refused}"
    );
    // Nothing is left of it; the others go on.
    assert_eq!(
        fleet
            .ask::<u64>("EXISTS cb:ballot:over cb:ballot:over:electorate")
            .await,
        0
    );
    let decided = fleet.ballots.vote(&vote("d-0", "w-2")).await.unwrap();
    assert_eq!(decided.status, BallotStatus::Decided);
    fleet.ballots.vote(&vote("over", "w-1")).await.unwrap();
    assert!(fleet.ballots.vote(&vote("more", "w-1")).await.is_err());
    // Those whose time is over are not open any more.
    fleet.run("ZADD cb:ballots:open XX 1 d-1").await;
    fleet.ballots.vote(&vote("more", "w-1")).await.unwrap();
}

#[tokio::test]
async fn the_ballots_that_are_kept_have_so_many_electors_together() {
    let mut fleet = Fleet::start().await;
    fleet.register("w-1", &["worker"]).await;
    let vote = |decision: &str| Vote::new(decision, "w-1", vec![1]);
    fleet.ballots.vote(&vote("d-1")).await.unwrap();
    assert_eq!(fleet.ask::<usize>("GET cb:ballots:electors").await, 1);
    fleet
        .run(&format!("SET cb:ballots:electors {MAX_ELECTORS}"))
        .await;
    let refused = fleet.ballots.vote(&vote("d-2")).await.unwrap_err();
    assert!(
        matches!(&refused, CoordinationError::Exhausted(m) if m.contains("d-2")),
        "{refused}"
    );
    // One that is forgotten makes room for another.
    let kept: Vec<String> = fleet.ask("ZRANGE cb:ballots:kept 0 -1").await;
    assert_eq!(kept, ["1 d-1"]);
    redis::cmd("ZADD")
        .arg("cb:ballots:kept")
        .arg(1)
        .arg("1 d-1")
        .exec_async(&mut fleet.connection)
        .await
        .unwrap();
    fleet.ballots.vote(&vote("d-2")).await.unwrap();
    assert_eq!(
        fleet.ask::<usize>("GET cb:ballots:electors").await,
        MAX_ELECTORS
    );
}
