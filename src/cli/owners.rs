//! Whether the owners of pending entries live.

use convoke::coordination::error::CoordinationError;
use convoke::coordination::instances::Instances;
use std::collections::HashMap;

/// Owners that are remembered. A group may know millions.
const REMEMBERED: usize = 10_000;

/// Remembers for one run who lives.
pub(super) struct Owners {
    /// `None`: nobody can be asked who lives.
    instances: Option<Instances>,
    known: HashMap<String, bool>,
}

impl Owners {
    pub(super) fn new(instances: Option<Instances>) -> Self {
        Self {
            instances,
            known: HashMap::new(),
        }
    }

    /// Asks about those that are not known yet.
    pub(super) async fn learn<'a>(
        &mut self,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<(), CoordinationError> {
        let mut new: Vec<String> = names
            .filter(|name| !self.known.contains_key(*name))
            .map(str::to_owned)
            .collect();
        new.sort_unstable();
        new.dedup();
        if new.is_empty() {
            return Ok(());
        }
        let Some(instances) = &self.instances else {
            return Ok(());
        };
        let alive = instances.active_among(&new).await?;
        if self.known.len() + new.len() > REMEMBERED {
            self.known.clear();
        }
        self.known.extend(new.into_iter().map(|name| (name, false)));
        self.known
            .extend(alive.into_iter().map(|name| (name, true)));
        Ok(())
    }

    /// Whether it was alive when it was asked about; `None` where nobody can tell.
    pub(super) fn lives(&self, name: &str) -> Option<bool> {
        self.instances.as_ref()?;
        Some(self.known.get(name).copied().unwrap_or(false))
    }
}
