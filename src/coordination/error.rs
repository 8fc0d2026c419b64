//! Why a shared rule did not give what was asked of it.

use crate::connect::error::{BusError, Reaction};
use crate::protocol::error::{Code, HandlerError};
use redis::RedisError;
use std::time::Duration;

/// A call that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoordinationError {
    /// A value that the protocol does not allow; the message begins with the field's name.
    #[error("{0}")]
    Invalid(String),
    /// What the call names does not exist.
    #[error("{0}")]
    NotFound(String),
    /// What the call would create, or say, is there already in another form.
    #[error("{0}")]
    AlreadyExists(String),
    /// The state does not allow it.
    #[error("{0}")]
    FailedPrecondition(String),
    /// Who calls may not do this.
    #[error("{0}")]
    PermissionDenied(String),
    /// The most there may be are there.
    #[error("{0}")]
    ResourceExhausted(String),
    /// A fence or a lease was lost: someone else owns it now.
    #[error("{0}")]
    Aborted(String),
    /// As much of it is there already as there may be.
    #[error("{0}")]
    Exhausted(String),
    /// Others changed the same thing again and again meanwhile. Nothing was changed by this call.
    #[error("{what} was changed by others at each of {tries} tries: try again")]
    Contended {
        /// What.
        what: String,
        /// How often it was tried.
        tries: u32,
    },
    /// Redis, or the way to it, failed. Whether a write took effect is unknown; all of them can be
    /// repeated.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// How long an event waits that met a server which was away.
const AWAY: Duration = Duration::from_millis(500);

impl CoordinationError {
    /// The same failure as a handler returns it.
    ///
    /// Not a `From`: an error of any type turns into `internal` by `?`, and this one knows better. That
    /// the server is away is no fault of the event: it spends no attempt.
    pub fn into_handler_error(self) -> HandlerError {
        let message = self.to_string();
        let code = match &self {
            CoordinationError::Invalid(_) => Code::InvalidArgument,
            CoordinationError::NotFound(_) => Code::NotFound,
            CoordinationError::AlreadyExists(_) => Code::AlreadyExists,
            CoordinationError::FailedPrecondition(_) => Code::FailedPrecondition,
            CoordinationError::PermissionDenied(_) => Code::PermissionDenied,
            CoordinationError::ResourceExhausted(_) => Code::ResourceExhausted,
            CoordinationError::Aborted(_) => Code::Aborted,
            CoordinationError::Exhausted(_) => Code::ResourceExhausted,
            CoordinationError::Contended { .. } => Code::Unavailable,
            CoordinationError::Bus(BusError::OtherEpoch) => Code::Aborted,
            CoordinationError::Bus(error) if error.reaction() == Reaction::GiveUp => Code::Internal,
            CoordinationError::Bus(_) => return HandlerError::later(AWAY, message),
        };
        HandlerError::new(code, message)
    }
}

impl From<RedisError> for CoordinationError {
    fn from(error: RedisError) -> Self {
        CoordinationError::Bus(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::error::Refusal;
    use redis::{ErrorKind, ServerErrorKind};

    #[test]
    fn a_server_that_is_away_spends_no_attempt_and_one_that_refuses_does() {
        let told = |kind: ErrorKind| {
            let error = RedisError::from((kind, "told"));
            CoordinationError::from(error).into_handler_error()
        };
        for away in [
            told(ErrorKind::Io),
            told(ErrorKind::Server(ServerErrorKind::ReadOnly)),
            told(ErrorKind::Server(ServerErrorKind::BusyLoading)),
            CoordinationError::Bus(BusError::Moved).into_handler_error(),
        ] {
            assert_eq!(away.refusal, Some(Refusal::Busy), "{away}");
            assert_eq!((away.code, away.retryable), (Code::Unavailable, true));
        }
        for refused in [
            CoordinationError::Bus(BusError::Reply { what: "TIME" }).into_handler_error(),
            CoordinationError::Bus(BusError::OtherEpoch).into_handler_error(),
            CoordinationError::Invalid("field: bad".into()).into_handler_error(),
        ] {
            assert_eq!(refused.refusal, None, "{refused}");
        }
    }
}
