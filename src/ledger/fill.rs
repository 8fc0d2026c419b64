//! Fills the ledger: the consumer group `ledger` on the broadcast and the dead letters' streams.
//!
//! A batch is written in one transaction and acknowledged after its commit. A crash between the two
//! has it delivered again, and the rows are unique by stream and entry. While the database takes
//! nothing, no more is read than is in hand.

use super::database::Database;
use super::error::LedgerError;
use super::fact::{Fact, Origin};
use crate::connect::backoff::Backoff;
use crate::connect::connector::{BLOCK, Connector};
use crate::connect::error::BusError;
use crate::connect::resp::wire::Wire;
use crate::protocol::event::{Entry, EntryId};
use crate::protocol::keys::Keys;
pub use crate::protocol::keys::LEDGER_GROUP as GROUP;
use crate::streams::claim;
use crate::streams::read;
use redis::Value;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Entries that the read that waits brings from each stream at the most. Dead letters carry whole
/// payloads, so this bounds memory.
const WAKE: usize = 16;
/// Facts of a batch when there are many: they are small.
const FACTS: usize = 1000;
/// Dead letters of a batch when there are many.
const LETTERS: usize = 64;
/// Pending entries that are looked at at a time.
const PAGE: usize = 100;
/// A read that is not to wait; zero would wait for ever.
const AT_ONCE: Duration = Duration::from_millis(1);
/// How long the name of a consumer is kept that holds nothing.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// How long a schema that was found in order counts as such.
const SCHEMA: Duration = Duration::from_secs(5);

/// A stream that the ledger reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerStream {
    /// Its key.
    pub stream: String,
    /// What is in it.
    pub origin: Origin,
}

/// The streams of the ledger: the broadcast, the dead letters of those streams and of those domains.
pub fn sources(keys: &Keys, own: &[String], domains: &[String]) -> Vec<LedgerStream> {
    let others = domains.iter().flat_map(|domain| {
        (0..keys.partitions(domain)).map(|partition| keys.dead(domain, partition))
    });
    let mut dead: Vec<String> = own.iter().cloned().chain(others).collect();
    dead.sort_unstable();
    dead.dedup();
    let broadcast = LedgerStream {
        stream: keys.broadcast(),
        origin: Origin::Broadcast,
    };
    let dead = dead.into_iter().map(|stream| LedgerStream {
        stream,
        origin: Origin::Dead,
    });
    [broadcast].into_iter().chain(dead).collect()
}

/// What a stream holds for the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Entries that no consumer was given.
    pub unread: u64,
    /// Entries that a consumer was given and has not acknowledged.
    pub pending: u64,
}

/// What a stream holds for the ledger; none if the ledger was never filled from it.
pub async fn lag(
    connection: &mut impl ConnectionLike,
    stream: &str,
) -> Result<Option<Lag>, BusError> {
    let groups: Result<Vec<HashMap<String, Value>>, _> = redis::cmd("XINFO")
        .arg("GROUPS")
        .arg(stream)
        .query_async(connection)
        .await;
    let groups = match groups {
        Ok(groups) => groups,
        Err(error) if error.detail().is_some_and(|d| d.contains("no such key")) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let group = groups
        .iter()
        .find(|group| group.get("name") == Some(&Value::BulkString(GROUP.into())));
    let number = |group: &HashMap<String, Value>, name: &str| match group.get(name) {
        Some(Value::Int(number)) => u64::try_from(*number).unwrap_or(0),
        _ => 0,
    };
    Ok(group.map(|group| Lag {
        unread: number(group, "lag"),
        pending: number(group, "pending"),
    }))
}

/// What was written since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Rows that were new.
    pub written: AtomicU64,
    /// Entries that were acknowledged.
    pub acknowledged: AtomicU64,
    /// Attempts that the database did not take; each is made again.
    pub failures: AtomicU64,
}

/// One consumer of the group. All that it reads lies in one slot.
#[derive(Clone, Debug)]
pub struct Filler {
    /// Where Redis is.
    pub connector: Connector,
    /// The key names.
    pub keys: Keys,
    /// The consumer's name.
    pub consumer: String,
    /// Where the facts go.
    pub database: Database,
    /// What it reads; may change.
    pub sources: watch::Receiver<Vec<LedgerStream>>,
    /// How long an entry may be idle with another consumer before it is taken over.
    pub claim_idle: Duration,
    /// A larger payload is left out.
    pub max_payload: usize,
    /// What was done.
    pub counts: Arc<Counts>,
    /// Reads no more once it is cancelled.
    pub drain: CancellationToken,
}

/// The database took nothing until the end.
struct Undone;

enum Stopped {
    Bus(BusError),
    Drained,
}

impl From<BusError> for Stopped {
    fn from(error: BusError) -> Self {
        Stopped::Bus(error)
    }
}

