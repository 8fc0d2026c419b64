//! What an entry must hold, in its payload or as a field of its own.

use crate::cli::output;
use convoke::protocol::event::Entry;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What an entry must hold, in its payload or as a field of its own.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Condition {
    path: String,
    value: Option<String>,
    asked: Arc<AtomicBool>,
    found: Arc<AtomicBool>,
}

/// Parses a [`Condition`].
pub(in crate::cli) fn condition(text: &str) -> Result<Condition, String> {
    let (path, value) = match text.split_once('=') {
        Some((path, value)) => (path, Some(value.to_owned())),
        None => (text, None),
    };
    if path.is_empty() || path.split('.').any(str::is_empty) {
        return Err(format!("{text:?} is not FIELD or FIELD=VALUE"));
    }
    Ok(Condition {
        path: path.to_owned(),
        value,
        asked: Arc::default(),
        found: Arc::default(),
    })
}

impl Condition {
    /// Whether an entry with that payload holds it. Where the payload has no such field, the event may.
    pub(super) fn fits(&self, entry: &Entry, data: &Value) -> bool {
        self.asked.store(true, Ordering::Relaxed);
        let own = || {
            let text = String::from_utf8_lossy(entry.get(&self.path)?);
            Some(Value::from(text))
        };
        let of_payload = self.found_in(data).cloned();
        let Some(found) = of_payload.or_else(own) else {
            return false;
        };
        self.found.store(true, Ordering::Relaxed);
        self.holds(&found)
    }

    /// Says if it was asked of entries and none of them had the field.
    pub(super) fn complain(&self) {
        let missed = !self.found.load(Ordering::Relaxed);
        if missed && self.asked.load(Ordering::Relaxed) {
            let path = output::printable(&self.path);
            output::complain_line(&format!(
                "--where {path}: none of the entries has a field of that name, in its payload or of its own"
            ));
        }
    }

    fn found_in<'a>(&self, data: &'a Value) -> Option<&'a Value> {
        let mut at = data;
        for name in self.path.split('.') {
            let next = match at {
                Value::Array(items) => name.parse().ok().and_then(|n: usize| items.get(n)),
                other => other.get(name),
            };
            at = next?;
        }
        Some(at)
    }

    fn holds(&self, found: &Value) -> bool {
        match (&self.value, found) {
            (None, _) => true,
            (Some(wanted), Value::String(text)) => {
                text == wanted || serde_json::from_str::<Value>(wanted).is_ok_and(|v| v == *found)
            }
            (Some(wanted), other) => {
                serde_json::from_str::<Value>(wanted).is_ok_and(|value| value == *other)
            }
        }
    }
}
