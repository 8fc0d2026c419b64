//! The timeout of a run, without a timer for the runs that end at once.

use crate::handler::fence::Fenced;
use crate::handler::function::Encoded;
use crate::protocol::error::{Code, HandlerError};
use std::fmt;
use std::pin::Pin;
use std::task::{self, Poll};
use std::time::Duration;
use tokio::task::{Unconstrained, unconstrained};
use tokio::time::{Instant, Sleep, sleep};

/// A run that fails with `deadline_exceeded` when it takes longer than its limit.
///
/// The run is polled before the timer exists: one that ends in its first poll costs none. The time
/// counts from that first poll, and a run that ends too late has failed, too: it may have held its thread.
/// `K` names the event type in the error.
pub struct Bounded<K> {
    // It is dropped in the middle of what it does when it takes too long.
    run: Fenced,
    kind: K,
    limit: Duration,
    /// When it ends; `None` before the first poll, or if that is never.
    until: Option<Instant>,
    // Outside of tokio's budget, or a run that uses its budget up each time would never time out.
    timer: Option<Pin<Box<Unconstrained<Sleep>>>>,
}

impl<K: AsRef<str> + Unpin> Bounded<K> {
    /// Bounds a run of the handler of `kind`.
    pub fn new(run: Fenced, kind: K, limit: Duration) -> Self {
        Self {
            run,
            kind,
            limit,
            until: None,
            timer: None,
        }
    }
}

impl<K> fmt::Debug for Bounded<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bounded")
            .field("limit", &self.limit)
            .field("timed", &self.timer.is_some())
            .finish_non_exhaustive()
    }
}

impl<K: AsRef<str> + Unpin> Future for Bounded<K> {
    type Output = Result<Encoded, HandlerError>;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let limit = this.limit;
        if this.timer.is_none() {
            this.until = Instant::now().checked_add(limit);
        }
        if let Poll::Ready(result) = Pin::new(&mut this.run).poll(cx) {
            let late = this.until.is_some_and(|until| Instant::now() > until);
            return Poll::Ready(match late {
                true => Err(exceeded("a run", this.kind.as_ref(), limit)),
                false => result,
            });
        }
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(unconstrained(sleep(limit))));
        timer
            .as_mut()
            .poll(cx)
            .map(|()| Err(exceeded("a run", this.kind.as_ref(), limit)))
    }
}

/// The failure of what took too long.
pub fn exceeded(what: &str, kind: &str, limit: Duration) -> HandlerError {
    let limit = humantime::format_duration(limit);
    HandlerError::new(
        Code::DeadlineExceeded,
        format!("{what} of {kind} took longer than its timeout of {limit}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::function::Run;
    use tokio::time::Instant;

    fn bounded(
        run: impl Future<Output = Result<Encoded, HandlerError>> + Send + 'static,
    ) -> Bounded<&'static str> {
        let run = Fenced::start(|| Box::pin(run));
        Bounded::new(run, "image.resize", Duration::from_secs(30))
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_over_its_timeout_fails_retryably_and_names_type_and_limit() {
        let start = Instant::now();
        let error = bounded(std::future::pending()).await.unwrap_err();
        assert_eq!(start.elapsed().as_secs(), 30);
        assert_eq!(error.code, Code::DeadlineExceeded);
        assert!(error.retryable);
        assert_eq!(error.refusal, None);
        assert!(error.message.contains("image.resize"), "{error}");
        assert!(error.message.contains("30s"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_within_its_timeout_keeps_its_result() {
        let run = bounded(async {
            sleep(Duration::from_secs(29)).await;
            Ok(vec![1])
        });
        assert_eq!(run.await, Ok(vec![1]));
    }

    #[test]
    fn a_run_that_ends_at_once_needs_no_timer() {
        // No runtime here: making a timer would panic.
        let mut run = bounded(std::future::ready(Ok(vec![1])));
        let mut cx = task::Context::from_waker(task::Waker::noop());
        assert_eq!(Pin::new(&mut run).poll(&mut cx), Poll::Ready(Ok(vec![1])));
        assert!(run.timer.is_none());
    }

    #[tokio::test]
    async fn a_run_that_holds_its_thread_past_its_timeout_has_failed_though_it_ends() {
        let blocks = || -> Run {
            Box::pin(async {
                std::thread::sleep(Duration::from_millis(20));
                Ok(vec![1])
            })
        };
        let bounded = Bounded::new(Fenced::start(blocks), "a.b", Duration::from_millis(1));
        assert_eq!(bounded.await.unwrap_err().code, Code::DeadlineExceeded);
        let blocks_later = || -> Run {
            Box::pin(async {
                tokio::task::yield_now().await;
                std::thread::sleep(Duration::from_millis(20));
                Ok(vec![1])
            })
        };
        let bounded = Bounded::new(Fenced::start(blocks_later), "a.b", Duration::from_millis(1));
        assert_eq!(bounded.await.unwrap_err().code, Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn a_run_that_uses_up_its_budget_times_out_all_the_same() {
        let run = Fenced::start(|| {
            Box::pin(async {
                loop {
                    tokio::task::consume_budget().await;
                }
            })
        });
        let bounded = Bounded::new(run, "a.b", Duration::from_millis(1));
        assert_eq!(bounded.await.unwrap_err().code, Code::DeadlineExceeded);
    }
}