impl From<Undone> for Stopped {
    fn from(_: Undone) -> Self {
        Stopped::Drained
    }
}

impl Filler {
    /// Runs until it is told to drain. What it holds then stays pending, for the others.
    pub async fn run(mut self) {
        let mut backoff = Backoff::default();
        while !self.drain.is_cancelled() {
            let began = Instant::now();
            match self.follow().await {
                Ok(()) => {}
                Err(Stopped::Drained) => break,
                Err(Stopped::Bus(error)) => {
                    if began.elapsed() > 2 * BLOCK {
                        backoff.worked();
                    }
                    if !backoff.is_failing() {
                        tracing::warn!(%error, "the ledger cannot read redis; trying again");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(backoff.failed()) => {}
                        () = self.drain.cancelled() => break,
                    }
                }
            }
        }
        if let Err(error) = self.leave().await {
            tracing::debug!(%error, "the ledger's consumer was not removed");
        }
    }

    /// Reads until something breaks, or the streams are others.
    async fn follow(&mut self) -> Result<(), Stopped> {
        let mut wire = self.connector.blocking_wire(BLOCK).await?;
        let mut connection = self.connector.dedicated().await?;
        let mut sources = self.sources.borrow_and_update().clone();
        let mut usable = Vec::with_capacity(sources.len());
        for source in sources.drain(..) {
            match read::ensure_group(&mut connection, &source.stream, GROUP).await {
                Ok(_) => usable.push(source),
                Err(error) if error.code() == Some("WRONGTYPE") => {
                    tracing::error!(
                        stream = source.stream,
                        "the key is no stream; the ledger leaves it out"
                    );
                }
                Err(error) => return Err(error.into()),
            }
        }
        let sources = usable;
        let streams: Vec<&str> = sources.iter().map(|source| &*source.stream).collect();
        // What was delivered on an earlier connection and not acknowledged.
        let me = self.consumer.clone();
        for source in &sources {
            self.take_over(&mut wire, &mut connection, source, Some(&me))
                .await?;
        }
        let mut looked = Instant::now();
        while !self.drain.is_cancelled() {
            if self.sources.has_changed().unwrap_or(false) {
                return Ok(());
            }
            if streams.is_empty() {
                tokio::time::sleep(BLOCK).await;
                continue;
            }
            if looked.elapsed() >= self.claim_idle / 2 {
                looked = Instant::now();
                for source in &sources {
                    self.take_over(&mut wire, &mut connection, source, None)
                        .await?;
                    self.forget_others(&mut connection, &source.stream).await?;
                }
            }
            let woken = read::read_group(
                &mut wire,
                GROUP,
                &me,
                &streams,
                WAKE,
                BLOCK,
                self.max_entry(),
            )
            .await?;
            for batch in woken {
                let source = &sources[batch.stream];
                let more = batch.entries.len() == WAKE;
                self.write(&mut connection, source, &batch.entries).await?;
                if more {
                    self.catch_up(&mut wire, &mut connection, source).await?;
                }
            }
        }
        Err(Stopped::Drained)
    }

    /// Bytes of an entry that are held: twice what a payload may have, so that a dead letter of what was
    /// itself at its limit is whole.
    fn max_entry(&self) -> usize {
        self.max_payload.saturating_mul(2).saturating_add(1 << 20)
    }

