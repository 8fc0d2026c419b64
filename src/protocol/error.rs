//! The error codes of the protocol and the error that a handler returns.
//!
//! The [names](crate::docs::protocol#error-codes) are gRPC's status codes in snake case. An error that crosses the bus uses
//! these codes and no others.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::time::Duration;

/// The longest error message, in bytes, that is put on the bus; a longer one is cut.
pub const MAX_MESSAGE: usize = 1024;

/// An error code of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// Malformed MessagePack, a wrong or missing field, a payload over the limit.
    InvalidArgument,
    /// No worker in the group has a handler for the type.
    Unimplemented,
    /// What the event names does not exist.
    NotFound,
    /// What the event would create exists already.
    AlreadyExists,
    /// The state does not allow it.
    FailedPrecondition,
    /// The source may not do this.
    PermissionDenied,
    /// A fence or lease was lost: someone else owns it now.
    Aborted,
    /// The rate limit of the handler for this source.
    ResourceExhausted,
    /// The handler's circuit is open, or a service it needs is down.
    Unavailable,
    /// The event's deadline or the handler's timeout passed.
    DeadlineExceeded,
    /// The handler failed or panicked.
    Internal,
    /// Somebody cancelled the event.
    Cancelled,
}

impl Code {
    /// Every code, in the protocol's order.
    pub const ALL: [Code; 12] = [
        Code::InvalidArgument,
        Code::Unimplemented,
        Code::NotFound,
        Code::AlreadyExists,
        Code::FailedPrecondition,
        Code::PermissionDenied,
        Code::Aborted,
        Code::ResourceExhausted,
        Code::Unavailable,
        Code::DeadlineExceeded,
        Code::Internal,
        Code::Cancelled,
    ];

    /// The name on the bus.
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::InvalidArgument => "invalid_argument",
            Code::Unimplemented => "unimplemented",
            Code::NotFound => "not_found",
            Code::AlreadyExists => "already_exists",
            Code::FailedPrecondition => "failed_precondition",
            Code::PermissionDenied => "permission_denied",
            Code::Aborted => "aborted",
            Code::ResourceExhausted => "resource_exhausted",
            Code::Unavailable => "unavailable",
            Code::DeadlineExceeded => "deadline_exceeded",
            Code::Internal => "internal",
            Code::Cancelled => "cancelled",
        }
    }

    /// The code of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Code> {
        Self::ALL.into_iter().find(|code| code.as_str() == name)
    }

    /// Whether the bus retries an event that failed so, unless the handler says otherwise.
    ///
    /// A handler's timeout is retried, an event's own deadline is not: the layer that notices
    /// either says which.
    pub const fn retryable(self) -> bool {
        matches!(
            self,
            Code::Unavailable | Code::DeadlineExceeded | Code::Internal
        )
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a layer did not run the handler at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Its circuit is open.
    CircuitOpen,
    /// Its rate limit for this source.
    RateLimited,
    /// An operator paused its type, its domain or its subject.
    Paused,
    /// No place is free for it on this instance now. It runs later, here or elsewhere, and a requester
    /// waits.
    Busy,
}

/// How a handler failed: a code that a requester can match and a message that a person can act on.
///
/// Any error becomes a [`Code::Internal`] by `?`, also that of `anyhow`, and so does a string: with the chain
/// of its sources as the message; it is retried.
///
/// ```
/// use convoke::{Context, HandlerError};
///
/// async fn count(_: Context, text: String) -> Result<u64, HandlerError> {
///     if text.is_empty() {
///         return Err(HandlerError::invalid_argument("text: empty"));
///     }
///     Ok(text.parse()?)
/// }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct HandlerError {
    /// What kind of failure.
    pub code: Code,
    /// What happened, with which value, and what to do. At most 1,024 bytes reach the bus.
    pub message: Cow<'static, str>,
    /// Whether trying again may help.
    pub retryable: bool,
    /// More for a program to read.
    pub details: Option<rmpv::Value>,
    /// Set by a layer that refused to run the handler: a request is answered at once, an event that
    /// nobody waits for runs later, and no attempt is spent.
    pub refusal: Option<Refusal>,
    /// The earliest time at which trying again may help.
    pub retry_after: Option<Duration>,
    /// The event is to be left for another active instance; the failure holds if none can have it.
    pub(crate) elsewhere: Option<Elsewhere>,
}

