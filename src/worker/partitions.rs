//! Follows how many partitions the domains have that this worker reads, and begins with new ones when they may be read;
//! and where they have an order, with those that this worker is to own.
//!
//! It runs where the lanes run, not on the keeper's thread.

use super::lane_list::LaneList;
use super::lanes::Lanes;
use super::making::{DataLanes, Running};
use super::owned::Next;
use super::supervisor::Supervisor;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Between two looks whether a partition may be read.
const LOOK: Duration = Duration::from_millis(100);

/// Begins; dropped, what this returns ends it.
pub(super) fn start(
    lanes: &mut Lanes,
    running: &Running,
    ttl: Duration,
    drain: &CancellationToken,
    supervisor: &Supervisor,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let Some(data) = lanes.take_data() else {
        return tasks;
    };
    let following = Following {
        data,
        list: lanes.list().clone(),
        running: running.clone(),
        supervisor: supervisor.clone(),
        third: ttl / 3,
    };
    let (supervisor, drain) = (supervisor.clone(), drain.clone());
    tasks.spawn(async move {
        let until = Box::pin(following.run(&drain));
        supervisor.run("partitions", &drain, until).await;
    });
    tasks
}

struct Following {
    data: DataLanes,
    list: LaneList,
    running: Running,
    supervisor: Supervisor,
    third: Duration,
}

impl Following {
    /// Each third of the ttl, and where somebody changed a domain, or came or left.
    async fn run(mut self, drain: &CancellationToken) {
        let mut learned = Instant::now();
        // What it has begun with a partition it does to the end: the lane sees that it is to drain.
        while !drain.is_cancelled() {
            let next = match self.data.go_on(&self.running, &self.supervisor).await {
                Ok(next) => next,
                Err(error) => {
                    tracing::debug!(%error, "partitions could not be begun with; trying again");
                    Next::in_time(LOOK)
                }
            };
            let mut told = false;
            tokio::select! {
                () = next.comes() => {}
                () = self.list.more_partitions() => told = true,
                () = self.list.members_changed(), if !self.data.ordered().is_empty() => {
                    self.data.members_changed();
                }
                () = drain.cancelled() => break,
            }
            if !told && learned.elapsed() < self.third / 2 {
                continue;
            }
            match self.data.learn().await {
                Ok(()) => learned = Instant::now(),
                Err(error) => {
                    tracing::debug!(%error, "how many partitions there are is not known; asking again");
                    self.list.has_more_partitions();
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
        self.data.leave().await;
    }
}
