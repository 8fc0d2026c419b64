//! What hangs in the instances, who is lost, and a partition.

use super::trouble::{Trouble, bounded, seconds};
use crate::coordination::instances::roster::Census;
use crate::coordination::totals::Global;

/// A run that is so old is worth a look, in ms.
const LONG_MS: u64 = 60_000;
/// Runs that hold all places for so long keep the others out, in ms.
const HOLDS_MS: u64 = 10_000;

/// What there is to say of who runs what, of who is gone, and of a partition.
pub fn of_instances(census: &Census, global: &Global) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    for (kind, running) in &global.running {
        let age = seconds(running.oldest_ms);
        if running.full > 0 && running.oldest_ms >= HOLDS_MS {
            troubles.push(Trouble {
                check: "runs",
                severe: true,
                what: format!(
                    "{kind} holds all places of {} with {} runs, the oldest for {age}",
                    match running.full {
                        1 => "an instance".to_owned(),
                        full => format!("{full} instances"),
                    },
                    running.runs
                ),
                why: "no other type runs there until one of them ends",
                mend: format!(
                    "convoke pending --type {kind} --running 10s names them; give the handler a shorter timeout, or \
                     a concurrency of its own below the worker's"
                ),
            });
        } else if running.oldest_ms >= LONG_MS {
            troubles.push(Trouble {
                check: "runs",
                severe: false,
                what: format!("the oldest of {} runs of {kind} goes on for {age}", running.runs),
                why: "it may hang: it keeps its place, and its event is not taken over while it renews its lease",
                mend: format!(
                    "convoke pending --type {kind} --running 1m names the events; give the handler a timeout"
                ),
            });
        }
    }
    if census.recently_lost >= 3 && census.recently_lost * 10 >= census.known() {
        troubles.push(Trouble {
            check: "lost",
            severe: census.recently_lost * 2 >= census.known(),
            what: format!(
                "{} instances were lost within ten minutes, {} are healthy",
                census.recently_lost,
                census.healthy()
            ),
            why: "what they ran is run again by the others, which may be too few; a fleet that dies again and again \
                  does no work",
            mend: "convoke instances names them; see their logs, and whether their machines reach redis".into(),
        });
    }
    if census.is_partitioned() {
        troubles.push(Trouble {
            check: "partition",
            severe: true,
            what: format!(
                "{} of {} known instances are healthy: a partition",
                census.healthy(),
                census.known()
            ),
            why: "most of the fleet does not reach redis: the rest carries all the work",
            mend: "look at the network between the instances and redis; convoke instances names who is silent".into(),
        });
    }
    bounded(troubles)
}
