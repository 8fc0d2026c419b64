//! Looking at the instances: counts, lists, who can do what.

mod members;
mod readers;

pub use members::Member;
pub use readers::{Capable, LOOKED_AT, READS, Reader};

use crate::connect::clock::ServerTime;
use crate::connect::clock::whole_ms;
use crate::connect::error::BusError;
use crate::connect::script::script_with;
use crate::coordination::answer::answer;
use crate::coordination::bounds::check_id;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::instance::Instance;
use crate::coordination::instances::{Instances, RECENTLY};
use crate::coordination::scripts::SUSPECTS;
use crate::protocol::event::Entry;
use redis::Script;
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;
use std::time::Duration;

pub(crate) static CENSUS: LazyLock<Script> =
    LazyLock::new(|| script_with(&[SUSPECTS], include_str!("census.lua")));
/// Hashes read in one round trip. What they hold is bounded, so this bounds the answer.
const PAGE: usize = 250;
/// Ids asked about in one round trip.
const ASKED: usize = 1000;
/// How many instances there are, at one moment of the server's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// The moment, in Unix ms.
    pub at: u64,
    /// Instances that are alive.
    pub active: u64,
    /// Active instances that a peer suspects.
    pub suspect: u64,
    /// Expired instances that were not swept yet.
    pub expired: u64,
    /// Instances that were declared lost within [`RECENTLY`] and did not register again.
    pub recently_lost: u64,
    /// Whether a partition was detected and has not healed yet.
    pub partition: bool,
    /// External instances that are alive. None of the other counts is of external ones.
    pub external: u64,
}

impl Census {
    /// Instances that are alive and that nobody suspects.
    pub fn healthy(&self) -> u64 {
        self.active.saturating_sub(self.suspect)
    }

    /// All that are known: active or lost lately. Who unregistered is not.
    pub fn known(&self) -> u64 {
        self.active + self.expired + self.recently_lost
    }

    /// Whether these numbers make a partition: it begins when fewer than half of the known instances
    /// are healthy, and ends when more than 70 % are.
    pub fn is_partitioned(&self) -> bool {
        match self.partition {
            true => 10 * self.healthy() <= 7 * self.known(),
            false => 2 * self.healthy() < self.known(),
        }
    }
}

/// Whether an instance can be counted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The instance is alive.
    Healthy,
    /// A peer misses it, or its last pulse is too old and it was not declared lost yet.
    Suspect,
    /// The instance was declared lost within [`RECENTLY`] and did not register again.
    Lost,
}

impl Condition {
    /// The name on the bus.
    pub const fn as_str(self) -> &'static str {
        match self {
            Condition::Healthy => "healthy",
            Condition::Suspect => "suspect",
            Condition::Lost => "lost",
        }
    }
}

/// How much is read of each instance. Its reports (observed, metrics) never are: they may be long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// All but its capabilities and metadata.
    Brief,
    /// All, its capabilities and metadata as well.
    Full,
}

const BRIEF: [&str; 12] = [
    "id",
    "roles",
    "capacity",
    "incarnation",
    "ttl_ms",
    "registered_at",
    "started_at",
    "restarts",
    "sealed",
    "last_seen",
    "load",
    "mode",
];
const FULL: [&str; 2] = ["capabilities", "metadata"];

/// The instances that are known, at about one moment of the server's clock.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KnownInstances {
    /// The moment, in Unix ms.
    pub at: u64,
    /// How many are known, listed or not.
    pub total: u64,
    /// Each with its condition, by id: the suspect and the lost, and of the healthy as many as the
    /// limit leaves room for.
    pub listed: Vec<(Condition, Instance)>,
}

/// A census with the ids of expired instances.
pub(crate) struct Named {
    pub leader: Option<String>,
    pub counts: Census,
    /// Expired instances, external ones among them.
    pub expired: u64,
    pub named: Vec<String>,
}

