//! In which pattern each system event is answered, by all instances of a namespace.
//!
//! A choice is on the bus (a versioned document for each event) and is told by the fact
//! `pattern.changed`. Where the bus says nothing, each instance's own setting does. Instances hold the choice in
//! memory: they read it when they start, with each of their pulses, and at the fact. So for a moment after a
//! change two of them may answer in two patterns; each answer is right in any of them.

use super::answered::Answered;
use super::bounds::invalid;
use super::error::CoordinationError;
use super::metrics::HandlerSums;
use super::scripts::VERSION;
use super::store::Store;
use crate::connect::connector::Connector;
use crate::connect::script::script_with;
use crate::mutex::locked;
use crate::protocol::event::Entry;
use crate::protocol::keys::Keys;
use crate::protocol::pattern::{self, Pattern, Patterned};
use redis::Script;
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

static SET: LazyLock<Script> =
    LazyLock::new(|| script_with(&[VERSION], include_str!("set_pattern.lua")));

/// Bytes of the name of who chose.
const MAX_BY: usize = 256;

/// The patterns of one namespace, as one process knows them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PatternStore {
    store: Store,
    settings: pattern::Patterns,
    held: Arc<Held>,
}

#[derive(Debug, Default)]
struct Held {
    chosen: Mutex<Option<pattern::Patterns>>,
    answered: Answered,
    told: Notify,
}

/// What the bus says of one event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Choice {
    /// The pattern; empty: the choice was taken back.
    pub pattern: String,
    /// Rises with each change.
    pub version: u64,
    /// Who chose.
    pub by: String,
    /// When, in Unix ms on the server.
    pub at: u64,
}

/// How one event is answered here, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The event.
    pub event: Patterned,
    /// Its pattern.
    pub pattern: Pattern,
    /// What the bus says; `None`: nothing, so the setting counts.
    pub choice: Option<Choice>,
}

impl Chosen {
    /// Whether the bus says so.
    pub fn is_chosen(&self) -> bool {
        let choice = self.choice.as_ref();
        choice.is_some_and(|choice| choice.pattern == self.pattern.as_str())
    }
}

impl PatternStore {
    /// The patterns of the namespace of `keys`, by the settings where the bus says nothing.
    pub fn new(connector: Connector, keys: Keys, settings: pattern::Patterns) -> Self {
        Self {
            store: Store::new(connector, keys),
            settings,
            held: Arc::default(),
        }
    }

    /// In which pattern that event is answered, as far as this process knows.
    pub fn of(&self, event: Patterned) -> Pattern {
        self.all().of(event)
    }

    /// The patterns of all events, as far as this process knows.
    pub fn all(&self) -> pattern::Patterns {
        locked(&self.held.chosen).unwrap_or(self.settings)
    }

    /// Counts an answer that was begun then in that pattern. `age` says how old the oldest part of it is, where it
    /// has an age.
    pub fn answered<T, E>(
        &self,
        of: (Patterned, Pattern),
        began: Instant,
        answer: &Result<T, E>,
        age: impl FnOnce(&T) -> Option<Duration>,
    ) {
        let aged = answer.as_ref().ok().and_then(age);
        let failed = answer.is_err();
        self.held.answered.note(of, began.elapsed(), failed, aged);
    }

    /// What was answered by this process so far, as it is reported.
    pub fn sums(&self) -> Vec<(String, HandlerSums)> {
        self.held.answered.sums()
    }

    /// Reads what the bus says.
    ///
    /// # Errors
    /// `Bus`. What was known before stays.
    pub async fn refresh(&self) -> Result<(), CoordinationError> {
        self.list().await.map(drop)
    }

    /// Reads what the bus says, and tells how each event is answered here.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn list(&self) -> Result<Vec<Chosen>, CoordinationError> {
        let mut read = redis::pipe();
        read.cmd("HGETALL").arg(self.store.keys.chosen_patterns());
        let (said,): (HashMap<String, Vec<u8>>,) = self.store.ask(&read).await?;
        let chosen = Patterned::ALL.map(|event| {
            let choice = said.get(event.as_str());
            let choice: Option<Choice> = choice.and_then(|said| rmp_serde::from_slice(said).ok());
            // A later version may know patterns that this one does not.
            let pattern = choice
                .as_ref()
                .and_then(|choice| event.pattern(&choice.pattern).ok());
            Chosen {
                event,
                pattern: pattern.unwrap_or(self.settings.of(event)),
                choice,
            }
        });
        let mut patterns = self.settings;
        for one in &chosen {
            patterns.set(one.event, one.pattern);
        }
        *locked(&self.held.chosen) = Some(patterns);
        Ok(chosen.into())
    }

    /// Chooses the pattern of an event for all instances, or takes the choice back: then each one's setting
    /// counts. Returns the version of the choice.
    ///
    /// # Errors
    /// `Invalid` for a pattern that there is not; `Aborted` where `version` is not the present one; `Bus` else,
    /// and the call can be repeated.
    pub async fn choose(
        &self,
        event: Patterned,
        pattern: Option<Pattern>,
        version: Option<u64>,
        by: &str,
    ) -> Result<u64, CoordinationError> {
        if let Some(pattern) = pattern {
            event
                .check(pattern)
                .map_err(|problem| invalid(format!("pattern: {problem}")))?;
        }
        let keys = &self.store.keys;
        let mut call = SET.prepare_invoke();
        call.key(keys.chosen_patterns())
            .key(keys.broadcast())
            .key(keys.state())
            .arg(event.as_str())
            .arg(pattern.map_or("", Pattern::as_str))
            .arg(&by[..by.floor_char_boundary(MAX_BY)])
            .arg(version.map_or_else(String::new, |version| version.to_string()));
        let (done, is): (bool, u64) = self.store.invoke(&call).await?;
        if !done {
            let message =
                format!("version: {event} is at version {is}: somebody else chose meanwhile");
            return Err(CoordinationError::Aborted(message));
        }
        self.told();
        Ok(is)
    }

    /// Somebody chose: who waits for that reads it.
    pub fn told(&self) {
        self.held.told.notify_one();
    }

    /// Is ready when somebody chose since the last time. For one who waits at a time.
    pub async fn changed(&self) {
        self.held.told.notified().await;
    }
}

/// Whether a fact is one of a choice.
pub fn is_choice(fact: &Entry) -> bool {
    fact.get("type") == Some(b"pattern.changed")
}
