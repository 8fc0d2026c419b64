//! The fenced commit: the only place that acknowledges.
//!
//! An outcome takes effect only if its entry is still pending with this consumer, in the delivery
//! that was run. There are two ways to that.
//!
//! *Slow and always right*: `commit.lua`, entry by entry (`one.rs`), compares owner and delivery count and
//! writes in one step.
//!
//! *Fast*: plain commands in one `MULTI`/`EXEC` for the whole batch. What makes it safe is the
//! **claim counter** of this consumer, which every takeover raises in the step in which it claims.
//! The counter is watched; each commit is sent as `MULTI … EXEC WATCH counters MGET counters`.
//!
//! - Moved while it was watched: `EXEC` does nothing.
//! - Moved between `EXEC` and the next `WATCH`: the `MGET` behind it shows another value.
//! - A read that was answered late: each entry carries the value that was known **before its read was
//!   sent**. The counter only rises, so if it equals the watched value the entry was not taken since.
//! - Unknown outcome (time-out, cut connection): the batch goes the slow way, which finds out one by
//!   one what was committed already.
//!
//! The counter is raised when a consumer starts and with each connection, so that an older process of
//! the same name loses the fast way, and so does what was read before a connection broke: the server
//! may have failed over. It exists while the consumer lives, so that a flushed database trips it.
//!
//! An outcome that reports what its run wrote to the server itself is committed only in the history of
//! the data in which that run began (see `connect/epoch.rs`).

mod counter;
mod lost;
mod one;
pub mod settlement;

use self::one::{Scripts, Slow};
use crate::connect::backoff::Backoff;
use crate::connect::clock::whole_ms;
use crate::connect::connector::Connector;
use crate::connect::error::{BusError, Reaction};
use crate::connect::resp::wire::{Commands, Token, Tokens, Wire, server_error};
use crate::protocol::digits::Digits;
use crate::protocol::keys::StreamKeys;
pub use crate::streams::commit::counter::Claims;
pub use crate::streams::commit::settlement::{
    Disposition, MAX_PUBLICATIONS, Note, Publication, Receipt, ReplyEntry, Settlement, Tally,
};
use crate::streams::commit::settlement::{Place, Worth, is_inbox};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// The most reply streams whose time to live is remembered.
const REMEMBERED_REPLIES: usize = 10_000;
/// How long a delivery is in hand before its outcome goes the slow way, which sees what was done to the
/// entry by hand.
const FRESH: Duration = Duration::from_secs(1);

/// Commits the outcomes of one lane.
pub struct Committer {
    connector: Connector,
    routes: Arc<[StreamKeys]>,
    group: String,
    consumer: String,
    claims: Arc<Claims>,
    wire: Option<Wire>,
    /// For what goes the slow way.
    scripts: Option<Scripts>,
    commands: Commands,
    replies: HashMap<String, Instant>,
    reply_ttl: Duration,
    reply_history: u64,
    stop: CancellationToken,
}

/// What a committer is made of.
pub struct CommitterOptions {
    /// Where connections come from.
    pub connector: Connector,
    /// The keys of each stream of the lane.
    pub routes: Arc<[StreamKeys]>,
    /// The claim counter's key of each stream of the lane.
    pub claims: Vec<String>,
    /// The consumer group.
    pub group: String,
    /// The consumer's name.
    pub consumer: String,
    /// How long a reply stream outlives its last reply.
    pub reply_ttl: Duration,
    /// About how many replies a reply stream keeps.
    pub reply_history: u64,
    /// Ends the wait for a server that is away.
    pub stop: CancellationToken,
}

enum Fast {
    /// Committed; which of the commands failed by themselves, and why.
    Done(Vec<(usize, String)>),
    /// Nothing was written: a counter moved, or a receipt is from before it did.
    Nothing,
    /// Nothing was written: the server refused a command before running any.
    Aborted(BusError),
}

impl fmt::Debug for Committer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Committer({})", self.consumer)
    }
}

/// Fails where an ACL denies transactions: their commands would run one by one, unfenced.
async fn may_transact(wire: &mut Wire) -> Result<(), BusError> {
    for word in [&b"MULTI"[..], b"EXEC"] {
        if let Token::Error(text) = wire.ask(&[word]).await?.token()? {
            return Err(server_error(text));
        }
    }
    Ok(())
}

impl Committer {
    /// A committer that is not connected yet.
    pub fn new(options: CommitterOptions) -> Self {
        Self {
            connector: options.connector,
            routes: options.routes,
            group: options.group,
            consumer: options.consumer,
            claims: Arc::new(Claims::new(options.claims)),
            wire: None,
            scripts: None,
            commands: Commands::default(),
            replies: HashMap::new(),
            reply_ttl: options.reply_ttl,
            reply_history: options.reply_history,
            stop: options.stop,
        }
    }

    /// The claim counters as the committer knows them.
    pub fn claims(&self) -> Arc<Claims> {
        self.claims.clone()
    }

    /// Connects and raises this consumer's claim counters, which fences older processes of the same
    /// name.
    pub async fn start(&mut self) -> Result<(), BusError> {
        self.arm().await
    }

