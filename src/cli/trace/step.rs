//! One step of an event's story.

use crate::cli::output::span;
use convoke::ledger::fact::Fact;
use convoke::protocol::event::EntryId;
use convoke::protocol::outcome::EventOutcome;
use serde_json::{Value, json};

/// What happened, in the order in which it does where the times are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deed {
    /// The event entered its stream.
    Published,
    /// A run of it was committed.
    Ran,
    /// An operator replayed, changed or dropped it.
    Operated,
    /// The event was answered.
    Answered,
    /// The event became a dead letter.
    Died,
    /// How it stands now.
    Stands,
}

impl Deed {
    fn word(self) -> &'static str {
        match self {
            Deed::Published => "published",
            Deed::Ran => "ran",
            Deed::Operated => "operated",
            Deed::Answered => "answered",
            Deed::Died => "died",
            Deed::Stands => "stands",
        }
    }
}

/// A step of an event's story.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// When, Unix ms.
    pub(super) at: u64,
    pub(super) deed: Deed,
    /// The event's id.
    pub(super) event: String,
    pub(super) kind: Option<String>,
    /// The id of the event whose run published it.
    pub(super) cause: Option<String>,
    /// Where.
    pub(super) stream: String,
    pub(super) entry: Option<EntryId>,
    /// Who did it.
    pub(super) by: Option<String>,
    /// The whole of it, for people.
    pub(super) said: String,
}

impl Step {
    /// What happened to an event at a time, in a stream.
    pub(super) fn new(deed: Deed, at: u64, event: &str, stream: &str, said: String) -> Self {
        Self {
            at,
            deed,
            event: event.to_owned(),
            kind: None,
            cause: None,
            stream: stream.to_owned(),
            entry: None,
            by: None,
            said,
        }
    }

    /// With the entry that tells it.
    pub(super) fn entry(mut self, entry: EntryId) -> Self {
        self.entry = Some(entry);
        self
    }

    /// With who did it.
    pub(super) fn by(mut self, by: Option<String>) -> Self {
        self.by = by;
        self
    }

    /// As the ledger keeps it.
    pub(super) fn of_fact(event: &str, fact: &Fact) -> Self {
        let field = |name: &str| fact.fields[name].as_str().unwrap_or_default().to_owned();
        let entry = EntryId {
            ms: u64::try_from(fact.at).unwrap_or(0),
            seq: u64::try_from(fact.seq).unwrap_or(0),
        };
        let said = match &fact.reason {
            Some(reason) => format!("dead: {reason}: {} (ledger)", field("deadmessage")),
            None => format!("{} (ledger)", fact.kind),
        };
        Self {
            at: entry.ms,
            deed: match fact.reason {
                Some(_) => Deed::Died,
                None => Deed::Operated,
            },
            event: event.to_owned(),
            kind: Some(fact.kind.clone()),
            cause: None,
            stream: fact.stream.clone(),
            entry: Some(entry),
            by: fact.instance.clone().or_else(|| fact.source.clone()),
            said,
        }
    }

    /// The outcome of a run, as the ledger keeps it.
    pub(super) fn of_outcome(outcome: &EventOutcome) -> Self {
        let took = span(u64::try_from(outcome.took_us / 1000).unwrap_or(0));
        let mut said = format!(
            "attempt {} by {}, {took}: {}",
            outcome.attempt, outcome.instance, outcome.outcome
        );
        if let Some(code) = &outcome.code {
            let message = outcome.message.as_deref().unwrap_or_default();
            said.push_str(&format!(", {code}: {message}"));
        }
        said.push_str(" (ledger)");
        let ended = u64::try_from(outcome.ended).unwrap_or(0);
        let step = Self::new(Deed::Ran, ended, &outcome.event, &outcome.stream, said);
        Self {
            kind: Some(outcome.kind.clone()),
            cause: outcome.cause.clone(),
            ..step.entry(outcome.entry).by(Some(outcome.instance.clone()))
        }
    }

    /// The step in which an event entered its stream, as its outcome tells.
    pub(super) fn published(outcome: &EventOutcome) -> Self {
        let mut said = match outcome.attempt {
            0 | 1 => "published".to_owned(),
            attempt => format!("delivered for attempt {attempt}"),
        };
        if let Some(source) = &outcome.source {
            said.push_str(&format!(" by {source}"));
        }
        if let Some(subject) = &outcome.subject {
            said.push_str(&format!(", subject {subject}"));
        }
        said.push_str(" (ledger)");
        let (event, stream) = (&outcome.event, &outcome.stream);
        let step = Self::new(Deed::Published, outcome.entry.ms, event, stream, said);
        Self {
            kind: Some(outcome.kind.clone()),
            cause: outcome.cause.clone(),
            ..step.entry(outcome.entry).by(outcome.source.clone())
        }
    }

    /// Where it is told.
    pub(super) fn place(&self) -> (String, Option<EntryId>) {
        (self.stream.clone(), self.entry)
    }

    /// As JSON.
    pub(super) fn described(&self) -> Value {
        json!({
            "at": self.at,
            "event": self.event,
            "type": self.kind,
            "step": self.deed.word(),
            "by": self.by,
            "stream": self.stream,
            "entry": self.entry.map(|entry| entry.to_string()),
            "said": self.said,
            "cause": self.cause,
        })
    }
}
