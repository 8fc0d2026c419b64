//! The log, as records beside the spans of the runs in which things were said.

use super::document::{Attribute, Attributes, Value};
use super::queue::{LogRecord, Queue};
use crate::mutex::locked;
use std::fmt::{Debug, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::SystemTime;
use tracing::field::{Field, Visit};
use tracing::span::{self, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Attributes of a record at the most, and bytes of each.
const ATTRIBUTES: usize = 32;
const BYTES: usize = 1024;

/// Whether there is somebody who takes the log.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// Who that is: the worker of this process that began last.
static TAKER: Mutex<Weak<Queue>> = Mutex::new(Weak::new());

/// Takes the log of this process from now on.
pub(super) fn take(queue: &Arc<Queue>) {
    *locked(&TAKER) = Arc::downgrade(queue);
    TAKEN.store(true, Ordering::Release);
}

/// Gives what is logged to the worker's telemetry, where it has one.
#[derive(Debug)]
pub struct ToTelemetry;

/// The trace of a run, kept with its `tracing` span.
#[derive(Default)]
struct OfRun {
    trace: String,
    span: String,
}

impl Visit for OfRun {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "trace" => value.clone_into(&mut self.trace),
            "span" => value.clone_into(&mut self.span),
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for ToTelemetry {
    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if !TAKEN.load(Ordering::Relaxed) {
            return;
        }
        let Some(span) = context.span(id) else { return };
        let mut extensions = span.extensions_mut();
        match extensions.get_mut::<OfRun>() {
            Some(run) => values.record(run),
            None => {
                let mut run = OfRun::default();
                values.record(&mut run);
                extensions.insert(run);
            }
        }
    }

    fn on_new_span(&self, _: &span::Attributes<'_>, _: &Id, _: Context<'_, S>) {}

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if !TAKEN.load(Ordering::Relaxed) {
            return;
        }
        let Some(queue) = locked(&TAKER).upgrade() else {
            return;
        };
        let mut said = Said::default();
        event.record(&mut said);
        let metadata = event.metadata();
        let (severity_number, severity_text) = severity(*metadata.level());
        let mut run = (None, None);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(of) = span.extensions().get::<OfRun>()
                && !of.trace.is_empty()
            {
                run = (Some(of.trace.clone()), Some(of.span.clone()));
                break;
            }
        }
        said.attributes
            .push(Attribute::text("code.namespace", metadata.target()));
        let now = super::unix_ns(SystemTime::now()).to_string();
        queue.log(LogRecord {
            time_unix_nano: now.clone(),
            observed_time_unix_nano: now,
            severity_number,
            severity_text,
            body: Value::StringValue(said.message),
            attributes: said.attributes,
            trace_id: run.0,
            span_id: run.1,
        });
    }
}

/// The numbers of the protocol.
fn severity(level: Level) -> (u8, &'static str) {
    match level {
        Level::TRACE => (1, "TRACE"),
        Level::DEBUG => (5, "DEBUG"),
        Level::INFO => (9, "INFO"),
        Level::WARN => (13, "WARN"),
        Level::ERROR => (17, "ERROR"),
    }
}

#[derive(Default)]
struct Said {
    message: String,
    attributes: Attributes,
}

impl Said {
    fn add(&mut self, field: &Field, value: Value) {
        if self.attributes.len() < ATTRIBUTES {
            self.attributes.push(Attribute::new(field.name(), value));
        }
    }
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(BYTES)].to_owned()
}

/// Takes as much text as is kept, and stops the writing then.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = BYTES.saturating_sub(self.0.len());
        let fits = text.floor_char_boundary(room);
        self.0.push_str(&text[..fits]);
        match fits == text.len() {
            true => Ok(()),
            false => Err(std::fmt::Error),
        }
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = cut(value),
            _ => self.add(field, Value::StringValue(cut(value))),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::IntValue(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match i64::try_from(value) {
            Ok(value) => self.add(field, Value::IntValue(value)),
            Err(_) => self.add(field, Value::StringValue(value.to_string())),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::BoolValue(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Value::DoubleValue(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = Bounded(String::new());
        // It ends where it is long enough.
        write!(text, "{value:?}").ok();
        match field.name() {
            "message" => self.message = text.0,
            _ => self.add(field, Value::StringValue(text.0)),
        }
    }
}
