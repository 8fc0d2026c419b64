//! A rate of runs, the same for all replicas.

use crate::coordination::limits::{RateDecision, RateLimits, bucket_of};
use crate::handler::layers::instrument::Stats;
use crate::mutex::locked;
use crate::protocol::error::{Code, HandlerError, Refusal};
use crate::protocol::event::Event;
use crate::protocol::rate::{Metered, Per, Rate};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long a run waits for the answer whether it may go on.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a run waits before it asks again that got no answer.
const AGAIN: Duration = Duration::from_millis(500);
/// The time between two warnings that runs wait for an answer.
const QUIET: Duration = Duration::from_secs(10);

/// Refuses what arrives too often with `resource_exhausted`.
///
/// What cannot be asked for is not run: the event waits a moment, and asks again. A warning each ten
/// seconds says so.
#[derive(Clone, Debug)]
pub struct RateRule {
    kind: Arc<str>,
    limits: RateLimits,
    stats: Arc<Stats>,
    unasked: Arc<Mutex<Unasked>>,
}

/// Runs that wait because no answer came.
#[derive(Debug, Default)]
struct Unasked {
    runs: u64,
    warned: Option<Instant>,
}

impl Unasked {
    /// Counts one; how many to warn of now, if it is time.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.runs += 1;
        if self
            .warned
            .is_some_and(|at| now.saturating_duration_since(at) < QUIET)
        {
            return None;
        }
        self.warned = Some(now);
        Some(std::mem::take(&mut self.runs))
    }
}

impl RateRule {
    /// Limits the runs of the handler of `kind`.
    pub fn new(kind: Arc<str>, limits: RateLimits, stats: Arc<Stats>) -> Self {
        Self {
            kind,
            limits,
            stats,
            unasked: Arc::default(),
        }
    }

