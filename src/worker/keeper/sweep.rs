//! Declares expired instances lost and looks at the tasks that wait, all instances together one to four
//! times a second; reports partitions, and contends where the leader is gone.

use super::Chores;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::SWEEP;
use crate::worker::sparing::Sparing;
use std::time::{Duration, Instant};

/// The shortest and the longest pause of an instance that is alone, and of the leader.
const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];

/// Sweeps again and again; the more instances there are, the less often each does.
pub(super) async fn run(chores: &Chores) {
    let ttl = chores.settings.heartbeat_ttl;
    let alone = (ttl / 40).clamp(PAUSES[0], PAUSES[1]);
    let mut pause = alone;
    let mut gaps = 0;
    let mut sparing = Sparing::new(Instant::now());
    loop {
        let spread = fastrand::f64() / 2.0 + 0.75;
        tokio::time::sleep(pause.mul_f64(spread)).await;
        match run_once(chores, &mut gaps, &mut sparing).await {
            // Where there are very many, the leader still looks so often.
            Ok(_) if chores.leads() => pause = alone,
            Ok(active) => {
                let share = PAUSES[0] * active.clamp(1, 100_000) as u32;
                pause = share.max(alone).min(ttl);
            }
            Err(error) => {
                tracing::debug!(%error, "sweeping failed; trying again");
            }
        }
    }
}

/// One sweep; returns how many instances are alive.
async fn run_once(
    chores: &Chores,
    gaps: &mut u64,
    sparing: &mut Sparing,
) -> Result<u64, CoordinationError> {
    let now = chores.answers.gaps();
    if now != *gaps {
        // The clock may have gone back: then the dead would never expire.
        let shortened = chores
            .instances
            .shorten(chores.settings.heartbeat_ttl)
            .await?;
        if shortened > 0 {
            tracing::warn!(
                instances = shortened,
                "the server's clock went back: expiries were brought into reach"
            );
        }
        *gaps = now;
    }
    let epoch = chores.connector.epoch();
    let swept = chores.instances.within(epoch).sweep(SWEEP).await?;
    // Anyone may register instances that are never heard of again.
    let told = swept.lost.iter().filter(|_| sparing.allows(Instant::now()));
    for lost in told {
        tracing::warn!(
            instance = lost.id,
            incarnation = lost.incarnation,
            last_seen = lost.last_seen,
            "an instance was lost"
        );
    }
    chores.tasks.assign_waiting().await?;
    if swept.partition_turns {
        let partition = chores.instances.watch_partition().await?;
        if partition.is != partition.was {
            let (healthy, total) = (partition.healthy, partition.total);
            match partition.is {
                true => tracing::warn!(healthy, total, "partition: most instances are gone"),
                false => tracing::info!(healthy, total, "the partition has healed"),
            }
        }
    }
    if swept.leader.is_none() {
        chores.contend().await?;
    }
    Ok(swept.active)
}
