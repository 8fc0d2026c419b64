//! Follows how many partitions the domains have that this worker reads, and begins with new ones when they may be read.
//!
//! It runs where the lanes run, not on the keeper's thread.

use super::lane_list::LaneList;
use super::lanes::Lanes;
use super::making::{DataLanes, Running};
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
        let until = async {
            tokio::select! {
                () = Box::pin(following.run()) => {}
                () = drain.cancelled() => {}
            }
        };
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
    /// Each third of the ttl, and where somebody changed a domain.
    async fn run(mut self) {
        let mut learned = Instant::now();
        loop {
            let waits = match self.data.go_on(&self.running, &self.supervisor).await {
                Ok(waits) => waits,
                Err(error) => {
                    tracing::debug!(%error, "partitions could not be begun with; trying again");
                    true
                }
            };
            let pause = match waits {
                true => LOOK,
                false => self.third,
            };
            let told = tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(fastrand::f64() / 2.0 + 0.75)) => false,
                () = self.list.more_partitions() => true,
            };
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
    }
}
