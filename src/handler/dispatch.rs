//! Running one of this process's handlers from within another one: the item of a batch, a task.

use crate::handler::context::Context;
use crate::handler::fence::Fenced;
use crate::handler::function::Encoded;
use crate::handler::gate::{Back, Gate, Manner, Places};
use crate::handler::policy::RetryPolicy;
use crate::handler::router::Route;
use crate::handler::telling::{error_of, sent};
use crate::protocol::error::{Code, HandlerError};
use crate::protocol::event::{Entry, Event, Limits};
use crate::protocol::msgpack::PayloadLimits;
use crate::protocol::trace::TraceContext;
use crate::streams::commit::Publication;
use crate::telemetry::{self, Message, Span, Telemetry, Work};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A part of an event's work that the handler of another type does.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// The event type of the handler.
    pub kind: &'a str,
    /// One MessagePack value: the payload.
    pub data: Vec<u8>,
    /// What the handler sees as the event's id: the same each time the part is run again.
    pub id: String,
    /// 1 on the first try.
    pub attempt: u32,
}

/// What became of a part.
#[derive(Debug)]
pub struct Done {
    /// Its result, or why it failed.
    pub result: Result<Encoded, HandlerError>,
    /// What it published: for the caller to commit with the part's completion. Empty if it failed.
    pub publications: Vec<Publication>,
}

/// Why a part that waited for its turn was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unbegun {
    /// The run that it is part of was cancelled.
    Cancelled,
    /// The worker shuts down.
    Draining,
    /// The deadline of its event has passed.
    Late,
}

#[doc(hidden)]
impl From<Unbegun> for HandlerError {
    fn from(why: Unbegun) -> Self {
        match why {
            Unbegun::Cancelled => HandlerError::aborted("the run was cancelled"),
            Unbegun::Draining => HandlerError::later(
                Duration::ZERO,
                "the worker shuts down, and a part of the run still waits for its turn",
            ),
            Unbegun::Late => HandlerError::new(
                Code::DeadlineExceeded,
                "the deadline passed while a part of the run waited for its turn",
            )
            .permanent(),
        }
    }
}

impl Context {
    /// Whether this process has a handler for that type.
    pub fn handles(&self, kind: &str) -> bool {
        self.route(kind).is_some()
    }

    /// When a failed run of the handler of that type is tried again; `None` if this process has none.
    pub fn retries_of(&self, kind: &str) -> Option<RetryPolicy> {
        Some(self.route(kind)?.retry())
    }

    /// Runs a part of this event's work with the handler that this process has for its type, under
    /// that handler's policy: layers, timeout, statistics. A panic is an error. Retries are the
    /// caller's business.
    ///
    /// Where the policy lets it not run yet (order, rate, circuit, concurrency), the part waits for its turn
    /// as an event of its type does, in the same lines as those. The part is cancelled when this run is. It
    /// has this event's source, subject and trace.
    ///
    /// # Errors
    /// If the wait ended before the part began: nothing of it was run.
    #[doc(hidden)]
    pub async fn dispatch(&self, part: Part<'_>) -> Result<Done, Unbegun> {
        let started = match self.prepare(part) {
            Ok(started) => started,
            Err(error) => {
                return Ok(Done {
                    result: Err(error),
                    publications: Vec::new(),
                });
            }
        };
        let (context, route) = started;
        let (result, elapsed) = match route.gate() {
            Some(gate) => self.in_turn(gate, &context).await?,
            None => {
                let (began, _counted) = (Instant::now(), route.counted());
                let timeout = route.limits.now().timeout;
                let run = Fenced::start(|| route.start_bare(context.clone()));
                let result = run.within(&route.kind, timeout).await;
                (result, began.elapsed())
            }
        };
        // A thread that the part blocks still is this run's, which begins no more until that is free.
        if let Some(thread) = context.left_behind() {
            thread.cancelled().await;
        }
        let result = result.and_then(|result| context.within_limits("the result", result));
        route.stats.ran(elapsed, result.is_err());
        if let Some((telemetry, own)) = context.told_by() {
            self.tell_part(telemetry, own, &context, &result, elapsed);
        }
        if context.wrote() {
            self.writes();
        }
        let publications = context.take_outbox();
        Ok(Done {
            publications: if result.is_ok() {
                publications
            } else {
                Vec::new()
            },
            result,
        })
    }

