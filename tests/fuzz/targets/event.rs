//! Any fields as a stream entry: it is an event within the limits, or malformed with a reason, and
//! no reply ever goes where none may.

#![no_main]

mod fields;

use convoke::protocol::event::{Entry, EntryId, Event, Limits};
use convoke::protocol::keys::Keys;
use convoke::protocol::trace::TraceContext;
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

fuzz_target!(|data: &[u8]| {
    let keys = Keys::new("cb").expect("a namespace");
    let limits = Limits::default();
    let words = fields::cut(&NAMES, data);
    let words = words
        .into_iter()
        .flat_map(|(name, value)| [name.as_bytes(), value]);
    let entry = Entry::new(EntryId { ms: 1, seq: 0 }, words);
    let whole = entry.clone();
    match Event::parse(entry, &limits, &keys, STREAM) {
        Ok(event) => {
            assert!(convoke::protocol::keys::is_event_type(event.kind().as_bytes()));
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