    /// Removes the claim counters of a consumer that has nothing pending.
    pub async fn finish(self) -> Result<(), BusError> {
        let mut connection = self.connector.pooled().await?;
        self.claims.forget(&mut connection).await
    }

    async fn arm(&mut self) -> Result<(), BusError> {
        self.wire = None;
        let mut wire = self.connector.wire().await?;
        may_transact(&mut wire).await?;
        let clock = self.connector.clock().await?;
        self.claims.arm(&mut wire, clock).await?;
        self.wire = Some(wire);
        Ok(())
    }

    /// Whether what the run wrote to the server is still there, for all that is known.
    fn is_of_this_epoch(&self, settlement: &Settlement) -> bool {
        let is_now = |epoch| self.connector.check_epoch(epoch).is_ok();
        settlement.epoch.is_none_or(is_now)
    }

    fn place(&self, receipt: &Receipt) -> Place<'_> {
        Place {
            route: &self.routes[receipt.stream],
            consumer: &self.consumer,
            now: self.claims.server_now(),
            outbox: self.connector.is_cluster(),
            reply_history: Some(self.reply_history),
        }
    }

    /// Commits a batch. Returns when every settlement has an end; while the server is away that is
    /// when it is back, or when the committer is told to stop.
    pub async fn commit(&mut self, batch: Vec<Settlement>) -> Tally {
        let mut tally = Tally::default();
        let now = Instant::now();
        let fits = |settlement: &Settlement| self.fits(settlement, now);
        let (batch, slow): (Vec<_>, Vec<_>) = match batch.iter().all(fits) {
            true => (batch, Vec::new()),
            false => batch.into_iter().partition(fits),
        };
        // What was delivered earlier is written earlier.
        if !self.one_by_one(slow, &mut tally).await {
            tally.abandoned += batch.len() as u64;
            let left = batch.iter().map(|settlement| settlement.receipt);
            tally.unwritten.extend(left);
            return tally;
        }
        if batch.is_empty() {
            return tally;
        }
        match self.fast(&batch).await {
            Ok(Fast::Done(failed)) => {
                for settlement in &batch {
                    tally.count(&settlement.disposition);
                }
                tally.dead += self.make_good(&batch, &failed).await;
                return tally;
            }
            Ok(Fast::Nothing | Fast::Aborted(_)) => {}
            Err(error) => {
                self.wire = None;
                // A half-open link or a stale primary is the other connection's too: it would cost
                // a time-out of its own.
                if error.reaction() == Reaction::Reconnect {
                    self.scripts = None;
                }
            }
        }
        self.one_by_one(batch, &mut tally).await;
        tally
    }

    /// Commits settlements by the script. False if it was told to stop before all had an end.
    async fn one_by_one(&mut self, mut slow: Vec<Settlement>, tally: &mut Tally) -> bool {
        let mut backoff = Backoff::default();
        // They are taken from the end.
        slow.reverse();
        while let Some(settlement) = slow.pop() {
            let (before, receipt) = (tally.committed, settlement.receipt);
            match self.slow(&settlement).await {
                Ok(Slow::Committed) => tally.count(&settlement.disposition),
                Ok(Slow::Untold) => {
                    tally.committed += 1;
                    tally.dead += 1;
                }
                Ok(Slow::Fenced) => tally.fenced += 1,
                Ok(Slow::Outdated) => tally.outdated += 1,
                Ok(Slow::Refused(why)) => tally.refused.push((settlement.receipt, why)),
                Err(error) if error.reaction() == Reaction::GiveUp => {
                    tally.refused.push((settlement.receipt, error.to_string()));
                }
                // Without the group nothing is pending any more: it will be delivered again.
                Err(error) if error.reaction() == Reaction::RepairGroup => tally.fenced += 1,
                Err(error) => {
                    slow.push(settlement);
                    if error.reaction() == Reaction::Reconnect {
                        self.wire = None;
                        self.scripts = None;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(backoff.failed()) => {}
                        () = self.stop.cancelled() => {
                            tally.abandoned = slow.len() as u64;
                            let left = slow.iter().map(|settlement| settlement.receipt);
                            tally.unwritten.extend(left);
                            return false;
                        }
                    }
                    continue;
                }
            }
            if tally.committed == before {
                tally.unwritten.push(receipt);
            }
            backoff.worked();
        }
        true
    }

    /// Whether it can be committed with others in one transaction. That sees no claim that raises no
    /// counter (an operator's `XCLAIM`), nor that an entry was deleted: what was in hand for longer, and
    /// could meet that, goes the slow way, which sees it.
    fn fits(&self, settlement: &Settlement, now: Instant) -> bool {
        matches!(
            settlement.disposition,
            Disposition::Done | Disposition::Told(_)
        ) && !settlement.may_not_reach()
            && now.saturating_duration_since(settlement.receipt.since) < FRESH
            && self.is_of_this_epoch(settlement)
            && settlement.receipt.claims == self.claims.known(settlement.receipt.stream)
    }

    /// Tries the whole batch in one transaction.
    async fn fast(&mut self, batch: &[Settlement]) -> Result<Fast, BusError> {
        if self.wire.is_none() {
            self.arm().await?;
        }
        let now = Instant::now();
        if !batch.iter().all(|settlement| self.fits(settlement, now)) {
            return Ok(Fast::Nothing);
        }
        self.transact(batch).await
    }

    /// Runs the whole batch in one transaction, which does nothing if a claim counter moved since
    /// it was last watched.
    async fn transact(&mut self, batch: &[Settlement]) -> Result<Fast, BusError> {
        let mut commands = std::mem::take(&mut self.commands);
        commands.add(&[b"MULTI"]);
        for (at, settlement) in batch.iter().enumerate() {
            let mut place = self.place(&settlement.receipt);
            // Trimming is a fifth of what a reply costs the server, and the last one's does for all.
            if let Some(next) = batch.get(at + 1)
                && settlement.replies_where(next)
            {
                place.reply_history = None;
            }
            settlement.effects(place, |effect| {
                if effect.worth != Worth::Instead {
                    commands.add(effect.words);
                }
            });
        }
        self.acknowledge(batch, &mut commands);
        let told = self.prolong_replies(batch, &mut commands);
        let queued = commands.len();
        commands.add(&[b"EXEC"]);
        self.claims.watch(&mut commands);
        let Some(wire) = &mut self.wire else {
            return Ok(Fast::Nothing);
        };
        wire.send(&mut commands).await?;
        self.commands = commands;
        for _ in 0..queued {
            wire.reply().await?;
        }
        let executed = executed(wire.reply().await?)?;
        // What was executed stays so, whatever the rest of the answer says.
        if !matches!(self.claims.watched(wire).await, Ok(true)) {
            // Gone with a flushed database: a counter that does not exist cannot be watched. Or the
            // link broke, or the server refused.
            self.wire = None;
        }
        if matches!(executed, Fast::Done(_)) {
            self.remember(told);
        }
        Ok(executed)
    }

    /// Adds one acknowledgement for each stream.
    fn acknowledge(&self, batch: &[Settlement], commands: &mut Commands) {
        let mut receipts: Vec<&Receipt> =
            batch.iter().map(|settlement| &settlement.receipt).collect();
        receipts.sort_by_key(|receipt| receipt.stream);
        for receipts in receipts.chunk_by(|a, b| a.stream == b.stream) {
            commands.begin(3 + receipts.len());
            commands.word(b"XACK");
            commands.word(self.routes[receipts[0].stream].events.as_bytes());
            commands.word(self.group.as_bytes());
            for receipt in receipts {
                commands.word(receipt.entry_text().as_ref());
            }
        }
    }

    /// Reply streams go away some time after the last reply. Each batch gives one to those that have
    /// none (they may be new, or made again behind a requester that went away); now and then it is
    /// renewed. Returns the streams for which it is.
    fn prolong_replies(&self, batch: &[Settlement], commands: &mut Commands) -> Vec<String> {
        let ttl = Digits::of(whole_ms(self.reply_ttl));
        let (mut seen, mut told) = (HashSet::new(), Vec::new());
        let mut last = "";
        for reply in batch.iter().filter_map(|s| s.reply.as_ref()) {
            let Some(stream) = &reply.to else {
                continue;
            };
            // Most replies of a batch go where the one before went.
            if stream == last || is_inbox(stream) || !seen.insert(stream.as_str()) {
                continue;
            }
            last = stream;
            commands.add(&[b"PEXPIRE", stream.as_bytes(), ttl.as_ref(), b"NX"]);
            let told_at = self.replies.get(stream);
            if told_at.is_none_or(|at| at.elapsed() >= self.reply_ttl / 4) {
                commands.add(&[b"PEXPIRE", stream.as_bytes(), ttl.as_ref(), b"GT"]);
                told.push(stream.clone());
            }
        }
        told
    }

    fn remember(&mut self, told: Vec<String>) {
        if self.replies.len() + told.len() > REMEMBERED_REPLIES {
            self.replies.clear();
        }
        let now = Instant::now();
        self.replies
            .extend(told.into_iter().map(|stream| (stream, now)));
    }
}

impl Committer {}

/// What the answer of `EXEC` says.
fn executed(mut answer: Tokens<'_>) -> Result<Fast, BusError> {
    let length = match answer.token()? {
        Token::Array(length) => length,
        Token::Nil => return Ok(Fast::Nothing),
        Token::Error(text) => return Ok(Fast::Aborted(server_error(text))),
        _ => return Err(BusError::Reply { what: "EXEC" }),
    };
    let mut failed = Vec::new();
    for number in 0..length {
        match answer.clone().token()? {
            Token::Error(text) => {
                failed.push((number, String::from_utf8_lossy(text).into_owned()));
            }
            // Nothing was added: the stream is not there.
            Token::Nil => failed.push((number, String::new())),
            _ => {}
        }
        answer.skip()?;
    }
    Ok(Fast::Done(failed))
}
