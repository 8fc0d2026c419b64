//! What became of a run.

use crate::handler::function::Encoded;
use crate::protocol::error::HandlerError;
use crate::protocol::mismatch::mismatch;
use crate::protocol::progress::Progress;
use crate::streams::commit::{self, Publication, Settlement};
use serde::de::DeserializeOwned;
use std::any::type_name;

/// What a worker would do with the event after the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The event is done: acknowledged, answered, and what it published is stored.
    Done,
    /// The event runs again after a wait, as the next attempt.
    Retried,
    /// The event runs again after a wait, and no attempt is spent.
    Postponed,
    /// The event does not run again: whoever asked is told, and where nobody asked it is a dead letter.
    Failed,
}

/// A run of a handler that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    result: Result<Encoded, HandlerError>,
    outcome: Outcome,
    published: Vec<Publication>,
    progress: Vec<Progress>,
}

impl Ended {
    pub(super) fn new(
        result: Result<Encoded, HandlerError>,
        settlement: Settlement,
        progress: Vec<Progress>,
    ) -> Self {
        let refused = result.as_ref().is_err_and(|error| error.refusal.is_some());
        let outcome = match settlement.disposition {
            commit::Disposition::Done => Outcome::Done,
            commit::Disposition::Later { .. } if refused => Outcome::Postponed,
            commit::Disposition::Later { .. } => Outcome::Retried,
            commit::Disposition::Told(_) | commit::Disposition::Dead(_) => Outcome::Failed,
        };
        Self {
            result,
            outcome,
            published: settlement.publications,
            progress,
        }
    }

    /// What the handler returned.
    ///
    /// # Errors
    /// Its own.
    ///
    /// # Panics
    /// If the result is no `T`.
    #[track_caller]
    pub fn result<T: DeserializeOwned>(&self) -> Result<T, HandlerError> {
        match &self.result {
            Ok(data) => Ok(decoded("the result", data)),
            Err(error) => Err(error.clone()),
        }
    }

    /// How the handler failed, if it did.
    pub fn error(&self) -> Option<&HandlerError> {
        self.result.as_ref().err()
    }

    /// What a worker would do with the event.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Each progress that the handler reported, in order. A requester sees fewer where they come fast.
    pub fn progress(&self) -> &[Progress] {
        &self.progress
    }

    /// The payloads of the events of that type that are published with the outcome, in order: none if the
    /// run failed.
    ///
    /// # Panics
    /// If a payload is no `T`.
    #[track_caller]
    pub fn published<T: DeserializeOwned>(&self, kind: &str) -> Vec<T> {
        let mut payloads = Vec::new();
        for publication in &self.published {
            if field(publication, "type") == kind.as_bytes() {
                payloads.push(decoded(kind, field(publication, "data")));
            }
        }
        payloads
    }

    /// The types of all events that are published with the outcome, in order.
    pub fn kinds(&self) -> Vec<&str> {
        let kinds = self.published.iter();
        let kinds = kinds.map(|publication| field(publication, "type"));
        kinds.filter_map(|kind| str::from_utf8(kind).ok()).collect()
    }
}

/// The value of a field; empty if it has none of that name.
fn field<'a>(publication: &'a Publication, name: &str) -> &'a [u8] {
    let mut pairs = publication.fields.chunks_exact(2);
    let found = pairs.find(|pair| pair[0] == name.as_bytes());
    found.map_or(&[], |pair| &pair[1])
}

#[track_caller]
fn decoded<T: DeserializeOwned>(what: &str, data: &[u8]) -> T {
    match rmp_serde::from_slice(data) {
        Ok(value) => value,
        Err(_) => {
            let shown = rmp_serde::from_slice::<rmpv::Value>(data);
            let shown = shown.map_or_else(|error| error.to_string(), |value| value.to_string());
            let wrong = mismatch::<T>(data);
            panic!("{what} is no {}: {wrong}: {shown}", type_name::<T>())
        }
    }
}
