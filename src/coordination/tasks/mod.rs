//! The TaskQueueManager: work that goes to one instance at a time, the least loaded that can do it.
//!
//! | from | to | by |
//! |---|---|---|
//! | – | assigned, or pending where nobody has room, `task.created` | `create` |
//! | pending | assigned | whatever makes room: `complete`, `fail`, registering; else `assign_waiting` |
//! | assigned | completed, `task.completed` | `complete` |
//! | assigned | assigned to another, pending, or failed, `task.failed` | `fail` |
//! | assigned | the same | its holder is lost; unregisters; starts again |
//! | pending, assigned | cancelled, `task.cancelled` | `cancel` |
//! | pending | pending or assigned, changed | `update` |
//! | pending, assigned | assigned to whom somebody names, `task.unassigned` | `assign` |
//! | assigned | assigned to another or pending, `task.unassigned` | `unassign` |
//! | pending | assigned to who asks | `claim`, and `pull` of a worker |
//!
//! *Fences*: each assignment has a number that no assignment had before: the greater of the last one
//! plus 1 and the server's clock in microseconds. Whoever completes or fails a task names the number
//! that it came with; if the task was assigned again since, that is `aborted`.
//!
//! *Who can take a task*: an instance that is alive, holds the role, has room, and registered the
//! task's kind and all that it requires as capabilities. So a task never goes to a worker without a
//! handler for it. An instance that registered no capabilities at all says nothing about its
//! handlers: it takes any kind of its role that requires nothing else, where none that names the kind has
//! room. Of those that can, the one with the lowest load for its capacity gets it; of equals, whoever got
//! its last one first.
//!
//! *Attempts* count assignments. Losing the holder uses one up, and so does a failure; a holder that
//! unregisters, or loses the task by somebody's word, gives it back. When none is left the task has failed.
//!
//! *Words of operators* (`update`, `assign`, `unassign`) carry the id of the event that asks: the last few
//! of a task are heeded once, so that an event that runs twice does not undo what came after it.
//!
//! *Order*: of those that wait the highest priority goes first, then the oldest. One that was
//! assigned before keeps its place. Who waits goes before who comes: an instance that is picked for a
//! task gets what waits for it and comes first. Tasks of the same role, kind and requirements form a
//! lane, so a task that nobody can take stops its own lane only; and a lane that nobody could take even
//! with room is parked, where it costs the others nothing, until somebody registers who can.
//!
//! *Bounds*: at most [`MAX_WAITING`] tasks wait, with [`MAX_WAITING_BYTES`] of payload. Each call does a
//! bounded amount of work; what it did not find then is looked at again with each sweep, which goes on
//! where the last one stopped, so whoever can take a task is found.
//!
//! *Keys*: `coordination/tasks/assignment.rs`.

pub(crate) mod assignment;
pub mod claim;
pub mod list;
pub mod moves;
pub mod pull;
pub mod task;
pub mod update;

use super::error::CoordinationError;
use super::outbox;
use super::store::{Store, words};
use crate::connect::connector::Connector;
use crate::connect::epoch::Epoch;
use crate::coordination::bounds::check_id;
use crate::coordination::tasks::assignment::{Inboxes, Named, TRIES};
use crate::coordination::tasks::task::{
    NewTask, Task, TaskStatus, bounded, check_task_id, check_value,
};
use crate::protocol::event::Entry;
use crate::protocol::keys::Keys;
use crate::protocol::msgpack::PayloadLimits;
use crate::streams::commit::Publication;
use redis::Script;
use serde::Deserialize;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Finished tasks that are kept; and at most 24 hours, and 64 MiB of payloads and results.
pub const KEPT: usize = 10_000;
/// Tasks that may wait. One that was assigned before may wait beyond that.
pub const MAX_WAITING: usize = 10_000;
/// Bytes of their payloads.
pub const MAX_WAITING_BYTES: usize = 64 * 1024 * 1024;
/// Words of one publication that a script can store.
const MAX_WORDS: usize = 4_000;
/// Calls of one look at what waits; the next look goes on behind them.
const CALLS: usize = 32;

