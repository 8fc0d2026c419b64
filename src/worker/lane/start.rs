//! What a lane starts next, and how much it reads ahead of that.

use super::Lane;
use super::line::Lined;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Entries in flight at the most while every handler is ready at once.
const AHEAD: usize = 3000;
/// How long the loop runs handlers before it looks after reads and commits again. While it runs them nothing new is on its
/// way to the server: in 2 ms all of a read was worked off, and the two took turns.
const SLICE: Duration = Duration::from_micros(500);

impl Lane {
    /// How many more entries may be read. While handlers wait, a worker reads no further ahead than it
    /// can run at a time, so that other replicas get their share. What waits in the admission has bounds
    /// of its own, and what is on its way to the server and back is not held back from anybody.
    pub(super) fn room(&self) -> usize {
        let waiting = self.admission.len() + self.in_line();
        let limit = if self.running > 0 || waiting > 0 {
            2 * self.reads_for()
        } else {
            self.window
        };
        (limit + self.further + waiting + self.batched).saturating_sub(self.shared.inflight.len())
    }

    /// For how many runs at a time it reads ahead.
    fn reads_for(&self) -> usize {
        let part = self.shared.concurrency();
        match &self.shared.pool {
            None => part,
            Some(pool) => part.max(self.running.min(pool.slots())),
        }
    }

    /// Whether one more run may start, if there is something to start.
    fn has_slot(&mut self, now: Instant) -> bool {
        if !self.admission.is_pooled() {
            return self.running < self.shared.concurrency();
        }
        let running = self.running;
        let line = self.line.as_ref();
        let some = !self.ready.is_empty()
            || self.admission.has_next()
            || line.is_some_and(|line| line.has_next(now));
        // Where nothing is to start it takes none.
        let drawn = self.admission.drawn().filter(|_| some);
        drawn.is_none_or(|drawn| drawn.has_beside(running))
    }

    /// Whether one more run may start soon.
    pub(super) fn may_have_a_slot(&self) -> bool {
        match &self.shared.pool {
            None => self.running < self.shared.concurrency(),
            Some(_) => !self.admission.waits_for_a_slot(),
        }
    }

    /// The streams that are not read for now; `None` if that is all of them.
    pub(super) fn closed(&self) -> Option<Vec<usize>> {
        if self.line.as_ref().is_some_and(|line| line.is_full()) {
            return None;
        }
        if self.admission.len() == 0 {
            return Some(Vec::new());
        }
        let streams = self.shared.routes.len();
        let closed = (0..streams).filter(|stream| self.admission.is_full(*stream));
        let closed: Vec<usize> = closed.collect();
        (closed.len() < streams).then_some(closed)
    }

    /// Entries that were read and not started.
    pub(super) fn ahead(&self) -> usize {
        self.suspects.len() + self.ready.len() + self.admission.len() + self.in_line()
    }

    /// Entries that wait in line, where the partition is owned.
    fn in_line(&self) -> usize {
        self.line.as_ref().map_or(0, |line| line.len())
    }

    pub(super) fn tell_ahead(&self) {
        let ahead = self.ahead() as u64;
        self.shared.counts.ahead.store(ahead, Ordering::Relaxed);
    }

    /// Starts what may be started, for one slice of time; true if it left some.
    pub(super) fn start_ready(&mut self) -> bool {
        let running = self.running;
        if let Some(drawn) = self.admission.drawn() {
            drawn.begins(running);
        }
        let more = self.start_some();
        let (running, waits) = (self.running, self.admission.has_next());
        if let Some(drawn) = self.admission.drawn() {
            drawn.settle(running, waits && !drawn.waits());
        }
        more
    }

    fn start_some(&mut self) -> bool {
        if self.shared.doubt.lasts() || self.line.is_some() && !self.may_start() {
            return false;
        }
        if let Some(alone) = self.alone {
            // It may have been judged by now.
            if self.running == 0
                && let Some(waiting) = self.admission.take(&alone)
            {
                self.go(waiting, Instant::now());
            }
            return false;
        }
        if let Some(suspect) = self.suspects.front() {
            let beside = self.shared.inflight.len().saturating_sub(self.ahead());
            if beside == 0 {
                let receipt = suspect.receipt();
                self.alone = Some(receipt);
                if let Some(suspect) = self.suspects.pop_front() {
                    self.tell_ahead();
                    self.start(suspect, Instant::now());
                }
                // It is alone again as soon as it runs; it may wait for others until then.
                if self.admission.may_wait_for_others(&receipt) {
                    self.alone = None;
                }
            }
            return false;
        }
        let began = Instant::now();
        let mut now = began;
        if self.has_slot(now)
            && let Some(lot) = self.admission.next_lot(self.running, false, now)
        {
            now = self.go_many(lot, now);
        }
        while self.has_slot(now) && self.alone.is_none() {
            // Before it runs, since it may ask, and after it, since it may wait.
            if let Some(Lined { receipt, event }) = self.next_in_line(now) {
                self.tell_ahead();
                now = self.begin(receipt, event, now);
            } else if let Some(waiting) = self.admission.next(self.running) {
                self.tell_ahead();
                now = self.go(waiting, now);
            } else if !self.takes_over()
                && let Some(delivery) = self.ready.pop_front()
            {
                self.tell_ahead();
                now = self.start(delivery, now);
            } else if let Some(lot) = self.admission.next_lot(self.running, true, now) {
                self.tell_ahead();
                now = self.go_many(lot, now);
            } else {
                if self.running == 0 {
                    self.window = (self.window * 2).min(AHEAD.max(self.shared.concurrency()));
                }
                return false;
            }
            self.tell_ahead();
            if now - began > SLICE {
                return !self.ready.is_empty() || self.admission.len() > 0;
            }
        }
        self.window = self.shared.concurrency();
        false
    }

    /// Whether what is new waits, because what a gone consumer held is being taken over.
    fn takes_over(&self) -> bool {
        if self.line.is_some() {
            return self.waits_for_older();
        }
        let new = self.ready.front().is_some_and(|next| next.deliveries == 1);
        new && self.jobs.are_of_the_gone() && !self.taking_fails && (self.takes || self.room() > 0)
    }
}
