//! How far a run is, as its handler says, and the way from there to whoever writes it.
//!
//! A run tells as often as it likes: only the newest is kept, and at most one message is under way for each run.
//! Whoever writes takes what is newest by then, and at the run's end what is left, before the outcome is committed.

use crate::handler::context::Context;
use crate::mutex::locked;
use crate::protocol::progress::Progress;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// A message of a run to whoever writes.
#[derive(Debug)]
pub enum Tell {
    /// A run has something new to tell.
    News(Context),
    /// A run has ended. What is left is written now, and then that is said.
    Last(Context, oneshot::Sender<()>),
}

/// The way from all runs of a process to whoever writes; nobody does until it is opened.
#[derive(Debug, Default)]
pub struct ProgressChannel {
    to: OnceLock<mpsc::UnboundedSender<Tell>>,
    dropped: AtomicU64,
}

impl ProgressChannel {
    /// Opens it, once: what comes out.
    pub(crate) fn open(&self) -> mpsc::UnboundedReceiver<Tell> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.to.set(sender).ok();
        receiver
    }

    /// Whether it went.
    fn send(&self, tell: Tell) -> bool {
        self.to.get().is_some_and(|to| to.send(tell).is_ok())
    }

    /// Notes that this many could not be written.
    pub(crate) fn drops(&self, count: u64) {
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }

    /// How many could not be written so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// How far one run is, as it told last; nothing where it tells nothing.
#[derive(Debug, Default)]
pub(super) struct Told(OnceLock<Box<Mutex<Newest>>>);

#[derive(Debug, Default)]
struct Newest {
    progress: Progress,
    /// The newest was not written yet.
    unsent: bool,
    /// When one was written last.
    written: Option<Instant>,
    /// A message is under way, or in the hands of whoever writes.
    under_way: bool,
    /// The run has ended: what comes now is too late.
    ended: bool,
    /// All of it, where somebody looks at it after the run.
    all: Option<Vec<Progress>>,
}

impl Context {
    /// Tells how far the run is, to whoever asked for the event's reply. It costs next to nothing: tell it as often
    /// as there is something new.
    ///
    /// A requester gets it before the reply, a few times a second at the most: the newest then, and what is newest at
    /// the end. It is no part of what is committed: it is seen at once, even if the run fails afterwards, and a run
    /// that is repeated tells it again. Nobody is told where the event names no `replyto`.
    ///
    /// ```
    /// use convoke::{Context, HandlerError, Progress};
    ///
    /// async fn import(ctx: Context, rows: Vec<String>) -> Result<usize, HandlerError> {
    ///     for done in 0..rows.len() {
    ///         // …
    ///         ctx.progress(Progress::new(done as u64 + 1).of(rows.len() as u64).note("rows"));
    ///     }
    ///     Ok(rows.len())
    /// }
    /// ```
    pub fn progress(&self, progress: Progress) {
        let told = self.told().0.get_or_init(Box::default);
        let mut told = locked(told);
        if told.ended {
            return;
        }
        told.progress = progress.bounded();
        told.unsent = true;
        let newest = told.progress.clone();
        if let Some(all) = &mut told.all {
            all.push(newest);
        }
        if !told.under_way && self.event().reply_to().is_some() {
            told.under_way = self.process().progress.send(Tell::News(self.clone()));
        }
    }

    /// Keeps all that the run tells from now on, for whoever looks at it afterwards.
    #[cfg(feature = "testing")]
    pub(crate) fn keeps_progress(&self) {
        let told = self.told().0.get_or_init(Box::default);
        locked(told).all.get_or_insert_default();
    }

    /// All that the run told, where it was kept.
    #[cfg(feature = "testing")]
    pub(crate) fn kept_progress(&self) -> Vec<Progress> {
        let told = self.told().0.get();
        told.and_then(|told| locked(told).all.take())
            .unwrap_or_default()
    }

    /// How far the run is, as it told last.
    pub(crate) fn newest_progress(&self) -> Option<Progress> {
        let told = self.told().0.get()?;
        Some(locked(told).progress.clone())
    }

    /// When the last one was written.
    pub(crate) fn written_last(&self) -> Option<Instant> {
        locked(self.told().0.get()?).written
    }

    /// Takes what is to be written now.
    pub(crate) fn take_progress(&self) -> Option<Progress> {
        let mut told = locked(self.told().0.get()?);
        std::mem::take(&mut told.unsent).then(|| told.progress.clone())
    }

    /// Notes that what was taken is written; whether there is something newer by now.
    pub(crate) fn progress_is_written(&self) -> bool {
        let Some(told) = self.told().0.get() else {
            return false;
        };
        let mut told = locked(told);
        told.written = Some(Instant::now());
        told.under_way = told.unsent && !told.ended;
        told.under_way
    }

    /// Ends the telling with the run. What is ready once all of it is written, or given up; nothing if it is.
    pub(crate) fn end_progress(&self) -> Option<oneshot::Receiver<()>> {
        let mut told = locked(self.told().0.get()?);
        told.ended = true;
        if !told.under_way {
            return None;
        }
        let (sender, written) = oneshot::channel();
        let last = Tell::Last(self.clone(), sender);
        self.process().progress.send(last).then_some(written)
    }
}
