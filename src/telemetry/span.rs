//! One span: a run, a part of one, an event that it published, its settlement.
//!
//! The names are those of OpenTelemetry's conventions for messaging; what those have no word for is `convoke.*`.

use super::document::{Attribute, Attributes};
use crate::protocol::entry::EntryId;
use crate::protocol::event::Event;
use crate::protocol::trace::TraceContext;
use serde::Serialize;

/// What is done in a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// A run of a handler on an event.
    Run,
    /// A run of a handler on a part of an event's work: an item of a batch, a task.
    Part,
    /// An event that a run published.
    Send,
    /// What became of the event.
    Settle(Settling),
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settling {
    /// The event is done with.
    Ack,
    /// The event is tried again, or waits.
    Retry,
    /// The event is a dead letter.
    Dead,
}

/// What a span says of its event; shared by all spans of a run.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// The stream.
    pub stream: String,
    /// The event's type.
    pub kind: String,
    /// The event's id.
    pub id: String,
    /// Its entry.
    pub entry: EntryId,
    /// 1 on the first try.
    pub attempt: u32,
    /// How often it was delivered.
    pub deliveries: u32,
    /// Bytes of the payload.
    pub bytes: usize,
}

impl Message {
    /// What is said about that event.
    pub(crate) fn of(event: &Event, stream: &str, deliveries: u32) -> Self {
        Self {
            stream: stream.to_owned(),
            kind: event.kind().to_owned(),
            id: event.id(),
            entry: event.entry_id(),
            attempt: event.attempt(),
            deliveries,
            bytes: event.data().len(),
        }
    }
}

/// A span that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    /// Which one.
    pub own: TraceContext,
    /// Its parent, if it has one.
    pub parent: Option<TraceContext>,
    /// What was done.
    pub work: Work,
    /// What it says of its event.
    pub message: Message,
    /// When it began and ended, in nanoseconds since 1970.
    pub times: (u64, u64),
    /// The code and the message of what went wrong.
    pub error: Option<(&'static str, String)>,
}

/// `SpanKind` of the protocol.
const INTERNAL: u8 = 1;
const CLIENT: u8 = 3;
const PRODUCER: u8 = 4;
const CONSUMER: u8 = 5;

/// Bits of a span's flags besides those of the W3C: whether its parent is another process's is known, and is so.
const HAS_REMOTE: u32 = 0x100;
const REMOTE: u32 = 0x200;

/// A span as the protocol writes it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Written {
    trace_id: String,
    span_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<String>,
    flags: u32,
    name: String,
    kind: u8,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    attributes: Attributes,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
}

#[derive(Debug, Serialize)]
struct Status {
    message: String,
    /// 2 is an error.
    code: u8,
}

impl Span {
    /// About how many bytes it takes while it waits.
    pub(super) fn weight(&self) -> usize {
        let Message {
            stream, kind, id, ..
        } = &self.message;
        let error = self.error.as_ref().map_or(0, |(_, message)| message.len());
        size_of::<Self>() + stream.len() + kind.len() + id.len() + error
    }

    /// As the protocol writes it.
    pub(super) fn written(self, group: &str, instance: &str) -> Written {
        let (operation, r#type, kind) = match self.work {
            Work::Run => ("process", "process", CONSUMER),
            Work::Part => ("process", "process", INTERNAL),
            Work::Send => ("publish", "send", PRODUCER),
            Work::Settle(Settling::Ack) => ("ack", "settle", CLIENT),
            Work::Settle(Settling::Retry) => ("retry", "settle", CLIENT),
            Work::Settle(Settling::Dead) => ("dead_letter", "settle", CLIENT),
        };
        let remote = match (self.parent, self.work) {
            (Some(_), Work::Run) => HAS_REMOTE | REMOTE,
            _ => HAS_REMOTE,
        };
        let is = self.message;
        let mut attributes = vec![
            Attribute::text("messaging.system", "redis_streams"),
            Attribute::text("messaging.operation.name", operation),
            Attribute::text("messaging.operation.type", r#type),
            Attribute::text("messaging.client.id", instance),
            Attribute::text("convoke.event.type", is.kind),
        ];
        let name = match self.work {
            // It has no stream of its own.
            Work::Part => format!("{operation} {}", attributes[4].as_text()),
            _ => format!("{operation} {}", is.stream),
        };
        if self.work != Work::Part {
            attributes.push(Attribute::text("messaging.destination.name", is.stream));
        }
        if self.work != Work::Send {
            attributes.extend([
                Attribute::text("messaging.consumer.group.name", group),
                Attribute::text("messaging.message.id", is.id),
                Attribute::text("convoke.entry", is.entry.to_string()),
                Attribute::number("convoke.attempt", is.attempt.into()),
                Attribute::number("convoke.deliveries", is.deliveries.into()),
            ]);
        }
        attributes.push(Attribute::number(
            "messaging.message.body.size",
            i64::try_from(is.bytes).unwrap_or(i64::MAX),
        ));
        let status = self.error.map(|(code, message)| {
            attributes.push(Attribute::text("error.type", code));
            Status { message, code: 2 }
        });
        Written {
            trace_id: self.own.trace_id(),
            span_id: self.own.span_id(),
            parent_span_id: self.parent.map(|parent| parent.span_id()),
            flags: u32::from(self.own.flags()) | remote,
            name,
            kind,
            start_time_unix_nano: self.times.0.to_string(),
            end_time_unix_nano: self.times.1.to_string(),
            attributes,
            status,
        }
    }
}