static CREATE: LazyLock<Script> =
    LazyLock::new(|| assignment::script(include_str!("task_create.lua")));
static COMPLETE: LazyLock<Script> =
    LazyLock::new(|| assignment::script(include_str!("task_complete.lua")));
static FAIL: LazyLock<Script> = LazyLock::new(|| assignment::script(include_str!("task_fail.lua")));
static RELEASE: LazyLock<Script> =
    LazyLock::new(|| assignment::script(include_str!("task_release.lua")));
static CANCEL: LazyLock<Script> =
    LazyLock::new(|| assignment::script(include_str!("task_cancel.lua")));
static RETIRE: LazyLock<Script> =
    LazyLock::new(|| assignment::script(include_str!("task_retire.lua")));
static ASSIGN: LazyLock<Script> =
    LazyLock::new(|| assignment::script(include_str!("assign_task_with_load_balancing.lua")));

/// The tasks of one namespace. Cheap to clone; every clone and every process sees the same.
#[derive(Clone, Debug)]
pub struct Tasks {
    pub(super) store: Store,
    named: Named,
    /// The head behind which the next look at what waits begins.
    looked: Arc<Mutex<String>>,
    max_payload: usize,
    /// The process that speaks of its own instance; '' if anybody does.
    process: Arc<str>,
}

/// The outcome of creating a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// How the task is now.
    pub status: TaskStatus,
    /// Who holds it.
    pub assigned_to: Option<String>,
}

/// One assignment: a task with whom, and under which number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The task's id.
    pub task: String,
    /// The instance's id.
    pub instance: String,
    /// The number that the task came with.
    pub fence: u64,
}

impl Assignment {
    /// The id of the event that tells the instance of it.
    pub fn event_id(&self) -> String {
        format!("{}/{}", self.task, self.fence)
    }

    fn check(&self) -> Result<(), CoordinationError> {
        check_task_id(&self.task)?;
        check_id("instance_id", &self.instance)
    }

    fn not_found(&self) -> CoordinationError {
        not_found(&self.task)
    }

    fn aborted(&self, status: &str, holder: &str, fence: u64) -> CoordinationError {
        let Self {
            task,
            instance,
            fence: mine,
        } = self;
        let is = match status {
            "assigned" => format!("assigned to {holder} with fence {fence}"),
            other => other.to_owned(),
        };
        CoordinationError::Aborted(format!(
            "task {task} is not {instance}'s with fence {mine}: it is {is}"
        ))
    }
}

impl Tasks {
    /// The tasks of the namespace of `keys`, for events of the default size.
    pub fn new(connector: Connector, keys: Keys) -> Self {
        Self {
            store: Store::new(connector, keys),
            named: Named::default(),
            looked: Arc::default(),
            max_payload: PayloadLimits::default().bytes,
            process: Arc::default(),
        }
    }

    /// The same in one history of the server only ([`Connector::epoch`]): in another one calls fail
    /// with [`BusError::OtherEpoch`](crate::connect::error::BusError::OtherEpoch).
    #[must_use]
    pub fn within(&self, epoch: Epoch) -> Self {
        Self {
            store: self.store.within(epoch),
            ..self.clone()
        }
    }

    /// The same for a process that registers itself: see [`release`](Self::release) and [`retire`](Self::retire).
    #[must_use]
    pub fn of_process(mut self, process: &str) -> Self {
        self.process = process.into();
        self
    }

