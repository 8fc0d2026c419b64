//! A rate of runs per source, the same for all replicas.

use super::instrument::Stats;
use super::{Always, always_ready};
use crate::bus::error::BusError;
use crate::coordination::limits::{Decision, RateLimits};
use crate::error::{Code, HandlerError, Refusal};
use crate::registry::context::Context;
use crate::registry::handler::Run;
use crate::registry::policy::Rate;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tower::{Layer, Service};

/// How long a run waits for the answer whether it may go on.
const PATIENCE: Duration = Duration::from_secs(1);
/// The time between two warnings that runs went on unasked.
const QUIET: Duration = Duration::from_secs(10);

/// Refuses what comes too often from one source with `resource_exhausted`.
///
/// A run goes on if Redis does not answer in time: a limit is there to keep sources out of each
/// other's way, and an outage of Redis, which brings no new events, is no reason to refuse those
/// that are at hand. The runs that went on so are counted in a warning, one each ten seconds.
#[derive(Clone, Debug)]
pub struct RateLimitLayer {
    kind: Arc<str>,
    rate: Rate,
    limits: RateLimits,
    stats: Arc<Stats>,
    unasked: Arc<Mutex<Unasked>>,
}

/// Runs that went on without an answer.
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

impl RateLimitLayer {
    /// Limits the runs of the handler of `kind`.
    pub fn new(kind: Arc<str>, rate: Rate, limits: RateLimits, stats: Arc<Stats>) -> Self {
        Self {
            kind,
            rate,
            limits,
            stats,
            unasked: Arc::default(),
        }
    }

    async fn check(&self, source: Option<&str>) -> Result<(), HandlerError> {
        let asked = self.limits.take(&self.kind, source, self.rate);
        match timeout(PATIENCE, asked).await {
            Ok(Ok(Decision::Allowed)) => Ok(()),
            Ok(Ok(Decision::Refused(wait))) => {
                self.stats.rate_limited.fetch_add(1, Ordering::Relaxed);
                Err(self.refusal(source, wait))
            }
            Ok(Err(error)) => {
                self.went_on(Some(&error));
                Ok(())
            }
            Err(_) => {
                self.went_on(None);
                Ok(())
            }
        }
    }

    fn went_on(&self, error: Option<&BusError>) {
        let mut unasked = self.unasked.lock().unwrap_or_else(PoisonError::into_inner);
        let due = unasked.count(Instant::now());
        drop(unasked);
        if let Some(runs) = due {
            let kind = &*self.kind;
            let reason = error.map_or_else(|| "no answer in time".to_owned(), BusError::to_string);
            tracing::warn!(kind, runs, reason, "rate limit not checked: runs went on");
        }
    }

    fn refusal(&self, source: Option<&str>, wait: Duration) -> HandlerError {
        let Rate { limit, period } = self.rate;
        let period = humantime::format_duration(period);
        let wait_text = humantime::format_duration(wait);
        let kind = &self.kind;
        let who = match source {
            Some(source) => format!("source {source:?}"),
            None => "the events without a source".to_owned(),
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

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> RateLimit<S> {
        RateLimit {
            inner,
            layer: self.clone(),
        }
    }
}

/// See [`RateLimitLayer`].
#[derive(Clone, Debug)]
pub struct RateLimit<S> {
    inner: S,
    layer: RateLimitLayer,
}

impl<S: Always> Service<Context> for RateLimit<S> {
    always_ready!();

    fn call(&mut self, context: Context) -> Run {
        let layer = self.layer.clone();
        let mut inner = self.inner.clone();
        Box::pin(async move {
            layer.check(context.event().source()).await?;
            inner.call(context).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{context, endpoint};
    use super::*;
    use crate::bus::connect::Connector;
    use crate::bus::keys::Keys;
    use crate::config::RedisUrl;

    fn limited(
        rate: Rate,
        url: &str,
    ) -> (RateLimit<crate::registry::handler::Endpoint>, Arc<Stats>) {
        let url = RedisUrl::new(url);
        let limits = RateLimits::new(Connector::new(&url, 1).unwrap(), Keys::new("cb").unwrap());
        let stats = Arc::new(Stats::default());
        let layer = RateLimitLayer::new("image.resize".into(), rate, limits, stats.clone());
        (layer.layer(endpoint(async |_| Ok(vec![7]))), stats)
    }

    #[tokio::test]
    async fn runs_go_on_while_redis_can_not_be_asked() {
        let rate = Rate {
            limit: 1,
            period: Duration::from_secs(60),
        };
        // Port 1: nobody listens there.
        let (service, stats) = limited(rate, "redis://127.0.0.1:1");
        for _ in 0..3 {
            assert_eq!(service.clone().call(context(&[])).await, Ok(vec![7]));
        }
        assert_eq!(stats.rate_limited.load(Ordering::Relaxed), 0);
        // The first was warned of, the others wait for the next warning.
        assert_eq!(service.layer.unasked.lock().unwrap().runs, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_holds_no_run_up_for_long() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", silent.local_addr().unwrap());
        let rate = Rate {
            limit: 1,
            period: Duration::from_secs(60),
        };
        let (mut service, _) = limited(rate, &url);
        let start = Instant::now();
        assert_eq!(service.call(context(&[])).await, Ok(vec![7]));
        assert!(start.elapsed() <= PATIENCE + Duration::from_millis(1));
    }

    #[tokio::test]
    async fn a_refusal_names_source_type_limit_and_time() {
        let rate = Rate {
            limit: 0,
            period: Duration::from_secs(60),
        };
        let (mut service, stats) = limited(rate, "redis://127.0.0.1:1");
        let error = service
            .call(context(&[("source", b"w-1")]))
            .await
            .unwrap_err();
        assert_eq!(error.code, Code::ResourceExhausted);
        assert!(!error.retryable);
        assert_eq!(error.refusal, Some(Refusal::RateLimited));
        assert_eq!(error.retry_after, Some(rate.period));
        for part in ["\"w-1\"", "image.resize", " 0 ", "1m"] {
            assert!(error.message.contains(part), "{part}: {error}");
        }
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
