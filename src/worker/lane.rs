//! A lane: some streams, read, run and committed by one loop.
//!
//! Three things go on at a time: a read, the runs, a commit. What finished while a commit was under way
//! goes into the next one, so batches grow with the load and a lone event waits for nobody. A handler
//! that is ready at once runs inside the loop; one that waits becomes a task.

use super::handover::Left;
use super::reader::{Read, Reader};
use super::settle;
use super::shared::{Delivery, Shared};
use super::takeover::{ALONE, Job, Jobs, Step, Trigger};
use crate::bus::commit::{Committer, End, Lease, Report, Settlement};
use crate::bus::error::Reaction;
use crate::bus::event::Event;
use crate::error::HandlerError;
use crate::registry::context::Context;
use crate::registry::dispatch::panicked;
use crate::registry::handler::{Encoded, Run};
use crate::registry::layers::timeout::Bounded;
use crate::registry::router;
use futures_util::FutureExt;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

/// Entries that one read asks for at the most.
const READ: usize = 1000;
/// Entries in flight at the most while every handler is ready at once.
const AHEAD: usize = 3000;
/// How long the loop runs handlers before it looks after reads and commits again.
const SLICE: Duration = Duration::from_millis(2);

enum Finished {
    Run(Box<Ran>),
    Settled(Box<Settlement>),
    Given(Lease),
}

struct Ran {
    lease: Lease,
    context: Context,
    route: Arc<router::Route>,
    result: Result<Encoded, HandlerError>,
    elapsed: Duration,
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Slot<T> = Option<Boxed<T>>;

/// One lane of a worker.
pub struct Lane {
    shared: Arc<Shared>,
    triggers: mpsc::UnboundedReceiver<Trigger>,
    finished: mpsc::UnboundedSender<Finished>,
    jobs: Jobs,
    ready: VecDeque<Delivery>,
    suspects: VecDeque<Delivery>,
    alone: Option<Lease>,
    settled: Vec<Settlement>,
    running: usize,
    window: usize,
    taking_fails: bool,
}

impl Lane {
    /// A lane that reacts to those triggers.
    pub fn new(
        shared: Arc<Shared>,
        triggers: mpsc::UnboundedReceiver<Trigger>,
    ) -> (Self, LaneEvents) {
        let (finished, events) = mpsc::unbounded_channel();
        let lane = Self {
            triggers,
            finished,
            jobs: Jobs::default(),
            ready: VecDeque::new(),
            suspects: VecDeque::new(),
            alone: None,
            settled: Vec::new(),
            running: 0,
            window: shared.concurrency,
            taking_fails: false,
            shared,
        };
        (lane, LaneEvents(events))
    }

    /// Runs until it is drained (`drain` ends reading) or told to `stop`; gives the committer back.
    pub async fn run(
        mut self,
        mut events: LaneEvents,
        committer: Committer,
        drain: CancellationToken,
        stop: CancellationToken,
    ) -> Option<Committer> {
        let mut reader = Some(Reader::new(self.shared.clone(), drain.clone()));
        let mut committer = Some(committer);
        let mut reading: Slot<(Reader, Read)> = None;
        let mut committing: Slot<(Committer, Vec<Lease>, Report)> = None;
        let mut taking: Slot<Option<Step>> = None;
        self.jobs.add(&Trigger::Own, self.shared.routes.len());
        loop {
            self.shared.turned.now();
            let draining = drain.is_cancelled();
            if draining {
                // What was not started stays pending; the others take it as soon as this one unregisters.
                let left = self.ready.drain(..).chain(self.suspects.drain(..));
                let left: Vec<Lease> = left.map(|delivery| delivery.lease()).collect();
                self.shared.inflight.remove(left.iter());
            }
            let more = self.start_ready();
            // The commit before the next read: a requester waits for the one, nobody for the other.
            if !self.settled.is_empty()
                && let Some(free) = committer.take()
            {
                self.count_ends();
                committing = Some(commit(free, std::mem::take(&mut self.settled)));
            }
            let room = self.room();
            let calm = self.suspects.is_empty() && self.alone.is_none();
            if !draining && calm && room > 0 {
                let own = self.jobs.next().is_some_and(|job| job.is_own());
                if taking.is_none()
                    && !(own && reading.is_some())
                    && let Some(job) = self.jobs.next()
                {
                    taking = Some(take(job, self.shared.clone(), room));
                }
                // What was delivered before is older than anything new; but where taking over fails,
                // reading goes on.
                if (taking.is_none() && !own || self.taking_fails)
                    && let Some(free) = reader.take()
                {
                    reading = Some(read(free, room.min(READ)));
                }
            }
            let busy = reading.is_some() || committing.is_some() || taking.is_some();
            if draining && self.running == 0 && self.settled.is_empty() && !busy {
                return committer;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.shared.inflight.cancel_all();
                    return committer;
                }
                (free, leases, report) = occupied(&mut committing) => {
                    committing = None;
                    committer = Some(free);
                    self.committed(&leases, report);
                }
                Some(finished) = events.0.recv() => {
                    self.finish(finished);
                    while let Ok(finished) = events.0.try_recv() {
                        self.finish(finished);
                    }
                }
                (free, read) = occupied(&mut reading) => {
                    reading = None;
                    reader = Some(free);
                    match read {
                        Read::Entries(deliveries) => self.accept(deliveries),
                        Read::Lost => self.jobs.add(&Trigger::Own, self.shared.routes.len()),
                    }
                }
                step = occupied(&mut taking) => {
                    taking = None;
                    self.taking_fails = step.is_none();
                    if let Some(step) = step {
                        self.jobs.stepped(&step);
                        if let Step::Took(deliveries) = step {
                            self.shared.counts.taken.fetch_add(deliveries.len() as u64, Ordering::Relaxed);
                            self.accept(deliveries);
                        }
                    }
                }
                Some(trigger) = self.triggers.recv() => {
                    self.jobs.add(&trigger, self.shared.routes.len());
                }
                () = drain.cancelled(), if !draining => {}
                () = tokio::task::yield_now(), if more => {}
            }
        }
    }