    /// Counts an event that waits behind others that are over the limit.
    pub fn held_back(&self) {
        self.stats.rate_limited.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes the share of one run of that event; `again` if the event was counted as held back before.
    ///
    /// # Errors
    /// A refusal: over the limit, or nobody could be asked.
    pub async fn check(
        &self,
        metered: Metered,
        event: &Event,
        again: bool,
    ) -> Result<(), HandlerError> {
        let bucket = bucket_of(metered.per, event.source(), event.subject());
        let asked = self.limits.take_of(&self.kind, &bucket, metered.rate);
        match timeout(PATIENCE, asked).await {
            Ok(Ok(RateDecision::Allowed)) => Ok(()),
            Ok(Ok(RateDecision::Refused(wait))) => {
                if !again {
                    self.held_back();
                }
                Err(self.refusal(metered, event, wait))
            }
            Ok(Err(error)) => Err(self.unasked(error.to_string())),
            Err(_) => Err(self.unasked("no answer in time".to_owned())),
        }
    }

    fn unasked(&self, reason: String) -> HandlerError {
        let mut unasked = locked(&self.unasked);
        let due = unasked.count(Instant::now());
        drop(unasked);
        let kind = &*self.kind;
        if let Some(runs) = due {
            tracing::warn!(
                kind,
                runs,
                reason,
                "rate limit not checked: runs wait until it is"
            );
        }
        let message = format!("the rate limit of {kind} could not be checked: {reason}");
        HandlerError::later(AGAIN, message)
    }

    fn refusal(&self, metered: Metered, event: &Event, wait: Duration) -> HandlerError {
        let Rate { limit, period } = metered.rate;
        let period = humantime::format_duration(period);
        let wait_text = humantime::format_duration(wait);
        let kind = &self.kind;
        let who = match (metered.per, event.source(), event.subject()) {
            (Per::Source, Some(source), _) => format!("source {source:?}"),
            (Per::Source, None, _) => "the events without a source".to_owned(),
            (Per::Subject, _, Some(subject)) => format!("subject {subject:?}"),
            (Per::Subject, ..) => "the events without a subject".to_owned(),
            (Per::Type, ..) => "all of the type".to_owned(),
        };
        let mut error = HandlerError::new(
            Code::ResourceExhausted,
            format!(
                "{who}: over the limit of {limit} {kind} in {period}: try again in {wait_text}"
            ),
        );
        error.refusal = Some(Refusal::RateLimited);
        error.retry_after = Some(wait);
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::connector::Connector;
    use crate::handler::assembly::testing::context;
    use crate::protocol::keys::Keys;
    use crate::settings::RedisUrl;

    const MINUTE: Duration = Duration::from_secs(60);

    fn limited(url: &str) -> (RateRule, Arc<Stats>) {
        let url = RedisUrl::new(url);
        let limits = RateLimits::new(Connector::new(&url, 1).unwrap(), Keys::new("cb").unwrap());
        let stats = Arc::new(Stats::default());
        let rule = RateRule::new("image.resize".into(), limits, stats.clone());
        (rule, stats)
    }

    fn of(limit: u32, per: Per) -> Metered {
        let period = MINUTE;
        let rate = Rate { limit, period };
        Metered { rate, per }
    }

    async fn check(
        rule: &RateRule,
        metered: Metered,
        fields: &[(&str, &[u8])],
        again: bool,
    ) -> HandlerError {
        let context = context(fields);
        let checked = rule.check(metered, context.event(), again).await;
        checked.unwrap_err()
    }

    fn waits(error: &HandlerError) {
        assert_eq!(error.refusal, Some(Refusal::Busy), "{error}");
        assert_eq!(error.retry_after, Some(AGAIN));
        assert!(error.message.contains("image.resize"), "{error}");
    }

    #[tokio::test]
    async fn runs_wait_while_redis_cannot_be_asked() {
        // Port 1: nobody listens there.
        let (rule, stats) = limited("redis://127.0.0.1:1");
        for _ in 0..3 {
            waits(&check(&rule, of(1, Per::Source), &[], false).await);
        }
        assert_eq!(stats.rate_limited.load(Ordering::Relaxed), 0);
        // The first was warned of, the others wait for the next warning.
        assert_eq!(rule.unasked.lock().unwrap().runs, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_holds_no_slot_for_long() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (rule, _) = limited(&format!("redis://{}", silent.local_addr().unwrap()));
        let start = Instant::now();
        waits(&check(&rule, of(1, Per::Source), &[], false).await);
        assert!(start.elapsed() <= PATIENCE + Duration::from_millis(1));
    }

    #[tokio::test]
    async fn a_refusal_names_source_type_limit_and_time() {
        let (rule, stats) = limited("redis://127.0.0.1:1");
        let sent: [(&str, &[u8]); 2] = [("source", b"w-1"), ("subject", b"shop-7")];
        let error = check(&rule, of(0, Per::Source), &sent, false).await;
        assert_eq!(error.code, Code::ResourceExhausted);
        assert!(!error.retryable);
        assert_eq!(error.refusal, Some(Refusal::RateLimited));
        assert_eq!(error.retry_after, Some(MINUTE));
        for part in ["\"w-1\"", "image.resize", " 0 ", "1m"] {
            assert!(error.message.contains(part), "{part}: {error}");
        }
        check(&rule, of(0, Per::Source), &sent, true).await;
        let error = check(&rule, of(0, Per::Subject), &sent, true).await;
        assert!(error.message.contains("subject \"shop-7\""), "{error}");
        let error = check(&rule, of(0, Per::Type), &sent, true).await;
        assert!(error.message.contains("all of the type"), "{error}");
        assert_eq!(stats.rate_limited.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_bad_night_is_one_warning_each_ten_seconds() {
        let mut unasked = Unasked::default();
        let start = Instant::now();
        assert_eq!(unasked.count(start), Some(1));
        for ms in 0..100 {
            assert_eq!(unasked.count(start + Duration::from_millis(ms)), None);
        }
        assert_eq!(unasked.count(start + QUIET), Some(101));
    }
}
