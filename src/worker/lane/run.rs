//! One run of a handler in a lane: from a delivery to what is to be settled.

use super::once::Unjudged;
use super::{ALONE, Lane, Waiting};
use crate::connect::epoch::Epoch;
use crate::handler::context::Context;
use crate::handler::fence::Fenced;
use crate::handler::function::Encoded;
use crate::handler::gate::{Back, Entered, Manner, Places};
use crate::handler::layers::timeout::exceeded;
use crate::handler::router::Route;
use crate::protocol::error::{HandlerError, Refusal};
use crate::protocol::event::Event;
use crate::streams::commit::{Outcome, Receipt, Settlement};
use crate::streams::first::Verdict;
use crate::worker::admission::Until;
use crate::worker::handover::Left;
use crate::worker::settle;
use crate::worker::shared::Delivery;
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{self, Poll};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, Span};

/// How long the end of a run waits for what it told last of its progress to be written.
const LAST: Duration = Duration::from_secs(1);

/// What a task of the lane reports to it.
pub(super) enum Finished {
    Run(Box<Ran>),
    /// An event entered the gate before its handler, could not, or came too late (`None`).
    Entered(Box<Waiting>, Option<Result<Entered, HandlerError>>),
    /// Whether an event is the first of its id.
    Judged(Box<Unjudged>, Verdict),
    Settled(Box<Settlement>),
    Given(Receipt),
    /// What was read and not started: how it is settled, or that it stays as it is.
    GivenBack(Vec<Settlement>, Vec<Receipt>),
}

/// A run that ended.
pub(super) struct Ran {
    receipt: Receipt,
    context: Context,
    route: Arc<Route>,
    result: Result<Encoded, HandlerError>,
    elapsed: Duration,
    /// Where its places are, if it was refused.
    back: Option<Back>,
    /// The history of the server in which it was judged to be the first of its id, if it asked.
    judged_in: Option<Epoch>,
}

impl Ran {
    /// Of an event that was refused before it could begin.
    pub(super) fn refused(waiting: Waiting, error: HandlerError) -> Self {
        Self {
            receipt: waiting.receipt,
            context: waiting.context,
            route: waiting.route,
            result: Err(error),
            elapsed: Duration::ZERO,
            back: None,
            judged_in: waiting.judged_in,
        }
    }

