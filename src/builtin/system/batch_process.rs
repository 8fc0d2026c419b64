//! `system.batch.process`: holds the batch and sees to it that every item is run, or tells who does.

mod exclusive;
mod fan_out;
mod holding;
mod managed;

use crate::builtin::Services;
use crate::builtin::system::encoded;
use crate::client::{Client, ClientOptions};
use crate::connect::clock::whole_ms;
use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::connect::silence::Answers;
use crate::coordination::batches;
use crate::coordination::batches::batch::{BatchPlan, BatchStatus, Failure, Mode};
use crate::coordination::batches::leases::Leases;
use crate::coordination::batches::{Acquired, Asker, Batches};
use crate::coordination::error::CoordinationError;
use crate::handler::state::State;
use crate::protocol::error::{Code, HandlerError};
use crate::protocol::keys::{Keys, NameError};
use crate::protocol::pattern::{Pattern, Patterned};
use crate::settings::Settings;
use crate::{Context, Policy};
use holding::{Holding, Stop};
use rmpv::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use uuid::Uuid;

/// The event type.
pub const KIND: &str = "system.batch.process";
/// Items of a batch of nobody's that are under way at the most, whatever a stream of replies keeps.
const AHEAD: usize = 4096;
/// Batches that one process works on, or waits for, at a time. The control lane has room for this many
/// beside everything else, so they delay no heartbeat; what is over it runs later, here or elsewhere.
pub const PLACES: usize = 16;
/// How long an event for which there was no place waits before it is looked at again.
const NO_PLACE: Duration = Duration::from_secs(1);
/// How long a batch whose items nobody may have a handler for waits before it looks again.
const MISSING: Duration = Duration::from_secs(1);

/// How the handler is run: its lease is its only time limit.
pub fn policy() -> Policy {
    Policy::new().no_timeout().stateful().describe(
        "Runs the handler of a type for every item of a batch, one instance at a time, and goes on \
         where the last one stopped.",
    )
}

/// What all runs of the handler share.
#[derive(Clone, Debug)]
pub struct Runner {
    batches: Batches,
    leases: Leases,
    client: Client,
    connector: Connector,
    places: Arc<Semaphore>,
    lease: Duration,
    group: String,
    /// How long an item may be without an answer before it is looked for.
    patience: Duration,
    /// Items of a batch of nobody's that are under way at the most: their replies are kept until they are read.
    ahead: usize,
}

impl Runner {
    /// For the handlers of one process. Whoever has the leases kept must be one that no item blocks.
    ///
    /// # Errors
    /// If the settings name no namespace.
    pub fn new(
        connector: Connector,
        keys: Keys,
        settings: &Settings,
        leases: Leases,
        answers: Answers,
    ) -> Result<Self, NameError> {
        let options = ClientOptions {
            // An item that is not published again has its answer there, or to come.
            dedup_window: settings.reply_ttl,
            source: Some(settings.id.clone()),
            ..ClientOptions::from(settings)
        };
        Ok(Self {
            batches: Batches::new(connector.clone(), keys.clone()).judging_by(answers),
            leases,
            client: Client::new(connector.clone(), keys, options)?,
            connector,
            places: Arc::new(Semaphore::new(PLACES)),
            lease: settings.batch_lease,
            group: settings.group.clone(),
            patience: patience(settings),
            ahead: ahead(settings.stream_history),
        })
    }
}

/// Half of what a stream of replies keeps about.
fn ahead(history: u64) -> usize {
    let half = usize::try_from(history / 2).unwrap_or(usize::MAX);
    half.clamp(1, AHEAD)
}

/// By then an item that nobody runs has been taken over from whoever held it, and one that failed has had
/// all its tries.
fn patience(settings: &Settings) -> Duration {
    let tries = settings
        .handler_timeout
        .saturating_add(settings.backoff_cap);
    let tries = tries.saturating_mul(settings.max_attempts);
    tries.saturating_add(settings.claim_idle.saturating_mul(2))
}

/// What is to be done.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Process {
    batch_id: String,
    /// The event type whose handler runs the items.
    item_type: String,
    /// The payloads.
    #[schemars(with = "Vec<serde_json::Value>")]
    items: Vec<Value>,
    #[serde(default)]
    mode: Mode,
    /// How long the batch may stay without a sign of life of its holder [default: `batch_lease`].
    lease_ms: Option<u64>,
}

