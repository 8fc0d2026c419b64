//! What waits to be written, and who writes it.

use super::document::{Attributes, Line, Resource, Value};
use super::file::File;
use super::measures::Measures;
use super::span::Span;
use crate::mutex::locked;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that may wait, about.
const WAITING: usize = 8 << 20;
/// How long what was told waits for more to be written with it.
const PAUSE: Duration = Duration::from_millis(200);
/// Spans, or log records, in one line: a collector reads lines of 1 MiB.
const IN_LINE: usize = 100;
/// How long the end of a worker waits for what is to be written still.
const END: Duration = Duration::from_secs(1);

/// A line of the log.
#[cfg_attr(not(feature = "logs"), allow(dead_code))]
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LogRecord {
    /// When, in nanoseconds since 1970.
    pub time_unix_nano: String,
    /// When it was taken in; here that is the same.
    pub observed_time_unix_nano: String,
    /// 1 to 24.
    pub severity_number: u8,
    /// `INFO` and so on.
    pub severity_text: &'static str,
    /// The message.
    pub body: Value,
    /// All besides.
    pub attributes: Attributes,
    /// The trace of the run in which it was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// The run's span.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span_id: Option<String>,
}

/// What waits.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    spans: Vec<Span>,
    logs: Vec<LogRecord>,
    measures: Option<Measures>,
    bytes: usize,
    ends: bool,
    ended: bool,
}

impl Queue {
    pub(super) fn span(&self, span: Span) {
        self.add(span.weight(), |waiting| waiting.spans.push(span));
    }

    #[cfg(feature = "logs")]
    pub(super) fn log(&self, record: LogRecord) {
        let attributes = record.attributes.iter();
        let weight: usize = attributes.map(super::document::Attribute::weight).sum();
        let body = match &record.body {
            Value::StringValue(text) => text.len(),
            _ => 0,
        };
        let weight = size_of::<LogRecord>() + weight + body;
        self.add(weight, |waiting| waiting.logs.push(record));
    }

    /// Only the newest is kept: it says all that older ones said.
    pub(super) fn measures(&self, measures: Measures) {
        locked(&self.waiting).measures = Some(measures);
    }

    fn add(&self, bytes: usize, add: impl FnOnce(&mut Waiting)) {
        let mut waiting = locked(&self.waiting);
        if waiting.bytes + bytes > WAITING || waiting.ended {
            drop(waiting);
            self.drops(1);
            return;
        }
        waiting.bytes += bytes;
        add(&mut waiting);
        // It is looked at by itself before that, so that nobody is woken for each.
        let much = waiting.bytes > WAITING / 4;
        drop(waiting);
        if much {
            self.changed.notify_all();
        }
    }

    fn drops(&self, count: u64) {
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Writes what comes until it is told to end.
    pub(super) fn write_all(&self, mut file: File, resource: &Resource) {
        let (mut failed, mut told) = (false, 0);
        loop {
            let waiting = locked(&self.waiting);
            let idle = |waiting: &mut Waiting| !waiting.ends && waiting.bytes <= WAITING / 4;
            let woken = self.changed.wait_timeout_while(waiting, PAUSE, idle);
            let (mut waiting, _) = woken.unwrap_or_else(PoisonError::into_inner);
            let spans = std::mem::take(&mut waiting.spans);
            let logs = std::mem::take(&mut waiting.logs);
            let measures = waiting.measures.take();
            waiting.bytes = 0;
            let ends = waiting.ends;
            drop(waiting);
            let mut lost = 0;
            let mut why = None;
            let mut write = |line: &Line<'_>, records: usize| {
                let written = serde_json::to_vec(line).map_err(Into::into);
                let written = written.and_then(|mut line| {
                    line.push(b'\n');
                    file.write(&line)
                });
                if let Err(error) = written {
                    lost += records as u64;
                    why = Some(error);
                }
            };
            let is_idle = spans.is_empty() && logs.is_empty() && measures.is_none();
            for part in parts(spans) {
                let records = part.len();
                let part = part.into_iter();
                let part = part.map(|span| span.written(&resource.group, &resource.instance));
                write(&Line::spans(resource, part.collect()), records);
            }
            for part in parts(logs) {
                let records = part.len();
                write(&Line::logs(resource, part), records);
            }
            if let Some(mut measures) = measures {
                measures.dropped = self.dropped();
                write(&Line::metrics(resource, measures.metrics()), 1);
            }
            self.drops(lost);
            match &why {
                Some(error) if !failed => {
                    tracing::warn!(file = %file, %error, "telemetry cannot be written; trying again with what comes");
                }
                None if failed && !is_idle => {
                    tracing::info!(file = %file, "telemetry is written again");
                }
                _ => {}
            }
            failed = why.is_some() || failed && is_idle;
            if self.dropped() > told && !failed {
                told = self.dropped();
                tracing::warn!(
                    dropped = told,
                    "records of telemetry were dropped so far: they came faster than they are written"
                );
            }
            if ends {
                locked(&self.waiting).ended = true;
                self.changed.notify_all();
                return;
            }
        }
    }

