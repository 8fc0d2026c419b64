//! A lane: some streams, read, run and committed by one loop.
//!
//! Three things go on at a time: a read, the runs, a commit. What finished while a commit was under way
//! goes into the next one, so batches grow with the load and a lone event waits for nobody. A handler
//! that is ready at once runs inside the loop; one that waits becomes a task.

use super::inflight::InFlight;
use super::reader::{Read, Reader};
use super::settle::{self, Scene};
use super::takeover::{ALONE, Job, Jobs, Step, Trigger};
use crate::bus::claim;
use crate::bus::commit::{Claims, Committer, End, Lease, Report, Settlement};
use crate::bus::error::Reaction;
use crate::bus::event::{Entry, Event, Limits};
use crate::bus::keys::Route;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::Instances;
use crate::error::{Code, HandlerError};
use crate::registry::context::{Context, Process};
use crate::registry::dispatch::panicked;
use crate::registry::handler::{Encoded, Run};
use crate::registry::layers::timeout::Bounded;
use crate::registry::policy::RetryPolicy;
use crate::registry::router::{self, Router};
use futures_util::FutureExt;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// An entry in a worker's hands.
#[derive(Debug)]
pub struct Delivery {
    /// Which of the lane's streams.
    pub stream: usize,
    /// The entry.
    pub entry: Entry,
    /// How often it was delivered.
    pub deliveries: u32,
    /// The claim counter known before it was read.
    pub claims: u64,
}

impl Delivery {
    /// Which delivery it is.
    pub fn lease(&self) -> Lease {
        Lease {
            stream: self.stream,
            entry: self.entry.id,
            deliveries: self.deliveries,
            claims: self.claims,
        }
    }
}

/// What happened in a lane so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Outcomes committed.
    pub committed: AtomicU64,
    /// Outcomes discarded since someone else owned the entry.
    pub fenced: AtomicU64,
    /// Entries that were delivered before, to whomever.
    pub taken: AtomicU64,
    /// Events dropped since their deadline had passed.
    pub expired: AtomicU64,
    /// Events that will be tried again.
    pub retried: AtomicU64,
    /// Events that became dead letters.
    pub dead: AtomicU64,
}

/// What the parts of a lane share.
#[derive(Debug)]
pub struct Shared {
    /// `control`, `tasks` or `data`.
    pub name: &'static str,
    /// The lane's streams.
    pub routes: Arc<[Route]>,
    /// Domain and partition of each stream.
    pub places: Vec<(String, u16)>,
    /// Which of the streams is this instance's inbox.
    pub inbox: Option<usize>,
    /// The consumer group.
    pub group: String,
    /// The process.
    pub process: Arc<Process>,
    /// Who handles what.
    pub router: Arc<Router>,
    /// Who else there is.
    pub instances: Instances,
    /// Bounds on events.
    pub limits: Limits,
    /// What is read and not settled.
    pub inflight: Arc<InFlight>,
    /// When the loop last went round.
    pub turned: Turned,
    /// The claim counters as last seen.
    pub claims: Arc<Claims>,
    /// Handlers that may wait at a time.
    pub concurrency: usize,
    /// How long an entry may be idle before it is taken over.
    pub claim_idle: Duration,
    /// Deliveries before an event counts as poison.
    pub max_deliveries: u32,
    /// Retries of events without a handler's own schedule.
    pub retry: RetryPolicy,
    /// What happened so far.
    pub counts: Counts,
}

/// When a lane's loop last went round, told to whoever renews its leases: a handler that blocks the
/// loop's thread keeps it from taking in what its read was answered.
#[derive(Debug)]
pub struct Turned {
    began: Instant,
    ms: AtomicU64,
}

impl Default for Turned {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            ms: AtomicU64::new(0),
        }
    }
}

impl Turned {
    fn now(&self) {
        let ms = self.began.elapsed().as_millis() as u64;
        self.ms.store(ms, Ordering::Relaxed);
    }

    /// How long ago that was.
    pub fn ago(&self) -> Duration {
        let ms = self.ms.load(Ordering::Relaxed);
        self.began
            .elapsed()
            .saturating_sub(Duration::from_millis(ms))
    }
}

impl Shared {
    /// This instance, which is the consumer's name.
    pub fn instance(&self) -> &str {
        &self.process.instance
    }

