//! Random histories of a batch and its holders, run against the scripts and a model at once.

use crate::batches::{LEASE, asker, batches, failed, ok, wanted};
use crate::fleet::Fleet;
use convoke::coordination::batches::{Acquired, Advanced, Asker, Batches, Outcome, Progress};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// What a random history does next.
#[derive(Clone, Debug)]
enum Step {
    /// Instance `who` asks, with its own event or with one that was taken over.
    Acquire { who: usize, event: usize },
    /// It finishes some items, however old its fence is.
    Progress {
        who: usize,
        from: usize,
        count: usize,
        fails: bool,
    },
    /// It gives the lease back.
    GiveBack { who: usize },
    /// It renews.
    Renew { who: usize },
    /// Time passes: the lease runs out.
    Expire,
}

const TOTAL: usize = 24;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = 0..3_usize;
    let step = prop_oneof![
        4 => (who.clone(), 0..3_usize).prop_map(|(who, event)| Step::Acquire { who, event }),
        8 => (who.clone(), 0..TOTAL, 1..6_usize, any::<bool>())
            .prop_map(|(who, from, count, fails)| Step::Progress { who, from, count, fails }),
        1 => who.clone().prop_map(|who| Step::GiveBack { who }),
        1 => who.prop_map(|who| Step::Renew { who }),
        2 => Just(Step::Expire),
    ];
    prop::collection::vec(step, 1..60)
}

/// What the batch should be.
#[derive(Default)]
struct Model {
    fence: u64,
    holder: Option<(usize, usize)>,
    lease: bool,
    finished: BTreeSet<usize>,
    failed: usize,
}

impl Model {
    fn is_complete(&self) -> bool {
        self.finished.len() == TOTAL
    }

    fn counts(&self, progress: &Progress) {
        let counted = (progress.processed as usize, progress.failed as usize);
        assert_eq!(counted, (self.finished.len() - self.failed, self.failed));
    }
}

/// Runs a history against the scripts and the model at once.
async fn history(batches: &Batches, fleet: &mut Fleet, id: &str, steps: &[Step]) {
    let wanted = wanted(id, TOTAL);
    let names = ["w-0", "w-1", "w-2"];
    let events = ["e-0", "e-1", "e-2"];
    let mut model = Model::default();
    let mut fences = [0_u64; 3];
    for (at, step) in steps.iter().enumerate() {
        match *step {
            Step::Acquire { who, event } => {
                let run = format!("{at}");
                let asker = Asker {
                    run: &run,
                    // Who took an entry over has a later delivery of it.
                    deliveries: at as u32 + 1,
                    ..asker(names[who], events[event])
                };
                let own = model.holder.is_some_and(|(_, held)| held == event);
                match batches.acquire(&wanted, asker).await.unwrap() {
                    Acquired::Held(progress, bits) => {
                        assert!(!model.is_complete() && (!model.lease || own), "{step:?}");
                        assert!(progress.fence > model.fence, "a fence was given twice");
                        model.counts(&progress);
                        for n in 0..TOTAL {
                            let bit = bits.get(n / 8).is_some_and(|b| b & (0x80 >> (n % 8)) != 0);
                            assert_eq!(bit, model.finished.contains(&n));
                        }
                        model.fence = progress.fence;
                        model.holder = Some((who, event));
                        model.lease = true;
                        fences[who] = progress.fence;
                    }
                    Acquired::Busy { progress, .. } => {
                        assert!(!model.is_complete() && model.lease && !own);
                        assert_eq!(progress.fence, model.fence);
                        model.counts(&progress);
                    }
                    Acquired::Completed(progress) => {
                        assert!(model.is_complete());
                        model.counts(&progress);
                    }
                    Acquired::Free => panic!("it may hold"),
                }
            }
            Step::Progress {
                who,
                from,
                count,
                fails,
            } => {
                let outcomes: Vec<Outcome> = (from..(from + count).min(TOTAL))
                    .map(|n| {
                        if fails {
                            failed(n, "x")
                        } else {
                            ok([n]).remove(0)
                        }
                    })
                    .collect();
                let done = batches
                    .progress(&wanted, fences[who], &outcomes, &[])
                    .await
                    .unwrap();
                let current = model.fence != 0 && fences[who] == model.fence;
                match done {
                    Advanced::Lost(_) => assert!(!current, "{step:?}"),
                    Advanced::Running(progress) | Advanced::Completed(progress) => {
                        assert!(current, "a stale write was taken: {step:?}");
                        let before = model.finished.len();
                        for outcome in &outcomes {
                            if model.finished.insert(outcome.index) {
                                model.failed += usize::from(fails);
                            }
                        }
                        if model.finished.len() > before {
                            model.lease = true;
                        }
                        model.counts(&progress);
                    }
                }
            }
            Step::GiveBack { who } => {
                let given = batches.give_back(id, fences[who]).await.unwrap();
                assert_eq!(given, model.fence != 0 && fences[who] == model.fence);
                if given {
                    (model.lease, model.holder) = (false, None);
                }
            }
            Step::Renew { who } => {
                let kept = batches.renew(id, fences[who], LEASE).await.unwrap();
                assert_eq!(kept, model.fence != 0 && fences[who] == model.fence);
                if kept {
                    model.lease = true;
                }
            }
            Step::Expire => {
                if model.fence != 0 {
                    fleet.run(&format!("HSET cb:batch:{id} expires 1000")).await;
                    model.lease = false;
                }
            }
        }
    }
}

#[test]
fn in_random_histories_progress_never_falls_and_no_stale_write_is_taken() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut fleet = runtime.block_on(Fleet::start());
    let batches = batches(&fleet);
    let mut serial = 0;
    let config = ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let fleet = std::sync::Mutex::new(&mut fleet);
    let serial = std::sync::Mutex::new(&mut serial);
    runner
        .run(&steps(), |steps| {
            let mut serial = serial.lock().unwrap_or_else(|poison| poison.into_inner());
            **serial += 1;
            let id = format!("h-{}", **serial);
            let mut fleet = fleet.lock().unwrap_or_else(|poison| poison.into_inner());
            runtime.block_on(history(&batches, &mut fleet, &id, &steps));
            Ok(())
        })
        .unwrap();
}
