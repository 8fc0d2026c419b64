//! What a process has had: its next one is higher, whatever the server has forgotten.

use std::sync::atomic::{AtomicU64, Ordering};

/// The highest numbers that a process was given.
#[derive(Debug, Default)]
pub(in crate::coordination) struct Seen {
    pub(in crate::coordination) incarnation: Highest,
    pub(in crate::coordination) term: Highest,
}

/// The highest one of some numbers; 0 before the first.
#[derive(Debug, Default)]
pub(in crate::coordination) struct Highest(AtomicU64);

impl Highest {
    pub(in crate::coordination) fn note(&self, number: u64) {
        self.0.fetch_max(number, Ordering::Relaxed);
    }

    pub(in crate::coordination) fn highest(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
