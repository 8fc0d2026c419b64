//! The fenced commit: the only place that acknowledges.
//!
//! An outcome takes effect only if its entry is still pending with this consumer, in the delivery
//! that was run. There are two ways to that.
//!
//! *Slow and always right*: `commit.lua`, entry by entry (`one.rs`), compares owner and delivery count and
//! writes in one step.
//!
//! *Fast* (`fast.rs`): plain commands in one `MULTI`/`EXEC` for the whole batch. What makes it safe is the
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
//! The counter is raised when a consumer starts and with each connection that takes the place of another, so that an
//! older process of the same name loses the fast way, and so does what was read before a connection broke, and what the
//! broken one may still bring: the server may have failed over. It exists while the consumer lives, so that a flushed
//! database trips it.
//!
//! # Where the server is far
//!
//! One commit at a time would wait for the way there and back. So a lane has several committers then
//! ([`Committer::another`], as many as the [`Distance`] asks for), each with one commit under way on a connection of its
//! own:
//!
//! - **What holds for one holds for each by itself**: a connection sends a batch only if each entry carries the value
//!   that *this* connection read behind its own `WATCH`. Where another one has learned of a later value it looks again
//!   first, by a transaction without a command. Where the counter fell, it is raised above all that was known.
//! - One that comes in addition need not raise the counter, since it follows nobody whose commit may still be on its way
//!   (nor does one that takes the place of another that idled, whose last commit had its answer);
//!   but only where the server names the same history of its data as when the counter was raised: in another one
//!   nobody knows what was read. Else it raises it, too.
//! - Their commits have no order. Who has an order to keep has one of them under way at a time (`worker/lane/commits.rs`).
//!
//! # Where the partition is owned
//!
//! One worker at a time owns it then, and each change of owner raises its [fence](crate::streams::fence). It is watched
//! and read beside the counters, and is never learned again: where it is another one than when this worker began to own
//! the partition, nothing is sent any more. The script looks at it first.
//!
//! An outcome that reports what its run wrote to the server itself is committed only in the history of
//! the data in which that run began (see `connect/epoch.rs`).

mod counter;
mod distance;
mod fast;
mod lost;
mod one;
pub mod settlement;

use self::fast::Fast;
use self::one::{Scripts, Slow};
use crate::connect::backoff::Backoff;
use crate::connect::connector::Connector;
use crate::connect::error::{BusError, Reaction};
use crate::connect::resp::wire::{Commands, Token, Wire, server_error};
use crate::protocol::keys::StreamKeys;
pub use crate::streams::commit::counter::Claims;
use crate::streams::commit::counter::Watched;
pub use crate::streams::commit::distance::Distance;
use crate::streams::commit::settlement::Place;
pub use crate::streams::commit::settlement::{
    Disposition, MAX_PUBLICATIONS, Note, Publication, Receipt, ReplyEntry, Settlement, Tally,
};
use crate::streams::fence::Fence;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// The most reply streams whose time to live is remembered.
const REMEMBERED_REPLIES: usize = 10_000;
/// How long a delivery is in hand before its outcome goes the slow way, which sees what was done to the
/// entry by hand.
const FRESH: Duration = Duration::from_secs(1);

/// How long a connection may idle that comes in addition to others, before another one takes its place: what stands
/// on the way may forget it without a word.
const IDLE: Duration = Duration::from_secs(60);
/// How long one idles that a partition of a cluster has for itself, before it is let go.
const RESTS: Duration = Duration::from_secs(15);

/// Commits outcomes of one lane, a batch at a time.
pub struct Committer {
    connector: Connector,
    routes: Arc<[StreamKeys]>,
    group: String,
    consumer: String,
    claims: Arc<Claims>,
    distance: Arc<Distance>,
    wire: Option<Wire>,
    /// The counters as that connection watches them.
    watched: Watched,
    /// Whether this one comes in addition to others.
    is_further: bool,
    /// Whether nothing of it can be on its way: it was never connected, or its last commit had an answer.
    joins: bool,
    /// When its connection was used last.
    used: Instant,
    /// For what goes the slow way.
    scripts: Option<Scripts>,
    /// When something went the slow way.
    scripts_used: Instant,
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

impl fmt::Debug for Committer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Committer({})", self.consumer)
    }
}

