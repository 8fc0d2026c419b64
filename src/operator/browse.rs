//! Looking through streams and pending entries page by page, in bounded memory and in commands that
//! the server answers at once.

use crate::connect::error::BusError;
use crate::protocol::event::{Entry, EntryId};
use crate::streams::claim;
use crate::streams::claim::Pending;
use crate::streams::read::entries_of;
use redis::Value;
use redis::aio::MultiplexedConnection;

/// About how many bytes of entries one command or pipeline asks for.
const PAGE_BYTES: usize = 128 << 10;
/// The most entries on a page.
const PAGE: usize = 250;
/// Entries on the first page: how large they are is not known yet.
const FIRST: usize = 4;

/// How many entries to ask for next, learned from the sizes of those before.
#[derive(Debug)]
struct Appetite(usize);

impl Appetite {
    fn learn(&mut self, entries: &[Entry]) {
        let bytes: usize = entries.iter().map(bytes).sum();
        let fit = PAGE_BYTES * entries.len() / bytes.max(1);
        // Entries to come may be larger: it grows step by step, and shrinks at once.
        self.0 = fit.clamp(1, (self.0 * 8).min(PAGE));
    }
}

fn bytes(entry: &Entry) -> usize {
    entry.words().map(|word| word.len() + 8).sum()
}

/// The entries of a stream from one id to another, both included, in order.
#[derive(Debug)]
pub struct Pages {
    stream: String,
    from: Option<EntryId>,
    to: EntryId,
    appetite: Appetite,
}

impl Pages {
    /// Begins at `from`.
    pub fn new(stream: impl Into<String>, from: EntryId, to: EntryId) -> Self {
        Self {
            stream: stream.into(),
            from: Some(from),
            to,
            appetite: Appetite(FIRST),
        }
    }

    /// The next page; empty at the end.
    pub async fn next(
        &mut self,
        connection: &mut MultiplexedConnection,
    ) -> Result<Vec<Entry>, BusError> {
        let Some(from) = self.from else {
            return Ok(Vec::new());
        };
        let reply = redis::cmd("XRANGE")
            .arg(&self.stream)
            .arg(from.to_string())
            .arg(self.to.to_string())
            .arg("COUNT")
            .arg(self.appetite.0)
            .query_async(connection)
            .await?;
        let entries = entries_of(reply)?;
        self.from = match entries.last() {
            Some(last) if entries.len() == self.appetite.0 && last.id < self.to => {
                Some(last.id.next())
            }
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
        connection: &mut MultiplexedConnection,
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
pub struct Contents(Appetite);

impl Default for Contents {
    fn default() -> Self {
        Self(Appetite(FIRST))
    }
}

impl Contents {
    /// The entries with the first of those ids, as many as fit a page, in their order; `None` for
    /// one that has been deleted.
    pub async fn read(
        &mut self,
        connection: &mut MultiplexedConnection,
        stream: &str,
        ids: &[EntryId],
    ) -> Result<Vec<Option<Entry>>, BusError> {
        let ids = &ids[..ids.len().min(self.0.0)];
        let mut reads = redis::pipe();
        for id in ids {
            let id = id.to_string();
            reads.cmd("XRANGE").arg(stream).arg(&id).arg(&id);
        }
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let replies: Vec<Value> = reads.query_async(connection).await?;
        let mut found = Vec::with_capacity(replies.len());
        for reply in replies {
            found.push(entries_of(reply)?.into_iter().next());
        }
        let there: Vec<Entry> = found.iter().flatten().cloned().collect();
        if !there.is_empty() {
            self.0.learn(&there);
        }
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
        let mut appetite = Appetite(FIRST);
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
