//! The slots of the partitions that a worker owns. Each has a lane of its own, and all of these draw from one pool: so a
//! long run in one partition holds up no other subject of it while slots are free.
//!
//! Who finds none free waits in a line, and what becomes free goes to the first there: no lane has all for as long as it
//! has something to start. A lane that is slow to take its turn keeps one slot free, and holds up nobody who waits behind.

use crate::mutex::locked;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// The pool of one worker.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    slots: usize,
    taken: usize,
    /// Slots that each type's runs hold, by the route's index.
    held: Vec<usize>,
    waiting: VecDeque<Arc<Notify>>,
    /// Lanes that wait since a type of theirs has too many slots for another run now.
    held_back: Vec<Arc<Notify>>,
}

impl State {
    fn free(&self) -> usize {
        self.slots.saturating_sub(self.taken)
    }

    /// How many wait before that one.
    fn before(&self, one: &Arc<Notify>) -> usize {
        let place = self.waiting.iter().position(|it| Arc::ptr_eq(it, one));
        place.unwrap_or(self.waiting.len())
    }

    fn leaves(&mut self, one: &Arc<Notify>) {
        self.waiting.retain(|it| !Arc::ptr_eq(it, one));
    }

    fn let_go_of_held_back(&mut self) {
        for one in self.held_back.drain(..) {
            one.notify_one();
        }
    }

    fn wake(&self) {
        for one in self.waiting.iter().take(self.free()) {
            one.notify_one();
        }
    }
}

impl Pool {
    /// Has that many slots from now on.
    pub(super) fn scale(&self, slots: usize) {
        let mut state = locked(&self.0);
        state.slots = slots;
        state.let_go_of_held_back();
        state.wake();
    }

    /// How many slots there are.
    pub(super) fn slots(&self) -> usize {
        locked(&self.0).slots
    }

    /// How many of them the runs of a type hold.
    pub(super) fn held(&self, route: usize) -> usize {
        locked(&self.0).held.get(route).copied().unwrap_or(0)
    }
}

/// What one lane draws from the pool.
#[derive(Debug)]
pub(super) struct Drawn {
    pool: Arc<Pool>,
    taken: usize,
    held: Vec<usize>,
    /// Whether no slot was free when it last looked.
    waits: bool,
    in_line: bool,
    woken: Arc<Notify>,
}

impl Drawn {
    pub(super) fn from(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            taken: 0,
            held: Vec::new(),
            waits: false,
            in_line: false,
            woken: Arc::default(),
        }
    }

    /// Whether it found none free when it last looked.
    pub(super) fn waits(&self) -> bool {
        self.waits
    }

    /// Whether one more run may start beside those that run. Where no slot is free, or others wait for it, it waits too.
    pub(super) fn has_beside(&mut self, running: usize) -> bool {
        if running < self.taken {
            return true;
        }
        let mut state = locked(&self.pool.0);
        let before = state.before(&self.woken);
        if before < state.free() {
            if self.in_line {
                state.leaves(&self.woken);
            }
            state.taken += 1;
            self.taken += 1;
            (self.waits, self.in_line) = (false, false);
            return true;
        }
        if !self.in_line {
            state.waiting.push_back(self.woken.clone());
        }
        (self.waits, self.in_line) = (true, true);
        false
    }

    /// Has exactly as many as run, and leaves the line if it looked since and did not find that none is free. `held_back`:
    /// something waits although one is free.
    pub(super) fn settle(&mut self, running: usize, held_back: bool) {
        if running == self.taken && self.waits == self.in_line && !held_back {
            return;
        }
        let mut state = locked(&self.pool.0);
        state.taken = state.taken - self.taken + running;
        self.taken = running;
        if !self.waits && self.in_line {
            state.leaves(&self.woken);
            self.in_line = false;
        }
        let is_it = |it: &Arc<Notify>| Arc::ptr_eq(it, &self.woken);
        if held_back && !state.held_back.iter().any(is_it) {
            state.held_back.push(self.woken.clone());
        }
        state.wake();
    }

    /// Begins a look for what may start: whether it waits is seen then.
    pub(super) fn begins(&mut self, running: usize) {
        if running < self.taken {
            // What came free is for who waits longest.
            self.settle(running, false);
        }
        self.waits = false;
    }

    /// Is ready when a slot may be free that this lane waits for.
    pub(super) async fn woken(&self) {
        self.woken.notified().await;
    }

    /// Whether a type may have one more slot: a part of what the other types leave. With one left, whoever holds none
    /// gets it.
    pub(super) fn allows(&self, route: usize, percent: usize) -> bool {
        let state = locked(&self.pool.0);
        let held = state.held.get(route).copied().unwrap_or(0);
        let others = state.held.iter().sum::<usize>() - held;
        let left = state.slots.saturating_sub(others);
        held < (left.saturating_mul(percent) / 100).max(1)
    }

    /// Notes that a run of a type took a slot.
    pub(super) fn began(&mut self, route: usize) {
        let mut state = locked(&self.pool.0);
        for held in [&mut state.held, &mut self.held] {
            if held.len() <= route {
                held.resize(route + 1, 0);
            }
            held[route] += 1;
        }
    }

    /// Notes that it gave the slot back.
    pub(super) fn ended(&mut self, route: usize) {
        let mut state = locked(&self.pool.0);
        for held in [&mut state.held, &mut self.held] {
            held[route] -= 1;
        }
        state.let_go_of_held_back();
    }
}

