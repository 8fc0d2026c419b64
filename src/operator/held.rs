//! Subjects that are held up: in a partition that one worker owns, an event that failed waits in its place for its next
//! try, and all of its subject behind it. The stream is trimmed no further than up to it.

use crate::connect::error::BusError;
use crate::operator::browse::{Contents, Sight};
use crate::protocol::entry::{Entry, EntryId};
use crate::protocol::keys::Keys;
use crate::streams::hold::{HELD, Held};
use redis::aio::ConnectionLike;

/// Notes of a partition that are looked through at the most.
pub const LOOKED_AT: u64 = 10_000;

/// An event that waits in its place.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HeldEvent {
    /// Its entry: since then it is there.
    pub entry: EntryId,
    /// What is noted of it.
    pub note: Held,
    /// The event; `None` if it was deleted from its stream.
    pub event: Option<Entry>,
}

/// What is held up in one partition.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct HeldUp {
    /// The events that failed, the oldest first.
    pub events: Vec<HeldEvent>,
    /// Whether there are more, or more than are looked at.
    pub more: bool,
}

/// Looks at the oldest events that wait in their place in a partition, at most `most` of them. Those that only wait
/// behind others are left out. Where more than [`LOOKED_AT`] are noted, none is looked at.
///
/// # Errors
/// `Bus`; a key of another type counts as one that is not there.
pub async fn held_up(
    connection: &mut impl ConnectionLike,
    sight: &Sight,
    keys: &Keys,
    (domain, partition): (&str, u16),
    group: &str,
    most: usize,
) -> Result<HeldUp, BusError> {
    let (hash, stream) = (
        keys.held(domain, partition, group),
        keys.events(domain, partition),
    );
    let mut ask = redis::cmd("HLEN");
    let count: u64 = match ask.arg(&hash).query_async(connection).await {
        Err(error) if error.code() == Some("WRONGTYPE") => return Ok(HeldUp::default()),
        count => count?,
    };
    if count > LOOKED_AT {
        let more = true;
        return Ok(HeldUp {
            more,
            ..HeldUp::default()
        });
    }
    let mut ask = redis::cmd("HKEYS");
    let names: Vec<Vec<u8>> = ask.arg(&hash).query_async(connection).await?;
    let mut ids: Vec<EntryId> = names.iter().filter_map(|id| EntryId::parse(id)).collect();
    ids.sort_unstable();
    let mut noted: Vec<(EntryId, Held)> = Vec::new();
    for some in ids.chunks(HELD) {
        let mut read = redis::cmd("HMGET");
        read.arg(&hash);
        for id in some {
            read.arg(id.to_string());
        }
        let notes: Vec<Option<Vec<u8>>> = read.query_async(connection).await?;
        let notes = some.iter().zip(notes);
        let notes = notes.filter_map(|(id, note)| Some((*id, Held::decode(&note?)?)));
        noted.extend(notes.filter(|(_, note)| !note.code.is_empty()));
        if noted.len() > most {
            break;
        }
    }
    let more = noted.len() > most;
    noted.truncate(most);
    let ids: Vec<EntryId> = noted.iter().map(|(id, _)| *id).collect();
    let mut contents = Contents::new(sight);
    let mut events = Vec::with_capacity(ids.len());
    while events.len() < ids.len() {
        events.extend(contents.read(&stream, &ids[events.len()..]).await?);
    }
    let events = noted.into_iter().zip(events);
    let events = events.map(|((entry, note), event)| HeldEvent { entry, note, event });
    Ok(HeldUp {
        events: events.collect(),
        more,
    })
}
