//! All replicas run the items over the bus; the holder publishes them and collects the replies.
//!
//! The stream of the replies belongs to the batch, not to a holder, and an item is published with
//! its id and `dedup`: the next holder publishes what is missing again, which stores nothing that is
//! under way, and reads the replies from the beginning.
//!
//! Whoever may publish can make an entry or a deduplication key of any name appear, and have a handler
//! reply wherever it likes. So a word that the batch keeps to itself is in the name of the stream and in the
//! ids of the items, and a reply counts only if it is one to an event of the items' type. An item that is not
//! answered for long, and is not with anybody any more, is published again.

use crate::builtin::system::batch_process::Runner;
use crate::builtin::system::batch_process::holding::{Holding, Stop};
use crate::client::publish::{Outgoing, PublishError};
use crate::connect::backoff::Backoff;
use crate::connect::connector::{BLOCK, Connector};
use crate::connect::epoch::Epoch;
use crate::connect::error::BusError;
use crate::handler::policy::RetryPolicy;
use crate::protocol::error::{Code, HandlerError};
use crate::protocol::event::{Entry, EntryId, Limits};
use crate::protocol::keys::{self, Keys};
use crate::protocol::reply::Reply;
use crate::streams::domains::{Domains, Use};
use crate::streams::open;
use crate::streams::read::{self, Arrivals};
use redis::aio::MultiplexedConnection;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Items that are under way at a time.
const WINDOW: usize = 64;
/// Items that are published together where many may be under way.
const PAGE: usize = 256;
/// Replies that one read brings at the most.
const COUNT: usize = 256;
/// How long a read waits while items are to be published again.
const SOON: Duration = Duration::from_millis(100);
/// How long each of several streams is waited for, while the others are too.
const TURN: Duration = Duration::from_millis(20);

struct FanOut<'a> {
    kind: &'a str,
    items: &'a [Vec<u8>],
    runner: &'a Runner,
    /// One stream of replies for each partition of the items' domain.
    streams: Vec<String>,
    positions: Vec<EntryId>,
    /// Items that were not published by this holder yet.
    waiting: VecDeque<usize>,
    /// Items that were refused, and when they are published again.
    refused: Vec<(Instant, usize)>,
    /// Items that were published and not answered yet.
    under_way: HashMap<usize, UnderWay>,
    /// What the ids of the items begin with.
    prefix: String,
    /// How often an item was refused.
    tries: HashMap<usize, u32>,
    /// Whether others may be at the batch besides.
    shared: bool,
    /// Where that is so: which event of an item is under way, 0 for the first one.
    turns: HashMap<usize, u32>,
}

/// An item that was published and not answered yet.
struct UnderWay {
    /// Since when nobody looked for it.
    since: Instant,
    entry: EntryId,
    /// Whether it was with nobody then. It may wait for its next try, or its answer may be on its way.
    missing: bool,
}

impl UnderWay {
    /// Notes whether it was found with somebody; returns whether it is lost: with nobody twice, and that long without
    /// an answer in between.
    fn is_lost(&mut self, open: bool) -> bool {
        let lost = self.missing && !open;
        (self.since, self.missing) = (Instant::now(), !open);
        lost
    }
}

/// Has every item run that is not finished.
pub(super) async fn run(
    holding: &mut Holding<'_>,
    runner: &Runner,
    kind: &str,
    items: &[Vec<u8>],
    shared: bool,
) -> Result<(), Stop> {
    let keys = holding.context.keys();
    let domain = keys::domain_of(kind);
    let domains = Domains::new(runner.connector.clone(), keys.clone());
    if let Err(error) = domains.learn(&[domain], Use::Works).await {
        tracing::debug!(domain, %error, "how many partitions it has is not known");
    }
    let word = holding.word().await?;
    let name = format!("batch-{word}");
    let partitions = holding.partitions(keys.partitions(domain)).await?;
    let streams: Vec<String> = (0..partitions)
        .map(|n| keys.reply(domain, n, &name))
        .collect();
    let mut work = FanOut {
        kind,
        items,
        runner,
        positions: vec![EntryId::default(); streams.len()],
        streams,
        waiting: (0..items.len())
            .filter(|index| !holding.is_finished(*index))
            .collect(),
        refused: Vec::new(),
        under_way: HashMap::new(),
        prefix: format!("{}/{word}/", holding.id()),
        tries: HashMap::new(),
        shared,
        turns: HashMap::new(),
    };
    work.all(holding).await?;
    holding.complete().await?;
    holding.forget_replies(&work.streams).await;
    Ok(())
}

