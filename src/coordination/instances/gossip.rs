//! Gossip: what instances say of each other.
//!
//! A lease says that somebody pulses. Observers say what it cannot: that a peer which is late does
//! not answer either, before its lease has run out.
//!
//! *Who watches whom.* All instances that answer [`PING`] form a ring by their ids. Each heartbeat's
//! answer names the next [`WATCHED`] ones, so each instance is watched by that many others, and the
//! cost of watching is the same for each however many there are. An instance that does not answer
//! pings is not watched; its lease alone decides. Anyone may still report it.
//!
//! *What they see.* How long a peer's lease still lasts; that costs nothing, since the heartbeat's
//! answer says it. Only a peer that is late (half its ttl without a pulse) is sent a ping over its
//! inbox, which its control lane answers, not what pulses. So a suspicion says that two ways are
//! silent. A worker whose handlers block it is not suspect as long as it pulses. Workers say nothing
//! of peers that are in time: those say it themselves. Watching costs three ids in each heartbeat's
//! answer; a late peer costs each of its observers a ping and a report for each pulse that it misses.
//! Every pulse to everyone over the broadcast stream would cost the square of the instances, and push
//! out what others have to read there.
//!
//! *What becomes of it.* An observer has one voice for a peer, which counts until the observer's own
//! ttl has passed and while it is alive. One suspecting voice makes the peer *suspect*. If more than
//! half of the voices and at least two suspect it, its lease ends, and it is declared lost like any
//! other whose lease ended, by the same script. A suspicion ends with a pulse of the peer (which takes back every voice
//! so far), or when those who spoke say otherwise or lapse.
//!
//! *Whose voice counts.* External instances are made up by whoever may write to the control plane's streams,
//! so only what a sealed one's own process says is a voice. One instance alone never ends a lease. Nor does
//! anybody for time in which the server did not answer: after such a gap an observer says nothing of a peer
//! until that could pulse again for a whole ttl ([`crate::connect::silence`]).

use crate::connect::clock::whole_ms;
use crate::connect::script::script_with;
use crate::coordination::bounds::{check_id, invalid, within};
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::instance::MAX_OBSERVED;
use crate::coordination::instances::{Instances, RECENTLY, or_empty};
use crate::coordination::scripts::{SUSPECTS, VERSION};
use redis::Script;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

static UPDATE: LazyLock<Script> =
    LazyLock::new(|| script_with(&[VERSION], include_str!("update_gossip_health.lua")));
static PARTITION: LazyLock<Script> =
    LazyLock::new(|| script_with(&[SUSPECTS], include_str!("partition.lua")));

/// The event that peers send each other to see whether they answer.
pub const PING: &str = "system.ping";
/// Peers that one instance watches.
pub const WATCHED: usize = 3;
/// Observers that are counted for one peer.
const OBSERVERS: usize = 32;
/// Peers of whom one call tells.
const TOLD: usize = 20;

/// What an instance says of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Opinion {
    /// The peer answers, or has pulsed lately.
    Healthy,
    /// The peer has done neither.
    Suspect,
}

/// What an instance says of its peers; at most [`MAX_OBSERVED`].
pub type Observed = BTreeMap<String, Opinion>;

/// A peer that an instance is to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub id: String,
    /// How long its last pulse still keeps it alive.
    pub left: Duration,
}

/// The partition, as the one who looked found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Whether there is one.
    pub is: bool,
    /// Whether there was one before this look. If that differs, this look told everyone.
    pub was: bool,
    /// Instances that are alive and not suspect.
    pub healthy: u64,
    /// All that are known.
    pub total: u64,
}

pub(crate) fn check(observed: &Observed) -> Result<(), CoordinationError> {
    within("observed", observed.len(), MAX_OBSERVED)?;
    for peer in observed.keys() {
        check_id("observed", peer)?;
    }
    Ok(())
}

impl Instances {
    /// Counts what an instance says of its peers, and declares those lost that a majority of their
    /// observers suspects; the answer names the ones that this call declared lost. What an instance
    /// says that is not alive, or of a peer that is not, is ignored.
    ///
    /// # Errors
    /// `Invalid` for too many peers or a malformed id; `Bus` else.
    pub async fn observe(
        &self,
        observer: &str,
        incarnation: Option<u64>,
        observed: &Observed,
    ) -> Result<Vec<String>, CoordinationError> {
        check_id("instance_id", observer)?;
        check(observed)?;
        if observed.is_empty() {
            return Ok(Vec::new());
        }
        let Some(span) = self.span() else {
            return Ok(Vec::new());
        };
        let keys = &self.store.keys;
        let mut expired: Vec<String> = Vec::new();
        for part in observed.iter().collect::<Vec<_>>().chunks(TOLD) {
            let mut call = UPDATE.prepare_invoke();
            call.key(keys.instance(observer))
                .key(keys.active())
                .key(keys.suspects())
                .key(keys.external())
                .key(keys.state())
                .arg(observer)
                .arg(or_empty(incarnation))
                .arg(OBSERVERS)
                .arg(self.process())
                .arg(span.from)
                .arg(span.until);
            for (peer, opinion) in part {
                call.key(keys.reports(peer)).arg(peer).arg(match opinion {
                    Opinion::Healthy => "healthy",
                    Opinion::Suspect => "suspect",
                });
            }
            expired.extend(self.store.invoke::<Vec<String>>(&call).await?);
        }
        let mut lost = Vec::new();
        for peer in expired {
            // If this fails, whoever sweeps next does it.
            if self.lose(&peer, self.span(), false).await?.is_some() {
                lost.push(peer);
            }
        }
        Ok(lost)
    }

    /// The ttl of each of the peers that is registered.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn ttls(&self, peers: &[Peer]) -> Result<Vec<Option<Duration>>, CoordinationError> {
        if peers.is_empty() {
            return Ok(Vec::new());
        }
        let mut reads = redis::pipe();
        for peer in peers {
            let key = self.store.keys.instance(&peer.id);
            reads.cmd("HGET").arg(key).arg("ttl_ms");
        }
        let ttls: Vec<Option<u64>> = self.store.ask(&reads).await?;
        Ok(ttls
            .into_iter()
            .map(|ttl| ttl.map(Duration::from_millis))
            .collect())
    }

    /// Looks whether there is a partition: fewer than half of the known instances healthy, until more
    /// than 70 % are. Each change is told once, by whoever looks first.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn watch_partition(&self) -> Result<Partition, CoordinationError> {
        let keys = &self.store.keys;
        let mut call = PARTITION.prepare_invoke();
        call.key(keys.active())
            .key(keys.lost())
            .key(keys.suspects())
            .key(keys.partition())
            .key(keys.broadcast())
            .key(keys.external())
            .arg(whole_ms(RECENTLY));
        let (is, was, healthy, total) = self.store.invoke(&call).await?;
        Ok(Partition {
            is,
            was,
            healthy,
            total,
        })
    }
}

/// Reads the peers of a heartbeat's answer: names and ms in turn.
pub(crate) fn peers(flat: Vec<String>) -> Result<Vec<Peer>, CoordinationError> {
    let (pairs, _) = flat.as_chunks::<2>();
    let read = |[id, ms]: &[String; 2]| {
        let ms = ms
            .parse()
            .map_err(|_| invalid(format!("peer {id}: {ms}")))?;
        Ok(Peer {
            id: id.clone(),
            left: Duration::from_millis(ms),
        })
    };
    pairs.iter().map(read).collect()
}
