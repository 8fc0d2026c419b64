//! Runs of one subject one at a time, in the order in which they were called.

use super::{Always, always_ready};
use crate::error::HandlerError;
use crate::registry::context::Context;
use crate::registry::handler::Run;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
use tower::{Layer, Service};

/// A line per subject that someone runs for; those behind the head wait in it.
#[derive(Debug, Default)]
struct Lines(Mutex<HashMap<Arc<str>, VecDeque<oneshot::Sender<()>>>>);

impl Lines {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, VecDeque<oneshot::Sender<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place at the end of the subject's line, now.
    fn join(self: &Arc<Self>, subject: &str) -> Place {
        let mut lines = self.lock();
        let (subject, turn) = match lines.get_key_value(subject) {
            None => {
                let subject: Arc<str> = subject.into();
                lines.insert(subject.clone(), VecDeque::new());
                (subject, None)
            }
            Some((key, _)) => {
                let subject = key.clone();
                let (sender, turn) = oneshot::channel();
                lines.entry(subject.clone()).or_default().push_back(sender);
                (subject, Some(turn))
            }
        };
        Place {
            lines: self.clone(),
            subject,
            turn,
        }
    }
}

/// A place in a line: at its head (`turn` is `None`), or waiting for its turn.
#[derive(Debug)]
struct Place {
    lines: Arc<Lines>,
    subject: Arc<str>,
    turn: Option<oneshot::Receiver<()>>,
}

impl Place {
    /// Waits until all that came before are gone.
    async fn head(&mut self) -> Result<(), HandlerError> {
        if let Some(turn) = &mut self.turn {
            // A sender goes away unused only with the whole line.
            turn.await
                .map_err(|_| HandlerError::unavailable("the line of the subject is gone"))?;
            self.turn = None;
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lines = self.lines.lock();
        if let Some(turn) = &mut self.turn {
            // Turns are given under the lock: after this, either it was given and is passed on
            // below, or it never will be.
            turn.close();
            if turn.try_recv().is_err() {
                return;
            }
        }
        let Some(line) = lines.get_mut(&self.subject) else {
            return;
        };
        while let Some(next) = line.pop_front() {
            if next.send(()).is_ok() {
                return;
            }
        }
        lines.remove(&self.subject);
    }
}

/// Runs events of one subject one after the other; events without a subject at once.
///
/// The place in the line is taken in `call`, not in the first poll, so the order of calls holds
/// whatever polls the runs. A subject is remembered only while a run of it waits or goes on.
#[derive(Clone, Debug, Default)]
pub struct OrderLayer {
    lines: Arc<Lines>,
}

impl<S> Layer<S> for OrderLayer {
    type Service = Order<S>;

    fn layer(&self, inner: S) -> Order<S> {
        Order {
            inner,
            lines: self.lines.clone(),
        }
    }
}

/// See [`OrderLayer`].
#[derive(Clone, Debug)]
pub struct Order<S> {
    inner: S,
    lines: Arc<Lines>,
}

impl<S: Always> Service<Context> for Order<S> {
    always_ready!();

    fn call(&mut self, context: Context) -> Run {
        let Some(subject) = context.event().subject() else {
            return self.inner.call(context);
        };
        let mut place = self.lines.join(subject);
        let mut inner = self.inner.clone();
        Box::pin(async move {
            place.head().await?;
            let result = inner.call(context).await;
            drop(place);
            result
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{context, endpoint};
    use super::*;
    use futures_util::poll;
    use std::time::Duration;
    use tokio::time::Instant;

    type Log = Arc<Mutex<Vec<u8>>>;

    /// Writes the first byte of the payload down when it starts and the second when it ends.
    fn recorder() -> (Order<crate::registry::handler::Endpoint>, Log) {
        let log = Log::default();
        let written = log.clone();
        let inner = endpoint(move |context: Context| {
            let log = written.clone();
            async move {
                let data = context.event().data();
                log.lock().unwrap().push(data[1]);
                tokio::time::sleep(Duration::from_secs(1)).await;
                log.lock().unwrap().push(data[2]);
                Ok(Vec::new())
            }
        });
        (OrderLayer::default().layer(inner), log)
    }

    fn event(subject: &[u8], start: u8, end: u8) -> Context {
        context(&[("subject", subject), ("data", &[0x92, start, end])])
    }

    #[tokio::test(start_paused = true)]
    async fn one_subject_runs_one_at_a_time_in_the_order_of_calls() {
        let (mut service, log) = recorder();
        let first = service.call(event(b"s", 1, 2));
        let second = service.call(event(b"s", 3, 4));
        let third = service.call(event(b"s", 5, 6));
        // Polled in the opposite order.
        let (c, b, a) = tokio::join!(third, second, first);
        assert!(a.is_ok() && b.is_ok() && c.is_ok());
        assert_eq!(*log.lock().unwrap(), [1, 2, 3, 4, 5, 6]);
        assert!(service.lines.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn different_subjects_and_none_do_not_wait_for_each_other() {
        let (mut service, log) = recorder();
        let start = Instant::now();
        let one = service.call(event(b"s", 1, 2));
        let two = service.call(event(b"t", 1, 2));
        let none = service.call(context(&[("data", &[0x92, 1, 2])]));
        let again = service.call(context(&[("data", &[0x92, 1, 2])]));
        let (a, b, c, d) = tokio::join!(one, two, none, again);
        assert!(a.is_ok() && b.is_ok() && c.is_ok() && d.is_ok());
        assert_eq!(start.elapsed().as_secs(), 1);
        assert_eq!(*log.lock().unwrap(), [1, 1, 1, 1, 2, 2, 2, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_goes_away_neither_blocks_nor_lets_anyone_in_early() {
        let (mut service, log) = recorder();
        let mut first = service.call(event(b"s", 1, 2));
        let second = service.call(event(b"s", 3, 4));
        let mut third = service.call(event(b"s", 5, 6));
        assert!(poll!(&mut first).is_pending());
        drop(second);
        assert!(poll!(&mut third).is_pending());
        assert_eq!(*log.lock().unwrap(), [1]);
        let (a, c) = tokio::join!(first, third);
        assert!(a.is_ok() && c.is_ok());
        assert_eq!(*log.lock().unwrap(), [1, 2, 5, 6]);
        assert!(service.lines.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_given_to_one_that_goes_away_is_passed_on() {
        let (mut service, log) = recorder();
        let first = service.call(event(b"s", 1, 2));
        let second = service.call(event(b"s", 3, 4));
        let third = service.call(event(b"s", 5, 6));
        drop(first);
        // The second holds the turn now and was never polled.
        drop(second);
        assert!(third.await.is_ok());
        assert_eq!(*log.lock().unwrap(), [5, 6]);
        assert!(service.lines.lock().is_empty());
    }
}