    /// Writes what waits on one stream, in large batches; not longer than others may wait.
    async fn catch_up(
        &self,
        wire: &mut Wire,
        connection: &mut MultiplexedConnection,
        source: &LedgerStream,
    ) -> Result<(), Stopped> {
        let count = match source.origin {
            Origin::Broadcast => FACTS,
            Origin::Dead => LETTERS,
        };
        let began = Instant::now();
        while !self.drain.is_cancelled() && began.elapsed() < self.claim_idle / 4 {
            let streams = [&*source.stream];
            let (me, limit) = (&self.consumer, self.max_entry());
            let read = read::read_group(wire, GROUP, me, &streams, count, AT_ONCE, limit);
            let Some(batch) = read.await?.pop() else {
                return Ok(());
            };
            self.write(connection, source, &batch.entries).await?;
            if batch.entries.len() < count {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes over what one consumer holds, or what any holds for too long, and writes it.
    async fn take_over(
        &self,
        wire: &mut Wire,
        connection: &mut MultiplexedConnection,
        source: &LedgerStream,
        owner: Option<&str>,
    ) -> Result<(), Stopped> {
        let stream = &source.stream;
        let min_idle = match owner {
            Some(_) => Duration::ZERO,
            None => self.claim_idle,
        };
        let count = match source.origin {
            Origin::Broadcast => PAGE,
            Origin::Dead => WAKE,
        };
        // One step writes to one slot: on a cluster dead letters are elsewhere than the control plane.
        let claims = |owner: &str| {
            let consumer = format!("{GROUP}.{owner}");
            self.keys.claims_beside(stream, &consumer)
        };
        let mut from = EntryId::default();
        loop {
            let page = claim::pending(connection, stream, GROUP, from, count, owner).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            from = last.id.next();
            let full = page.len() == count;
            let wanted: Vec<_> = page
                .into_iter()
                .filter(|entry| entry.idle >= min_idle)
                .collect();
            if !wanted.is_empty() {
                let me = &self.consumer;
                let mut taken =
                    claim::take(connection, stream, GROUP, me, min_idle, &wanted, claims).await?;
                claim::fields(wire, stream, &mut taken, self.max_entry()).await?;
                // What was deleted from its stream is pending no more; nothing is known of it.
                let entries: Vec<Entry> = taken
                    .into_iter()
                    .filter(|taken| !taken.deleted)
                    .map(|taken| taken.entry)
                    .collect();
                self.write(connection, source, &entries).await?;
            }
            if !full {
                return Ok(());
            }
        }
    }

    async fn forget_others(
        &self,
        connection: &mut MultiplexedConnection,
        stream: &str,
    ) -> Result<(), BusError> {
        for other in claim::idle(connection, stream, GROUP, FORGOTTEN).await? {
            if other != self.consumer {
                claim::forget(connection, stream, GROUP, &other).await?;
            }
        }
        Ok(())
    }

    /// Writes entries, however long it takes, then acknowledges them.
    async fn write(
        &self,
        connection: &mut MultiplexedConnection,
        source: &LedgerStream,
        entries: &[Entry],
    ) -> Result<(), Stopped> {
        if entries.is_empty() {
            return Ok(());
        }
        let facts: Vec<Fact> = entries
            .iter()
            .map(|entry| {
                let namespace = self.keys.namespace();
                Fact::of(
                    namespace,
                    &source.stream,
                    source.origin,
                    entry,
                    self.max_payload,
                )
            })
            .collect();
        let new = self.store(&facts).await?;
        let ids: Vec<EntryId> = entries.iter().map(|entry| entry.id).collect();
        read::acknowledge(connection, &source.stream, GROUP, &ids).await?;
        self.counts.written.fetch_add(new, Ordering::Relaxed);
        let acknowledged = entries.len() as u64;
        self.counts
            .acknowledged
            .fetch_add(acknowledged, Ordering::Relaxed);
        Ok(())
    }

    /// Writes facts, trying again until the database takes them or it is time to end.
    async fn store(&self, facts: &[Fact]) -> Result<u64, Undone> {
        let mut trouble: Option<(LedgerError, Instant)> = None;
        let mut backoff = Backoff::default();
        loop {
            match self.try_to_store(facts).await {
                Ok(new) => {
                    if let Some((_, since)) = trouble {
                        let seconds = since.elapsed().as_secs();
                        tracing::info!(seconds, "the ledger writes again; nothing was lost");
                    }
                    return Ok(new);
                }
                Err(error) => {
                    self.counts.failures.fetch_add(1, Ordering::Relaxed);
                    let told = trouble
                        .as_ref()
                        .is_some_and(|(last, _)| last.is_like(&error));
                    if !told {
                        tracing::warn!(%error, "the ledger waits for its database; facts stay in redis meanwhile");
                    }
                    let since = trouble.map_or_else(Instant::now, |(_, since)| since);
                    trouble = Some((error, since));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.failed()) => {}
                () = self.drain.cancelled() => return Err(Undone),
            }
        }
    }

    async fn try_to_store(&self, facts: &[Fact]) -> Result<u64, LedgerError> {
        self.database.ready(SCHEMA).await?;
        match self.database.insert(facts).await {
            Err(LedgerError::Refused(_)) => {}
            done => return done,
        }
        // One of them does not fit: that one is kept without what may be the cause.
        let mut new = 0;
        for fact in facts {
            let one = std::slice::from_ref(fact);
            new += match self.database.insert(one).await {
                Err(LedgerError::Refused(why)) => {
                    tracing::error!(
                        stream = fact.stream,
                        at = fact.at,
                        seq = fact.seq,
                        why,
                        "a fact was not taken as it is"
                    );
                    self.database.insert(&[fact.stripped(&why)]).await?
                }
                done => done?,
            };
        }
        Ok(new)
    }

    /// Removes this consumer where it holds nothing.
    async fn leave(&self) -> Result<(), BusError> {
        let mut connection = self.connector.pooled().await?;
        let sources = self.sources.borrow().clone();
        for source in sources {
            claim::forget(&mut connection, &source.stream, GROUP, &self.consumer).await?;
        }
        Ok(())
    }
}