/// Which instance an event is left for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "worker"), allow(dead_code))]
pub(crate) enum Elsewhere {
    /// Any other one that has a handler for this type too.
    Handles(Box<str>),
    /// The one of that id.
    Instance(Box<str>),
}

impl HandlerError {
    /// A failure of that code, retryable as the code is.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            retryable: code.retryable(),
            details: None,
            refusal: None,
            retry_after: None,
            elsewhere: None,
        }
    }

    /// The event is not what the handler takes; the message names the field.
    pub fn invalid_argument(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// What the event names does not exist.
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// What the event would create exists already.
    pub fn already_exists(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::AlreadyExists, message)
    }

    /// The state does not allow it.
    pub fn failed_precondition(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }

    /// A fence or lease was lost.
    pub fn aborted(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Aborted, message)
    }

    /// A service that the handler needs is down; the event is tried again.
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// The handler failed; the event is tried again.
    pub fn internal(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// Not now: the event runs after about that time at the earliest, here or elsewhere, a request as
    /// well, and no attempt is spent. For what a handler cannot begin yet; a failure is better retried by the
    /// policy, which counts.
    pub fn later(wait: Duration, why: impl Into<Cow<'static, str>>) -> Self {
        Self {
            refusal: Some(Refusal::Busy),
            retry_after: Some(wait),
            ..Self::unavailable(why)
        }
    }

    /// The same failure, not to be tried again.
    #[must_use]
    pub fn permanent(mut self) -> Self {
        self.retryable = false;
        self
    }

    /// The same failure, if no other active instance has a handler for that type too: else the event
    /// is handed to one that has.
    #[must_use]
    #[cfg(feature = "worker")]
    pub(crate) fn elsewhere(mut self, kind: &str) -> Self {
        self.elsewhere = Some(Elsewhere::Handles(kind.into()));
        self
    }

    /// The same failure, if that instance cannot have the event: else it is handed to it.
    #[must_use]
    #[cfg(feature = "worker")]
    pub(crate) fn with(mut self, instance: &str) -> Self {
        self.elsewhere = Some(Elsewhere::Instance(instance.into()));
        self
    }

    /// The same failure with details for a program to read.
    #[must_use]
    pub fn with_details(mut self, details: rmpv::Value) -> Self {
        self.details = Some(details);
        self
    }

    /// The message, cut at a character boundary to 1,024 bytes.
    pub fn bounded_message(&self) -> &str {
        let mut end = self.message.len().min(MAX_MESSAGE);
        while !self.message.is_char_boundary(end) {
            end -= 1;
        }
        &self.message[..end]
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let error: Box<dyn Error + Send + Sync> = error.into();
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::internal(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_codes_map_both_ways() {
        for code in Code::ALL {
            assert_eq!(Code::from_name(code.as_str()), Some(code));
        }
        assert_eq!(Code::from_name("ok"), None);
    }

    #[test]
    fn any_error_is_internal_and_says_why_it_came() {
        let read = || -> Result<(), HandlerError> {
            let inner = std::io::Error::other("no disk");
            Err(anyhow::Error::new(inner).context("reading a.txt"))?
        };
        let error = read().unwrap_err();
        assert_eq!((error.code, error.retryable), (Code::Internal, true));
        assert_eq!(error.message, "reading a.txt: no disk");
        let parsed = || -> Result<u8, HandlerError> { Ok("x".parse()?) };
        assert!(parsed().unwrap_err().message.contains("invalid digit"));
        assert_eq!(HandlerError::from("as it is").message, "as it is");
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let error = HandlerError::internal("é".repeat(MAX_MESSAGE));
        assert_eq!(error.bounded_message().len(), MAX_MESSAGE);
        let odd = HandlerError::internal(format!("x{}", "é".repeat(MAX_MESSAGE)));
        assert_eq!(odd.bounded_message().len(), MAX_MESSAGE - 1);
    }
}
