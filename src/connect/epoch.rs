//! Which history of its data the server is in: another one after a failover, and after a restart that
//! may have lost what was not synced.
//!
//! What a run wrote to the server itself (the progress of a batch, a task that is completed) is part of
//! the history in which it was written. An outcome that reports it belongs to the same history: stored
//! in a later one, it would report what nobody finds there any more.

use crate::connect::greeting::field;
use crate::mutex::locked;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A history of the server's data, as this process numbers those that it has seen; 0 before the first one. On a cluster
/// it is one of a slot's data, which stands in the upper bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(pub(crate) u64);

/// Where the slot begins in a number, counted from 1 there.
const SLOT: u32 = 48;

impl Epoch {
    /// The same of that slot's data.
    pub(crate) fn of_slot(self, slot: Option<u16>) -> Self {
        let slot = slot.map_or(0, |slot| u64::from(slot) + 1);
        Self(self.0 & ((1 << SLOT) - 1) | slot << SLOT)
    }

    /// Of which slot's data it is, on a cluster.
    pub(crate) fn slot(self) -> Option<u16> {
        u16::try_from((self.0 >> SLOT).checked_sub(1)?).ok()
    }
}

/// Numbers the histories that one process has seen.
#[derive(Debug, Default)]
pub(crate) struct Epochs {
    number: AtomicU64,
    named: Mutex<Option<Name>>,
}

/// A process of a server, and what it calls its data: a replica that is promoted takes another name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    run: String,
    data: String,
}

impl Name {
    fn parse(info: &str) -> Option<Self> {
        Some(Self {
            run: field(info, "run_id")?.to_owned(),
            data: field(info, "master_replid")?.to_owned(),
        })
    }
}

impl Epochs {
    /// Whether an answer to `INFO` names one.
    pub(crate) fn is_in(info: &str) -> bool {
        Name::parse(info).is_some()
    }

    /// The number of the one that was seen last.
    pub(crate) fn last(&self) -> Epoch {
        Epoch(self.number.load(Ordering::Acquire))
    }

    /// What that one is called.
    pub(crate) fn name(&self) -> Option<String> {
        let named = locked(&self.named);
        let name = named.as_ref()?;
        Some(format!("{} {}", name.run, name.data))
    }

    /// Whether both have seen the same one last.
    pub(crate) fn agrees_with(&self, other: &Epochs) -> bool {
        let name = |epoch: &Epochs| locked(&epoch.named).clone();
        name(self) == name(other)
    }

    /// Sees in which history the server is that answered so to `INFO`; one that does not name it stays
    /// in the last one. Which one it named.
    pub(crate) fn see(&self, info: &str) -> Option<Epoch> {
        let name = Name::parse(info)?;
        let mut named = locked(&self.named);
        if named.as_ref() != Some(&name) {
            self.number.fetch_add(1, Ordering::AcqRel);
            *named = Some(name);
        }
        Some(self.last())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_named_by_the_process_and_its_data() {
        let info = "# Server\r\nredis_version:7.0.15\r\nrun_id:aa\r\n\r\n# Replication\r\nmaster_replid:bb\r\nmaster_replid2:cc\r\n";
        let name = Name {
            run: "aa".into(),
            data: "bb".into(),
        };
        assert_eq!(Name::parse(info), Some(name));
        assert_eq!(Name::parse("run_id:aa\r\n"), None);
        assert_eq!(Name::parse("run_id:aa\r\nmaster_replid:\r\n"), None);
    }

    #[test]
    fn those_agree_that_saw_the_same_history_last() {
        let [one, other] = [Epochs::default(), Epochs::default()];
        assert!(one.agrees_with(&other), "neither saw any");
        one.see("run_id:a\nmaster_replid:b\n");
        assert!(!one.agrees_with(&other));
        other.see("run_id:c\nmaster_replid:b\n");
        assert!(!one.agrees_with(&other));
        one.see("run_id:c\nmaster_replid:b\n");
        assert!(one.agrees_with(&other), "whatever their numbers");
        assert_eq!((one.last(), other.last()), (Epoch(2), Epoch(1)));
    }
}