    /// How many more entries may be read. While handlers wait, a worker reads no further ahead than it
    /// can run at a time, so that other replicas get their share.
    fn room(&self) -> usize {
        let limit = if self.running > 0 {
            2 * self.shared.concurrency
        } else {
            self.window
        };
        limit.saturating_sub(self.shared.inflight.len())
    }

    fn accept(&mut self, mut deliveries: Vec<Delivery>) {
        self.shared.inflight.add(&mut deliveries);
        for delivery in deliveries {
            if delivery.deliveries >= ALONE {
                self.suspects.push_back(delivery);
            } else {
                self.ready.push_back(delivery);
            }
        }
    }

    /// Starts what may be started, for one slice of time; true if it left some.
    fn start_ready(&mut self) -> bool {
        if self.alone.is_some() {
            return false;
        }
        if let Some(suspect) = self.suspects.front() {
            let waiting = self.suspects.len() + self.ready.len();
            let beside = self.shared.inflight.len().saturating_sub(waiting);
            if beside == 0 {
                self.alone = Some(suspect.lease());
                if let Some(suspect) = self.suspects.pop_front() {
                    self.start(suspect, Instant::now());
                }
            }
            return false;
        }
        let began = Instant::now();
        let mut now = began;
        while self.running < self.shared.concurrency {
            let Some(delivery) = self.ready.pop_front() else {
                if self.running == 0 {
                    self.window = (self.window * 2).min(AHEAD.max(self.shared.concurrency));
                }
                return false;
            };
            now = self.start(delivery, now);
            if now - began > SLICE {
                return !self.ready.is_empty();
            }
        }
        self.window = self.shared.concurrency;
        false
    }

