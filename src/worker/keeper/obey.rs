//! Does what operators order this worker: to leave, to be quiet, to run another number of handlers at a time.
//!
//! A fact tells an order; should it be missed, the next look finds it, three times in the time to live. The same
//! call says how the worker is.

use super::Chores;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::orders::{Order, WorkerMode};
use tokio_util::sync::CancellationToken;

/// Looks again and again; at once when it begins to leave, so that this is seen.
pub(super) async fn run(chores: &Chores) {
    let third = chores.settings.heartbeat_ttl / 3;
    loop {
        let leaves = chores.draining();
        if let Err(error) = run_once(chores).await {
            tracing::debug!(%error, "whether something is ordered is not known; asking again");
        }
        let drain = chores.drain();
        let pause = third.mul_f64(fastrand::f64() / 2.0 + 0.75);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = chores.ordered.notified() => {}
            () = drain.cancelled(), if !leaves => {}
        }
    }
}

async fn run_once(chores: &Chores) -> Result<(), CoordinationError> {
    let mode = chores.mode();
    let order = chores.instances.look_for_orders(chores.id(), &mode).await?;
    let Some(order) = order else {
        return Ok(());
    };
    if follow(chores, &order, &mode).await? {
        let mode = chores.mode();
        chores.instances.look_for_orders(chores.id(), &mode).await?;
    }
    Ok(())
}

/// Does what is ordered; whether that changed something.
async fn follow(
    chores: &Chores,
    order: &Order,
    mode: &WorkerMode,
) -> Result<bool, CoordinationError> {
    let by = order.by.as_str();
    let mut changed = false;
    // First: what else is ordered may fail, and is tried again.
    if order.drain && !mode.draining {
        tracing::info!(by, "leaves: it is ordered to");
        chores.drain().cancel();
        changed = true;
    }
    if let Some(concurrency) = order.concurrency.filter(|it| *it != mode.concurrency)
        && !chores.lanes.data().is_empty()
    {
        tracing::info!(
            concurrency,
            by,
            "runs another number of handlers at a time: it is ordered to"
        );
        chores.lanes.scale(concurrency);
        changed = true;
    }
    if order.quiet != mode.quiet {
        tracing::info!(
            quiet = order.quiet,
            by,
            "reads, or does not: it is ordered to"
        );
        for lane in chores.lanes.now().iter() {
            lane.be_quiet(order.quiet);
        }
        changed = true;
        let told = match order.quiet {
            true => chores.tasks.retire(chores.id()).await,
            false => super::pulse::register_again(chores, "takes tasks again").await,
        };
        if let Err(error) = told {
            // So that the next look does it again.
            for lane in chores.lanes.now().iter() {
                lane.be_quiet(mode.quiet);
            }
            return Err(error);
        }
    }
    Ok(changed)
}

impl Chores {
    fn mode(&self) -> WorkerMode {
        WorkerMode {
            version: self.settings.app_version.clone(),
            concurrency: self.lanes.concurrency(),
            quiet: self.lanes.is_quiet(),
            draining: self.draining(),
            patterns: self.patterns.all().names(),
        }
    }

    /// The token by which the worker is told to leave.
    fn drain(&self) -> CancellationToken {
        let first = self.lanes.first();
        let drain = first.as_ref().and_then(|lane| lane.process.draining.get());
        drain.cloned().unwrap_or_default()
    }
}