    /// Has all be written, and the writing end; waits for it, though not for ever.
    pub(super) fn end(&self) {
        let mut waiting = locked(&self.waiting);
        waiting.ends = true;
        self.changed.notify_all();
        let until = Instant::now() + END;
        while !waiting.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.changed.wait_timeout(waiting, left);
            (waiting, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn parts<T>(all: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    let mut all = all.into_iter();
    std::iter::from_fn(move || {
        let part: Vec<T> = all.by_ref().take(IN_LINE).collect();
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::entry::EntryId;
    use crate::protocol::trace::TraceContext;
    use crate::telemetry::{Message, Options, Work};
    use std::sync::Arc;

    fn span(bytes: usize) -> Span {
        Span {
            own: TraceContext::begin(1, true),
            parent: None,
            work: Work::Run,
            message: Message {
                stream: "cb:events:a".to_owned(),
                kind: "a.b".to_owned(),
                id: "x".repeat(bytes),
                entry: EntryId::default(),
                attempt: 1,
                deliveries: 1,
                bytes: 0,
            },
            times: (1, 2),
            error: None,
        }
    }

    fn resource() -> Resource {
        Resource::new(&Options {
            path: "",
            sample: 1.0,
            size: 1,
            instance: "w-1",
            group: "workers",
            namespace: "cb",
        })
    }

    #[test]
    fn a_file_that_nobody_reads_holds_nobody_up_and_takes_no_memory() {
        let place = std::env::temp_dir().join(format!("convoke-pipe-{:x}", fastrand::u64(..)));
        let made = std::process::Command::new("mkfifo").arg(&place).status();
        assert!(made.unwrap().success());
        let queue = Arc::<Queue>::default();
        let (writes, file) = (queue.clone(), File::new(Some(place.clone()), 1 << 30));
        let writer = std::thread::spawn(move || writes.write_all(file, &resource()));
        for _ in 0..300 {
            queue.span(span(WAITING / 100));
            assert!(locked(&queue.waiting).bytes <= WAITING);
        }
        // At most what waits and what the writer took once.
        assert!(queue.dropped() >= 100, "{}", queue.dropped());
        // Who reads it at last has whole lines.
        let text = std::thread::spawn({
            let place = place.clone();
            move || std::fs::read_to_string(place).unwrap()
        });
        queue.end();
        writer.join().unwrap();
        for line in text.join().unwrap().lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
        std::fs::remove_file(place).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let queue = Arc::<Queue>::default();
        queue.span(span(1));
        queue.span(span(1));
        locked(&queue.waiting).ends = true;
        let nowhere = Some("/nowhere/there/is/nothing.jsonl".into());
        queue.write_all(File::new(nowhere, 1 << 30), &resource());
        assert_eq!(queue.dropped(), 2);
        // Nobody writes any more.
        queue.span(span(1));
        assert_eq!(queue.dropped(), 3);
    }
}
