//! Programs in any language that stay alive, as handlers ([protocol](crate::docs::protocol#foreign-workers)).
//!
//! A pipe has some **seats**, each with one process. An event enters its handler's gate only while a seat has
//! room for it, so what waits holds nothing of the worker. A seat whose process ended gets a new one after a
//! pause that grows.
//!
//! | what happens | to the run | to the others that the process held | to the process |
//! |---|---|---|---|
//! | it answers | its outcome | | goes on |
//! | the run times out, is cancelled or given up | as in any handler | run again, no attempt is spent | is ended with all its children: it must not go on beside the event's next run |
//! | it ends, or writes what is no answer | a failed attempt | a failed attempt each | is started again |
//!
//! Who failed, or was delivered, before is held by a process that holds nothing else: so an event that ends
//! processes takes others along once at the most.

mod frames;
mod pool;
mod process;
mod stderr;

use crate::handler::context::Context;
use crate::handler::function::{Encoded, Endpoint, Schemas};
use crate::handler::policy::Policy;
use crate::handler::router::Registration;
use crate::mutex::locked;
use crate::protocol::error::HandlerError;
use crate::settings::Pipe as Setting;
use futures_util::future::join_all;
use pool::Pool;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// How long a run waits for a seat that it was promised: others may have run alone there.
const PATIENCE: Duration = Duration::from_secs(1);

/// The processes of one event type. Dropped, they are ended.
#[derive(Debug)]
pub(crate) struct Pipe {
    pool: Arc<Pool>,
    seats: Mutex<Vec<AbortOnDropHandle<()>>>,
}

impl Pipe {
    /// The processes of that type. A result has at most that many bytes. None runs until they are
    /// started.
    pub(crate) fn new(kind: &str, setting: &Setting, max_message: usize) -> Self {
        Self {
            pool: Arc::new(Pool::new(kind, setting, max_message)),
            seats: Mutex::default(),
        }
    }

    /// The handler that gives events to them.
    pub(crate) fn registration(&self) -> Registration {
        let pool = self.pool.clone();
        Registration {
            kind: pool.kind.clone(),
            endpoint: Endpoint::raw(move |context| Box::pin(run(pool.clone(), context))),
            // Not the command itself: everyone on the bus reads it, and it may hold a secret.
            policy: Policy::new()
                .permitted_by(self.pool.permits.clone())
                .describe("Is run by a program of its worker's that stays alive (--pipe)."),
            schemas: Schemas::of::<serde_json::Value, serde_json::Value>(),
        }
    }

    /// Starts the processes, and keeps them.
    pub(crate) fn start(&self) {
        let seats = 0..self.pool.seats();
        let keep =
            |seat| AbortOnDropHandle::new(tokio::spawn(process::keep(self.pool.clone(), seat)));
        *locked(&self.seats) = seats.map(keep).collect();
    }

    /// Has each process end by itself once it has answered all that it holds: its input is closed. Those that do
    /// not end in time are killed.
    pub(crate) async fn end(&self) {
        self.pool.close();
        let seats = std::mem::take(&mut *locked(&self.seats));
        join_all(seats).await;
    }
}

async fn run(pool: Arc<Pool>, context: Context) -> Result<Encoded, HandlerError> {
    let frame = frames::job(context.event(), pool.format)?;
    let mut ticket = pool.submit(frame, &context);
    let cancelled = context.cancellation();
    if !ticket.is_given() {
        tokio::select! {
            biased;
            answer = ticket.answer() => return answer,
            () = cancelled.cancelled() => return Err(aborted()),
            () = tokio::time::sleep(PATIENCE) => if ticket.gives_up_waiting() {
                return Err(HandlerError::later(PATIENCE, "the processes of its type have no place for it now"));
            }
        }
    }
    tokio::select! {
        biased;
        answer = ticket.answer() => answer,
        () = cancelled.cancelled() => Err(aborted()),
    }
}

fn aborted() -> HandlerError {
    HandlerError::aborted("the run was cancelled: its lease was lost, or the worker stops")
}
