//! Ballots that are kept: what is said about them, for how long, and how many there may be.

use super::{in_role, told, vote};
use crate::fleet::Fleet;
use convoke::coordination::ballots::ballot::{BallotStatus, Vote};
use convoke::coordination::ballots::{MAX_ELECTORATE, MAX_ELECTORS, MAX_OPEN};
use convoke::coordination::error::CoordinationError;
use convoke::protocol::json::{from_json, to_json};
use convoke::protocol::keys::Keys;
use serde_json::{Value, json};

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
    let keys = fleet.all_names().await;
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
