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
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// How long a thread waits for something to do.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// The threads of a process. They come when they are needed, and go when they were idle for a while; how many are needed
/// at a time, the slots of the lanes bound.
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

/// A run on one of the threads, begun in its first poll. Dropped, it ends at the next moment at which it waits for
/// something; what blocks goes on until then.
pub(crate) fn run(
    threads: &Threads,
    context: &Context,
    start: impl FnOnce() -> Run + Send + 'static,
) -> Run {
    let (threads, context) = (threads.clone(), context.clone());
    Box::pin(async move {
        let (sender, ended) = oneshot::channel();
        let runtime = Handle::current();
        let stop = CancellationToken::new();
        let _stops = stop.clone().drop_guard();
        let busy = context.holds_a_thread().drop_guard();
        let job = move || {
            // All of it is dropped here, on the thread that may block.
            let result = catch(|| runtime.block_on(unless(stop, start)));
            drop(busy);
            if let Some(result) = result.unwrap_or_else(|error| Some(Err(error))) {
                sender.send(result).ok();
            }
        };
        if let Err(error) = threads.run(Box::new(job)) {
            let message = format!("no thread can be had for it: {error}");
            return Err(HandlerError::later(Duration::from_secs(1), message));
        }
        let gone = || HandlerError::internal("the run's thread ended without a result");
        ended.await.unwrap_or_else(|_| Err(gone()))
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
