//! One run of a handler in a lane: from where it starts to what is to be settled.

use super::finished::{Finished, Ran};
use super::spread::{Timed, begin, unbegun};
use super::{ALONE, Lane, Waiting};
use crate::handler::context::Context;
use crate::handler::fence::Fenced;
use crate::handler::function::Encoded;
use crate::handler::gate::{Back, Entered, Places};
use crate::handler::layers::timeout::exceeded;
use crate::handler::router::Route;
use crate::protocol::error::{Elsewhere, HandlerError, Refusal};
use crate::streams::commit::{Disposition, Receipt, Settlement};
use crate::worker::handover::Left;
use crate::worker::settle;
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tracing::{Instrument, Span};

/// How long the end of a run waits for what it told last of its progress to be written.
const LAST: Duration = Duration::from_secs(1);
impl Lane {
    /// Runs one event as far as it goes at once; returns the time when that was.
    pub(super) fn go(&mut self, mut waiting: Waiting, now: Instant) -> Instant {
        if waiting.route.lots.is_some() {
            return self.go_many(vec![waiting], now);
        }
        if self.shared.pausing.concerns(waiting.route.index) {
            match self.unless_paused_now(waiting) {
                Some(may) => waiting = may,
                None => return now,
            }
        }
        // Operators may have limited its type since it came, or since it entered.
        let begun = match waiting.entered.take().map(Entered::begin) {
            None if waiting.route.gate().is_some() => {
                return self.enter_late(waiting, Places::default(), now);
            }
            None => None,
            Some(Ok(begun)) => Some(begun),
            Some(Err(places)) => return self.enter_late(waiting, *places, now),
        };
        let Waiting {
            receipt,
            context,
            route,
            entered: _,
            waited,
            first: _,
            judged_in,
            weighed: _,
            hurry: _,
        } = waiting;
        if self.is_lost(&receipt, waited) {
            self.let_go(&[receipt]);
            return now;
        }
        if waited && self.expires(receipt, context.event()) {
            return now;
        }
        if self.tries(&receipt) >= ALONE {
            self.alone = Some(receipt);
        }
        // The gate counts the time of what entered it.
        let timeout = match begun {
            None => route.limits.now().timeout,
            Some(_) => None,
        };
        let is_bare = begun.is_none();
        let back = begun.is_some().then(Back::default);
        let span = span_of(&context);
        let inside = span.enter();
        let computes = self.admission.spreads(&route).then(|| self.computes());
        let (run, first) = match computes.is_some() {
            true => {
                let run = unbegun(&route, context.clone(), begun, back.clone());
                (run, Poll::Pending)
            }
            // Polled once right here; coming back costs nothing if it is done.
            false => {
                let start = || begin(&route, context.clone(), begun, back.clone());
                let mut run = Fenced::start(start);
                let first = run.poll_once();
                (run, first)
            }
        };
        drop(inside);
        let Poll::Ready(result) = first else {
            let counted = is_bare.then(|| route.counted());
            self.running += 1;
            self.admission.began(route.index);
            let (finished, seen, index) = (self.finished.clone(), context.clone(), route.index);
            let mut end = now;
            if computes.is_none() {
                end = Instant::now();
                route.pace.first.took(end - now);
            }
            let task = tokio::spawn(async move {
                let now = match computes {
                    None => now,
                    Some(_) => Instant::now(),
                };
                let run = run.within(&route.kind, timeout);
                let run = Timed::new(run, route.clone(), computes);
                // Dropped in the middle of what it does, as by its time-out, where its event is cancelled.
                let result = tokio::select! {
                    biased;
                    result = run.instrument(span) => result,
                    cancelled = context.given_up() => Err(cancelled),
                };
                let elapsed = now.elapsed();
                let behind = context.left_behind();
                let kind = route.clone();
                let ran = Ran {
                    receipt,
                    context,
                    route,
                    result,
                    elapsed,
                    back,
                    judged_in,
                    blocks: behind.is_some(),
                };
                // A lane that stopped has nobody who commits.
                finished.send(Finished::Run(Box::new(ran))).ok();
                if let Some(thread) = behind {
                    tracing::warn!(r#type = kind.kind, entry = %receipt.entry, "a run took too long and still blocks its thread: it keeps its slot");
                    thread.cancelled().await;
                    finished.send(Finished::Freed(index)).ok();
                }
                drop(counted);
            });
            self.shared
                .inflight
                .runs(&receipt, index, seen, task.abort_handle());
            // Its first poll may have held the thread.
            return end;
        };
        let end = Instant::now();
        let elapsed = end - now;
        route.pace.first.took(elapsed);
        // It held its thread for so long.
        let result = match timeout {
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
            blocks: false,
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
            blocks: _,
        } = ran;
        if self.is_void(&receipt) {
            self.voided(receipt, &context, &result, &route, elapsed);
            return;
        }
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
                weighed: None,
                hurry: None,
            };
            self.enter(waiting, places, after, Instant::now());
            return;
        }
        let stats = &route.stats;
        if let Err(error) = &result
            && let Some(whom) = error.elsewhere.clone()
        {
            stats.ran(elapsed, false);
            let left = Left {
                receipt,
                error: error.clone(),
                retry: route.retry(),
                may_stay: context.draining().is_cancelled(),
            };
            self.leave(left, context, Some(whom));
            return;
        }
        let result = result
            .and_then(|result| context.within_limits("the result", result))
            .and_then(|result| context.answerable(result));
        stats.ran(elapsed, result.is_err());
        self.tell_run(receipt, &context, &result, elapsed);
        let stream = &self.shared.routes[receipt.stream].events;
        self.noted.ran(receipt, stream, &context, &result, elapsed);
        let published = context.take_outbox();
        let scene = self.shared.scene(receipt);
        let mut settlement = match result {
            Ok(result) => settle::success(scene, event, result, published, route.policy.silent),
            Err(error) => {
                let settlement = settle::failure(scene, event, &error, &route.retry());
                tracing::debug!(
                    r#type = event.kind(), entry = %receipt.entry, attempt = event.attempt(),
                    code = error.code.as_str(), error = error.bounded_message(), "a run failed"
                );
                if matches!(settlement.disposition, Disposition::Later { .. }) {
                    stats.retries.fetch_add(1, Ordering::Relaxed);
                }
                match self.unless_held(settlement, event, &error) {
                    Some(settlement) => settlement,
                    None => {
                        context.end_progress();
                        return;
                    }
                }
            }
        };
        let wrote = route.policy.stateful || context.wrote();
        // The mark that names it as the first may be lost with what a run wrote.
        let began = wrote.then(|| context.epoch());
        // On a cluster the two are of different slots.
        let connector = &context.process().connector;
        let outdated = began.filter(|epoch| connector.check_epoch(*epoch).is_err());
        settlement.epoch = outdated.or(judged_in).or(began);
        if route.policy.ordered {
            self.settled.keeps_order(receipt, route.index, event);
        }
        match context.end_progress() {
            None => self.settled.push(settlement),
            Some(written) => self.settle_behind(written, settlement),
        }
    }

    /// Whether an event is not ours any more, so that it is not to begin. One that did not wait can only have been
    /// cancelled.
    pub(super) fn is_lost(&self, receipt: &Receipt, waited: bool) -> bool {
        let inflight = &self.shared.inflight;
        let lost = (waited || inflight.has_voided()) && inflight.is_lost(receipt);
        if lost && self.is_void(receipt) {
            self.shared.counts.cancelled.fetch_add(1, Ordering::Relaxed);
        }
        lost
    }

    /// Whether the event of that delivery was cancelled.
    pub(super) fn is_void(&self, receipt: &Receipt) -> bool {
        let inflight = &self.shared.inflight;
        inflight.has_voided() && inflight.is_void(receipt)
    }

    /// Drops the outcome of a run whose event was cancelled: there is nothing left to commit it for.
    fn voided(
        &mut self,
        receipt: Receipt,
        context: &Context,
        result: &Result<Encoded, HandlerError>,
        route: &Route,
        elapsed: Duration,
    ) {
        route.stats.ran(elapsed, false);
        self.shared.counts.cancelled.fetch_add(1, Ordering::Relaxed);
        self.tell_run(receipt, context, result, elapsed);
        self.followed.remove(&receipt);
        context.take_outbox();
        context.end_progress();
        self.release(&[receipt]);
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
    /// needed too; or to one that is named.
    pub(super) fn leave(&mut self, left: Left, context: Context, whom: Option<Elsewhere>) {
        // Only the owner reads an owned partition: nobody else can have it.
        if self.line.is_some() {
            let event = context.event();
            let settlement = left.end_here(&self.shared, event, whom.is_none());
            if let Some(settlement) = self.unless_held(settlement, event, &left.error) {
                self.settled.push(settlement);
            }
            return;
        }
        self.running += 1;
        let (shared, finished) = (self.shared.clone(), self.finished.clone());
        tokio::spawn(async move {
            let receipt = left.receipt;
            let end = left.end(&shared, context.event(), whom.as_ref());
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

/// One span for each run, with the trace that the event came with; free where nobody listens.
pub(super) fn span_of(context: &Context) -> Span {
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