    /// The claim counter's key of a consumer, for the commits of one of the streams.
    pub fn claims_key(&self, stream: usize, consumer: &str) -> String {
        let (domain, partition) = &self.places[stream];
        self.process.keys.claims(domain, *partition, consumer)
    }

    fn scene(&self, lease: Lease) -> Scene<'_> {
        Scene {
            lease,
            stream: &self.routes[lease.stream].events,
            instance: self.instance(),
        }
    }
}

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
                if taking.is_none()
                    && let Some(job) = self.jobs.next()
                {
                    taking = Some(take(job, self.shared.clone(), room));
                }
                // What was delivered before is older than anything new; but where taking over fails,
                // reading goes on.
                if (taking.is_none() || self.taking_fails)
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
        let Some(route) = shared.router.find(event.kind()).cloned() else {
            self.running += 1;
            tokio::spawn(unknown(shared.clone(), lease, event, self.finished.clone()));
            return now;
        };
        let inbox = shared.inbox == Some(lease.stream);
        let context =
            Context::arrived(event, shared.process.clone(), inbox).delivered(lease.deliveries);
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
            self.running += 1;
            let left = Left {
                lease,
                error: error.clone(),
                retry: route.retry,
                may_stay: context.draining().is_cancelled(),
            };
            let (shared, finished) = (self.shared.clone(), self.finished.clone());
            tokio::spawn(async move {
                let end = left.end(&shared, context.event(), Some(&kind)).await;
                finished.send(end).ok();
            });
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

/// An event without a handler here.
async fn unknown(
    shared: Arc<Shared>,
    lease: Lease,
    event: Event,
    finished: mpsc::UnboundedSender<Finished>,
) {
    let (group, kind) = (&shared.group, event.kind());
    let left = Left {
        lease,
        error: HandlerError::new(
            Code::Unimplemented,
            format!("no active worker in group {group} has a handler for {kind}"),
        ),
        retry: shared.retry,
        may_stay: false,
    };
    let end = left.end(&shared, &event, None).await;
    finished.send(end).ok();
}

/// An event that is left for an active instance that can run it.
struct Left {
    lease: Lease,
    /// What it comes to if there is none.
    error: HandlerError,
    retry: RetryPolicy,
    /// Whether it then stays pending instead: this worker shuts down, and another one may come.
    may_stay: bool,
}

impl Left {
    /// Hands it to an instance that has a handler for its type, and for another one where that is
    /// needed too.
    async fn end(self, shared: &Shared, event: &Event, besides: Option<&str>) -> Finished {
        let error = match hand_over(shared, self.lease, event, besides).await {
            Ok(true) => return Finished::Given(self.lease),
            _ if self.may_stay => return Finished::Given(self.lease),
            Ok(false) => self.error,
            Err(error) => error,
        };
        let scene = shared.scene(self.lease);
        Finished::Settled(Box::new(settle::failure(scene, event, &error, &self.retry)))
    }
}

async fn hand_over(
    shared: &Shared,
    lease: Lease,
    event: &Event,
    besides: Option<&str>,
) -> Result<bool, HandlerError> {
    if shared.inbox == Some(lease.stream) {
        return Ok(false);
    }
    let capable = shared.instances.capable(event.kind()).await;
    let mut capable = capable.map_err(CoordinationError::into_handler_error)?;
    if let Some(kind) = besides {
        let also = shared.instances.capable(kind).await;
        let also = also.map_err(CoordinationError::into_handler_error)?;
        capable.retain(|id| also.contains(id));
    }
    let others: Vec<&String> = capable
        .iter()
        .filter(|id| *id != shared.instance())
        .collect();
    if others.is_empty() {
        return Ok(false);
    }
    let to = others[fastrand::usize(..others.len())];
    let stream = &shared.routes[lease.stream].events;
    let mut connection = shared.process.connector.pooled().await?;
    let entry = (lease.entry, lease.deliveries);
    claim::give(
        &mut connection,
        stream,
        &shared.group,
        shared.instance(),
        to,
        entry,
    )
    .await?;
    let nudge = crate::bus::commit::Publication {
        stream: shared.process.keys.inbox(to),
        fields: vec![b"type".to_vec(), NUDGE.into()],
    };
    nudge.store(&mut connection).await?;
    Ok(true)
}

/// Tells an instance, through its inbox, that an entry was handed to it.
pub const NUDGE: &str = "worker.nudge";

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
