//! How a handler is run: everything about it that is not its own code.

mod check;
mod open;

pub use check::PolicyError;
pub use open::OpenStack;

use crate::connect::clock::NEVER;
use crate::handler::context::Context;
use crate::handler::fence::Kept;
use crate::handler::function::{Encoded, decoding, encode};
use crate::protocol::error::HandlerError;
use crate::protocol::rate::{Per, Rate};
use crate::settings::Settings;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tower::Layer;
use tower::Service;
use tower::util::BoxCloneSyncService;

/// A handler with its layers around it.
pub type Stack = BoxCloneSyncService<Context, Encoded, HandlerError>;

/// When a circuit opens and how it closes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitPolicy {
    /// Failures in a row that open it. Only failures of the handler count, never bad input.
    pub failures: u32,
    /// How long it stays open the first time; doubled each time a probe fails.
    pub open_for: Duration,
    /// The longest it stays open.
    pub open_cap: Duration,
    /// Runs that may probe at a time while it is half-open.
    pub probes: u32,
    /// Successful probes that close it.
    pub successes: u32,
}

/// The schedule of retries: full jitter under an exponentially growing ceiling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Tries, the first included; 1 means no retry.
    pub max_attempts: u32,
    /// The ceiling of the first wait.
    pub base: Duration,
    /// What each further ceiling is multiplied by.
    pub factor: f64,
    /// The highest ceiling.
    pub cap: Duration,
}

/// Answers in the place of a handler whose circuit is open.
pub type Fallback = Arc<dyn Fn(&Context) -> Result<Encoded, HandlerError> + Send + Sync>;
type UserLayer = Arc<dyn Fn(Stack) -> Stack + Send + Sync>;

/// How a handler is run. Every part has a default; a handler that uses none pays for none.
///
/// What may not run yet waits before it runs: it holds no slot of the worker, its lease is kept, its
/// deadline is watched, and a worker that drains starts none of it and spends no attempt. What two parts
/// mean together:
///
/// | | with | |
/// |---|---|---|
/// | [`ordered`](Policy::ordered) | `concurrency` | runs of different subjects share the permits; the order of each holds |
/// | | `rate_limit`, `circuit` | who waits keeps its place: the later ones of its subject wait behind it |
/// | | retry | a failed event that waits for its retry has left its place: later ones overtake it |
/// | | `cache` | an answer that is known waits for no turn |
/// | | takeover | what a gone worker held runs before what is newer; two workers order nothing between them |
/// | `rate_limit` | `concurrency` | an event over the rate holds no permit |
/// | | `circuit` | a run that the circuit refuses costs no share; one that the rate refuses is no probe |
/// | | `cache` | an answer that is known costs no share |
/// | | retry | each try costs a share |
/// | | time-out | waiting for a share is no part of a run: it has all of its time-out then |
/// | `circuit` | time-out | counts as a failure, unless it is a probe that failed before: then the next one may probe |
/// | | `fallback` | answers instead of waiting; without a circuit it is refused |
/// | | `cache` | an answer that is known passes an open circuit |
/// | `concurrency` | `circuit` | a probe takes a permit too; who is refused gives its permit back |
/// | | retry, time-out | the permit is given back when the run ends, however; each try asks for its own |
/// | | `cache` | an answer that is known needs no permit |
/// | | `total` | a run needs both |
/// | `cache` | retry, time-out | a failure is not kept; those that waited for it run |
/// | | `stateful` | refused: an answer from the cache does not do what the run did |
/// | time-out | retry | each try has its own |
/// | `layer` | all | is called, and asked whether it is ready, when nothing else holds the event back |
#[derive(Clone, Default)]
pub struct Policy {
    pub(crate) timeout: Option<Option<Duration>>,
    pub(crate) retry: Option<RetryPolicy>,
    pub(crate) attempts: Option<u32>,
    pub(crate) rate: Option<Rate>,
    /// Whose runs it counts together.
    pub(crate) rate_per: Per,
    pub(crate) circuit: Option<CircuitPolicy>,
    pub(crate) fallback: Option<Fallback>,
    pub(crate) concurrency: Option<usize>,
    /// Runs in all workers together.
    pub(crate) total: Option<usize>,
    /// Permits that somebody else gives and takes, in the place of `concurrency`.
    pub(crate) permits: Option<Arc<Semaphore>>,
    pub(crate) ordered: bool,
    pub(crate) cache: Option<Duration>,
    pub(crate) silent: bool,
    pub(crate) stateful: bool,
    pub(crate) blocking: bool,
    pub(crate) description: Option<String>,
    pub(crate) layers: Vec<UserLayer>,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("timeout", &self.timeout)
            .field("retry", &self.retry)
            .field("attempts", &self.attempts)
            .field("rate", &self.rate)
            .field("circuit", &self.circuit)
            .field("fallback", &self.fallback.is_some())
            .field("concurrency", &self.concurrency)
            .field("total", &self.total)
            .field("ordered", &self.ordered)
            .field("cache", &self.cache)
            .field("silent", &self.silent)
            .field("stateful", &self.stateful)
            .field("blocking", &self.blocking)
            .field("layers", &self.layers.len())
            .finish()
    }
}