    /// Which handler's it is.
    pub(super) fn route(&self) -> usize {
        self.route.index
    }
}

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
        let asks = scene.firsts.is_some() && event.asks_once();
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
        let inbox = shared.inbox == Some(receipt.stream);
        let context =
            Context::arrived(event, shared.process.clone(), inbox).delivered(receipt.deliveries);
        let kind = context.event().kind();
        let Some(route) = shared.router.find(kind).cloned() else {
            let left = Left::without_handler(&shared, receipt, kind);
            match asks {
                true => self.judge(Unjudged::Left(left, context)),
                false => self.leave(left, context, None),
            }
            return now;
        };
        let waiting = Waiting {
            receipt,
            context,
            route,
            entered: None,
            waited: false,
            first: !asks,
            judged_in: None,
        };
        match waiting.route.gate {
            None => self.admit(waiting, now),
            Some(_) => self.enter(waiting, Places::default(), None, now),
        }
    }

    /// Settles an event that was delivered too often; whether it was.
    pub(super) fn is_poison(&mut self, receipt: Receipt, event: &Event) -> bool {
        if receipt.deliveries <= self.shared.max_deliveries {
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
        let may = !self.shared.doubt.lasts();
        if may && self.admission.admits(waiting.route.index, self.running) {
            return self.go(waiting, now);
        }
        let inflight = &self.shared.inflight;
        inflight.waits(&waiting.receipt, waiting.route.index);
        self.admission.wait(waiting);
        now
    }

    /// Has an event enter the gate before its handler, with the places that it has already.
    fn enter(
        &mut self,
        waiting: Waiting,
        places: Places,
        after: Option<Duration>,
        now: Instant,
    ) -> Instant {
        let Some(gate) = &waiting.route.gate else {
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

    /// Whether an event's deadline has passed; it is settled then.
    fn expires(&mut self, receipt: Receipt, event: &Event) -> bool {
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

    /// Runs one event as far as it goes at once; returns the time when that was.
    pub(super) fn go(&mut self, waiting: Waiting, now: Instant) -> Instant {
        let Waiting {
            receipt,
            context,
            route,
            entered,
            waited,
            first: _,
            judged_in,
        } = waiting;
        if waited && self.shared.inflight.is_lost(&receipt) {
            self.release(&[receipt]);
            return now;
        }
        if waited && self.expires(receipt, context.event()) {
            return now;
        }
        if receipt.deliveries >= ALONE {
            self.alone = Some(receipt);
        }
        let back = entered.is_some().then(Back::default);
        let span = span_of(&context);
        let inside = span.enter();
        // Polled once right here; coming back costs nothing if it is done.
        let mut run = Fenced::start(|| match (&route.gate, entered, &back) {
            (Some(gate), Some(entered), Some(back)) => {
                gate.run(entered, context.clone(), back.clone())
            }
            _ => route.start(context.clone()),
        });
        let first = run.poll_once();
        drop(inside);
        let Poll::Ready(result) = first else {
            self.running += 1;
            self.admission.began(route.index);
            let (finished, seen, index) = (self.finished.clone(), context.clone(), route.index);
            let task = tokio::spawn(async move {
                let run = run.within(&route.kind, route.timeout);
                let result = run.instrument(span).await;
                let elapsed = now.elapsed();
                let ran = Ran {
                    receipt,
                    context,
                    route,
                    result,
                    elapsed,
                    back,
                    judged_in,
                };
                // A lane that stopped has nobody who commits.
                finished.send(Finished::Run(Box::new(ran))).ok();
            });
            self.shared
                .inflight
                .runs(&receipt, index, seen, task.abort_handle());
            // Its first poll may have held the thread.
            return Instant::now();
        };
        let end = Instant::now();
        let elapsed = end - now;
        // It held its thread for so long.
        let result = match route.timeout {
            Some(limit) if elapsed > limit => Err(exceeded("a run", &route.kind, limit)),
            _ => result,
        };
        self.ran(Ran {
            receipt,
            context,
            route,
            result,
            elapsed,
            back,
            judged_in,
        });
        end
    }

    pub(super) fn ran(&mut self, ran: Ran) {
        let Ran {
            receipt,
            context,
            route,
            result,
            elapsed,
            back,
            judged_in,
        } = ran;
        let event = context.event();
        if let Err(error) = &result
            && let Some(places) = back.and_then(|back| back.take())
            && (event.reply_to().is_none() || error.refusal == Some(Refusal::Busy))
        {
            // Nothing of it has begun.
            if context.draining().is_cancelled() {
                self.leave_unbegun(receipt);
                return;
            }
            if self.alone == Some(receipt) {
                self.alone = None;
            }
            let after = error.retry_after;
            let waiting = Waiting {
                receipt,
                context,
                route,
                entered: None,
                waited: true,
                first: true,
                judged_in,
            };
            self.enter(waiting, places, after, Instant::now());
            return;
        }
        let stats = &route.stats;
        if let Err(error) = &result
            && let Some(kind) = error.elsewhere.clone()
        {
            stats.ran(elapsed, false);
            let left = Left {
                receipt,
                error: error.clone(),
                retry: route.retry,
                may_stay: context.draining().is_cancelled(),
            };
            self.leave(left, context, Some(kind));
            return;
        }
        let result = result
            .and_then(|result| context.within_limits("the result", result))
            .and_then(|result| context.answerable(result));
        stats.ran(elapsed, result.is_err());
        let published = context.take_outbox();
        let scene = self.shared.scene(receipt);
        let mut settlement = match result {
            Ok(result) => settle::success(scene, event, result, published, route.policy.silent),
            Err(error) => {
                let settlement = settle::failure(scene, event, &error, &route.retry);
                tracing::debug!(
                    r#type = event.kind(), entry = %receipt.entry, attempt = event.attempt(),
                    code = error.code.as_str(), error = error.bounded_message(), "a run failed"
                );
                if matches!(settlement.outcome, Outcome::Later { .. }) {
                    stats.retries.fetch_add(1, Ordering::Relaxed);
                }
                settlement
            }
        };
        let wrote = route.policy.stateful || context.wrote();
        // The mark that names it as the first may be lost with what a run wrote.
        settlement.epoch = judged_in.or_else(|| wrote.then(|| context.epoch()));
        match context.end_progress() {
            None => self.settled.push(settlement),
            Some(written) => self.settle_behind(written, settlement),
        }
    }

    /// Settles a run once its progress is written, which its reply is not to overtake.
    fn settle_behind(&mut self, written: oneshot::Receiver<()>, settlement: Settlement) {
        self.running += 1;
        let finished = self.finished.clone();
        tokio::spawn(async move {
            // Where it cannot be written in time it is given up.
            tokio::time::timeout(LAST, written).await.ok();
            finished.send(Finished::Settled(Box::new(settlement))).ok();
        });
    }

    /// Leaves an event to an instance that has a handler for its type, and for another one where that is
    /// needed too.
    pub(super) fn leave(&mut self, left: Left, context: Context, besides: Option<Box<str>>) {
        self.running += 1;
        let (shared, finished) = (self.shared.clone(), self.finished.clone());
        tokio::spawn(async move {
            let receipt = left.receipt;
            let end = left.end(&shared, context.event(), besides.as_deref());
            // Its slot comes back whatever becomes of it.
            let end = AssertUnwindSafe(end).catch_unwind().await;
            let end = match end {
                Ok(Some(settlement)) => Finished::Settled(Box::new(settlement)),
                Ok(None) | Err(_) => Finished::Given(receipt),
            };
            finished.send(end).ok();
        });
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

/// One span for each run, with the trace that the event came with; free where nobody listens.
fn span_of(context: &Context) -> Span {
    let event = context.event();
    let span = tracing::info_span!(
        "event",
        r#type = event.kind(),
        entry = %event.entry_id(),
        id = event.given_id(),
        attempt = event.attempt(),
        trace = tracing::field::Empty,
        span = tracing::field::Empty,
    );
    if !span.is_disabled()
        && let Some(trace) = context.trace()
    {
        span.record("trace", trace.trace_id());
        span.record("span", trace.span_id());
    }
    span
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
