//! What is parked beside the streams since it is paused, as people see it.

use crate::connect::error::{BusError, allowed};
use crate::protocol::event::{Entry, EntryId};
use crate::protocol::keys::{Keys, StreamKeys, StreamKind, StreamName};
use crate::streams::delay;
use crate::streams::park::{self, HEAD};
use redis::aio::ConnectionLike;

/// Events on a page. Each may be as large as any is.
const PAGE: usize = 16;
/// The first member that is an event, and the first that is behind all of them.
const FIRST: &[u8] = b"[s";
const END: &[u8] = b"(u";
/// Where a member has the place that its event had first.
const PLACE: usize = 41;

/// What is parked of one type beside a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParkedKind {
    /// The event type.
    pub kind: String,
    /// How many events.
    pub count: u64,
    /// When the first of them was published (Unix ms), as far as the order tells: not where single subjects are paused.
    pub first_ms: Option<u64>,
}

/// Where events of a stream are parked; `None` if they are nowhere.
pub fn beside(keys: &Keys, stream: &StreamName) -> Option<StreamKeys> {
    (stream.kind == StreamKind::Events).then(|| keys.route(&stream.part, stream.partition))
}

/// What is parked beside a stream, by type; nothing where the user may not look.
///
/// # Errors
/// `Bus`.
pub async fn kinds(
    connection: &mut impl ConnectionLike,
    route: &StreamKeys,
) -> Result<Vec<ParkedKind>, BusError> {
    let mut kinds = Vec::new();
    let found = park::kinds(connection, &[route]).await?;
    for kind in found.into_iter().flatten() {
        let count = park::count(connection, route, Some(&kind), None).await;
        let Some(count) = allowed(count)?.filter(|count| *count > 0) else {
            continue;
        };
        let first = members(connection, &route.parked_of(&kind), b"[t", 1).await?;
        let first_ms = first.first().and_then(|member| Some(place(member)?.ms));
        kinds.push(ParkedKind {
            kind,
            count,
            first_ms,
        });
    }
    kinds.sort_by(|a, b| a.kind.cmp(&b.kind));
    Ok(kinds)
}

/// An event that is parked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ParkedEvent {
    /// The entry as which it was parked first.
    pub place: EntryId,
    /// What tells it from others: the entry that it was last.
    pub token: String,
    /// The event, without an id of an entry.
    pub event: Entry,
}

/// The events of one type that are parked beside a stream, in bounded memory.
#[derive(Debug)]
pub struct ParkedPages {
    key: String,
    limit: usize,
    from: Vec<u8>,
}

impl ParkedPages {
    /// Of that type; an event over `limit` bytes is passed over.
    pub fn of(route: &StreamKeys, kind: &str, limit: usize) -> Self {
        Self {
            key: route.parked_of(kind),
            limit,
            from: FIRST.to_vec(),
        }
    }

    /// The next page; `None` at the end.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn next(
        &mut self,
        connection: &mut impl ConnectionLike,
    ) -> Result<Option<Vec<ParkedEvent>>, BusError> {
        let page = members(connection, &self.key, &self.from, PAGE).await?;
        let Some(last) = page.last() else {
            return Ok(None);
        };
        let head = &last[..last.len().min(HEAD)];
        self.from = [b"(", head, b"\xff"].concat();
        let limit = self.limit;
        let events = page.iter().filter_map(|member| parked(member, limit));
        Ok(Some(events.collect()))
    }
}

async fn members(
    connection: &mut impl ConnectionLike,
    key: &str,
    from: &[u8],
    count: usize,
) -> Result<Vec<Vec<u8>>, BusError> {
    let mut read = redis::cmd("ZRANGEBYLEX");
    read.arg(key)
        .arg(from)
        .arg(END)
        .arg("LIMIT")
        .arg(0)
        .arg(count);
    let members = read.query_async(connection).await;
    Ok(allowed(members.map_err(BusError::from))?.unwrap_or_default())
}

fn parked(member: &[u8], limit: usize) -> Option<ParkedEvent> {
    let place = place(member)?;
    let (token, fields) = delay::decode_member(member.get(HEAD..)?, limit)?;
    Some(ParkedEvent {
        place,
        token,
        event: Entry::new(EntryId::default(), fields),
    })
}

fn place(member: &[u8]) -> Option<EntryId> {
    let at = match member.first()? {
        b't' => 1,
        _ => HEAD - PLACE,
    };
    let place = str::from_utf8(member.get(at..at + PLACE)?).ok()?;
    let (ms, seq) = place.split_once('-')?;
    Some(EntryId {
        ms: ms.parse().ok()?,
        seq: seq.parse().ok()?,
    })
}
