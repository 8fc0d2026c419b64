//! Pulses by way of a collector: pattern *hybrid* of `system.heartbeat`.
//!
//! A worker adds its pulse to one stream, and looks in the same round trip whether its last one was written: two
//! cheap commands in the place of a script. The leader reads the stream and writes the pulses of many in one step.
//! Who does not see its pulse written within half its ttl pulses by itself, so a collector that died, hangs, or never
//! was costs nobody its lease; and every sixth pulse is one of its own, with what it did since.

use super::{Instances, or_empty};
use crate::connect::clock::ServerTime;
use crate::connect::script::script_with;
use crate::connect::silence::Answers;
use crate::coordination::bounds::check_id;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::gossip::Peer;
use crate::coordination::scripts::VERSION;
use crate::protocol::event::Entry;
use crate::streams::read::entries_of;
use redis::{Script, Value};
use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Duration;

/// Pulses that the stream keeps, or so: more than wait for a collector that is there.
const KEPT: usize = 4096;
/// Pulses that one look reads, the latest first; those before them had the time to be written.
const READ: usize = 2048;
/// Pulses that one step writes.
pub const TOGETHER: usize = 64;
/// How long the stream outlives the last look.
const LASTS: Duration = Duration::from_secs(3600);

static COLLECT: LazyLock<Script> =
    LazyLock::new(|| script_with(&[VERSION], include_str!("collect_pulses.lua")));

/// How things stood when a pulse was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// How long the instance's last written pulse still keeps it alive; `None`: it is not active, or another process
    /// has its id.
    pub left: Option<Duration>,
    /// The same of the peers that were asked for.
    pub watch: Vec<Peer>,
}

/// A pulse on its way.
struct Waiting {
    id: String,
    incarnation: String,
    process: String,
    load: String,
    sent: u64,
}

impl Waiting {
    /// `None` for what is no pulse, or no sign of life.
    fn of(entry: &Entry) -> Option<Self> {
        let text = |name| Some(std::str::from_utf8(entry.get(name)?).ok()?.to_owned());
        // Run later than it was waited for, it says nothing of who lives.
        let until = text("until")?;
        if until.parse().is_ok_and(|until: u64| entry.id.ms > until) {
            return None;
        }
        let id = text("id")?;
        check_id("id", &id).ok()?;
        Some(Self {
            id,
            incarnation: text("incarnation")?,
            process: text("process")?,
            load: text("load")?,
            sent: entry.id.ms,
        })
    }
}

impl Instances {
    /// Sends a pulse of this process's instance to whoever collects them, and looks how long its last one still lasts.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn send_pulse(
        &self,
        id: &str,
        incarnation: u64,
        load: f64,
        peers: &[String],
    ) -> Result<Sent, CoordinationError> {
        let keys = &self.store.keys;
        let mut pulse = redis::pipe();
        self.store.ask_time(&mut pulse).await?;
        // Where another process took the id, the pulses that are written are that one's.
        let holder = pulse.cmd("HGET").arg(keys.instance(id));
        holder.arg("process");
        let look = pulse.cmd("ZMSCORE").arg(keys.active());
        look.arg(id).arg(peers);
        let send = pulse.cmd("XADD").arg(keys.pulses());
        send.arg(&["MAXLEN", "~"]).arg(KEPT).arg("*");
        // Adding 0 makes -0 a plain 0.
        send.arg("id").arg(id).arg("incarnation").arg(incarnation);
        send.arg("process").arg(self.process());
        send.arg("load").arg((load + 0.0).to_string());
        let until = self.answers.as_ref().and_then(Answers::until);
        send.arg("until").arg(or_empty(until)).ignore();
        let (ServerTime(now), holder, expiries): (_, Option<String>, Vec<Option<f64>>) =
            self.store.ask(&pulse).await?;
        let mut left = expiries.into_iter().map(|expires| {
            let left = expires? - now as f64;
            (left > 0.0).then(|| Duration::from_millis(left as u64))
        });
        let own = left.next().flatten();
        let own = own.filter(|_| holder.as_deref() == Some(self.process()));
        let watch = peers.iter().zip(left).map(|(peer, left)| Peer {
            id: peer.clone(),
            left: left.unwrap_or_default(),
        });
        Ok(Sent {
            left: own,
            watch: watch.collect(),
        })
    }

    /// Writes the pulses that were sent after `after`, an id of the stream, or within that time where nothing was sent yet;
    /// returns the id behind which the next look begins, and how many counted.
    ///
    /// # Errors
    /// `Bus`. Then the same look can be repeated.
    pub async fn collect_pulses(
        &self,
        after: Option<String>,
        within: Duration,
    ) -> Result<(Option<String>, u64), CoordinationError> {
        let keys = &self.store.keys;
        let after = match after {
            Some(after) => format!("({after}"),
            None => {
                let now = self.store.now().await?;
                let within = within.as_millis() as u64;
                now.saturating_sub(within).to_string()
            }
        };
        let mut read = redis::pipe();
        read.cmd("XREVRANGE").arg(keys.pulses());
        read.arg("+").arg(&after).arg("COUNT").arg(READ);
        read.cmd("PEXPIRE").arg(keys.pulses());
        read.arg(LASTS.as_millis() as u64).ignore();
        let (reply,): (Value,) = self.store.ask(&read).await?;
        let entries = entries_of(reply)?;
        let Some(last) = entries.first() else {
            let same = after.strip_prefix('(').map(str::to_owned);
            return Ok((same, 0));
        };
        let next = last.id.to_string();
        let mut seen = HashSet::new();
        let waiting = entries.iter().filter_map(Waiting::of);
        let latest: Vec<Waiting> = waiting.filter(|one| seen.insert(one.id.clone())).collect();
        let mut counted = 0;
        for some in latest.chunks(TOGETHER) {
            let mut call = COLLECT.prepare_invoke();
            call.key(keys.active())
                .key(keys.suspects())
                .key(keys.state());
            for one in some {
                call.key(keys.instance(&one.id)).key(keys.reports(&one.id));
                call.arg(&one.id)
                    .arg(&one.incarnation)
                    .arg(&one.process)
                    .arg(one.sent)
                    .arg(&one.load);
            }
            counted += self.store.invoke::<u64>(&call).await?;
        }
        Ok((Some(next), counted))
    }
}
