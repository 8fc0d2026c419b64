//! A Redis Cluster: which node has a slot, and noticing that another one has it now.
//!
//! Some nodes are asked at once for their map; of the answers the one with the highest epoch of the cluster holds: a
//! node that was cut off still tells what was. A map is asked for whenever a connection is made, at most once in
//! [`FRESH`], and every second as long as anyone holds connections: a primary that stands still does not tell its
//! clients that another one took its place. So whoever is told `MOVED` drops its connection, asks for another one,
//! and is led to the right node.
//!
//! The *generation* of a slot is the number of its node: a connection that was made in another one is not used any
//! more.

pub(super) mod family;
mod map;
pub(crate) mod pooled;
mod routing;

use self::map::{Address, SlotMap};
use super::cluster_url::ClusterUrl;
use super::sentinel::{Primary, endpoint};
use super::url::{RedisUrl, settings};
use crate::connect::error::{BusError, Reaction};
use crate::connect::opening::Opening;
use crate::connect::resp::wire::{Commands, Token, Wire};
use crate::connect::socket::{CONNECT, tcp_settings};
use crate::connect::tls::Tls;
use crate::mutex::locked;
use crate::protocol::keys::SLOTS;
use futures_util::stream::{FuturesUnordered, StreamExt};
use redis::{ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

/// How long a node may take to answer, connecting included. One that is newly connected to has twice as long after each
/// time that this was too short for it, up to [`CONNECT`]: it may be far, or busy with handshakes.
const ASK: Duration = Duration::from_millis(500);
/// How long the others are waited for when more than half have answered.
const GRACE: Duration = Duration::from_millis(50);
/// How many nodes are asked at a time.
const ASKED: usize = 5;
/// For how long an answer is good enough for the next who asks.
const FRESH: Duration = Duration::from_millis(100);
/// How often nodes are asked while nothing else asks them.
const LOOK: Duration = Duration::from_secs(1);
/// Nodes that are remembered: a cluster has 1,000 at the most.
const NODES: usize = 4_000;

/// A cluster, as far as it is known.
pub(crate) struct Cluster {
    seeds: Vec<Address>,
    tls: bool,
    certificates: Tls,
    login: RedisConnectionInfo,
    /// Where it stands in a file, that is read again for who logs in.
    url: RedisUrl,
    /// The number of each slot's node, counted from 1; 0: nobody has it, as far as is known.
    owners: Box<[AtomicU16]>,
    known: Mutex<Nodes>,
    asking: tokio::sync::Mutex<Asking>,
    watching: Mutex<Option<JoinHandle<()>>>,
    /// What the tries to ask each node taught.
    openings: Mutex<HashMap<Address, Arc<Opening>>>,
}

#[derive(Default)]
struct Nodes {
    /// All that ever had a slot: their place here is their number.
    seen: Vec<Address>,
    /// The nodes that have slots now.
    primaries: Vec<Address>,
    epoch: u64,
}

/// A node that did not tell.
struct Silent {
    node: String,
    why: String,
    /// Whether it will say the same again: it refuses the credentials, or is no node of a cluster.
    hopeless: bool,
}

/// Why nobody told where the slots are.
#[derive(Clone)]
struct Untold {
    why: String,
    /// Whether all will say the same again.
    hopeless: bool,
}

impl From<Untold> for BusError {
    fn from(untold: Untold) -> Self {
        match untold.hopeless {
            true => BusError::Unsupported(untold.why),
            false => BusError::NoPrimary(untold.why),
        }
    }
}

#[derive(Default)]
struct Asking {
    /// Kept open from one time to the next.
    wires: HashMap<Address, Wire>,
    /// How long those may take that were too slow.
    slow: HashMap<Address, Duration>,
    last: Option<(Instant, Result<(), Untold>)>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cluster")
    }
}

impl Cluster {
    /// The cluster that the URL names; asks nobody yet.
    pub(crate) fn new(parsed: &ClusterUrl, url: &RedisUrl, certificates: Tls) -> Self {
        Self {
            seeds: parsed.nodes.clone(),
            tls: parsed.tls,
            certificates,
            login: settings(&parsed.login),
            url: url.clone(),
            owners: (0..SLOTS).map(|_| AtomicU16::new(0)).collect(),
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            watching: Mutex::default(),
            openings: Mutex::default(),
        }
    }

