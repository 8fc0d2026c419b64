//! Progress of a run: the fields of its entry ⇄ what they mean ([protocol](crate::docs::protocol#progress)).

use crate::protocol::event::{Entry, Limits};
use crate::protocol::json;
use crate::protocol::mismatch::mismatch;
use crate::protocol::msgpack;
use crate::protocol::reply::MalformedReply;
use serde::{Deserialize, Serialize};

/// The most bytes of a note.
pub const MAX_NOTE: usize = 256;

/// What the type of an entry ends with that reports progress; that of a reply ends with `.result`.
const SUFFIX: &str = ".progress";

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Progress {
    /// How much is done, in whatever the handler counts.
    pub done: u64,
    /// How much there is to do, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// A few words for people: at most 256 bytes are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Progress {
    /// How much is done.
    pub fn new(done: u64) -> Self {
        Self {
            done,
            ..Self::default()
        }
    }

    /// How much there is to do.
    #[must_use]
    pub fn of(self, total: u64) -> Self {
        Self {
            total: Some(total),
            ..self
        }
    }

    /// A few words for people.
    #[must_use]
    pub fn note(self, note: impl Into<String>) -> Self {
        Self {
            note: Some(note.into()),
            ..self
        }
    }

    /// The same, with no more of its note than is sent.
    pub(crate) fn bounded(mut self) -> Self {
        if let Some(note) = &mut self.note {
            note.truncate(note.floor_char_boundary(MAX_NOTE));
        }
        self
    }

    /// The type of the entry that reports progress of an event of that type.
    pub fn kind_of(event: &str) -> String {
        [event, SUFFIX].concat()
    }

    /// Whether an entry of a reply stream reports progress, and is no reply.
    pub(crate) fn is_in(entry: &Entry) -> bool {
        let kind = entry.get("type").unwrap_or_default();
        kind.ends_with(SUFFIX.as_bytes())
    }

    /// Checks an entry that reports progress.
    ///
    /// # Errors
    /// Fails if its `data` is not what the protocol says.
    pub(crate) fn parse(entry: &Entry, limits: &Limits) -> Result<Self, MalformedReply> {
        let data = entry.get("data").unwrap_or_default();
        let packed;
        let data = match crate::protocol::event::is_json(entry) {
            false => data,
            true => {
                let value = serde_json::from_slice(data);
                let value = value.map_err(|error| MalformedReply(format!("data: {error}")))?;
                packed = json::from_json(&value);
                &packed
            }
        };
        msgpack::scan(data, &limits.payload).map_err(|error| MalformedReply(error.to_string()))?;
        let progress = rmp_serde::from_slice::<Self>(data);
        let progress = progress.map_err(|_| MalformedReply(mismatch::<Self>(data)))?;
        Ok(progress.bounded())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::event::EntryId;
    use proptest::prelude::*;

    fn parse(kind: &str, data: &[u8]) -> Option<Result<Progress, MalformedReply>> {
        let fields = [b"type", kind.as_bytes(), b"data", data];
        let entry = Entry::new(EntryId::default(), fields);
        Progress::is_in(&entry).then(|| Progress::parse(&entry, &Limits::default()))
    }

    #[test]
    fn what_was_told_is_read_and_a_reply_is_no_progress() {
        let told = Progress::new(3).of(8).note("thumbnails");
        let data = rmp_serde::to_vec_named(&told).unwrap();
        let kind = Progress::kind_of("image.resize");
        assert_eq!(parse(&kind, &data).unwrap().unwrap(), told);
        assert!(parse("image.progress.result", &data).is_none());
        // A map may grow fields.
        let grown = serde_json::json!({"done": 1, "unit": "rows"});
        let grown = rmp_serde::to_vec_named(&grown).unwrap();
        assert_eq!(parse(&kind, &grown).unwrap().unwrap(), Progress::new(1));
        let none = rmp_serde::to_vec_named(&serde_json::json!({"total": 1})).unwrap();
        let bad = parse(&kind, &none).unwrap().unwrap_err();
        assert!(bad.0.contains("done"), "{bad}");
    }

    #[test]
    fn a_long_note_is_cut_between_two_letters() {
        let long = Progress::new(1).note("ä".repeat(MAX_NOTE)).bounded();
        assert_eq!(long.note.unwrap(), "ä".repeat(MAX_NOTE / 2));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(data in proptest::collection::vec(any::<u8>(), 0..40)) {
            parse("a.progress", &data);
        }
    }
}
