//! Looking through streams and pending entries page by page, in bounded memory and in commands that
//! the server answers at once.

pub use crate::streams::claim::Pending;

use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::connect::resp::wire::Wire;
use crate::protocol::event::{Entry, EntryId};
use crate::streams::claim;
use crate::streams::read;
use redis::aio::ConnectionLike;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{Mutex, MutexGuard};

/// About how many bytes of entries one command or pipeline asks for.
const PAGE_BYTES: usize = 128 << 10;
/// The most entries on a page.
const PAGE: usize = 250;
/// Entries on the first page: how large they are is not known yet.
const FIRST: usize = 4;

/// How many entries to ask for next, learned from the sizes of those before: the server makes ready what it
/// answers, however large.
#[derive(Clone, Copy, Debug)]
pub struct Appetite(usize);

impl Default for Appetite {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Appetite {
    /// How many there are.
    pub fn count(self) -> usize {
        self.0
    }

    /// Takes those into account.
    pub fn learn<'a>(&mut self, entries: impl IntoIterator<Item = &'a Entry>) {
        let (mut count, mut bytes) = (0_u64, 0);
        for entry in entries {
            count += 1;
            bytes += entry.bytes() + 8 * entry.words().count() as u64;
        }
        if count > 0 {
            let fit = (PAGE_BYTES as u64 * count / bytes.max(1)) as usize;
            // Entries to come may be larger: it grows step by step, and shrinks at once.
            self.0 = fit.clamp(1, (self.0 * 8).min(PAGE));
        }
    }
}

/// Looks at entries: of one that is larger than any event only a part is held. Clones share a connection, on a cluster
/// one for each node.
#[derive(Clone, Debug)]
pub struct Sight {
    connector: Connector,
    limit: usize,
    /// By the node that they lead to.
    wires: Arc<Mutex<Wires>>,
}

type Wires = HashMap<u64, Wire>;

impl Sight {
    /// Of an entry over `limit` bytes a part is held.
    pub fn new(connector: Connector, limit: usize) -> Self {
        Self {
            connector,
            limit,
            wires: Arc::default(),
        }
    }

    /// Bytes of an entry that are held.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The connection to the stream's node, which is not kept if its use does not end, and where it is kept.
    async fn lend(&self, stream: &str) -> Result<(MutexGuard<'_, Wires>, u64, Wire), BusError> {
        let connector = self.connector.toward(stream);
        let mut wires = self.wires.lock().await;
        let wire = match wires.remove(&connector.generation()) {
            Some(wire) => wire,
            None => connector.wire().await?,
        };
        Ok((wires, connector.generation(), wire))
    }

    async fn range(
        &self,
        command: &[u8],
        stream: &str,
        ends: (&str, &str),
        count: usize,
    ) -> Result<Vec<Entry>, BusError> {
        let (mut wires, node, mut wire) = self.lend(stream).await?;
        let read = read::read_range(&mut wire, command, stream, ends, count, self.limit);
        let entries = read.await?;
        wires.insert(node, wire);
        Ok(entries)
    }

    async fn each(&self, stream: &str, ids: &[EntryId]) -> Result<Vec<Option<Entry>>, BusError> {
        let (mut wires, node, mut wire) = self.lend(stream).await?;
        let entries = read::read_each(&mut wire, stream, ids, self.limit).await?;
        wires.insert(node, wire);
        Ok(entries)
    }

    /// The entries that came last, at most `count` of them, the last one first.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn latest(&self, stream: &str, count: usize) -> Result<Vec<Entry>, BusError> {
        self.range(b"XREVRANGE", stream, ("+", "-"), count).await
    }

    /// The id of a stream's last entry; 0-0 if it has none or does not exist.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn last_id(&self, stream: &str) -> Result<EntryId, BusError> {
        let last = self.latest(stream, 1).await?;
        Ok(last.first().map_or_else(EntryId::default, |entry| entry.id))
    }
}

/// The entries of a stream from one id to another, both included, in order.
#[derive(Debug)]
pub struct Pages {
    sight: Sight,
    stream: String,
    from: Option<EntryId>,
    to: EntryId,
    appetite: Appetite,
}

