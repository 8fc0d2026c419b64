//! Votes in each pattern of `system.quorum.vote`.

use super::{ask, choose_for, facts, worker};
use crate::rig::Rig;
use crate::support::keys;
use crate::support::until;
use convoke::connect::connector::Connector;
use convoke::coordination::ballots::Ballots;
use convoke::coordination::ballots::ballot::Vote;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::instance::Registering;
use convoke::protocol::pattern::{Pattern, Patterned};
use convoke::settings::RedisUrl;
use serde_json::{Value, json};

fn connector(rig: &Rig) -> Connector {
    Connector::new(&RedisUrl::new(rig.redis.url()), 2).unwrap()
}

async fn voters(rig: &Rig, count: usize) -> Instances {
    let keys = keys();
    let instances = Instances::of_process(connector(rig), keys, "data");
    for number in 1..=count {
        let mut registering = Registering::new(format!("v-{number}"), ["voter"]);
        registering.ttl_ms = 3_600_000;
        instances.register(&registering).await.unwrap();
    }
    instances
}

fn vote_of(decision: &str, voter: &str, value: u64) -> Value {
    json!({"decision": decision, "instance_id": voter, "value": value, "role": "voter"})
}

async fn vote(rig: &Rig, decision: &str, voter: &str, value: u64) -> Value {
    let data = vote_of(decision, voter, value);
    ask(&rig.client, "system.quorum.vote", data).await
}

/// Waits until all answer in that pattern.
async fn all_follow(rig: &Rig, pattern: Pattern) {
    choose_for(rig, Patterned::Quorum, pattern).await;
    let known = Instances::new(connector(rig), keys());
    until("all follow", || async {
        let listed = known.list().await.unwrap();
        let mut workers = listed.iter().filter(|one| one.id.starts_with("w-"));
        workers.all(|one| {
            let follows = one.mode.patterns.get("quorum");
            follows.is_some_and(|follows| follows == pattern.as_str())
        })
    })
    .await;
}

async fn decided(rig: &Rig, count: usize) -> Vec<Value> {
    facts(rig.wait_for_fact("quorum.decided", count).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vote_has_the_same_answer_whoever_counts() {
    let rig = Rig::new().await;
    let workers = ["w-1", "w-2", "w-3"].map(|id| rig.start(worker(&rig, id)));
    voters(&rig, 3).await;
    for (at, pattern) in Pattern::ALL.into_iter().enumerate() {
        all_follow(&rig, pattern).await;
        let d = pattern.as_str();
        let open = json!({
            "voted": true, "quorum_reached": false, "vote_count": 1, "quorum": 2, "electorate": 3,
            "status": "open",
        });
        assert_eq!(vote(&rig, d, "v-1", 7).await, open);
        assert_eq!(vote(&rig, d, "v-1", 7).await, open);
        let other = rig
            .refused("system.quorum.vote", &vote_of(d, "v-1", 8))
            .await;
        assert_eq!(other.code.as_str(), "already_exists");
        assert!(
            other.message.contains("the ballot is open"),
            "{}",
            other.message
        );
        let stranger = rig
            .refused("system.quorum.vote", &vote_of(d, "w-1", 8))
            .await;
        assert_eq!(stranger.code.as_str(), "failed_precondition");
        let mut ended = json!({
            "voted": true, "quorum_reached": true, "vote_count": 2, "quorum": 2, "electorate": 3,
            "status": "decided", "final_decision": 7,
        });
        assert_eq!(vote(&rig, d, "v-2", 7).await, ended);
        ended["voted"] = json!(false);
        assert_eq!(vote(&rig, d, "v-3", 8).await, ended);
        let told = decided(&rig, at + 1).await;
        assert_eq!(
            (&told[at]["decision"], &told[at]["value"]),
            (&json!(d), &json!(7))
        );
        for (voter, value) in [("v-1", 1), ("v-2", 2)] {
            vote(&rig, &format!("{d}-not"), voter, value).await;
        }
        let last = vote(&rig, &format!("{d}-not"), "v-3", 3).await;
        assert_eq!(
            (&last["status"], &last["vote_count"]),
            (&json!("deadlocked"), &json!(3))
        );
    }
    assert_eq!(decided(&rig, 3).await.len(), 3);
    let not = facts(rig.wait_for_fact("quorum.deadlocked", 3).await);
    assert_eq!(not.len(), 3);
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_arbiter_counted_the_next_one_does() {
    let rig = Rig::new().await;
    let instances = voters(&rig, 3).await;
    // It leads, and counts nothing.
    let mut registering = Registering::new("w-data", ["data"]);
    registering.ttl_ms = 3_600_000;
    let registered = instances.register(&registering).await.unwrap();
    let contest = instances.contend("w-data", registered.incarnation).await;
    assert!(contest.unwrap().lead.is_some());
    let start = |id: &str| {
        let mut settings = rig.settings();
        settings.id = id.into();
        settings.heartbeat_ttl = std::time::Duration::from_secs(3);
        settings.patterns.quorum = Pattern::Centralized;
        rig.start(convoke::Worker::builder().settings(settings))
    };
    let workers = ["w-1", "w-2"].map(start);
    vote(&rig, "d", "v-1", 7).await;
    // It is stored, and nobody says what came of it.
    let second = vote(&rig, "d", "v-2", 7).await;
    assert_eq!(
        (&second["voted"], &second["status"], &second["vote_count"]),
        (&json!(true), &json!("open"), &json!(2))
    );
    assert!(decided(&rig, 0).await.is_empty());
    instances.unregister("w-data", None).await.unwrap();
    assert_eq!(decided(&rig, 1).await[0]["value"], 7);
    let third = vote(&rig, "d", "v-3", 8).await;
    assert_eq!(
        (&third["voted"], &third["final_decision"]),
        (&json!(false), &json!(7))
    );
    assert_eq!(decided(&rig, 1).await.len(), 1);
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_worker_stored_and_did_not_count_others_do() {
    let rig = Rig::new().await;
    voters(&rig, 3).await;
    let ballots = Ballots::new(connector(&rig), keys());
    for voter in ["v-1", "v-2"] {
        let vote = Vote {
            role: Some("voter".into()),
            ..Vote::new("d", voter, vec![7])
        };
        ballots.take(&vote, Pattern::Distributed).await.unwrap();
    }
    let workers = ["w-1", "w-2"].map(|id| rig.start(worker(&rig, id)));
    assert_eq!(decided(&rig, 1).await[0]["value"], 7);
    for worker in workers {
        worker.stop().await;
    }
}
