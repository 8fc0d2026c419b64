//! What can go wrong between this process and Redis, and what to do about it.

use crate::connect::loaded::{ADVICE, may_not_load};
use redis::{ConnectionAddr, ErrorKind, RedisError};

/// A failure of the bus.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// Redis, or the way to it, failed.
    #[error("redis: {redis}{advice}", redis = .0, advice = told(.0))]
    Redis(RedisError),
    /// Nobody could be reached there.
    #[error("cannot connect to redis at {address}: {error}{advice}", advice = told(.error))]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        error: RedisError,
    },
    /// A certificate or key that cannot be used.
    #[error("{0}")]
    Tls(String),
    /// The server answered something that the command does not answer.
    #[error("redis answered {what} in a form that this command does not have")]
    Reply {
        /// Which command or script.
        what: &'static str,
    },
    /// No Sentinel named a primary that can be used.
    #[error("no primary: {0}")]
    NoPrimary(String),
    /// The Sentinels name another primary than the one that the connection leads to.
    #[error("the primary has moved")]
    Moved,
    /// The server failed over or restarted since what this belongs to began, and may have lost a part
    /// of it.
    #[error("the server failed over or restarted meanwhile: this is to be done again")]
    OtherEpoch,
    /// No pooled connection could be had in time.
    #[error("no connection to redis: {0}")]
    Pool(String),
    /// The server cannot be used.
    #[error("{0}")]
    Unsupported(String),
    /// A name that the protocol does not allow.
    #[error(transparent)]
    Name(#[from] crate::protocol::keys::NameError),
}

/// Not as a source: what it says is in the message.
impl From<RedisError> for BusError {
    fn from(error: RedisError) -> Self {
        Self::Redis(first_of(error))
    }
}

/// Of the errors of a pipeline or a transaction the first: a server that refuses all says one thing.
fn first_of(error: RedisError) -> RedisError {
    match error.clone().into_server_errors().as_deref() {
        Some([(_, first), ..]) => first.clone().into(),
        _ => error,
    }
}

/// What to do after an error. One table for every command that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Drop the connection, find the server again.
    Reconnect,
    /// The server will come round by itself: wait, then the same again.
    Wait,
    /// The stream or group is gone: create it, then the same again.
    RepairGroup,
    /// Nothing that this process can do; leave the stream and say so.
    GiveUp,
}

impl BusError {
    /// Says where it was that could not be reached; what a server said stays as it is.
    pub(crate) fn at(self, address: &ConnectionAddr) -> Self {
        match self {
            BusError::Redis(error) if error.code().is_none() && error.is_io_error() => {
                BusError::Unreachable {
                    address: address.to_string(),
                    error,
                }
            }
            error => error,
        }
    }

    /// The server's error code, such as `NOGROUP`.
    pub fn code(&self) -> Option<&str> {
        match self {
            BusError::Redis(error) | BusError::Unreachable { error, .. } => error.code(),
            _ => None,
        }
    }

    /// What to do about it.
    #[doc(hidden)]
    pub fn reaction(&self) -> Reaction {
        match self {
            BusError::Redis(error) | BusError::Unreachable { error, .. } => reaction(error),
            BusError::Pool(_) | BusError::NoPrimary(_) | BusError::Moved => Reaction::Reconnect,
            BusError::Reply { .. }
            | BusError::Unsupported(_)
            | BusError::Tls(_)
            | BusError::OtherEpoch
            | BusError::Name(_) => Reaction::GiveUp,
        }
    }
}

/// A server that turned out to be a node of a cluster after keys got their names.
pub(crate) const CLUSTER: &str = "the server is a node of a cluster, where keys have other names: pass the settings \
     through Settings::found, which asks it, or write redis+cluster:// or rediss+cluster:// in redis_url";

/// What to do where only a command tells that the server runs in cluster mode.
const CROSSES: &str =
    "the server runs in cluster mode: write redis+cluster:// or rediss+cluster:// in redis_url";

/// What to do about refused credentials.
const CREDENTIALS: &str = "check user and password in redis_url; special characters in them are written \
     with percent signs: % as %25, / as %2F, @ as %40";

/// What to do about an error, as the end of a message.
pub(crate) fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let script = error.downcast_ref().filter(|error| may_not_load(error));
    let advice = script.map(|_| ADVICE);
    let advice = advice.or_else(|| error.downcast_ref().and_then(of_the_server));
    let advice = advice.or_else(|| crate::connect::tls::advice(error));
    advice.map_or_else(String::new, |advice| format!("; {advice}"))
}

/// What to do about an answer to one who connects.
fn of_the_server(error: &RedisError) -> Option<&'static str> {
    if is_crowded(error) {
        return Some("raise maxclients on the server, or close connections that nobody needs");
    }
    if error.code() == Some("CROSSSLOT") {
        return Some(CROSSES);
    }
    (error.kind() == ErrorKind::AuthenticationFailed).then_some(CREDENTIALS)
}

fn reaction(error: &RedisError) -> Reaction {
    match error.code() {
        Some("NOGROUP") => Reaction::RepairGroup,
        Some("UNBLOCKED")
            if error
                .detail()
                .is_some_and(|d| d.contains("no longer exists")) =>
        {
            Reaction::RepairGroup
        }
        // Told on a connection that is closed at once; others will be let go.
        Some("ERR") if is_crowded(error) => Reaction::Reconnect,
        // MASTERDOWN is told by a replica: the primary is another server.
        Some("READONLY" | "MASTERDOWN" | "UNBLOCKED" | "NOAUTH" | "MOVED") => Reaction::Reconnect,
        Some(
            "LOADING" | "CLUSTERDOWN" | "ASK" | "TRYAGAIN" | "BUSY" | "OOM" | "MISCONF"
            | "NOREPLICAS" | "EXECABORT" | "NOSTREAM",
        ) => Reaction::Wait,
        Some(_) => Reaction::GiveUp,
        None => match error.kind() {
            ErrorKind::InvalidClientConfig | ErrorKind::AuthenticationFailed => Reaction::GiveUp,
            _ => Reaction::Reconnect,
        },
    }
}

/// A replica, where a primary is wanted.
pub(crate) fn not_the_primary() -> RedisError {
    RedisError::from((ErrorKind::Io, "connected to a replica, not to the primary"))
}

/// Whether the server has no room for another connection.
pub(crate) fn is_crowded(error: &RedisError) -> bool {
    error
        .detail()
        .is_some_and(|detail| detail.contains("max number of clients"))
}

/// `None` for what the user may not do, or what the server does not know.
pub fn allowed<T>(answer: Result<T, BusError>) -> Result<Option<T>, BusError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.code().is_some() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::resp::wire::server_error;

    #[test]
    fn what_only_a_replica_says_has_the_primary_looked_for() {
        for text in [
            "READONLY You can't write against a read only replica.",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        ] {
            let error = server_error(text.as_bytes());
            assert_eq!(error.reaction(), Reaction::Reconnect, "{text}");
        }
        for text in [
            "LOADING Redis is loading",
            "NOREPLICAS Not enough good replicas",
        ] {
            assert_eq!(server_error(text.as_bytes()).reaction(), Reaction::Wait);
        }
    }

    #[test]
    fn a_server_without_room_for_a_connection_is_asked_again() {
        let crowded = server_error(b"ERR max number of clients reached");
        assert_eq!(crowded.reaction(), Reaction::Reconnect);
        let other = server_error(b"ERR unknown command");
        assert_eq!(other.reaction(), Reaction::GiveUp);
    }
}
