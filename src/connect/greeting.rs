//! What a server is asked on each new connection, for information: whether it is a primary, in which
//! history its data is, whether it tells the time. Whether it is a node of a cluster stands there too: it is asked for that
//! by itself once, and only where a URL does not say it and INFO tells nothing.
//!
//! Servers that one can rent leave some of it out, or forbid it, and INFO may have sections that are
//! empty. None of it is needed. Who does not tell its role counts as a primary: a replica refuses writes
//! by itself. What stays unknown makes a guarantee weaker; [`Lacks`] says what, so that nobody has to
//! find out by losing it.

use crate::connect::epoch::{Epoch, Epochs};
use crate::connect::error::{BusError, is_crowded, not_the_primary};
use crate::connect::opening::Opening;
use crate::connect::resp::wire::{Commands, Token, Tokens, Wire, server_error};
use crate::mutex::locked;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Pipeline, RedisError, Value};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

const ROLE: &[&str] = &["ROLE"];
const INFO: &[&str] = &["INFO", "server", "replication"];
const TIME: &[&str] = &["TIME"];
const CLUSTER_INFO: [&str; 2] = ["CLUSTER", "INFO"];
/// In this order.
const ASKED: [&[&str]; 3] = [ROLE, INFO, TIME];

/// What a server does not tell, or not to this user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lacks {
    /// Neither `ROLE` nor `INFO` says whether it is a primary.
    pub role: bool,
    /// `INFO` does not name the server process and the history of its data.
    pub epoch: bool,
    /// `TIME` is not there.
    pub time: bool,
}

impl Lacks {
    /// Whether it tells everything.
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }

    /// What the server at the other end lacks, be it a replica.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn of(connection: &mut MultiplexedConnection) -> Result<Self, RedisError> {
        Ok(ask(connection).await?.lacks())
    }
}

impl fmt::Display for Lacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (self.role, "its role (ROLE, INFO replication)"),
            (
                self.epoch,
                "the history of its data (INFO server replication)",
            ),
            (self.time, "the time (TIME)"),
        ];
        let lacking = all.iter().filter(|(lacks, _)| *lacks);
        let names: Vec<&str> = lacking.map(|(_, name)| *name).collect();
        f.write_str(&names.join(", "))
    }
}

/// What a server told, as far as it told it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Greeting {
    is_primary: Option<bool>,
    info: Option<String>,
    has_time: bool,
}

/// What the servers at the other end told last.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub epochs: Epochs,
    pub opening: Opening,
    timeless: AtomicBool,
    last: Mutex<Option<Greeting>>,
    /// Whether a URL leads there that does not say whether that is a cluster.
    asks_mode: bool,
    is_node: OnceLock<bool>,
}

impl Greeting {
    /// A field of `INFO`.
    fn field(&self, name: &str) -> Option<&str> {
        field(self.info.as_deref()?, name)
    }

    /// `ROLE`, or else what `INFO` says.
    fn leads(&self) -> Option<bool> {
        let by_info = || Some(self.field("role")? == "master");
        self.is_primary.or_else(by_info)
    }

    fn lacks(&self) -> Lacks {
        Lacks {
            role: self.leads().is_none(),
            epoch: !self.info.as_deref().is_some_and(Epochs::is_in),
            time: !self.has_time,
        }
    }
}

/// A field of an answer to `INFO`.
pub(crate) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = info.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(field, _)| *field == name)?;
    Some(value.trim()).filter(|value| !value.is_empty())
}

/// Whether the server has no such command, or not for this user. What each server says of a command that
/// it leaves out is its own; but none of what is asked here can fail for another reason.
fn is_not_offered(error: &RedisError) -> bool {
    matches!(error.code(), Some("ERR" | "NOPERM")) && !is_crowded(error)
}