    /// The same for events with payloads of at most this many bytes; a task's own payload may be 1 KiB
    /// shorter, since it travels inside of one.
    #[must_use]
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = bytes;
        self
    }

    /// Creates a task and assigns it if an instance can take it. The same again answers how the
    /// task is now.
    ///
    /// # Errors
    /// `Invalid` for a value out of bounds; `AlreadyExists` if the id has another content; `Exhausted` if
    /// it would have to wait and too many do already; `Contended` if others assigned to ever other
    /// instances meanwhile; `Bus` else.
    pub async fn create(&self, task: &NewTask) -> Result<Created, CoordinationError> {
        let requires = words(&task.check(self.max_payload)?);
        let mut inboxes = self.named.inboxes();
        for _ in 0..TRIES {
            let mut call = CREATE.prepare_invoke();
            assignment::declare(&mut call, &self.store.keys);
            call.arg(&task.id)
                .arg(&task.kind)
                .arg(&task.role)
                .arg(&requires)
                .arg(task.priority)
                .arg(task.max_attempts)
                .arg(&task.payload);
            inboxes.declare(&mut call, &self.store.keys);
            call.arg(MAX_WAITING).arg(MAX_WAITING_BYTES);
            let (outcome, status, holder, named): (String, String, String, String) =
                self.store.invoke(&call).await?;
            match outcome.as_str() {
                "again" => self.learn(&mut inboxes, &named),
                "differs" => {
                    return Err(CoordinationError::AlreadyExists(format!(
                        "task_id: {} is there already with another content",
                        task.id
                    )));
                }
                "many" => {
                    return Err(CoordinationError::Exhausted(format!(
                        "task_id: {MAX_WAITING} tasks wait already, and {} would have to: start \
                         instances that can take them, or cancel some",
                        task.id
                    )));
                }
                "much" => {
                    return Err(CoordinationError::Exhausted(format!(
                        "payload: its {} bytes and those of the tasks that wait already are more than \
                         {MAX_WAITING_BYTES}: start instances that can take them, or cancel some",
                        task.payload.len()
                    )));
                }
                _ => {
                    return Ok(Created {
                        status: status.parse()?,
                        assigned_to: Some(holder).filter(|holder| !holder.is_empty()),
                    });
                }
            }
        }
        Err(contended(&task.id))
    }

    /// Completes a task with its result (one MessagePack value), and stores what it published in the
    /// same step. The same again changes nothing.
    ///
    /// # Errors
    /// `Invalid` for a value out of bounds; `NotFound`; `Aborted` if the task is not that instance's
    /// under that fence; `FailedPrecondition` if a publication cannot be stored; `Bus` else.
    pub async fn complete(
        &self,
        assignment: &Assignment,
        result: &[u8],
        publications: &[Publication],
    ) -> Result<(), CoordinationError> {
        assignment.check()?;
        check_value("result", result, self.max_payload, 1)?;
        if let Some(long) = publications.iter().find(|p| p.fields.len() > MAX_WORDS) {
            return Err(CoordinationError::FailedPrecondition(format!(
                "{} words for {} are more than the {MAX_WORDS} that one step can store",
                long.fields.len(),
                long.stream
            )));
        }
        outbox::check(publications)?;
        let mut call = COMPLETE.prepare_invoke();
        assignment::declare(&mut call, &self.store.keys);
        call.key(self.store.keys.inbox(&assignment.instance))
            .arg(&assignment.task)
            .arg(&assignment.instance)
            .arg(assignment.fence)
            .arg(result);
        outbox::publish(&mut call, &self.store, publications);
        let (outcome, status, holder, fence, number): (String, String, String, u64, usize) =
            self.store.invoke(&call).await?;
        match outcome.as_str() {
            "completed" => Ok(()),
            "not_found" => Err(assignment.not_found()),
            "refused" => {
                let stream = publications.get(number).map_or("", |p| p.stream.as_str());
                Err(CoordinationError::FailedPrecondition(format!(
                    "the key {stream}, where the task publishes, is no stream"
                )))
            }
            _ => Err(assignment.aborted(&status, &holder, fence)),
        }
    }

    /// Says that an attempt failed; answers what became of the task. The same again changes nothing.
    ///
    /// # Errors
    /// `Invalid` for a malformed id; `NotFound`; `Aborted` if the task is not that instance's under
    /// that fence; `Contended` if others assigned to ever other instances meanwhile; `Bus` else.
    pub async fn fail(
        &self,
        assignment: &Assignment,
        error: &str,
        retryable: bool,
    ) -> Result<TaskStatus, CoordinationError> {
        assignment.check()?;
        let mut inboxes = self.named.inboxes().without(&assignment.instance);
        for _ in 0..TRIES {
            let mut call = FAIL.prepare_invoke();
            assignment::declare(&mut call, &self.store.keys);
            call.key(self.store.keys.inbox(&assignment.instance))
                .arg(&assignment.task)
                .arg(&assignment.instance)
                .arg(assignment.fence)
                .arg(bounded(error))
                .arg(u8::from(retryable));
            inboxes.declare(&mut call, &self.store.keys);
            let (outcome, status, holder, fence, named): (String, String, String, u64, String) =
                self.store.invoke(&call).await?;
            match outcome.as_str() {
                "again" => self.learn(&mut inboxes, &named),
                "failed" => return status.parse(),
                "not_found" => return Err(assignment.not_found()),
                _ => return Err(assignment.aborted(&status, &holder, fence)),
            }
        }
        Err(contended(&assignment.task))
    }

    /// Cancels a task that waits or that somebody holds: whoever completes it later is told `Aborted`. The
    /// same again changes nothing.
    ///
    /// # Errors
    /// `Invalid` for a malformed id; `NotFound`; `FailedPrecondition` if it was completed or has failed;
    /// `Contended` if it went to ever other instances meanwhile; `Bus` else.
    pub async fn cancel(&self, id: &str, reason: &str) -> Result<(), CoordinationError> {
        check_task_id(id)?;
        let mut holder = String::new();
        for _ in 0..TRIES {
            let mut call = CANCEL.prepare_invoke();
            assignment::declare(&mut call, &self.store.keys);
            if !holder.is_empty() {
                call.key(self.store.keys.inbox(&holder));
            }
            call.arg(id).arg(&holder).arg(bounded(reason));
            let (outcome, status, held_by): (String, String, String) =
                self.store.invoke(&call).await?;
            match outcome.as_str() {
                "cancelled" => return Ok(()),
                "again" => holder = held_by,
                "ended" => {
                    return Err(CoordinationError::FailedPrecondition(format!(
                        "task_id: {id} is {status}, and what has ended cannot be cancelled"
                    )));
                }
                _ => return Err(not_found(id)),
            }
        }
        Err(contended(id))
    }

    /// Takes what an instance holds from it, as if it had been lost; how many tasks went to others or
    /// wait for them. For a process that starts again under an id, before it registers; run after that, it changes
    /// nothing.
    ///
    /// # Errors
    /// `Invalid` for a malformed id; `Contended` as for [`fail`](Self::fail); `Bus` else. What was
    /// taken from it before the error stays so.
    pub async fn release(&self, instance: &str) -> Result<u64, CoordinationError> {
        check_id("instance_id", instance)?;
        let mut inboxes = self.named.inboxes();
        let (mut tries, mut total) = (0, 0);
        while tries < TRIES {
            let mut call = RELEASE.prepare_invoke();
            call.key(self.store.keys.instance(instance));
            assignment::declare(&mut call, &self.store.keys);
            call.arg(instance).arg(&*self.process);
            inboxes.declare(&mut call, &self.store.keys);
            let (again, reassigned, named): (u8, u64, String) = self.store.invoke(&call).await?;
            total += reassigned;
            match again {
                0 => return Ok(total),
                1 => {
                    tries += 1;
                    self.learn(&mut inboxes, &named);
                }
                _ => tries = 0,
            }
        }
        Err(CoordinationError::Contended {
            what: format!("what {instance} holds"),
            tries: TRIES,
        })
    }

    /// Gives an instance no more tasks until it registers again. For one that is about to leave: it
    /// keeps, and may complete, what it holds. Where another process has the id since, nothing is changed.
    ///
    /// # Errors
    /// `Invalid` for a malformed id; `Bus` else.
    pub async fn retire(&self, instance: &str) -> Result<(), CoordinationError> {
        check_id("instance_id", instance)?;
        let mut call = RETIRE.prepare_invoke();
        call.key(self.store.keys.instance(instance));
        assignment::declare(&mut call, &self.store.keys);
        call.arg(instance).arg(&*self.process);
        Ok(self.store.invoke(&call).await?)
    }

    /// Looks at what waits, whether an instance can take it; the ids of what was assigned. Every other
    /// call assigns in its own step what it makes possible: this one finds what their bounded look-ahead
    /// missed. Also removes finished tasks that are over a bound.
    ///
    /// # Errors
    /// `Contended` as for [`fail`](Self::fail); `Bus` else.
    pub async fn assign_waiting(&self) -> Result<Vec<String>, CoordinationError> {
        let looked = || self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut from = looked().clone();
        let mut inboxes = self.named.inboxes();
        let (mut tries, mut all) = (0, Vec::new());
        // What was assigned since the last look from the beginning on.
        let (mut some, mut whole) = (false, from.is_empty());
        for _ in 0..CALLS {
            let mut call = ASSIGN.prepare_invoke();
            assignment::declare(&mut call, &self.store.keys);
            inboxes.declare(&mut call, &self.store.keys);
            call.arg(&from);
            let (again, named, assigned, next): (bool, String, Vec<String>, String) =
                self.store.invoke(&call).await?;
            if again {
                tries += 1;
                if tries == TRIES {
                    return Err(CoordinationError::Contended {
                        what: "who takes what waits".to_owned(),
                        tries: TRIES,
                    });
                }
                self.learn(&mut inboxes, &named);
                continue;
            }
            tries = 0;
            some |= !assigned.is_empty();
            all.extend(assigned);
            from = next;
            looked().clone_from(&from);
            if from.is_empty() {
                if whole && !some {
                    break;
                }
                (some, whole) = (false, true);
            }
        }
        Ok(all)
    }

    /// Whether the task is that instance's under that fence.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn holds(&self, assignment: &Assignment) -> Result<bool, CoordinationError> {
        let task = self.record(&assignment.task).await?;
        Ok(task.is_some_and(|task: Task| {
            task.status == TaskStatus::Assigned
                && task.instance.as_deref() == Some(&assignment.instance)
                && task.fence == Some(assignment.fence)
        }))
    }

    fn learn(&self, inboxes: &mut Inboxes, named: &str) {
        inboxes.learn(named);
        self.named.remember(named);
    }
}

/// The assignment that somebody's word ended, by a cancellation or by taking the task away, according to a
/// fact of the broadcast; `None` if that is not what it says.
pub fn ended_in(fact: &Entry) -> Option<Assignment> {
    #[derive(Deserialize)]
    struct Ended {
        task_id: String,
        instance_id: String,
        fence: u64,
    }
    if !matches!(
        fact.get("type"),
        Some(b"task.cancelled" | b"task.unassigned")
    ) {
        return None;
    }
    let ended: Ended = rmp_serde::from_slice(fact.get("data")?).ok()?;
    Some(Assignment {
        task: ended.task_id,
        instance: ended.instance_id,
        fence: ended.fence,
    })
}

fn not_found(task: &str) -> CoordinationError {
    CoordinationError::NotFound(format!(
        "task_id: there is no task {task}, or it ended long ago"
    ))
}

fn contended(task: &str) -> CoordinationError {
    CoordinationError::Contended {
        what: format!("who takes task {task}"),
        tries: TRIES,
    }
}
