//! How long a key lives.

use super::error::BusError;
use redis::aio::ConnectionLike;
use std::time::Duration;

/// Keeps a key for good; nothing happens if it does not exist.
pub async fn keep(connection: &mut impl ConnectionLike, key: &str) -> Result<(), BusError> {
    Ok(redis::cmd("PERSIST")
        .arg(key)
        .exec_async(connection)
        .await?)
}

/// Has a key go away after `ttl`; nothing happens if it does not exist.
pub async fn expire(
    connection: &mut impl ConnectionLike,
    key: &str,
    ttl: Duration,
) -> Result<(), BusError> {
    let mut command = redis::cmd("PEXPIRE");
    command.arg(key).arg(ttl.as_millis() as u64);
    Ok(command.exec_async(connection).await?)
}
