//! Random histories: whoever takes over, settles late or out of order, and however connections
//! break, each entry gets exactly one reply.

use crate::setup::{Bus, Held, NEXT, text};
use convoke::streams::commit::Committer;
use fastrand::Rng;
use std::collections::BTreeMap;

const ENTRIES: usize = 60;

/// One process: a committer and the deliveries in its hands, some of which are lost already.
struct Process {
    consumer: &'static str,
    committer: Committer,
    held: Vec<Held>,
}

impl Process {
    async fn start(bus: &Bus, consumer: &'static str) -> Self {
        let mut committer = bus.committer(consumer);
        committer.start().await.unwrap();
        Self {
            consumer,
            committer,
            held: Vec::new(),
        }
    }

    /// A few of its deliveries, in any order.
    fn some(&mut self, rng: &mut Rng) -> Vec<Held> {
        rng.shuffle(&mut self.held);
        let count = rng.usize(0..=self.held.len().min(8));
        self.held.split_off(self.held.len() - count)
    }

    async fn settle(&mut self, some: Vec<Held>) -> u64 {
        let batch = some.iter().map(Held::done).collect();
        let report = self.committer.commit(batch).await;
        assert!(report.refused.is_empty() && report.abandoned == 0);
        report.committed
    }
}

async fn take_some(bus: &mut Bus, process: &mut Process, rng: &mut Rng) {
    let claims = process.committer.claims().known(0);
    let mut wanted = bus.pending().await;
    rng.shuffle(&mut wanted);
    wanted.truncate(rng.usize(1..=5));
    let taken = bus.take(process.consumer, &wanted).await;
    let taken = taken.into_iter();
    process
        .held
        .extend(taken.map(|taken| Held::new(taken.entry, taken.deliveries, claims)));
}

async fn history(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let mut bus = Bus::start().await;
    bus.add(ENTRIES).await;
    let mut processes = Vec::new();
    for consumer in ["w-1", "w-1", "w-2", "w-3"] {
        processes.push(Process::start(&bus, consumer).await);
    }
    let mut undelivered = ENTRIES;
    let mut steps = 0;
    while undelivered > 0 || !bus.pending().await.is_empty() {
        steps += 1;
        assert!(steps < 5_000, "seed {seed}: no end");
        let one = rng.usize(0..processes.len());
        let two = (one + rng.usize(1..processes.len())) % processes.len();
        match rng.u8(0..20) {
            0..=5 => {
                let process = &mut processes[one];
                let claims = process.committer.claims();
                let read = bus.deliver(process.consumer, &claims, rng.usize(1..8));
                let read = read.await;
                undelivered -= read.len();
                process.held.extend(read);
            }
            6..=8 => take_some(&mut bus, &mut processes[one], &mut rng).await,
            9..=12 => {
                let some = processes[one].some(&mut rng);
                processes[one].settle(some).await;
            }
            13..=18 => {
                // Two at once, and a third takes over meanwhile.
                let [one, two] = processes.get_disjoint_mut([one, two]).unwrap();
                let (first, second) = (one.some(&mut rng), two.some(&mut rng));
                let mut third = Process::start(&bus, "w-4").await;
                tokio::join!(
                    one.settle(first),
                    two.settle(second),
                    take_some(&mut bus, &mut third, &mut rng)
                );
                processes.push(third);
                if processes.len() > 6 {
                    // One dies with what it holds.
                    processes.swap_remove(rng.usize(0..4));
                }
            }
            _ if rng.u8(0..3) == 0 => {
                bus.run("CLIENT KILL TYPE normal SKIPME yes").await;
                bus.connect().await;
            }
            _ => {}
        }
    }
    // Whatever is still in anybody's hands is settled once more: too late.
    for process in &mut processes {
        let late = std::mem::take(&mut process.held);
        assert_eq!(process.settle(late).await, 0, "seed {seed}");
    }
    let mut replies: BTreeMap<String, u32> = BTreeMap::new();
    for id in bus.replied().await {
        *replies.entry(id).or_default() += 1;
    }
    let many: Vec<_> = replies.iter().filter(|(_, count)| **count != 1).collect();
    assert!(many.is_empty(), "seed {seed}: {many:?}");
    assert_eq!(replies.len(), ENTRIES, "seed {seed}");
    let mut published: Vec<String> = bus
        .entries(NEXT)
        .await
        .iter()
        .map(|e| text(e, "id"))
        .collect();
    published.sort();
    assert!(published.iter().eq(replies.keys()), "seed {seed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_any_history_each_entry_is_replied_once() {
    let first = match std::env::var("CONVOKE_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => fastrand::u64(..1 << 40),
    };
    let rounds = std::env::var("CONVOKE_ROUNDS").map_or(4, |rounds| rounds.parse().unwrap());
    for seed in first..first + rounds {
        eprintln!("CONVOKE_SEED={seed}");
        history(seed).await;
    }
}
