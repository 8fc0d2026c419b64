//! Connections that are borrowed for a few commands.
//!
//! To ask a connection before each use whether it is alive would double the round trips of all who
//! borrow. So it is asked only where that is in doubt: after a pause, and where a call was left before its
//! answer. One that failed is not lent again. Where Sentinels watch the primary that is
//! always: a server that was demoted answers all the same.

use crate::connect::cluster::pooled::Routed;
use crate::connect::greeting::Known;
use crate::connect::lending::RECYCLE;
use crate::connect::url::RedisUrl;
use deadpool::managed::{self, Metrics, Object, RecycleError, RecycleResult};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, Pipeline, RedisError, RedisFuture,
    Value,
};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// For how long a connection that answered counts as alive.
const TRUSTED: Duration = Duration::from_secs(1);

/// Makes the pool's connections by the manager of `deadpool_redis`. Whether one lives it asks by itself: that
/// one's recycling sends an `UNWATCH` too, which nobody who borrows needs and not every user may send.
pub(crate) struct Manager {
    makes: deadpool_redis::Manager,
    place: ConnectionInfo,
    config: AsyncConnectionConfig,
    /// Who logs in may change.
    url: RedisUrl,
    known: Arc<Known>,
    /// Where only a primary will do: whether one of the connections was of no use. Then the others
    /// are not tried, each might take its time.
    spoiled: Option<Arc<AtomicBool>>,
    /// How often all that were made so far were given up.
    forgotten: AtomicU64,
}

/// The pool.
pub(crate) type Pool = managed::Pool<Manager>;

/// A connection, and what is known of it.
pub(crate) struct Checked {
    connection: MultiplexedConnection,
    /// When it answered last that it is alive; nobody knows once a call was left before its answer.
    alive: Option<Instant>,
    /// Whether it failed without an answer of the server.
    failed: bool,
    /// How often those before it had been given up when it began to be made.
    made_after: u64,
}

/// A connection as the pool lends it.
pub(crate) struct Lent(Object<Manager>);

/// A connection from the pool; on a cluster one for each slot that it is used for.
pub struct Pooled(Way);

enum Way {
    Server(Lent),
    Cluster(Box<Routed>),
}

impl Manager {
    pub(crate) fn new(
        url: &RedisUrl,
        place: ConnectionInfo,
        config: AsyncConnectionConfig,
        known: Arc<Known>,
    ) -> Result<Self, RedisError> {
        Ok(Self {
            makes: deadpool_redis::Manager::new_with_config(place.clone(), config.clone())?,
            place,
            config,
            url: url.clone(),
            known,
            spoiled: None,
            forgotten: AtomicU64::new(0),
        })
    }

    /// Where its connections lead.
    pub(crate) fn addr(&self) -> &ConnectionAddr {
        self.place.addr()
    }

    /// Gives up all connections that were made so far, those that are lent now as well: they are not lent again.
    pub(crate) fn forget(&self) {
        self.forgotten.fetch_add(1, Ordering::AcqRel);
    }

    /// Whose connections lead to a primary, each time that they are lent.
    pub(crate) fn of_a_primary(self, spoiled: Arc<AtomicBool>) -> Self {
        Self {
            spoiled: Some(spoiled),
            ..self
        }
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
        let made_after = self.forgotten.load(Ordering::Acquire);
        let renewed = self.url.renewed(&self.place);
        let renewed = match renewed {
            Some(place) => {
                let config = self.config.clone();
                Some(deadpool_redis::Manager::new_with_config(place, config)?)
            }
            None => None,
        };
        // Apart: it is large, and whoever borrows would have it on the stack.
        let opening = Box::pin(renewed.as_ref().unwrap_or(&self.makes).create());
        let (login, address) = (self.url.changes(), self.place.addr());
        let opened = self.known.opening.open(login, address, opening).await;
        let mut connection = opened.inspect_err(|error| self.known.heard(error))?;
        self.known.greet_by(&mut connection).await?;
        Ok(Checked {
            connection,
            alive: Some(Instant::now()),
            failed: false,
            made_after,
        })
    }

    async fn recycle(&self, checked: &mut Checked, _: &Metrics) -> RecycleResult<RedisError> {
        if checked.failed || checked.made_after != self.forgotten.load(Ordering::Acquire) {
            return Err(RecycleError::message("it was given up"));
        }
        if let Some(spoiled) = &self.spoiled {
            if spoiled.load(Ordering::Acquire) {
                return Err(RecycleError::message("the pool is given up"));
            }
            let role = timeout(RECYCLE, Known::check_role(&mut checked.connection)).await;
            if !matches!(role, Ok(Ok(()))) {
                spoiled.store(true, Ordering::Release);
                return Err(RecycleError::message("no primary any more"));
            }
            return Ok(());
        }
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

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pooled")
    }
}

impl Pooled {
    /// A connection to a server.
    pub(super) fn of(lent: Lent) -> Self {
        Self(Way::Server(lent))
    }

    /// Connections to the slots of a cluster.
    pub(super) fn routed(routed: Routed) -> Self {
        Self(Way::Cluster(Box::new(routed)))
    }
}

impl Lent {
    pub(super) fn of(lent: Object<Manager>) -> Self {
        Self(lent)
    }

    /// Has a history be known that the connection was not made for.
    pub(super) async fn greet(&mut self, known: &Known) -> Result<(), RedisError> {
        self.noting(async move |to| known.greet_by(to).await).await
    }

    /// What failed without an answer of the server is not lent again, and what was left before its answer is
    /// asked first.
    async fn noting<T>(
        &mut self,
        call: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        let alive = self.0.alive.take();
        let outcome = call(&mut self.0.connection).await;
        self.0.failed = outcome.as_ref().is_err_and(|error| error.code().is_none());
        self.0.alive = alive;
        outcome
    }

    pub(crate) async fn command(&mut self, command: &Cmd) -> Result<Value, RedisError> {
        self.noting(async move |to| to.send_packed_command(command).await)
            .await
    }

    pub(crate) async fn commands(
        &mut self,
        commands: &Pipeline,
        offset: usize,
        count: usize,
    ) -> Result<Vec<Value>, RedisError> {
        self.noting(async move |to| to.send_packed_commands(commands, offset, count).await)
            .await
    }
}

impl ConnectionLike for Pooled {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            match &mut self.0 {
                Way::Server(lent) => lent.command(command).await,
                Way::Cluster(routed) => routed.command(command).await,
            }
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            match &mut self.0 {
                Way::Server(lent) => lent.commands(commands, offset, count).await,
                Way::Cluster(routed) => routed.commands(commands, offset, count).await,
            }
        })
    }

    fn get_db(&self) -> i64 {
        match &self.0 {
            Way::Server(lent) => lent.0.connection.get_db(),
            // A cluster has no other.
            Way::Cluster(_) => 0,
        }
    }
}