/// Fails where an ACL denies transactions: their commands would run one by one, unfenced.
async fn may_transact(wire: &mut Wire, distance: &Distance) -> Result<(), BusError> {
    for word in [&b"MULTI"[..], b"EXEC"] {
        let asked = Instant::now();
        if let Token::Error(text) = wire.ask(&[word]).await?.token()? {
            return Err(server_error(text));
        }
        distance.saw(asked.elapsed());
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
            distance: Arc::default(),
            wire: None,
            watched: Watched::default(),
            is_further: false,
            joins: false,
            used: Instant::now(),
            scripts: None,
            scripts_used: Instant::now(),
            commands: Commands::default(),
            replies: HashMap::new(),
            reply_ttl: options.reply_ttl,
            reply_history: options.reply_history,
            stop: options.stop,
        }
    }

    /// The same for a lane whose partition is owned: it commits only while the fence stands. Before it is used.
    #[doc(hidden)]
    #[must_use]
    pub fn fenced(self, fence: Arc<Fence>) -> Self {
        self.claims.fenced(fence);
        self
    }

    /// Whether the partition has another owner: nothing is committed any more.
    fn is_lost(&self) -> bool {
        self.claims.fence().is_some_and(|fence| fence.is_lost())
    }

    /// One more for the same lane, which is not connected yet.
    pub fn another(&self) -> Self {
        Self {
            connector: self.connector.clone(),
            routes: self.routes.clone(),
            group: self.group.clone(),
            consumer: self.consumer.clone(),
            claims: self.claims.clone(),
            distance: self.distance.clone(),
            wire: None,
            watched: Watched::default(),
            is_further: true,
            joins: true,
            used: Instant::now(),
            scripts: None,
            scripts_used: Instant::now(),
            commands: Commands::default(),
            replies: HashMap::new(),
            reply_ttl: self.reply_ttl,
            reply_history: self.reply_history,
            stop: self.stop.clone(),
        }
    }

    /// How far the server is.
    pub fn distance(&self) -> Arc<Distance> {
        self.distance.clone()
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
        // From now on it follows one that may have sent something.
        let joins = std::mem::take(&mut self.joins);
        let mut wire = self.connector.wire().await?;
        may_transact(&mut wire, &self.distance).await?;
        let joined = match joins {
            true => self.claims.join(&mut wire).await?,
            false => None,
        };
        self.watched = match joined {
            Some(watched) => watched,
            None => {
                let clock = self.connector.clock().await?;
                self.claims.arm(&mut wire, clock).await?
            }
        };
        self.wire = Some(wire);
        self.used = Instant::now();
        Ok(())
    }

    /// Gives up a connection that idled and may be gone by now, as one that comes in addition does. Its last commit had an
    /// answer, so who takes its place follows nobody.
    fn give_up_idle(&mut self) {
        let is_old = self.used.elapsed() > IDLE;
        if self.is_further && self.wire.is_some() && (is_old || self.heard_the_end()) {
            self.wire = None;
            self.joins = true;
        }
    }

    /// Lets connections go that idled, where there are some for each partition. No commit may be under way: the last one
    /// had an answer, so who takes their place follows nobody, and watches the counters from where they stand.
    pub fn rest(&mut self) {
        if !self.connector.is_cluster() {
            return;
        }
        if self.wire.is_some() && self.used.elapsed() > RESTS && self.claims.may_join() {
            self.wire = None;
            self.joins = true;
        }
        if self.scripts.is_some() && self.scripts_used.elapsed() > RESTS {
            self.scripts = None;
        }
    }

    /// Whether the server closed the connection that it keeps, as far as this process heard.
    #[doc(hidden)]
    pub fn heard_the_end(&mut self) -> bool {
        self.wire.as_mut().is_some_and(|wire| !wire.is_quiet())
    }

    /// Whether what the run wrote to the server is still there, for all that is known.
    fn is_of_this_epoch(&self, settlement: &Settlement) -> bool {
        let is_now = |epoch| self.connector.check_epoch(epoch).is_ok();
        let of_the_owner = self.claims.fence().and_then(|fence| fence.epoch());
        settlement.epoch.is_none_or(is_now) && of_the_owner.is_none_or(is_now)
    }

    fn place(&self, receipt: &Receipt) -> Place<'_> {
        self.place_at(receipt, self.claims.server_now())
    }

    /// The same where the server's clock was looked at before.
    fn place_at(&self, receipt: &Receipt, now: u64) -> Place<'_> {
        Place {
            route: &self.routes[receipt.stream],
            consumer: &self.consumer,
            now,
            outbox: self.connector.is_cluster(),
            reply_history: Some(self.reply_history),
        }
    }

    /// Commits a batch. Returns when every settlement has an end; while the server is away that is
    /// when it is back, or when the committer is told to stop.
    pub async fn commit(&mut self, batch: Vec<Settlement>) -> Tally {
        self.give_up_idle();
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
        if !slow.is_empty() {
            self.scripts_used = Instant::now();
        }
        // They are taken from the end.
        slow.reverse();
        while let Some(settlement) = slow.pop() {
            let (before, receipt) = (tally.committed, settlement.receipt);
            if self.is_lost() {
                tally.fenced += 1;
                tally.unwritten.push(receipt);
                continue;
            }
            match self.slow(&settlement).await {
                Ok(Slow::Committed) => tally.count(&settlement.disposition),
                Ok(Slow::Untold) => {
                    tally.committed += 1;
                    tally.dead += 1;
                }
                Ok(Slow::Fenced) => tally.fenced += 1,
                Ok(Slow::Outdated) => tally.outdated += 1,
                Ok(Slow::Refused(why)) => tally.refused.push((settlement.receipt, why)),
                Err(error) if self.claims.fence().is_some_and(|it| it.hears(&error)) => {
                    tally.fenced += 1;
                }
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
}
