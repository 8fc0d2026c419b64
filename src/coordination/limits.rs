//! Rates of runs, per source, per subject or of a whole type, counted in Redis, so that all replicas share them.

use super::store::Store;
use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::connect::script::script;
use crate::protocol::keys::Keys;
use crate::protocol::rate::{Per, Rate};
use redis::Script;
use std::sync::LazyLock;
use std::time::Duration;

static LIMIT: LazyLock<Script> = LazyLock::new(|| script(include_str!("limit.lua")));

/// Bytes of a source that its bucket is told by. Events are bounded so by default.
const TOLD_BY: usize = 256;
/// The longest period, in µs (a year): the script counts in numbers that are exact up to 2^53.
const LONGEST: u128 = 366 * 24 * 3600 * 1_000_000;

/// What became of a run that asked for its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateDecision {
    /// The call may go on, and is counted.
    Allowed,
    /// The call came too early and is not counted. The time, in whole ms, until one more is allowed, if no
    /// other comes first.
    Refused(Duration),
}

/// The rate limits of one namespace. Cheap to clone.
///
/// A source is what the publisher says it is. So a limit keeps sources from being in each other's
/// way, not a publisher that lies from getting more: where that matters, Redis' ACLs decide who may
/// publish.
#[derive(Clone, Debug)]
pub struct RateLimits {
    store: Store,
}

impl RateLimits {
    /// The limits of the namespace of `keys`.
    pub fn new(connector: Connector, keys: Keys) -> Self {
        let store = Store::new(connector, keys);
        Self { store }
    }

    /// Counts one run of the handler of `kind` for that source, if the rate allows it. All events
    /// without a source (or with an empty one) count as one source.
    ///
    /// At most `rate.limit` in any period, wherever it begins. A run begins a moment after it was counted,
    /// so the period is counted 2 % longer (1 to 250 ms). A limit of 0 refuses all; a limit over 64 counts in 64ths
    /// of the period, which may let through as many fewer. Each bucket is one key of up to 1.2 kB, which
    /// goes away one period after its last run.
    ///
    /// # Errors
    /// If Redis cannot be asked. The run may be counted or not.
    pub async fn take(
        &self,
        kind: &str,
        source: Option<&str>,
        rate: Rate,
    ) -> Result<RateDecision, BusError> {
        self.take_of(kind, &bucket(source), rate).await
    }

    /// The same of any bucket.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(crate) async fn take_of(
        &self,
        kind: &str,
        bucket: &str,
        rate: Rate,
    ) -> Result<RateDecision, BusError> {
        if rate.limit == 0 {
            return Ok(RateDecision::Refused(rate.period));
        }
        let period = rate.period.as_micros().min(LONGEST) as u64;
        let period = period + (period / 50).clamp(1000, 250_000);
        let mut call = LIMIT.prepare_invoke();
        call.key(self.store.keys.limit(kind, bucket))
            .arg(period)
            .arg(rate.limit);
        // One that counts twice does less harm than one that fails.
        let wait: u64 = self.store.invoke(&call).await?;
        Ok(match wait {
            0 => RateDecision::Allowed,
            ms => RateDecision::Refused(Duration::from_millis(ms)),
        })
    }
}

/// The name of the bucket in which a run of an event counts. Those of sources begin with `-`, `=` or `+`.
pub(crate) fn bucket_of(per: Per, source: Option<&str>, subject: Option<&str>) -> String {
    match per {
        Per::Source => bucket(source),
        Per::Subject => format!("s{}", bucket(subject)),
        Per::Type => "*".to_owned(),
    }
}

/// The name of a source's bucket: of bounded length, and no two sources of up to [`TOLD_BY`] bytes
/// have the same. Longer ones, which only a raised limit lets in, share one by their beginning.
fn bucket(source: Option<&str>) -> String {
    match source {
        None | Some("") => "-".to_owned(),
        Some(source) if source.len() <= TOLD_BY => format!("={source}"),
        Some(source) => {
            let end = source.floor_char_boundary(TOLD_BY);
            format!("+{}", &source[..end])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_bounded_and_do_not_collide() {
        assert_eq!(bucket(None), bucket(Some("")));
        let long = "é".repeat(TOLD_BY / 2);
        let longer = format!("{long}é");
        let sources = [
            "-", "=", "+", "w-1", "=w-1", "a:b", "{a}", "a\n", &long, &longer,
        ];
        let mut buckets: Vec<String> = sources.iter().map(|s| bucket(Some(s))).collect();
        buckets.push(bucket(None));
        let count = buckets.len();
        assert!(buckets.iter().all(|name| name.len() <= TOLD_BY + 1));
        buckets.sort();
        buckets.dedup();
        assert_eq!(buckets.len(), count);
        assert!(bucket(Some(&format!("x{longer}"))).len() <= TOLD_BY + 1);
    }
}