impl Instances {
    /// How long the server takes to answer.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn ping(&self) -> Result<Duration, CoordinationError> {
        Ok(self.store.connector.ping().await?)
    }

    /// The server's time, in Unix ms, where it serves the control plane.
    ///
    /// # Errors
    /// Fails without an answer.
    pub async fn server_time(&self) -> Result<u64, BusError> {
        self.store.now_if_served().await
    }

    /// Counts the instances.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn census(&self) -> Result<Census, CoordinationError> {
        Ok(self.census_naming(0).await?.counts)
    }

    /// The id of the current leader.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn leader(&self) -> Result<Option<String>, CoordinationError> {
        Ok(self.census_naming(0).await?.leader)
    }

    /// Counts the instances and names that many expired ones, the oldest first.
    pub(crate) async fn census_naming(&self, limit: usize) -> Result<Named, CoordinationError> {
        let mut call = CENSUS.prepare_invoke();
        call.key(self.store.keys.active())
            .key(self.store.keys.lost())
            .key(self.store.keys.suspects())
            .key(self.store.keys.partition())
            .key(self.store.keys.leader())
            .key(self.store.keys.external())
            .arg(limit)
            .arg(whole_ms(RECENTLY));
        let counted: Counted = self.store.invoke(&call).await?;
        Ok(Named {
            leader: counted.leader,
            expired: counted.expired + counted.expired_external,
            counts: Census {
                at: counted.at,
                active: counted.active,
                suspect: counted.suspect,
                expired: counted.expired,
                recently_lost: counted.recently_lost,
                partition: counted.partition,
                external: counted.external,
            },
            named: counted.named,
        })
    }

    /// The instances that are alive, in the order of their expiry.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn list(&self) -> Result<Vec<Instance>, CoordinationError> {
        let now = self.store.now().await?;
        let mut alive = redis::pipe();
        alive
            .cmd("ZRANGEBYSCORE")
            .arg(self.store.keys.active())
            .arg(format!("({now}"))
            .arg("+inf");
        alive
            .cmd("ZRANGEBYSCORE")
            .arg(self.store.keys.suspects())
            .arg(format!("({now}"))
            .arg("+inf");
        let (ids, suspects): (Vec<String>, HashSet<String>) = self.store.ask(&alive).await?;
        let mut instances = Vec::with_capacity(ids.len());
        for page in ids.chunks(PAGE) {
            let mut reads = redis::pipe();
            for id in page {
                reads.cmd("HGETALL").arg(self.store.keys.instance(id));
            }
            let hashes: Vec<HashMap<String, Vec<u8>>> = self.store.ask(&reads).await?;
            instances.extend(hashes.into_iter().filter_map(Instance::from_hash));
        }
        for instance in &mut instances {
            instance.suspect = suspects.contains(&instance.id);
        }
        Ok(instances)
    }

    /// The instances that are known: alive, expired, or lost within [`RECENTLY`]; at most `limit`.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn known(
        &self,
        detail: Detail,
        limit: usize,
    ) -> Result<KnownInstances, CoordinationError> {
        let now = self.store.now().await?;
        let recently = now.saturating_sub(whole_ms(RECENTLY));
        let mut reads = redis::pipe();
        let active = self.store.keys.active();
        let lost = self.store.keys.lost();
        let lost_external = self.store.keys.lost_external();
        let soon = (now + whole_ms(RECENTLY)).to_string();
        for (key, least, most) in [
            (&lost, format!("({recently}"), soon.clone()),
            (&lost_external, format!("({recently}"), soon),
            (&active, "-inf".to_owned(), now.to_string()),
            (&active, format!("({now}"), "+inf".to_owned()),
        ] {
            let page = [0, limit];
            reads.cmd("ZRANGEBYSCORE").arg(key).arg(&least).arg(&most);
            reads.arg("LIMIT").arg(&page);
            reads.cmd("ZCOUNT").arg(key).arg(least).arg(most);
        }
        reads
            .cmd("ZRANGEBYSCORE")
            .arg(self.store.keys.suspects())
            .arg(format!("({now}"))
            .arg("+inf");
        let lists: Lists = self.store.ask(&reads).await?;
        let total = lists.all_lost + lists.all_lost_external + lists.all_expired + lists.all_alive;
        let alive = lists.alive.into_iter();
        let (suspect, healthy): (Vec<String>, Vec<String>) =
            alive.partition(|id| lists.suspects.contains(id));
        let ids: Vec<(Condition, String)> = [
            (Condition::Suspect, lists.expired),
            (Condition::Suspect, suspect),
            (Condition::Lost, lists.lost),
            (Condition::Lost, lists.lost_external),
            (Condition::Healthy, healthy),
        ]
        .into_iter()
        .flat_map(|(condition, ids)| ids.into_iter().map(move |id| (condition, id)))
        .take(limit)
        .collect();
        let mut fields = BRIEF.to_vec();
        if detail == Detail::Full {
            fields.extend(FULL);
        }
        let mut listed = Vec::with_capacity(ids.len());
        for page in ids.chunks(PAGE) {
            let mut reads = redis::pipe();
            for (_, id) in page {
                reads
                    .cmd("HMGET")
                    .arg(self.store.keys.instance(id))
                    .arg(&fields);
            }
            let values: Vec<Vec<Option<Vec<u8>>>> = self.store.ask(&reads).await?;
            for ((condition, id), values) in page.iter().zip(values) {
                let named = fields.iter().zip(values);
                let hash = named.filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
                let mut instance = Instance::read(hash.collect());
                // Somebody may have deleted the hash.
                instance.id = id.clone();
                listed.push((*condition, instance));
            }
        }
        listed.sort_by(|(_, a), (_, b)| a.id.cmp(&b.id));
        Ok(KnownInstances {
            at: now,
            total,
            listed,
        })
    }

    /// The ids that are alive, in the order given.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn active_among(&self, ids: &[String]) -> Result<Vec<String>, CoordinationError> {
        let mut alive = Vec::new();
        for page in ids.chunks(ASKED) {
            let mut reads = redis::pipe();
            self.store.ask_time(&mut reads).await?;
            reads.cmd("ZMSCORE").arg(self.store.keys.active()).arg(page);
            let (ServerTime(now), expiries): (_, Vec<Option<f64>>) = self.store.ask(&reads).await?;
            let now = now as f64;
            let pairs = page.iter().zip(expiries);
            let living = pairs.filter(|(_, expires)| expires.is_some_and(|at| at > now));
            alive.extend(living.map(|(id, _)| id.clone()));
        }
        Ok(alive)
    }

    /// The ids that were lost or unregistered lately and have not come back; an id that was
    /// never registered is not among them.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn gone_among(&self, ids: &[String]) -> Result<Vec<String>, CoordinationError> {
        self.among(ids, &["lost", "unregistered"]).await
    }

    /// The ids that unregistered lately and have not come back: their processes end.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn left_among(&self, ids: &[String]) -> Result<Vec<String>, CoordinationError> {
        self.among(ids, &["unregistered"]).await
    }

    async fn among(&self, ids: &[String], are: &[&str]) -> Result<Vec<String>, CoordinationError> {
        let mut found = Vec::new();
        for page in ids.chunks(ASKED) {
            let mut reads = redis::pipe();
            for id in page {
                reads
                    .cmd("HGET")
                    .arg(self.store.keys.instance(id))
                    .arg("status");
            }
            let statuses: Vec<Option<String>> = self.store.ask(&reads).await?;
            let pairs = page.iter().zip(statuses);
            let those = pairs.filter(|(_, status)| {
                let status = status.as_deref();
                status.is_some_and(|status| are.contains(&status))
            });
            found.extend(those.map(|(id, _)| id.clone()));
        }
        Ok(found)
    }
}

