//! Which connection for what.
//!
//! - A **dedicated** connection per blocking reader: a blocked command on a shared connection
//!   blocks everyone, and its time-out must be longer than the block.
//! - A connection of its own per committer: `WATCH` is a property of the connection. It and the
//!   group readers' are **wires** (see [`super::wire`]).
//! - A **pool** for handlers and coordination, never for blocking reads.
//!
//! Every connection has a time-out for each answer and for being made, and TCP keepalive, so a
//! half-open link is noticed. A connection is not repaired: whoever holds it drops it and asks for
//! another one.

use super::error::{BusError, told};
pub use super::pool::Pooled;
use super::pool::{Manager, Pool};
use super::tls::Tls;
use super::wire::Wire;
use crate::config::{RedisUrl, Settings};
use deadpool::Runtime;
use deadpool::managed::Timeouts;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2};
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, Value,
};
use std::fmt;
use std::time::{Duration, Instant};

/// How long a blocking read may wait on the server. Short, because a read is never cancelled: this
/// is what shutdown may have to wait.
pub const BLOCK: Duration = Duration::from_millis(1000);
/// How long an answer may take that does not block.
pub const ANSWER: Duration = Duration::from_secs(5);
/// How long making a connection may take.
pub const CONNECT: Duration = Duration::from_secs(3);
/// How long what was sent may stay unacknowledged by the other side's kernel.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
/// The oldest server that has what the bus needs.
const OLDEST: (u32, u32) = (7, 0);

/// Makes connections to one server.
#[derive(Clone)]
pub struct Connector {
    client: Client,
    tls: Tls,
    pool: Pool,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    /// Prepares for the server of the settings, with their certificates and a pool of that many
    /// connections; connects nothing yet.
    ///
    /// # Errors
    /// `Tls`: a file of certificates or of the key can not be used.
    pub fn of(settings: &Settings, pool_size: usize) -> Result<Self, BusError> {
        Self::with(&settings.redis_url, Tls::read(settings)?, pool_size)
    }

    /// Prepares for the server at `url`, trusting what the system trusts.
    pub fn new(url: &RedisUrl, pool_size: usize) -> Result<Self, BusError> {
        Self::with(url, Tls::default(), pool_size)
    }

    fn with(url: &RedisUrl, tls: Tls, pool_size: usize) -> Result<Self, BusError> {
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_keepalive(keepalive());
        #[cfg(target_os = "linux")]
        let tcp = tcp.set_user_timeout(UNACKNOWLEDGED);
        let info: ConnectionInfo = url.expose().into_connection_info()?.set_tcp_settings(tcp);
        let client = Client::open(tls.apply(info)?)?;
        let manager = Manager::new(client.clone(), answers_within(ANSWER));
        let pool = Pool::builder(manager)
            .max_size(pool_size)
            .timeouts(Timeouts {
                wait: Some(ANSWER),
                create: Some(CONNECT),
                recycle: Some(Duration::from_secs(1)),
            })
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| BusError::Pool(error.to_string()))?;
        Ok(Self { client, tls, pool })
    }

    /// A connection of one's own on which every answer arrives within [`ANSWER`].
    pub async fn dedicated(&self) -> Result<MultiplexedConnection, BusError> {
        self.open(ANSWER).await
    }

    /// A connection of one's own for commands that block for up to `block`.
    pub async fn blocking(&self, block: Duration) -> Result<MultiplexedConnection, BusError> {
        self.open(block + Duration::from_secs(2)).await
    }

    /// A connection to whatever answers, a replica as well: for looking at the server only.
    pub async fn unchecked(&self) -> Result<MultiplexedConnection, BusError> {
        let config = answers_within(ANSWER);
        let opened = self
            .client
            .get_multiplexed_async_connection_with_config(&config);
        Ok(opened.await?)
    }

    /// Where the server is, without who connects.
    pub(super) fn address(&self) -> ConnectionInfo {
        let info = self.client.get_connection_info().clone();
        info.set_redis_settings(RedisConnectionInfo::default())
    }

    /// A hand-written connection on which every answer arrives within [`ANSWER`].
    pub async fn wire(&self) -> Result<Wire, BusError> {
        Wire::open(self.client.get_connection_info(), &self.tls, ANSWER).await
    }

    /// A hand-written connection for commands that block for up to `block`.
    pub async fn blocking_wire(&self, block: Duration) -> Result<Wire, BusError> {
        let answer = block + Duration::from_secs(2);
        Wire::open(self.client.get_connection_info(), &self.tls, answer).await
    }

    async fn open(&self, answer: Duration) -> Result<MultiplexedConnection, BusError> {
        let mut connection = self
            .client
            .get_multiplexed_async_connection_with_config(&answers_within(answer))
            .await?;
        // A demoted primary still answers: only its role tells.
        let role: Value = redis::cmd("ROLE").query_async(&mut connection).await?;
        match role {
            Value::Array(parts) if is_text(parts.first(), "master") => Ok(connection),
            _ => Err(BusError::Redis(
                (
                    redis::ErrorKind::Io,
                    "connected to a replica, not to the primary",
                )
                    .into(),
            )),
        }
    }

    /// A connection from the pool, for a few commands that do not block.
    pub async fn pooled(&self) -> Result<Pooled, BusError> {
        let lent = self.pool.get().await;
        lent.map(Pooled::from)
            .map_err(|error| BusError::Pool(format!("{error}{}", told(&error))))
    }

    /// Asks the server whether it is there; how long it took to have the answer.
    pub async fn ping(&self) -> Result<Duration, BusError> {
        let began = Instant::now();
        let mut connection = self.pooled().await?;
        redis::cmd("PING").exec_async(&mut connection).await?;
        Ok(began.elapsed())
    }

    /// Throws all pooled connections away that idle now: after a failover they lead to a replica.
    pub fn forget_pooled(&self) {
        self.pool.retain(|_, _| false);
    }

    /// Fails if the server is too old, naming its version.
    pub async fn check_version(&self) -> Result<(), BusError> {
        let mut connection = self.dedicated().await?;
        let info: String = redis::cmd("INFO")
            .arg("server")
            .query_async(&mut connection)
            .await?;
        let version = info
            .lines()
            .find_map(|line| line.strip_prefix("redis_version:"))
            .unwrap_or_default()
            .trim();
        let mut numbers = version.split('.').map_while(|part| part.parse().ok());
        let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if found >= OLDEST {
            Ok(())
        } else {
            Err(BusError::Unsupported(format!(
                "redis {version} is too old: {}.{} is the oldest that has what the bus needs",
                OLDEST.0, OLDEST.1
            )))
        }
    }
}

/// A half-open link is noticed after 10 s and three probes.
fn keepalive() -> socket2::TcpKeepalive {
    socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(3))
        .with_retries(3)
}

/// Sets on a socket what every connection has.
pub(super) fn tune(socket: &socket2::SockRef<'_>) -> std::io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive())?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(())
}

fn answers_within(answer: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(answer))
}

fn is_text(value: Option<&Value>, expected: &str) -> bool {
    match value {
        Some(Value::BulkString(bytes)) => bytes == expected.as_bytes(),
        Some(Value::SimpleString(text)) => text == expected,
        _ => false,
    }
}

/// The wait before the next try after so many failures in a row: doubling from 100 ms to 5 s, full jitter.
pub fn reconnect_delay(failures: u32) -> Duration {
    let ceiling = 100u64.saturating_mul(1 << failures.min(6)).min(5000);
    Duration::from_millis(50 + fastrand::u64(0..ceiling))
}
