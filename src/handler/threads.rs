//! Threads that may block, for runs of handlers whose policy says that they do.
//!
//! They are not the runtime's: it would wait for them when it ends, however long a handler blocks. A run keeps its slot,
//! its permit and its place in the line of its subject until its thread is free, also where its time was over before that.

use crate::handler::context::Context;
use crate::handler::fence::{Fenced, catch};
use crate::handler::function::{Encoded, Run};
use crate::mutex::locked;
use crate::protocol::error::HandlerError;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::Builder;
use std::time::Duration;
use std::{fmt, iter, mem};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

/// How long a thread waits for something to do.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// The threads of a process. They come when they are needed, and go when they were idle for a while; how many are needed
/// at a time, the slots of the lanes bound: a run holds its slot for what its parts block, too.
#[derive(Clone, Default)]
pub struct Threads(Arc<Pool>);

#[derive(Default)]
struct Pool {
    queue: Mutex<Queue>,
    comes: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Threads that wait and were given nothing yet.
    idle: usize,
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Threads")
    }
}

impl Threads {
    /// Runs it on a thread that waits, or on a new one.
    fn run(&self, job: Job) -> std::io::Result<()> {
        let mut queue = locked(&self.0.queue);
        if queue.idle > 0 {
            queue.idle -= 1;
            queue.jobs.push_back(job);
            self.0.comes.notify_one();
            return Ok(());
        }
        drop(queue);
        let pool = self.0.clone();
        let thread = Builder::new().name("convoke-blocks".to_owned());
        thread.spawn(move || {
            job();
            pool.work();
        })?;
        Ok(())
    }
}

impl Pool {
    fn work(&self) {
        while let Some(job) = self.next() {
            job();
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = locked(&self.queue);
        queue.idle += 1;
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            let waited = self.comes.wait_timeout(queue, IDLE);
            let (next, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = next;
            if waited.timed_out() && queue.jobs.is_empty() {
                queue.idle -= 1;
                return None;
            }
        }
    }
}

/// The threads that an event's run holds, or may. A layer may have the handler called more than once.
#[derive(Default)]
pub(super) struct Holds {
    /// How many, and what is cancelled when the last one is free.
    now: Mutex<Option<(usize, CancellationToken)>>,
    /// The run that it is a part of: that one holds them as well.
    whole: OnceLock<Context>,
}

impl Context {
    /// The threads that the run holds still, though it has ended: its time was over, and it blocks. Is cancelled when
    /// they are free.
    pub(crate) fn left_behind(&self) -> Option<CancellationToken> {
        let now = locked(&self.holds().now);
        now.as_ref().map(|(_, free)| free.clone())
    }

    /// Notes which run it is a part of, before it begins.
    pub(super) fn is_part_of(&self, whole: &Context) {
        self.holds().whole.set(whole.clone()).ok();
    }

    fn and_wholes(&self) -> impl Iterator<Item = &Context> {
        iter::successors(Some(self), |one| one.holds().whole.get())
    }
}

/// A thread that a run holds.
struct Held(Context);

impl Held {
    fn new(context: &Context) -> Self {
        for one in context.and_wholes() {
            let mut now = locked(&one.holds().now);
            now.get_or_insert_default().0 += 1;
        }
        Self(context.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Who waits for the part finds the whole one free.
        let all: Vec<_> = self.0.and_wholes().collect();
        for one in all.into_iter().rev() {
            let mut now = locked(&one.holds().now);
            match now.as_mut() {
                Some((more, _)) if *more > 1 => *more -= 1,
                _ => {
                    let last = now.take();
                    drop(now);
                    if let Some((_, free)) = last {
                        free.cancel();
                    }
                }
            }
        }
    }
}

/// The end of a call: dropped before it, it cancels what the handler watches.
pub(crate) struct Ends(Vec<CancellationToken>);

impl Ends {
    /// Has the contexts be those of one call.
    pub(crate) fn of(contexts: &mut [Context]) -> Self {
        let ends = contexts.iter_mut().map(|context| {
            *context = context.of_a_call();
            context.cancellation().clone()
        });
        Self(ends.collect())
    }

    fn came(mut self) {
        mem::take(&mut self.0);
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.iter().for_each(CancellationToken::cancel);
    }
}

/// A run on one of the threads, begun in its first poll. Dropped, it ends at the next moment at which it waits for
/// something; what blocks goes on until then, unless it watches its cancellation.
pub(crate) fn run(
    threads: &Threads,
    context: &Context,
    ends: Ends,
    start: impl FnOnce() -> Run + Send + 'static,
) -> Run {
    let (threads, context) = (threads.clone(), context.clone());
    Box::pin(async move {
        let (sender, ended) = oneshot::channel();
        let runtime = Handle::current();
        let stop = CancellationToken::new();
        let _stops = stop.clone().drop_guard();
        let held = Held::new(&context);
        let span = Span::current();
        let job = move || {
            // All of it is dropped here, on the thread that may block.
            let result = catch(|| runtime.block_on(unless(stop, start).instrument(span)));
            drop(held);
            if let Some(result) = result.unwrap_or_else(|error| Some(Err(error))) {
                sender.send(result).ok();
            }
        };
        if let Err(error) = threads.run(Box::new(job)) {
            let message = format!("no thread can be had for it: {error}");
            return Err(HandlerError::later(Duration::from_secs(1), message));
        }
        let gone = || HandlerError::internal("the run's thread ended without a result");
        let result = ended.await.unwrap_or_else(|_| Err(gone()));
        ends.came();
        result
    })
}

async fn unless(
    stop: CancellationToken,
    start: impl FnOnce() -> Run,
) -> Option<Result<Encoded, HandlerError>> {
    if stop.is_cancelled() {
        return None;
    }
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        result = Fenced::start(start) => Some(result),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_thread_that_is_free_takes_the_next_and_one_more_comes_where_all_are_busy() {
        let threads = Threads::default();
        let (sender, ran) = mpsc::channel();
        let job = |wait: Option<mpsc::Receiver<()>>| {
            let sender = sender.clone();
            let job: Job = Box::new(move || {
                sender.send(std::thread::current().id()).unwrap();
                if let Some(wait) = wait {
                    wait.recv().ok();
                }
            });
            threads.run(job).unwrap();
            ran.recv().unwrap()
        };
        let (lets_go, held) = mpsc::channel::<()>();
        let first = job(Some(held));
        let second = job(None);
        assert_ne!(first, second);
        let idle = || locked(&threads.0.queue).idle;
        while idle() < 1 {
            std::thread::yield_now();
        }
        assert_eq!(job(None), second);
        drop(lets_go);
    }
}
