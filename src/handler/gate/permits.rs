//! How many runs go on at a time, by a number that may change meanwhile.
//!
//! A run that enters no gate is counted by one atomic number. It takes permits only as long as there is a limit:
//! then whoever changes that number, or the limit, has as many of them be taken.
//!
//! Where all workers share what may go on (a total), there are as many permits as this process has seats of those. The
//! worker's keeper takes seats and gives them back; a seat counts until the end of its lease, and nothing begins on one
//! after that. Who has a permit may wait for a slot still: whether he may begin is asked when he does, since there may be
//! fewer seats by then.

use crate::mutex::locked;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

/// Permits of which there are as many as runs may go on. Where there are fewer than before, those that are given come
/// back first.
#[derive(Debug)]
pub struct Permits {
    free: Semaphore,
    count: Mutex<Count>,
    /// Whether there is a limit.
    is_limited: AtomicBool,
    /// How many runs go on that entered no gate.
    bare: AtomicUsize,
    /// How many runs wait for a permit.
    waits: AtomicUsize,
    /// Whether all workers share what may go on.
    is_shared: AtomicBool,
    /// Whoever keeps the seats may have to do something.
    changed: Notify,
}

#[derive(Debug)]
struct Count {
    /// How many there may be in this process.
    limit: Option<usize>,
    /// How many in all workers, where they share it.
    total: Option<usize>,
    /// What this process has of those.
    seats: Seats,
    /// How many there are to be.
    wanted: usize,
    /// How many there are, given or free.
    made: usize,
    /// How many have one and entered a gate.
    given: usize,
    /// How many of those have begun.
    begun: usize,
    /// How many of them the runs that entered no gate have.
    bare: usize,
    /// How often one of those that entered was to begin.
    tries: u64,
    /// How often one began.
    begins: u64,
}

/// What this process has of what all workers share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seats {
    /// As many runs may go on.
    pub count: usize,
    /// Of this many in all workers.
    pub total: usize,
    /// Until when.
    pub until: Instant,
}

/// What goes on where all workers share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Runs that go on.
    pub runs: usize,
    /// Runs that have a permit, and wait for a slot.
    pub entered: usize,
    /// Runs that wait for a permit.
    pub waits: usize,
    /// How many may go on in this process, however many seats it has.
    pub limit: usize,
    /// How often one that had a permit was to begin.
    pub tries: u64,
    /// How often one began.
    pub begins: u64,
}

/// A run that waits for a permit.
struct Waits<'a>(&'a Permits);

/// A run that entered no gate.
#[derive(Debug)]
pub struct Bare(Arc<Permits>);

/// The permit of one run.
#[derive(Debug)]
pub struct Permit {
    permits: Arc<Permits>,
    has_begun: bool,
}

impl Permits {
    /// As many as that, or no end of them.
    pub fn new(limit: Option<usize>) -> Self {
        let wanted = most(limit);
        Self {
            free: Semaphore::new(wanted),
            count: Mutex::new(Count {
                limit,
                total: None,
                seats: Seats {
                    count: 0,
                    total: 0,
                    until: Instant::now(),
                },
                wanted,
                made: wanted,
                given: 0,
                begun: 0,
                bare: 0,
                tries: 0,
                begins: 0,
            }),
            is_limited: AtomicBool::new(limit.is_some()),
            bare: AtomicUsize::new(0),
            waits: AtomicUsize::new(0),
            is_shared: AtomicBool::new(false),
            changed: Notify::new(),
        }
    }

    /// Has as many as that from now on.
    pub fn resize(&self, limit: Option<usize>) {
        self.change(&mut locked(&self.count), |count| count.limit = limit);
    }

    /// Has all workers share this many, or no more. Where they do, nothing begins until this one has seats; where they
    /// are fewer than before, until it has them of those.
    pub fn share(&self, total: Option<usize>) {
        self.is_shared.store(total.is_some(), Ordering::SeqCst);
        self.change(&mut locked(&self.count), |count| {
            if total < count.total {
                count.seats.count = 0;
            }
            count.total = total;
        });
        self.changed.notify_one();
    }

    /// Has this process have these seats. Where the total was lowered since they were given, nothing changes.
    pub fn seat(&self, seats: Seats) {
        self.change(&mut locked(&self.count), |count| {
            if count.total >= Some(seats.total) {
                count.seats = seats;
            }
        });
    }

    /// Whether there is a limit.
    pub fn are_limited(&self) -> bool {
        self.is_limited.load(Ordering::SeqCst)
    }

    /// Has this process keep this many of its seats at the most. How many it needs then: more than those where more runs
    /// go on, which become fewer as they end. `None`: workers share nothing.
    pub fn keep(&self, seats: usize) -> Option<usize> {
        let count = &mut *locked(&self.count);
        count.total?;
        self.change(count, |count| {
            count.lapse();
            count.seats.count = count.seats.count.min(seats);
        });
        Some(count.seats.count.max(count.runs()))
    }

    /// What goes on, where all workers share it.
    pub fn look(&self) -> Option<Look> {
        let count = &mut *locked(&self.count);
        count.total?;
        Some(Look {
            runs: count.runs(),
            entered: count.given - count.begun,
            waits: self.waits.load(Ordering::SeqCst),
            limit: most(count.limit),
            tries: count.tries,
            begins: count.begins,
        })
    }

