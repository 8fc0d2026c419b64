//! Scripts that are called by users who may not load any.
//!
//! Whoever may load a script may run any code inside the server, so publishers and those who only look
//! may not: they call what workers and operators loaded. A server forgets its scripts when it restarts, a
//! replica that is promoted never had them, and `SCRIPT FLUSH` takes them. So whoever loads does it when
//! it connects to a server in a history that it has not seen yet, and a worker looks again at each pulse.

use crate::connect::epoch::Epoch;
use redis::aio::ConnectionLike;
use redis::{RedisError, Script};
use std::sync::atomic::{AtomicU64, Ordering};

/// What to tell a user whose server lacks a script that it may not load.
pub(crate) const ADVICE: &str = "the server lacks a script since it was started, and this user may not load any: \
     start a worker, or run `convoke health` as an operator; both load it for everyone";

/// No history was seen yet.
const NEVER: u64 = u64::MAX;

/// Scripts that a process loads for everyone.
pub(crate) struct Loads {
    scripts: Vec<&'static Script>,
    /// The history of the server in which they were loaded last.
    epoch: AtomicU64,
}

impl Loads {
    pub(crate) fn new(scripts: Vec<&'static Script>) -> Self {
        Self {
            scripts,
            epoch: NEVER.into(),
        }
    }

    /// The same scripts, for another server.
    pub(crate) fn elsewhere(&self) -> Self {
        Self::new(self.scripts.clone())
    }

    /// Whether they were not loaded in that history of the server.
    pub(crate) fn are_due(&self, epoch: Epoch) -> bool {
        self.epoch.load(Ordering::Acquire) != epoch.0
    }

    /// Loads those that the server lacks. A user who may not load them leaves it to others.
    pub(crate) async fn load(
        &self,
        connection: &mut impl ConnectionLike,
        epoch: Epoch,
    ) -> Result<(), RedisError> {
        let loaded = self.load_missing(connection).await;
        match loaded {
            Err(error) if error.code().is_none() => return Err(error),
            Err(error) => tracing::debug!(%error, "scripts are left to others to load"),
            Ok(()) => {}
        }
        self.epoch.store(epoch.0, Ordering::Release);
        Ok(())
    }

    async fn load_missing(&self, connection: &mut impl ConnectionLike) -> Result<(), RedisError> {
        let there = match known(connection, &self.scripts).await {
            // Who may not ask may load all the same.
            Err(error) if error.code().is_some() => Vec::new(),
            known => known?,
        };
        for (at, script) in self.scripts.iter().enumerate() {
            if there.get(at) != Some(&true) {
                script.load_async(connection).await?;
            }
        }
        Ok(())
    }
}

/// Which of the scripts the server has.
pub(crate) async fn known(
    connection: &mut impl ConnectionLike,
    scripts: &[&Script],
) -> Result<Vec<bool>, RedisError> {
    let mut ask = redis::cmd("SCRIPT");
    ask.arg("EXISTS");
    for script in scripts {
        ask.arg(script.get_hash());
    }
    ask.query_async(connection).await
}

/// Whether that is the answer to someone who may not load a script.
pub(crate) fn may_not_load(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
        && error
            .detail()
            .is_some_and(|detail| detail.contains("script"))
}
