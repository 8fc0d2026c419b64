//! An event's way into a lane: from its delivery to where its handler may start, or to its end without a run.

use super::finished::{Finished, Ran, Unjudged};
use super::line::Lined;
use super::{ALONE, Lane, Waiting};
use crate::connect::clock::NEVER;
use crate::handler::context::Context;
use crate::handler::gate::{Entered, Manner, Places};
use crate::protocol::error::HandlerError;
use crate::protocol::event::Event;
use crate::streams::commit::Receipt;
use crate::worker::admission::Until;
use crate::worker::handover::Left;
use crate::worker::settle;
use crate::worker::shared::Delivery;
use std::sync::atomic::Ordering;
use std::task::{self, Poll};
use std::time::{Duration, Instant};
use tokio_util::task::AbortOnDropHandle;

impl Lane {
    /// Starts one event, or has it wait; returns the time when that was.
    pub(super) fn start(&mut self, delivery: Delivery, now: Instant) -> Instant {
        let receipt = delivery.receipt();
        let shared = self.shared.clone();
        let scene = shared.scene(receipt);
        let stream = &shared.routes[receipt.stream].events;
        let event = match Event::parse(delivery.entry, &shared.limits, &shared.process.keys, stream)
        {
            Ok(event) => event,
            Err(bad) => {
                if let Some(bytes) = bad.entry.cut() {
                    if self.sparing.allows(now) {
                        tracing::error!(stream, entry = %receipt.entry, bytes, "an entry that is larger than any event: settled unread, and removed");
                    }
                    self.oversized.push(receipt);
                }
                self.settled.push(settle::malformed(scene, *bad));
                return now;
            }
        };
        if let Some((field, meant)) = event.slips().next()
            && self.sparing.allows(now)
        {
            tracing::warn!(stream, entry = %receipt.entry, r#type = event.kind(), source = event.source(), field, "a field that nobody reads: was {meant} meant?");
        }
        if !shared.process.keys.runs_from(event.kind(), stream) {
            if self.sparing.allows(now) {
                tracing::warn!(stream, entry = %receipt.entry, r#type = event.kind(), source = event.source(), "a type that does not run from this stream");
            }
            self.settled.push(settle::misplaced(scene, &event));
            return now;
        }
        if !shared.is_in_place(receipt.stream, &event) {
            shared.counts.misplaced.fetch_add(1, Ordering::Relaxed);
            if self.sparing.allows(now) {
                tracing::warn!(stream, entry = %receipt.entry, r#type = event.kind(), source = event.source(), "an event in another partition than its own: whoever published it does not look how many there are (convoke domain list)");
            }
        }
        match self.line.is_some() {
            false => self.begin(receipt, event, now),
            true => self.line_up(receipt, event, now),
        }
    }

    /// Starts an event in its turn, where the partition is owned.
    fn line_up(&mut self, receipt: Receipt, mut event: Event, now: Instant) -> Instant {
        let server_now = self.shared.claims.server_now();
        let Some(line) = &mut self.line else {
            return now;
        };
        // It has its place since it was found to be a suspect.
        if self.alone == Some(receipt) {
            line.again(&mut event);
            return self.begin(receipt, event, now);
        }
        let attempt = event.attempt();
        match line.comes(Lined { receipt, event }, Instant::now(), server_now) {
            None => {
                if let Some(held) = line.waits_unbegun(&receipt, attempt) {
                    self.note_waiting(receipt, held);
                }
                now
            }
            Some(Lined { receipt, event }) => self.begin(receipt, event, now),
        }
    }

    /// Starts an event whose turn it is, or has it wait; returns the time when that was.
    #[inline]
    pub(super) fn begin(&mut self, receipt: Receipt, event: Event, now: Instant) -> Instant {
        if self.is_suspect(&receipt) {
            self.waits_alone(Lined { receipt, event });
            return now;
        }
        let asks = event.asks_once() && self.shared.firsts(receipt.stream).is_some();
        // Another one of its id may have come first: then it never ran.
        if !asks && self.is_poison(receipt, &event) {
            return now;
        }
        if self.expires(receipt, &event) {
            return now;
        }
        if let Some(wait) = self.until_due(&event) {
            self.settled
                .push(settle::early(self.shared.scene(receipt), &event, wait));
            return now;
        }
        let shared = &self.shared;
        let inbox = shared.inbox == Some(receipt.stream);
        let context =
            Context::arrived(event, shared.process.clone(), inbox).delivered(receipt.deliveries);
        let kind = context.event().kind();
        let Some(route) = shared.router.find(kind).cloned() else {
            let left = Left::without_handler(shared, receipt, kind);
            match asks {
                true => self.judge(Unjudged::Left(left, context)),
                false => self.leave(left, context, None),
            }
            return now;
        };
        let hurry = self.hurry(context.event());
        let waiting = Waiting {
            receipt,
            context,
            route,
            entered: None,
            // In an owned partition it may have waited in line.
            waited: self.line.is_some(),
            first: !asks,
            judged_in: None,
            weighed: None,
            hurry,
        };
        let waiting = match self.shared.pausing.concerns(waiting.route.index) {
            false => waiting,
            true => match self.unless_paused(waiting, false) {
                Some(waiting) => waiting,
                None => return now,
            },
        };
        match waiting.route.gate() {
            None => self.admit(waiting, now),
            Some(_) => self.enter(waiting, Places::default(), None, now),
        }
    }

    /// Settles an event that was delivered too often; whether it was.
    pub(super) fn is_poison(&mut self, receipt: Receipt, event: &Event) -> bool {
        if self.tries(&receipt) <= self.shared.max_deliveries {
            return false;
        }
        let scene = self.shared.scene(receipt);
        tracing::error!(stream = scene.stream, entry = %receipt.entry, r#type = event.kind(), "poison: delivered too often without being committed");
        self.settled.push(settle::poison(scene, event));
        true
    }

    /// Runs an event if its type's share allows that, or has it wait.
    fn admit(&mut self, waiting: Waiting, now: Instant) -> Instant {
        if !waiting.first {
            self.judge(Unjudged::Admitted(waiting));
            return now;
        }
        // A suspect runs alone, the others in batches.
        let gathers = waiting.route.lots.is_some() && self.tries(&waiting.receipt) < ALONE;
        let may = !self.shared.doubt.lasts() && !gathers;
        let may = may && (self.line.is_none() || self.may_start());
        if may && self.admission.admits(&waiting.route, self.running) {
            return self.go(waiting, now);
        }
        let inflight = &self.shared.inflight;
        inflight.waits(&waiting.receipt, waiting.route.index);
        self.admission.wait(waiting);
        now
    }

    /// Has an event enter the gate before its handler, with the places that it has already.
    pub(super) fn enter(
        &mut self,
        waiting: Waiting,
        places: Places,
        after: Option<Duration>,
        now: Instant,
    ) -> Instant {
        let Some(gate) = waiting.route.gate() else {
            return self.admit(waiting, now);
        };
        let event = waiting.context.event();
        let manner = match event.reply_to() {
            None => Manner::Patient,
            Some(_) => Manner::Urgent,
        };
        let mut entering = gate.enter(waiting.context.clone(), manner, places, after);
        let mut nobody = task::Context::from_waker(task::Waker::noop());
        if let Poll::Ready(entered) = entering.as_mut().poll(&mut nobody) {
            return self.entered(waiting, entered, now);
        }
        let time = event.deadline();
        let time = time.map(|at| at.saturating_sub(self.shared.claims.server_now()));
        let (receipt, size) = (waiting.receipt, waiting.size());
        self.shared.inflight.waits(&receipt, waiting.route.index);
        let finished = self.finished.clone();
        let task = tokio::spawn(async move {
            let entered = match time {
                None => Some(entering.await),
                // The first ms after the deadline.
                Some(ms) => {
                    let time = Duration::from_millis(ms.saturating_add(1));
                    tokio::time::timeout(time, entering).await.ok()
                }
            };
            finished
                .send(Finished::Entered(Box::new(waiting), entered))
                .ok();
        });
        let task = AbortOnDropHandle::new(task);
        self.admission.enters(receipt, size, Until::Gate, task);
        now
    }

    /// The same of one that was to begin, where a limit came meanwhile.
    pub(super) fn enter_late(&mut self, waiting: Waiting, places: Places, now: Instant) -> Instant {
        let receipt = waiting.receipt;
        let now = self.enter(waiting, places, None, now);
        // It is alone again as soon as it runs; it may wait for others until then.
        if self.alone == Some(receipt) && self.admission.may_wait_for_others(&receipt) {
            self.alone = None;
        }
        now
    }

    /// Takes what has entered after a while.
    pub(super) fn came_in(
        &mut self,
        mut waiting: Waiting,
        entered: Option<Result<Entered, HandlerError>>,
    ) {
        // It may have been given up in the meantime.
        if !self.admission.entered(&waiting.receipt) {
            return;
        }
        match entered {
            None => self.expired(waiting.receipt, waiting.context.event()),
            Some(Ok(entered)) => {
                waiting.entered = Some(entered);
                match waiting.first {
                    true => self.admission.wait(waiting),
                    false => self.judge(Unjudged::Admitted(waiting)),
                }
            }
            Some(Err(error)) => {
                self.entered(waiting, Err(error), Instant::now());
            }
        }
    }

    fn entered(
        &mut self,
        mut waiting: Waiting,
        entered: Result<Entered, HandlerError>,
        now: Instant,
    ) -> Instant {
        match entered {
            Ok(entered) => {
                waiting.entered = Some(entered);
                self.admit(waiting, now)
            }
            Err(error) => {
                match waiting.first {
                    true => self.ran(Ran::refused(waiting, error)),
                    false => self.judge(Unjudged::Refused(waiting, error)),
                }
                now
            }
        }
    }

    /// How long an event has to wait, if it came before it is to run.
    fn until_due(&self, event: &Event) -> Option<Duration> {
        let wait = event
            .not_before()?
            .checked_sub(self.shared.claims.server_now())?;
        (wait > 0).then(|| Duration::from_millis(wait))
    }

    /// When a batch with that event is due, with half of its time left.
    fn hurry(&self, event: &Event) -> Option<Instant> {
        let left = event
            .deadline()?
            .saturating_sub(self.shared.claims.server_now());
        Some(Instant::now() + Duration::from_millis(left / 2).min(NEVER))
    }

    /// Whether an event's deadline has passed; it is settled then.
    pub(super) fn expires(&mut self, receipt: Receipt, event: &Event) -> bool {
        let Some(deadline) = event.deadline() else {
            return false;
        };
        let passed = is_past(deadline, self.shared.claims.server_now(), receipt.entry.ms);
        if passed {
            self.expired(receipt, event);
        }
        passed
    }

    /// Settles an event whose deadline has passed.
    pub(super) fn expired(&mut self, receipt: Receipt, event: &Event) {
        self.shared.counts.expired.fetch_add(1, Ordering::Relaxed);
        let settlement = settle::expired(self.shared.scene(receipt), event);
        self.settled.push(settlement);
    }
}

/// How far the server's clock may be ahead of what a worker takes it to be.
const AHEAD: u64 = 50;

/// Whether a deadline is past, by what the worker takes the server's clock to be or by when the server
/// stored the event. An id that is further ahead tells no time: a clock that was set back leaves such ids.
fn is_past(deadline: u64, now: u64, stored: u64) -> bool {
    match stored.saturating_sub(now) <= AHEAD {
        true => deadline <= now.max(stored),
        false => deadline <= now,
    }
}

#[cfg(test)]
mod tests {
    use super::is_past;

    #[test]
    fn a_deadline_in_the_millisecond_in_which_the_event_was_stored_is_past() {
        assert!(is_past(1000, 1000, 900));
        assert!(
            is_past(1000, 998, 1000),
            "the worker's clock is a little late"
        );
        assert!(!is_past(1000, 998, 999));
        assert!(!is_past(1000, 999, 900));
        // The server's clock was set back by an hour.
        assert!(!is_past(1000, 900, 3_600_900));
    }
}
