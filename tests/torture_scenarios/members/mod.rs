//! Instances: who is there, who was lost, and who may say so.

mod calls;

use crate::run::Scenario;
use crate::world::{DAY, HOUR, MINUTE, SECOND, Tail, World, fact};
use convoke::connect::silence::Answers;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::instances::instance::Registering;
use convoke::coordination::instances::{Instances, KEPT, RECENTLY};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

const IDS: u8 = 4;
/// Processes that may have an id; a greater number is an event that asks.
const PROCESSES: u8 = 2;
const ROLES: [&str; 2] = ["gpu", "worker"];
const TTLS: [u64; 3] = [30_000, 900_000, 3_600_000];
/// What the sweeper that judges takes for an instance's ttl. A clock that moves less than a sixth of it
/// between two of its looks has not jumped.
const JUDGED: Duration = Duration::from_secs(3600);
/// How long the hash of an external instance is kept.
const OUTSIDE: u64 = 600_000;

/// Which incarnation a call names.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Named {
    Nothing,
    Last,
    /// One that it was before, or never.
    Wrong,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// `begins`: a process that begins; otherwise one that registers again.
    Register {
        id: u8,
        by: u8,
        ttl: u8,
        roles: u8,
        named: Named,
        begins: bool,
    },
    Beat {
        id: u8,
        by: u8,
        named: Named,
    },
    Leave {
        id: u8,
        by: u8,
        named: Named,
    },
    /// `judges`: by the silence that it heard itself.
    Sweep {
        judges: bool,
        most: u8,
    },
}

use Step::*;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stands {
    Active,
    Unregistered,
    Lost,
}

/// What is kept of an id.
#[derive(Clone, Debug)]
struct Is {
    stands: Stands,
    incarnation: u64,
    process: Option<u8>,
    is_sealed: bool,
    ttl: u64,
    expires: u64,
    roles: u8,
    seen: u64,
    /// Until when the hash of one that is gone is kept.
    kept: u64,
}

impl Is {
    fn is_active(&self) -> bool {
        self.stands == Stands::Active
    }
}

pub(crate) struct Scene {
    processes: Vec<Instances>,
    asked: Instances,
    judge: Instances,
    all: BTreeMap<u8, Is>,
    /// When each was lost that counts as lost, and until when any does; without the external ones.
    lost: BTreeMap<u8, u64>,
    lost_until: u64,
    /// What was told: the type, the id, the incarnation.
    told: Vec<(String, u8, u64)>,
    broadcast: Tail,
    ended: BTreeSet<(u8, u64)>,
    /// The judge's last look, since when it counts, and in which life of the server.
    heard: Option<(u64, u64, u64)>,
}

fn name(id: u8) -> String {
    format!("w-{id}")
}

fn roles(bits: u8) -> Vec<String> {
    let held = ROLES
        .iter()
        .enumerate()
        .filter(|(bit, _)| bits & (1 << bit) != 0);
    held.map(|(_, role)| (*role).to_owned()).collect()
}