/// An answer; `None` where the server has no such command.
pub(crate) fn offered<T>(answer: Result<T, RedisError>) -> Result<Option<T>, RedisError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if is_not_offered(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Known {
    /// Of a server that may be a node of a cluster.
    pub(crate) fn of_a_plain_url() -> Self {
        Self {
            asks_mode: true,
            ..Self::default()
        }
    }

    /// Asks who is at the other end of a new connection.
    ///
    /// # Errors
    /// A replica, or no answer.
    pub(crate) async fn greet(&self, wire: &mut Wire) -> Result<(), BusError> {
        let mut commands = Commands::default();
        for words in ASKED {
            let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            commands.add(&words);
        }
        wire.send(&mut commands).await?;
        let mut greeting = Greeting::default();
        for asked in ASKED {
            let reply = wire.reply().await?;
            let answer = match reply.clone().token()? {
                Token::Error(text) => match server_error(text) {
                    BusError::Redis(error) => offered(Err(error))?,
                    other => return Err(other),
                },
                _ => Some(reply),
            };
            match answer {
                None => {}
                Some(mut role) if asked == ROLE => greeting.is_primary = Some(leads(&mut role)),
                Some(mut info) if asked == INFO => {
                    if let Token::Bulk(info) = info.token()? {
                        greeting.info = Some(String::from_utf8_lossy(info).into_owned());
                    }
                }
                Some(_) => greeting.has_time = true,
            }
        }
        wire.epoch = self.note(greeting)?;
        Ok(())
    }

    /// The same on a connection of the client library.
    pub(crate) async fn greet_by(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), RedisError> {
        let greeting = ask(connection).await?;
        // Before it counts that it is a replica: that may be one of a cluster, and know the others.
        self.note_mode(&greeting);
        if self.asks_mode && self.is_node.get().is_none() {
            let mut info = redis::cmd(CLUSTER_INFO[0]);
            let info = info.arg(CLUSTER_INFO[1]).query_async(connection).await;
            let is_node = match info.map(redis::from_redis_value::<String>) {
                Ok(info) => info.is_ok_and(|info| is_a_nodes(&info)),
                // Whatever a server says that has no such command: the others are asked for information, too.
                Err(error) if !is_crowded(&error) && error.code().is_some_and(is_lasting) => false,
                Err(error) => return Err(error),
            };
            self.is_node.set(is_node).ok();
        }
        self.note(greeting).map(|_| ())
    }

    fn note_mode(&self, greeting: &Greeting) {
        // Valkey has another name for it.
        let mode = greeting
            .field("redis_mode")
            .or_else(|| greeting.field("server_mode"));
        if let Some(mode) = mode {
            self.is_node.set(mode == "cluster").ok();
        }
    }

    /// What a refusal of a new connection tells: only a node of a cluster refuses its database so.
    pub(crate) fn heard(&self, refusal: &RedisError) {
        let detail = refusal.detail().unwrap_or_default();
        if detail.contains("not allowed in cluster mode") {
            self.is_node.set(true).ok();
        }
    }

    /// Fails unless the server is still a primary, as far as it tells: one that was demoted still answers.
    pub(crate) async fn check_role(
        connection: &mut MultiplexedConnection,
    ) -> Result<(), RedisError> {
        let role = redis::cmd(ROLE[0]).query_async(connection).await;
        let leads = match offered(role)? {
            Some(role) => Some(is_masters(&role)),
            None => {
                let mut command = redis::cmd(INFO[0]);
                let info: Result<String, _> =
                    command.arg("replication").query_async(connection).await;
                let info = offered(info)?.unwrap_or_default();
                field(&info, "role").map(|role| role == "master")
            }
        };
        match leads {
            Some(false) => Err(not_the_primary()),
            _ => Ok(()),
        }
    }

    /// Which history of the data it named.
    fn note(&self, greeting: Greeting) -> Result<Option<Epoch>, RedisError> {
        self.note_mode(&greeting);
        if greeting.leads() == Some(false) {
            return Err(not_the_primary());
        }
        let info = greeting.info.as_deref();
        let epoch = info.and_then(|info| self.epochs.see(info));
        self.timeless.store(!greeting.has_time, Ordering::Release);
        *self.last() = Some(greeting);
        Ok(epoch)
    }

    fn last(&self) -> MutexGuard<'_, Option<Greeting>> {
        locked(&self.last)
    }

    /// Whether any connection was made.
    pub(crate) fn is_greeted(&self) -> bool {
        self.last().is_some()
    }

    /// Whether the server has no `TIME`.
    pub(crate) fn is_timeless(&self) -> bool {
        self.timeless.load(Ordering::Acquire)
    }

    /// What it lacks; nothing before the first connection.
    pub(crate) fn lacks(&self) -> Lacks {
        self.last()
            .as_ref()
            .map(Greeting::lacks)
            .unwrap_or_default()
    }

    /// Its version, if it told one.
    pub(crate) fn version(&self) -> Option<String> {
        Some(self.last().as_ref()?.field("redis_version")?.to_owned())
    }

    /// Whether it is a node of a cluster; nothing is known before the first connection.
    pub(crate) fn is_node(&self) -> Option<bool> {
        self.is_node.get().copied()
    }
}

/// Whether a refusal is one that stays: a server that loads its data answers later.
fn is_lasting(code: &str) -> bool {
    !matches!(code, "LOADING" | "BUSY" | "MASTERDOWN" | "TRYAGAIN")
}

/// Whether an answer to `CLUSTER INFO` is one of a node: some servers have the command, and no cluster.
fn is_a_nodes(info: &str) -> bool {
    field(info, "cluster_state").is_some() && field(info, "cluster_enabled") != Some("0")
}

async fn ask(connection: &mut MultiplexedConnection) -> Result<Greeting, RedisError> {
    let mut pipe = Pipeline::new();
    for words in ASKED {
        pipe.cmd(words[0]).arg(&words[1..]);
    }
    let replies = connection
        .req_packed_commands(&pipe, 0, ASKED.len())
        .await?;
    let mut greeting = Greeting::default();
    for (asked, reply) in ASKED.into_iter().zip(replies) {
        match offered(reply.extract_error())? {
            None => {}
            Some(role) if asked == ROLE => greeting.is_primary = Some(is_masters(&role)),
            Some(info) if asked == INFO => {
                greeting.info = redis::from_redis_value(info).ok();
            }
            Some(_) => greeting.has_time = true,
        }
    }
    Ok(greeting)
}

