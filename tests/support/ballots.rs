//! What ballots promise, as a model, and a search for an order of calls that the model allows.

use convoke::coordination::ballots::ballot::{BallotStatus, Vote};
use convoke::coordination::ballots::{Ballots, Voted};
use convoke::coordination::error::CoordinationError;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::instance::Registering;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// The name of the one ballot.
pub(crate) const DECISION: &str = "d";
/// Instances below this number hold the role.
pub(crate) const HOLDERS: u8 = 5;

/// The role that a vote names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Claim {
    Nothing,
    Role,
    Other,
}

impl Claim {
    fn role(self) -> Option<String> {
        match self {
            Claim::Nothing => None,
            Claim::Role => Some("r".into()),
            Claim::Other => Some("other".into()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Join(u8),
    Leave(u8),
    Vote { voter: u8, value: u8, claim: Claim },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    Done,
    /// `failed_precondition`
    Refused,
    /// `already_exists`
    OtherValue,
    State(Voted),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ModelBallot {
    pub(crate) claim: Claim,
    pub(crate) electorate: BTreeSet<u8>,
    pub(crate) votes: BTreeMap<u8, u8>,
    pub(crate) expired: bool,
}

impl ModelBallot {
    pub(crate) fn quorum(&self) -> usize {
        self.electorate.len() / 2 + 1
    }

    fn support(&self, value: u8) -> usize {
        self.votes.values().filter(|&&v| v == value).count()
    }

    /// The value that has quorum. No vote is counted after it has, so it is the decision.
    pub(crate) fn decision(&self) -> Option<u8> {
        let mut values = self.votes.values().copied();
        values.find(|&value| self.support(value) >= self.quorum())
    }

    pub(crate) fn status(&self) -> BallotStatus {
        let leading = self.votes.values().map(|&value| self.support(value)).max();
        let left = self.electorate.len() - self.votes.len();
        if self.decision().is_some() {
            BallotStatus::Decided
        } else if leading.unwrap_or(0) + left < self.quorum() {
            BallotStatus::Deadlocked
        } else if self.expired {
            BallotStatus::Expired
        } else {
            BallotStatus::Open
        }
    }

    pub(crate) fn state(&self, voted: bool) -> Voted {
        Voted {
            voted,
            status: self.status(),
            decision: self.decision().map(|value| vec![value]),
            vote_count: self.votes.len() as u64,
            quorum: self.quorum() as u64,
            electorate: self.electorate.len() as u64,
        }
    }
}

/// What one namespace comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) active: BTreeSet<u8>,
    pub(crate) ballot: Option<ModelBallot>,
}

impl World {
    pub(crate) fn apply(&mut self, op: Op) -> Answer {
        match op {
            Op::Join(id) => {
                self.active.insert(id);
                Answer::Done
            }
            Op::Leave(id) => {
                self.active.remove(&id);
                Answer::Done
            }
            Op::Vote {
                voter,
                value,
                claim,
            } => self.vote(voter, value, claim),
        }
    }

    fn vote(&mut self, voter: u8, value: u8, claim: Claim) -> Answer {
        if self.ballot.is_none() {
            let eligible = |id: &u8| match claim {
                Claim::Nothing => true,
                Claim::Role => *id < HOLDERS,
                Claim::Other => false,
            };
            let electorate: BTreeSet<u8> = self.active.iter().copied().filter(eligible).collect();
            if !electorate.contains(&voter) {
                return Answer::Refused;
            }
            self.ballot = Some(ModelBallot {
                claim,
                electorate,
                votes: BTreeMap::new(),
                expired: false,
            });
        }
        let Some(ballot) = &mut self.ballot else {
            unreachable!("it was opened");
        };
        if !ballot.electorate.contains(&voter) || (claim != Claim::Nothing && claim != ballot.claim)
        {
            return Answer::Refused;
        }
        match ballot.votes.get(&voter) {
            Some(&said) if said != value => Answer::OtherValue,
            Some(_) => Answer::State(ballot.state(true)),
            None if ballot.status() != BallotStatus::Open => Answer::State(ballot.state(false)),
            None => {
                ballot.votes.insert(voter, value);
                Answer::State(ballot.state(true))
            }
        }
    }
}

pub(crate) fn id(number: u8) -> String {
    format!("w-{number}")
}

/// Does it for real. A value is written in one of its encodings.
pub(crate) async fn perform(instances: &Instances, ballots: &Ballots, op: Op) -> Answer {
    match op {
        Op::Join(number) => {
            let roles = if number < HOLDERS { vec!["r"] } else { vec![] };
            let registering = Registering::new(id(number), roles);
            instances.register(&registering).await.unwrap();
            Answer::Done
        }
        Op::Leave(number) => {
            instances.unregister(&id(number), None).await.unwrap();
            Answer::Done
        }
        Op::Vote {
            voter,
            value,
            claim,
        } => {
            let encodings = [vec![value], vec![0xcc, value], vec![0xcd, 0, value]];
            let encoded = encodings[fastrand::usize(..3)].clone();
            let vote = Vote {
                role: claim.role(),
                ..Vote::new(DECISION, id(voter), encoded)
            };
            match ballots.vote(&vote).await {
                Ok(voted) => Answer::State(voted),
                Err(CoordinationError::FailedPrecondition(_)) => Answer::Refused,
                Err(CoordinationError::AlreadyExists(_)) => Answer::OtherValue,
                Err(error) => panic!("{op:?}: {error}"),
            }
        }
    }
}

/// A call as its caller saw it.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) op: Op,
    pub(crate) began: u64,
    /// When it was answered, and what; `None`: never, so it may have taken effect at any time after
    /// it began, or not at all.
    pub(crate) answered: Option<(u64, Answer)>,
}

/// Steps of one search; one that needs more counts as failed.
const STEPS: usize = 2_000_000;

/// Looks for an order of the calls in which each took effect between its beginning and its answer,
/// and the model gives every answer that was given (Wing and Gong's search, with a memory of the
/// states it has seen). Gives the worlds that such an order can end in.
pub(crate) fn linearize(calls: &[Call]) -> Result<HashSet<World>, String> {
    assert!(calls.len() <= 64, "too long a history");
    let mut seen: HashSet<(u64, World)> = HashSet::new();
    let mut open = vec![(0u64, World::default())];
    let answered: u64 = calls
        .iter()
        .enumerate()
        .filter(|(_, call)| call.answered.is_some())
        .map(|(at, _)| 1 << at)
        .sum();
    let mut ends = HashSet::new();
    let mut steps = 0;
    while let Some((done, world)) = open.pop() {
        if !seen.insert((done, world.clone())) {
            continue;
        }
        steps += 1;
        if steps > STEPS {
            return Err("the search was given up".into());
        }
        if done & answered == answered {
            ends.insert(world.clone());
        }
        let left = || (0..calls.len()).filter(|at| done & (1 << at) == 0);
        let first_answer = left()
            .filter_map(|at| calls[at].answered.as_ref())
            .map(|(time, _)| *time)
            .min()
            .unwrap_or(u64::MAX);
        let mut nexts = Vec::new();
        for at in left().filter(|&at| calls[at].began <= first_answer) {
            let mut next = world.clone();
            let answer = next.apply(calls[at].op);
            match &calls[at].answered {
                Some((_, given)) if *given != answer => {}
                // It changes nothing and may come now: an order that has it later has one with it here.
                Some(_) if next == world => {
                    nexts = vec![(done | 1 << at, next)];
                    break;
                }
                _ => nexts.push((done | 1 << at, next)),
            }
        }
        open.extend(nexts);
    }
    match ends.is_empty() {
        true => Err("no order of the calls explains their answers".into()),
        false => Ok(ends),
    }
}
