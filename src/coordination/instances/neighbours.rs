//! Who lives by what its neighbours find: pattern *distributed* of `system.heartbeat`.
//!
//! A worker's own pulse lasts for [`LASTS`] ttls, so it writes one in two of them. Meanwhile those who watch it ask it
//! over its inbox, every third of a ttl, whether it lives: it is lost when it answered none of a majority of them for
//! more than a ttl. So who is lost is decided by its neighbours, and the lease is for those whose neighbours died with them.
//!
//! *What is asked is the inbox, and what pulses is another thread.* A worker asks itself, too. Where it has no answer
//! (its lanes are held, or they have lost their way to the server) it pulses by itself in that round, and in each one
//! until it has.
//!
//! *One that lives is warned first.* A neighbour that has had no answer twice only marks it as suspect. Whoever finds
//! itself suspect in its next round pulses, which ends that, and all that was said of it. A neighbour's voice follows
//! two thirds of a ttl later, if there was neither an answer nor a pulse meanwhile. So one that lives is lost only if
//! both ways are silent, as in each pattern: its lanes, and the thread that pulses.
//!
//! *Who is near* is looked up in each round, so one that comes is watched in the next one.

use super::Instances;
use crate::connect::clock::{ServerTime, whole_ms};
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::gossip::{PING, WATCHED};
use redis::Value;
use std::time::Duration;

/// For how many ttls a pulse lasts where neighbours ask.
pub const LASTS: u32 = 3;
/// How many neighbours there must be: fewer cannot end anybody's lease.
pub const LEAST: usize = 2;

/// What an instance sees around itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// How long its last own pulse still keeps it alive; `None`: it is not active, or another process has its id.
    pub left: Option<Duration>,
    /// Whether somebody suspects it.
    pub suspect: bool,
    /// The instances that it is to ask, at most [`WATCHED`].
    pub neighbours: Vec<String>,
}

/// An instance as one that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silent {
    /// When its last own pulse was, in Unix ms on the server,
    pub seen: u64,
    /// and how long ago.
    pub time: Duration,
    /// Its ttl.
    pub ttl: Duration,
}

impl Instances {
    /// How long this process's instance still lives, and the next ones in the ring of all that answer [`PING`].
    ///
    /// # Errors
    /// `Bus`.
    pub async fn look_around(&self, id: &str) -> Result<Around, CoordinationError> {
        let keys = &self.store.keys;
        let mut look = redis::pipe();
        self.store.ask_time(&mut look).await?;
        look.cmd("HGET").arg(keys.instance(id)).arg("process");
        look.cmd("ZSCORE").arg(keys.active()).arg(id);
        look.cmd("ZSCORE").arg(keys.suspects()).arg(id);
        let (me, first) = (format!("({PING} {id}"), format!("[{PING} "));
        // '!' follows the space.
        let end = format!("({PING}!");
        for (from, to) in [(&me, &end), (&first, &me)] {
            let next = look.cmd("ZRANGEBYLEX").arg(keys.capabilities());
            next.arg(from).arg(to).arg("LIMIT").arg(0).arg(WATCHED);
        }
        type Seen = (
            ServerTime,
            Option<String>,
            Option<f64>,
            Option<f64>,
            Vec<String>,
            Vec<String>,
        );
        let (ServerTime(now), holder, expires, suspect, after, before): Seen =
            self.store.ask(&look).await?;
        let left = expires.map(|expires| expires - now as f64);
        let left = left.filter(|left| *left > 0.0 && holder.as_deref() == Some(self.process()));
        let ring = after.iter().chain(&before).take(WATCHED);
        let named = ring.filter_map(|member| member.split_once(' '));
        Ok(Around {
            left: left.map(|left| Duration::from_millis(left as u64)),
            suspect: suspect.is_some_and(|until| until > now as f64),
            neighbours: named.map(|(_, id)| id.to_owned()).collect(),
        })
    }

    /// How long each of them has not pulsed by itself; `None` for one that is not registered.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn silent(&self, ids: &[String]) -> Result<Vec<Option<Silent>>, CoordinationError> {
        // Before: nobody seems to be silent for longer than he is.
        let now = self.store.now().await?;
        let mut look = redis::pipe();
        for id in ids {
            let read = look.cmd("HMGET").arg(self.store.keys.instance(id));
            read.arg(&["last_seen", "ttl_ms"]);
        }
        let rest: Vec<(Option<u64>, Option<u64>)> = self.store.ask(&look).await?;
        let silent = |(seen, ttl): (Option<u64>, Option<u64>)| {
            let seen = seen?;
            Some(Silent {
                seen,
                time: Duration::from_millis(now.saturating_sub(seen)),
                ttl: Duration::from_millis(ttl?),
            })
        };
        Ok(rest.into_iter().map(silent).collect())
    }

    /// Marks instances as suspect for one of their ttls, so that they pulse if they live. It is nobody's voice.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn warn(&self, ids: &[(String, Duration)]) -> Result<(), CoordinationError> {
        if ids.is_empty() {
            return Ok(());
        }
        let now = self.store.now().await?;
        let mut mark = redis::pipe();
        let add = mark.cmd("ZADD").arg(self.store.keys.suspects());
        for (id, ttl) in ids {
            add.arg(now + whole_ms(*ttl)).arg(id);
        }
        self.store.ask::<Value>(&mark).await?;
        Ok(())
    }
}
