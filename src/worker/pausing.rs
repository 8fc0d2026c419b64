//! Which of a worker's events are paused, or may have to wait behind what is: what the lanes look up before they begin
//! one.
//!
//! Of each handler two things are known without asking: whether a document names its events, and whether some of them
//! may be parked, or were released and are not begun. Where neither is so, that is one comparison. The keeper brings
//! the documents, and looks whether anything is parked.

use crate::connect::clock::NEVER;
use crate::coordination::policies::{Documents, Paused, Policies};
use crate::handler::router::Router;
use crate::mutex::locked;
use crate::protocol::error::{Code, HandlerError, Refusal};
use crate::protocol::keys;
use crate::streams::park::{How, Weighed};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A document names events of the handler.
const NAMED: u8 = 1;
/// Some of its events may wait.
const WAIT: u8 = 2;
/// How many numbers the subjects of a handler share.
const NUMBERS: usize = 64;

/// See the module. One for all lanes of a worker.
#[derive(Debug)]
pub(super) struct Pausing {
    policies: Policies,
    /// By the handler's index.
    handlers: Vec<Handler>,
    changes: AtomicU64,
}

#[derive(Debug)]
struct Handler {
    kind: String,
    /// [`NAMED`], [`WAIT`].
    flags: AtomicU8,
    asked: Mutex<Asked>,
}

/// What was asked to be weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    /// Events that are being weighed.
    now: u64,
    /// Rises with each that is parked, or will be.
    parked: u64,
    /// The same by subject: those of one share a number with few others.
    by_subject: [u32; NUMBERS],
}

impl Asked {
    fn is_parked(&mut self, subject: Option<&str>) {
        self.parked += 1;
        if let Some(subject) = subject {
            let number = &mut self.by_subject[number_of(subject)];
            *number = number.wrapping_add(1);
        }
    }

    fn of(&self, subject: &str) -> u32 {
        self.by_subject[number_of(subject)]
    }
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            now: 0,
            parked: 0,
            by_subject: [0; NUMBERS],
        }
    }
}

fn number_of(subject: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    subject.hash(&mut hasher);
    hasher.finish() as usize % NUMBERS
}

impl Pausing {
    pub(super) fn new(policies: Policies, router: &Router) -> Self {
        let mut kinds: Vec<(usize, String)> = router
            .routes()
            .map(|route| (route.index, route.kind.clone()))
            .collect();
        kinds.sort_unstable();
        let handlers = kinds.into_iter().map(|(_, kind)| {
            // Until somebody has looked.
            let may_wait = !keys::is_control(keys::domain_of(&kind));
            Handler {
                kind,
                flags: AtomicU8::new(if may_wait { WAIT } else { 0 }),
                asked: Mutex::default(),
            }
        });
        Self {
            policies,
            handlers: handlers.collect(),
            changes: AtomicU64::new(0),
        }
    }

    /// Whether anything is to be looked up before an event of that handler begins.
    pub(super) fn concerns(&self, handler: usize) -> bool {
        self.handlers[handler].flags.load(Ordering::Relaxed) != 0
    }

    /// How an event of that handler is paused at that time.
    pub(super) fn how(
        &self,
        handler: usize,
        subject: Option<&str>,
        now: u64,
    ) -> Option<(How, Paused)> {
        let handler = &self.handlers[handler];
        if handler.flags.load(Ordering::Relaxed) & NAMED == 0 {
            return None;
        }
        self.how_of(&handler.kind, subject, now)
    }

    /// The same of an event of any type, whether or not it has a handler here.
    pub(super) fn how_of(
        &self,
        kind: &str,
        subject: Option<&str>,
        now: u64,
    ) -> Option<(How, Paused)> {
        let (held, domain) = (self.policies.held(), keys::domain_of(kind));
        let of_subject = subject.and_then(|subject| held.pause_of_subject(domain, subject, now));
        match of_subject {
            Some(paused) => Some((How::Subject, paused)),
            None => Some((How::Type, held.pause_of_type(kind, domain, now)?)),
        }
    }

    /// Whether an event with a subject may have to wait behind others of that, though it is not paused; `weighed` says
    /// as of when it need not.
    pub(super) fn may_be_behind(
        &self,
        handler: usize,
        subject: &str,
        weighed: Option<u32>,
    ) -> bool {
        let handler = &self.handlers[handler];
        handler.flags.load(Ordering::Relaxed) & WAIT != 0
            && weighed != Some(locked(&handler.asked).of(subject))
    }