    /// The number of the slot's node.
    pub(crate) fn generation(&self, slot: u16) -> u64 {
        self.owners[usize::from(slot % SLOTS)]
            .load(Ordering::Acquire)
            .into()
    }

    /// Asks who has the slot.
    pub(crate) async fn primary(self: &Arc<Self>, slot: u16) -> Result<Primary, BusError> {
        self.watch();
        self.look(FRESH).await?;
        let generation = self.generation(slot);
        let address = usize::try_from(generation).ok().and_then(|number| {
            locked(&self.known)
                .seen
                .get(number.checked_sub(1)?)
                .cloned()
        });
        let Some(address) = address else {
            return Err(BusError::NoPrimary(format!(
                "no node of the cluster has slot {slot}"
            )));
        };
        let info = self.info(&address)?.set_tcp_settings(tcp_settings());
        Ok(Primary { info, generation })
    }

    /// A slot of each node that has any.
    pub(crate) async fn slot_of_each(self: &Arc<Self>) -> Result<Vec<u16>, BusError> {
        self.look(FRESH).await?;
        let mut first: HashMap<u16, u16> = HashMap::new();
        for (slot, owner) in (0..SLOTS).zip(&self.owners) {
            match owner.load(Ordering::Acquire) {
                0 => {}
                owner => _ = first.entry(owner).or_insert(slot),
            }
        }
        let mut slots: Vec<u16> = first.into_values().collect();
        slots.sort_unstable();
        Ok(slots)
    }

    /// How many slots nobody has, as far as is known.
    pub(super) fn nobodys(&self) -> usize {
        let owners = self.owners.iter();
        owners
            .filter(|owner| owner.load(Ordering::Acquire) == 0)
            .count()
    }

    fn info(&self, (host, port): &Address) -> Result<ConnectionInfo, BusError> {
        let info = endpoint(self.tls, host, *port).into_connection_info()?;
        let info = info.set_redis_settings(self.login.clone());
        Ok(self.url.renewed(&info).unwrap_or(info))
    }

    /// Asks, and notes what it finds. Those who ask while others ask share the answer, and so do those who
    /// come within `fresh` after one that could be used.
    async fn look(&self, fresh: Duration) -> Result<(), Untold> {
        let asked = Instant::now();
        let mut asking = self.asking.lock().await;
        if let Some((at, answer)) = &asking.last
            && (*at >= asked || answer.is_ok() && at.elapsed() < fresh)
        {
            return answer.clone();
        }
        let nodes = self.whom_to_ask();
        let count = nodes.len();
        let voices = self.ask_all(nodes, &mut asking).await;
        let answer = self.judge(voices, count);
        asking.last = Some((Instant::now(), answer.clone()));
        answer
    }

    /// Some that have slots, and the seeds as far as there is room: a cluster may have moved away from all else.
    fn whom_to_ask(&self) -> Vec<Address> {
        let mut known = locked(&self.known).primaries.clone();
        fastrand::shuffle(&mut known);
        let mut seeds = self.seeds.clone();
        fastrand::shuffle(&mut seeds);
        let mut nodes: Vec<Address> = Vec::with_capacity(ASKED);
        // One place is kept for a seed.
        let most = if known.is_empty() { ASKED } else { ASKED - 1 };
        for node in known.into_iter().take(most).chain(seeds) {
            if nodes.len() < ASKED && !nodes.contains(&node) {
                nodes.push(node);
            }
        }
        nodes
    }

