//! One connection that many share and that is replaced when it is broken.

use super::connect::Connector;
use super::error::{BusError, Reaction};
use super::gate::Gate;
use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Value};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Unanswered commands in a row after which a connection counts as dead. A half-open link answers
/// nothing and reports nothing; a slow server answers the next one.
const TIMEOUTS: u32 = 2;

/// Lends one connection to all who ask; makes a new one, at most one at a time, where the last broke.
pub(super) struct Link {
    connector: Connector,
    block: Duration,
    current: Mutex<Option<Lent>>,
    timeouts: AtomicU32,
    made: AtomicU64,
    gate: Gate,
}

/// The shared connection, as lent out.
#[derive(Clone)]
pub(super) struct Lent {
    pub connection: MultiplexedConnection,
    generation: u64,
}

impl Link {
    /// A link whose commands block for up to `block` (zero: not at all). Connects nothing yet.
    pub fn new(connector: Connector, block: Duration) -> Self {
        Self {
            connector,
            block,
            current: Mutex::default(),
            timeouts: AtomicU32::new(0),
            made: AtomicU64::new(0),
            gate: Gate::default(),
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Lent>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection; a new one if there is none. After a failure it waits before the next try,
    /// and all who waited for the same try share its failure.
    ///
    /// Cancel safe.
    pub async fn get(&self) -> Result<Lent, String> {
        let find = || self.current().clone();
        self.gate.pass(find, self.make()).await
    }

    async fn make(&self) -> Result<Lent, BusError> {
        let connection = if self.block.is_zero() {
            self.connector.dedicated().await?
        } else {
            self.connector.blocking(self.block).await?
        };
        self.timeouts.store(0, Ordering::Relaxed);
        let generation = self.made.fetch_add(1, Ordering::Relaxed);
        let lent = Lent {
            connection,
            generation,
        };
        *self.current() = Some(lent.clone());
        Ok(lent)
    }

    /// Learns from the outcome of a command whether the connection is of use still.
    pub fn note(&self, lent: &Lent, outcome: &RedisResult<Value>) {
        let error = match outcome {
            Ok(Value::ServerError(error)) => error.clone().into(),
            Ok(_) => return self.timeouts.store(0, Ordering::Relaxed),
            Err(error) => error.clone(),
        };
        let broken = if error.is_timeout() {
            self.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= TIMEOUTS
        } else {
            BusError::from(error).reaction() == Reaction::Reconnect
        };
        let mut current = self.current();
        if broken
            && current
                .as_ref()
                .is_some_and(|now| now.generation == lent.generation)
        {
            *current = None;
            self.timeouts.store(0, Ordering::Relaxed);
        }
    }
}
