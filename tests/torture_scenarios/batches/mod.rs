//! Batches: one holder a fence, progress that only rises, effects that are stored once.

mod calls;

use crate::run::Scenario;
use crate::world::{DAY, HOUR, SECOND, Tail, World, fact};
use convoke::coordination::batches::batch::{BatchPlan, BatchStatus, Mode};
use convoke::coordination::batches::{
    ABANDONED, Acquired, Advanced, Asker, BatchProgress, Batches, FinishedItem, KEPT,
};
use convoke::coordination::error::CoordinationError;
use convoke::streams::commit::Publication;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const TOTAL: usize = 12;
const LEASE: u64 = 30_000;
const EFFECTS: &str = "cb:events:number";

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// An instance asks for a batch, with one of the events that want it.
    Acquire {
        batch: u8,
        who: u8,
        event: u8,
        delivery: u8,
        may_hold: bool,
    },
    /// With other items under the same id.
    Other {
        batch: u8,
        who: u8,
    },
    /// It finishes items, however old its fence is.
    Progress {
        batch: u8,
        who: u8,
        from: u8,
        count: u8,
        fails: bool,
    },
    GiveBack {
        batch: u8,
        who: u8,
    },
    Renew {
        batch: u8,
        who: u8,
    },
}

use Step::*;

/// What a batch should be.
#[derive(Default)]
struct Model {
    fence: u64,
    /// The run, the event and which delivery of it hold it.
    holder: Option<(String, u8, u32)>,
    /// 0: nobody has a lease.
    expires: u64,
    processor: u8,
    finished: BTreeSet<usize>,
    failed: BTreeSet<usize>,
    /// Until when it is kept.
    kept: u64,
}

impl Model {
    fn is_complete(&self) -> bool {
        self.finished.len() == TOTAL
    }

    fn progress(&self) -> BatchProgress {
        BatchProgress {
            fence: self.fence,
            processor_id: format!("w-{}", self.processor),
            processed: (self.finished.len() - self.failed.len()) as u64,
            failed: self.failed.len() as u64,
            total: TOTAL as u64,
        }
    }
}

pub(crate) struct Scene {
    batches: Batches,
    models: BTreeMap<u8, Model>,
    /// The last fence that an instance was given of a batch.
    fences: BTreeMap<(u8, u8), u64>,
    /// The highest fence of each batch, ever.
    highest: BTreeMap<u8, u64>,
    runs: u64,
    /// Effects and completions that were not seen on their streams yet.
    effects: Vec<Vec<u8>>,
    completed: Vec<(String, u64)>,
    streams: (Tail, Tail),
}

fn id(batch: u8) -> String {
    format!("b-{batch}")
}

fn wanted(batch: u8, total: usize) -> BatchPlan {
    let items: Vec<Vec<u8>> = (0..total).map(|n| vec![n as u8]).collect();
    BatchPlan::new(&id(batch), "number.add", Mode::Exclusive, &items, LEASE).unwrap()
}

fn ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