    /// Asks all at once; not longer than it takes to be sure.
    async fn ask_all(
        &self,
        nodes: Vec<Address>,
        asking: &mut Asking,
    ) -> Vec<Result<SlotMap, Silent>> {
        let Asking { wires, slow, .. } = asking;
        let (count, began) = (nodes.len(), Instant::now());
        if slow.len() >= NODES {
            slow.clear();
        }
        // Who knows nothing yet has nothing to go on with, and waits as for one server.
        let at_first = match locked(&self.known).seen.is_empty() {
            true => CONNECT,
            false => ASK,
        };
        let mut kept = std::mem::take(wires);
        let mut pending: FuturesUnordered<_> = nodes
            .into_iter()
            .map(|address| {
                let wire = kept.remove(&address);
                let limit = match wire {
                    Some(_) => ASK,
                    None => slow.get(&address).copied().unwrap_or(at_first),
                };
                async move {
                    let asked = timeout(limit, self.ask(&address, wire, limit)).await;
                    (address, limit, asked)
                }
            })
            .collect();
        let mut voices = Vec::with_capacity(count);
        let mut until = None;
        loop {
            let next = match until {
                None => pending.next().await,
                Some(until) => timeout_at(until, pending.next()).await.ok().flatten(),
            };
            let Some((address, limit, answer)) = next else {
                return voices;
            };
            let (host, port) = &address;
            voices.push(match answer {
                Ok(Ok((map, wire))) => {
                    slow.remove(&address);
                    wires.insert(address, wire);
                    Ok(map)
                }
                Ok(Err(error)) => Err(Silent {
                    node: format!("{host}:{port}"),
                    why: error.to_string(),
                    hopeless: error.reaction() == Reaction::GiveUp,
                }),
                Err(_) => {
                    let why = format!("no answer within {} ms", limit.as_millis());
                    let silent = Silent {
                        node: format!("{host}:{port}"),
                        why,
                        hopeless: false,
                    };
                    slow.insert(address, (2 * limit).min(CONNECT));
                    Err(silent)
                }
            });
            let told = voices.iter().filter(|voice| voice.is_ok()).count();
            let grace = Instant::now() + GRACE;
            if told > count / 2 {
                until = Some(until.map_or(grace, |until: Instant| until.min(grace)));
            } else if told > 0 && until.is_none() {
                // The others have no longer than they had before they were slow.
                until = Some(grace.max(began + ASK));
            }
        }
    }

    /// Asks one, on the connection that was kept, or else on a new one.
    async fn ask(
        &self,
        address: &Address,
        kept: Option<Wire>,
        limit: Duration,
    ) -> Result<(SlotMap, Wire), BusError> {
        if let Some(mut wire) = kept
            && let Ok(map) = self.ask_on(&mut wire, &address.0).await
        {
            return Ok((map, wire));
        }
        let info = self.info(address)?;
        // The limit of this whole try is shorter, and says more.
        let wire = Box::pin(Wire::open(&info, &self.certificates, 2 * limit));
        let (opening, login) = (self.opening_of(address), self.url.changes());
        let mut wire = opening.open(login, info.addr(), wire).await?;
        let map = self.ask_on(&mut wire, &address.0).await?;
        Ok((map, wire))
    }

    /// A node that refused the credentials is not asked again at once.
    fn opening_of(&self, address: &Address) -> Arc<Opening> {
        let mut openings = locked(&self.openings);
        if openings.len() >= NODES {
            openings.clear();
        }
        openings.entry(address.clone()).or_default().clone()
    }

    async fn ask_on(&self, wire: &mut Wire, host: &str) -> Result<SlotMap, BusError> {
        let mut commands = Commands::default();
        commands.add(&[b"CLUSTER", b"INFO"]);
        commands.add(&[b"CLUSTER", b"SLOTS"]);
        wire.send(&mut commands).await?;
        let epoch = match wire.reply().await?.token()? {
            Token::Bulk(info) => SlotMap::epoch_in(info),
            // Some services do not tell.
            _ => 0,
        };
        let reply = wire.reply().await?;
        if let Token::Error(text) = reply.clone().token()? {
            return Err(match text.starts_with(b"ERR This instance has cluster") {
                true => BusError::Unsupported(
                    "the server is not in cluster mode: write redis:// or rediss:// for it".into(),
                ),
                false => crate::connect::resp::wire::server_error(text),
            });
        }
        let map = SlotMap::parse(reply, host, self.tls)?;
        Ok(SlotMap { epoch, ..map })
    }