impl Scenario for Scene {
    const NAME: &'static str = "members";
    const SHARE: u64 = 18;
    // No sum of few of them is near the jump that the judge takes for one: 10 minutes.
    const CLOCK: &'static [i64] = &[
        SECOND,
        7 * MINUTE,
        7 * MINUTE,
        7 * MINUTE,
        7 * MINUTE,
        -7 * MINUTE,
        26 * MINUTE,
        -26 * MINUTE,
        HOUR,
        HOUR,
        -HOUR,
        DAY,
        -DAY,
    ];
    type Step = Step;

    fn steps() -> BoxedStrategy<Step> {
        let (id, by) = (|| 0..IDS, || 0..=PROCESSES);
        let named = || prop_oneof![4 => Just(Named::Nothing), 2 => Just(Named::Last), 1 => Just(Named::Wrong)];
        let register = (
            id(),
            by(),
            0..TTLS.len() as u8,
            0..4u8,
            named(),
            any::<bool>(),
        )
            .prop_map(|(id, by, ttl, roles, named, begins)| Register {
                id,
                by,
                ttl,
                roles,
                named,
                begins,
            });
        let most = prop_oneof![Just(1u8), Just(16)];
        prop_oneof![
            6 => register,
            5 => (id(), by(), named()).prop_map(|(id, by, named)| Beat { id, by, named }),
            1 => (id(), by(), named()).prop_map(|(id, by, named)| Leave { id, by, named }),
            6 => (any::<bool>(), most).prop_map(|(judges, most)| Sweep { judges, most }),
        ]
        .boxed()
    }

    fn begin(world: &World) -> Self {
        let of = |process: u8| {
            let (connector, keys) = (world.connector.clone(), world.keys.clone());
            Instances::of_process(connector, keys, &format!("p-{process}"))
        };
        Self {
            processes: (0..PROCESSES).map(of).collect(),
            asked: Instances::new(world.connector.clone(), world.keys.clone()),
            judge: of(PROCESSES).judging_by(Answers::new(JUDGED)),
            all: BTreeMap::new(),
            lost: BTreeMap::new(),
            lost_until: 0,
            told: Vec::new(),
            broadcast: Tail::default(),
            ended: BTreeSet::new(),
            heard: None,
        }
    }

    async fn take(&mut self, world: &mut World, step: &Step, lost: bool) {
        for _ in 0..1 + u8::from(lost) {
            match *step {
                Register { .. } => self.register(world, step).await,
                Beat { .. } => self.beat(world, step).await,
                Leave { .. } => self.leave(world, step).await,
                Sweep { judges, most } => self.sweep(world, judges, most).await,
            }
        }
    }

    async fn check(&mut self, world: &mut World) {
        let (now, keys) = (world.now, world.keys.clone());
        self.all.retain(|_, is| is.is_active() || is.kept >= now);
        if self.lost_until < now {
            self.lost.clear();
        }
        let mut pipe = redis::pipe();
        pipe.cmd("EXISTS").arg(keys.lost()).ignore();
        self.broadcast.ask(&mut pipe, &keys.broadcast());
        pipe.cmd("ZRANGE")
            .arg(keys.active())
            .arg(&["0", "-1", "WITHSCORES"]);
        pipe.cmd("ZRANGE")
            .arg(keys.external())
            .arg(&["0", "-1", "WITHSCORES"]);
        for role in ROLES {
            pipe.cmd("SMEMBERS").arg(keys.role(role));
        }
        let hashes = (0..IDS).map(|id| keys.instance(&name(id)));
        for hash in hashes {
            pipe.cmd("HMGET").arg(hash).arg(&["status", "incarnation"]);
        }
        type Scores = HashMap<String, u64>;
        type Hash = (Option<String>, Option<u64>);
        let (facts, active, external, gpu, worker, a, b, c, d): (
            redis::Value,
            Scores,
            Scores,
            BTreeSet<String>,
            BTreeSet<String>,
            Hash,
            Hash,
            Hash,
            Hash,
        ) = world.look(&pipe).await;
        let facts = self
            .broadcast
            .read(facts)
            .into_iter()
            .map(|entry| fact(&entry));
        let facts = facts.map(|(kind, data)| {
            let id = data["id"].as_str().unwrap()[2..].parse().unwrap();
            (kind, id, data["incarnation"].as_u64().unwrap())
        });
        assert_eq!(
            facts.collect::<Vec<(String, u8, u64)>>(),
            self.told,
            "what was told"
        );
        self.told.clear();
        let is = |matches: &dyn Fn(&Is) -> bool| {
            let found = self
                .all
                .iter()
                .filter(|(_, is)| is.is_active() && matches(is));
            found
                .map(|(id, is)| (name(*id), is.expires))
                .collect::<Scores>()
        };
        assert_eq!(active, is(&|_| true), "the active ones");
        assert_eq!(external, is(&|is| !is.is_sealed), "the external ones");
        for (bit, members) in [gpu, worker].iter().enumerate() {
            let held = is(&|is| is.roles & (1 << bit) != 0).into_keys().collect();
            assert_eq!(members, &held, "who holds {}", ROLES[bit]);
        }
        for (id, hash) in [a, b, c, d].into_iter().enumerate() {
            let is = self.all.get(&(id as u8));
            let status = is.map(|is| match is.stands {
                Stands::Active => "active".to_owned(),
                Stands::Unregistered => "unregistered".to_owned(),
                Stands::Lost => "lost".to_owned(),
            });
            assert_eq!(
                hash,
                (status, is.map(|is| is.incarnation)),
                "the hash of w-{id}"
            );
        }
    }

    async fn end(&mut self, world: &mut World) {
        let census = self.asked.census().await.unwrap();
        let now = world.now;
        let count = |matches: &dyn Fn(&Is) -> bool| {
            let found = self.all.values().filter(|is| is.is_active() && matches(is));
            found.count() as u64
        };
        assert_eq!(census.active, count(&|is| is.is_sealed && is.expires > now));
        assert_eq!(
            census.expired,
            count(&|is| is.is_sealed && is.expires <= now)
        );
        assert_eq!(
            census.external,
            count(&|is| !is.is_sealed && is.expires > now)
        );
        let recently = RECENTLY.as_millis() as u64;
        let lost = self
            .lost
            .values()
            .filter(|at| **at + recently > now && **at <= now + recently);
        assert_eq!(census.recently_lost, lost.count() as u64);
    }
}
