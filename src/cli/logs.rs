//! Logs, on stderr, whatever becomes of it.
//!
//! A full disk, a closed pipe or a reader that stands still must harm no work. So writing never fails,
//! and a worker's lines are put into a queue, which never waits; a thread writes them. What finds the
//! queue full is dropped and counted.

use super::{LogFormat, Misuse};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write, stderr};
use std::panic::PanicHookInfo;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Bytes that may wait for stderr.
const WAITING: usize = 4 << 20;
/// How long the end of the process waits for what is to be written still.
const END: Duration = Duration::from_secs(1);

/// The log of this process; dropped, it writes what waits.
pub(super) struct Logs(Option<Arc<Queue>>);

#[derive(Default)]
struct Queue {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    dropped: u64,
    writing: bool,
}

/// Starts logging what the filter lets through, by a thread of its own if `apart`.
pub(super) fn start(filter: &str, format: LogFormat, apart: bool) -> anyhow::Result<Logs> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Misuse::error(format_args!("--log {filter:?}: {error}")))?;
    let queue = apart.then(Queue::written).flatten();
    let lines = queue.clone();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || Line(lines.clone()))
        // It would tell them on stderr, and panic where that fails.
        .log_internal_errors(false)
        .with_ansi(super::output::may_colour(stderr().is_terminal()));
    match format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(Logs(queue))
}

/// Has panics told by the log, as everything else.
pub(super) fn tell_panics() {
    std::panic::set_hook(Box::new(tell_panic));
}

fn tell_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("a value that is no text");
    let at = panic.location().map(ToString::to_string);
    let thread = std::thread::current();
    let trace = Backtrace::capture();
    let trace = match trace.status() {
        BacktraceStatus::Captured => Some(trace.to_string()),
        _ => None,
    };
    tracing::error!(message, at, thread = thread.name(), trace, "panicked");
}

impl Queue {
    /// A queue that a thread writes to stderr; none where the system gives no thread.
    fn written() -> Option<Arc<Self>> {
        let queue = Arc::<Self>::default();
        let written = queue.clone();
        let thread = std::thread::Builder::new().name("log".into());
        let started = thread.spawn(move || written.write_all(|lines| stderr().write_all(lines)));
        started.is_ok().then_some(queue)
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: &[u8]) {
        let mut lines = self.lock();
        if lines.bytes + line.len() > WAITING {
            lines.dropped += 1;
            return;
        }
        lines.bytes += line.len();
        lines.waiting.push_back(line.to_vec());
        drop(lines);
        self.changed.notify_all();
    }

    /// Writes what comes, for as long as the process lives.
    fn write_all(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) {
        loop {
            let lines = self.lock();
            let waits = |lines: &mut Lines| lines.waiting.is_empty();
            let lines = self.changed.wait_while(lines, waits);
            let mut lines = lines.unwrap_or_else(PoisonError::into_inner);
            let now: Vec<u8> = lines.waiting.drain(..).flatten().collect();
            let dropped = std::mem::take(&mut lines.dropped);
            lines.bytes = 0;
            lines.writing = true;
            drop(lines);
            // Nobody is left whom one could tell.
            write(&now).ok();
            if dropped > 0 {
                tracing::warn!(
                    lines = dropped,
                    "lines of the log were dropped: stderr took them too slowly"
                );
            }
            self.lock().writing = false;
            self.changed.notify_all();
        }
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        let Some(queue) = &self.0 else {
            return;
        };
        let lines = queue.lock();
        let busy = |lines: &mut Lines| lines.writing || !lines.waiting.is_empty();
        let ended = queue.changed.wait_timeout_while(lines, END, busy);
        drop(ended.unwrap_or_else(PoisonError::into_inner));
    }
}

/// Takes one line, for the queue if there is one.
struct Line(Option<Arc<Queue>>);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Some(queue) => queue.add(line),
            // Nobody is left whom one could tell.
            None => _ = stderr().write_all(line),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_reader_that_stands_still_holds_nobody_up_and_takes_no_memory() {
        let queue = Arc::<Queue>::default();
        let (written, told) = mpsc::channel();
        let (go, goes) = mpsc::channel::<()>();
        let writes = queue.clone();
        std::thread::spawn(move || {
            writes.write_all(|lines| {
                goes.recv().ok();
                written.send(lines.to_vec()).ok();
                Err(io::ErrorKind::BrokenPipe.into())
            });
        });
        let mut line = Line(Some(queue.clone()));
        let long = vec![b'x'; WAITING / 4];
        line.write_all(&long).unwrap();
        while !queue.lock().writing {
            std::thread::yield_now();
        }
        for _ in 0..100 {
            line.write_all(&long).unwrap();
        }
        assert!(queue.lock().bytes <= WAITING);
        assert_eq!(queue.lock().dropped, 96);
        go.send(()).unwrap();
        go.send(()).unwrap();
        // What did not fit is gone.
        assert_eq!(told.recv().unwrap().len(), long.len());
        assert_eq!(told.recv().unwrap().len(), WAITING);
        drop(Logs(Some(queue)));
    }
}
