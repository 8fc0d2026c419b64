//! An entry that is no event, and what can still be said of it.

use super::Limits;
use crate::protocol::entry::Entry;
use crate::protocol::keys;

/// An entry that is no event: the message says why, naming the field.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Malformed {
    /// The entry as it came.
    pub entry: Entry,
    /// What is wrong, with which field.
    pub message: String,
    /// Where to answer, if the entry names a place where a publisher may ask for replies.
    pub reply_to: Option<String>,
    /// The type, if it is one.
    pub kind: Option<String>,
}

impl Malformed {
    /// What a reply to it is correlated with: its `id` if that can be used, else its entry id.
    pub fn correlation_id(&self) -> String {
        match self.entry.get("id") {
            Some(id) if (1..=256).contains(&id.len()) => {
                String::from_utf8(id.to_vec()).unwrap_or_else(|_| self.entry.id.to_string())
            }
            _ => self.entry.id.to_string(),
        }
    }
}

pub(super) fn malformed(
    entry: Entry,
    message: String,
    limits: &Limits,
    keys: &keys::Keys,
    events: &str,
) -> Malformed {
    let text = |name: &str| {
        entry
            .get(name)
            .filter(|value| value.len() <= limits.value)
            .and_then(|value| std::str::from_utf8(value).ok())
            .map(str::to_owned)
    };
    let reply_to = text("replyto").filter(|key| keys.may_reply_to(key, events));
    let kind = text("type").filter(|kind| keys::is_event_type(kind.as_bytes()));
    Malformed {
        message,
        reply_to,
        kind,
        entry,
    }
}
