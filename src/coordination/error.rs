//! Why a shared rule did not give what was asked of it.

use crate::bus::error::{BusError, Reaction};
use crate::error::{Code, HandlerError};
use redis::RedisError;

/// A call that failed.
#[derive(Debug, thiserror::Error)]
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
    /// A fence or a lease was lost: someone else owns it now.
    #[error("{0}")]
    Aborted(String),
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

impl CoordinationError {
    /// The same failure as a handler returns it.
    ///
    /// Not a `From`: an error of any type turns into `internal` by `?`, and this one knows better.
    pub fn into_handler_error(self) -> HandlerError {
        let code = match &self {
            CoordinationError::Invalid(_) => Code::InvalidArgument,
            CoordinationError::NotFound(_) => Code::NotFound,
            CoordinationError::AlreadyExists(_) => Code::AlreadyExists,
            CoordinationError::FailedPrecondition(_) => Code::FailedPrecondition,
            CoordinationError::Aborted(_) => Code::Aborted,
            CoordinationError::Contended { .. } => Code::Unavailable,
            CoordinationError::Bus(BusError::OtherHistory) => Code::Aborted,
            CoordinationError::Bus(error) if error.reaction() == Reaction::GiveUp => Code::Internal,
            CoordinationError::Bus(_) => Code::Unavailable,
        };
        HandlerError::new(code, self.to_string())
    }
}

impl From<RedisError> for CoordinationError {
    fn from(error: RedisError) -> Self {
        CoordinationError::Bus(error.into())
    }
}
