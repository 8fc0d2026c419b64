//! Has this worker take its tasks by itself, where `system.register` is answered so: distributed, it looks again and
//! again; hybrid, it looks when it is nudged, and seldom else. What it takes arrives in its inbox.

use super::Worker;
use super::supervisor::Supervisor;
use crate::builtin::Services;
use crate::coordination::error::CoordinationError;
use crate::protocol::pattern::{Pattern, Patterned};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The shortest pause between two looks, and the longest one of a worker that is not nudged.
const PAUSES: [Duration; 2] = [Duration::from_millis(25), Duration::from_secs(1)];

/// Begins; dropped, what this returns ends it.
pub(super) fn start(
    worker: &Worker,
    drain: &CancellationToken,
    supervisor: &Supervisor,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let Some(services) = worker.process.states.share::<Services>() else {
        return tasks;
    };
    let pulling = Pulling {
        services,
        id: worker.id().to_owned(),
        process: worker.name.clone(),
        third: worker.settings.heartbeat_ttl / 3,
    };
    let (supervisor, drain) = (supervisor.clone(), drain.clone());
    tasks.spawn(async move {
        let until = async {
            tokio::select! {
                () = Box::pin(pulling.run()) => {}
                () = drain.cancelled() => {}
            }
        };
        supervisor.run("pulling", &drain, until).await;
    });
    tasks
}

struct Pulling {
    services: Arc<Services>,
    id: String,
    process: String,
    third: Duration,
}

impl Pulling {
    async fn run(&self) {
        let longest = PAUSES[1].min(self.third);
        // Whether the scheduler knows that it takes its work by itself, and since when it was told.
        let (mut told, mut told_at) = (false, Instant::now());
        let mut pause = PAUSES[0].min(longest);
        loop {
            let pattern = self.services.patterns.of(Patterned::Register);
            let by_itself = pattern != Pattern::Centralized;
            // It may have started again since: then it is one that is given tasks.
            let due = by_itself != told || (by_itself && told_at.elapsed() >= self.third);
            let took = match self.run_once(by_itself, due).await {
                Ok(took) => {
                    if due {
                        (told, told_at) = (by_itself, Instant::now());
                    }
                    took
                }
                Err(error) => {
                    tracing::debug!(%error, "what waits was not looked at; it is tried again");
                    false
                }
            };
            pause = match (took, pattern) {
                (true, _) => PAUSES[0].min(longest),
                (false, Pattern::Distributed) => (2 * pause).min(longest),
                (false, _) => self.third,
            };
            let spread = fastrand::f64() / 2.0 + 0.75;
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(spread)) => {}
                () = self.services.nudged.notified() => {}
            }
        }
    }

    /// One look; whether it took something.
    async fn run_once(&self, by_itself: bool, due: bool) -> Result<bool, CoordinationError> {
        let tasks = &self.services.tasks;
        let looks = due || (by_itself && tasks.any_wait().await?);
        if !looks {
            return Ok(false);
        }
        let pulled = tasks.pull(&self.id, &self.process, by_itself).await?;
        Ok(pulled.is_some_and(|pulled| !pulled.tasks.is_empty()))
    }
}
