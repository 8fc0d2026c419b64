//! Reads a lane's streams on a connection of its own, and repairs what keeps it from reading.

use super::shared::{Delivery, Shared};
use crate::connect::backoff::Backoff;
use crate::connect::connector::BLOCK;
use crate::connect::error::{BusError, Reaction};
use crate::connect::resp::wire::Wire;
use crate::protocol::entry::Entry;
use crate::streams::made::{self, Ensured};
use crate::streams::read::{self, Look};
use crate::streams::remade;
use redis::aio::ConnectionLike;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Bytes that one read should bring at the most: more gains nothing, leaves the caches and is given back
/// to the system and taken again with each read.
const BYTES: usize = 4 << 20;
/// Entries that a read asks for at the least if it may, however large the last ones were.
const FEW: usize = 16;
/// How many times as many entries as there is room for a read may bring where streams have some that had none before.
const BEYOND: usize = 64;
/// How long a stream is left alone whose key is of another type, or gone on a cluster.
const LEFT_ALONE: Duration = Duration::from_secs(5);
/// How often it is looked whether the partitions that are read are marked as made: the server may have lost the marks.
const MARKS: Duration = Duration::from_secs(10);
/// What is said of a group that is created again.
const GONE: &str = "the group is gone (XGROUP DESTROY, or a key that was deleted): it is created again at the beginning of its streams, so every event that is still in them runs again, what is done already as well";

/// One reader of a lane.
pub(super) struct Reader {
    shared: Arc<Shared>,
    connection: Option<Connected>,
    backoff: Backoff,
    /// Entries that are [`BYTES`] together if they are like those of the last read.
    fit: usize,
    portions: Portions,
    /// Streams whose key is of another type, or gone on a cluster: the others are read all the same.
    unreadable: Vec<usize>,
    /// Streams whose groups were there once.
    read: BTreeSet<usize>,
    /// When it was looked last whether they are marked as made.
    marked: Instant,
    drain: CancellationToken,
    /// How long a read waits: what comes at its end must not be as old as what others take.
    block: Duration,
}

struct Connected {
    wire: Wire,
    /// Which of the lane's streams are read.
    streams: Vec<usize>,
    since: Instant,
}

/// What a read brought.
#[derive(Debug)]
pub(super) enum Read {
    /// New entries, perhaps none, and when they were asked for.
    Entries(Vec<Delivery>, Instant),
    /// The same of a partition that this worker owns, and what is pending there.
    Looked(Vec<Delivery>, Instant, Look),
    /// The read failed; entries may have been delivered to nobody.
    Lost,
}

impl Reader {
    /// A reader that is not connected yet.
    pub(super) fn new(shared: Arc<Shared>, drain: CancellationToken) -> Self {
        let block = BLOCK.min(shared.patience / 2);
        Self {
            shared,
            connection: None,
            backoff: Backoff::default(),
            fit: usize::MAX,
            portions: Portions::default(),
            unreadable: Vec::new(),
            read: BTreeSet::new(),
            marked: Instant::now(),
            drain,
            block,
        }
    }

