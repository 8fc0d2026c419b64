//! Ballots: the instances decide something together, each with one vote.
//!
//! The first vote opens a ballot and fixes its *electorate* in the same atomic step: the instances
//! that are active at that moment by the server's clock (of a role, if the vote names one). Who
//! comes later has no vote in it; who goes keeps the one that it has. *Quorum* is
//! `floor(electorate / 2) + 1` votes for one value, so two values cannot both have it.
//!
//! | from | to | by |
//! |---|---|---|
//! | none | open | the vote of an instance that belongs to the electorate; of anyone else: nothing |
//! | open | decided, `quorum.decided` | the vote that gives a value quorum |
//! | open | deadlocked, `quorum.deadlocked` | the vote after which no value can reach quorum |
//! | open | expired | time: `expires_in_ms` from opening, by the server's clock |
//! | any but open | none | time: [`KEPT`] after the end |
//!
//! *A call is judged in this order*, and what it is told does not depend on whether the ballot has
//! ended meanwhile: an instance outside the electorate, or one that names another role, is
//! `FailedPrecondition`; one that voted for another value before is `AlreadyExists`. Else it is told
//! how the ballot stands. Its vote is counted if the ballot is open and it had none.
//!
//! *What the opening vote says is pinned.* Another `role` in a later vote is refused: the voter means
//! another electorate, and its vote must not count in this one. A vote without a role claims nothing
//! and is taken. Another `expires_in_ms` is ignored: voters need not agree on it, and one that
//! repeats its vote may have less time left than before.
//!
//! *Who counts* is the pattern in which the ballot was opened, and stays so ([`counting`]): the script that takes the
//! vote, an arbiter, or everyone.
//!
//! *Crashes*: a vote is one script, with its fact. Whoever does not know whether its vote was counted
//! votes again: it is counted once.
//!
//! *Who votes*: `instance_id` is a field, which anyone who may publish to `system` can fill in. The
//! rules hold for ids, whoever uses them: no id has two votes, no stranger's id has one. That the id
//! is the voter's own they do not prove.
//!
//! *Names are for one decision.* A ballot is kept for [`KEPT`] after its end, so that a vote that
//! comes late is told the decision. After that the name is free, and a vote would open another
//! ballot, which may decide otherwise: safe only if whoever acted on the first one is done with it.
//! So give each decision a name of its own (`upgrade-2026-11-24`, not `upgrade`), and votes a
//! `deadline`. The fact on the broadcast tells the decision for good to whoever stores it.

pub mod ballot;
pub mod counting;

use super::error::CoordinationError;
use super::scripts::VERSION;
use super::store::Store;
use crate::connect::clock::ServerTime;
use crate::connect::clock::whole_ms;
use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::connect::script::script_with;
use crate::coordination::answer::answer;
use crate::coordination::ballots::ballot::{
    Ballot, BallotStatus, EXPIRES_IN_MS, VOTING, Vote, check_decision,
};
use crate::protocol::keys::Keys;
use crate::protocol::pattern::Pattern;
use redis::{Script, ScriptInvocation};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::sync::Mutex;

/// How long a ballot is kept after its end.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Instances in the largest electorate; a role narrows a larger fleet down. Fixing it is one step in
/// which the server does nothing else.
pub const MAX_ELECTORATE: usize = 5_000;
/// Ballots that may be open at a time.
pub const MAX_OPEN: usize = 1000;
/// Electors that all ballots together may have which are open, or are kept after their end: each ballot
/// keeps its electorate.
pub const MAX_ELECTORS: usize = 1_000_000;
/// Ballots that are listed: the ones opened last. Older ones are kept all the same.
pub const LISTED: usize = 1000;

/// Ballots read in one round trip.
const PAGE: usize = 100;

/// What the scripts of ballots share.
const BALLOT: &str = include_str!("ballot.lua");

static ADD_QUORUM_VOTE: LazyLock<Script> =
    LazyLock::new(|| script_with(&[VERSION, BALLOT], include_str!("add_quorum_vote.lua")));

/// The ballots of one namespace. Cheap to clone; every clone and every process sees the same.
#[derive(Clone, Debug)]
pub struct Ballots {
    store: Store,
    /// Held by the one of this process that reads votes, which may be many.
    counting: Arc<Mutex<()>>,
}

/// The outcome of a vote.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Voted {
    /// Whether this vote is counted, by this call or by an earlier one.
    pub voted: bool,
    /// How the ballot stands.
    pub status: BallotStatus,
    /// What was decided: canonical MessagePack.
    pub decision: Option<Vec<u8>>,
    /// Votes that were counted, for whatever value.
    pub vote_count: u64,
    /// Votes for one value that decide.
    pub quorum: u64,
    /// Instances that may vote.
    pub electorate: u64,
}

