//! Follows which patterns were chosen, and does this instance's part where a system event is answered by parts.
//!
//! It runs where the handlers run, not on the keeper's thread: what it looks at may take its time.

use super::Worker;
use super::supervisor::Supervisor;
use crate::builtin::Services;
use crate::builtin::system::get_state;
use crate::builtin::system::health;
use crate::builtin::system::metrics;
use crate::builtin::system::quorum_vote::counting;
use crate::coordination::error::CoordinationError;
use crate::protocol::pattern::{Pattern, Patterned};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Begins; dropped, what this returns ends it.
pub(super) fn start(
    worker: &Worker,
    drain: &CancellationToken,
    supervisor: &Supervisor,
    leads: impl Fn() -> bool + Send + Sync + 'static,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let Some(services) = worker.process.states.share::<Services>() else {
        return tasks;
    };
    let part = Part {
        services,
        id: worker.id().to_owned(),
        ttl: worker.settings.heartbeat_ttl,
        leads: Box::new(leads),
    };
    let (supervisor, drain) = (supervisor.clone(), drain.clone());
    tasks.spawn(async move {
        let until = async {
            tokio::select! {
                () = Box::pin(part.run()) => {}
                () = drain.cancelled() => {}
            }
        };
        supervisor.run("patterns", &drain, until).await;
    });
    tasks
}

struct Part {
    services: Arc<Services>,
    id: String,
    ttl: Duration,
    leads: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Part {
    /// Each third of the ttl, and where somebody chose.
    async fn run(&self) {
        let third = self.ttl / 3;
        loop {
            let done = tokio::time::timeout(third, Box::pin(self.run_once())).await;
            if let Ok(Err(error)) = done {
                tracing::debug!(%error, "this instance's part was not done; it is tried again");
            }
            let spread = fastrand::f64() / 2.0 + 0.75;
            tokio::select! {
                () = tokio::time::sleep(third.mul_f64(spread)) => {}
                () = self.services.patterns.changed() => {}
            }
        }
    }

    async fn run_once(&self) -> Result<(), CoordinationError> {
        let services = &*self.services;
        services.patterns.refresh().await?;
        // It may come by its tasks in another way now.
        services.nudged.notify_one();
        let leads = (self.leads)();
        // First, since what only the leader can count waits for it. Whatever is chosen: a ballot keeps the pattern in
        // which it was opened.
        noted(
            "votes",
            counting::count_left(services, &self.id, leads).await,
        );
        let is = |event, pattern| services.patterns.of(event) == pattern;
        if !is(Patterned::Health, Pattern::Centralized) {
            let pattern = services.patterns.of(Patterned::Health);
            noted(
                "health",
                Box::pin(health::report(services, &self.id, pattern, self.ttl)).await,
            );
        }
        if leads && is(Patterned::Health, Pattern::Hybrid) {
            noted(
                "health",
                Box::pin(health::put_together(services, self.ttl, &self.leads)).await,
            );
        }
        if leads && is(Patterned::Metrics, Pattern::Hybrid) {
            noted(
                "metrics",
                Box::pin(metrics::put_together(services, self.ttl, &self.leads)).await,
            );
        }
        if leads && is(Patterned::State, Pattern::Hybrid) {
            noted(
                "state",
                Box::pin(get_state::put_together(services, self.ttl, &self.leads)).await,
            );
        }
        Ok(())
    }
}

/// What fails in one part keeps no other one from being done.
fn noted(what: &str, done: Result<(), impl std::fmt::Display>) {
    if let Err(error) = done {
        tracing::debug!(%error, "{what}: this instance's part was not done; it is tried again");
    }
}
