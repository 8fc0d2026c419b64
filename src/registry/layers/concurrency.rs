//! A bound on the runs of one handler at a time in this process.

use super::{Always, always_ready};
use crate::error::HandlerError;
use crate::registry::context::Context;
use crate::registry::handler::Run;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tower::{Layer, Service};

/// Lets at most so many runs go on at a time; the others wait, first come, first served.
#[derive(Clone, Debug)]
pub struct ConcurrencyLayer {
    permits: Arc<Semaphore>,
}

impl ConcurrencyLayer {
    /// At most `limit` runs, at least one.
    pub fn new(limit: usize) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            permits: Arc::new(Semaphore::new(limit)),
        }
    }
}

impl<S> Layer<S> for ConcurrencyLayer {
    type Service = Concurrency<S>;

    fn layer(&self, inner: S) -> Concurrency<S> {
        Concurrency {
            inner,
            permits: self.permits.clone(),
        }
    }
}

/// See [`ConcurrencyLayer`].
#[derive(Clone, Debug)]
pub struct Concurrency<S> {
    inner: S,
    permits: Arc<Semaphore>,
}

impl<S: Always> Service<Context> for Concurrency<S> {
    always_ready!();

    fn call(&mut self, context: Context) -> Run {
        let permits = self.permits.clone();
        let mut inner = self.inner.clone();
        Box::pin(async move {
            // Closed never: nothing here closes it.
            let permit = permits.acquire_owned().await.map_err(|_| {
                HandlerError::unavailable("the worker takes no further runs of this handler")
            })?;
            let result = inner.call(context).await;
            drop(permit);
            result
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{context, endpoint};
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_limit_run_at_a_time() {
        let running = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let (now, peak) = (running.clone(), most.clone());
        let inner = endpoint(move |_| {
            let (now, peak) = (now.clone(), peak.clone());
            async move {
                peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(1)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(Vec::new())
            }
        });
        let service = ConcurrencyLayer::new(3).layer(inner);
        let start = Instant::now();
        let runs = (0..9).map(|_| service.clone().call(context(&[])));
        let results = futures_util::future::join_all(runs).await;
        assert!(results.iter().all(Result::is_ok));
        assert_eq!(most.load(Ordering::SeqCst), 3);
        assert_eq!(start.elapsed().as_secs(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_run_gives_its_place_back() {
        let inner = endpoint(|context: Context| async move {
            if context.event().subject().is_some() {
                std::future::pending::<()>().await;
            }
            Ok(Vec::new())
        });
        let mut service = ConcurrencyLayer::new(1).layer(inner);
        let mut stuck = service.call(context(&[("subject", b"s")]));
        assert!(futures_util::poll!(&mut stuck).is_pending());
        let mut next = service.call(context(&[]));
        assert!(futures_util::poll!(&mut next).is_pending());
        drop(stuck);
        assert!(next.await.is_ok());
    }
}