fn leads(role: &mut Tokens<'_>) -> bool {
    matches!(
        (role.token(), role.token()),
        (Ok(Token::Array(_)), Ok(Token::Bulk(b"master")))
    )
}

fn is_masters(role: &Value) -> bool {
    let Value::Array(parts) = role else {
        return false;
    };
    match parts.first() {
        Some(Value::BulkString(bytes)) => bytes == b"master",
        Some(Value::SimpleString(text)) => text == "master",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::ErrorKind;

    fn greeting(is_primary: Option<bool>, info: Option<&str>) -> Greeting {
        Greeting {
            is_primary,
            info: info.map(str::to_owned),
            has_time: true,
        }
    }

    #[test]
    fn who_does_not_tell_its_role_counts_as_a_primary() {
        let known = Known::default();
        for (is_primary, info) in [
            (Some(true), None),
            (None, None),
            (None, Some("# Replication\r\n")),
            (None, Some("role:master\r\n")),
            (Some(true), Some("role:slave\r\n")),
        ] {
            let greeting = greeting(is_primary, info);
            assert!(known.note(greeting.clone()).is_ok(), "{greeting:?}");
        }
        for (is_primary, info) in [
            (Some(false), None),
            (None, Some("role:slave\r\n")),
            (Some(false), Some("role:master\r\n")),
        ] {
            let greeting = greeting(is_primary, info);
            assert!(known.note(greeting.clone()).is_err(), "{greeting:?}");
        }
    }

    #[test]
    fn a_server_is_a_node_if_it_says_so_first() {
        let told = |info: Option<&str>| {
            let known = Known::of_a_plain_url();
            known.note(greeting(Some(true), info)).ok();
            known.is_node()
        };
        assert_eq!(told(Some("redis_mode:cluster\r\n")), Some(true));
        assert_eq!(told(Some("redis_mode:standalone\r\n")), Some(false));
        assert_eq!(told(Some("server_mode:cluster\r\n")), Some(true));
        for info in [None, Some("# Server\r\n"), Some("redis_mode:\r\n")] {
            assert_eq!(told(info), None, "{info:?}");
        }
        let known = Known::of_a_plain_url();
        let replica = greeting(Some(false), Some("redis_mode:cluster\r\n"));
        assert!(known.note(replica).is_err());
        assert_eq!(known.is_node(), Some(true));
        let known = Known::of_a_plain_url();
        known.heard(&not_the_primary());
        assert_eq!(known.is_node(), None);
        let refused = "SELECT is not allowed in cluster mode".to_owned();
        known.heard(&(ErrorKind::Client, "refused", refused).into());
        assert_eq!(known.is_node(), Some(true));
        for (info, is) in [
            ("cluster_state:ok\r\ncluster_slots_assigned:16384\r\n", true),
            ("cluster_state:fail\r\n", true),
            ("cluster_enabled:0\r\ncluster_state:ok\r\n", false),
            ("", false),
        ] {
            assert_eq!(is_a_nodes(info), is, "{info:?}");
        }
    }

    #[test]
    fn what_is_not_told_is_lacking() {
        let lacks = |role, epoch, time| Lacks { role, epoch, time };
        let whole = "run_id:a\r\nrole:master\r\nmaster_replid:b\r\n";
        assert!(greeting(Some(true), Some(whole)).lacks().is_nothing());
        assert!(greeting(None, Some(whole)).lacks().is_nothing());
        let empty = "# Server\r\n\r\n# Replication\r\nrun_id:\r\n";
        assert_eq!(
            greeting(Some(true), Some(empty)).lacks(),
            lacks(false, true, false)
        );
        assert_eq!(Greeting::default().lacks(), lacks(true, true, true));
        let told = Greeting::default().lacks().to_string();
        for command in ["ROLE", "INFO", "TIME"] {
            assert!(told.contains(command), "{told}");
        }
    }

    #[test]
    fn a_command_that_is_left_out_is_no_failure_and_a_crowded_server_is() {
        for text in [
            "ERR unknown command 'ROLE', with args beginning with: ",
            "ERR Command is not available: 'ROLE'",
            "NOPERM this user has no permissions to run the 'role' command",
        ] {
            let BusError::Redis(error) = server_error(text.as_bytes()) else {
                panic!("{text}");
            };
            assert!(is_not_offered(&error), "{text}");
        }
        for text in [
            "ERR max number of clients reached",
            "NOAUTH Authentication required.",
        ] {
            let BusError::Redis(error) = server_error(text.as_bytes()) else {
                panic!("{text}");
            };
            assert!(!is_not_offered(&error), "{text}");
        }
    }
}
