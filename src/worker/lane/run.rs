//! One run of a handler in a lane: from a delivery to what is to be settled.

use super::Lane;
use crate::bus::commit::{End, Lease, Settlement};
use crate::bus::event::Event;
use crate::error::HandlerError;
use crate::registry::context::Context;
use crate::registry::fence::Fenced;
use crate::registry::handler::Encoded;
use crate::registry::router::Route;
use crate::worker::handover::Left;
use crate::worker::settle;
use crate::worker::shared::Delivery;
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};
use tracing::{Instrument, Span};

/// What a task of the lane reports to it.
pub(super) enum Finished {
    Run(Box<Ran>),
    Settled(Box<Settlement>),
    Given(Lease),
}

/// A run that ended.
pub(super) struct Ran {
    lease: Lease,
    context: Context,
    route: Arc<Route>,
    result: Result<Encoded, HandlerError>,
    elapsed: Duration,
}

impl Lane {
    /// Runs one event as far as it goes at once; returns the time when that was.
    pub(super) fn start(&mut self, delivery: Delivery, now: Instant) -> Instant {
        let lease = delivery.lease();
        let shared = self.shared.clone();
        let scene = shared.scene(lease);
        let stream = &shared.routes[lease.stream].events;
        let event = match Event::parse(delivery.entry, &shared.limits, &shared.process.keys, stream)
        {
            Ok(event) => event,
            Err(bad) => {
                if let Some(bytes) = bad.entry.cut() {
                    tracing::error!(stream, entry = %lease.entry, bytes, "an entry that is larger than any event: settled unread, and removed");
                    self.oversized.push(lease);
                }
                self.settled.push(settle::malformed(scene, *bad));
                return now;
            }
        };
        if !shared.process.keys.runs_from(event.kind(), stream) {
            tracing::warn!(stream, entry = %lease.entry, r#type = event.kind(), source = event.source(), "a type that does not run from this stream");
            self.settled.push(settle::misplaced(scene, &event));
            return now;
        }
        if lease.deliveries > shared.max_deliveries {
            tracing::error!(stream, entry = %lease.entry, r#type = event.kind(), "poison: delivered too often without being committed");
            self.settled.push(settle::poison(scene, &event));
            return now;
        }
        if event.deadline().is_some_and(|deadline| {
            // Ours is an estimate; when it was stored, the server said.
            let now = shared.claims.server_now().max(lease.entry.ms);
            deadline <= now
        }) {
            shared.counts.expired.fetch_add(1, Ordering::Relaxed);
            self.settled.push(settle::expired(scene, &event));
            return now;
        }
        let inbox = shared.inbox == Some(lease.stream);
        let context =
            Context::arrived(event, shared.process.clone(), inbox).delivered(lease.deliveries);
        let kind = context.event().kind();
        let Some(route) = shared.router.find(kind).cloned() else {
            let left = Left::without_handler(&shared, lease, kind);
            self.leave(left, context, None);
            return now;
        };
        let span = span_of(&context);
        let entered = span.enter();
        // Polled once right here; coming back costs nothing if it is done.
        let mut run = Fenced::start(|| route.start(context.clone()));
        let first = run.poll_once();
        drop(entered);
        let Poll::Ready(result) = first else {
            self.running += 1;
            let (finished, seen, index) = (self.finished.clone(), context.clone(), route.index);
            let task = tokio::spawn(async move {
                let run = run.within(&route.kind, route.timeout);
                let result = run.instrument(span).await;
                let elapsed = now.elapsed();
                let ran = Ran {
                    lease,
                    context,
                    route,
                    result,
                    elapsed,
                };
                // A lane that stopped has nobody who commits.
                finished.send(Finished::Run(Box::new(ran))).ok();
            });
            shared
                .inflight
                .runs(&lease, index, seen, task.abort_handle());
            return now;
        };
        let end = Instant::now();
        self.ran(Ran {
            lease,
            context,
            route,
            result,
            elapsed: end - now,
        });
        end
    }

    pub(super) fn ran(&mut self, ran: Ran) {
        let Ran {
            lease,
            context,
            route,
            result,
            elapsed,
        } = ran;
        let event = context.event();
        let stats = &route.stats;
        if let Err(error) = &result
            && let Some(kind) = error.elsewhere.clone()
        {
            stats.ran(elapsed, false);
            let left = Left {
                lease,
                error: error.clone(),
                retry: route.retry,
                may_stay: context.draining().is_cancelled(),
            };
            self.leave(left, context, Some(kind));
            return;
        }
        let result = result.and_then(|result| context.within_limits("the result", result));
        stats.ran(elapsed, result.is_err());
        let published = context.take_outbox();
        let scene = self.shared.scene(lease);
        let mut settlement = match result {
            Ok(result) => settle::success(scene, event, result, published, route.policy.silent),
            Err(error) => {
                let settlement = settle::failure(scene, event, &error, &route.retry);
                tracing::debug!(
                    r#type = event.kind(), entry = %lease.entry, attempt = event.attempt(),
                    code = error.code.as_str(), error = error.bounded_message(), "a run failed"
                );
                if matches!(settlement.end, End::Later { .. }) {
                    stats.retries.fetch_add(1, Ordering::Relaxed);
                }
                settlement
            }
        };
        let wrote = route.policy.stateful || context.wrote();
        settlement.history = wrote.then(|| context.history());
        self.settled.push(settlement);
    }

    /// Leaves an event to an instance that has a handler for its type, and for another one where that is
    /// needed too.
    pub(super) fn leave(&mut self, left: Left, context: Context, besides: Option<Box<str>>) {
        self.running += 1;
        let (shared, finished) = (self.shared.clone(), self.finished.clone());
        tokio::spawn(async move {
            let lease = left.lease;
            let end = left.end(&shared, context.event(), besides.as_deref());
            // Its slot comes back whatever becomes of it.
            let end = AssertUnwindSafe(end).catch_unwind().await;
            let end = match end {
                Ok(Some(settlement)) => Finished::Settled(Box::new(settlement)),
                Ok(None) | Err(_) => Finished::Given(lease),
            };
            finished.send(end).ok();
        });
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
