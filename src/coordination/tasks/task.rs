//! One task: what creates it, what is known of it, and the bounds on both.

use crate::coordination::bounds::invalid;
use crate::coordination::error::CoordinationError;
use crate::protocol::keys;
use crate::protocol::msgpack::{self, PayloadLimits};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// The highest priority; 0 is the lowest.
pub const MAX_PRIORITY: u8 = 100;
/// Capabilities that one task may require besides its kind.
pub const MAX_REQUIRES: usize = 16;
/// How many attempts a task may have.
pub const ATTEMPTS: RangeInclusive<u32> = 1..=100;
/// Bytes of a task's metadata.
pub const MAX_METADATA: usize = 4 * 1024;
/// Bytes of an error, or of the reason of a cancellation, that are kept.
pub const MAX_ERROR: usize = 1024;
/// Bytes that the event which assigns a task needs besides the payload, at the most.
const AROUND: usize = 1024;
/// Values that it has besides the payload's.
const VALUES_AROUND: usize = 16;
/// How deep a payload lies in what carries it, at the most: in the list of a claim's answer.
pub(crate) const INSIDE: usize = 3;

const NIL: &[u8] = &[0xc0];

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskStatus {
    /// The task waits for an instance that has room.
    Pending,
    /// An instance holds it.
    Assigned,
    /// Done.
    Completed,
    /// The task will not be tried again.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

impl TaskStatus {
    /// All of them, in the order of a task's life.
    pub const ALL: [TaskStatus; 5] = [
        TaskStatus::Pending,
        TaskStatus::Assigned,
        TaskStatus::Completed,
        TaskStatus::Failed,
        TaskStatus::Cancelled,
    ];

    /// The name on the bus.
    pub const fn as_str(self) -> &'static str {
        match self {
            TaskStatus::Pending => "pending",
            TaskStatus::Assigned => "assigned",
            TaskStatus::Completed => "completed",
            TaskStatus::Failed => "failed",
            TaskStatus::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for TaskStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TaskStatus {
    type Err = CoordinationError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = TaskStatus::ALL.into_iter().find(|it| it.as_str() == name);
        found.ok_or_else(|| {
            let name: String = name.chars().take(32).collect();
            invalid(format!(
                "status: {name:?} is not pending, assigned, completed, failed or cancelled"
            ))
        })
    }
}

/// What a task is created from.
#[derive(Clone, Debug, PartialEq)]
pub struct NewTask {
    /// Its id: a name (`[A-Za-z0-9._-]{1,128}`).
    pub id: String,
    /// The event type whose handler runs it.
    pub kind: String,
    /// One MessagePack value.
    pub payload: Vec<u8>,
    /// 0 to [`MAX_PRIORITY`]; of those that wait the highest goes first.
    pub priority: u8,
    /// The role that an instance must hold.
    pub role: String,
    /// Event types that an instance must have handlers for besides the kind.
    pub requires: Vec<String>,
    /// How often it may be assigned before a failure or a loss is final, within [`ATTEMPTS`].
    pub max_attempts: u32,
}

impl NewTask {
    /// A task with the protocol's defaults: nil as the payload, priority 50, role `worker`, no
    /// requirements, 3 attempts.
    pub fn new(id: impl Into<String>, kind: impl Into<String>) -> NewTask {
        NewTask {
            id: id.into(),
            kind: kind.into(),
            payload: NIL.to_vec(),
            priority: 50,
            role: "worker".into(),
            requires: Vec::new(),
            max_attempts: 3,
        }
    }

    /// Checks every bound, `max_payload` for the bytes of the event that will carry the payload;
    /// gives the requirements sorted, without repetitions.
    pub(crate) fn check(&self, max_payload: usize) -> Result<BTreeSet<String>, CoordinationError> {
        check_task_id(&self.id)?;
        keys::check_event_type(&self.kind).map_err(|error| invalid(format!("kind: {error}")))?;
        check_priority(self.priority)?;
        keys::check_name("role", &self.role).map_err(|error| invalid(format!("role: {error}")))?;
        if !ATTEMPTS.contains(&self.max_attempts) {
            let (least, most) = (ATTEMPTS.start(), ATTEMPTS.end());
            return Err(invalid(format!(
                "max_attempts: {} is not {least} to {most}",
                self.max_attempts
            )));
        }
        check_value("payload", &self.payload, max_payload, INSIDE)?;
        check_requires(&self.requires)
    }
}

/// The requirements sorted, without repetitions.
pub(crate) fn check_requires(requires: &[String]) -> Result<BTreeSet<String>, CoordinationError> {
    if requires.len() > MAX_REQUIRES {
        let count = requires.len();
        return Err(invalid(format!(
            "requires: {count} are over the limit of {MAX_REQUIRES}"
        )));
    }
    for (at, kind) in requires.iter().enumerate() {
        keys::check_event_type(kind)
            .map_err(|error| invalid(format!("requires[{at}]: {error}")))?;
    }
    Ok(requires.iter().cloned().collect())
}

pub(crate) fn check_priority(priority: u8) -> Result<(), CoordinationError> {
    match priority > MAX_PRIORITY {
        true => Err(invalid(format!(
            "priority: {priority} is not 0 to {MAX_PRIORITY}"
        ))),
        false => Ok(()),
    }
}

/// What is known of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its id.
    pub id: String,
    /// The event type whose handler runs it.
    pub kind: String,
    /// How far it is.
    pub status: TaskStatus,
    /// 0 to [`MAX_PRIORITY`].
    pub priority: u8,
    /// The role that an instance must hold.
    pub role: String,
    /// Event types that an instance must have handlers for besides the kind, sorted.
    pub requires: Vec<String>,
    /// How often it was assigned, without the times when its holder left properly.
    pub attempt: u32,
    /// When a failure or a loss is final.
    pub max_attempts: u32,
    /// Who holds it, or who finished it.
    pub instance: Option<String>,
    /// The number under which it was last assigned; it only rises.
    pub fence: Option<u64>,
    /// What went wrong last.
    pub error: Option<String>,
    /// Why it was cancelled.
    pub reason: Option<String>,
    /// When, in Unix ms.
    pub created_at: u64,
    /// When its status last changed, in Unix ms.
    pub changed_at: u64,
}

/// A task's record as the scripts keep it.
#[derive(Deserialize)]
struct Record {
    kind: String,
    status: TaskStatus,
    priority: u8,
    role: String,
    requires: String,
    attempt: u32,
    max_attempts: u32,
    holder: Option<String>,
    fence: Option<u64>,
    error: Option<String>,
    reason: Option<String>,
    created_at: u64,
    changed_at: u64,
}

impl Task {
    /// Reads a record; `None` if it is not one.
    pub fn from_record(id: &str, record: &[u8]) -> Option<Task> {
        let record: Record = rmp_serde::from_slice(record).ok()?;
        Some(Task {
            id: id.to_owned(),
            kind: record.kind,
            status: record.status,
            priority: record.priority,
            role: record.role,
            requires: record
                .requires
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            attempt: record.attempt,
            max_attempts: record.max_attempts,
            instance: record.holder,
            fence: record.fence,
            error: record.error,
            reason: record.reason,
            created_at: record.created_at,
            changed_at: record.changed_at,
        })
    }
}

pub(crate) fn check_task_id(id: &str) -> Result<(), CoordinationError> {
    keys::check_name("task", id).map_err(|error| invalid(format!("task_id: {error}")))
}

/// One MessagePack value that fits into an event: with what a task's event has around it, and as deep in it as
/// it stands there.
pub(crate) fn check_value(
    field: &str,
    bytes: &[u8],
    max_payload: usize,
    inside: usize,
) -> Result<(), CoordinationError> {
    let most = PayloadLimits::default();
    let limits = PayloadLimits {
        bytes: max_payload.saturating_sub(AROUND),
        depth: most.depth - inside,
        values: most.values - VALUES_AROUND,
    };
    msgpack::scan(bytes, &limits).map_err(|error| invalid(format!("{field}: {error}")))
}

/// What is kept of an error: [`MAX_ERROR`] bytes.
pub(crate) fn bounded(error: &str) -> &str {
    &error[..error.floor_char_boundary(MAX_ERROR)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_task_is_created_from_is_bounded_and_the_message_names_the_field() {
        let refused = |change: fn(&mut NewTask)| {
            let mut task = NewTask::new("t-1", "image.resize");
            change(&mut task);
            match task.check(4096) {
                Err(CoordinationError::Invalid(message)) => message,
                _ => panic!("{task:?} was not refused"),
            }
        };
        assert!(NewTask::new("t-1", "image.resize").check(4096).is_ok());
        assert!(refused(|t| t.id = "a b".into()).starts_with("task_id: "));
        assert!(refused(|t| t.kind = "resize".into()).starts_with("kind: "));
        assert!(refused(|t| t.priority = 101).starts_with("priority: 101"));
        assert!(refused(|t| t.role.clear()).starts_with("role: "));
        assert!(refused(|t| t.requires = vec!["a.b".into(); 17]).starts_with("requires: 17"));
        assert!(refused(|t| t.requires = vec!["a".into()]).starts_with("requires[0]: "));
        for attempts in [0, 101] {
            let mut task = NewTask::new("t-1", "image.resize");
            task.max_attempts = attempts;
            let error = task.check(4096).unwrap_err().to_string();
            assert!(error.starts_with("max_attempts: "), "{error}");
        }
        assert!(refused(|t| t.payload.clear()).starts_with("payload: "));
        assert!(refused(|t| t.payload = vec![0xc1]).starts_with("payload: "));
        assert!(refused(|t| t.payload = [vec![0x91; 29], vec![0x90]].concat()).contains("payload"));
        let mut deep = NewTask::new("t-1", "image.resize");
        deep.payload = [vec![0x91; 28], vec![0x90]].concat();
        assert!(deep.check(4096).is_ok());
        let long = |t: &mut NewTask| t.payload = [vec![0xc5, 0x0c, 0x00], vec![0; 3072]].concat();
        assert!(refused(long).starts_with("payload: "));
    }

    #[test]
    fn statuses_have_names_and_an_error_is_cut_between_characters() {
        for status in TaskStatus::ALL {
            assert_eq!(status.as_str().parse::<TaskStatus>().unwrap(), status);
        }
        let error = "done".parse::<TaskStatus>().unwrap_err().to_string();
        assert!(error.contains("done") && error.contains("completed"));
        assert_eq!(bounded(&format!("x{}", "é".repeat(1000))).len(), 1023);
    }
}