impl Scenario for Scene {
    const NAME: &'static str = "batches";
    const SHARE: u64 = 20;
    const CLOCK: &'static [i64] = &[
        1,
        10 * SECOND,
        20 * SECOND,
        20 * SECOND,
        20 * SECOND,
        -10 * SECOND,
        30 * SECOND,
        30 * SECOND,
        30 * SECOND,
        30 * SECOND,
        -30 * SECOND,
        HOUR,
        -HOUR,
        DAY,
        -DAY,
        DAY + 1,
        7 * DAY,
    ];
    type Step = Step;

    fn steps() -> BoxedStrategy<Step> {
        let (batch, who) = (|| 0..2u8, || 0..3u8);
        let acquire = (batch(), who(), 0..3u8, 1..4u8, prop::bool::weighted(0.9)).prop_map(
            |(batch, who, event, delivery, may_hold)| Acquire {
                batch,
                who,
                event,
                delivery,
                may_hold,
            },
        );
        let progress = (
            batch(),
            who(),
            0..TOTAL as u8,
            1..6u8,
            prop::bool::weighted(0.3),
        )
            .prop_map(|(batch, who, from, count, fails)| Progress {
                batch,
                who,
                from,
                count,
                fails,
            });
        prop_oneof![
            6 => acquire,
            10 => progress,
            1 => (batch(), who()).prop_map(|(batch, who)| Other { batch, who }),
            1 => (batch(), who()).prop_map(|(batch, who)| GiveBack { batch, who }),
            1 => (batch(), who()).prop_map(|(batch, who)| Renew { batch, who }),
        ]
        .boxed()
    }

    fn begin(world: &World) -> Self {
        Self {
            batches: Batches::new(world.connector.clone(), world.keys.clone()),
            models: BTreeMap::new(),
            fences: BTreeMap::new(),
            highest: BTreeMap::new(),
            runs: 0,
            effects: Vec::new(),
            completed: Vec::new(),
            streams: Default::default(),
        }
    }

    async fn take(&mut self, world: &mut World, step: &Step, lost: bool) {
        let times = 1 + u8::from(lost);
        match *step {
            Acquire { .. } => {
                self.runs += 1;
                let run = format!("r-{}", self.runs);
                for _ in 0..times {
                    self.acquire(world, step, &run).await;
                }
            }
            Other { batch, who } => {
                let instance = format!("w-{who}");
                let asker = Asker {
                    instance: &instance,
                    run: "other",
                    entry: "2-0",
                    deliveries: 1,
                    event: "2-0",
                    may_hold: self.models.contains_key(&batch),
                };
                match self.batches.acquire(&wanted(batch, TOTAL + 1), asker).await {
                    Err(CoordinationError::AlreadyExists(_)) => {
                        assert!(self.models.contains_key(&batch));
                    }
                    Ok(Acquired::Free) => assert!(!self.models.contains_key(&batch)),
                    other => panic!("{other:?}"),
                }
            }
            Progress {
                batch, from, count, ..
            } => {
                self.runs += 1;
                let (run, models) = (self.runs, &self.models);
                let done = |n: &usize| models.get(&batch).is_some_and(|m| m.finished.contains(n));
                let items = usize::from(from)..usize::from(from + count).min(TOTAL);
                // As a holder does, which knows what is finished.
                let publications: Vec<Publication> = items
                    .filter(|n| !done(n))
                    .map(|n| Publication {
                        stream: EFFECTS.into(),
                        fields: ["type", "number.added", "n", &format!("{run} {n}")]
                            .map(|word| word.as_bytes().to_vec())
                            .into(),
                    })
                    .collect();
                for _ in 0..times {
                    self.progress(world, step, &publications).await;
                }
            }
            GiveBack { batch, who } => {
                for _ in 0..times {
                    let fence = self.fence(batch, who);
                    let given = self.batches.give_back(&id(batch), fence).await.unwrap();
                    assert_eq!(given, self.is_current(batch, who));
                    let model = self
                        .models
                        .get_mut(&batch)
                        .filter(|m| given && !m.is_complete());
                    if let Some(model) = model {
                        (model.expires, model.holder) = (0, None);
                        model.kept = world.now + ms(ABANDONED);
                    }
                }
            }
            Renew { batch, who } => {
                let (fence, lease) = (self.fence(batch, who), Duration::from_millis(LEASE));
                let kept = self.batches.renew(&id(batch), fence, lease).await.unwrap();
                assert_eq!(kept, self.is_held(batch, who));
                let model = self
                    .models
                    .get_mut(&batch)
                    .filter(|m| kept && !m.is_complete());
                if let Some(model) = model {
                    model.expires = world.now + LEASE;
                    model.kept = world.now + ms(ABANDONED);
                }
            }
        }
    }

    async fn check(&mut self, world: &mut World) {
        self.models.retain(|_, model| model.kept >= world.now);
        let mut pipe = redis::pipe();
        self.streams.0.ask(&mut pipe, EFFECTS);
        self.streams.1.ask(&mut pipe, &world.keys.broadcast());
        for batch in 0..2 {
            pipe.cmd("EXISTS")
                .arg(world.keys.batch_finished(&id(batch)));
            pipe.cmd("HGETALL").arg(world.keys.batch(&id(batch)));
        }
        type Hash = std::collections::HashMap<String, String>;
        let (effects, facts, _, zero, _, one): (redis::Value, redis::Value, u8, Hash, u8, Hash) =
            world.look(&pipe).await;
        let effects = self.streams.0.read(effects);
        let stored: Vec<&[u8]> = effects
            .iter()
            .map(|entry| entry.get("n").unwrap())
            .collect();
        assert_eq!(stored, self.effects, "effects");
        self.effects.clear();
        let facts = self
            .streams
            .1
            .read(facts)
            .into_iter()
            .map(|entry| fact(&entry));
        let completed = facts
            .filter(|(kind, _)| kind == "batch.completed")
            .map(|(_, data)| {
                let id = data["batch_id"].as_str().unwrap().to_owned();
                (id, data["fence"].as_u64().unwrap())
            });
        assert_eq!(
            completed.collect::<Vec<_>>(),
            self.completed,
            "completions that were told"
        );
        self.completed.clear();
        for (batch, hash) in [(0, zero), (1, one)] {
            let found = convoke::coordination::batches::batch::Batch::from_hash(&hash);
            let (Some(found), Some(model)) = (&found, self.models.get(&batch)) else {
                assert_eq!(
                    found.is_some(),
                    self.models.contains_key(&batch),
                    "is it there"
                );
                continue;
            };
            let BatchProgress {
                fence,
                processor_id,
                processed,
                failed,
                total,
            } = model.progress();
            let is = (
                found.fence,
                &found.processor_id,
                found.processed,
                found.failed,
                found.total,
            );
            assert_eq!(is, (fence, &processor_id, processed, failed, total));
            assert_eq!(found.status == BatchStatus::Completed, model.is_complete());
            assert_eq!(found.expires_at, model.expires);
            let told: BTreeSet<usize> =
                found.failures.iter().map(|failure| failure.index).collect();
            assert_eq!(told, model.failed);
            let highest = self.highest.entry(batch).or_default();
            assert!(fence >= *highest, "a fence fell");
            *highest = fence;
        }
    }
}
