//! Spares a handler that fails again and again, and asks it from time to time whether it works again.

use crate::connect::clock::local_now;
use crate::handler::function::Encoded;
use crate::handler::layers::breaker::{
    Breaker, CircuitState, Passage, Ticket, Transition, Verdict,
};
use crate::handler::policy::CircuitPolicy;
use crate::mutex::locked;
use crate::protocol::error::{Code, HandlerError, Refusal};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

/// A circuit opened, or closed again. The two alternate; probes that fail in between are no change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitChange {
    /// The event type of its handler.
    pub kind: Arc<str>,
    /// Whether it opened.
    pub opened: bool,
    /// When it did, in Unix ms.
    pub at: u64,
}

/// The circuit of one handler in this process.
#[derive(Debug)]
pub struct Circuit {
    kind: Arc<str>,
    breaker: Mutex<Breaker>,
    changes: Option<UnboundedSender<CircuitChange>>,
}

impl Circuit {
    /// A closed circuit for the handler of `kind`, which tells `changes` when it opens or closes.
    pub fn new(
        kind: &str,
        policy: CircuitPolicy,
        changes: Option<UnboundedSender<CircuitChange>>,
    ) -> Self {
        Self {
            kind: kind.into(),
            breaker: Mutex::new(Breaker::new(policy)),
            changes,
        }
    }