/// Whether a fact says that an instance came or left.
pub fn is_of_members(fact: &Entry) -> bool {
    let kind = fact.get("type").unwrap_or_default();
    kind == b"instance.registered" || kind == b"instance.unregistered" || kind == b"instance.lost"
}

/// Who is gone according to a fact of the broadcast; `None` if that is not what it says.
pub fn gone_in(fact: &Entry) -> Option<String> {
    #[derive(Deserialize)]
    struct Gone {
        id: String,
    }
    if !matches!(
        fact.get("type"),
        Some(b"instance.lost" | b"instance.unregistered")
    ) {
        return None;
    }
    let gone: Gone = rmp_serde::from_slice(fact.get("data")?).ok()?;
    check_id("id", &gone.id).ok()?;
    Some(gone.id)
}

answer! {
    /// What `census.lua` answers.
    struct Counted {
        at: u64,
        active: u64,
        expired: u64,
        recently_lost: u64,
        named: Vec<String>,
        suspect: u64,
        partition: bool,
        leader: Option<String>,
        external: u64,
        expired_external: u64,
    }
}

answer! {
    /// Who is known, each list with how many there are of it.
    struct Lists {
        lost: Vec<String>,
        all_lost: u64,
        lost_external: Vec<String>,
        all_lost_external: u64,
        expired: Vec<String>,
        all_expired: u64,
        alive: Vec<String>,
        all_alive: u64,
        suspects: HashSet<String>,
    }
}
