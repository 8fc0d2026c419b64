//! Groups that were gone under their workers and were made again: what a worker notes of it, so that
//! somebody finds out why events run again.

use crate::connect::clock::whole_ms;
use crate::connect::error::BusError;
use crate::protocol::keys::Keys;
use redis::aio::ConnectionLike;
use std::collections::HashMap;
use std::time::Duration;

/// How long after the last one they are remembered.
pub const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// A group that was gone and was made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remade {
    /// The group.
    pub group: String,
    /// The stream's key.
    pub stream: String,
    /// When, in Unix ms: what was stored before runs again.
    pub at: u64,
    /// How many entries that were.
    pub entries: u64,
}

/// Notes that a group is made again, where its stream holds anything.
///
/// # Errors
/// `Bus`.
pub async fn note(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    group: &str,
    stream: &str,
    at: u64,
) -> Result<(), BusError> {
    let entries: u64 = redis::cmd("XLEN")
        .arg(stream)
        .query_async(connection)
        .await?;
    if entries == 0 {
        return Ok(());
    }
    let mut writes = redis::pipe();
    let set = writes.cmd("HSET").arg(keys.remade());
    set.arg(format!("{group} {stream}"))
        .arg(format!("{at} {entries}"));
    let expire = writes.cmd("PEXPIRE").arg(keys.remade());
    expire.arg(whole_ms(KEPT));
    Ok(writes.exec_async(connection).await?)
}

/// The groups of that name that were made again lately, the last one first.
///
/// # Errors
/// `Bus`.
pub async fn noted(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    group: &str,
) -> Result<Vec<Remade>, BusError> {
    let notes: HashMap<String, String> = redis::cmd("HGETALL")
        .arg(keys.remade())
        .query_async(connection)
        .await?;
    let read = |(what, note): (String, String)| {
        let (of, stream) = what.split_once(' ')?;
        let (at, entries) = note.split_once(' ')?;
        Some(Remade {
            group: of.to_owned(),
            stream: stream.to_owned(),
            at: at.parse().ok()?,
            entries: entries.parse().ok()?,
        })
    };
    let notes = notes.into_iter().filter_map(read);
    let mut remade: Vec<Remade> = notes.filter(|remade| remade.group == group).collect();
    remade.sort_by(|a, b| b.at.cmp(&a.at).then(a.stream.cmp(&b.stream)));
    Ok(remade)
}
