//! Ballots that the script does not count: patterns *centralized* and *distributed* of `system.quorum.vote`.
//!
//! A vote is only stored. Who counts reads all votes that there are, and ends the ballot, in one step with its fact, if
//! they decide it or make a decision impossible: the leader of a term, or whoever likes.
//!
//! *Two who count come to one decision.* The electorate is fixed, each elector has one vote, and a vote never changes. So
//! there are only ever more votes, and what some of them decide, or make impossible, more of them do not change: it makes
//! no difference who counts, when, or which of the votes he sees. That the time is over ends a ballot only for
//! somebody who counted all its votes, and none is stored after it.
//!
//! *Counting is rare.* Nothing can come of fewer votes than half of all; and whoever counted in vain notes with how many
//! votes something may: so the votes of an electorate of n are read about log n times at most, by each process. Where many
//! votes come together, one run of a process counts at a time, and those that waited find what it noted.
//!
//! *Crashes.* Whoever stored a vote that may decide and died before anybody counted leaves an event that another
//! worker runs again, and a name in a list of what is not counted to its end: the leader goes through it, and, where
//! everyone counts, about four workers of each round.

use super::ballot::{BallotStatus, VOTING, Vote};
use super::{BALLOT, Ballots, KEPT, MAX_OPEN, SHAPE, Voted, refused};
use crate::connect::clock::{ServerTime, whole_ms};
use crate::connect::script::script_with;
use crate::coordination::answer::answer;
use crate::coordination::ballots::ballot::check_decision;
use crate::coordination::error::CoordinationError;
use crate::coordination::scripts::VERSION;
use crate::coordination::store::Store;
use crate::protocol::pattern::Pattern;
use redis::Script;
use std::collections::HashMap;
use std::sync::LazyLock;

static STORE_VOTE: LazyLock<Script> =
    LazyLock::new(|| script_with(&[VERSION, BALLOT], include_str!("store_vote.lua")));
static COUNT_VOTES: LazyLock<Script> =
    LazyLock::new(|| script_with(&[VERSION, BALLOT], include_str!("count_votes.lua")));

/// How often votes are counted again that became more meanwhile.
const AGAIN: usize = 5;
/// Ballots that one look goes through.
const PAGE: usize = 100;

/// A vote that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// How the ballot stood then.
    pub voted: Voted,
    /// Who is to count now; `None`: nobody, nothing can have come of it.
    pub counts: Option<Pattern>,
}

/// Who counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter<'a> {
    /// Anybody, where everyone counts.
    Everyone,
    /// An instance as long as it leads, also where everyone counts.
    Arbiter(&'a str),
}

/// A ballot that is not counted to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uncounted {
    /// Its name.
    pub decision: String,
    /// Who counts.
    pub pattern: Pattern,
}

answer! {
    /// What `store_vote.lua` answers.
    struct Stored {
        answer: String,
        voted: bool,
        status: String,
        vote_count: u64,
        quorum: u64,
        electorate: u64,
        decided: Option<Vec<u8>>,
        pinned: String,
        pattern: String,
        counts: bool,
    }
}

answer! {
    /// What `count_votes.lua` answers.
    struct Ended {
        answer: String,
        status: String,
        vote_count: u64,
        quorum: u64,
        electorate: u64,
        decided: Option<Vec<u8>>,
    }
}

/// A ballot without its votes.
#[derive(Default)]
struct Glance {
    stands: Option<Voted>,
    due: bool,
}

/// What votes come to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tally {
    counted: u64,
    leading: u64,
    outcome: Outcome,
    /// With how many votes something else may come of them.
    look_at: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Nothing,
    Decided(Vec<u8>),
    Deadlocked,
}

impl Tally {
    fn of<'a>(votes: impl Iterator<Item = &'a Vec<u8>>, electorate: u64, quorum: u64) -> Self {
        let mut values: HashMap<&Vec<u8>, u64> = HashMap::new();
        let mut counted = 0;
        for value in votes {
            *values.entry(value).or_default() += 1;
            counted += 1;
        }
        let first = values.into_iter().max_by_key(|(_, support)| *support);
        let (value, leading) = first.map_or((None, 0), |(value, support)| (Some(value), support));
        let outcome = match value {
            Some(value) if leading >= quorum => Outcome::Decided(value.clone()),
            _ if leading + electorate.saturating_sub(counted) < quorum => Outcome::Deadlocked,
            _ => Outcome::Nothing,
        };
        // The leading value needs that many more; or all others do, until none can have enough.
        let decides = counted + quorum.saturating_sub(leading);
        let deadlocks = electorate.saturating_sub(quorum) + leading + 1;
        Self {
            counted,
            leading,
            outcome,
            look_at: decides.min(deadlocks),
        }
    }
}