impl Pages {
    /// Begins at `from`.
    pub fn new(sight: &Sight, stream: impl Into<String>, from: EntryId, to: EntryId) -> Self {
        Self {
            sight: sight.clone(),
            stream: stream.into(),
            from: Some(from),
            to,
            appetite: Appetite::default(),
        }
    }

    /// The next page; empty at the end.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn next(&mut self) -> Result<Vec<Entry>, BusError> {
        let Some(from) = self.from else {
            return Ok(Vec::new());
        };
        let (from, to) = (from.to_string(), self.to.to_string());
        let ends = (from.as_str(), to.as_str());
        let count = self.appetite.count();
        let entries = self.sight.range(b"XRANGE", &self.stream, ends, count);
        let entries = entries.await?;
        self.from = match entries.last() {
            Some(last) if entries.len() == count && last.id < self.to => Some(last.id.next()),
            _ => None,
        };
        self.appetite.learn(&entries);
        Ok(entries)
    }
}

/// What is pending in a group, in the order of the ids.
#[derive(Debug)]
pub struct PendingPages {
    stream: String,
    group: String,
    consumer: Option<String>,
    from: Option<EntryId>,
    to: EntryId,
}

impl PendingPages {
    /// Entries between two ids, both included; of one consumer or of all.
    pub fn new(
        stream: impl Into<String>,
        group: impl Into<String>,
        consumer: Option<&str>,
        from: EntryId,
        to: EntryId,
    ) -> Self {
        Self {
            stream: stream.into(),
            group: group.into(),
            consumer: consumer.map(str::to_owned),
            from: Some(from),
            to,
        }
    }

    /// The next page; `None` at the end. A missing stream or group has nothing pending.
    pub async fn next(
        &mut self,
        connection: &mut impl ConnectionLike,
    ) -> Result<Option<Vec<Pending>>, BusError> {
        let Some(from) = self.from else {
            return Ok(None);
        };
        let consumer = self.consumer.as_deref();
        // Without IDLE: the server would walk the whole list to find the few that are idle.
        let page =
            claim::pending(connection, &self.stream, &self.group, from, PAGE, consumer).await;
        let mut page = match page {
            Err(error) if error.code() == Some("NOGROUP") => return Ok(None),
            page => page?,
        };
        self.from = match page.last() {
            Some(last) if page.len() == PAGE && last.id < self.to => Some(last.id.next()),
            _ => None,
        };
        page.retain(|pending| pending.id <= self.to);
        Ok((!page.is_empty()).then_some(page))
    }
}

/// Reads single entries, a few at a time.
#[derive(Debug)]
pub struct Contents {
    sight: Sight,
    appetite: Appetite,
}

impl Contents {
    /// With that sight.
    pub fn new(sight: &Sight) -> Self {
        Self {
            sight: sight.clone(),
            appetite: Appetite::default(),
        }
    }

    /// The entries with the first of those ids, as many as fit a page, in their order; `None` for
    /// one that has been deleted.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn read(
        &mut self,
        stream: &str,
        ids: &[EntryId],
    ) -> Result<Vec<Option<Entry>>, BusError> {
        let ids = &ids[..ids.len().min(self.appetite.count())];
        let found = self.sight.each(stream, ids).await?;
        self.appetite.learn(found.iter().flatten());
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(count: usize, bytes: usize) -> Vec<Entry> {
        let entry = Entry::new(EntryId::default(), [b"data".to_vec(), vec![0; bytes]]);
        vec![entry; count]
    }

    #[test]
    fn pages_of_small_entries_grow_and_large_ones_shrink_them_at_once() {
        let mut appetite = Appetite::default();
        appetite.learn(&entries(4, 100));
        assert_eq!(appetite.0, 32);
        appetite.learn(&entries(32, 100));
        appetite.learn(&entries(256, 100));
        assert_eq!(appetite.0, PAGE);
        appetite.learn(&entries(2, 1 << 20));
        assert_eq!(appetite.0, 1);
        appetite.learn(&entries(1, 10));
        assert_eq!(appetite.0, 8);
    }
}
