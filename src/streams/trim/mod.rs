//! Keeps streams at about their history, never at the cost of an entry that a group still needs.
//!
//! Redis can trim by length, which would lose entries that a slow group has not acknowledged, or
//! by id. A busy stream is trimmed by id: the [`Trimmer`] remembers how many entries the group that reads
//! most had been given when it last looked and which one was the last then, so it knows an id that is at
//! least `history` entries old without reading the stream.

use crate::connect::error::BusError;
use crate::connect::script::script_with;
use crate::protocol::event::EntryId;
use redis::Script;
use redis::aio::ConnectionLike;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::LazyLock;

/// What compares entry ids.
pub(crate) const IDS: &str = include_str!("entry_ids.lua");

static TRIM: LazyLock<Script> = LazyLock::new(|| script_with(&[IDS], include_str!("trim.lua")));
static REMOVE: LazyLock<Script> = LazyLock::new(|| script_with(&[IDS], include_str!("remove.lua")));

/// Entries that one call removes from one stream at most.
pub const LIMIT: u64 = 1000;
/// A stream's samples are at least this fraction of its history apart.
const SAMPLES: u64 = 16;

/// What one call did to one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Entries that were removed. With about [`LIMIT`] there may be more to remove.
    pub removed: u64,
    /// Entries that the group which has read most was given, if that is known.
    pub read: u64,
    /// The last one of them; zero if that is not known.
    pub last: EntryId,
}

/// Trims streams, again and again; remembers a little about each.
#[derive(Debug, Default)]
pub struct Trimmer {
    samples: HashMap<String, Samples>,
}

impl Trimmer {
    /// Trims each stream to about this many entries; a stream that does not exist is passed over.
    ///
    /// The results stand in the order of the streams. A stream that cannot be trimmed does not
    /// keep the others from it. A busy stream is trimmed from the second call on.
    pub async fn run_once(
        &mut self,
        connection: &mut impl ConnectionLike,
        streams: &[(String, u64)],
    ) -> Vec<Result<Trimmed, BusError>> {
        self.forget_others(streams);
        self.go_on(connection, streams).await
    }

    /// Forgets what it remembers of other streams than these.
    pub(crate) fn forget_others(&mut self, streams: &[(String, u64)]) {
        let names: HashSet<&str> = streams.iter().map(|(name, _)| name.as_str()).collect();
        self.samples.retain(|stream, _| names.contains(&**stream));
    }

    /// As [`run_once`](Self::run_once), for some of the streams: it ends at the first one for which there is no answer, since
    /// the next ones would wait on the same connection.
    pub(crate) async fn go_on(
        &mut self,
        connection: &mut impl ConnectionLike,
        streams: &[(String, u64)],
    ) -> Vec<Result<Trimmed, BusError>> {
        let mut results = Vec::with_capacity(streams.len());
        for (stream, history) in streams {
            let samples = self.samples.entry(stream.clone()).or_default();
            let trimmed = trim(connection, stream, *history, samples.candidate).await;
            if let Ok(trimmed) = &trimmed
                && trimmed.last > EntryId::default()
            {
                samples.note(trimmed.read, trimmed.last, *history);
            }
            let silent = matches!(&trimmed, Err(BusError::Redis(error)) if error.code().is_none());
            results.push(trimmed);
            if silent {
                break;
            }
        }
        results
    }
}

/// Trims one stream once: to `history` entries where no group needs any, else below `candidate`.
pub async fn trim(
    connection: &mut impl ConnectionLike,
    stream: &str,
    history: u64,
    candidate: Option<EntryId>,
) -> Result<Trimmed, BusError> {
    let reply: Option<(u64, u64, String)> = TRIM
        .key(stream)
        .arg(history)
        .arg(candidate.map_or(String::new(), |id| id.to_string()))
        .arg(LIMIT)
        .invoke_async(connection)
        .await?;
    let Some((removed, read, last)) = reply else {
        return Ok(Trimmed::default());
    };
    let last = last
        .parse()
        .map_err(|_| BusError::Reply { what: "XINFO" })?;
    Ok(Trimmed {
        removed,
        read,
        last,
    })
}

/// Deletes one entry that is too large to be kept as history, if no group needs it any more.
pub async fn remove(
    connection: &mut impl ConnectionLike,
    stream: &str,
    entry: EntryId,
) -> Result<bool, BusError> {
    let mut call = REMOVE.prepare_invoke();
    call.key(stream).arg(entry.to_string());
    Ok(call.invoke_async(connection).await?)
}

/// What a stream's counters were earlier, oldest first.
#[derive(Debug, Default)]
struct Samples {
    taken: VecDeque<(u64, EntryId)>,
    /// Entries below it are history already.
    candidate: Option<EntryId>,
}

impl Samples {
    fn note(&mut self, read: u64, last: EntryId, history: u64) {
        if let Some(&(before, id)) = self.taken.back()
            && (read < before || last < id)
        {
            // Another stream under the same name.
            *self = Self::default();
        }
        let apart = (history / SAMPLES).max(1);
        if self
            .taken
            .back()
            .is_none_or(|&(before, _)| read - before >= apart)
        {
            self.taken.push_back((read, last));
        }
        while let Some(&(before, id)) = self.taken.front()
            && before + history <= read
        {
            self.candidate = Some(id);
            self.taken.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(ms: u64) -> EntryId {
        EntryId { ms, seq: 0 }
    }

    #[test]
    fn the_candidate_is_a_history_old() {
        let mut samples = Samples::default();
        samples.note(100, id(1), 1000);
        samples.note(900, id(2), 1000);
        assert_eq!(samples.candidate, None);
        samples.note(1100, id(3), 1000);
        assert_eq!(samples.candidate, Some(id(1)));
        samples.note(2100, id(4), 1000);
        assert_eq!(samples.candidate, Some(id(3)));
    }

    #[test]
    fn samples_are_few() {
        let mut samples = Samples::default();
        for added in 0..100_000 {
            samples.note(added, id(added), 10_000);
            assert!(samples.taken.len() <= SAMPLES as usize + 1);
        }
        let candidate = samples.candidate.unwrap().ms;
        assert!((89_000..90_000).contains(&candidate), "{candidate}");
    }

    #[test]
    fn a_stream_made_anew_starts_anew() {
        let mut samples = Samples::default();
        samples.note(5000, id(5), 1000);
        samples.note(6000, id(6), 1000);
        assert!(samples.candidate.is_some());
        samples.note(10, id(7), 1000);
        assert_eq!(samples.candidate, None);
    }
}