    /// Reads about `count` new entries at the most of the streams that are not `closed`, fewer where they are large (see
    /// [`Portions`]). Never to be cancelled; it returns within the block and answer times of `connect::connector`.
    pub(super) async fn next(&mut self, count: usize, closed: &[usize]) -> Read {
        match self.read(count, closed).await {
            Ok((entries, asked, look)) => {
                self.backoff.worked();
                match look {
                    None => Read::Entries(entries, asked),
                    Some(look) => Read::Looked(entries, asked, look),
                }
            }
            Err(error) => {
                self.connection = None;
                if !self.backoff.is_failing() {
                    tracing::warn!(lane = self.shared.name, %error, "reading failed; trying again");
                }
                let wait = self.backoff.failed();
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = self.drain.cancelled() => {}
                }
                Read::Lost
            }
        }
    }

    async fn read(
        &mut self,
        count: usize,
        closed: &[usize],
    ) -> Result<(Vec<Delivery>, Instant, Option<Look>), BusError> {
        let shared = self.shared.clone();
        if let Some(connected) = &self.connection
            && !self.unreadable.is_empty()
            && connected.since.elapsed() > LEFT_ALONE
        {
            self.connection = None;
        }
        if self.connection.is_none() {
            self.connection = Some(self.connect().await?);
        }
        let Some(connected) = &mut self.connection else {
            return Ok((Vec::new(), Instant::now(), None));
        };
        let open = connected.streams.iter().copied();
        let open: Vec<usize> = open.filter(|stream| !closed.contains(stream)).collect();
        if open.is_empty() {
            tokio::time::sleep(self.block).await;
            return Ok((Vec::new(), Instant::now(), None));
        }
        let name = |stream: &usize| shared.routes[*stream].events.as_str();
        let streams: Vec<&str> = open.iter().map(name).collect();
        let claims = open.iter().map(|s| shared.claims.known(*s));
        let claims: Vec<u64> = claims.collect();
        let wire = &mut connected.wire;
        let me = shared.instance();
        let count = self.portions.of(count.min(self.fit), streams.len());
        let asked = Instant::now();
        let (group, limit) = (&shared.group, shared.limits.entry());
        let read = match (&shared.owned, &streams[..]) {
            (Some(_), [stream]) => {
                read::read_group_and_look(wire, group, me, stream, count, self.block, limit)
                    .await
                    .map(|(batches, look)| (batches, Some(look)))
            }
            _ => read::read_group(wire, group, me, &streams, count, self.block, limit)
                .await
                .map(|batches| (batches, None)),
        };
        let (batches, look) = match read {
            Ok(read) => read,
            Err(error) => {
                // On a cluster the stream may have moved with its slot: whether it is gone is seen when it is read again.
                let moves = shared.connector.is_cluster() && error.code() == Some("UNBLOCKED");
                if error.reaction() == Reaction::RepairGroup && !moves {
                    tracing::warn!(lane = shared.name, %error, "{GONE}");
                }
                return Err(error);
            }
        };
        let total: usize = batches.iter().map(|batch| batch.entries.len()).sum();
        let entries = batches.iter().flat_map(|batch| &batch.entries);
        let bytes: usize = entries.map(Entry::size).sum();
        if total > 0 {
            self.fit = fit(bytes, total);
        }
        self.portions.brought(batches.len());
        if shared.connector.is_cluster() && self.marked.elapsed() > MARKS {
            self.marked = Instant::now();
            self.mark(&open);
        }
        let since = Instant::now();
        let mut deliveries = Vec::with_capacity(total);
        for batch in batches {
            deliveries.extend(batch.entries.into_iter().map(|entry| Delivery {
                stream: open[batch.stream],
                entry,
                deliveries: 1,
                claims: claims[batch.stream],
                since,
            }));
        }
        Ok((deliveries, asked, look))
    }

    async fn connect(&mut self) -> Result<Connected, BusError> {
        let shared = &self.shared;
        let wire = shared.connector.blocking_wire(BLOCK).await?;
        let mut connection = shared.process.connector.pooled().await?;
        let mut streams = Vec::new();
        let mut unreadable = Vec::new();
        for (index, route) in shared.routes.iter().enumerate() {
            match self.ensure(&mut connection, index).await {
                Ok(Ensured::Gone) => {
                    if !self.unreadable.contains(&index) {
                        made::tell(&route.events);
                    }
                    unreadable.push(index);
                }
                Ok(ensured) => {
                    // It was there before.
                    if ensured == Ensured::Made && self.read.contains(&index) {
                        if shared.connector.is_cluster() {
                            tracing::warn!(lane = shared.name, stream = route.events, "{GONE}");
                        }
                        let keys = &shared.process.keys;
                        let (stream, now) = (&route.events, shared.claims.server_now());
                        remade::note(&mut connection, keys, &shared.group, stream, now)
                            .await
                            .inspect_err(|error| tracing::debug!(stream, %error, "not noted"))
                            .ok();
                    }
                    streams.push(index);
                }
                Err(error) if error.code() == Some("WRONGTYPE") => {
                    if !self.unreadable.contains(&index) {
                        tracing::error!(
                            stream = route.events,
                            "the key is no stream; looking again every 5 s, and reading the others"
                        );
                    }
                    unreadable.push(index);
                }
                Err(error) => return Err(error),
            }
        }
        self.unreadable = unreadable;
        self.read.extend(&streams);
        if self.backoff.is_failing() {
            tracing::info!(lane = shared.name, "reading again");
        }
        Ok(Connected {
            wire,
            streams,
            since: Instant::now(),
        })
    }
}

