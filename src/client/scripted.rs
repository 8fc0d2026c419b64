//! The script that publishes later, or once only: whether the server knows it, and who loads it.

use super::publish::{PublishError, Published};
use super::ways::Way;
use crate::client::publish::PUBLISH;
use crate::connect::backoff::Backoff;
use crate::connect::epoch::Epoch;
use crate::connect::link::{Link, SharedConnection};
use crate::connect::loaded::{self, may_not_load};
use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Value};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// The server's code where it lacks a script.
const NO_SCRIPT: &str = "NOSCRIPT";

/// What is known of the script that publishes later, or once only.
pub(super) struct ScriptState {
    /// The history of the server in which it was there, if it was seen.
    pub(super) seen_in: AtomicU64,
    /// Whether it was refused to load it, so that others must.
    barred: AtomicBool,
}

/// The script was seen in no history.
pub(super) const NOWHERE: u64 = u64::MAX;

impl Default for ScriptState {
    fn default() -> Self {
        Self {
            seen_in: NOWHERE.into(),
            barred: false.into(),
        }
    }
}

impl Way {
    fn epoch(&self) -> Epoch {
        self.link.connector().epoch()
    }

    pub(super) fn saw_script(&self) {
        let epoch = self.epoch();
        self.script.seen_in.store(epoch.0, Ordering::Relaxed);
    }

    /// Has the server know the script that publishes later, or once only; false: it does not, and this
    /// user may not load it.
    pub(super) async fn has_script(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<bool> {
        match loaded::known(connection, &[&PUBLISH]).await {
            Ok(known) if known.first() == Some(&true) => return Ok(true),
            Err(error) if error.code().is_none() => return Err(error),
            _ => {}
        }
        if self.script.barred.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match PUBLISH.load_async(connection).await {
            Ok(_) => Ok(true),
            Err(error) if may_not_load(&error) => {
                self.script.barred.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The same for what is sent in a pipeline, in which nobody loads a script; asks only once in each
    /// history of the server.
    pub(super) async fn has_script_for(
        &self,
        link: &Link,
        lent: &mut SharedConnection,
    ) -> RedisResult<bool> {
        if self.script.seen_in.load(Ordering::Relaxed) == self.epoch().0 {
            return Ok(true);
        }
        let sending = link.sending(lent);
        let there = self.has_script(&mut lent.connection).await;
        sending.done(&there.clone().map(Value::Boolean));
        if matches!(there, Ok(true)) {
            self.saw_script();
        }
        there
    }

    /// The same before many are published; it waits for others to load it.
    pub(super) async fn awaits_script(&self, patience: Duration) -> bool {
        let give_up = Instant::now() + patience;
        let mut backoff = Backoff::default();
        loop {
            let Ok(mut lent) = self.link.get().await else {
                // Publishing finds out why.
                return true;
            };
            let there = self.has_script_for(&self.link, &mut lent).await;
            if !matches!(there, Ok(false)) {
                return true;
            }
            let pause = backoff.failed();
            if Instant::now() + pause > give_up {
                return false;
            }
            tokio::time::sleep(pause).await;
        }
    }
}

pub(super) fn is_no_script(reply: &RedisResult<Value>) -> bool {
    matches!(reply, Ok(Value::ServerError(error)) if error.code() == NO_SCRIPT)
}

/// Whether an event was not stored since the script is missing, which this user may not load: others may load it soon.
pub(super) fn lacks_script(outcome: &Result<Published, PublishError>) -> bool {
    matches!(outcome, Err(PublishError::Rejected { code: Some(code), .. }) if code == NO_SCRIPT)
}
