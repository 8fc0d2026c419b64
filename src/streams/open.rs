//! Whether entries still wait for somebody, or are with somebody.

use crate::connect::error::BusError;
use crate::protocol::event::EntryId;
use crate::streams::read::entries_of;
use redis::aio::ConnectionLike;
use redis::{FromRedisValue, Value};
use std::collections::HashMap;

/// For each entry of a stream whether it is there, has that event id, and is not read yet by the group or is
/// pending with it. One that is not has ended, or waits elsewhere for its next try.
///
/// O(groups + entries * log n)
pub async fn are_open(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
    entries: &[(EntryId, String)],
) -> Result<Vec<bool>, BusError> {
    let groups = redis::cmd("XINFO")
        .arg("GROUPS")
        .arg(stream)
        .query_async::<Vec<HashMap<String, Value>>>(connection)
        .await;
    let groups = match groups {
        Ok(groups) => groups,
        // The stream is gone, and its entries with it.
        Err(error) if error.to_string().contains("no such key") => {
            return Ok(vec![false; entries.len()]);
        }
        Err(error) => return Err(error.into()),
    };
    let text = |row: &HashMap<String, Value>, name: &str| {
        String::from_redis_value_ref(row.get(name)?).ok()
    };
    let ours = groups
        .iter()
        .find(|row| text(row, "name").as_deref() == Some(group));
    let read: EntryId = ours
        .and_then(|row| text(row, "last-delivered-id")?.parse().ok())
        .unwrap_or_default();
    let mut reads = redis::pipe();
    for (entry, _) in entries {
        let id = entry.to_string();
        reads.cmd("XREVRANGE").arg(stream).arg(&id).arg(&id);
        if ours.is_some() {
            reads
                .cmd("XPENDING")
                .arg(stream)
                .arg(group)
                .arg(&id)
                .arg(&id)
                .arg(1);
        } else {
            reads.cmd("EXISTS").arg(stream);
        }
    }
    let answers: Vec<Value> = reads.query_async(connection).await?;
    let pairs = entries.iter().zip(answers.chunks_exact(2));
    pairs
        .map(|((entry, event), answers)| {
            let found = entries_of(answers[0].clone())?;
            let there = found
                .first()
                .is_some_and(|it| it.get("id") == Some(event.as_bytes()));
            let pending = matches!(&answers[1], Value::Array(rows) if !rows.is_empty());
            Ok(there && (pending || *entry > read))
        })
        .collect()
}
