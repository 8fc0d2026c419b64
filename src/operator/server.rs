//! What a server tells about itself, as far as it lets the user look.

pub use crate::connect::greeting::Lacks;
pub use crate::connect::memory::Memory;

use crate::connect::clock::whole_ms;
use crate::connect::clock::{ClockSource, ServerTime};
use crate::connect::connector::Connector;
use crate::connect::error::{BusError, allowed};
use crate::connect::loaded;
use crate::connect::memory::pairs;
use crate::operator::rights::{self, Excess};
use crate::protocol::keys::Keys;
use redis::aio::MultiplexedConnection;
use redis::{ConnectionAddr, ConnectionInfo, Script};
use std::collections::HashMap;
use std::net::ToSocketAddrs;
use std::time::{Duration, Instant, SystemTime};

/// Settings of the server that are asked for.
const ASKED: [&str; 13] = [
    "appendfsync",
    "busy-reply-threshold",
    "client-output-buffer-limit",
    "cluster-node-timeout",
    "cluster-require-full-coverage",
    "maxmemory",
    "min-replicas-to-write",
    "proto-max-bulk-len",
    "protected-mode",
    "repl-diskless-sync",
    "requirepass",
    "save",
    "timeout",
];

/// Users of the server that are looked at.
const USERS: usize = 200;

/// What was found out about a server.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ServerReport {
    /// `INFO`; `None` if the user may not ask.
    pub info: Option<HashMap<String, String>>,
    /// Settings; `None` if the user may not ask. A password is only told to be there.
    pub config: Option<HashMap<String, String>>,
    /// Whether a client that does not log in may use the server.
    pub anonymous: Option<bool>,
    /// Whether the user may delete everything; `None` if it may not ask.
    pub may_flush: Option<bool>,
    /// Users who may settle events but not in a transaction; `None` if the user may not ask.
    pub unfenced: Option<Vec<String>>,
    /// Users of `deploy/users.acl` who may do more than they need; `None` if the user may not ask.
    pub excess: Option<Vec<Excess>>,
    /// Whether the server has the scripts that are called by users who may not load them; `None` if the
    /// user may not ask.
    pub has_scripts: Option<bool>,
    /// Who the user is.
    pub user: Option<String>,
    /// The server's clock minus the local one, in ms, and half of how long it took to ask.
    pub skew: Option<(i64, u64)>,
    /// Whether the way to the server leaves this machine unencrypted.
    pub in_the_clear: bool,
    /// What it does not tell whoever connects.
    pub lacks: Lacks,
    /// Whether it has `WAIT`; `None` if the user may not ask.
    pub waits: Option<bool>,
}

impl ServerReport {
    /// Looks at everything: at who may read and write as the workers of `group`, and at `scripts`, which users
    /// call who may not load any.
    ///
    /// # Errors
    /// Only if the server cannot be reached; what it refuses to tell is left out.
    pub async fn look(
        connection: &mut MultiplexedConnection,
        connector: &Connector,
        keys: &Keys,
        group: &str,
        scripts: &[&Script],
    ) -> Result<Self, BusError> {
        let target = connector.address().await?;
        let info = allowed(info(connection).await)?;
        let config = allowed(config(connection).await)?;
        let user = redis::cmd("ACL")
            .arg("WHOAMI")
            .query_async(connection)
            .await;
        let user: Option<String> = allowed(user.map_err(BusError::from))?;
        let may_flush = match &user {
            Some(user) => allowed(may_flush(connection, user).await)?,
            None => None,
        };
        let users = allowed(users(connection).await)?;
        let (unfenced, excess) = match &users {
            Some(users) => (
                allowed(unfenced(connection, users, keys, group).await)?,
                allowed(rights::excess(connection, users, keys).await)?,
            ),
            None => (None, None),
        };
        let scripts = loaded::known(connection, scripts).await;
        let has_scripts = allowed(scripts.map_err(BusError::from))?;
        Ok(Self {
            info,
            config,
            anonymous: anonymous(target.clone()).await,
            may_flush,
            unfenced,
            excess,
            has_scripts: has_scripts.map(|known| known.iter().all(|known| *known)),
            user,
            skew: allowed(skew(connection).await)?,
            in_the_clear: in_the_clear(target.addr()),
            lacks: Lacks::of(connection).await?,
            waits: waits(connection).await?,
        })
    }

    /// A number in `INFO`.
    pub fn info_number(&self, name: &str) -> Option<u64> {
        self.info.as_ref()?.get(name)?.parse().ok()
    }

    /// What it uses of its memory; `None` if the user may not ask.
    pub fn memory(&self) -> Option<Memory> {
        Memory::told(self.info.as_ref()?)
    }

    /// A setting; `None` if the user may not ask or the server has none of that name.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.config.as_ref()?.get(name).map(String::as_str)
    }

    /// A setting that is a number.
    pub fn setting_number(&self, name: &str) -> Option<u64> {
        self.setting(name)?.parse().ok()
    }
}

/// What a server has used up since it started.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// CPU time, in seconds.
    pub cpu: f64,
    /// Commands, by name in lower case; those of scripts and of transactions too.
    pub calls: HashMap<String, u64>,
    /// Bytes of memory in use.
    pub memory: u64,
    /// The server's version.
    pub version: String,
    /// The server's process.
    pub pid: String,
}

