//! What of a task that waits may still be changed.

use crate::coordination::bounds::check_map;
use crate::coordination::error::CoordinationError;
use crate::coordination::store::words;
use crate::coordination::tasks::assignment::{self, TRIES};
use crate::coordination::tasks::moves::{Answered, Placed, ended};
use crate::coordination::tasks::task::{
    INSIDE, MAX_METADATA, check_priority, check_requires, check_task_id, check_value,
};
use crate::coordination::tasks::{MAX_WAITING_BYTES, Tasks, contended, not_found};
use redis::Script;
use std::sync::LazyLock;

static UPDATE: LazyLock<Script> =
    LazyLock::new(|| assignment::script(include_str!("task_update.lua")));

/// What changes; the rest stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskChange {
    /// 0 to 100.
    pub priority: Option<u8>,
    /// One MessagePack value.
    pub payload: Option<Vec<u8>>,
    /// All that an instance must have handlers for besides the kind.
    pub requires: Option<Vec<String>>,
    /// What else people should know of the task: a MessagePack map of at most [`MAX_METADATA`] bytes.
    pub metadata: Option<Vec<u8>>,
}

impl Tasks {
    /// Changes a task that waits; it is assigned if an instance can take it as it is now. `asked` is the id
    /// of the event that asks, or empty: of the same one a second call changes nothing.
    ///
    /// # Errors
    /// `Invalid` for a value out of bounds; `NotFound`; `FailedPrecondition` if an instance holds it or it
    /// has ended; `Exhausted` if more bytes would wait than may; `Contended` if others assigned to ever
    /// other instances meanwhile; `Bus` else.
    pub async fn update(
        &self,
        id: &str,
        change: &TaskChange,
        asked: &str,
    ) -> Result<Placed, CoordinationError> {
        check_task_id(id)?;
        change.priority.map(check_priority).transpose()?;
        if let Some(payload) = &change.payload {
            check_value("payload", payload, self.max_payload, INSIDE)?;
        }
        let requires = change.requires.as_deref().map(check_requires).transpose()?;
        if let Some(metadata) = &change.metadata {
            check_map("metadata", metadata, MAX_METADATA)?;
            // It is shown beside the payload.
            check_value("metadata", metadata, self.max_payload, 1)?;
        }
        let mut inboxes = self.named.inboxes();
        for _ in 0..TRIES {
            let mut call = UPDATE.prepare_invoke();
            assignment::declare(&mut call, &self.store.keys);
            call.arg(id).arg(asked);
            inboxes.declare(&mut call, &self.store.keys);
            let priority = change.priority.map(|priority| priority.to_string());
            call.arg(priority.unwrap_or_default())
                .arg(u8::from(requires.is_some()))
                .arg(requires.as_ref().map(words).unwrap_or_default())
                .arg(change.payload.as_deref().unwrap_or_default())
                .arg(change.metadata.as_deref().unwrap_or_default())
                .arg(MAX_WAITING_BYTES);
            let (outcome, status, holder, fence, named): Answered =
                self.store.invoke(&call).await?;
            match outcome.as_str() {
                "placed" => return Placed::of(&status, holder, fence),
                "again" => self.learn(&mut inboxes, &named),
                "held" => {
                    return Err(CoordinationError::FailedPrecondition(format!(
                        "task_id: {holder} holds {id}, and only a task that waits can be changed: \
                         cancel it and create another one"
                    )));
                }
                "ended" => return Err(ended(id, &status, "changed")),
                "much" => {
                    return Err(CoordinationError::Exhausted(format!(
                        "payload: with it the tasks that wait would have more than \
                         {MAX_WAITING_BYTES} bytes: start instances that can take them, or cancel some"
                    )));
                }
                _ => return Err(not_found(id)),
            }
        }
        Err(contended(id))
    }
}
