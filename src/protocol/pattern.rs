//! Patterns: in which way a system event is answered. The event and its result are the same in each.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Who does the work behind an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// The one who is asked does all of it, now.
    #[default]
    Centralized,
    /// Each instance does its part; who is asked puts the parts together.
    Distributed,
    /// Each instance does its part, and one coordinator keeps them together.
    Hybrid,
}

impl Pattern {
    /// All of them.
    pub const ALL: [Pattern; 3] = [Pattern::Centralized, Pattern::Distributed, Pattern::Hybrid];

    /// The name on the bus and in the settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Pattern::Centralized => "centralized",
            Pattern::Distributed => "distributed",
            Pattern::Hybrid => "hybrid",
        }
    }

    /// The pattern of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|pattern| pattern.as_str() == name)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A system event that is answered in more than one pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Patterned {
    /// `system.health`.
    Health,
    /// `system.metrics`.
    Metrics,
    /// `system.register`.
    Register,
    /// `system.heartbeat`.
    Heartbeat,
    /// `system.quorum.vote`.
    Quorum,
    /// `system.batch.process`.
    Batch,
    /// `system.get_state`.
    State,
}

impl Patterned {
    /// All of them.
    pub const ALL: [Patterned; 7] = [
        Patterned::Health,
        Patterned::Metrics,
        Patterned::Register,
        Patterned::Heartbeat,
        Patterned::Quorum,
        Patterned::Batch,
        Patterned::State,
    ];

    /// The event's short name, which the settings have.
    pub const fn as_str(self) -> &'static str {
        match self {
            Patterned::Health => "health",
            Patterned::Metrics => "metrics",
            Patterned::Register => "register",
            Patterned::Heartbeat => "heartbeat",
            Patterned::Quorum => "quorum",
            Patterned::Batch => "batch",
            Patterned::State => "state",
        }
    }

    /// The event's type.
    pub const fn kind(self) -> &'static str {
        match self {
            Patterned::Health => "system.health",
            Patterned::Metrics => "system.metrics",
            Patterned::Register => "system.register",
            Patterned::Heartbeat => "system.heartbeat",
            Patterned::Quorum => "system.quorum.vote",
            Patterned::Batch => "system.batch.process",
            Patterned::State => "system.get_state",
        }
    }

    /// The name of its setting.
    pub const fn setting(self) -> &'static str {
        match self {
            Patterned::Health => "patterns.health",
            Patterned::Metrics => "patterns.metrics",
            Patterned::Register => "patterns.register",
            Patterned::Heartbeat => "patterns.heartbeat",
            Patterned::Quorum => "patterns.quorum",
            Patterned::Batch => "patterns.batch",
            Patterned::State => "patterns.state",
        }
    }

    /// The event of that name, with or without its domain.
    ///
    /// # Errors
    /// What would do.
    pub fn named(name: &str) -> Result<Self, String> {
        let event = Self::ALL
            .into_iter()
            .find(|event| event.as_str() == name || event.kind() == name);
        event.ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            format!("{name:?} is answered in one way only; there are patterns for {names}")
        })
    }

    /// The patterns that there are for it.
    pub const fn built(self) -> &'static [Pattern] {
        match self {
            Patterned::Health
            | Patterned::Metrics
            | Patterned::Register
            | Patterned::Heartbeat
            | Patterned::Quorum
            | Patterned::Batch => &Pattern::ALL,
            Patterned::State => &[Pattern::Centralized, Pattern::Hybrid],
        }
    }

    /// Whether that is one of them.
    ///
    /// # Errors
    /// What would do.
    pub fn check(self, pattern: Pattern) -> Result<Pattern, String> {
        if self.built().contains(&pattern) {
            return Ok(pattern);
        }
        Err(self.refused(pattern.as_str()))
    }

    /// The pattern of that name, if there is one for this event.
    ///
    /// # Errors
    /// What would do.
    pub fn pattern(self, name: &str) -> Result<Pattern, String> {
        match Pattern::named(name) {
            Some(pattern) => self.check(pattern),
            None => Err(self.refused(name)),
        }
    }

    fn refused(self, name: &str) -> String {
        let built: Vec<&str> = self
            .built()
            .iter()
            .map(|pattern| pattern.as_str())
            .collect();
        let built = built.join(", ");
        format!(
            "{name:?} is not a pattern of {}; there are {built}",
            self.as_str()
        )
    }
}

impl fmt::Display for Patterned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The pattern of each event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Patterns {
    /// Of `system.health`.
    pub health: Pattern,
    /// Of `system.metrics`.
    pub metrics: Pattern,
    /// Of `system.register`: how those that register come by tasks.
    pub register: Pattern,
    /// Of `system.heartbeat`: who writes the pulses of workers.
    pub heartbeat: Pattern,
    /// Of `system.quorum.vote`: who counts the votes of a ballot that is opened.
    pub quorum: Pattern,
    /// Of `system.batch.process`: who has the items of a batch run.
    pub batch: Pattern,
    /// Of `system.get_state`.
    pub state: Pattern,
}

impl Default for Patterns {
    fn default() -> Self {
        Self {
            health: Pattern::Centralized,
            metrics: Pattern::Centralized,
            register: Pattern::Centralized,
            heartbeat: Pattern::Centralized,
            quorum: Pattern::Hybrid,
            batch: Pattern::Hybrid,
            state: Pattern::Centralized,
        }
    }
}

impl Patterns {
    /// The one of that event.
    pub const fn of(&self, event: Patterned) -> Pattern {
        match event {
            Patterned::Health => self.health,
            Patterned::Metrics => self.metrics,
            Patterned::Register => self.register,
            Patterned::Heartbeat => self.heartbeat,
            Patterned::Quorum => self.quorum,
            Patterned::Batch => self.batch,
            Patterned::State => self.state,
        }
    }

    /// All of them, by the names of event and pattern.
    pub fn names(&self) -> BTreeMap<String, String> {
        let name = |event: Patterned| (event.to_string(), self.of(event).to_string());
        Patterned::ALL.map(name).into()
    }

    /// Sets the one of that event.
    pub const fn set(&mut self, event: Patterned, pattern: Pattern) {
        match event {
            Patterned::Health => self.health = pattern,
            Patterned::Metrics => self.metrics = pattern,
            Patterned::Register => self.register = pattern,
            Patterned::Heartbeat => self.heartbeat = pattern,
            Patterned::Quorum => self.quorum = pattern,
            Patterned::Batch => self.batch = pattern,
            Patterned::State => self.state = pattern,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written_and_others_are_refused_with_what_would_do() {
        for event in Patterned::ALL {
            assert_eq!(Patterned::named(event.as_str()), Ok(event));
            assert_eq!(Patterned::named(event.kind()), Ok(event));
            for pattern in event.built() {
                assert_eq!(event.pattern(pattern.as_str()), Ok(*pattern));
                let mut patterns = Patterns::default();
                patterns.set(event, *pattern);
                assert_eq!(patterns.of(event), *pattern);
            }
            let refused = event.pattern("anarchic").expect_err("no pattern");
            let would_do = event.built()[0].as_str();
            assert!(refused.contains(would_do), "{refused}");
        }
        let refused = Patterned::State.pattern("distributed");
        let refused = refused.expect_err("not built");
        assert!(
            refused.contains("there are centralized, hybrid"),
            "{refused}"
        );
        let refused = Patterned::named("discover").expect_err("one way only");
        assert!(refused.contains("health"), "{refused}");
    }
}
