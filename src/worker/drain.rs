//! How a worker leaves: what runs is finished, at most for a while, and nothing of its consumer is left behind.

use super::keeper::outbox::Mover;
use super::lanes::Lanes;
use super::making::Running;
use super::supervisor::Supervisor;
use super::{Ending, Worker, keeper};
use crate::builtin::pipe::Pipe;
use crate::connect::error::BusError;
use crate::settings::Settings;
use crate::streams::claim;
use crate::streams::commit::Committer;
use futures_util::future::join_all;
use std::time::Duration;

/// How long a lane may take to stop that was told to; a handler that holds its thread holds it too.
const STOPS: Duration = Duration::from_secs(5);

impl Worker {
    /// Takes the instance out of the active ones.
    pub(super) async fn unregister(&self, incarnation: u64) {
        let id = self.id();
        if let Err(error) = self.instances.unregister(id, Some(incarnation)).await {
            tracing::warn!(instance = id, %error, "not unregistered; it will be declared lost");
        }
    }

    /// Runs the lanes to their end, at most the drain time long once they were told to end. Their
    /// committers come back, where they are free.
    pub(super) async fn until_drained(
        &self,
        lanes: &Lanes,
        running: Running,
        ending: &Ending,
        supervisor: &Supervisor,
    ) -> Vec<Committer> {
        let limit = async {
            ending.drain.cancelled().await;
            self.vital.drains();
            tracing::info!(
                instance = self.id(),
                in_flight = lanes.in_flight(),
                "draining"
            );
            let over = async {
                tokio::select! {
                    () = tokio::time::sleep(self.patience(supervisor)) => {}
                    () = ending.stop.cancelled() => {}
                }
            };
            let (_, ()) = tokio::join!(self.tasks.retire(self.id()), over);
            let left = lanes.in_flight();
            tracing::warn!(
                instance = self.id(),
                left,
                "not all finished in time; the others take over"
            );
            ending.stop.cancel();
            tokio::time::sleep(STOPS).await;
            tracing::error!(
                instance = self.id(),
                "a handler holds a thread; the worker ends without it"
            );
        };
        tokio::select! {
            committers = running.ended() => committers,
            () = limit => Vec::new(),
        }
    }

    /// Has the processes of pipes end by themselves, unless the worker is to finish nothing.
    pub(super) async fn end_pipes(&self, ending: &Ending) {
        tokio::select! {
            _ = join_all(self.pipes.iter().map(Pipe::end)) => {}
            () = ending.stop.cancelled() => {}
        }
    }

    /// How long draining may take. Without a keeper the instance is lost soon: it must be gone by then.
    fn patience(&self, supervisor: &Supervisor) -> Duration {
        let Settings {
            drain_timeout,
            heartbeat_ttl,
            ..
        } = self.settings;
        match supervisor.failure() {
            Some(failure) if failure.part == keeper::NAME => drain_timeout.min(heartbeat_ttl / 6),
            _ => drain_timeout,
        }
    }

    /// Removes what this consumer left behind on streams where nothing is pending with it.
    pub(super) async fn leave(&self, lanes: &Lanes, committers: Vec<Committer>) {
        let left = async {
            let mut connection = self.process.connector.pooled().await?;
            let mut clean = true;
            for stream in lanes.streams() {
                clean &= claim::forget(&mut connection, &stream, &self.settings.group, self.id())
                    .await?;
            }
            if clean {
                for committer in committers {
                    committer.finish().await?;
                }
            }
            Ok::<_, BusError>(())
        };
        if let Err(error) = left.await {
            tracing::warn!(instance = self.id(), %error, "the consumer was not removed");
        }
        self.empty_outboxes(lanes).await;
    }

    /// On a cluster, moves what runs published into other slots: nobody may be left who looks there.
    async fn empty_outboxes(&self, lanes: &Lanes) {
        let connector = &self.process.connector;
        if !connector.is_cluster() {
            return;
        }
        let shared = lanes.shared();
        let emptied = async {
            let mut mover = Mover::new();
            mover.go_on(connector, &shared).await;
            while !mover.is_through() {
                mover.go_on(connector, &shared).await;
            }
        };
        if tokio::time::timeout(STOPS, emptied).await.is_err() {
            tracing::warn!(
                instance = self.id(),
                "what runs published into other slots may wait there for another worker"
            );
        }
    }
}
