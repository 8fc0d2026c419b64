//! One connection that many share and that is replaced when it is broken.

use crate::connect::connector::Connector;
use crate::connect::error::{BusError, Reaction};
use crate::connect::gate::Gate;
use crate::mutex::locked;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisResult, Value};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// Unanswered commands in a row after which a connection counts as dead. A half-open link answers
/// nothing and reports nothing; a slow server answers the next one.
const TIMEOUTS: u32 = 2;
/// A command counts as unanswered too if whoever sent it gave up after so long: with time-outs shorter
/// than the connection's own, nobody would ever see that it is dead.
const GIVEN_UP: Duration = Duration::from_millis(500);

/// Lends one connection to all who ask; makes a new one, at most one at a time, where the last broke.
pub(crate) struct Link {
    connector: Connector,
    block: Duration,
    current: Mutex<Option<SharedConnection>>,
    timeouts: AtomicU32,
    made: AtomicU64,
    gate: Gate,
}

/// The shared connection, as lent out.
#[derive(Clone)]
pub(crate) struct SharedConnection {
    pub connection: MultiplexedConnection,
    /// Which of the link's connections it is.
    number: u64,
    /// The primary that it leads to.
    generation: u64,
}

impl Link {
    /// A link whose commands block for up to `block` (zero: not at all). Connects nothing yet.
    pub(crate) fn new(connector: Connector, block: Duration) -> Self {
        Self {
            connector,
            block,
            current: Mutex::default(),
            timeouts: AtomicU32::new(0),
            made: AtomicU64::new(0),
            gate: Gate::default(),
        }
    }

    /// What makes its connections.
    pub(crate) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// The connection, unless the primary has moved since it was made.
    fn usable(&self) -> Option<SharedConnection> {
        let mut current = self.current();
        let stands = |lent: &mut SharedConnection| self.connector.check(lent.generation).is_ok();
        if !current.as_mut().is_some_and(stands) {
            *current = None;
        }
        current.clone()
    }

    fn current(&self) -> MutexGuard<'_, Option<SharedConnection>> {
        locked(&self.current)
    }

    /// The connection; a new one if it has none. After a failure it waits before the next try,
    /// and all who waited for the same try share its failure.
    ///
    /// Cancel safe.
    pub(crate) async fn get(&self) -> Result<SharedConnection, String> {
        let find = || self.usable();
        self.gate.pass(find, self.make()).await
    }

    async fn make(&self) -> Result<SharedConnection, BusError> {
        let generation = self.connector.generation();
        let connection = if self.block.is_zero() {
            self.connector.dedicated().await?
        } else {
            self.connector.blocking(self.block).await?
        };
        self.timeouts.store(0, Ordering::Relaxed);
        let lent = SharedConnection {
            connection,
            number: self.made.fetch_add(1, Ordering::Relaxed),
            generation,
        };
        *self.current() = Some(lent.clone());
        Ok(lent)
    }

    /// To be called before a command is sent on what was lent.
    pub(crate) fn sending(&self, lent: &SharedConnection) -> Sending<'_> {
        Sending {
            link: self,
            number: lent.number,
            since: Instant::now(),
            answered: false,
        }
    }

    /// Sends a pipeline: the answers, refusals among them. It fails only without an answer.
    pub(crate) async fn send_all(
        &self,
        lent: &mut SharedConnection,
        pipeline: &Pipeline,
    ) -> RedisResult<Vec<Value>> {
        let sending = self.sending(lent);
        let connection = &mut lent.connection;
        let answers = connection.send_packed_commands(pipeline, 0, pipeline.len());
        let answers = answers.await;
        match &answers {
            Ok(answers) => {
                let refused = answers.iter().find(|r| matches!(r, Value::ServerError(_)));
                sending.done(&Ok(refused.cloned().unwrap_or(Value::Nil)));
            }
            Err(error) => sending.done(&Err(error.clone())),
        }
        answers
    }

    fn unanswered(&self, number: u64) {
        if self.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= TIMEOUTS {
            self.give_up(number);
        }
    }

    fn give_up(&self, number: u64) {
        let mut current = self.current();
        if current.as_ref().is_some_and(|now| now.number == number) {
            *current = None;
            self.timeouts.store(0, Ordering::Relaxed);
        }
    }
}

/// A command under way.
pub(crate) struct Sending<'a> {
    link: &'a Link,
    number: u64,
    since: Instant,
    answered: bool,
}

impl Sending<'_> {
    /// Learns from the outcome of the command whether the connection is of use still.
    pub(crate) fn done(mut self, outcome: &RedisResult<Value>) {
        self.answered = true;
        let error = match outcome {
            Ok(Value::ServerError(error)) => error.clone().into(),
            Ok(_) => return self.link.timeouts.store(0, Ordering::Relaxed),
            Err(error) => error.clone(),
        };
        if error.is_timeout() {
            self.link.unanswered(self.number);
        } else if BusError::from(error).reaction() == Reaction::Reconnect {
            self.link.give_up(self.number);
        }
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        if !self.answered && self.since.elapsed() >= GIVEN_UP {
            self.link.unanswered(self.number);
        }
    }
}