    /// Waits until whoever keeps the seats may have to do something.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn change(&self, count: &mut Count, change: impl FnOnce(&mut Count)) {
        change(count);
        let is_limited = count.limit.is_some() || count.total.is_some();
        // Before the runs are looked at: one that begins or ends meanwhile sees it, or is seen.
        self.is_limited.store(is_limited, Ordering::SeqCst);
        self.see_bare(count);
        count.aim();
        if count.wanted > count.made {
            self.free.add_permits(count.wanted - count.made);
            count.made = count.wanted;
        } else {
            count.made -= self.free.forget_permits(count.made - count.wanted);
        }
    }

    /// Waits for one; who asked first gets it first.
    pub async fn acquire(self: &Arc<Self>) -> Permit {
        let mut waits = None;
        loop {
            match self.free.try_acquire() {
                Ok(permit) => permit.forget(),
                Err(_) => {
                    waits.get_or_insert_with(|| Waits::new(self));
                    // Nothing closes it.
                    if let Ok(permit) = self.free.acquire().await {
                        permit.forget();
                    }
                }
            }
            let count = &mut *locked(&self.count);
            count.lapse();
            if count.made <= count.wanted {
                // Whoever looks sees it wait, or have one.
                drop(waits.take());
                return self.permit(count);
            }
            // Somebody gave it up while he waited for it, and there are to be fewer by now.
            count.made -= 1;
        }
    }

    /// The permit of a run that enters in any case: it counts, though there may be too many then.
    pub fn enter(self: &Arc<Self>) -> Permit {
        let count = &mut *locked(&self.count);
        self.take(count);
        self.permit(count)
    }

    fn permit(self: &Arc<Self>, count: &mut Count) -> Permit {
        count.given += 1;
        Permit {
            permits: self.clone(),
            has_begun: false,
        }
    }

    /// Counts a run that goes on and entered no gate.
    pub fn bare(self: &Arc<Self>) -> Bare {
        self.bare.fetch_add(1, Ordering::SeqCst);
        self.bare_changed();
        Bare(self.clone())
    }

    fn bare_changed(&self) {
        if self.is_limited.load(Ordering::SeqCst) {
            let count = &mut *locked(&self.count);
            self.see_bare(count);
            self.tell(count);
        }
    }

    /// Has the runs that entered no gate have as many permits as there are such runs.
    fn see_bare(&self, count: &mut Count) {
        let bare = self.bare.load(Ordering::SeqCst);
        for _ in count.bare..bare {
            self.take(count);
        }
        for _ in bare..count.bare {
            self.give(count);
        }
        count.bare = bare;
    }

    fn take(&self, count: &mut Count) {
        match self.free.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(_) => count.made += 1,
        }
    }

    fn give(&self, count: &mut Count) {
        match count.made > count.wanted {
            true => count.made -= 1,
            false => self.free.add_permits(1),
        }
    }

    fn tell(&self, count: &Count) {
        if count.total.is_some() {
            self.changed.notify_one();
        }
    }
}

impl Count {
    /// How many there are to be.
    fn aim(&mut self) {
        let shared = self.total.map(|total| total.min(self.seats.count));
        self.wanted = most(self.limit).min(shared.unwrap_or(usize::MAX));
    }

    /// How many runs go on.
    fn runs(&self) -> usize {
        self.begun + self.bare
    }

    /// Has no seats any more whose lease is over.
    fn lapse(&mut self) {
        if self.total.is_some() && self.seats.count > 0 && self.seats.until <= Instant::now() {
            self.seats.count = 0;
            self.aim();
        }
    }
}

impl<'a> Waits<'a> {
    fn new(permits: &'a Permits) -> Self {
        permits.waits.fetch_add(1, Ordering::SeqCst);
        let waits = Self(permits);
        waits.tell();
        waits
    }

    fn tell(&self) {
        if self.0.is_shared.load(Ordering::SeqCst) {
            self.0.changed.notify_one();
        }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waits.fetch_sub(1, Ordering::SeqCst);
        // What came for it may be nobody's.
        self.tell();
    }
}

impl Permit {
    /// Has its run begin, if there are to be as many: there may be fewer than when it got this.
    pub fn begin(&mut self) -> bool {
        let count = &mut *locked(&self.permits.count);
        count.lapse();
        count.tries = count.tries.wrapping_add(1);
        if !self.has_begun && count.runs() < count.wanted {
            count.begun += 1;
            count.begins = count.begins.wrapping_add(1);
            self.has_begun = true;
        }
        self.has_begun
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.0.bare.fetch_sub(1, Ordering::SeqCst);
        self.0.bare_changed();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let count = &mut *locked(&self.permits.count);
        count.given -= 1;
        count.begun -= usize::from(self.has_begun);
        self.permits.give(count);
        self.permits.tell(count);
    }
}

fn most(limit: Option<usize>) -> usize {
    limit.map_or(Semaphore::MAX_PERMITS, |limit| {
        limit.clamp(1, Semaphore::MAX_PERMITS)
    })
}

#[cfg(test)]
mod tests;