impl Ballots {
    /// Takes a vote. It opens a ballot in that pattern; one that is there keeps its own. Where the script does not
    /// count, the answer says who is to.
    ///
    /// # Errors
    /// As [`vote`](Ballots::vote).
    pub async fn take(&self, vote: &Vote, pattern: Pattern) -> Result<Taken, CoordinationError> {
        if pattern == Pattern::Hybrid {
            let counted = self.add(vote).await?;
            if let Some(voted) = counted {
                let counts = None;
                return Ok(Taken { voted, counts });
            }
        }
        if let Some(taken) = self.store_vote(vote, pattern).await? {
            return Ok(taken);
        }
        let voted = self.add(vote).await?.ok_or(SHAPE)?;
        Ok(Taken {
            voted,
            counts: None,
        })
    }

    /// `None` for a ballot that the script counts.
    async fn store_vote(
        &self,
        vote: &Vote,
        pattern: Pattern,
    ) -> Result<Option<Taken>, CoordinationError> {
        let value = vote.check()?;
        let mut call = STORE_VOTE.prepare_invoke();
        let uncounted = self.store.keys.ballots_uncounted();
        self.declare(&mut call, vote, &value, Some(uncounted));
        call.arg(pattern.as_str());
        let told: Stored = self.store.invoke(&call).await?;
        match told.answer.as_str() {
            "state" => {}
            "script" => return Ok(None),
            answer => {
                let (status, electorate) = (&told.status, told.electorate);
                return Err(refused(vote, answer, status, electorate, &told.pinned));
            }
        }
        let pattern = Pattern::named(&told.pattern).ok_or(SHAPE)?;
        Ok(Some(Taken {
            voted: Voted {
                voted: told.voted,
                status: BallotStatus::from_name(&told.status).ok_or(SHAPE)?,
                decision: told.decided,
                vote_count: told.vote_count,
                quorum: told.quorum,
                electorate: told.electorate,
            },
            counts: told.counts.then_some(pattern),
        }))
    }

