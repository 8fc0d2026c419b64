//! What an entry must hold, in its payload or as a field of its own.

use crate::cli::output;
use convoke::operator::replay::wanted::Where;
use convoke::protocol::event::Entry;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What an entry must hold, in its payload or as a field of its own.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Condition {
    what: Where,
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
    let path = path.to_owned();
    Ok(Condition {
        what: Where { path, value },
        asked: Arc::default(),
        found: Arc::default(),
    })
}

impl Condition {
    /// Whether an entry with that payload holds it. Where the payload has no such field, the event may.
    pub(super) fn fits(&self, entry: &Entry, data: &Value) -> bool {
        self.asked.store(true, Ordering::Relaxed);
        let Some(found) = self.what.find(entry, data) else {
            return false;
        };
        self.found.store(true, Ordering::Relaxed);
        self.what.holds(&found)
    }

    /// Says if it was asked of entries and none of them had the field.
    pub(super) fn complain(&self) {
        let missed = !self.found.load(Ordering::Relaxed);
        if missed && self.asked.load(Ordering::Relaxed) {
            let path = output::printable(&self.what.path);
            output::complain_line(&format!(
                "--where {path}: none of the entries has a field of that name, in its payload or of its own"
            ));
        }
    }

    /// The same as data.
    pub(in crate::cli) fn what(&self) -> &Where {
        &self.what
    }
}