impl Policy {
    /// The defaults: the worker's timeout and retries, nothing else.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fails a run that takes longer with `deadline_exceeded`, to be retried; its layers and their readiness
    /// count, what it waited for before does not.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(Some(timeout));
        self
    }

    /// The schedule, where the worker's is this one.
    pub(crate) fn retries(&self, defaults: RetryPolicy) -> RetryPolicy {
        let schedule = self.retry.unwrap_or(defaults);
        RetryPolicy {
            max_attempts: self.attempts.unwrap_or(schedule.max_attempts),
            ..schedule
        }
    }

    /// Lets a run take as long as it takes.
    #[must_use]
    pub fn no_timeout(mut self) -> Self {
        self.timeout = Some(None);
        self
    }

    /// Another schedule of retries than the worker's.
    #[must_use]
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = Some(retry);
        self
    }

    /// At most this many tries, the first included, at the worker's pauses or those of [`retry`](Self::retry).
    #[must_use]
    pub fn attempts(mut self, most: u32) -> Self {
        self.attempts = Some(most);
        self
    }

    /// At most this many runs in any period for each source, counted in Redis for all replicas. An event over
    /// the limit waits, in order, where nobody waits for its answer; a requester gets `resource_exhausted`.
    #[must_use]
    pub fn rate_limit(mut self, limit: u32, period: Duration) -> Self {
        self.rate = Some(Rate { limit, period });
        self
    }

    /// Stops calling a handler that failed so often in a row, for so long at first.
    #[must_use]
    pub fn circuit(self, failures: u32, open_for: Duration) -> Self {
        self.circuit_policy(CircuitPolicy {
            failures,
            open_for,
            open_cap: open_for.max(CircuitPolicy::default().open_cap),
            ..CircuitPolicy::default()
        })
    }

    /// A circuit breaker with every part set.
    #[must_use]
    pub fn circuit_policy(mut self, circuit: CircuitPolicy) -> Self {
        self.circuit = Some(circuit);
        self
    }

    /// Answers while the circuit is open, instead of `unavailable`. It takes the payload and gives the result as
    /// the handler does; a `serde_json::Value` is any payload.
    ///
    /// ```
    /// use convoke::{Context, HandlerError, Policy};
    /// use std::time::Duration;
    ///
    /// let policy = Policy::new()
    ///     .circuit(5, Duration::from_secs(30))
    ///     .fallback(|_: &Context, width: u32| Ok(format!("placeholder-{width}.png")));
    /// # let _ = policy;
    /// ```
    #[must_use]
    pub fn fallback<P, R>(
        mut self,
        fallback: impl Fn(&Context, P) -> Result<R, HandlerError> + Send + Sync + 'static,
    ) -> Self
    where
        P: DeserializeOwned + JsonSchema + 'static,
        R: Serialize,
    {
        let (decode, fallback) = (decoding::<P>(), Kept::new(fallback));
        self.fallback = Some(Arc::new(move |context| {
            let payload = decode(context.event().data())?;
            encode(&(*fallback)(context, payload)?)
        }));
        self
    }

    /// At most this many runs of this handler at a time in this process. The others wait and hold no slot.
    #[must_use]
    pub fn concurrency(mut self, limit: usize) -> Self {
        self.concurrency = Some(limit);
        self
    }

    /// At most this many runs of the type at a time in all workers together, whose handlers of it say so as well. The
    /// others wait and hold no slot. A killed worker's runs count for up to 15 s more.
    #[must_use]
    pub fn total(mut self, limit: usize) -> Self {
        self.total = Some(limit);
        self
    }

    /// As many runs at a time as there are permits, which come and go.
    #[must_use]
    pub(crate) fn permitted_by(mut self, permits: Arc<Semaphore>) -> Self {
        self.permits = Some(permits);
        self
    }

    /// Events of one `subject` run one at a time and in order within this worker.
    #[must_use]
    pub fn ordered(mut self) -> Self {
        self.ordered = true;
        self
    }

    /// Answers the same payload with the same result for so long, without running. Equal events at once are
    /// one run; where it leaves no result, the others run as well.
    #[must_use]
    pub fn cache(mut self, ttl: Duration) -> Self {
        self.cache = Some(ttl);
        self
    }

    /// Publishes no results where none was asked for.
    #[must_use]
    pub fn silent(mut self) -> Self {
        self.silent = true;
        self
    }

    /// The handler's outcome reports what its run wrote to the server by itself. It is committed only
    /// while the server has the history in which the run began; after a failover, or a restart of the
    /// server, the event runs again. A run that asked for [`Context::redis`] counts as stateful without this.
    #[must_use]
    pub fn stateful(mut self) -> Self {
        self.stateful = true;
        self
    }

    /// Runs the handler on threads that may block: it calls a driver, a library or a program and waits in that call,
    /// where an `async` one would `.await`. As many of its runs block at a time as the worker's concurrency allows.
    ///
    /// A run that blocks beyond its time-out has failed like any other; what it does after that is not
    /// committed, and it keeps its slot, and its place before later events of its subject, until its thread is free. A
    /// worker that drains waits for that as long as its drain time. Nothing ends what blocks: a handler that loops looks at
    /// [`Context::cancellation`], which is cancelled when its time is over.
    ///
    /// ```
    /// use convoke::{Context, HandlerError, Policy, Worker};
    ///
    /// async fn hash(_: Context, path: String) -> Result<usize, HandlerError> {
    ///     Ok(std::fs::read(path)?.len())
    /// }
    ///
    /// let worker = Worker::builder().handler_with("file.hash", hash, Policy::new().blocking());
    /// # let _ = worker;
    /// ```
    #[must_use]
    pub fn blocking(mut self) -> Self {
        self.blocking = true;
        self
    }

    /// What the handler does, for `system.discover`.
    #[must_use]
    pub fn describe(mut self, description: impl Into<String>) -> Self {
        self.description = Some(description.into());
        self
    }

    /// Any `tower::Layer` around the handler and its cache; the last added is the outermost. Order, rate,
    /// circuit and concurrency decide before it when a run begins. For layers that know nothing of handlers there is
    /// [`tower`](Self::tower).
    #[must_use]
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<Stack> + Send + Sync + 'static,
        L::Service: Service<Context, Response = Encoded, Error = HandlerError>
            + Clone
            + Send
            + Sync
            + 'static,
        <L::Service as Service<Context>>::Future: Send + 'static,
    {
        let layer = Kept::new(layer);
        self.layers
            .push(Arc::new(move |inner| Stack::new(layer.layer(inner))));
        self
    }
}