    /// What it lets through now.
    pub fn state(&self) -> CircuitState {
        self.lock().state(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        locked(&self.breaker)
    }

    /// Leave for one run, or how long until one may be given.
    pub fn admit(self: &Arc<Self>) -> Result<Admitted, Duration> {
        match self.lock().admit(Instant::now()) {
            Passage::Run(ticket) => Ok(Admitted {
                circuit: self.clone(),
                ticket: Some(ticket),
            }),
            Passage::Refused(wait) => Err(wait),
        }
    }

    fn finish(&self, ticket: Ticket, verdict: Verdict) {
        let mut breaker = self.lock();
        let Some(change) = breaker.finish(ticket, verdict, Instant::now()) else {
            return;
        };
        let failures = breaker.policy().failures;
        // Told under the lock, so that changes are told in the order in which they happened.
        if let Some(changes) = &self.changes
            && change != Transition::Reopened
        {
            // Nobody listens any more when the worker ends.
            let _ = changes.send(CircuitChange {
                kind: self.kind.clone(),
                opened: change == Transition::Opened,
                at: local_now(),
            });
        }
        drop(breaker);
        let kind = &*self.kind;
        match change {
            Transition::Opened => tracing::warn!(kind, failures, "circuit opened"),
            Transition::Reopened => tracing::debug!(kind, "circuit stays open: a probe failed"),
            Transition::Closed => tracing::info!(kind, "circuit closed"),
        }
    }

    /// What a run gets that it does not let through.
    pub fn refusal(&self, wait: Duration) -> HandlerError {
        let rounded = Duration::from_millis(wait.as_micros().div_ceil(1000) as u64);
        let mut error = HandlerError::unavailable(format!(
            "the circuit of {} is open, because its handler failed again and again: try again in {}",
            self.kind,
            humantime::format_duration(rounded)
        ));
        error.refusal = Some(Refusal::CircuitOpen);
        error.retry_after = Some(wait);
        error
    }
}

/// A run that was admitted. Dropped without a verdict it frees its place and counts for nothing:
/// who cancels a run (its lease was lost, the worker drains) says nothing of the handler. A panic
/// counts as a failure.
#[derive(Debug)]
pub struct Admitted {
    circuit: Arc<Circuit>,
    ticket: Option<Ticket>,
}

impl Admitted {
    /// Takes the run's result. Only `internal`, `unavailable` and `deadline_exceeded` count as failures; as a
    /// probe, a run of an event that was `tried` before tells less.
    pub fn judge(mut self, result: &Result<Encoded, HandlerError>, tried: bool) {
        if let Some(ticket) = self.ticket.take() {
            let verdict = match verdict(result) {
                Verdict::Bad if tried => Verdict::Doubtful,
                verdict => verdict,
            };
            self.circuit.finish(ticket, verdict);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let verdict = if std::thread::panicking() {
                Verdict::Bad
            } else {
                Verdict::None
            };
            self.circuit.finish(ticket, verdict);
        }
    }
}

fn verdict(result: &Result<Encoded, HandlerError>) -> Verdict {
    let Err(error) = result else {
        return Verdict::Good;
    };
    match error.code {
        _ if error.refusal.is_some() => Verdict::None,
        Code::Internal | Code::Unavailable | Code::DeadlineExceeded => Verdict::Bad,
        // It looked and gave its answer.
        Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::PermissionDenied => Verdict::Good,
        // The event's own fault, or someone else's.
        Code::InvalidArgument
        | Code::Unimplemented
        | Code::Aborted
        | Code::ResourceExhausted
        | Code::Cancelled => Verdict::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::assembly::testing::endpoint;
    use crate::handler::context::Context;
    use crate::handler::function::{Endpoint, Run};
    use futures_util::FutureExt;
    use std::panic::AssertUnwindSafe;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    const OPEN: Duration = Duration::from_secs(30);

    struct Rig {
        circuit: Arc<Circuit>,
        handler: Endpoint,
        calls: Arc<AtomicU32>,
        changes: UnboundedReceiver<CircuitChange>,
    }

    impl Rig {
        /// Opens after two failures. The handler answers as the payload says: 0 well, 1 `internal`,
        /// 2 `invalid_argument`, 3 by a panic, 4 never, 5 `not_found`, 6 with a refusal of its own.
        fn new() -> Self {
            let policy = CircuitPolicy {
                failures: 2,
                open_for: OPEN,
                ..CircuitPolicy::default()
            };
            let (sender, changes) = unbounded_channel();
            let circuit = Arc::new(Circuit::new("image.resize", policy, Some(sender)));
            let calls = Arc::new(AtomicU32::new(0));
            let counted = calls.clone();
            let handler = endpoint(move |context: Context| {
                counted.fetch_add(1, Ordering::SeqCst);
                async move {
                    match context.event().data() {
                        [1] => Err(HandlerError::internal("broken")),
                        [2] => Err(HandlerError::invalid_argument("width: missing")),
                        [3] => panic!("the handler panics"),
                        [4] => std::future::pending().await,
                        [5] => Err(HandlerError::not_found("no such image")),
                        [6] => {
                            let mut error = HandlerError::unavailable("inner");
                            error.refusal = Some(Refusal::CircuitOpen);
                            Err(error)
                        }
                        _ => Ok(vec![7]),
                    }
                }
            });
            Self {
                circuit,
                handler,
                calls,
                changes,
            }
        }

        fn start(&mut self, payload: u8) -> Run {
            let context = crate::testing::event(&payload).context();
            let admitted = match self.circuit.admit() {
                Ok(admitted) => admitted,
                Err(wait) => {
                    return Box::pin(std::future::ready(Err(self.circuit.refusal(wait))));
                }
            };
            let run = self.handler.start(context);
            Box::pin(async move {
                let result = run.await;
                admitted.judge(&result, false);
                result
            })
        }

        async fn run(&mut self, payload: u8) -> Result<Encoded, HandlerError> {
            self.start(payload).await
        }

        fn state(&self) -> &'static str {
            self.circuit.state().as_str()
        }

        fn calls(&self) -> u32 {
            self.calls.load(Ordering::SeqCst)
        }

        fn told(&mut self) -> Vec<bool> {
            let changes = std::iter::from_fn(|| self.changes.try_recv().ok());
            changes
                .inspect(|change| assert_eq!(&*change.kind, "image.resize"))
                .map(|change| change.opened)
                .collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_circuit_runs_nothing_and_says_when_it_tries_again() {
        let mut rig = Rig::new();
        assert_eq!(rig.state(), "closed");
        assert!(rig.run(1).await.is_err());
        assert!(rig.run(1).await.is_err());
        assert_eq!(rig.state(), "open");
        tokio::time::advance(Duration::from_secs(10)).await;
        let error = rig.run(0).await.unwrap_err();
        assert_eq!(rig.calls(), 2);
        assert_eq!(error.code, Code::Unavailable);
        assert!(error.retryable);
        assert_eq!(error.refusal, Some(Refusal::CircuitOpen));
        assert_eq!(error.retry_after, Some(Duration::from_secs(20)));
        assert!(error.message.contains("image.resize"), "{error}");
        assert!(error.message.contains("20s"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn opening_and_closing_are_told_once_each_and_failed_probes_are_not() {
        let mut rig = Rig::new();
        for _ in 0..5 {
            let _ = rig.run(1).await;
        }
        assert_eq!(rig.told(), [true]);
        tokio::time::advance(OPEN).await;
        assert_eq!(rig.state(), "half-open");
        assert!(rig.run(1).await.is_err());
        assert_eq!(rig.state(), "open");
        tokio::time::advance(2 * OPEN).await;
        assert!(rig.told().is_empty());
        assert!(rig.run(0).await.is_ok());
        assert_eq!(rig.state(), "closed");
        assert_eq!(rig.told(), [false]);
    }

    #[tokio::test(start_paused = true)]
    async fn bad_input_answers_and_refusals_are_no_failures_of_the_handler() {
        let mut rig = Rig::new();
        for payload in [2, 5, 6] {
            for _ in 0..10 {
                assert!(rig.run(payload).await.is_err());
            }
        }
        assert_eq!(rig.state(), "closed");
        assert!(rig.told().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_probe_gives_its_place_to_the_next_one() {
        let mut rig = Rig::new();
        assert!(rig.run(1).await.is_err());
        assert!(rig.run(1).await.is_err());
        tokio::time::advance(OPEN).await;
        let mut probe = rig.start(4);
        assert!(futures_util::poll!(&mut probe).is_pending());
        let refused = rig.run(0).await.unwrap_err();
        assert_eq!(refused.refusal, Some(Refusal::CircuitOpen));
        drop(probe);
        assert_eq!(rig.state(), "half-open");
        drop(rig.start(0));
        assert!(rig.run(0).await.is_ok());
        assert_eq!(rig.state(), "closed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_a_failure() {
        let mut rig = Rig::new();
        for _ in 0..2 {
            let run = rig.start(3);
            assert!(AssertUnwindSafe(run).catch_unwind().await.is_err());
        }
        assert_eq!(rig.state(), "open");
    }
}
