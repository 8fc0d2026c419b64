//! Runs, counts and the log of a worker, written for OpenTelemetry: OTLP as JSON lines in a file.
//!
//! It must never slow or stop the work. So what is told goes into a bounded queue, which never waits; a thread of its own
//! writes it. What finds the queue full, or cannot be written, is dropped and counted. Where no file is set, a run
//! pays one comparison.
//!
//! # Whose trace it is
//!
//! | an event | trace | parent | told |
//! |---|---|---|---|
//! | with a `traceparent` | the publisher's | the publisher's span | if its flag says so |
//! | without | made from type and id, so each attempt and each worker has the same | none | by the ratio, from the trace id |
//!
//! A retry keeps the `traceparent`: each attempt is a span of its own beside the others.

#[cfg_attr(
    not(feature = "logs"),
    allow(dead_code, reason = "some values are only in the log")
)]
mod document;
mod file;
#[cfg(feature = "logs")]
#[doc(hidden)]
pub mod logs;
#[doc(hidden)]
pub mod measures;
mod queue;
mod span;

pub(crate) use span::{Message, Settling, Span, Work};

use crate::protocol::event::Event;
use crate::protocol::trace::TraceContext;
use document::Resource;
use file::File;
use measures::Measures;
use queue::Queue;
use sha1_smol::Sha1;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What is told, where it goes and how much of it.
#[derive(Clone, Debug)]
pub struct Telemetry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    queue: Arc<Queue>,
    resource: Resource,
    namespace: String,
    path: String,
    size: u64,
    /// Traces whose lower 56 bits are below it are told.
    share: u64,
}

/// Who tells it, and where to.
pub(crate) struct Options<'a> {
    /// The file; `-` is standard output.
    pub path: &'a str,
    /// Which part of the traces that begin here.
    pub sample: f64,
    /// Bytes of the file, at the most; then it is put aside.
    pub size: u64,
    /// The instance's id.
    pub instance: &'a str,
    /// The consumer group.
    pub group: &'a str,
    /// The first part of every key.
    pub namespace: &'a str,
}

/// Bits of a trace id that are random, by the W3C's second edition: the lower 56.
const RANDOM: u64 = (1 << 56) - 1;

/// Dropped, it writes what waits, and ends.
pub(crate) struct Telling(Telemetry);

impl Telemetry {
    /// Collects from now on; nothing is written yet. `None` without a file.
    pub(crate) fn new(options: &Options<'_>) -> Option<Self> {
        if options.path.is_empty() {
            return None;
        }
        let share = (options.sample.clamp(0.0, 1.0) * (RANDOM + 1) as f64) as u64;
        Some(Self(Arc::new(Inner {
            queue: Arc::default(),
            resource: Resource::new(options),
            namespace: options.namespace.to_owned(),
            path: options.path.replace("{id}", options.instance),
            size: options.size,
            share,
        })))
    }

    /// Starts the thread that writes.
    pub(crate) fn start(&self) -> io::Result<Telling> {
        let path = Some(&self.0.path).filter(|path| *path != "-");
        let file = File::new(path.map(PathBuf::from), self.0.size);
        let (queue, resource) = (self.0.queue.clone(), self.0.resource.clone());
        let thread = std::thread::Builder::new().name("telemetry".to_owned());
        thread.spawn(move || queue.write_all(file, &resource))?;
        #[cfg(feature = "logs")]
        logs::take(&self.0.queue);
        Ok(Telling(self.clone()))
    }

    /// The span of a run whose event came with no trace: one that begins here.
    pub(crate) fn root(&self, event: &Event) -> TraceContext {
        let mut digest = Sha1::new();
        for part in [&self.0.namespace, event.kind(), &event.id()] {
            digest.update(part.as_bytes());
            digest.update(b"\n");
        }
        let bytes = digest.digest().bytes();
        let trace = bytes.iter().take(16);
        let trace = trace.fold(0, |trace, byte| trace << 8 | u128::from(*byte));
        let told = (trace as u64 & RANDOM) < self.0.share;
        TraceContext::begin(trace, told)
    }

    /// Reports a span that has ended.
    pub(crate) fn tell(&self, span: Span) {
        self.0.queue.span(span);
    }

    /// Reports how much was done so far.
    pub(crate) fn measured(&self, measures: Measures) {
        self.0.queue.measures(measures);
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.0.queue.end();
    }
}

/// Nanoseconds since 1970.
pub(crate) fn unix_ns(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().min(u128::from(u64::MAX)) as u64
}

/// When something began and ended that ends now, in nanoseconds since 1970.
pub(crate) fn lasted(elapsed: Duration) -> (u64, u64) {
    let end = unix_ns(SystemTime::now());
    let elapsed = elapsed.as_nanos().min(u128::from(end)) as u64;
    (end - elapsed, end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn telemetry(sample: f64) -> Telemetry {
        let options = Options {
            path: "-",
            sample,
            size: 1,
            instance: "w-1",
            group: "workers",
            namespace: "cb",
        };
        Telemetry::new(&options).unwrap()
    }

    fn event(id: &str) -> Event {
        let context = testing::event(&()).id(id).context();
        context.event().clone()
    }

    #[test]
    fn the_same_event_has_the_same_trace_and_lot_wherever_it_runs() {
        let (half, all, none) = (telemetry(0.5), telemetry(1.0), telemetry(0.0));
        let mut told = 0;
        for n in 0..1000 {
            let event = event(&format!("e-{n}"));
            let root = half.root(&event);
            assert_eq!(root.trace_id(), telemetry(0.5).root(&event).trace_id());
            assert_eq!(root.is_sampled(), half.root(&event).is_sampled());
            assert_ne!(root.span_id(), half.root(&event).span_id());
            assert!(all.root(&event).is_sampled() && !none.root(&event).is_sampled());
            assert!(!root.is_sampled() || telemetry(0.6).root(&event).is_sampled());
            told += u32::from(root.is_sampled());
        }
        assert!((400..600).contains(&told), "{told}");
    }

    #[test]
    fn without_a_file_there_is_nothing() {
        let options = Options {
            path: "",
            sample: 1.0,
            size: 1,
            instance: "w-1",
            group: "workers",
            namespace: "cb",
        };
        assert!(Telemetry::new(&options).is_none());
    }
}