impl Reader {
    /// Has the group of a stream be there, unless making it would hide what a cluster lost the way to.
    async fn ensure(
        &self,
        connection: &mut impl ConnectionLike,
        index: usize,
    ) -> Result<Ensured, BusError> {
        let (shared, stream) = (&self.shared, &self.shared.routes[index].events);
        if shared.connector.is_cluster() {
            if let Some(place) = self.partition(index) {
                let keys = &shared.process.keys;
                return made::ensure_group(connection, keys, place, &shared.group).await;
            }
            let mut exists = redis::cmd("EXISTS");
            exists.arg(stream);
            if self.read.contains(&index) && !exists.query_async::<bool>(connection).await? {
                return Ok(Ensured::Gone);
            }
        }
        let made = read::ensure_group(connection, stream, &shared.group).await?;
        Ok(match made {
            true => Ensured::Made,
            false => Ensured::There,
        })
    }

    /// Which partition a stream is that has a mark.
    fn partition(&self, index: usize) -> Option<(&str, u16)> {
        let (domain, partition) = self.shared.places.get(index)?;
        let is_split = self.shared.process.keys.is_split(domain);
        (is_split && self.shared.inbox != Some(index)).then_some((domain, *partition))
    }

    /// Puts back the marks of partitions that are read, where the server lost them. What was read waits for none of it.
    fn mark(&self, read: &[usize]) {
        let keys = &self.shared.process.keys;
        let places = read.iter().filter_map(|index| self.partition(*index));
        let places = places.filter(|(domain, at)| !keys.is_made(domain, *at));
        let places: Vec<(String, u16)> = places.map(|(domain, at)| (domain.into(), at)).collect();
        if places.is_empty() {
            return;
        }
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let process = &shared.process;
            for (domain, partition) in places {
                let marked = async {
                    let mut connection = process.connector.pooled().await?;
                    let place = (&*domain, partition);
                    made::mark(&mut connection, &process.keys, place, true).await
                };
                if let Err(error) = marked.await {
                    tracing::debug!(domain, partition, %error, "not marked");
                }
            }
        });
    }
}

/// How many entries a read asks of each of its streams. The server counts them by stream: what all streams that have some
/// give together is to be what there is room for.
#[derive(Debug, Default)]
struct Portions {
    /// How many streams gave some lately.
    busy: usize,
}

impl Portions {
    /// How many of each of that many streams, at least one, where there is room for `count` together.
    fn of(&self, count: usize, streams: usize) -> usize {
        let of_each = |streams: usize| count.div_ceil(streams.max(1)).max(1);
        match self.busy {
            // Nobody knows yet.
            0 => of_each(streams),
            // Others may have some by now, all of them.
            busy => of_each(busy).min(of_each(streams).saturating_mul(BEYOND)),
        }
    }

    /// Notes how many streams gave some. That fewer do is believed bit by bit.
    fn brought(&mut self, streams: usize) {
        self.busy = streams.max(self.busy / 2);
    }
}

/// How many entries to ask for after a read of this many bytes in this many entries, at least one.
fn fit(bytes: usize, entries: usize) -> usize {
    (BYTES / (bytes / entries).max(1)).max(FEW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_streams_together_give_what_there_is_room_for() {
        let mut portions = Portions::default();
        assert_eq!(portions.of(3000, 1), 3000);
        assert_eq!(portions.of(3000, 1000), 3);
        assert_eq!(portions.of(5, 1000), 1);
        portions.brought(1000);
        assert_eq!(portions.of(3000, 1000), 3);
        // Few of many.
        for _ in 0..12 {
            portions.brought(1);
        }
        assert_eq!(portions.of(3000, 10), 3000);
        assert_eq!(portions.of(3000, 1000), 3 * BEYOND);
        // All at once again.
        portions.brought(900);
        assert_eq!(portions.of(3000, 1000), 4);
        portions.brought(0);
        assert_eq!(portions.of(3000, 1000), 7);
        assert_eq!(Portions::default().of(0, 0), 1);
    }

    #[test]
    fn large_entries_are_asked_for_in_smaller_numbers_but_never_one_by_one() {
        assert!(fit(64 * 1000, 1000) > 10_000);
        assert_eq!(fit(3 * 65_536, 3), 64);
        assert_eq!(fit(1 << 20, 1), FEW);
        assert_eq!(fit(0, 5), BYTES);
    }
}
