//! What became of the documents: the last changes, as the bus keeps them.

use super::{Policies, Scope};
use crate::coordination::error::CoordinationError;
use crate::protocol::event::Entry;
use crate::streams::read::entries_of;
use redis::Value;
use serde::Deserialize;

/// Changes that the bus keeps.
pub const KEPT_CHANGES: usize = 1000;
/// Changes that one answer has at the most.
pub const MAX_CHANGES: usize = 200;
/// Changes that one read asks for.
const PAGE: usize = 100;

/// A change of a document.
#[derive(Clone, Debug, Deserialize)]
pub struct PolicyChange {
    /// Whose document it is.
    pub scope: String,
    /// The version that it has since then.
    pub version: u64,
    /// Who changed it.
    pub by: String,
    /// When, in Unix ms on the server.
    #[serde(skip)]
    pub at: u64,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Its parts before; nothing: there was no document.
    #[serde(default)]
    pub before: Option<rmpv::Value>,
    /// Its parts since then; nothing: there is no document.
    #[serde(default)]
    pub after: Option<rmpv::Value>,
}

impl PolicyChange {
    fn of(entry: &Entry) -> Option<Self> {
        let mut change: Self = rmp_serde::from_slice(entry.get("data")?).ok()?;
        let time = str::from_utf8(entry.get("time")?).ok()?;
        change.at = time.parse().ok()?;
        Some(change)
    }
}

impl Policies {
    /// The last changes, the newest first: of that scope or of all, before that version or up to the last one.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn history(
        &self,
        scope: Option<&Scope>,
        before: Option<u64>,
        count: usize,
    ) -> Result<Vec<PolicyChange>, CoordinationError> {
        let scope = scope.map(Scope::to_string);
        let (mut found, mut end) = (Vec::new(), "+".to_owned());
        loop {
            let mut read = redis::pipe();
            read.cmd("XREVRANGE")
                .arg(self.store.keys.policy_changes())
                .arg(&end)
                .arg("-")
                .arg("COUNT")
                .arg(PAGE);
            let (page,): (Value,) = self.store.ask(&read).await?;
            let page = entries_of(page)?;
            for entry in &page {
                end = format!("({}", entry.id);
                let Some(change) = PolicyChange::of(entry) else {
                    continue;
                };
                if scope.as_ref().is_none_or(|scope| *scope == change.scope)
                    && before.is_none_or(|before| change.version < before)
                {
                    found.push(change);
                }
                if found.len() == count.min(MAX_CHANGES) {
                    return Ok(found);
                }
            }
            if page.len() < PAGE {
                return Ok(found);
            }
        }
    }
}
