//! Any fields as a stream entry: it is an event within the limits, or malformed with a reason, and
//! no reply ever goes where none may.

#![no_main]

use convoke::bus::event::{Entry, EntryId, Event, Limits};
use convoke::bus::keys::Keys;
use convoke::bus::trace::TraceContext;
use libfuzzer_sys::fuzz_target;

const STREAM: &str = "cb:events:image";
const NAMES: [&str; 12] = [
    "type",
    "data",
    "id",
    "source",
    "time",
    "subject",
    "replyto",
    "deadline",
    "traceparent",
    "attempt",
    "",
    "other",
];

/// One byte names a field, two say how long its value is.
fn fields(mut data: &[u8]) -> Vec<Vec<u8>> {
    let mut fields = Vec::new();
    while let [name, high, low, rest @ ..] = data {
        let name = NAMES[usize::from(*name) % NAMES.len()];
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (value, after) = rest.split_at(length);
        fields.push(name.as_bytes().to_vec());
        fields.push(value.to_vec());
        data = after;
    }
    fields
}

fuzz_target!(|data: &[u8]| {
    let keys = Keys::new("cb").expect("a namespace");
    let limits = Limits::default();
    let entry = Entry::new(EntryId { ms: 1, seq: 0 }, fields(data));
    let whole = entry.clone();
    match Event::parse(entry, &limits, &keys, STREAM) {
        Ok(event) => {
            assert!(convoke::bus::keys::is_event_type(event.kind().as_bytes()));
            if let Some(to) = event.reply_to() {
                assert!(keys.may_reply_to(to, STREAM));
            }
            event.traceparent().and_then(TraceContext::parse);
            let again = event.next_attempt();
            if again.len() / 2 <= limits.fields {
                let entry = Entry::new(EntryId { ms: 2, seq: 0 }, again);
                let again =
                    Event::parse(entry, &limits, &keys, STREAM).expect("a retry is an event");
                assert_eq!(again.id(), event.id());
            }
        }
        Err(bad) => {
            assert!(!bad.message.is_empty());
            assert_eq!(bad.entry, whole, "a dead letter keeps the fields");
            if let Some(to) = &bad.reply_to {
                assert!(keys.may_reply_to(to, STREAM));
            }
            bad.correlation_id();
        }
    }
});
