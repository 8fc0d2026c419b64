//! The processes that this one started and waits for.

use crate::mutex::locked;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

static WAITED_FOR: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn waited_for() -> MutexGuard<'static, BTreeSet<u32>> {
    locked(&WAITED_FOR)
}

/// Someone waits for that process, for as long as this lives: its exit status is nobody else's.
#[derive(Debug)]
pub(crate) struct WaitedFor(u32);

impl WaitedFor {
    /// Of a process that was started just now.
    pub(crate) fn new(process: u32) -> Self {
        waited_for().insert(process);
        Self(process)
    }
}

impl Drop for WaitedFor {
    fn drop(&mut self) {
        waited_for().remove(&self.0);
    }
}

/// Whether someone waits for that process.
pub(crate) fn is_waited_for(process: u32) -> bool {
    waited_for().contains(&process)
}
