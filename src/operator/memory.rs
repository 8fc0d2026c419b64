//! Which keys use the server's memory.

use crate::connect::error::{BusError, allowed};
use crate::protocol::keys::Keys;
use redis::Value;
use redis::aio::ConnectionLike;

/// Keys that one step of a scan looks at, about.
const STEP: usize = 500;
/// Parts of a key that the server looks at to tell its size.
const SAMPLES: usize = 5;
/// Keys that are looked at at the most.
const LOOKED_AT: usize = 50_000;

/// The bytes that each of these keys takes, estimated; `None` for one that the user may not ask about, or that
/// is not there.
///
/// # Errors
/// If the server cannot be asked.
pub async fn of_keys(
    connection: &mut impl ConnectionLike,
    keys: &[&str],
) -> Result<Vec<Option<u64>>, BusError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut reads = redis::pipe();
    for key in keys {
        reads.cmd("MEMORY").arg("USAGE").arg(*key);
        reads.arg("SAMPLES").arg(SAMPLES);
    }
    // Who may not ask is answered so for each.
    reads.ignore_errors();
    let answers: Vec<Value> = reads.query_async(connection).await?;
    let bytes = |answer| match answer {
        Value::Int(bytes) => u64::try_from(bytes).ok(),
        _ => None,
    };
    Ok(answers.into_iter().map(bytes).collect())
}

/// The largest keys of the namespace on that server with their bytes, the largest first; none if the user may not ask.
/// Walks the server's keys in small steps, and looks at 50,000 of them at the most.
///
/// # Errors
/// If the server cannot be asked.
pub async fn largest(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    count: usize,
) -> Result<Vec<(String, u64)>, BusError> {
    let mut largest: Vec<(String, u64)> = Vec::new();
    let mut seen = 0;
    for pattern in keys.patterns() {
        let mut cursor = "0".to_owned();
        loop {
            let page = redis::cmd("SCAN")
                .arg(&cursor)
                .arg("MATCH")
                .arg(&pattern)
                .arg("COUNT")
                .arg(STEP)
                .query_async(connection)
                .await;
            let page: Option<(String, Vec<String>)> = allowed(page.map_err(BusError::from))?;
            let Some((next, page)) = page else {
                return Ok(largest);
            };
            seen += page.len();
            let names: Vec<&str> = page.iter().map(String::as_str).collect();
            let bytes = of_keys(connection, &names).await?;
            let sized = page.into_iter().zip(bytes);
            largest.extend(sized.filter_map(|(key, bytes)| Some((key, bytes?))));
            largest.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
            largest.dedup();
            largest.truncate(count);
            cursor = next;
            if cursor == "0" || seen >= LOOKED_AT {
                break;
            }
        }
    }
    Ok(largest)
}
