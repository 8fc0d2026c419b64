//! A fact: one entry of the broadcast or of a dead letters' stream, as a row.
//!
//! Facts are taken as they come, whatever their types: what a later version reports is kept too.
//! What cannot be decoded is kept without its payload.

use crate::protocol::event::{Entry, EntryId, payload_of};
use crate::protocol::json;
use crate::protocol::keys;
use serde_json::{Map, Value};

/// The longest text of a column that is searched by, in characters.
const MAX_KEY: usize = 256;
/// The longest text of another field, in characters.
const MAX_TEXT: usize = 4096;
/// Fields besides the protocol's that are kept.
const MAX_FIELDS: usize = 64;

/// Which stream an entry came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The facts for everyone.
    Broadcast,
    /// Dead letters.
    Dead,
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// The namespace of the bus.
    pub namespace: String,
    /// The stream's key.
    pub stream: String,
    /// The entry's id: Unix ms by the clock of the Redis server, 2^63 - 1 at most.
    pub at: i64,
    /// The entry's id: counts the entries of one ms. Where the ms are more, see `$entry` of the
    /// fields.
    pub seq: i64,
    /// The event type.
    pub kind: String,
    /// When it was published, Unix ms.
    pub time: Option<i64>,
    /// Who published it.
    pub source: Option<String>,
    /// The id of the instance, task, batch or decision; of a dead letter the event's id.
    pub subject: Option<String>,
    /// The instance that did it.
    pub instance: Option<String>,
    /// Why an event is a dead letter; none for facts.
    pub reason: Option<String>,
    /// The payload.
    pub data: Value,
    /// The entry's other fields.
    pub fields: Value,
}

impl Fact {
    /// The row for an entry. Any entry makes one; a payload over `max_payload` bytes is left out.
    pub fn of(
        namespace: &str,
        stream: &str,
        origin: Origin,
        entry: &Entry,
        max_payload: usize,
    ) -> Self {
        let text = |name: &str| entry.get(name).map(|value| clean(value, MAX_KEY));
        let data = match payload_of(entry) {
            None => Value::Null,
            Some(data) if data.len() > max_payload => {
                left_out(&format!("{} bytes are over the limit", data.len()))
            }
            Some(data) => match json::to_json(&data) {
                Ok(data) => without_nul(data),
                Err(error) => left_out(&error.to_string()),
            },
        };
        let of_data = |name: &str| {
            let value = data.get(name)?.as_str()?;
            Some(clean(value.as_bytes(), MAX_KEY))
        };
        let kind = text("type").unwrap_or_default();
        let (subject, instance, reason) = match origin {
            Origin::Dead => (
                text("id").or_else(|| text("deadentry")),
                text("deadinstance"),
                Some(text("deadreason").unwrap_or_else(|| "unknown".into())),
            ),
            Origin::Broadcast => {
                let subject = match keys::domain_of(&kind) {
                    "instance" | "leader" => of_data("id"),
                    "task" => of_data("task_id"),
                    "batch" => of_data("batch_id"),
                    "quorum" => of_data("decision"),
                    "schedule" => of_data("name"),
                    "policy" => of_data("scope"),
                    "circuit" => of_data("type"),
                    "domain" | "partition" => of_data("domain"),
                    _ => None,
                };
                let instance = match keys::domain_of(&kind) {
                    "instance" | "leader" | "partition" => of_data("id"),
                    "batch" => of_data("processor_id"),
                    "circuit" => of_data("instance"),
                    _ => of_data("instance_id"),
                };
                (subject.or_else(|| text("subject")), instance, None)
            }
        };
        let known = ["type", "data", "time", "source"];
        let mut fields: Map<String, Value> = entry
            .pairs()
            .filter(|(name, _)| !known.iter().any(|known| known.as_bytes() == *name))
            .take(MAX_FIELDS)
            .map(|(name, value)| (clean(name, MAX_KEY), clean(value, MAX_TEXT).into()))
            .collect();
        let (at, seq) = place(entry.id);
        if entry.id.ms > at.cast_unsigned() {
            fields.insert("$entry".into(), entry.id.to_string().into());
        }
        Self {
            namespace: namespace.to_owned(),
            stream: stream.to_owned(),
            at,
            seq,
            kind,
            time: entry.get("time").and_then(time_of),
            source: text("source"),
            subject,
            instance,
            reason,
            data,
            fields: Value::Object(fields),
        }
    }

