//! Declares expired instances lost and looks at the tasks that wait, all instances together one to four
//! times a second; reports partitions, and contends where the leader is gone.

use super::Chores;
use crate::connect::silence::{SPREAD, quiet};
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::SWEEP;
use crate::coordination::nudge::nudge_waiting;
use crate::protocol::pattern::{Pattern, Patterned};
use crate::worker::sparing::Sparing;
use std::time::{Duration, Instant};

/// The shortest and the longest pause of an instance that is alone, and of the leader.
const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];

/// Sweeps again and again; the more instances there are, the less often each does.
pub(super) async fn run(chores: &Chores) {
    let ttl = chores.settings.heartbeat_ttl;
    let alone = (ttl / 40).clamp(PAUSES[0], PAUSES[1]);
    // All count from about the same moment after an outage.
    let turn = (ttl / SPREAD).mul_f64(fastrand::f64());
    let mut pause = alone;
    let mut gaps = 0;
    let mut sparing = Sparing::new(Instant::now());
    loop {
        let spread = fastrand::f64() / 2.0 + 0.75;
        let ends = Instant::now() + pause.mul_f64(spread);
        let counted = || Some(chores.answers.counted(quiet(ttl))? + turn);
        rest(ends, ttl / 12, counted).await;
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

/// Waits until then, or until silence has counted for long enough after a gap: who died in it is to be found at once.
/// That there was a gap is noticed after `step` at the latest.
async fn rest(ends: Instant, step: Duration, counted: impl Fn() -> Option<Instant>) {
    let now = || tokio::time::Instant::now().into_std();
    let began = now();
    loop {
        let counted = counted().filter(|counted| *counted > began);
        let until = counted.map_or(ends, |counted| counted.min(ends));
        let now = now();
        if until <= now {
            return;
        }
        tokio::time::sleep_until(until.min(now + step).into()).await;
    }
}

/// One sweep; returns how many instances are alive.
async fn run_once(
    chores: &Chores,
    gaps: &mut u64,
    sparing: &mut Sparing,
) -> Result<u64, CoordinationError> {
    let ttl = chores.settings.heartbeat_ttl;
    // What was asked in a gap and hangs must be over long before silence counts again.
    let third = ttl / 3;
    let now = chores.answers.gaps();
    if now != *gaps {
        // The clock may have gone back: then the dead would never expire.
        let shortened = chores.within(third, chores.instances.shorten(ttl)).await?;
        if shortened > 0 {
            tracing::warn!(
                instances = shortened,
                "the server's clock went back: expiries were brought into reach"
            );
        }
        *gaps = now;
    }
    let epoch = chores.connector.epoch();
    let instances = chores.instances.within(epoch);
    let swept = chores.within(third, instances.sweep(SWEEP)).await?;
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
    if chores.patterns.of(Patterned::Register) == Pattern::Hybrid {
        // A nudge is a hint: what else a sweep is for does not wait for it.
        let nudged = nudge_waiting(&chores.instances, &chores.tasks).await;
        if let Err(error) = nudged {
            tracing::debug!(%error, "nobody was nudged; the next sweep does it");
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn it_is_swept_when_silence_has_counted_even_if_the_gap_ended_while_it_waited() {
        let now = || tokio::time::Instant::now().into_std();
        let (second, began) = (Duration::from_secs(1), now());
        let until = async |ends: u32, counted: &dyn Fn() -> Option<Instant>| {
            let at = now();
            rest(at + second * ends, second, counted).await;
            (now() - at).as_secs_f64().round() as u32
        };
        // Nobody answered yet; it has counted; it will have, before the turn or behind it.
        assert_eq!(until(10, &|| None).await, 10);
        assert_eq!(until(10, &|| Some(began)).await, 10);
        let at = now();
        assert_eq!(until(10, &|| Some(at + second * 4)).await, 4);
        assert_eq!(until(3, &|| Some(at + second * 40)).await, 3);
        // The gap ends after two and a half seconds.
        let (at, looks) = (now(), Cell::new(0));
        let counted = || {
            looks.set(looks.get() + 1);
            (now() >= at + second * 5 / 2).then(|| at + second * 7)
        };
        assert_eq!(until(10, &counted).await, 7);
        assert!(looks.get() <= 9);
    }
}
