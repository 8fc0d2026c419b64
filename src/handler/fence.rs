//! A fence around a user's code: whatever it does when it is called, polled or dropped, a panic ends
//! here and is a failed run like others.

use crate::handler::function::{Encoded, Run};
use crate::handler::layers::timeout::Bounded;
use crate::protocol::error::HandlerError;
use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{self, Poll};
use std::time::Duration;

/// Calls it.
///
/// # Errors
/// `internal`: it panicked.
pub fn catch<T>(call: impl FnOnce() -> T) -> Result<T, HandlerError> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        HandlerError::internal(format!("the handler panicked: {}", panic_text(panic)))
    })
}

/// What a panic said. Its payload is dropped, which may panic as well.
pub fn panic_text(panic: Box<dyn Any + Send>) -> String {
    let text = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "with a value that is no text".to_owned(),
    };
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        // Its drop may do the same for ever.
        std::mem::forget(again);
    }
    text
}

/// A run behind the fence. It is dropped there as soon as it ends.
pub struct Fenced(Option<Run>);

impl Fenced {
    /// Starts a run.
    pub fn start(start: impl FnOnce() -> Run) -> Self {
        let run = catch(start);
        Self(Some(run.unwrap_or_else(|error| {
            Box::pin(std::future::ready(Err(error)))
        })))
    }

    /// The same run, with a limit where there is one; see [`Bounded`].
    pub fn within(self, kind: &str, limit: Option<Duration>) -> Self {
        match limit {
            Some(limit) => Self(Some(Box::pin(Bounded::new(self, kind.to_owned(), limit)))),
            None => self,
        }
    }

    /// Polls it once where nothing waits for it.
    pub fn poll_once(&mut self) -> Poll<Result<Encoded, HandlerError>> {
        Pin::new(self).poll(&mut task::Context::from_waker(task::Waker::noop()))
    }
}

impl Future for Fenced {
    type Output = Result<Encoded, HandlerError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let Some(run) = &mut self.0 else {
            return Poll::Pending;
        };
        let result = match catch(|| run.as_mut().poll(cx)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(result)) => result,
            Err(error) => Err(error),
        };
        // A run that timed out is dropped in the middle of what it does.
        let dropped = catch(|| drop(self.0.take()));
        Poll::Ready(result.and_then(|result| dropped.map(|()| result)))
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        if let Some(run) = self.0.take() {
            drop_fenced(run);
        }
    }
}

impl fmt::Debug for Fenced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fenced")
    }
}

/// A value of the user's, which is dropped behind the fence.
#[derive(Clone)]
pub struct Kept<T>(Option<T>);

impl<T> Kept<T> {
    /// Keeps it.
    pub fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// The value; it is there until it is taken.
    pub fn get_mut(&mut self) -> &mut T {
        match &mut self.0 {
            Some(value) => value,
            None => unreachable!("it is taken out at its end only"),
        }
    }

    /// Takes it out of the fence, at its end.
    pub fn take(&mut self) -> Option<T> {
        self.0.take()
    }
}

impl<T> fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(value) => value,
            None => unreachable!("it is taken out by the drop only"),
        }
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        if let Some(value) = self.0.take() {
            drop_fenced(value);
        }
    }
}

/// Drops a value of the user's.
pub fn drop_fenced<T>(value: T) {
    if let Err(error) = catch(|| drop(value)) {
        tracing::error!(%error, "a value of a handler's could not be dropped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::panic_any;
    use std::sync::Arc;

    /// Panics when it is dropped.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the bomb");
        }
    }

    /// Panics when it is dropped, with a payload that does the same.
    struct Chain(u32);

    impl Drop for Chain {
        fn drop(&mut self) {
            panic_any(Chain(self.0 + 1));
        }
    }

    fn message(error: &HandlerError) -> &str {
        &error.message
    }

    #[test]
    fn a_payload_of_any_kind_is_an_error() {
        for (panic, said) in [
            (catch(|| panic!("text")), "panicked: text"),
            (catch(|| panic_any("s".to_owned())), "panicked: s"),
            (catch(|| panic_any(7)), "no text"),
            (catch(|| panic_any(Bomb)), "no text"),
            (catch(|| panic_any(Chain(0))), "no text"),
        ] {
            let error: HandlerError = panic.map(|(): ()| ()).unwrap_err();
            assert!(message(&error).ends_with(said), "{error}");
            assert!(error.retryable);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_is_dropped_behind_the_fence_however_it_ends() {
        // It panics when it is started.
        let error = Fenced::start(|| panic!("at once")).await.unwrap_err();
        assert!(message(&error).contains("at once"));
        // Its future panics when it is dropped, after the result.
        struct Ready(Bomb);
        impl Future for Ready {
            type Output = Result<Encoded, HandlerError>;
            fn poll(self: Pin<&mut Self>, _: &mut task::Context<'_>) -> Poll<Self::Output> {
                Poll::Ready(Ok(vec![1]))
            }
        }
        let error = Fenced::start(|| Box::pin(Ready(Bomb))).await.unwrap_err();
        assert!(message(&error).contains("the bomb"));
        // It holds what panics when a time-out drops it.
        let held = || -> Run {
            Box::pin(async {
                let _bomb = Bomb;
                std::future::pending().await
            })
        };
        let timed_out = Fenced::start(held).within("a.b", Some(Duration::from_secs(1)));
        let error = timed_out.await.unwrap_err();
        assert!(message(&error).contains("longer than its timeout"));
        // It is given up.
        let mut run = Fenced::start(held);
        assert!(run.poll_once().is_pending());
        drop(run);
        drop(Kept::new(Arc::new(Bomb)));
    }
}
