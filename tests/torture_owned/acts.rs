//! What happens to the workers, and to the number of partitions, while they work.

use crate::history::{self, Fates};
use crate::load::DOMAINS;
use crate::support::torture::{self, Report};
use crate::workers::{Process, Workers};
use std::time::Duration;

/// How often each happens.
pub(crate) struct Acts {
    pub(crate) kills: u64,
    pub(crate) stops: u64,
    /// A worker comes, and another one leaves.
    pub(crate) moves: u64,
    /// A domain gets twice as many partitions, each in turn.
    pub(crate) splits: u64,
}

#[derive(Clone, Copy)]
enum Act {
    Kill,
    Stop,
    Move,
    Split,
}

impl Acts {
    /// As many as are asked for.
    pub(crate) fn of_size() -> Self {
        let changes = torture::size("TORTURE_OWNED_CHANGES", 2, 20);
        Self {
            kills: torture::size("TORTURE_OWNED_KILLS", 3, 50),
            stops: torture::size("TORTURE_OWNED_STOPS", 2, 20),
            moves: changes / 2,
            splits: changes - changes / 2,
        }
    }

    pub(crate) fn told(&self, report: Report) -> Report {
        report
            .fault(self.kills, "kills of owners")
            .fault(self.stops, "owners stopped past their lease")
            .fault(self.moves, "workers that came, each for one that left")
            .fault(
                self.splits,
                "domains of which a half moved into new partitions",
            )
    }

    /// Mixed, from one seed. A stop lasts for one to two leases; `split` gives a domain more partitions.
    pub(crate) async fn happen(
        &self,
        workers: &mut Workers,
        running: &mut Vec<Process>,
        ttl: Duration,
        mut split: impl AsyncFnMut(&'static str),
    ) -> Fates {
        let mut dice = torture::dice("owned");
        let all = [
            (self.kills, Act::Kill),
            (self.stops, Act::Stop),
            (self.moves, Act::Move),
            (self.splits, Act::Split),
        ];
        let mut acts: Vec<Act> = all
            .into_iter()
            .flat_map(|(count, act)| std::iter::repeat_n(act, count as usize))
            .collect();
        dice.shuffle(&mut acts);
        let mut fates = Fates::default();
        let mut domains = DOMAINS.into_iter().cycle();
        for act in acts {
            tokio::time::sleep(Duration::from_millis(dice.u64(100..2500))).await;
            let at = dice.usize(0..running.len());
            match act {
                Act::Kill => {
                    let mut dies = running.remove(at);
                    fates.killed.insert(dies.id.clone());
                    dies.signal("KILL");
                    dies.child.wait().unwrap();
                    running.push(workers.spawn());
                }
                Act::Stop => {
                    let stops = &running[at];
                    let lines = history::read(&workers.history()).len();
                    fates.stopped.entry(stops.id.clone()).or_insert(lines);
                    stops.signal("STOP");
                    tokio::time::sleep(ttl.mul_f64(1.2 + dice.f64())).await;
                    stops.signal("CONT");
                }
                Act::Move => {
                    running.push(workers.spawn());
                    running.remove(at).leave().await;
                }
                Act::Split => {
                    split(domains.next().unwrap()).await;
                }
            }
        }
        fates
    }
}
