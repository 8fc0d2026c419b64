//! Random sequences of calls, each answered as the model says.

use crate::fleet::Fleet;
use crate::support::ballots::{Claim, DECISION, HOLDERS, Op, World, id, perform};
use convoke::bus::connect::Connector;
use convoke::bus::keys::Keys;
use convoke::config::RedisUrl;
use convoke::coordination::ballot::Status;
use convoke::coordination::ballots::Ballots;
use convoke::coordination::instances::Instances;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use redis::aio::MultiplexedConnection;
use std::cell::Cell;

#[derive(Clone, Copy, Debug)]
enum Step {
    Call(Op),
    /// An instance's last pulse runs out.
    Lapse(u8),
    /// The ballot's time runs out.
    Expire,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // One more than hold the role, and one that seldom is there.
    let who = || prop_oneof![6 => 0..=HOLDERS, 1 => Just(HOLDERS + 1)];
    let claim = prop_oneof![
        6 => Just(Claim::Nothing),
        4 => Just(Claim::Role),
        1 => Just(Claim::Other)
    ];
    let value = prop_oneof![4 => Just(1u8), 2 => Just(2), 1 => Just(3)];
    let vote = (who(), value, claim).prop_map(|(voter, value, claim)| {
        Step::Call(Op::Vote {
            voter,
            value,
            claim,
        })
    });
    let step = prop_oneof![
        20 => vote,
        3 => who().prop_map(|id| Step::Call(Op::Join(id))),
        2 => who().prop_map(|id| Step::Call(Op::Leave(id))),
        1 => who().prop_map(Step::Lapse),
        1 => Just(Step::Expire),
    ];
    let join = proptest::collection::vec(who().prop_map(|id| Step::Call(Op::Join(id))), 0..9);
    (join, proptest::collection::vec(step, 1..40)).prop_map(|(mut steps, more)| {
        steps.extend(more);
        steps
    })
}

async fn command(connection: &mut MultiplexedConnection, words: &[&str]) -> i64 {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(connection).await.unwrap()
}

async fn check(fleet: &Fleet, namespace: &str, steps: &[Step]) {
    let keys = Keys::new(namespace).unwrap();
    fleet.redis.allow_namespace(namespace);
    let connector = Connector::new(&RedisUrl::new(fleet.redis.url()), 2).unwrap();
    let instances = Instances::of_process(connector.clone(), keys.clone(), "test");
    let ballots = Ballots::new(connector, keys.clone());
    let mut connection = fleet.connection.clone();
    let mut model = World::default();
    let mut decided = None;
    for &step in steps {
        match step {
            Step::Call(op) => {
                let expected = model.apply(op);
                assert_eq!(perform(&instances, &ballots, op).await, expected, "{op:?}");
            }
            Step::Lapse(number) => {
                model.active.remove(&number);
                let words = ["ZADD", &keys.active(), "XX", "1000", &id(number)];
                command(&mut connection, &words).await;
            }
            Step::Expire => {
                let Some(ballot) = &mut model.ballot else {
                    continue;
                };
                ballot.expired = true;
                let words = ["HSET", &keys.ballot(DECISION), "expires_at", "1000"];
                command(&mut connection, &words).await;
            }
        }
        let shown = ballots.show(DECISION).await.unwrap();
        let Some(ballot) = &model.ballot else {
            assert_eq!(shown, None);
            continue;
        };
        let shown = shown.unwrap();
        let votes: Vec<(String, Option<Vec<u8>>)> = ballot
            .electorate
            .iter()
            .map(|voter| {
                (
                    id(*voter),
                    ballot.votes.get(voter).map(|value| vec![*value]),
                )
            })
            .collect();
        assert_eq!(shown.votes, votes);
        let status = ballot.status();
        assert_eq!(shown.ballot.status, status);
        assert_eq!(
            shown.ballot.value,
            ballot.decision().map(|value| vec![value])
        );
        assert_eq!(ballots.list(1).await.unwrap()[0], shown.ballot);
        decided = decided.or(ballot.decision());
        assert_eq!(ballot.decision(), decided, "the decision changed");
        let broadcast: redis::Value = redis::cmd("XRANGE")
            .arg(&[&keys.broadcast(), "-", "+"])
            .query_async(&mut connection)
            .await
            .unwrap();
        let broadcast = convoke::bus::read::entries_of(broadcast).unwrap();
        let told = |kind: &[u8]| {
            let of_kind = broadcast
                .iter()
                .filter(|fact| fact.get("type") == Some(kind));
            of_kind.count()
        };
        let expected = |is| usize::from(status == is);
        assert_eq!(told(b"quorum.decided"), expected(Status::Decided));
        assert_eq!(told(b"quorum.deadlocked"), expected(Status::Deadlocked));
    }
}

#[test]
fn every_answer_is_the_models_whatever_comes_in_whatever_order() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fleet = runtime.block_on(Fleet::start());
    let serial = Cell::new(0);
    let config = Config {
        cases: 150,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&steps(), |steps| {
            serial.set(serial.get() + 1);
            runtime.block_on(check(&fleet, &format!("n{}", serial.get()), &steps));
            Ok(())
        })
        .unwrap();
}