    /// Notes that an event is being weighed; as of when the answer holds.
    pub(super) fn asks(&self, handler: usize, subject: Option<&str>, is_paused: bool) -> u32 {
        let handler = &self.handlers[handler];
        let mut asked = locked(&handler.asked);
        asked.now += 1;
        if is_paused {
            asked.is_parked(subject);
        }
        handler.flags.fetch_or(WAIT, Ordering::Relaxed);
        asked.of(subject.unwrap_or_default())
    }

    /// Notes the answer.
    pub(super) fn answered(&self, handler: usize, subject: Option<&str>, weighed: Option<Weighed>) {
        let mut asked = locked(&self.handlers[handler].asked);
        asked.now -= 1;
        if weighed != Some(Weighed::May) {
            asked.is_parked(subject);
        }
    }

    /// How often the documents changed.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Notes that the documents changed, or that a pause has ended by itself.
    pub(super) fn changed(&self) {
        let held = self.policies.held();
        for handler in &self.handlers {
            let names = held.names(&handler.kind, keys::domain_of(&handler.kind));
            // Others may have parked some of its events: until somebody has looked.
            if names || handler.flags.load(Ordering::Relaxed) & NAMED != 0 {
                handler.flags.fetch_or(WAIT, Ordering::Relaxed);
            }
            match names {
                true => handler.flags.fetch_or(NAMED, Ordering::Relaxed),
                false => handler.flags.fetch_and(!NAMED, Ordering::Relaxed),
            };
        }
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Another worker read a partition until now that is this one's from here on, and may have parked something there:
    /// until somebody has looked.
    pub(super) fn begins_another(&self) {
        for handler in &self.handlers {
            if !keys::is_control(keys::domain_of(&handler.kind)) {
                // Whoever looks just now did not look there.
                locked(&handler.asked).parked += 1;
                handler.flags.fetch_or(WAIT, Ordering::Relaxed);
            }
        }
    }

    /// The documents.
    pub(super) fn held(&self) -> Arc<Documents> {
        self.policies.held()
    }

    /// What was asked before somebody looks.
    pub(super) fn before_a_look(&self) -> Look {
        let asked = self.handlers.iter().map(|handler| *locked(&handler.asked));
        Look(asked.collect())
    }

    /// Notes of which types something waits, as somebody found who looked.
    pub(super) fn looked(&self, before: &Look, waits: &HashSet<String>) {
        for (handler, before) in self.handlers.iter().zip(&before.0) {
            let asked = locked(&handler.asked);
            if waits.contains(&handler.kind) {
                handler.flags.fetch_or(WAIT, Ordering::Relaxed);
            } else if asked.now == 0 && *asked == *before {
                handler.flags.fetch_and(!WAIT, Ordering::Relaxed);
            }
        }
    }
}

/// What whoever asks for an event is told while that is paused.
pub(super) fn refusal(paused: &Paused, now: u64) -> HandlerError {
    let mut error = HandlerError::new(Code::Unavailable, paused.reason());
    error.refusal = Some(Refusal::Paused);
    let left = paused.pause.until.map(|until| until.saturating_sub(now));
    error.retry_after = left.map(|ms| Duration::from_millis(ms).min(NEVER));
    error
}

/// The same while others of its subject, which were paused, run first.
pub(super) fn behind() -> HandlerError {
    let why = "events of its subject were paused and run first: ask again later";
    let mut error = HandlerError::new(Code::Unavailable, why);
    error.refusal = Some(Refusal::Paused);
    error.retry_after = Some(SOON);
    error
}

/// When to ask again for what is behind others.
const SOON: Duration = Duration::from_secs(1);

/// See [`Pausing::before_a_look`].
pub(super) struct Look(Vec<Asked>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::connector::Connector;
    use crate::protocol::keys::Keys;
    use crate::settings::RedisUrl;

    #[test]
    fn what_was_named_may_wait_until_somebody_has_looked() {
        let connector = Connector::new(&RedisUrl::new("redis://127.0.0.1:1"), 1).unwrap();
        let handler = Handler {
            kind: "mail.send".to_owned(),
            flags: AtomicU8::new(NAMED),
            asked: Mutex::default(),
        };
        let pausing = Pausing {
            policies: Policies::new(connector, Keys::new("cb").unwrap()),
            handlers: vec![handler],
            changes: AtomicU64::new(0),
        };
        // The pause is over, and another worker has parked some.
        pausing.changed();
        assert!(pausing.may_be_behind(0, "s", None));
        let look = pausing.before_a_look();
        pausing.looked(&look, &HashSet::new());
        assert!(!pausing.concerns(0));
    }
}
