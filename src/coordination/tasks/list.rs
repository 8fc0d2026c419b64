//! Looking at the tasks: one, some, how many.

use crate::coordination::bounds::invalid;
use crate::coordination::error::CoordinationError;
use crate::coordination::tasks::Tasks;
use crate::coordination::tasks::task::{Task, TaskStatus, check_task_id};
use redis::Script;
use std::sync::LazyLock;

/// Tasks that one list has at the most.
pub const MAX_LISTED: usize = 1000;
/// Finished tasks that one step looks at.
const PAGE: usize = 250;

pub(crate) static LIST: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("task_list.lua")));

/// Pending, assigned, completed, failed, cancelled.
type Counted = (u64, u64, u64, u64, u64);

/// How many tasks there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskCounts {
    /// Tasks that wait.
    pub pending: u64,
    /// Tasks that an instance holds.
    pub assigned: u64,
    /// Tasks that were completed, since ever.
    pub completed: u64,
    /// Tasks that have failed, since ever.
    pub failed: u64,
    /// Tasks that were cancelled, since ever.
    pub cancelled: u64,
}

/// A task with what it works on and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskDetail {
    /// The task.
    pub task: Task,
    /// One MessagePack value.
    pub payload: Vec<u8>,
    /// One MessagePack value, if it is completed.
    pub result: Option<Vec<u8>>,
    /// A MessagePack map, if it was given any.
    pub metadata: Option<Vec<u8>>,
}

impl Tasks {
    /// One task; `None` if it does not exist, or if it ended so long ago that it is forgotten.
    ///
    /// # Errors
    /// `Invalid` for a malformed id; `Bus` else.
    pub async fn get(&self, id: &str) -> Result<Option<TaskDetail>, CoordinationError> {
        check_task_id(id)?;
        let keys = self.store.keys.tasks();
        let mut reads = redis::pipe();
        // In one step, so that a result is never missed beside a status that has one.
        reads.atomic();
        reads.cmd("HGET").arg(&keys.tasks).arg(id);
        reads.cmd("HGET").arg(&keys.data).arg(id);
        let result_of = format!("{id} result");
        reads.cmd("HGET").arg(&keys.data).arg(result_of);
        let metadata_of = format!("{id} metadata");
        reads.cmd("HGET").arg(&keys.data).arg(metadata_of);
        let [record, payload, result, metadata]: [Option<Vec<u8>>; 4] =
            self.store.ask(&reads).await?;
        let task = record.and_then(|record| Task::from_record(id, &record));
        Ok(task.map(|task| TaskDetail {
            task,
            payload: payload.unwrap_or_else(|| vec![0xc0]),
            result,
            metadata,
        }))
    }

    /// At most `limit` tasks: of one status, or the assigned, the waiting and the finished after each
    /// other. Those that wait come in the order in which they go, the finished last first; of more
    /// than `limit` assigned ones, those of some instances. Of records that are large, as many as are 512 KiB
    /// together are listed of those that have not ended. All are as they are at one moment, but of very many
    /// finished ones the older may be of a later moment.
    ///
    /// # Errors
    /// `Invalid` if `limit` is over [`MAX_LISTED`]; `Bus` else.
    pub async fn list(
        &self,
        status: Option<TaskStatus>,
        limit: usize,
    ) -> Result<Vec<Task>, CoordinationError> {
        Ok(self.snapshot(status, limit).await?.1)
    }

    /// The same with how many there are of all, at the same moment.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub async fn snapshot(
        &self,
        status: Option<TaskStatus>,
        limit: usize,
    ) -> Result<(TaskCounts, Vec<Task>), CoordinationError> {
        if limit > MAX_LISTED {
            return Err(invalid(format!("limit: {limit} is not 0 to {MAX_LISTED}")));
        }
        let keys = self.store.keys.tasks();
        let mut first = None;
        let mut tasks = Vec::new();
        let mut after = String::new();
        loop {
            let mut call = LIST.prepare_invoke();
            call.key(&keys.tasks)
                .key(&keys.held)
                .key(&keys.queue)
                .key(&keys.done)
                .key(&keys.counts)
                .arg(status.map_or("", TaskStatus::as_str))
                .arg(limit - tasks.len())
                .arg(&after)
                .arg(PAGE);
            let (counts, listed, next): (Counted, Vec<(String, Vec<u8>)>, String) =
                self.store.invoke(&call).await?;
            let counts = *first.get_or_insert(counts);
            let read = listed.iter();
            tasks.extend(read.filter_map(|(id, record)| Task::from_record(id, record)));
            if next.is_empty() || tasks.len() >= limit {
                let (pending, assigned, completed, failed, cancelled) = counts;
                let counts = TaskCounts {
                    pending,
                    assigned,
                    completed,
                    failed,
                    cancelled,
                };
                return Ok((counts, tasks));
            }
            after = next;
        }
    }

    /// Counts the tasks.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn counts(&self) -> Result<TaskCounts, CoordinationError> {
        Ok(self.snapshot(None, 0).await?.0)
    }

    pub(crate) async fn record(&self, id: &str) -> Result<Option<Task>, CoordinationError> {
        let mut reads = redis::pipe();
        reads.cmd("HGET").arg(self.store.keys.tasks().tasks).arg(id);
        let (record,): (Option<Vec<u8>>,) = self.store.ask(&reads).await?;
        Ok(record.and_then(|record| Task::from_record(id, &record)))
    }
}