    /// Reports a part that ran, and what it published if that counts.
    #[cold]
    fn tell_part(
        &self,
        telemetry: &Telemetry,
        own: TraceContext,
        part: &Context,
        result: &Result<Encoded, HandlerError>,
        elapsed: Duration,
    ) {
        let times = telemetry::lasted(elapsed);
        telemetry.tell(Span {
            own,
            parent: self.trace(),
            work: Work::Part,
            message: Message::of(part.event(), "", self.deliveries()),
            times,
            error: result.as_ref().err().map(error_of),
        });
        if result.is_ok() {
            let times = (times.1, times.1);
            part.look_at_outbox(|publication| {
                if let Some(span) = sent(own, publication) {
                    telemetry.tell(Span { times, ..span });
                }
            });
        }
    }

    /// Has a part go through the gate before its handler; refused there, it keeps its places and comes
    /// again. How long the last run took.
    async fn in_turn(
        &self,
        gate: &Arc<Gate>,
        part: &Context,
    ) -> Result<(Result<Encoded, HandlerError>, Duration), Unbegun> {
        let (mut places, mut after) = (Places::default(), None);
        loop {
            let entering = gate.enter(part.clone(), Manner::Patient, places, after);
            let begun = match self.unless_it_ends(entering).await? {
                Ok(entered) => entered.begin(),
                Err(error) => return Ok((Err(error), Duration::ZERO)),
            };
            let begun = match begun {
                Ok(begun) => begun,
                Err(kept) => {
                    (places, after) = (*kept, None);
                    continue;
                }
            };
            let back = Back::default();
            let began = Instant::now();
            let run = Fenced::start(|| gate.run(begun, part.clone(), back.clone()));
            match (run.await, back.take()) {
                (Err(refused), Some(kept)) => (places, after) = (kept, refused.retry_after),
                (result, _) => return Ok((result, began.elapsed())),
            }
        }
    }

