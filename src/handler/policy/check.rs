//! What makes no sense in a policy is refused before the worker runs.

use crate::handler::batch::Batches;
use crate::handler::policy::{CircuitPolicy, Policy, RetryPolicy};
use crate::protocol::rate::Rate;
use std::time::Duration;

/// Events that a batch may have at the most: all of them are held and settled together.
const MOST: usize = 10_000;

/// A part of a policy that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part}: {problem}")]
#[non_exhaustive]
pub struct PolicyError {
    /// Which part.
    pub part: &'static str,
    /// Its value and what would do.
    pub problem: String,
}

impl Policy {
    /// Checks every part.
    ///
    /// # Errors
    /// The first part that makes no sense, with its value and what would do.
    pub fn check(&self) -> Result<(), PolicyError> {
        if let Some(Some(limit)) = self.timeout {
            lasts(
                "timeout",
                limit,
                "no run ends in it; no_timeout() sets none",
            )?;
        }
        self.retry.iter().try_for_each(RetryPolicy::check)?;
        if let Some(most) = self.attempts {
            counts(
                "attempts",
                most.into(),
                "the first try counts, so 1 is no retry",
            )?;
        }
        self.rate.iter().try_for_each(Rate::check)?;
        self.circuit.iter().try_for_each(CircuitPolicy::check)?;
        if self.fallback.is_some() && self.circuit.is_none() {
            return refuse(
                "fallback",
                "it answers while a circuit is open, and there is no circuit".to_owned(),
            );
        }
        if let Some(limit) = self.concurrency {
            counts("concurrency", limit as u64, "no run would ever begin")?;
        }
        if let Some(limit) = self.total {
            counts("total", limit as u64, "no run would ever begin")?;
        }
        if let Some(ttl) = self.cache {
            lasts("cache", ttl, "nothing would be kept")?;
            if self.stateful {
                let problem = "an answer from the cache does not do what a stateful run does";
                return refuse("cache", problem.to_owned());
            }
        }
        Ok(())
    }
}

impl Policy {
    /// Checks what a handler of batches cannot have.
    ///
    /// # Errors
    /// The first part that it cannot have, and what would do.
    pub(crate) fn check_of_batches(&self, batches: &Batches) -> Result<(), PolicyError> {
        counts("batches", batches.most as u64, "no batch would ever begin")?;
        if batches.most > MOST {
            let problem = format!("{}: a batch has {MOST} events at the most", batches.most);
            return refuse("batches", problem);
        }
        for (part, is_set) in [
            ("rate_limit", self.rate.is_some()),
            ("total", self.total.is_some()),
            ("circuit", self.circuit.is_some()),
            ("cache", self.cache.is_some()),
            ("layer", !self.layers.is_empty()),
        ] {
            if is_set {
                let problem = "it decides event by event: a batch handler cannot have it";
                return refuse(part, problem.to_owned());
            }
        }
        Ok(())
    }
}

impl RetryPolicy {
    fn check(&self) -> Result<(), PolicyError> {
        let tries = u64::from(self.max_attempts);
        counts(
            "retry.max_attempts",
            tries,
            "the first try counts, so 1 is no retry",
        )?;
        if !self.factor.is_finite() || self.factor < 1.0 {
            let problem = format!("{} is not a number from 1 up", self.factor);
            return refuse("retry.factor", problem);
        }
        Ok(())
    }
}

impl Rate {
    fn check(&self) -> Result<(), PolicyError> {
        let limit = u64::from(self.limit);
        counts("rate_limit.limit", limit, "no run would ever begin")?;
        lasts("rate_limit.period", self.period, "nothing would be limited")
    }
}

impl CircuitPolicy {
    fn check(&self) -> Result<(), PolicyError> {
        for (part, count) in [
            ("circuit.failures", self.failures),
            ("circuit.probes", self.probes),
            ("circuit.successes", self.successes),
        ] {
            counts(part, count.into(), "a circuit needs at least 1")?;
        }
        lasts("circuit.open_for", self.open_for, "it would never be open")?;
        if self.open_cap < self.open_for {
            let [cap, first] = [self.open_cap, self.open_for].map(humantime::format_duration);
            return refuse(
                "circuit.open_cap",
                format!("{cap} is shorter than open_for, {first}"),
            );
        }
        Ok(())
    }
}

fn counts(part: &'static str, count: u64, why: &str) -> Result<(), PolicyError> {
    match count {
        0 => refuse(part, format!("0: {why}")),
        _ => Ok(()),
    }
}

fn lasts(part: &'static str, length: Duration, why: &str) -> Result<(), PolicyError> {
    match length.is_zero() {
        true => refuse(part, format!("0s: {why}")),
        false => Ok(()),
    }
}

fn refuse(part: &'static str, problem: String) -> Result<(), PolicyError> {
    Err(PolicyError { part, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_that_makes_no_sense_is_named_with_its_value() {
        let never = Duration::ZERO;
        let minute = Duration::from_secs(60);
        let circuit = |change: fn(&mut CircuitPolicy)| {
            let mut circuit = CircuitPolicy::default();
            change(&mut circuit);
            Policy::new().circuit_policy(circuit)
        };
        let retry = |change: fn(&mut RetryPolicy)| {
            let mut retry = RetryPolicy::default();
            change(&mut retry);
            Policy::new().retry(retry)
        };
        let refused = [
            ("timeout", "0s", Policy::new().timeout(never)),
            ("retry.max_attempts", "0", retry(|r| r.max_attempts = 0)),
            ("attempts", "0", Policy::new().attempts(0)),
            ("retry.factor", "NaN", retry(|r| r.factor = f64::NAN)),
            ("retry.factor", "0.5", retry(|r| r.factor = 0.5)),
            ("rate_limit.limit", "0", Policy::new().rate_limit(0, minute)),
            (
                "rate_limit.period",
                "0s",
                Policy::new().rate_limit(1, never),
            ),
            ("circuit.failures", "0", circuit(|c| c.failures = 0)),
            ("circuit.probes", "0", circuit(|c| c.probes = 0)),
            ("circuit.successes", "0", circuit(|c| c.successes = 0)),
            (
                "circuit.open_for",
                "0s",
                circuit(|c| c.open_for = Duration::ZERO),
            ),
            ("cache", "stateful", Policy::new().cache(minute).stateful()),
            (
                "circuit.open_cap",
                "1s",
                circuit(|c| c.open_cap = Duration::from_secs(1)),
            ),
            (
                "fallback",
                "no circuit",
                Policy::new().fallback(|_, (): ()| Ok(())),
            ),
            ("concurrency", "0", Policy::new().concurrency(0)),
            ("total", "0", Policy::new().total(0)),
            ("cache", "0s", Policy::new().cache(never)),
        ];
        for (part, value, policy) in refused {
            let error = policy.check().unwrap_err();
            assert_eq!(error.part, part, "{error}");
            assert!(error.problem.contains(value), "{error}");
        }
    }

    #[test]
    fn the_longest_times_make_sense() {
        let always = Duration::MAX;
        let retry = RetryPolicy {
            base: always,
            cap: always,
            ..RetryPolicy::default()
        };
        let policy = Policy::new()
            .timeout(always)
            .retry(retry)
            .rate_limit(u32::MAX, always)
            .circuit(u32::MAX, always)
            .fallback(|_, (): ()| Ok(()))
            .concurrency(usize::MAX)
            .total(usize::MAX)
            .cache(always);
        assert_eq!(policy.check(), Ok(()));
        assert_eq!(Policy::new().check(), Ok(()));
    }
}