/// How far it is.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Processed {
    /// Whether every item is finished; if not, `processor_id` is at it.
    processed: bool,
    processor_id: String,
    /// Items that succeeded.
    items_processed: u64,
    /// Items that failed for good.
    items_failed: u64,
    total: u64,
    fence: u64,
    status: BatchStatus,
    /// The first failures of a completed batch.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failures: Vec<Failure>,
}

/// Holds the batch and sees to it that every item is run, or tells who does.
///
/// # Errors
/// `invalid_argument`, naming the field; `already_exists` if the batch has another content; `aborted`
/// if the lease was lost; `unimplemented` if nobody has a handler for the items.
pub(super) async fn process(
    context: Context,
    event: Process,
    services: State<Services>,
) -> Result<Processed, HandlerError> {
    let (began, pattern) = (Instant::now(), services.patterns.of(Patterned::Batch));
    let processed = process_in(&context, event, &services, pattern).await;
    // One that runs later is counted then.
    let later = |error: &HandlerError| error.retry_after.is_some();
    if !processed.as_ref().is_err_and(later) {
        let of = (Patterned::Batch, pattern);
        services.patterns.answered(of, began, &processed, |_| None);
    }
    processed
}

async fn process_in(
    context: &Context,
    mut event: Process,
    services: &Services,
    pattern: Pattern,
) -> Result<Processed, HandlerError> {
    let runner = services.runner.clone();
    let lease_ms = event.lease_ms.unwrap_or(whole_ms(runner.lease));
    let items = std::mem::take(&mut event.items);
    let items: Vec<Vec<u8>> = items.iter().map(encoded).collect();
    let wanted = BatchPlan::new(
        &event.batch_id,
        &event.item_type,
        event.mode,
        &items,
        lease_ms,
    )
    .map_err(CoordinationError::into_handler_error)?;
    if event.item_type == KIND {
        return Err(HandlerError::invalid_argument(format!(
            "item_type: the items of a batch cannot be batches ({KIND})"
        )));
    }
    if pattern == Pattern::Centralized
        && let Some(leader) = managed::manager(context, services, &runner.group, &event).await?
    {
        let why = format!("the batch {} is the leader's, {leader}", event.batch_id);
        return Err(HandlerError::later(NO_PLACE, why).with(&leader));
    }
    let place = runner.places.clone().try_acquire_owned().ok();
    let can_run = match event.mode {
        Mode::Exclusive => context.handles(&event.item_type),
        Mode::FanOut => somebody_handles(services, context, &event).await?,
    };
    let shares = pattern == Pattern::Distributed && event.mode == Mode::FanOut;
    let run = Uuid::now_v7().to_string();
    loop {
        let draining = context.draining().is_cancelled();
        let asker = Asker {
            instance: context.instance(),
            run: &run,
            entry: &context.event().entry_id().to_string(),
            deliveries: context.deliveries(),
            event: &context.event().id(),
            may_hold: place.is_some() && can_run && !draining,
        };
        let begun = Instant::now();
        let acquired = match shares {
            true => runner.batches.share(&wanted, asker).await,
            false => runner.batches.acquire(&wanted, asker).await,
        };
        let shared = matches!(acquired, Ok(Acquired::Shared(..)));
        match acquired.map_err(CoordinationError::into_handler_error)? {
            Acquired::Completed(progress) => {
                return answer(&runner, &wanted, progress, BatchStatus::Completed).await;
            }
            Acquired::Cancelled(why) => return Err(cancelled(&event.batch_id, &why)),
            Acquired::Busy {
                progress,
                same_event: false,
                ..
            } => return answer(&runner, &wanted, progress, BatchStatus::Running).await,
            // The same request again, such as after a retry: its answer is the result.
            Acquired::Busy { left, .. } if place.is_some() && !draining => {
                let pause = left.clamp(Duration::from_millis(10), Duration::from_secs(1));
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = context.cancellation().cancelled() => return Err(taken(&event.batch_id)),
                }
            }
            Acquired::Held(progress, finished) | Acquired::Shared(progress, finished) => {
                let length = Duration::from_millis(lease_ms);
                let held = runner
                    .leases
                    .hold(wanted.id(), progress.fence, length, begun);
                let mut holding = Holding::new(
                    context,
                    &runner.batches,
                    &wanted,
                    held,
                    progress,
                    finished,
                    event.mode == Mode::FanOut,
                );
                let ended = match event.mode {
                    Mode::Exclusive => exclusive::run(&mut holding, &event.item_type, &items).await,
                    Mode::FanOut => {
                        let kind = &event.item_type;
                        fan_out::run(&mut holding, &runner, kind, &items, shared).await
                    }
                };
                let ended = match ended {
                    Ok(()) => Ok(holding.progress().clone()),
                    Err(stop) => Err(leave(holding, stop, &event).await),
                };
                return answer(&runner, &wanted, ended?, BatchStatus::Completed).await;
            }
            Acquired::Free | Acquired::Busy { .. } => {
                return Err(match (can_run, draining) {
                    (false, _) => unknown(&event),
                    (_, true) => leaving(&event),
                    _ => no_place(),
                });
            }
        }
    }
}

