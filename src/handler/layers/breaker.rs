//! The rules of a circuit, without a clock, a lock or a handler.
//!
//! | from | to | when |
//! |---|---|---|
//! | closed | open | enough failures in a row |
//! | open | half-open | the open time is over and a run asks |
//! | half-open | closed | enough probes went well |
//! | half-open | open, twice as long up to the cap | a probe failed |
//!
//! Each transition begins a new *period*. The outcome of a run counts only within the period in which
//! it was admitted: a failure from before the circuit opened says nothing of a probe.

#[cfg(test)]
mod tests;

use crate::handler::policy::CircuitPolicy;
use std::time::Duration;
use tokio::time::Instant;

/// The shortest open time; a shorter one could not be doubled.
const SHORTEST: Duration = Duration::from_millis(1);
/// The longest open time, whatever the policy says: beyond it clocks overflow.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// When to come back if all places for probes are taken; how long the probes take is unknown.
const PROBING: Duration = Duration::from_secs(1);

/// What a circuit lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitState {
    /// Everything.
    Closed,
    /// Nothing.
    Open,
    /// Probes.
    HalfOpen,
}

impl CircuitState {
    /// `closed`, `open` or `half-open`.
    pub const fn as_str(self) -> &'static str {
        match self {
            CircuitState::Closed => "closed",
            CircuitState::Open => "open",
            CircuitState::HalfOpen => "half-open",
        }
    }
}

/// What a run says of its handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The run works.
    Good,
    /// The run fails.
    Bad,
    /// The run fails, with an event that failed before: that may be the event's fault.
    Doubtful,
    /// Nothing: the run did not get so far.
    None,
}

/// Probes in a row of events that failed before after which the circuit opens again all the same.
const DOUBTS: u32 = 8;

/// A transition that others may want to know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The breaker was closed and is open now.
    Opened,
    /// A probe failed, so it is open again for longer.
    Reopened,
    /// The breaker is closed again.
    Closed,
}

/// Leave to run. Goes back to [`Breaker::finish`], exactly once.
#[derive(Debug)]
pub struct Ticket {
    period: u64,
}

/// What became of a run that asked.
#[derive(Debug)]
pub enum Passage {
    /// The run may begin.
    Run(Ticket),
    /// The run may not begin; trying again may help after this time.
    Refused(Duration),
}

#[derive(Debug)]
enum Phase {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
        length: Duration,
    },
    HalfOpen {
        probes: u32,
        successes: u32,
        /// Probes that failed with events that had failed before.
        doubts: u32,
        length: Duration,
    },
}

/// A circuit's state. Takes the time from its caller and bears one that goes back.
#[derive(Debug)]
pub struct Breaker {
    policy: CircuitPolicy,
    phase: Phase,
    period: u64,
}

impl Breaker {
    /// A closed circuit. Counts of 0 in the policy are taken as 1.
    pub fn new(mut policy: CircuitPolicy) -> Self {
        policy.failures = policy.failures.max(1);
        policy.probes = policy.probes.max(1);
        policy.successes = policy.successes.max(1);
        policy.open_cap = policy.open_cap.clamp(SHORTEST, LONGEST);
        policy.open_for = policy.open_for.clamp(SHORTEST, policy.open_cap);
        Self {
            policy,
            phase: Phase::Closed { failures: 0 },
            period: 0,
        }
    }

    /// The policy, with its bounds applied.
    pub fn policy(&self) -> &CircuitPolicy {
        &self.policy
    }

    /// What it lets through now. Half-open from the moment at which it would admit a probe.
    pub fn state(&self, now: Instant) -> CircuitState {
        match self.phase {
            Phase::Closed { .. } => CircuitState::Closed,
            Phase::Open { until, .. } if now < until => CircuitState::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => CircuitState::HalfOpen,
        }
    }

    /// Asks for leave to run.
    pub fn admit(&mut self, now: Instant) -> Passage {
        if let Phase::Open { until, length } = self.phase {
            if now < until {
                // A clock that went back must not make anyone wait longer than it is open.
                return Passage::Refused((until - now).min(length));
            }
            self.enter(Phase::HalfOpen {
                probes: 0,
                successes: 0,
                doubts: 0,
                length,
            });
        }
        if let Phase::HalfOpen { probes, .. } = &mut self.phase {
            if *probes >= self.policy.probes {
                return Passage::Refused(PROBING);
            }
            *probes += 1;
        }
        Passage::Run(Ticket {
            period: self.period,
        })
    }

    /// Takes the verdict of a run that was admitted.
    pub fn finish(&mut self, ticket: Ticket, verdict: Verdict, now: Instant) -> Option<Transition> {
        if ticket.period != self.period {
            return None;
        }
        match &mut self.phase {
            Phase::Closed { failures } => {
                match verdict {
                    Verdict::Good => *failures = 0,
                    Verdict::Bad | Verdict::Doubtful => *failures += 1,
                    Verdict::None => {}
                }
                if *failures < self.policy.failures {
                    return None;
                }
                self.open(self.policy.open_for, now);
                Some(Transition::Opened)
            }
            Phase::HalfOpen {
                probes,
                successes,
                doubts,
                length,
            } => {
                *probes -= 1;
                *doubts += u32::from(verdict == Verdict::Doubtful);
                match verdict {
                    Verdict::Good => *successes += 1,
                    Verdict::Doubtful if *doubts < DOUBTS => {}
                    Verdict::Bad | Verdict::Doubtful => {
                        let longer = length.saturating_mul(2).min(self.policy.open_cap);
                        self.open(longer, now);
                        return Some(Transition::Reopened);
                    }
                    Verdict::None => {}
                }
                if *successes < self.policy.successes {
                    return None;
                }
                self.enter(Phase::Closed { failures: 0 });
                Some(Transition::Closed)
            }
            // Nothing is admitted in this period.
            Phase::Open { .. } => None,
        }
    }

    fn open(&mut self, length: Duration, now: Instant) {
        let until = now + length;
        self.enter(Phase::Open { until, length });
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.period += 1;
    }
}
