//! Logs, on stderr, whatever becomes of it.
//!
//! A full disk, a closed pipe or a reader that stands still must harm no work. So writing never fails,
//! and a worker's lines are put into a queue, which never waits; a thread writes them. What finds the
//! queue full is dropped and counted.

use crate::mutex::locked;
use crate::telemetry::logs::ToTelemetry;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write, stderr};
use std::panic::PanicHookInfo;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tracing::subscriber::NoSubscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::{Layer as _, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Bytes that may wait for stderr.
const WAITING: usize = 4 << 20;
/// How long the end of the process waits for what is to be written still.
const END: Duration = Duration::from_secs(1);

/// The log of this process; dropped, it writes what waits.
pub struct Logs(Option<Arc<Queue>>);

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

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// For people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// Starts logging what the filter lets through, by a thread of its own if `apart`. It does nothing where
/// somebody else has begun to take what is logged.
///
/// # Errors
/// For a filter that cannot be read.
pub fn start(filter: &str, form: Form, apart: bool) -> Result<Logs, ParseError> {
    let filter = EnvFilter::try_new(filter)?;
    let queue = apart.then(Queue::written).flatten();
    let lines = queue.clone();
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(move || Line(lines.clone()))
        // It would tell them on stderr, and panic where that fails.
        .log_internal_errors(false)
        .with_ansi(may_colour(stderr().is_terminal()));
    let layer = match form {
        Form::Text => layer.with_target(false).boxed(),
        Form::Json => layer.json().flatten_event(true).boxed(),
    };
    let all = tracing_subscriber::registry().with(filter);
    // What fails is that there is one already.
    all.with(layer).with(ToTelemetry).try_init().ok();
    Ok(Logs(queue))
}

/// What a worker does whose program takes no logs by then, neither of `tracing` nor of `log`: they go to stderr, as
/// `CONVOKE_LOG` and `CONVOKE_LOG_FORMAT` say.
pub(super) fn unless_taken() -> Option<Logs> {
    let traced = !tracing::dispatcher::get_default(|taken| taken.is::<NoSubscriber>());
    if traced || log::max_level() != log::LevelFilter::Off {
        return None;
    }
    let text = |name| std::env::var(name).unwrap_or_default();
    let form = match text("CONVOKE_LOG_FORMAT").as_str() {
        "json" => Form::Json,
        _ => Form::Text,
    };
    let filter = text("CONVOKE_LOG");
    let usual = || start("info", form, true).ok();
    if filter.is_empty() {
        return usual();
    }
    start(&filter, form, true).ok().or_else(|| {
        let logs = usual();
        tracing::warn!("CONVOKE_LOG={filter:?} is no filter; info is logged");
        logs
    })
}

/// Whether to colour what is written, where it is to a terminal.
pub fn may_colour(terminal: bool) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    terminal && !refused && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Has panics told by the log, as everything else.
pub fn tell_panics() {
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
        locked(&self.lines)
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
