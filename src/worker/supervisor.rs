//! One supervisor for every thread and task of a worker: it lives or dies as a whole.
//!
//! A worker of which one part is gone is worse than none: without its pulses the others rob it, without
//! a lane it holds what it does not run. So whichever part ends before its time, the worker drains what
//! it can and ends, and says which part and why.

use super::Ending;
use super::mortal::mortal;
use crate::handler::fence::panic_text;
use futures_util::FutureExt;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use tokio_util::sync::CancellationToken;

/// What became of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// The part came to its end.
    Ended,
    /// The part panicked.
    Panicked(String),
    /// The part gives no sign of life.
    Hangs,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Ended => f.write_str("ended before its time"),
            Why::Panicked(text) => write!(f, "panicked: {text}"),
            Why::Hangs => f.write_str("hangs"),
        }
    }
}

/// The part that failed first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Its name.
    pub part: String,
    /// What became of it.
    pub why: Why,
}

/// Owns the parts of one worker. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Supervisor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    instance: String,
    ending: Ending,
    failure: OnceLock<Failure>,
}

impl Supervisor {
    /// Of a worker that ends so.
    pub(super) fn new(instance: &str, ending: &Ending) -> Self {
        Self(Arc::new(Inner {
            instance: instance.to_owned(),
            ending: ending.clone(),
            failure: OnceLock::new(),
        }))
    }

    /// Runs a part, which may end once `told` is cancelled; `None` if it did not come to its end.
    pub(super) async fn run<T>(
        &self,
        part: &str,
        told: &CancellationToken,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut watch = self.watch(part, told);
        let work = AssertUnwindSafe(mortal(&self.0.instance, part, work));
        match work.catch_unwind().await {
            Ok(done) => done,
            Err(panic) => {
                watch.panicked(panic_text(panic));
                None
            }
        }
    }

    /// Reports a part that ends, by a panic or otherwise, before `told` is cancelled.
    pub(super) fn watch(&self, part: &str, told: &CancellationToken) -> Watched {
        Watched {
            supervisor: self.clone(),
            part: part.to_owned(),
            told: told.clone(),
            failed: false,
        }
    }

    /// A part failed: the worker is to end.
    pub(super) fn failed(&self, part: &str, why: Why) {
        tracing::error!(instance = self.0.instance, part, %why, "a part of the worker failed: the worker ends");
        let part = part.to_owned();
        // The first one is told; what fails then may do so because of it.
        self.0.failure.set(Failure { part, why }).ok();
        self.0.ending.drain.cancel();
    }

    /// The part that failed first, if one did.
    pub(super) fn failure(&self) -> Option<&Failure> {
        self.0.failure.get()
    }
}

/// A part that is watched for as long as this lives.
#[derive(Debug)]
pub(super) struct Watched {
    supervisor: Supervisor,
    part: String,
    told: CancellationToken,
    failed: bool,
}

impl Watched {
    fn panicked(&mut self, text: String) {
        self.failed = true;
        self.supervisor.failed(&self.part, Why::Panicked(text));
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let why = match std::thread::panicking() {
            true => Why::Panicked("see the log".to_owned()),
            false if self.told.is_cancelled() || self.supervisor.0.ending.stop.is_cancelled() => {
                return;
            }
            false => Why::Ended,
        };
        if !self.failed {
            self.supervisor.failed(&self.part, why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supervisor() -> (Supervisor, Ending) {
        let ending = Ending::default();
        (Supervisor::new("w-1", &ending), ending)
    }

    #[tokio::test]
    async fn whatever_ends_before_its_time_has_the_worker_drain() {
        let told = CancellationToken::new();
        let (one, ending) = supervisor();
        assert_eq!(one.run("a", &told, async { 7 }).await, Some(7));
        assert!(ending.drain.is_cancelled() && !ending.stop.is_cancelled());
        one.failed("b", Why::Hangs);
        let failure = one.failure().unwrap();
        assert_eq!((failure.part.as_str(), &failure.why), ("a", &Why::Ended));

        let (two, ending) = supervisor();
        let ended: Option<()> = two.run("b", &told, async { panic!("no") }).await;
        assert_eq!(ended, None);
        assert!(ending.drain.is_cancelled());
        assert_eq!(two.failure().unwrap().why, Why::Panicked("no".into()));

        // It is called off.
        let (three, _) = supervisor();
        drop(three.run("c", &told, std::future::pending::<()>()));
        assert_eq!(three.failure(), None, "it never began");
        let mut begun = Box::pin(three.run("c", &told, std::future::pending::<()>()));
        assert!(futures_util::poll!(&mut begun).is_pending());
        drop(begun);
        assert_eq!(three.failure().unwrap().why, Why::Ended);
    }

    #[tokio::test]
    async fn what_was_told_to_end_may_but_not_by_a_panic() {
        let told = CancellationToken::new();
        told.cancel();
        let (supervisor, _) = supervisor();
        assert_eq!(supervisor.run("a", &told, async { 7 }).await, Some(7));
        assert_eq!(supervisor.failure(), None);
        let _: Option<()> = supervisor.run("a", &told, async { panic!("no") }).await;
        assert!(supervisor.failure().is_some());
    }
}