    /// How a ballot stands; `None` if it is not there.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn stands(&self, decision: &str) -> Result<Option<Voted>, CoordinationError> {
        let mut read = redis::pipe();
        let ballot = read.cmd("HMGET").arg(self.store.keys.ballot(decision));
        ballot.arg(&["status", "electorate", "quorum", "value", "vote_count"]);
        type Row = (
            Option<String>,
            Option<u64>,
            Option<u64>,
            Option<Vec<u8>>,
            Option<u64>,
        );
        let (row,): (Row,) = self.store.ask(&read).await?;
        let (Some(status), Some(electorate), Some(quorum), value, votes) = row else {
            return Ok(None);
        };
        Ok(Some(Voted {
            voted: false,
            status: BallotStatus::from_name(&status).ok_or(SHAPE)?,
            decision: value,
            vote_count: votes.unwrap_or(0),
            quorum,
            electorate,
        }))
    }

    /// Counts the votes of a ballot that is open, ends it if it is decided, deadlocked or over, and tells how it stands.
    ///
    /// # Errors
    /// `NotFound` if there is no such ballot, or not any more; `Aborted` if an arbiter is to count it, and that one does
    /// not lead; `Bus`, and the call can be repeated.
    pub async fn count(
        &self,
        decision: &str,
        counter: Counter<'_>,
    ) -> Result<Voted, CoordinationError> {
        check_decision(decision)?;
        // What was read belongs to one history of the data: in another one votes may be missing.
        let store = self.store.within(self.store.connector.epoch());
        let keys = &store.keys;
        let gone =
            || CoordinationError::NotFound(format!("decision: there is no ballot on {decision}"));
        let _alone = self.counting.lock().await;
        for _ in 0..AGAIN {
            let glance = self.glance(&store, decision).await?;
            // The script forgets the name of one that is gone.
            if let Some(stands) = glance.stands.filter(|_| !glance.due) {
                return Ok(stands);
            }
            let mut reads = redis::pipe();
            reads.atomic();
            let ballot = reads.cmd("HMGET").arg(keys.ballot(decision));
            ballot.arg(&["electorate", "quorum"]);
            reads.cmd("HGETALL").arg(keys.votes(decision));
            reads.cmd("HMGET").arg(keys.leader()).arg(&["id", "term"]);
            type Read = (
                (Option<u64>, Option<u64>),
                HashMap<String, Vec<u8>>,
                (Option<String>, Option<String>),
            );
            let ((electorate, quorum), votes, leader): Read = store.ask(&reads).await?;
            let (electorate, quorum) = (electorate.unwrap_or(0), quorum.unwrap_or(0));
            let (arbiter, term) = match (counter, leader) {
                (Counter::Arbiter(id), (Some(leader), Some(term))) if leader == id => (id, term),
                (Counter::Arbiter(id), (leader, _)) => return Err(deposed(decision, id, leader)),
                (Counter::Everyone, _) => ("", String::new()),
            };
            let tally = Tally::of(votes.values(), electorate, quorum);
            let (outcome, value): (_, &[u8]) = match &tally.outcome {
                Outcome::Nothing => ("", &[]),
                Outcome::Decided(value) => ("decided", value),
                Outcome::Deadlocked => ("deadlocked", &[]),
            };
            let mut call = COUNT_VOTES.prepare_invoke();
            for key in self.keys_of(decision) {
                call.key(key);
            }
            call.key(keys.ballots_uncounted()).key(keys.leader());
            call.arg(decision)
                .arg(outcome)
                .arg(tally.counted)
                .arg(tally.leading)
                .arg(value)
                .arg(tally.look_at)
                .arg(whole_ms(KEPT))
                .arg(arbiter)
                .arg(term);
            let told: Ended = store.invoke(&call).await?;
            match told.answer.as_str() {
                "state" => {
                    return Ok(Voted {
                        voted: false,
                        status: BallotStatus::from_name(&told.status).ok_or(SHAPE)?,
                        decision: told.decided,
                        vote_count: told.vote_count,
                        quorum: told.quorum,
                        electorate: told.electorate,
                    });
                }
                "again" => {}
                "absent" => return Err(gone()),
                "arbiter" | "deposed" => return Err(deposed(decision, arbiter, None)),
                _ => return Err(SHAPE.into()),
            }
        }
        Err(CoordinationError::Aborted(format!(
            "decision: the votes of {decision} became more each time they were counted"
        )))
    }

    /// How a ballot stands, and whether its votes are to be read: they may decide it, or its time is over.
    async fn glance(&self, store: &Store, decision: &str) -> Result<Glance, CoordinationError> {
        let keys = &store.keys;
        let mut reads = redis::pipe();
        store.ask_time(&mut reads).await?;
        let ballot = reads.cmd("HMGET").arg(keys.ballot(decision));
        ballot.arg(&["status", "electorate", "quorum", "value"]);
        let when = reads.cmd("HMGET").arg(keys.ballot(decision));
        when.arg(&["look_at", "expires_at"]);
        reads.cmd("HLEN").arg(keys.votes(decision));
        type Ballot = (Option<String>, Option<u64>, Option<u64>, Option<Vec<u8>>);
        type Read = (ServerTime, Ballot, (Option<u64>, Option<u64>), u64);
        let (ServerTime(now), ballot, (look_at, expires_at), count): Read =
            store.ask(&reads).await?;
        let (Some(status), electorate, quorum, value) = ballot else {
            return Ok(Glance::default());
        };
        let over = expires_at.is_none_or(|at| at <= now);
        let stands = Voted {
            voted: false,
            status: BallotStatus::from_name(&status).ok_or(SHAPE)?,
            decision: value,
            vote_count: count,
            quorum: quorum.unwrap_or(0),
            electorate: electorate.unwrap_or(0),
        };
        Ok(Glance {
            stands: Some(stands),
            due: status == VOTING && (over || Some(count) >= look_at),
        })
    }

    /// The ballots of which something may come that nobody has counted: they have the votes, or their time is over.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn uncounted(&self) -> Result<Vec<Uncounted>, CoordinationError> {
        let keys = &self.store.keys;
        let mut list = redis::pipe();
        self.store.ask_time(&mut list).await?;
        list.cmd("ZRANGE").arg(keys.ballots_uncounted());
        list.arg(0).arg(MAX_OPEN - 1);
        let (ServerTime(now), names): (_, Vec<String>) = self.store.ask(&list).await?;
        let mut due = Vec::new();
        for page in names.chunks(PAGE) {
            let mut reads = redis::pipe();
            for name in page {
                let read = reads.cmd("HMGET").arg(keys.ballot(name));
                read.arg(&["pattern", "expires_at", "vote_count", "look_at"]);
            }
            type Row = (Option<String>, Option<u64>, Option<u64>, Option<u64>);
            let rows: Vec<Row> = self.store.ask(&reads).await?;
            for (decision, (pattern, expires_at, votes, look_at)) in page.iter().zip(rows) {
                let over = expires_at.is_none_or(|at| at <= now);
                if over || votes >= look_at {
                    let pattern = pattern.as_deref().and_then(Pattern::named);
                    due.push(Uncounted {
                        decision: decision.clone(),
                        // Of one that is gone the name is to be forgotten, by whoever comes.
                        pattern: pattern.unwrap_or(Pattern::Distributed),
                    });
                }
            }
        }
        Ok(due)
    }
}

