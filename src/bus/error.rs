//! What can go wrong between this process and Redis, and what to do about it.

use redis::{ErrorKind, RedisError};

/// A failure of the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// Redis, or the way to it, failed.
    #[error("redis: {redis}{advice}", redis = .0, advice = told(.0))]
    Redis(#[from] RedisError),
    /// A certificate or key that can not be used.
    #[error("{0}")]
    Tls(String),
    /// The server answered something that the command does not answer.
    #[error("redis answered {what} in a form that this command does not have")]
    Reply {
        /// Which command or script.
        what: &'static str,
    },
    /// No pooled connection could be had in time.
    #[error("no connection to redis: {0}")]
    Pool(String),
    /// The server can not be used.
    #[error("{0}")]
    Unsupported(String),
    /// A name that the protocol does not allow.
    #[error(transparent)]
    Name(#[from] super::keys::NameError),
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
    /// The server's error code, such as `NOGROUP`.
    pub fn code(&self) -> Option<&str> {
        match self {
            BusError::Redis(error) => error.code(),
            _ => None,
        }
    }

    /// What to do about it.
    pub fn reaction(&self) -> Reaction {
        match self {
            BusError::Redis(error) => reaction(error),
            BusError::Pool(_) => Reaction::Reconnect,
            BusError::Reply { .. }
            | BusError::Unsupported(_)
            | BusError::Tls(_)
            | BusError::Name(_) => Reaction::GiveUp,
        }
    }
}

/// What to do about an error, as the end of a message.
pub(super) fn told(error: &(dyn std::error::Error + 'static)) -> String {
    super::tls::advice(error).map_or_else(String::new, |advice| format!("; {advice}"))
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
        Some("READONLY" | "UNBLOCKED" | "NOAUTH" | "MOVED" | "ASK") => Reaction::Reconnect,
        Some(
            "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "BUSY" | "OOM" | "MISCONF"
            | "NOREPLICAS" | "EXECABORT",
        ) => Reaction::Wait,
        Some(_) => Reaction::GiveUp,
        None => match error.kind() {
            ErrorKind::InvalidClientConfig | ErrorKind::AuthenticationFailed => Reaction::GiveUp,
            _ => Reaction::Reconnect,
        },
    }
}

/// Whether the server has no room for another connection.
pub(super) fn is_crowded(error: &RedisError) -> bool {
    error
        .detail()
        .is_some_and(|detail| detail.contains("max number of clients"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::wire::server_error;

    #[test]
    fn a_server_without_room_for_a_connection_is_asked_again() {
        let crowded = server_error(b"ERR max number of clients reached");
        assert_eq!(crowded.reaction(), Reaction::Reconnect);
        let other = server_error(b"ERR unknown command");
        assert_eq!(other.reaction(), Reaction::GiveUp);
    }
}