/// A ballot with its votes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BallotVotes {
    /// The ballot.
    pub ballot: Ballot,
    /// The electorate, by id: what each voted for, as canonical MessagePack; `None`: not yet.
    pub votes: Vec<(String, Option<Vec<u8>>)>,
}

answer! {
    /// What `add_quorum_vote.lua` answers.
    struct Counted {
        answer: String,
        voted: bool,
        status: String,
        vote_count: u64,
        quorum: u64,
        electorate: u64,
        decided: Option<Vec<u8>>,
        /// The role whose instances the electorate was taken from.
        pinned: String,
    }
}

impl Ballots {
    /// The ballots of the namespace of `keys`.
    pub fn new(connector: Connector, keys: Keys) -> Self {
        let store = Store::new(connector, keys);
        let counting = Arc::default();
        Self { store, counting }
    }

    /// Takes a vote, if it counts, and counts it where the script does. The same vote can be given any number of times.
    ///
    /// # Errors
    /// `Invalid` for a value out of bounds; `FailedPrecondition` for an instance that is not in the
    /// electorate, for another role than the ballot's, or for an electorate above
    /// [`MAX_ELECTORATE`]; `Exhausted` if it would open one more than [`MAX_OPEN`], or with more electors
    /// than [`MAX_ELECTORS`]; `AlreadyExists` if the instance voted for another value before; `Bus`
    /// else.
    pub async fn vote(&self, vote: &Vote) -> Result<Voted, CoordinationError> {
        Ok(self.take(vote, Pattern::Hybrid).await?.voted)
    }

    /// Has the script count a vote; `None`: it does not count this ballot.
    async fn add(&self, vote: &Vote) -> Result<Option<Voted>, CoordinationError> {
        let value = vote.check()?;
        let mut call = ADD_QUORUM_VOTE.prepare_invoke();
        self.declare(&mut call, vote, &value, None);
        let told: Counted = self.store.invoke(&call).await?;
        let status = &told.status;
        match told.answer.as_str() {
            "state" if status == VOTING => Ok(None),
            "state" => Ok(Some(Voted {
                voted: told.voted,
                status: BallotStatus::from_name(status).ok_or(SHAPE)?,
                decision: told.decided,
                vote_count: told.vote_count,
                quorum: told.quorum,
                electorate: told.electorate,
            })),
            answer => Err(refused(vote, answer, status, told.electorate, &told.pinned)),
        }
    }

    /// The keys and arguments that the scripts of a vote have in common; `more` is one key besides.
    fn declare(
        &self,
        call: &mut ScriptInvocation<'_>,
        vote: &Vote,
        value: &[u8],
        more: Option<String>,
    ) {
        let (keys, decision) = (&self.store.keys, &vote.decision);
        let role = vote.role.as_deref().unwrap_or_default();
        let kept = whole_ms(KEPT);
        for key in self.keys_of(decision) {
            call.key(key);
        }
        if let Some(more) = more {
            call.key(more);
        }
        if !role.is_empty() {
            call.key(keys.role(role));
        }
        call.arg(decision)
            .arg(&vote.instance_id)
            .arg(value)
            .arg(role)
            .arg(vote.expires_in_ms)
            .arg(kept)
            .arg(EXPIRES_IN_MS.end() + kept)
            .arg(MAX_ELECTORATE)
            .arg(LISTED)
            .arg(MAX_OPEN)
            .arg(MAX_ELECTORS);
    }

    /// The first keys of each script of a ballot, see `ballot.lua`.
    fn keys_of(&self, decision: &str) -> [String; 11] {
        let keys = &self.store.keys;
        [
            keys.ballot(decision),
            keys.electorate(decision),
            keys.votes(decision),
            keys.tally(decision),
            keys.ballots(),
            keys.active(),
            keys.broadcast(),
            keys.ballots_open(),
            keys.ballots_kept(),
            keys.electors(),
            keys.state(),
        ]
    }