fn deposed(decision: &str, id: &str, leader: Option<String>) -> CoordinationError {
    let leads = leader.map_or_else(|| "another one may".to_owned(), |id| format!("{id} does"));
    CoordinationError::Aborted(format!(
        "the votes on {decision} are counted by the leader, which {id:?} is not: {leads}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tally(votes: &[u8], electorate: usize) -> Tally {
        let votes: Vec<Vec<u8>> = votes.iter().map(|vote| vec![*vote]).collect();
        Tally::of(votes.iter(), electorate as u64, electorate as u64 / 2 + 1)
    }

    #[test]
    fn one_that_is_alone_decides_and_three_that_differ_decide_nothing() {
        assert_eq!(tally(&[7], 1).outcome, Outcome::Decided(vec![7]));
        assert_eq!(tally(&[], 1).outcome, Outcome::Nothing);
        assert_eq!(tally(&[1, 2], 3).outcome, Outcome::Nothing);
        assert_eq!(tally(&[1, 2, 3], 3).outcome, Outcome::Deadlocked);
        assert_eq!(tally(&[1, 2], 2).outcome, Outcome::Deadlocked);
        assert_eq!(tally(&[1, 2, 1], 3).outcome, Outcome::Decided(vec![1]));
    }

    /// What each elector votes for, in the order in which they vote.
    fn ballot() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(1u8..4, 1..40)
    }

    proptest! {
        #[test]
        fn what_some_votes_decide_more_of_them_do_not_change(votes in ballot(), seen in any::<u64>()) {
            let all = tally(&votes, votes.len());
            prop_assert_ne!(&all.outcome, &Outcome::Nothing);
            let some = votes.iter().enumerate().filter(|(at, _)| seen & (1 << at) != 0);
            let some: Vec<u8> = some.map(|(_, vote)| *vote).collect();
            let seen = tally(&some, votes.len()).outcome;
            prop_assert!(seen == Outcome::Nothing || seen == all.outcome, "{seen:?} and {:?}", all.outcome);
        }

        #[test]
        fn nothing_comes_of_fewer_votes_than_it_is_to_be_counted_with(votes in ballot()) {
            // As the script says for a ballot that nobody has counted.
            let mut look_at = votes.len().div_ceil(2) as u64;
            let mut looks = 0;
            for count in 1..=votes.len() {
                let now = tally(&votes[..count], votes.len());
                if (count as u64) < look_at {
                    prop_assert_eq!(now.outcome, Outcome::Nothing);
                    continue;
                }
                looks += 1;
                if now.outcome != Outcome::Nothing {
                    break;
                }
                prop_assert!(now.look_at > count as u64);
                look_at = look_at.max(now.look_at);
            }
            prop_assert!(looks <= 1 + votes.len().ilog2() * 2, "{looks}");
        }
    }
}