impl Default for CircuitPolicy {
    fn default() -> Self {
        Self {
            failures: 5,
            open_for: Duration::from_secs(30),
            open_cap: Duration::from_secs(300),
            probes: 1,
            successes: 1,
        }
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            base: Duration::from_millis(500),
            factor: 2.0,
            cap: Duration::from_secs(60),
        }
    }
}

impl From<&Settings> for RetryPolicy {
    fn from(settings: &Settings) -> Self {
        Self {
            max_attempts: settings.max_attempts,
            base: settings.backoff_base,
            cap: settings.backoff_cap,
            ..Self::default()
        }
    }
}

impl RetryPolicy {
    /// The highest wait after that attempt failed (the first is 1).
    pub fn ceiling(&self, attempt: u32) -> Duration {
        let exponent = attempt.saturating_sub(1).min(1000) as i32;
        let grown = self.base.as_secs_f64() * self.factor.max(1.0).powi(exponent);
        let cap = self.cap.min(NEVER);
        Duration::try_from_secs_f64(grown).map_or(cap, |grown| grown.min(cap))
    }

    /// The wait before the next try, or `None` when that attempt was the last.
    pub fn delay(&self, attempt: u32) -> Option<Duration> {
        if attempt >= self.max_attempts {
            return None;
        }
        let ceiling = self.ceiling(attempt).as_micros() as u64;
        Some(Duration::from_micros(fastrand::u64(0..=ceiling)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn waits_stay_under_a_ceiling_that_grows_to_the_cap(attempt in 1u32..2000, base in 1u64..5000, cap in 1u64..100_000) {
            let retry = RetryPolicy {
                max_attempts: u32::MAX,
                base: Duration::from_millis(base),
                factor: 2.0,
                cap: Duration::from_millis(cap),
            };
            prop_assert!(retry.ceiling(attempt) <= retry.cap);
            prop_assert!(retry.ceiling(attempt) <= retry.ceiling(attempt + 1));
            prop_assert!(retry.delay(attempt).unwrap() <= retry.ceiling(attempt));
        }

        #[test]
        fn no_schedule_overflows(attempt in any::<u32>(), base in any::<(u64, u32)>(), cap in any::<(u64, u32)>(), factor in any::<f64>()) {
            let length = |(seconds, nanos)| Duration::new(seconds, nanos % 1_000_000_000);
            for (base, cap) in [(length(base), length(cap)), (Duration::MAX, Duration::MAX)] {
                let retry = RetryPolicy { max_attempts: u32::MAX, base, factor, cap };
                prop_assert!(retry.ceiling(attempt) <= cap.min(NEVER));
                prop_assert!(attempt == u32::MAX || retry.delay(attempt).unwrap() <= NEVER);
            }
        }

        #[test]
        fn the_last_attempt_has_no_next(max in 1u32..50, attempt in 1u32..100) {
            let retry = RetryPolicy { max_attempts: max, ..RetryPolicy::default() };
            prop_assert_eq!(retry.delay(attempt).is_some(), attempt < max);
        }
    }
}