    /// The same row without what a database may not like.
    pub(super) fn stripped(&self, why: &str) -> Self {
        let plain = |text: &String| text.chars().filter(char::is_ascii_graphic).collect();
        Self {
            kind: plain(&self.kind),
            source: None,
            subject: None,
            instance: None,
            reason: self.reason.as_ref().map(plain),
            data: left_out(why),
            fields: Value::Object(Map::new()),
            ..self.clone()
        }
    }
}

/// Where an entry stands in time: its id, as the columns hold it. Anybody may give an entry an id
/// that is no time, and then all later ones of its stream have greater ids. Those stay in order, and
/// apart while their ms are less than 2^31 beyond the column and they count less than 2^32.
fn place(id: EntryId) -> (i64, i64) {
    match i64::try_from(id.ms) {
        Ok(at) => (at, id.seq.cast_signed()),
        Err(_) => {
            let beyond = (id.ms - i64::MAX.cast_unsigned()).min(i32::MAX as u64);
            let seq = beyond << 32 | id.seq.min(u32::MAX.into());
            (i64::MAX, seq.cast_signed())
        }
    }
}

fn left_out(why: &str) -> Value {
    serde_json::json!({ "$left_out": why.chars().take(MAX_KEY).collect::<String>() })
}

/// Text that every database takes: valid, short, without NUL.
fn clean(bytes: &[u8], most: usize) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .take(most)
        .map(|c| {
            if c == '\0' {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// PostgreSQL's jsonb has no NUL. The depth of the value is bounded already.
fn without_nul(value: Value) -> Value {
    let plain = |text: String| match text.contains('\0') {
        true => text.replace('\0', "\u{fffd}"),
        false => text,
    };
    match value {
        Value::String(text) => Value::String(plain(text)),
        Value::Array(items) => items.into_iter().map(without_nul).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| (plain(name), without_nul(value)))
            .collect::<Map<_, _>>()
            .into(),
        other => other,
    }
}

/// Unix ms, or RFC 3339.
fn time_of(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    match text.parse::<i64>() {
        Ok(ms) => Some(ms),
        Err(_) => Some(text.parse::<jiff::Timestamp>().ok()?.as_millisecond()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn entry(fields: &[(&str, &[u8])]) -> Entry {
        let words = fields
            .iter()
            .flat_map(|(name, value)| [name.as_bytes().to_vec(), value.to_vec()]);
        Entry::new(EntryId { ms: 7, seq: 1 }, words)
    }

    fn told(kind: &str, data: Value) -> Fact {
        let data = json::from_json(&data);
        let entry = entry(&[("type", kind.as_bytes()), ("data", &data), ("time", b"5")]);
        Fact::of("cb", "cb:broadcast", Origin::Broadcast, &entry, 1000)
    }

    #[test]
    fn a_fact_is_found_by_what_it_is_about_and_who_did_it() {
        for (kind, data, subject, instance) in [
            (
                "instance.lost",
                json!({"id": "w-1"}),
                Some("w-1"),
                Some("w-1"),
            ),
            (
                "leader.elected",
                json!({"id": "w-1"}),
                Some("w-1"),
                Some("w-1"),
            ),
            (
                "task.failed",
                json!({"task_id": "t", "instance_id": "w-1"}),
                Some("t"),
                Some("w-1"),
            ),
            (
                "batch.progress",
                json!({"batch_id": "b", "processor_id": "w-1"}),
                Some("b"),
                Some("w-1"),
            ),
            ("quorum.decided", json!({"decision": "d"}), Some("d"), None),
            (
                "circuit.opened",
                json!({"type": "a.b", "instance": "w-1"}),
                Some("a.b"),
                Some("w-1"),
            ),
            (
                "schedule.missed",
                json!({"name": "nightly", "count": 3}),
                Some("nightly"),
                None,
            ),
            (
                "partition.owned",
                json!({"domain": "a", "partition": 3, "id": "w-1", "fence": 9}),
                Some("a"),
                Some("w-1"),
            ),
            (
                "partition.left",
                json!({"domain": "a", "partition": 3, "id": "w-1", "fence": 9}),
                Some("a"),
                Some("w-1"),
            ),
            ("partition.healed", json!({"healthy": 3}), None, None),
            ("operator.paused", json!({}), None, None),
        ] {
            let fact = told(kind, data.clone());
            assert_eq!(fact.subject.as_deref(), subject, "{kind}");
            assert_eq!(fact.instance.as_deref(), instance, "{kind}");
            assert_eq!((fact.at, fact.seq, fact.time), (7, 1, Some(5)));
            assert_eq!((fact.reason, fact.data), (None, data));
        }
    }

    #[test]
    fn a_dead_letter_keeps_its_reason_and_its_fields() {
        let entry = entry(&[
            ("type", b"image.resize"),
            ("id", b"e-1"),
            ("time", b"1970-01-01T00:00:01Z"),
            ("x", b"\xff\0"),
            ("deadreason", b"internal"),
            ("deadinstance", b"w-1"),
        ]);
        let fact = Fact::of("cb", "cb:dead:image", Origin::Dead, &entry, 1000);
        assert_eq!(fact.subject.as_deref(), Some("e-1"));
        assert_eq!(fact.instance.as_deref(), Some("w-1"));
        assert_eq!(fact.reason.as_deref(), Some("internal"));
        assert_eq!(fact.time, Some(1000));
        assert_eq!(fact.fields["x"], "\u{fffd}\u{fffd}");
        assert_eq!(fact.data, Value::Null);
    }

    #[test]
    fn what_can_not_be_decoded_is_left_out_and_said_so() {
        let bad = entry(&[("type", b"a.b"), ("data", &[0xc1])]);
        let fact = Fact::of("cb", "cb:broadcast", Origin::Broadcast, &bad, 1000);
        assert!(fact.data["$left_out"].is_string());
        let long = entry(&[("type", b"a.b"), ("data", &[0xc0; 11])]);
        let fact = Fact::of("cb", "cb:broadcast", Origin::Broadcast, &long, 10);
        assert_eq!(fact.data["$left_out"], "11 bytes are over the limit");
        assert_eq!(
            told("a.b", json!({"a\0": ["\0"]})).data,
            json!({"a\u{fffd}": ["\u{fffd}"]})
        );
    }

    proptest! {
        #[test]
        fn places_are_times_and_in_order(
            ms in prop_oneof![any::<u64>(), i64::MAX as u64 - 2..i64::MAX as u64 + 3],
            later in 0..3_u64,
            seq in 0..1000_u64,
            more in 0..1000_u64,
        ) {
            let (id, next) = (EntryId { ms, seq }, EntryId { ms: ms.saturating_add(later), seq: more });
            let ((at, _), there) = (place(id), place(next));
            prop_assert!(at >= 0);
            if ms < i64::MAX as u64 + i32::MAX as u64 - 3 {
                prop_assert_eq!(id.cmp(&next), place(id).cmp(&there));
            }
        }

        #[test]
        fn any_entry_makes_a_row(
            fields in proptest::collection::vec(
                (prop_oneof![Just("type"), Just("data"), Just("time"), Just("id"), Just("x")],
                 proptest::collection::vec(any::<u8>(), 0..300)), 0..10),
            dead in any::<bool>(),
        ) {
            let fields: Vec<(&str, &[u8])> = fields.iter().map(|(n, v)| (*n, v.as_slice())).collect();
            let origin = if dead { Origin::Dead } else { Origin::Broadcast };
            let fact = Fact::of("cb", "cb:broadcast", origin, &entry(&fields), 200);
            let texts = [Some(fact.kind), fact.source, fact.subject, fact.instance, fact.reason];
            for text in texts.into_iter().flatten() {
                prop_assert!(text.chars().count() <= MAX_KEY && !text.contains('\0'));
            }
            // A backslash of the text itself is written as two.
            let shown = (fact.data.to_string() + &fact.fields.to_string()).replace(r"\\", "");
            prop_assert!(!shown.contains(r"\u0000"), "{}", shown);
        }
    }
}
