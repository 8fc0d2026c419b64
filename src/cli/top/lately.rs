//! What the handlers did lately: the difference of two looks at the counters of all instances.

use super::flow::rate;
use convoke::coordination::metrics::HandlerSums;
use convoke::protocol::histogram::Histogram;
use std::collections::{BTreeMap, VecDeque};

/// Between two marks from which the handlers' rates are counted, in ms. Instances report with their
/// pulses, so less than that shows steps.
const MARK_MS: u64 = 10_000;
/// Marks that are kept: rates are of the last 30 to 40 s.
const MARKS: usize = 4;
/// Without that much time between, a handler has no rate.
const LEAST_MS: u64 = 5_000;
/// What a handler did lately.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Lately {
    /// Calls a second; `None`: not watched for long enough.
    pub(crate) calls: Option<f64>,
    /// Failures a second.
    pub(crate) errors: Option<f64>,
    /// How long the runs took that ended lately; `None` if none did.
    pub(crate) latency: Option<Histogram>,
}

/// Looks at the counters some time apart, the first to count from.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks(VecDeque<(u64, BTreeMap<String, HandlerSums>)>);

impl Marks {
    /// Keeps what was counted at a moment, if the last mark is old enough.
    pub(super) fn apply(&mut self, at: u64, handlers: &BTreeMap<String, HandlerSums>) {
        let last = self.0.back().map(|(at, _)| *at);
        if last.is_some_and(|last| last > at) {
            // The server's clock went back.
            self.0.clear();
        }
        if self.0.is_empty() || last.is_some_and(|last| at - last >= MARK_MS) {
            self.0.push_back((at, handlers.clone()));
            if self.0.len() > MARKS {
                self.0.pop_front();
            }
        }
    }

    /// What a handler did since the first mark.
    pub(super) fn since(&self, at: u64, kind: &str, now: &HandlerSums) -> Lately {
        let Some((since, then)) = self.0.front() else {
            return Lately::default();
        };
        let none = HandlerSums::default();
        let then = then.get(kind).unwrap_or(&none);
        let ms = at.saturating_sub(*since);
        let rate = |then, now| rate(then, now, ms).filter(|_| ms >= LEAST_MS);
        let latency = now.latency.as_ref().map(|now| match &then.latency {
            Some(then) => difference(now, then),
            None => now.clone(),
        });
        Lately {
            calls: rate(then.calls, now.calls),
            errors: rate(then.errors, now.errors),
            latency: latency.filter(|latency| ms > 0 && latency.count() > 0),
        }
    }
}

/// What one histogram counted since the other.
fn difference(now: &Histogram, then: &Histogram) -> Histogram {
    let counts = now.counts.iter().filter_map(|(&bucket, &count)| {
        let before = then.counts.get(&bucket).copied().unwrap_or(0);
        Some((bucket, count.checked_sub(before).filter(|more| *more > 0)?))
    });
    Histogram {
        counts: counts.collect(),
        sum: now.sum.saturating_sub(then.sum),
    }
}
