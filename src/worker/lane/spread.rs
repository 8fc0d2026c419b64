//! Runs on other threads than the lane's: of handlers that hold theirs for long.
//!
//! Where the first polls of a type's runs are long (see [`Pace`](crate::handler::pace)), the lane gives a run to a task before
//! anything of it has begun. At most as many such runs are in their first poll at a time as there are cores and one: the
//! others wait in the admission, unstarted, where their deadlines are watched and a drain gives them back.
//!
//! A long poll gives its thread's place among the runtime's to another thread first. Otherwise, on as many threads as
//! there are cores, nobody would be left who reads, commits and sends pulses.

use super::Lane;
use super::finished::Finished;
use crate::handler::context::Context;
use crate::handler::fence::Fenced;
use crate::handler::function::{Encoded, Run};
use crate::handler::gate::{Back, Begun};
use crate::handler::router::Route;
use crate::protocol::error::HandlerError;
use std::future::poll_fn;
use std::num::NonZero;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Cx, Poll};
use std::thread::available_parallelism;
use std::time::Instant;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::mpsc;
use tokio::task::block_in_place;

/// How many runs may be in a long first poll at a time: while one ends and the next one comes, no core waits. `None`
/// where the runtime has one thread, and nothing is gained.
pub(super) fn room() -> Option<usize> {
    has_threads().then(|| available_parallelism().map_or(1, NonZero::get) + 1)
}

/// Whether the runtime has other threads for what one of them would do. Each run asks: to count the cores takes a look at
/// files of the system.
fn has_threads() -> bool {
    let handle = Handle::try_current();
    handle.is_ok_and(|handle| handle.runtime_flavor() != RuntimeFlavor::CurrentThread)
}

/// Starts a run of that handler.
pub(super) fn begin(
    route: &Arc<Route>,
    context: Context,
    begun: Option<Begun>,
    back: Option<Back>,
) -> Run {
    match (route.entered_gate(), begun, back) {
        (Some(gate), Some(begun), Some(back)) => gate.run(begun, context, back),
        _ => route.start_bare(context),
    }
}

/// A run of which nothing begins before its first poll, the decoding of its payload neither.
pub(super) fn unbegun(
    route: &Arc<Route>,
    context: Context,
    begun: Option<Begun>,
    back: Option<Back>,
) -> Fenced {
    let route = route.clone();
    Fenced::start(|| Box::pin(async move { begin(&route, context, begun, back).await }))
}

/// A place for a long first poll; dropped, it is free.
pub(super) struct Computes(mpsc::UnboundedSender<Finished>);

impl Drop for Computes {
    fn drop(&mut self) {
        // A lane that stopped starts nothing more.
        self.0.send(Finished::Computed).ok();
    }
}

impl Lane {
    /// Takes one of the places for long first polls.
    pub(super) fn computes(&mut self) -> Computes {
        self.admission.computes();
        Computes(self.finished.clone())
    }
}

/// A run in a task, whose polls are timed.
pub(super) struct Timed {
    run: Fenced,
    route: Arc<Route>,
    /// Its first poll is still to come.
    first: bool,
    computes: Option<Computes>,
    /// Whether its thread can be left by the runtime.
    leaves: bool,
}

impl Timed {
    /// A run that was polled before, unless it was given a place to compute.
    pub(super) fn new(run: Fenced, route: Arc<Route>, computes: Option<Computes>) -> Self {
        Self {
            run,
            route,
            first: computes.is_some(),
            computes,
            leaves: has_threads(),
        }
    }
}

impl Future for Timed {
    type Output = Result<Encoded, HandlerError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Cx<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let holds = match this.first {
            true => &this.route.pace.first,
            false => &this.route.pace.later,
        };
        let began = Instant::now();
        let polled = match this.leaves && holds.are_long() {
            true => {
                // Its thread has tokio's budget and is the runtime's there, as it is elsewhere.
                let runtime = Handle::current();
                let mut polled = || Poll::Ready(Pin::new(&mut this.run).poll(cx));
                block_in_place(|| runtime.block_on(poll_fn(|_| polled())))
            }
            false => Pin::new(&mut this.run).poll(cx),
        };
        holds.took(began.elapsed());
        this.first = false;
        this.computes = None;
        polled
    }
}