    /// The ballots that were opened last, at most `limit` of them and at most [`LISTED`]; the last
    /// one first.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn list(&self, limit: usize) -> Result<Vec<Ballot>, CoordinationError> {
        let mut latest = redis::pipe();
        latest
            .cmd("ZRANGE")
            .arg(self.store.keys.ballots())
            .arg(0)
            .arg(limit.min(LISTED) as i64 - 1)
            .arg("REV");
        if limit == 0 {
            return Ok(Vec::new());
        }
        let (names,): (Vec<String>,) = self.store.ask(&latest).await?;
        let mut ballots = Vec::with_capacity(names.len());
        for page in names.chunks(PAGE) {
            let mut reads = redis::pipe();
            for name in page {
                reads.cmd("HGETALL").arg(self.store.keys.ballot(name));
            }
            let hashes: Vec<HashMap<String, Vec<u8>>> = self.store.ask(&reads).await?;
            // Asked last: nothing read here was opened later.
            let now = self.store.now().await?;
            ballots.extend(
                hashes
                    .iter()
                    .filter_map(|hash| Ballot::from_hash(hash, now)),
            );
        }
        Ok(ballots)
    }

    /// One ballot with who voted what, at one moment; `None` if it does not exist, or not any more.
    ///
    /// # Errors
    /// `Invalid` for a malformed name, `Bus` else.
    pub async fn show(&self, decision: &str) -> Result<Option<BallotVotes>, CoordinationError> {
        check_decision(decision)?;
        let keys = &self.store.keys;
        let mut reads = redis::pipe();
        reads.atomic();
        self.store.ask_time(&mut reads).await?;
        reads.cmd("HGETALL").arg(keys.ballot(decision));
        reads.cmd("HGETALL").arg(keys.votes(decision));
        reads
            .cmd("ZRANGE")
            .arg(keys.electorate(decision))
            .arg(0)
            .arg(-1);
        type Read = (
            ServerTime,
            HashMap<String, Vec<u8>>,
            HashMap<String, Vec<u8>>,
            Vec<String>,
        );
        let (ServerTime(now), hash, mut votes, mut electorate): Read =
            self.store.ask(&reads).await?;
        let Some(ballot) = Ballot::from_hash(&hash, now) else {
            return Ok(None);
        };
        electorate.sort();
        let votes = electorate
            .into_iter()
            .map(|id| {
                let value = votes.remove(&id);
                (id, value)
            })
            .collect();
        Ok(Some(BallotVotes { ballot, votes }))
    }
}

impl BallotVotes {
    /// The values that were voted for, with how many voted so, the most first.
    pub fn tally(&self) -> Vec<(&[u8], usize)> {
        let mut counts: HashMap<&[u8], usize> = HashMap::new();
        for value in self.votes.iter().filter_map(|(_, value)| value.as_deref()) {
            *counts.entry(value).or_default() += 1;
        }
        let mut tally: Vec<_> = counts.into_iter().collect();
        tally.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        tally
    }
}

/// Why a script refused a vote.
fn refused(
    vote: &Vote,
    answer: &str,
    status: &str,
    electorate: u64,
    pinned: &str,
) -> CoordinationError {
    let (decision, instance_id) = (&vote.decision, &vote.instance_id);
    let role = vote.role.as_deref().unwrap_or_default();
    let of = |role: &str| match role {
        "" => "all instances".to_owned(),
        role => format!("the instances of role {role}"),
    };
    match answer {
        "absent" => CoordinationError::FailedPrecondition(format!(
            "instance_id: {instance_id} is not active among {}, so it cannot open a ballot on \
             {decision}: register it first",
            of(role)
        )),
        "crowd" => CoordinationError::FailedPrecondition(format!(
            "decision: {electorate} instances are more than the {MAX_ELECTORATE} that may vote \
             on {decision}: name a role that fewer hold"
        )),
        "many" => CoordinationError::Exhausted(format!(
            "decision: {MAX_OPEN} ballots are open already, and {decision} would be one more: vote \
             in those, or wait until some have expired"
        )),
        "much" => CoordinationError::Exhausted(format!(
            "decision: the ballots that are kept have {MAX_ELECTORS} electors together, and those of \
             {decision} would be more: name a role that few hold, or wait until some are forgotten"
        )),
        "stranger" => CoordinationError::FailedPrecondition(format!(
            "instance_id: {instance_id} is not in the electorate of {decision}, which is {} \
             that were active when its ballot was opened",
            of(pinned)
        )),
        "role" => CoordinationError::FailedPrecondition(format!(
            "role: the electorate of {decision} is {}, not {}: leave role out to vote in it",
            of(pinned),
            of(role)
        )),
        "value" => CoordinationError::AlreadyExists(format!(
            "value: {instance_id} voted for another value in {decision} (the ballot is {}), \
             and a vote stays as it is",
            BallotStatus::from_name(status).map_or("unknown", BallotStatus::as_str)
        )),
        _ => SHAPE.into(),
    }
}

const SHAPE: BusError = BusError::Reply {
    what: "add_quorum_vote",
};