/// A connection for reading replies.
struct Connected {
    connector: Connector,
    /// The primary that it leads to.
    generation: u64,
    connection: MultiplexedConnection,
}

impl Connected {
    async fn read(
        &mut self,
        from: &[(&str, EntryId)],
        block: Duration,
    ) -> Result<Vec<Arrivals>, BusError> {
        self.connector.check(self.generation)?;
        read::read_after(&mut self.connection, from, COUNT, block).await
    }
}

impl FanOut<'_> {
    async fn all(&mut self, holding: &mut Holding<'_>) -> Result<(), Stop> {
        let mut connection = None;
        let mut backoff = Backoff::default();
        let (mut epochs, mut failed) = (self.epochs(), false);
        loop {
            holding.check().await?;
            self.publish(holding).await?;
            // Nobody holds these back: whoever dies here, they run.
            while self.shared
                && !self.waiting.is_empty()
                && self.under_way.len() < self.runner.ahead
            {
                holding.check().await?;
                self.publish(holding).await?;
            }
            if self.under_way.is_empty() && self.waiting.is_empty() && self.refused.is_empty() {
                return Ok(());
            }
            self.look_for_unanswered(holding).await?;
            let replies = holding.until_drained(self.read(&mut connection)).await?;
            match replies {
                Ok(batches) => {
                    backoff.worked();
                    let now = self.epochs();
                    if now != epochs || (failed && now.is_none()) {
                        // A failover may have forgotten some. What is there still is not stored twice.
                        self.waiting
                            .extend(self.under_way.drain().map(|(index, _)| index));
                    }
                    (epochs, failed) = (now, false);
                    // Who completed it removed the replies: they are waited for in vain.
                    let nothing = batches.iter().all(|batch| batch.entries.is_empty());
                    if self.shared && nothing && holding.is_completed().await? {
                        return Ok(());
                    }
                    for batch in batches {
                        for entry in &batch.entries {
                            self.positions[batch.stream] = entry.id;
                            self.reply(holding, entry).await?;
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(batch = holding.id(), %error, "replies were not read; trying again");
                    (connection, failed) = (None, true);
                    let pause = tokio::time::sleep(backoff.failed());
                    holding.until_drained(pause).await?;
                }
            }
        }
    }

    /// In which history each stream is; `None` where a server does not tell.
    fn epochs(&self) -> Option<Vec<Epoch>> {
        let of = |stream: &String| {
            let connector = self.runner.connector.toward(stream);
            connector.epoch_name().map(|_| connector.epoch())
        };
        self.streams.iter().map(of).collect()
    }

    /// Publishes as many items as may be under way.
    async fn publish(&mut self, holding: &mut Holding<'_>) -> Result<(), Stop> {
        let now = Instant::now();
        let mut chosen: Vec<(usize, bool)> = Vec::new();
        let (page, most) = match self.shared {
            true => (PAGE, self.runner.ahead),
            false => (WINDOW, WINDOW),
        };
        let room = |chosen: &Vec<_>, under_way: &HashMap<_, _>| {
            chosen.len() < page && chosen.len() + under_way.len() < most
        };
        while room(&chosen, &self.under_way)
            && let Some(at) = self.refused.iter().position(|(due, _)| *due <= now)
        {
            // The first one's id is taken: a repetition must be stored all the same, by one of those who are at it.
            chosen.push((self.refused.swap_remove(at).1, self.shared));
        }
        while room(&chosen, &self.under_way)
            && let Some(index) = self.waiting.pop_front()
        {
            chosen.push((index, true));
        }
        if chosen.is_empty() {
            return Ok(());
        }
        let events: Vec<Outgoing> = chosen
            .iter()
            .map(|&(index, dedup)| self.event(holding, index, dedup))
            .collect();
        let client = &self.runner.client;
        let results = holding.beside(client.publish_many(&events)).await?;
        let mut failed = false;
        for ((index, dedup), result) in chosen.into_iter().zip(results) {
            match result {
                Ok(published) => {
                    let since = Instant::now();
                    // One that is scheduled is of somebody else: nothing is there to be found of it.
                    let entry = published.entry().unwrap_or_default();
                    let is = UnderWay {
                        since,
                        entry,
                        missing: false,
                    };
                    self.under_way.insert(index, is);
                }
                // Too large, say: it will not be better next time.
                Err(PublishError::Rejected {
                    reason,
                    lasting: true,
                    ..
                }) => {
                    let failure = (Code::InvalidArgument.as_str(), reason);
                    holding.finish(index, Some(failure), Vec::new()).await?;
                }
                Err(error) => {
                    tracing::debug!(batch = holding.id(), index, %error, "an item was not published; trying again");
                    failed = true;
                    match dedup {
                        true => self.waiting.push_front(index),
                        false => self.refused.push((now, index)),
                    }
                }
            }
        }
        if failed {
            holding.until_drained(tokio::time::sleep(SOON)).await?;
        }
        Ok(())
    }

    /// Has those published again that are without an answer for long and are not with anybody any more.
    async fn look_for_unanswered(&mut self, holding: &mut Holding<'_>) -> Result<(), Stop> {
        let patience = self.runner.patience;
        let overdue: Vec<(usize, EntryId)> = self
            .under_way
            .iter()
            .filter(|(_, is)| is.since.elapsed() >= patience)
            .map(|(index, is)| (*index, is.entry))
            .collect();
        if overdue.is_empty() {
            return Ok(());
        }
        let keys = holding.context.keys().clone();
        let domain = keys::domain_of(self.kind);
        for partition in 0..self.streams.len() as u16 {
            let of_partition = overdue
                .iter()
                .filter(|(index, _)| self.partition_of(&self.id_of(*index)) == partition);
            let (indexes, entries): (Vec<usize>, Vec<(EntryId, String)>) = of_partition
                .map(|(index, entry)| (*index, (*entry, self.id_of(*index))))
                .unzip();
            if indexes.is_empty() {
                continue;
            }
            let (stream, group) = (keys.events(domain, partition), &self.runner.group);
            let look = async {
                let mut connection = self.runner.connector.pooled().await?;
                open::are_open(&mut connection, &stream, group, &entries).await
            };
            let open = match holding.beside(look).await? {
                Ok(open) => open,
                Err(error) => {
                    tracing::debug!(batch = holding.id(), %error, "items without an answer were not looked for; trying again");
                    return Ok(());
                }
            };
            for (index, open) in indexes.into_iter().zip(open) {
                let is = self.under_way.get_mut(&index);
                if is.is_some_and(|is| is.is_lost(open)) {
                    tracing::warn!(
                        batch = holding.id(),
                        index,
                        "an item is without an answer and with nobody; publishing it again"
                    );
                    self.under_way.remove(&index);
                    self.next_turn(index, self.turn_of(index));
                    self.refused.push((Instant::now(), index));
                }
            }
        }
        Ok(())
    }

    /// Of as many as there were when the batch began: so an item that is published again is the same one.
    fn partition_of(&self, id: &str) -> u16 {
        Keys::partition_among(self.streams.len() as u16, id)
    }

    fn turn_of(&self, index: usize) -> u32 {
        self.turns.get(&index).copied().unwrap_or(0)
    }

    /// An item is to be published once more. Where several are at it, each turn has an id that all of them know: so it
    /// is stored once.
    fn next_turn(&mut self, index: usize, after: u32) {
        if self.shared {
            self.turns.insert(index, after + 1);
        }
    }

    fn id_of(&self, index: usize) -> String {
        match self.turn_of(index) {
            0 => format!("{}{index}", self.prefix),
            turn => format!("{}{index}~{turn}", self.prefix),
        }
    }

    fn event(&self, holding: &Holding<'_>, index: usize, dedup: bool) -> Outgoing {
        let id = self.id_of(index);
        let partition = self.partition_of(&id);
        let event = Outgoing::encoded(self.kind, self.items[index].clone())
            .reply_to(&self.streams[usize::from(partition)])
            .in_partition(partition)
            .id(id)
            .dedup(dedup);
        match holding.context.trace() {
            Some(trace) => event.traceparent(trace.to_string()),
            None => event,
        }
    }

    async fn read(
        &self,
        connections: &mut Option<Vec<Connected>>,
    ) -> Result<Vec<Arrivals>, BusError> {
        let names = self.streams.iter().map(String::as_str);
        let from: Vec<(&str, EntryId)> = names.zip(self.positions.iter().copied()).collect();
        // On a cluster each stream has a slot of its own.
        let at_once = match self.runner.connector.is_cluster() {
            true => 1,
            false => from.len().max(1),
        };
        let parts: Vec<_> = from.chunks(at_once).collect();
        let connections = match connections {
            Some(connections) => connections,
            none => {
                let mut made = Vec::with_capacity(parts.len());
                for part in &parts {
                    let connector = self.runner.connector.toward(part[0].0);
                    let generation = connector.generation();
                    let connection = connector.blocking(BLOCK).await?;
                    made.push(Connected {
                        connector,
                        generation,
                        connection,
                    });
                }
                none.insert(made)
            }
        };
        let block = match self.refused.is_empty() {
            _ if parts.len() > 1 => TURN,
            true => BLOCK,
            false => SOON,
        };
        let reads = connections.iter_mut().zip(&parts);
        let reads = reads.map(|(connected, part)| connected.read(part, block));
        let answers = futures_util::future::join_all(reads).await;
        let mut all = Vec::new();
        for (at, read) in answers.into_iter().enumerate() {
            all.extend(read?.into_iter().map(|batch| Arrivals {
                stream: batch.stream + at * at_once,
                ..batch
            }));
        }
        Ok(all)
    }

    async fn reply(&mut self, holding: &mut Holding<'_>, entry: &Entry) -> Result<(), Stop> {
        let of_kind = entry
            .get("type")
            .and_then(|kind| kind.strip_prefix(self.kind.as_bytes()));
        let Some((index, turn)) =
            item_of(entry, &self.prefix, self.items.len()).filter(|_| of_kind == Some(b".result"))
        else {
            return Ok(());
        };
        if holding.is_finished(index) {
            return Ok(());
        }
        let failure = match Reply::parse(entry, &Limits::default()) {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => {
                // Of a turn that is over already.
                if is_refusal(error.code) && turn < self.turn_of(index) {
                    return Ok(());
                }
                let tries = self.tries.entry(index).or_default();
                *tries += 1;
                if is_refusal(error.code)
                    && let Some(wait) = RetryPolicy::default().delay(*tries)
                {
                    self.under_way.remove(&index);
                    self.waiting.retain(|waiting| *waiting != index);
                    self.next_turn(index, turn);
                    self.refused.push((Instant::now() + wait, index));
                    return Ok(());
                }
                Some((error.code.as_str(), error.message))
            }
            Err(malformed) => Some((Code::Internal.as_str(), malformed.to_string())),
        };
        self.under_way.remove(&index);
        self.waiting.retain(|waiting| *waiting != index);
        self.refused.retain(|(_, refused)| *refused != index);
        let failure = failure.map(|(code, message)| {
            let error = HandlerError::internal(message);
            (code, error.bounded_message().to_owned())
        });
        holding.finish(index, failure, Vec::new()).await
    }
}

/// A requester is told at once what a circuit or a rate limit refused; an item can wait.
fn is_refusal(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::ResourceExhausted)
}

/// Which item a reply is about, and which turn of it.
fn item_of(entry: &Entry, prefix: &str, items: usize) -> Option<(usize, u32)> {
    let id = std::str::from_utf8(entry.get("correlationid")?).ok()?;
    let (index, turn) = match id.strip_prefix(prefix)?.split_once('~') {
        Some((index, turn)) => (index, turn.parse().ok()?),
        None => (id.strip_prefix(prefix)?, 0),
    };
    let index = index.parse().ok()?;
    (index < items).then_some((index, turn))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_lost_when_it_was_with_nobody_twice() {
        let mut item = UnderWay {
            since: Instant::now(),
            entry: EntryId::default(),
            missing: false,
        };
        assert!(!item.is_lost(false), "it may wait for its next try");
        assert!(!item.is_lost(true), "somebody has it");
        assert!(!item.is_lost(false));
        assert!(item.is_lost(false));
    }
}
