//! Ballots: at most one decision, which stays; an electorate that is pinned; a vote each.

use crate::run::Scenario;
use crate::support::ballots::{Answer, Claim, DECISION, HOLDERS, Op, World as Rule, id, perform};
use crate::world::{DAY, HOUR, SECOND, Tail, World, fact};
use convoke::coordination::ballots::ballot::{BallotStatus, DEFAULT_EXPIRES_IN_MS};
use convoke::coordination::ballots::{Ballots, KEPT};
use convoke::coordination::instances::Instances;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// How long an instance lives without a pulse.
const TTL: u64 = 30_000;

pub(crate) struct Scene {
    instances: Instances,
    ballots: Ballots,
    rule: Rule,
    /// When each registered instance expires.
    expiries: BTreeMap<u8, u64>,
    ballot: Times,
    decided: Option<u8>,
    broadcast: Tail,
    /// Ends of ballots that were not told yet.
    ended: Vec<BallotStatus>,
}

#[derive(Default)]
struct Times {
    expires: u64,
    kept: u64,
    /// A vote met it when its time was over.
    is_over: bool,
}

impl Scene {
    /// Brings the rule's world to the server's time.
    fn at(&mut self, now: u64) {
        let alive = self.expiries.iter().filter(|(_, expires)| **expires > now);
        self.rule.active = alive.map(|(number, _)| *number).collect();
        if self.rule.ballot.is_some() && self.ballot.kept < now {
            (self.rule.ballot, self.decided) = (None, None);
        }
        if let Some(ballot) = &mut self.rule.ballot {
            ballot.expired = self.ballot.is_over || self.ballot.expires <= now;
        }
    }

    fn status(&self) -> Option<BallotStatus> {
        self.rule.ballot.as_ref().map(|ballot| ballot.status())
    }

    fn apply(&mut self, op: Op, now: u64) -> Answer {
        self.at(now);
        let before = self.status();
        let answer = self.rule.apply(op);
        match op {
            Op::Join(number) => _ = self.expiries.insert(number, now + TTL),
            Op::Leave(number) => _ = self.expiries.remove(&number),
            Op::Vote { .. } => {
                let kept = KEPT.as_millis() as u64;
                let is = self.status();
                if before.is_none() && is.is_some() {
                    let expires = now + DEFAULT_EXPIRES_IN_MS;
                    let is_over = false;
                    self.ballot = Times {
                        expires,
                        kept: expires + kept,
                        is_over,
                    };
                }
                if before != is
                    && matches!(is, Some(BallotStatus::Decided | BallotStatus::Deadlocked))
                {
                    self.ballot.kept = now + kept;
                    self.ended.extend(is);
                }
                // Those who are refused do not change it.
                let counts = matches!(answer, Answer::State(_));
                self.ballot.is_over |= counts && is == Some(BallotStatus::Expired);
            }
        }
        answer
    }
}

impl Scenario for Scene {
    const NAME: &'static str = "ballots";
    const SHARE: u64 = 20;
    const CLOCK: &'static [i64] = &[
        1,
        10 * SECOND,
        10 * SECOND,
        20 * SECOND,
        20 * SECOND,
        -10 * SECOND,
        -10 * SECOND,
        270 * SECOND,
        300 * SECOND,
        300 * SECOND,
        -300 * SECOND,
        -300 * SECOND,
        HOUR,
        -HOUR,
        DAY,
        -DAY,
    ];
    type Step = Op;

    fn steps() -> BoxedStrategy<Op> {
        // One more than hold the role, and one that seldom is there.
        let who = || prop_oneof![6 => 0..=HOLDERS, 1 => Just(HOLDERS + 1)];
        let claim =
            prop_oneof![6 => Just(Claim::Nothing), 4 => Just(Claim::Role), 1 => Just(Claim::Other)];
        let value = prop_oneof![4 => Just(1u8), 2 => Just(2), 1 => Just(3)];
        let vote = (who(), value, claim).prop_map(|(voter, value, claim)| Op::Vote {
            voter,
            value,
            claim,
        });
        prop_oneof![
            12 => vote,
            6 => who().prop_map(Op::Join),
            1 => who().prop_map(Op::Leave),
        ]
        .boxed()
    }

    fn begin(world: &World) -> Self {
        let (connector, keys) = (world.connector.clone(), world.keys.clone());
        Self {
            instances: Instances::of_process(connector.clone(), keys.clone(), "test"),
            ballots: Ballots::new(connector, keys),
            rule: Rule::default(),
            expiries: BTreeMap::new(),
            ballot: Times::default(),
            decided: None,
            broadcast: Tail::default(),
            ended: Vec::new(),
        }
    }

    async fn take(&mut self, world: &mut World, op: &Op, lost: bool) {
        for _ in 0..1 + u8::from(lost) {
            let expected = self.apply(*op, world.now);
            let answer = perform(&self.instances, &self.ballots, *op).await;
            assert_eq!(answer, expected, "{op:?}");
        }
    }

    async fn check(&mut self, world: &mut World) {
        self.at(world.now);
        let mut pipe = redis::pipe();
        self.broadcast.ask(&mut pipe, &world.keys.broadcast());
        let (looked, shown) = tokio::join!(
            world.look::<(redis::Value,)>(&pipe),
            self.ballots.show(DECISION)
        );
        let (facts, shown) = (looked.0, shown.unwrap());
        let facts = self
            .broadcast
            .read(facts)
            .into_iter()
            .map(|entry| fact(&entry).0);
        let told: Vec<String> = facts.filter(|kind| kind.starts_with("quorum.")).collect();
        let ended = self
            .ended
            .drain(..)
            .map(|status| format!("quorum.{}", status.as_str()));
        assert_eq!(told, ended.collect::<Vec<_>>(), "what was told");
        let Some(ballot) = &self.rule.ballot else {
            assert_eq!(shown, None);
            return;
        };
        let shown = shown.expect("there is a ballot");
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
        assert_eq!(shown.ballot.status, ballot.status());
        assert_eq!(
            shown.ballot.value,
            ballot.decision().map(|value| vec![value])
        );
        assert_eq!(shown.ballot.vote_count, ballot.votes.len() as u64);
        assert_eq!(shown.ballot.kept_until, self.ballot.kept);
        assert!(
            self.decided.is_none() || self.decided == ballot.decision(),
            "it flipped"
        );
        self.decided = ballot.decision();
    }
}
