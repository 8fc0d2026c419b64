//! Connections that are borrowed for a few commands.
//!
//! To ask a connection before each use whether it is alive would double the round trips of all who
//! borrow. So it is asked only where that is in doubt: after a pause, and after a failure.

use deadpool::managed::{self, Metrics, Object, RecycleError, RecycleResult};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, RedisError, RedisFuture, Value};
use std::fmt;
use std::time::{Duration, Instant};

/// For how long a connection that answered counts as alive.
const TRUSTED: Duration = Duration::from_secs(1);

/// Makes the pool's connections.
pub(super) struct Manager {
    client: Client,
    config: AsyncConnectionConfig,
}

/// The pool.
pub(super) type Pool = managed::Pool<Manager>;

/// A connection, and what is known of it.
pub(super) struct Checked {
    connection: MultiplexedConnection,
    /// When it answered last that it is alive; never, once it failed.
    alive: Option<Instant>,
}

/// A connection from the pool.
pub struct Pooled(Object<Manager>);

impl Manager {
    pub fn new(client: Client, config: AsyncConnectionConfig) -> Self {
        Self { client, config }
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Manager")
    }
}

impl managed::Manager for Manager {
    type Type = Checked;
    type Error = RedisError;

    async fn create(&self) -> Result<Checked, RedisError> {
        let connecting = self
            .client
            .get_multiplexed_async_connection_with_config(&self.config);
        Ok(Checked {
            connection: connecting.await?,
            alive: Some(Instant::now()),
        })
    }

    async fn recycle(&self, checked: &mut Checked, _: &Metrics) -> RecycleResult<RedisError> {
        if checked.alive.is_some_and(|at| at.elapsed() < TRUSTED) {
            return Ok(());
        }
        let pong: String = redis::cmd("PING")
            .query_async(&mut checked.connection)
            .await?;
        if pong != "PONG" {
            return Err(RecycleError::message("no PONG"));
        }
        checked.alive = Some(Instant::now());
        Ok(())
    }
}

impl From<Object<Manager>> for Pooled {
    fn from(lent: Object<Manager>) -> Self {
        Self(lent)
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pooled")
    }
}

impl Pooled {
    /// What failed without an answer of the server is asked before it is lent again.
    fn note<T>(&mut self, outcome: &Result<T, RedisError>) {
        if outcome.as_ref().is_err_and(|error| error.code().is_none()) {
            self.0.alive = None;
        }
    }
}

impl ConnectionLike for Pooled {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let outcome = self.0.connection.send_packed_command(command).await;
            self.note(&outcome);
            outcome
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let sent = self
                .0
                .connection
                .send_packed_commands(commands, offset, count);
            let outcome = sent.await;
            self.note(&outcome);
            outcome
        })
    }

    fn get_db(&self) -> i64 {
        self.0.connection.get_db()
    }
}
