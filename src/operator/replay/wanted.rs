//! Which entries are meant, as data: a filter travels, a program does not.

use crate::protocol::dead::Letter;
use crate::protocol::event::{Entry, EntryId, payload_of};
use crate::protocol::json;
use crate::streams::claim::Pending;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

/// What an entry must hold, in its payload or as a field of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Where {
    /// The names that lead to it, with dots between them.
    pub path: String,
    /// What it must be: JSON, or a text as it is. `None`: anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl Where {
    /// What an entry with that payload has there. Where the payload has no such field, the event may.
    pub fn find<'a>(&self, entry: &Entry, data: &'a Value) -> Option<Cow<'a, Value>> {
        let mut at = Some(data);
        for name in self.path.split('.') {
            at = match at {
                Some(Value::Array(items)) => name.parse().ok().and_then(|n: usize| items.get(n)),
                Some(other) => other.get(name),
                None => break,
            };
        }
        if let Some(found) = at {
            return Some(Cow::Borrowed(found));
        }
        let text = String::from_utf8_lossy(entry.get(&self.path)?);
        Some(Cow::Owned(Value::from(text)))
    }

    /// Whether that is what it must be.
    pub fn holds(&self, found: &Value) -> bool {
        let Some(wanted) = &self.value else {
            return true;
        };
        matches!(found, Value::String(text) if text == wanted)
            || serde_json::from_str::<Value>(wanted).is_ok_and(|value| value == *found)
    }
}

/// Whether the type is like the pattern: `*` stands for any characters, `?` for one.
pub fn fits(glob: &str, kind: &str) -> bool {
    let (glob, kind) = (glob.as_bytes(), kind.as_bytes());
    let (mut g, mut k) = (0, 0);
    // Where to go on when what follows the last * did not fit.
    let mut again: Option<(usize, usize)> = None;
    while k < kind.len() {
        match glob.get(g) {
            Some(b'*') => {
                again = Some((g, k));
                g += 1;
            }
            Some(&b) if b == b'?' || b == kind[k] => {
                g += 1;
                k += 1;
            }
            _ => match again {
                Some((star, from)) => {
                    again = Some((star, from + 1));
                    g = star + 1;
                    k = from + 1;
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|&b| b == b'*')
}

/// Which entries are meant: all conditions must hold. A condition that this version does not know is no plan that
/// it can follow, since without it more would be changed than was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wanted {
    /// Only these entries, each as its milliseconds and its number; empty: any.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub entries: BTreeSet<(u64, u64)>,
    /// Only types like this.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Only what holds this.
    #[serde(rename = "where", skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<Where>,
    /// Only this reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Only what this instance gave up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Only pending entries that nobody renewed for so long, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
    /// Only pending entries that this instance holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// Only pending entries that were handed out so often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_deliveries: Option<u32>,
}

impl Wanted {
    /// Whether the id may be meant.
    pub fn fit_id(&self, id: EntryId) -> bool {
        self.entries.is_empty() || self.names(id)
    }

    /// Whether it is named by its id.
    pub fn names(&self, id: EntryId) -> bool {
        self.entries.contains(&(id.ms, id.seq))
    }

    /// Whether what an entry holds fits.
    pub fn fit_entry(&self, entry: &Entry) -> bool {
        if let Some(glob) = &self.kind {
            let kind = String::from_utf8_lossy(entry.get("type").unwrap_or_default());
            if !fits(glob, &kind) {
                return false;
            }
        }
        self.fields.is_empty() || self.holds(entry)
    }

    /// Whether a pending entry fits, by its id and how it is held.
    pub fn fit_held(&self, pending: &Pending) -> bool {
        let idle = self.idle_ms.map(Duration::from_millis);
        let is_held_by = |id: &String| *id == pending.consumer;
        self.fit_id(pending.id)
            && idle.is_none_or(|idle| pending.idle >= idle)
            && self.min_deliveries.is_none_or(|n| pending.deliveries >= n)
            && self.consumer.as_ref().is_none_or(is_held_by)
    }

    /// The letter, if it fits.
    pub fn fit(&self, entry: &Entry) -> Option<Letter> {
        if !self.fit_id(entry.id) {
            return None;
        }
        let letter = Letter::read(entry);
        let is = |wanted: &Option<String>, is: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| is == Some(wanted))
        };
        let fits = is(&self.reason, Some(&letter.reason))
            && is(&self.instance, letter.instance.as_deref())
            && self.fit_entry(entry);
        fits.then_some(letter)
    }

    fn holds(&self, entry: &Entry) -> bool {
        let data = payload_of(entry).map(|data| json::to_json(&data));
        let data = data.and_then(Result::ok).unwrap_or_default();
        let mut fields = self.fields.iter();
        fields.all(|field| {
            field
                .find(entry, &data)
                .is_some_and(|found| field.holds(&found))
        })
    }
}
