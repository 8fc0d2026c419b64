//! What a lane has read and not yet settled.

use crate::bus::event::EntryId;
use crate::registry::context::Context;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug)]
struct Held {
    deliveries: u32,
    renewed: Instant,
    running: Option<Context>,
}

/// The entries that a lane holds, shared with whoever renews their leases. Inbox of no one else.
#[derive(Debug, Default)]
pub struct InFlight(Mutex<HashMap<(usize, EntryId), Held>>);

impl InFlight {
    fn held(&self) -> MutexGuard<'_, HashMap<(usize, EntryId), Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.held().len()
    }

    /// Whether an entry of that stream is held.
    pub fn holds(&self, stream: usize, entry: EntryId) -> bool {
        self.held().contains_key(&(stream, entry))
    }

    /// Adds entries (id, delivery count) that were delivered just now.
    pub fn add(&self, entries: impl Iterator<Item = (usize, EntryId, u32)>) {
        let renewed = Instant::now();
        self.held().extend(entries.map(|(stream, id, deliveries)| {
            let held = Held {
                deliveries,
                renewed,
                running: None,
            };
            ((stream, id), held)
        }));
    }

    /// Remembers the context of a run that takes its time, so that it can be told when its lease is lost.
    pub fn running(&self, stream: usize, entry: EntryId, context: Context) {
        if let Some(held) = self.held().get_mut(&(stream, entry)) {
            held.running = Some(context);
        }
    }

    /// Drops entries that are settled.
    pub fn remove(&self, entries: impl Iterator<Item = (usize, EntryId)>) {
        let mut held = self.held();
        for key in entries {
            held.remove(&key);
        }
    }

    /// The entries (id, delivery count) of one stream whose lease was last renewed that long ago.
    pub fn due(&self, stream: usize, age: Duration) -> Vec<(EntryId, u32)> {
        let held = self.held();
        let due = held
            .iter()
            .filter(|((of, _), held)| *of == stream && held.renewed.elapsed() >= age);
        due.map(|((_, id), held)| (*id, held.deliveries)).collect()
    }

    /// Notes a renewal; runs whose lease was lost are cancelled.
    pub fn renewed(&self, stream: usize, entries: &[(EntryId, u32)], lost: &[EntryId]) {
        let mut all = self.held();
        for (id, deliveries) in entries {
            if let Some(held) = all.get_mut(&(stream, *id))
                && held.deliveries == *deliveries
            {
                held.renewed = Instant::now();
                if let Some(run) = held.running.as_ref().filter(|_| lost.contains(id)) {
                    run.cancellation().cancel();
                }
            }
        }
    }

    /// Cancels everything that runs.
    pub fn cancel_all(&self) {
        for held in self.held().values() {
            if let Some(run) = &held.running {
                run.cancellation().cancel();
            }
        }
    }
}