impl Drop for Drawn {
    fn drop(&mut self) {
        let mut state = locked(&self.pool.0);
        state.taken -= self.taken;
        for (route, held) in self.held.iter().enumerate() {
            state.held[route] -= held;
        }
        let one = self.woken.clone();
        state.leaves(&one);
        state.let_go_of_held_back();
        state.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn pool(slots: usize) -> Arc<Pool> {
        let pool = Arc::new(Pool::default());
        pool.scale(slots);
        pool
    }

    fn is_woken(drawn: &Drawn) -> bool {
        drawn.woken().now_or_never().is_some()
    }

    #[test]
    fn one_lane_may_have_all_slots_and_what_comes_free_goes_to_who_waits() {
        let pool = pool(3);
        let [mut a, mut b] = [(); 2].map(|()| Drawn::from(pool.clone()));
        assert!((0..3).all(|running| a.has_beside(running)));
        assert!(!a.has_beside(3), "a fourth one");
        a.settle(3, false);
        assert!(!b.has_beside(0) && !is_woken(&b));
        b.settle(0, false);
        // One of the first lane's ends, and it has more to start; the other one has waited for less long.
        a.begins(2);
        assert!(a.has_beside(2), "it waits longest");
        a.settle(3, false);
        a.begins(2);
        assert!(is_woken(&b));
        assert!(!a.has_beside(2), "the other one waits for it");
        a.settle(2, false);
        assert!(b.has_beside(0));
        assert!(!b.has_beside(1));
    }

    #[test]
    fn who_is_slow_to_take_its_turn_holds_up_nobody_behind_it() {
        let pool = pool(2);
        let [mut a, mut slow, mut b] = [(); 3].map(|()| Drawn::from(pool.clone()));
        assert!(a.has_beside(0) && a.has_beside(1));
        assert!(!slow.has_beside(0) && !b.has_beside(0));
        a.begins(0);
        assert!(is_woken(&slow) && is_woken(&b));
        assert!(b.has_beside(0), "two are free, and one waits before it");
        assert!(!b.has_beside(1));
        drop(slow);
        assert!(is_woken(&b) && b.has_beside(1));
    }

    #[test]
    fn who_waits_for_nothing_any_more_and_who_is_gone_keeps_no_slot_from_others() {
        let pool = pool(1);
        let [mut a, mut b, mut c] = [(); 3].map(|()| Drawn::from(pool.clone()));
        assert!(a.has_beside(0) && !b.has_beside(0) && !c.has_beside(0));
        a.settle(1, false);
        b.begins(0);
        b.settle(0, false);
        drop(a);
        assert!(is_woken(&c) && c.has_beside(0));
        drop(c);
        assert!(b.has_beside(0));
        pool.scale(2);
        assert!(b.has_beside(1) && !b.has_beside(2));
    }

    #[test]
    fn no_type_has_all_of_them_whatever_the_lane() {
        let pool = pool(4);
        let [mut a, mut b] = [(); 2].map(|()| Drawn::from(pool.clone()));
        assert!(a.allows(0, 75));
        a.began(0);
        a.began(0);
        b.began(0);
        assert!(!b.allows(0, 75) && b.allows(1, 75) && b.allows(0, 100));
        assert_eq!(pool.held(0), 3);
        b.settle(0, true);
        a.ended(0);
        assert!(is_woken(&b) && b.allows(0, 75));
        b.settle(0, true);
        pool.scale(5);
        assert!(is_woken(&b));
        drop(a);
        assert_eq!(pool.held(0), 1);
    }
}