impl Usage {
    /// Asks the server.
    ///
    /// # Errors
    /// Whatever the server answers.
    pub async fn look(connection: &mut MultiplexedConnection) -> Result<Self, BusError> {
        let mut command = redis::cmd("INFO");
        command.arg(&["server", "memory", "cpu", "commandstats"]);
        let text: String = command.query_async(connection).await?;
        let mut usage = Self::default();
        for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match name {
                "used_cpu_user" | "used_cpu_sys" => usage.cpu += value.parse().unwrap_or(0.0),
                "used_memory" => usage.memory = value.parse().unwrap_or(0),
                "redis_version" => value.clone_into(&mut usage.version),
                "process_id" => value.clone_into(&mut usage.pid),
                _ => {
                    let calls = value
                        .strip_prefix("calls=")
                        .and_then(|v| v.split(',').next());
                    if let (Some(name), Some(calls)) = (name.strip_prefix("cmdstat_"), calls) {
                        usage.calls.insert(name.into(), calls.parse().unwrap_or(0));
                    }
                }
            }
        }
        Ok(usage)
    }
}

async fn info(connection: &mut MultiplexedConnection) -> Result<HashMap<String, String>, BusError> {
    let text: String = redis::cmd("INFO").query_async(connection).await?;
    Ok(pairs(&text))
}

async fn config(
    connection: &mut MultiplexedConnection,
) -> Result<HashMap<String, String>, BusError> {
    let mut settings = HashMap::new();
    for name in ASKED {
        let pair: HashMap<String, String> = redis::cmd("CONFIG")
            .arg("GET")
            .arg(name)
            .query_async(connection)
            .await?;
        settings.extend(pair);
    }
    if let Some(password) = settings.get_mut("requirepass")
        && !password.is_empty()
    {
        "set".clone_into(password);
    }
    Ok(settings)
}

/// Asks the server's ACL; nothing is deleted.
async fn may_flush(connection: &mut MultiplexedConnection, user: &str) -> Result<bool, BusError> {
    may(connection, user, &["FLUSHALL"]).await
}

/// Whether a user may run a command; it is not run.
async fn may(
    connection: &mut MultiplexedConnection,
    user: &str,
    words: &[&str],
) -> Result<bool, BusError> {
    let answer: String = redis::cmd("ACL")
        .arg(&["DRYRUN", user])
        .arg(words)
        .query_async(connection)
        .await?;
    Ok(answer == "OK")
}

/// The first users of the server.
async fn users(connection: &mut MultiplexedConnection) -> Result<Vec<String>, BusError> {
    let mut users: Vec<String> = redis::cmd("ACL")
        .arg("USERS")
        .query_async(connection)
        .await?;
    users.truncate(USERS);
    Ok(users)
}

/// The users who may read and write as a worker does, but not begin or end a transaction, or not
/// watch in it.
async fn unfenced(
    connection: &mut MultiplexedConnection,
    users: &[String],
    keys: &Keys,
    group: &str,
) -> Result<Vec<String>, BusError> {
    let events = keys.events("system", 0);
    let read = ["XREADGROUP", "GROUP", group, "c", "STREAMS", &events, ">"];
    let write = ["XADD", &events, "*", "type", "a.b"];
    let transaction: [&[&str]; 3] = [&["MULTI"], &["EXEC"], &["WATCH", &events]];
    let mut unfenced = Vec::new();
    for user in users {
        if !may(connection, user, &read).await? || !may(connection, user, &write).await? {
            continue;
        }
        for words in transaction {
            if !may(connection, user, words).await? {
                unfenced.push(user.clone());
                break;
            }
        }
    }
    Ok(unfenced)
}

/// Tries to use the server without logging in.
async fn anonymous(target: ConnectionInfo) -> Option<bool> {
    let client = redis::Client::open(target).ok()?;
    let config = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(crate::connect::socket::CONNECT))
        .set_response_timeout(Some(crate::connect::connector::ANSWER));
    let opened = client
        .get_multiplexed_async_connection_with_config(&config)
        .await;
    let answer = match opened {
        Ok(mut connection) => redis::cmd("PING").exec_async(&mut connection).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(()) => Some(true),
        Err(error) if error.code().is_some() => Some(false),
        Err(error) if error.kind() == redis::ErrorKind::AuthenticationFailed => Some(false),
        Err(_) => None,
    }
}

/// Whether there is `WAIT`: waits for no replica.
async fn waits(connection: &mut MultiplexedConnection) -> Result<Option<bool>, BusError> {
    let mut command = redis::cmd("WAIT");
    match command.arg(&[0, 1]).exec_async(connection).await {
        Ok(()) => Ok(Some(true)),
        Err(error) if error.code() == Some("NOPERM") => Ok(None),
        Err(error) if error.code().is_some() => Ok(Some(false)),
        Err(error) => Err(error.into()),
    }
}

async fn skew(connection: &mut MultiplexedConnection) -> Result<(i64, u64), BusError> {
    let mut best: Option<(i64, u64)> = None;
    for _ in 0..3 {
        let asked = Instant::now();
        let ServerTime(server) = ClockSource::Time
            .question("")
            .query_async(connection)
            .await?;
        let half = asked.elapsed() / 2;
        let local = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(Duration::ZERO, |since| since.saturating_sub(half));
        let skew = i64::try_from(server).unwrap_or(i64::MAX)
            - i64::try_from(local.as_millis()).unwrap_or(0);
        let half = whole_ms(half);
        if best.is_none_or(|(_, best)| half < best) {
            best = Some((skew, half));
        }
    }
    best.ok_or(BusError::Reply { what: "TIME" })
}

fn in_the_clear(address: &ConnectionAddr) -> bool {
    let ConnectionAddr::Tcp(host, port) = address else {
        return false;
    };
    match (host.as_str(), *port).to_socket_addrs() {
        Ok(mut addresses) => addresses.any(|address| !address.ip().is_loopback()),
        Err(_) => false,
    }
}
