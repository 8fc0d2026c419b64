//! What comes back to a lane from the tasks that it began.

use super::Waiting;
use super::hold::Noted;
use super::weigh::Weighing;
use crate::connect::epoch::Epoch;
use crate::handler::context::Context;
use crate::handler::function::Encoded;
use crate::handler::gate::{Back, Entered};
use crate::handler::router::Route;
use crate::protocol::error::HandlerError;
use crate::protocol::event::Event;
use crate::streams::commit::{Receipt, Settlement};
use crate::streams::first::FirstCheck;
use crate::streams::park::Weighed;
use crate::worker::admission::Held;
use crate::worker::handover::Left;
use std::sync::Arc;
use std::time::Duration;

/// What a task of the lane reports to it.
pub(super) enum Finished {
    Run(Box<Ran>),
    /// A run is over its long first poll.
    Computed,
    /// A batch ended, with an outcome for each event; what it held comes back, now or later.
    Lot(Vec<Ran>, Option<Held>),
    /// The thread is free that a run of that route held beyond its end.
    Freed(usize),
    /// An event entered the gate before its handler, could not, or came too late (`None`).
    Entered(Box<Waiting>, Option<Result<Entered, HandlerError>>),
    /// Whether an event is the first of its id.
    Judged(Box<Unjudged>, FirstCheck),
    /// Whether an event that is paused, or may be behind such ones, may begin; `None` if the server refuses to say.
    Weighed(Box<Weighing>, Option<Weighed>),
    /// What is to be tried again is noted, and stays in its place.
    Noted(Noted),
    Settled(Box<Settlement>),
    Given(Receipt),
    /// What was read and not started: how it is settled, or that it stays as it is.
    GivenBack(Vec<Settlement>, Vec<Receipt>),
}

/// A run that ended.
pub(super) struct Ran {
    pub(super) receipt: Receipt,
    pub(super) context: Context,
    pub(super) route: Arc<Route>,
    pub(super) result: Result<Encoded, HandlerError>,
    pub(super) elapsed: Duration,
    /// Where its places are, if it was refused.
    pub(super) back: Option<Back>,
    /// The history of the server in which it was judged to be the first of its id, if it asked.
    pub(super) judged_in: Option<Epoch>,
    /// Whether its thread still blocks, and keeps its slot.
    pub(super) blocks: bool,
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
            blocks: false,
        }
    }

    /// Which handler's it is.
    pub(super) fn route(&self) -> usize {
        self.route.index
    }
}

/// An event of which nobody knows yet whether it is the first of its id, and what happens to it if it is.
pub(super) enum Unjudged {
    /// The event runs.
    Admitted(Waiting),
    /// The event ends so without a run.
    Refused(Waiting, HandlerError),
    /// The event is left to who has a handler.
    Left(Left, Context),
}

impl Unjudged {
    pub(super) fn receipt(&self) -> Receipt {
        match self {
            Unjudged::Admitted(waiting) | Unjudged::Refused(waiting, _) => waiting.receipt,
            Unjudged::Left(left, _) => left.receipt,
        }
    }

    pub(super) fn event(&self) -> &Event {
        match self {
            Unjudged::Admitted(waiting) | Unjudged::Refused(waiting, _) => waiting.context.event(),
            Unjudged::Left(_, context) => context.event(),
        }
    }
}