fn no_place() -> HandlerError {
    HandlerError::later(NO_PLACE, format!("{PLACES} batches are under way here"))
}

/// Whether an active instance reads events of the items' type.
async fn somebody_handles(
    services: &Services,
    context: &Context,
    event: &Process,
) -> Result<bool, HandlerError> {
    let kind = &event.item_type;
    // This one is there, whether or not the server has heard of it since it was away.
    if context.handles(kind) {
        return Ok(true);
    }
    let capable = services.instances.capable(kind).await;
    let capable = capable.map_err(CoordinationError::into_handler_error)?;
    match capable.alive.is_empty() && !capable.expired.is_empty() {
        true => Err(HandlerError::later(
            MISSING,
            format!("item_type: those that have a handler for {kind} missed their pulses"),
        )),
        false => Ok(!capable.alive.is_empty()),
    }
}

async fn answer(
    runner: &Runner,
    wanted: &BatchPlan,
    progress: batches::BatchProgress,
    status: BatchStatus,
) -> Result<Processed, HandlerError> {
    let failures = match status {
        BatchStatus::Completed if progress.failed > 0 => runner
            .batches
            .failures(wanted.id())
            .await
            .map_err(CoordinationError::into_handler_error)?,
        _ => Vec::new(),
    };
    Ok(Processed {
        processed: status == BatchStatus::Completed,
        processor_id: progress.processor_id,
        items_processed: progress.processed,
        items_failed: progress.failed,
        total: progress.total,
        fence: progress.fence,
        status,
        failures,
    })
}

/// Ends a holding before the batch is completed.
async fn leave(mut holding: Holding<'_>, stop: Stop, event: &Process) -> HandlerError {
    let error = match stop {
        // It asks for the batch again where it was cancelled, and is told so.
        Stop::Lost if holding.is_overtaken().await => return lost(&event.batch_id),
        Stop::Lost => return HandlerError::later(Duration::ZERO, "it asks for the batch again"),
        Stop::Draining => leaving(event),
        Stop::Cancelled => taken(&event.batch_id),
        Stop::Again => HandlerError::later(Duration::ZERO, "it goes on as a new entry"),
        Stop::Outdated => {
            holding.let_go().await;
            return HandlerError::later(Duration::ZERO, BusError::OtherEpoch.to_string());
        }
        Stop::Failed(error) => error,
    };
    holding.give_back().await;
    error
}

fn cancelled(id: &str, why: &str) -> HandlerError {
    HandlerError::new(
        Code::Cancelled,
        format!("the batch {id} was cancelled by {why}"),
    )
}

fn lost(id: &str) -> HandlerError {
    HandlerError::aborted(format!("someone else holds the batch {id} now"))
}

/// Nothing comes of it if that is so; if the event is this worker's after all, it goes on.
fn taken(id: &str) -> HandlerError {
    let why = format!("the event of the batch {id} was taken over");
    HandlerError::later(Duration::ZERO, why)
}

/// The type that an instance must have a handler for that can go on with the batch.
fn needed(event: &Process) -> &str {
    match event.mode {
        Mode::Exclusive => &event.item_type,
        Mode::FanOut => KIND,
    }
}

fn leaving(event: &Process) -> HandlerError {
    HandlerError::unavailable(format!(
        "the holder of the batch {} is shutting down",
        event.batch_id
    ))
    .elsewhere(needed(event))
}

fn unknown(event: &Process) -> HandlerError {
    let kind = &event.item_type;
    let message = format!("item_type: no active worker has a handler for {kind}");
    let error = HandlerError::new(Code::Unimplemented, message);
    match event.mode {
        Mode::Exclusive => error.elsewhere(kind),
        Mode::FanOut => error,
    }
}