    /// Runs one event as far as it goes at once; returns the time when that was.
    fn start(&mut self, delivery: Delivery, now: Instant) -> Instant {
        let lease = delivery.lease();
        let shared = self.shared.clone();
        let scene = shared.scene(lease);
        let stream = &shared.routes[lease.stream].events;
        let event = match Event::parse(delivery.entry, &shared.limits, &shared.process.keys, stream)
        {
            Ok(event) => event,
            Err(bad) => {
                self.settled.push(settle::malformed(scene, *bad));
                return now;
            }
        };
        if lease.deliveries > shared.max_deliveries {
            tracing::error!(stream, entry = %lease.entry, r#type = event.kind(), "poison: delivered too often without being committed");
            self.settled.push(settle::poison(scene, &event));
            return now;
        }
        if event
            .deadline()
            .is_some_and(|deadline| deadline < shared.claims.server_now())
        {
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
        let mut run: Run = match catch(|| route.start(context.clone())) {
            Ok(run) => run,
            Err(error) => Box::pin(std::future::ready(Err(error))),
        };
        // Polled once right here; coming back costs nothing if it is done.
        let first = catch(|| {
            run.as_mut()
                .poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
        });
        match first {
            Ok(Poll::Pending) => {
                drop(entered);
                self.running += 1;
                shared.inflight.running(&lease, context.clone());
                let finished = self.finished.clone();
                tokio::spawn(async move {
                    let run: Run = match route.timeout {
                        Some(limit) => Box::pin(Bounded::new(run, route.kind.clone(), limit)),
                        None => run,
                    };
                    let result = AssertUnwindSafe(run).catch_unwind().instrument(span).await;
                    let result = result.unwrap_or_else(|panic| Err(panicked(&*panic)));
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
                now
            }
            Ok(Poll::Ready(result)) => {
                drop(entered);
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
            Err(error) => {
                drop(entered);
                self.ran(Ran {
                    lease,
                    context,
                    route,
                    result: Err(error),
                    elapsed: Duration::ZERO,
                });
                Instant::now()
            }
        }
    }

    fn ran(&mut self, ran: Ran) {
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
        stats.ran(elapsed, result.is_err());
        let scene = self.shared.scene(lease);
        let mut settlement = match result {
            Ok(result) => settle::success(
                scene,
                event,
                result,
                context.take_outbox(),
                route.policy.silent,
            ),
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
    fn leave(&mut self, left: Left, context: Context, besides: Option<Box<str>>) {
        self.running += 1;
        let (shared, finished) = (self.shared.clone(), self.finished.clone());
        tokio::spawn(async move {
            let lease = left.lease;
            let end = left.end(&shared, context.event(), besides.as_deref()).await;
            let end = match end {
                Some(settlement) => Finished::Settled(Box::new(settlement)),
                None => Finished::Given(lease),
            };
            finished.send(end).ok();
        });
    }

    fn count_ends(&self) {
        let counts = &self.shared.counts;
        for settlement in &self.settled {
            match settlement.end {
                End::Done => {}
                End::Later { .. } => _ = counts.retried.fetch_add(1, Ordering::Relaxed),
                End::Dead(_) => _ = counts.dead.fetch_add(1, Ordering::Relaxed),
            }
        }
    }

    fn finish(&mut self, finished: Finished) {
        self.running -= 1;
        match finished {
            Finished::Run(ran) => self.ran(*ran),
            Finished::Settled(settlement) => self.settled.push(*settlement),
            Finished::Given(lease) => self.release(std::slice::from_ref(&lease)),
        }
    }

    fn committed(&mut self, leases: &[Lease], report: Report) {
        let counts = &self.shared.counts;
        counts
            .committed
            .fetch_add(report.committed, Ordering::Relaxed);
        counts.fenced.fetch_add(report.fenced, Ordering::Relaxed);
        if report.fenced > 0 {
            tracing::info!(
                lane = self.shared.name,
                entries = report.fenced,
                "outcomes discarded: someone else owns the entries now"
            );
        }
        if let Some((lease, why)) = report.refused.first() {
            tracing::error!(
                lane = self.shared.name, entry = %lease.entry, entries = report.refused.len(), why,
                "outcomes can not be written; the entries stay pending"
            );
        }
        self.release(leases);
        if report.outdated > 0 {
            tracing::info!(
                lane = self.shared.name,
                entries = report.outdated,
                "outcomes discarded: the server failed over or restarted since their runs began; they run again"
            );
            self.jobs.add(&Trigger::Own, self.shared.routes.len());
        }
    }

    fn release(&mut self, leases: &[Lease]) {
        self.shared.inflight.remove(leases.iter());
        if self.alone.is_some_and(|alone| leases.contains(&alone)) {
            self.alone = None;
        }
    }
}

/// What a lane's runs report to it.
pub struct LaneEvents(mpsc::UnboundedReceiver<Finished>);

fn read(mut reader: Reader, count: usize) -> Boxed<(Reader, Read)> {
    Box::pin(async move {
        let read = reader.next(count).await;
        (reader, read)
    })
}

fn commit(
    mut committer: Committer,
    batch: Vec<Settlement>,
) -> Boxed<(Committer, Vec<Lease>, Report)> {
    Box::pin(async move {
        let leases = batch.iter().map(|settlement| settlement.lease).collect();
        let report = committer.commit(batch).await;
        (committer, leases, report)
    })
}

fn take(job: Job, shared: Arc<Shared>, room: usize) -> Boxed<Option<Step>> {
    Box::pin(async move {
        match job.step(&shared, room).await {
            Ok(step) => Some(step),
            // No group, or no stream: nothing is pending there. The next trigger looks again.
            Err(error) if matches!(error.reaction(), Reaction::RepairGroup | Reaction::GiveUp) => {
                tracing::debug!(lane = shared.name, %error, "taking over was given up");
                Some(Step::Done)
            }
            Err(error) => {
                tracing::debug!(lane = shared.name, %error, "taking over failed; trying again");
                tokio::time::sleep(Duration::from_millis(200)).await;
                None
            }
        }
    })
}

/// What the slot's future gives; never ready while the slot is empty.
async fn occupied<T>(slot: &mut Slot<T>) -> T {
    match slot {
        Some(future) => future.await,
        None => std::future::pending().await,
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

fn catch<T>(run: impl FnOnce() -> T) -> Result<T, HandlerError> {
    std::panic::catch_unwind(AssertUnwindSafe(run)).map_err(|panic| panicked(&*panic))
}
