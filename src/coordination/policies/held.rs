//! The documents as one process holds them, so that an event is looked up without asking anybody.

use super::{Document, Pause, RunLimits, Scope};
use std::collections::HashMap;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    version: u64,
    types: HashMap<String, Document>,
    domains: HashMap<String, Document>,
    subjects: HashMap<String, HashMap<String, Document>>,
}

/// A pause that an event is under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paused {
    /// What is paused.
    pub scope: Scope,
    /// The pause.
    pub pause: Pause,
}

impl Paused {
    /// What a requester is told.
    pub fn reason(&self) -> String {
        match self.pause.reason.as_str() {
            "" => format!("{} is paused", self.scope),
            reason => format!("{} is paused: {reason}", self.scope),
        }
    }
}

impl Documents {
    pub(super) fn of(version: u64, all: Vec<(Scope, Document)>) -> Self {
        let mut held = Self {
            version,
            ..Self::default()
        };
        for (scope, document) in all {
            match scope {
                Scope::Type(kind) => held.types.insert(kind, document),
                Scope::Domain(domain) => held.domains.insert(domain, document),
                Scope::Subject { domain, subject } => held
                    .subjects
                    .entry(domain)
                    .or_default()
                    .insert(subject, document),
            };
        }
        held
    }

    /// As of which change it is.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether anything is paused at that time.
    pub fn has_pauses(&self, now: u64) -> bool {
        let subjects = self.subjects.values().flat_map(HashMap::values);
        let mut all = self
            .types
            .values()
            .chain(self.domains.values())
            .chain(subjects);
        all.any(|document| document.pause.as_ref().is_some_and(|one| one.lasts(now)))
    }

    /// Whether a document pauses events of that type, or some of them, or did until its time passed.
    pub fn names(&self, kind: &str, domain: &str) -> bool {
        let pauses = |document: &Document| document.pause.is_some();
        self.types.get(kind).is_some_and(pauses)
            || self.domains.get(domain).is_some_and(pauses)
            || self.subjects.contains_key(domain)
    }

    /// What holds for the runs of that type, in the place of its handler's own policy.
    pub fn limits_of(&self, kind: &str, domain: &str) -> RunLimits {
        let limits = |document: Option<&Document>| {
            document.map_or_else(RunLimits::default, |one| one.limits)
        };
        limits(self.types.get(kind)).or(limits(self.domains.get(domain)))
    }

    /// Whether all events of that type are paused at that time (Unix ms on the server), and by what.
    pub fn pause_of_type(&self, kind: &str, domain: &str, now: u64) -> Option<Paused> {
        let of = |document: Option<&Document>, scope: fn(String) -> Scope, name: &str| {
            let pause = document?.pause.as_ref().filter(|pause| pause.lasts(now))?;
            Some(Paused {
                scope: scope(name.to_owned()),
                pause: pause.clone(),
            })
        };
        of(self.types.get(kind), Scope::Type, kind)
            .or_else(|| of(self.domains.get(domain), Scope::Domain, domain))
    }

    /// Whether that subject of the domain is paused at that time.
    pub fn pause_of_subject(&self, domain: &str, subject: &str, now: u64) -> Option<Paused> {
        let document = self.subjects.get(domain)?.get(subject)?;
        let pause = document.pause.as_ref().filter(|pause| pause.lasts(now))?;
        Some(Paused {
            scope: Scope::Subject {
                domain: domain.to_owned(),
                subject: subject.to_owned(),
            },
            pause: pause.clone(),
        })
    }

    /// The subjects of a domain that are paused at that time.
    pub fn paused_subjects<'a>(
        &'a self,
        domain: &str,
        now: u64,
    ) -> impl Iterator<Item = &'a str> + use<'a> {
        let all = self.subjects.get(domain).into_iter().flatten();
        all.filter(move |(_, document)| document.pause.as_ref().is_some_and(|one| one.lasts(now)))
            .map(|(subject, _)| subject.as_str())
    }
}
