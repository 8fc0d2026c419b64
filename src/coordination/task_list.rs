//! Looking at the tasks: one, some, how many.

use super::error::CoordinationError;
use super::task::{Status, Task, check_task_id, invalid};
use super::tasks::Tasks;

/// Tasks that one list has at the most.
pub const MAX_LISTED: usize = 1000;
/// Records read in one round trip.
const PAGE: usize = 100;

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
}

impl Tasks {
    /// One task; `None` if there is none, or if it ended so long ago that it is forgotten.
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
        let [record, payload, result]: [Option<Vec<u8>>; 3] = self.store.ask(&reads).await?;
        let task = record.and_then(|record| Task::from_record(id, &record));
        Ok(task.map(|task| TaskDetail {
            task,
            payload: payload.unwrap_or_else(|| vec![0xc0]),
            result,
        }))
    }

    /// At most `limit` tasks: of one status, or the assigned, the waiting and the finished after each
    /// other. Those that wait come in the order in which they go, the finished last first; of more
    /// than `limit` assigned ones, those of some instances.
    ///
    /// # Errors
    /// `Invalid` if `limit` is over [`MAX_LISTED`]; `Bus` else.
    pub async fn list(
        &self,
        status: Option<Status>,
        limit: usize,
    ) -> Result<Vec<Task>, CoordinationError> {
        if limit > MAX_LISTED {
            return Err(invalid(format!("limit: {limit} is not 0 to {MAX_LISTED}")));
        }
        let mut tasks = Vec::new();
        let order = [Status::Assigned, Status::Pending, Status::Completed];
        for group in order {
            let of_group = match status {
                Some(Status::Failed) => group == Status::Completed,
                Some(status) => status == group,
                None => true,
            };
            if of_group {
                self.collect(group, status, limit, &mut tasks).await?;
            }
        }
        Ok(tasks)
    }

    /// Reads the tasks of one index, page by page, until the limit is reached.
    async fn collect(
        &self,
        group: Status,
        status: Option<Status>,
        limit: usize,
        tasks: &mut Vec<Task>,
    ) -> Result<(), CoordinationError> {
        let keys = self.store.keys.tasks();
        let finished = group == Status::Completed;
        let index = match group {
            Status::Assigned => &keys.held,
            Status::Pending => &keys.queue,
            Status::Completed | Status::Failed => &keys.done,
        };
        let mut from = 0;
        while tasks.len() < limit {
            let mut reads = redis::pipe();
            let read = reads
                .cmd("ZRANGE")
                .arg(index)
                .arg(from)
                .arg(from + PAGE - 1);
            if finished {
                read.arg("REV");
            }
            let (members,): (Vec<String>,) = self.store.ask(&reads).await?;
            let ids: Vec<&str> = members
                .iter()
                .map(|member| member.rsplit(' ').next().unwrap_or(member))
                .collect();
            if ids.is_empty() {
                break;
            }
            let mut reads = redis::pipe();
            reads.cmd("HMGET").arg(&keys.tasks).arg(&ids);
            let (records,): (Vec<Option<Vec<u8>>>,) = self.store.ask(&reads).await?;
            let read = ids.iter().zip(records);
            let found = read.filter_map(|(id, record)| Task::from_record(id, &record?));
            // One that moved on meanwhile is found where it is now, or next time.
            let wanted = |task: &Task| match (status, finished) {
                (Some(status), _) => task.status == status,
                (None, true) => matches!(task.status, Status::Completed | Status::Failed),
                (None, false) => task.status == group,
            };
            tasks.extend(found.filter(wanted).take(limit - tasks.len()));
            from += PAGE;
        }
        Ok(())
    }

    /// Counts the tasks.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn counts(&self) -> Result<TaskCounts, CoordinationError> {
        let keys = self.store.keys.tasks();
        let mut reads = redis::pipe();
        reads.atomic();
        reads.cmd("ZCARD").arg(&keys.queue);
        reads.cmd("ZCARD").arg(&keys.held);
        reads
            .cmd("HMGET")
            .arg(&keys.counts)
            .arg(&["completed", "failed"]);
        let (pending, assigned, (completed, failed)): (u64, u64, (Option<u64>, Option<u64>)) =
            self.store.ask(&reads).await?;
        Ok(TaskCounts {
            pending,
            assigned,
            completed: completed.unwrap_or(0),
            failed: failed.unwrap_or(0),
        })
    }

    pub(super) async fn record(&self, id: &str) -> Result<Option<Task>, CoordinationError> {
        let mut reads = redis::pipe();
        reads.cmd("HGET").arg(self.store.keys.tasks().tasks).arg(id);
        let (record,): (Option<Vec<u8>>,) = self.store.ask(&reads).await?;
        Ok(record.and_then(|record| Task::from_record(id, &record)))
    }
}