    /// Waits for something as long as this run may begin more: what is there at once is had in any case.
    async fn unless_it_ends<T>(&self, wait: impl Future<Output = T>) -> Result<T, Unbegun> {
        let draining = self.draining();
        let late = async {
            match self.time_left() {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            there = wait => Ok(there),
            () = self.cancellation().cancelled() => Err(Unbegun::Cancelled),
            () = draining.cancelled() => Err(Unbegun::Draining),
            () = late => Err(Unbegun::Late),
        }
    }

    fn route(&self, kind: &str) -> Option<Arc<Route>> {
        self.process().router.get()?.find(kind).cloned()
    }

    fn prepare(&self, part: Part<'_>) -> Result<(Context, Arc<Route>), HandlerError> {
        let Some(route) = self.route(part.kind) else {
            let (instance, kind) = (self.instance(), part.kind);
            return Err(HandlerError::new(
                Code::Unimplemented,
                format!("{instance} has no handler for {kind}"),
            ));
        };
        let event = self.event();
        let mut fields: Vec<Vec<u8>> = Vec::with_capacity(14);
        let mut add = |name: &str, value: Vec<u8>| fields.extend([name.into(), value]);
        add("type", part.kind.into());
        add("data", part.data);
        add("id", part.id.into_bytes());
        add("attempt", part.attempt.to_string().into_bytes());
        if let Some(source) = event.source() {
            add("source", source.into());
        }
        if let Some(subject) = event.subject() {
            add("subject", subject.into());
        }
        if let Some(trace) = self.trace() {
            add("traceparent", trace.to_string().into_bytes());
        }
        let entry = Entry::new(event.entry_id(), fields);
        // It came out of an event that was within the limits.
        let payload = PayloadLimits {
            bytes: usize::MAX,
            ..PayloadLimits::default()
        };
        let limits = Limits {
            payload,
            ..Limits::default()
        };
        let event = Event::parse(entry, &limits, self.keys(), "")
            .map_err(|bad| HandlerError::invalid_argument(bad.message))?;
        let context = Context::new(event, self.process().clone());
        context.cancelled_with(self);
        context.is_part_of(self);
        if route.policy.stateful {
            context.writes();
        }
        Ok((context, route))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordination::policies::RunLimits;
    use crate::handler::assembly::Surroundings;
    use crate::handler::assembly::testing::{limits, process};
    use crate::handler::gate::permits::Seats;
    use crate::handler::policy::Policy;
    use crate::handler::router::{Registration, Router};
    use crate::protocol::event::EntryId;
    use std::sync::atomic::Ordering;

    fn parent() -> Context {
        parent_of(Policy::new().timeout(Duration::from_secs(5)), &[])
    }

    /// A run whose event has those fields, and whose parts have that policy.
    fn parent_of(policy: Policy, fields: &[&str]) -> Context {
        let process = process();
        let double = async |context: Context, n: u32| {
            context.publish("audit.doubled", &n)?;
            match n {
                0 => panic!("nothing to double"),
                1 => Err(HandlerError::not_found("one")),
                2 => std::future::pending().await,
                n => Ok(format!("{}:{}", context.event().id(), 2 * n)),
            }
        };
        let registration = Registration::new("number.double", double, policy);
        let surroundings = Surroundings {
            process: process.clone(),
            handler_timeout: Duration::from_secs(30),
            limits: limits(),
            circuits: None,
        };
        let router = Router::new(vec![registration], RetryPolicy::default(), &surroundings);
        process.router.set(Arc::new(router.unwrap())).unwrap();
        let all = [&["type", "system.batch", "subject", "s"], fields].concat();
        let entry = Entry::new(EntryId::default(), all);
        let event = Event::parse(entry, &Limits::default(), &process.keys, "").unwrap();
        Context::new(event, process)
    }

    fn part(kind: &str, n: u8) -> Part<'_> {
        Part {
            kind,
            data: vec![n],
            id: format!("b/{n}"),
            attempt: 1,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_runs_under_its_handlers_policy_and_a_failed_one_publishes_nothing() {
        let parent = parent();
        assert!(parent.handles("number.double") && !parent.handles("number.halve"));
        let done = parent.dispatch(part("number.double", 21)).await.unwrap();
        assert_eq!(
            done.result.unwrap(),
            rmp_serde::to_vec_named("b/21:42").unwrap()
        );
        assert_eq!(done.publications.len(), 1);
        for (n, code) in [
            (0, Code::Internal),
            (1, Code::NotFound),
            (2, Code::DeadlineExceeded),
        ] {
            let done = parent.dispatch(part("number.double", n)).await.unwrap();
            assert_eq!(done.result.unwrap_err().code, code);
            assert!(done.publications.is_empty());
        }
        let stats = parent.route("number.double").unwrap().stats.clone();
        assert_eq!(stats.calls.load(Ordering::Relaxed), 4);
        assert_eq!(stats.errors.load(Ordering::Relaxed), 3);
        let missing = parent.dispatch(part("number.halve", 2)).await.unwrap();
        assert_eq!(missing.result.unwrap_err().code, Code::Unimplemented);
    }

    #[tokio::test]
    async fn a_part_is_cancelled_with_the_run_that_it_is_part_of() {
        let parent = parent();
        let (child, _) = parent.prepare(part("number.double", 3)).unwrap();
        assert_eq!(child.event().subject(), Some("s"));
        assert!(!child.cancellation().is_cancelled());
        parent.cancellation().cancel();
        assert!(child.cancellation().is_cancelled());
    }

    /// A run whose circuit is open for so long.
    async fn broken(open: Duration, fields: &[&str]) -> Context {
        let parent = parent_of(Policy::new().circuit(1, open), fields);
        let failed = parent.dispatch(part("number.double", 0)).await.unwrap();
        assert_eq!(failed.result.unwrap_err().code, Code::Internal);
        parent
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_may_not_run_yet_waits_for_its_turn_and_spends_nothing() {
        let parent = broken(Duration::from_secs(30), &[]).await;
        let began = tokio::time::Instant::now();
        let done = parent.dispatch(part("number.double", 21)).await.unwrap();
        done.result.unwrap();
        assert!(began.elapsed() >= Duration::from_secs(30));
        let stats = parent.route("number.double").unwrap().stats.clone();
        assert_eq!(stats.calls.load(Ordering::Relaxed), 2);
        assert_eq!(stats.errors.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn parts_wait_for_a_place_beside_what_runs() {
        let parent = parent_of(Policy::new().no_timeout().concurrency(1), &[]);
        let mut first = Box::pin(parent.dispatch(part("number.double", 2)));
        assert!(futures_util::poll!(&mut first).is_pending());
        let mut second = Box::pin(parent.dispatch(part("number.double", 21)));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        second.await.unwrap().result.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_ends_with_the_deadline_the_drain_and_the_run_and_nothing_was_run() {
        let hour = Duration::from_secs(3600);
        let soon = crate::connect::clock::local_now() + 60_000;
        let late = broken(hour, &["deadline", &soon.to_string()]).await;
        let drained = broken(hour, &[]).await;
        let draining = tokio_util::sync::CancellationToken::new();
        draining.cancel();
        drained.process().draining.set(draining).unwrap();
        let cancelled = broken(hour, &[]).await;
        cancelled.cancellation().cancel();
        for (parent, why) in [
            (late, Unbegun::Late),
            (drained, Unbegun::Draining),
            (cancelled, Unbegun::Cancelled),
        ] {
            let began = tokio::time::Instant::now();
            let done = parent.dispatch(part("number.double", 21)).await;
            assert_eq!(done.unwrap_err(), why);
            assert!(began.elapsed() <= Duration::from_secs(61), "{why:?}");
            let stats = parent.route("number.double").unwrap().stats.clone();
            assert_eq!(stats.calls.load(Ordering::Relaxed), 1);
        }
    }

    /// Has as many parts go on in all workers, and as many of them here.
    fn shared(parent: &Context, seats: usize) -> Arc<Route> {
        let route = parent.route("number.double").unwrap();
        route.ask(RunLimits {
            total: Some(9),
            ..RunLimits::default()
        });
        seated(&route, seats);
        route
    }

    fn seated(route: &Route, seats: usize) {
        let until = tokio::time::Instant::now() + Duration::from_secs(3600);
        let seats = Seats {
            count: seats,
            total: 9,
            until,
        };
        route.permits().unwrap().seat(seats);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_waits_for_a_seat_begins_when_there_is_one() {
        let parent = parent();
        let route = shared(&parent, 0);
        let mut waits = Box::pin(parent.dispatch(part("number.double", 21)));
        assert!(futures_util::poll!(&mut waits).is_pending());
        assert_eq!(route.permits().unwrap().look().unwrap().waits, 1);
        seated(&route, 1);
        waits.await.unwrap().result.unwrap();
        let look = route.permits().unwrap().look().unwrap();
        assert_eq!((look.runs, look.entered, look.waits), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_seat_comes_back_however_a_run_ends() {
        let parent = parent();
        let route = shared(&parent, 1);
        let runs = || route.permits().unwrap().look().unwrap().runs;
        // A panic, a failure, a time-out; and one that is given up.
        for n in [0, 1, 2, 21] {
            parent.dispatch(part("number.double", n)).await.unwrap();
            assert_eq!(runs(), 0, "{n}");
        }
        let mut part_that_runs = Box::pin(parent.dispatch(part("number.double", 2)));
        assert!(futures_util::poll!(&mut part_that_runs).is_pending());
        assert_eq!(runs(), 1);
        drop(part_that_runs);
        assert_eq!(runs(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_a_seat_ends_with_the_deadline_the_drain_and_the_run() {
        let soon = crate::connect::clock::local_now() + 60_000;
        let late = parent_of(Policy::new(), &["deadline", &soon.to_string()]);
        let drained = parent_of(Policy::new().ordered(), &[]);
        let draining = tokio_util::sync::CancellationToken::new();
        drained.process().draining.set(draining.clone()).unwrap();
        let cancelled = parent_of(Policy::new().circuit(5, Duration::from_secs(1)), &[]);
        for (parent, why) in [
            (&late, Unbegun::Late),
            (&drained, Unbegun::Draining),
            (&cancelled, Unbegun::Cancelled),
        ] {
            let route = shared(parent, 0);
            let mut waits = Box::pin(parent.dispatch(part("number.double", 21)));
            assert!(futures_util::poll!(&mut waits).is_pending());
            match why {
                Unbegun::Draining => draining.cancel(),
                Unbegun::Cancelled => parent.cancellation().cancel(),
                Unbegun::Late => {}
            }
            assert_eq!(waits.await.unwrap_err(), why);
            // Once it is so, nothing of it begins that has to wait.
            let again = parent.dispatch(part("number.double", 21)).await;
            if why != Unbegun::Late {
                assert_eq!(again.unwrap_err(), why);
            }
            assert_eq!(route.stats.calls.load(Ordering::Relaxed), 0);
            assert_eq!(route.permits().unwrap().look().unwrap().waits, 0);
        }
    }

    #[tokio::test]
    async fn what_need_not_wait_begins_while_the_worker_drains() {
        let parent = parent_of(Policy::new().concurrency(1), &[]);
        let draining = tokio_util::sync::CancellationToken::new();
        draining.cancel();
        parent.process().draining.set(draining).unwrap();
        let done = parent.dispatch(part("number.double", 21)).await.unwrap();
        done.result.unwrap();
    }
}
