//! What a publisher knows of its event afterwards: stored, rejected or unknown.

use crate::connect::error::BusError;
use crate::connect::loaded::ADVICE;
use crate::connect::resp::wire::{Token, Tokens, server_error};
use crate::protocol::event::EntryId;
use crate::streams::made::{GONE, NO_STREAM};
use redis::{RedisError, Value};
use std::fmt;

/// Where a published event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// On its stream.
    Stored {
        /// Its entry id.
        entry: EntryId,
        /// Whether an earlier publish of the same id stored it (it may be an earlier try of this one).
        duplicate: bool,
    },
    /// In the delay queue.
    Scheduled {
        /// When it is due, Unix ms by the server's clock.
        due_ms: u64,
        /// Whether an earlier publish of the same id scheduled it.
        duplicate: bool,
    },
}

impl Published {
    /// The entry id; none if the event waits in the delay queue.
    pub fn entry(&self) -> Option<EntryId> {
        match *self {
            Published::Stored { entry, .. } => Some(entry),
            Published::Scheduled { .. } => None,
        }
    }

    /// Whether an earlier publish of the same id stored it.
    pub fn is_duplicate(&self) -> bool {
        match *self {
            Published::Stored { duplicate, .. } | Published::Scheduled { duplicate, .. } => {
                duplicate
            }
        }
    }
}

/// Why an event is not known to be stored.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Certainly not stored.
    #[error("not stored: {reason}")]
    Rejected {
        /// Why, and with which field or error code.
        reason: String,
        /// The server's error code, such as `OOM`, if it was the server that refused.
        code: Option<String>,
        /// Whether the event itself is at fault, so that it would be refused again.
        lasting: bool,
    },
    /// May be stored. Only an event with an id and `dedup` can be published again safely.
    #[error("may be stored{}: {source}", id_in_brackets(.id))]
    Unknown {
        /// The event's id, if it was given one.
        id: Option<String>,
        /// What is missing.
        source: Doubt,
    },
}

/// Why nobody knows whether an event is stored for good.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Doubt {
    /// No reply came, or none that makes sense.
    #[error("no answer: {0}")]
    NoAnswer(#[source] BusError),
    /// The event is stored, but fewer replicas confirmed it than were asked for.
    #[error("stored, but confirmed by {confirmed} of {wanted} replicas in time")]
    Unconfirmed {
        /// Where it is.
        published: Published,
        /// Replicas that have it for sure.
        confirmed: u32,
        /// Replicas that were asked for.
        wanted: u32,
    },
    /// The event is stored, and the server cannot tell how many replicas have it.
    #[error("stored, but it cannot be confirmed here, the server refuses WAIT: {reason}")]
    NoConfirmation {
        /// Where it is.
        published: Published,
        /// What the server said.
        reason: String,
    },
}

fn id_in_brackets(id: &Option<String>) -> String {
    id.as_ref().map_or(String::new(), |id| format!(" ({id:?})"))
}

impl PublishError {
    /// The event cannot be published as it is.
    pub(crate) fn rejected(reason: impl fmt::Display) -> Self {
        PublishError::Rejected {
            reason: reason.to_string(),
            code: None,
            lasting: true,
        }
    }

    /// A refusal since there is no connection to send the event on.
    pub(crate) fn unsent(reason: impl fmt::Display) -> Self {
        PublishError::Rejected {
            reason: reason.to_string(),
            code: None,
            lasting: false,
        }
    }

    /// After the command was sent. An error reply means that it did not run.
    pub(crate) fn after_sending(error: RedisError, id: &Option<String>) -> Self {
        match error.code() {
            Some("NOSCRIPT") => PublishError::no_script(),
            Some(NO_STREAM) => PublishError::gone(),
            Some(code) => PublishError::Rejected {
                reason: error.to_string(),
                code: Some(code.to_owned()),
                lasting: false,
            },
            None => PublishError::no_answer(error.into(), id),
        }
    }

    /// The server lacks the script, and this user may not load it.
    pub(crate) fn no_script() -> Self {
        PublishError::Rejected {
            reason: format!("delay, at, dedup: {ADVICE}"),
            code: Some("NOSCRIPT".into()),
            lasting: false,
        }
    }

    /// The stream was made once, and is not there: one that is made now would hide it.
    pub(crate) fn gone() -> Self {
        PublishError::Rejected {
            reason: GONE.to_owned(),
            code: Some(NO_STREAM.into()),
            lasting: false,
        }
    }

    pub(crate) fn no_answer(error: BusError, id: &Option<String>) -> Self {
        PublishError::Unknown {
            id: id.clone(),
            source: Doubt::NoAnswer(error),
        }
    }
}

/// What a server said to a command that stores an event.
pub(crate) enum Answer<'a> {
    /// Where the event is: an entry id or a due time.
    Stored(&'a [u8]),
    /// The same from [`PUBLISH`], whether it is a duplicate, and whether something was written.
    Scripted(&'a [u8], bool, bool),
    Refused(RedisError),
    /// Not stored: the stream was made once, and is not there.
    Gone,
    Unclear,
}

impl<'a> From<&'a Value> for Answer<'a> {
    fn from(reply: &'a Value) -> Self {
        match reply {
            Value::ServerError(error) => Answer::Refused(error.clone().into()),
            Value::BulkString(place) => Answer::Stored(place),
            Value::Nil => Answer::Gone,
            Value::Array(parts) => match parts.as_slice() {
                [
                    Value::BulkString(place),
                    Value::Int(duplicate),
                    Value::Int(renewed),
                ] => Answer::Scripted(place, *duplicate == 1, *renewed == 1),
                _ => Answer::Unclear,
            },
            _ => Answer::Unclear,
        }
    }
}

impl<'a> From<Tokens<'a>> for Answer<'a> {
    fn from(mut reply: Tokens<'a>) -> Self {
        match reply.token() {
            Ok(Token::Error(text)) => match server_error(text) {
                BusError::Redis(error) => Answer::Refused(error),
                _ => Answer::Unclear,
            },
            Ok(Token::Bulk(place)) => Answer::Stored(place),
            Ok(Token::Nil) => Answer::Gone,
            Ok(Token::Array(3)) => match (reply.token(), reply.token(), reply.token()) {
                (Ok(Token::Bulk(place)), Ok(Token::Int(duplicate)), Ok(Token::Int(renewed))) => {
                    Answer::Scripted(place, duplicate == 1, renewed == 1)
                }
                _ => Answer::Unclear,
            },
            _ => Answer::Unclear,
        }
    }
}

impl Answer<'_> {
    /// Where the event is, and whether what `WAIT` confirms next includes it.
    pub(crate) fn published(self, id: &Option<String>) -> Result<(Published, bool), PublishError> {
        let (place, duplicate, covered) = match self {
            Answer::Stored(place) => (place, false, true),
            Answer::Scripted(place, duplicate, renewed) => (place, duplicate, renewed),
            Answer::Refused(error) => return Err(PublishError::after_sending(error, id)),
            Answer::Gone => return Err(PublishError::gone()),
            Answer::Unclear => return Err(unclear(id)),
        };
        if let Some(entry) = EntryId::parse(place).filter(|_| place.contains(&b'-')) {
            return Ok((Published::Stored { entry, duplicate }, covered));
        }
        let due = std::str::from_utf8(place).ok().and_then(|p| p.parse().ok());
        let due_ms = due.ok_or_else(|| unclear(id))?;
        Ok((Published::Scheduled { due_ms, duplicate }, covered))
    }
}

fn unclear(id: &Option<String>) -> PublishError {
    PublishError::no_answer(BusError::Reply { what: "publish" }, id)
}