    /// Notes the answer that holds.
    fn judge(&self, voices: Vec<Result<SlotMap, Silent>>, asked: usize) -> Result<(), Untold> {
        let (mut maps, mut failed) = (Vec::new(), Vec::new());
        for voice in voices {
            match voice {
                Ok(map) if map.rows.is_empty() => failed.push(Silent {
                    node: "a node".to_owned(),
                    why: "it knows no slots".to_owned(),
                    hopeless: false,
                }),
                Ok(map) => maps.push(map),
                Err(error) => failed.push(error),
            }
        }
        let told = maps.len();
        let Some(newest) = maps.into_iter().max_by_key(|map| map.epoch) else {
            // Who has known where the slots are goes on: a password may be on its way to the nodes.
            let hopeless = !self.is_known() && failed.iter().all(|silent| silent.hopeless);
            let why = each_once(failed);
            return Err(Untold {
                why: format!("no node tells where the slots are: {why}"),
                hopeless,
            });
        };
        let mut known = locked(&self.known);
        // A few that were cut off know only of what was; most of them may have been set up again.
        if newest.epoch < known.epoch && told * 2 <= asked {
            return Err(Untold {
                why: format!(
                    "{told} of {asked} nodes of the cluster answer, with older news than was known"
                ),
                hopeless: false,
            });
        }
        known.epoch = newest.epoch;
        self.note(&newest, &mut known);
        Ok(())
    }

    fn note(&self, map: &SlotMap, known: &mut Nodes) {
        known.primaries.clear();
        let mut had: Vec<bool> = vec![false; usize::from(SLOTS)];
        for (slots, address) in &map.rows {
            if !known.primaries.contains(address) {
                known.primaries.push(address.clone());
            }
            let number = match known.seen.iter().position(|seen| seen == address) {
                Some(at) => at + 1,
                None if known.seen.len() < NODES => {
                    known.seen.push(address.clone());
                    known.seen.len()
                }
                None => 0,
            };
            // It is at most NODES.
            let number = u16::try_from(number).unwrap_or(0);
            for slot in slots.clone() {
                had[usize::from(slot)] = true;
                self.owners[usize::from(slot)].store(number, Ordering::Release);
            }
        }
        for (owner, had) in self.owners.iter().zip(had) {
            if !had {
                owner.store(0, Ordering::Release);
            }
        }
    }

    /// Whether any map was ever told. Who asks without one is told why by itself.
    fn is_known(&self) -> bool {
        !locked(&self.known).seen.is_empty()
    }

    /// Sees to it that nodes are asked every now and then, as long as anyone holds this.
    fn watch(self: &Arc<Self>) {
        let mut watching = locked(&self.watching);
        // Another runtime may have ended, and with it what ran there.
        if watching.as_ref().is_none_or(JoinHandle::is_finished) {
            *watching = Some(tokio::spawn(watch(Arc::downgrade(self))));
        }
    }
}

/// The nodes that did not tell, by their reasons: often all have the same one.
fn each_once(failed: Vec<Silent>) -> String {
    let mut reasons: Vec<(String, Vec<String>)> = Vec::new();
    for Silent { node, why, .. } in failed {
        match reasons.iter_mut().find(|(known, _)| *known == why) {
            Some((_, nodes)) => nodes.push(node),
            None => reasons.push((why, vec![node])),
        }
    }
    let told = |(why, nodes): (String, Vec<String>)| format!("{}: {why}", nodes.join(", "));
    let told: Vec<String> = reasons.into_iter().map(told).collect();
    told.join("; ")
}

async fn watch(cluster: Weak<Cluster>) {
    let mut silent = false;
    loop {
        tokio::time::sleep(LOOK.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
        let Some(cluster) = cluster.upgrade() else {
            return;
        };
        let looked = cluster.look(Duration::ZERO).await;
        if let (Err(Untold { why, .. }), false, true) = (&looked, silent, cluster.is_known()) {
            tracing::warn!(error = %why, "the slots cannot be looked up; connections stay as they are");
        }
        silent = looked.is_err();
    }
}
