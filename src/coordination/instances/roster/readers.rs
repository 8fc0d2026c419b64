//! Who has handlers for what, and who reads it in which group.

use super::PAGE;
use crate::connect::clock::{ServerTime, whole_ms};
use crate::connect::script::script;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::Instances;
use crate::coordination::instances::orders::WorkerMode;
use crate::protocol::keys;
use redis::Script;
use std::sync::LazyLock;
use std::time::Duration;

static CAPABLE: LazyLock<Script> = LazyLock::new(|| script(include_str!("../capable.lua")));
static READER: LazyLock<Script> = LazyLock::new(|| script(include_str!("../reader.lua")));
/// How long it is believed that an instance reads what it said.
pub const READS: Duration = Duration::from_secs(3600);
/// Instances with a handler for some type that one look finds at the most.
pub const LOOKED_AT: usize = 128;
/// Domains that are looked for at the most.
const MAX_DOMAINS: usize = 1000;

/// Instances that have a handler for some event type, by id, sorted; at most [`LOOKED_AT`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capable {
    /// Readers that are alive.
    pub alive: Vec<String>,
    /// Readers that missed their pulses and were not declared lost yet. After the server was away, or
    /// failed over to a replica that heard nothing for a while, these are all: that none is alive then
    /// does not mean that nobody reads.
    pub expired: Vec<String>,
}

/// Who can have an event that its reader cannot run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reader {
    /// An instance that reads it and is alive.
    Found(String),
    /// Instances that could have it missed their pulses, and were not declared lost yet; or there are so
    /// many that not all were looked at.
    Late,
    /// Nobody.
    Nobody,
}

impl Instances {
    /// Active instances that have a handler for that event type, in whatever group.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn capable(&self, kind: &str) -> Result<Capable, CoordinationError> {
        let mut call = CAPABLE.prepare_invoke();
        call.key(self.store.keys.capabilities())
            .key(self.store.keys.active())
            .arg(kind)
            .arg(LOOKED_AT);
        let (alive, expired) = self.store.invoke(&call).await?;
        Ok(Capable { alive, expired })
    }

    /// Says that an instance reads the events of these types in a group, and has handlers for them; for
    /// [`READS`], after which it must say so again. A registration alone does not: it may be another
    /// group's, or of a program that takes tasks only.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn reads(
        &self,
        group: &str,
        id: &str,
        kinds: &[String],
    ) -> Result<(), CoordinationError> {
        let now = self.store.now().await?;
        let lasts = whole_ms(READS);
        for page in kinds.chunks(PAGE) {
            let mut writes = redis::pipe();
            for kind in page {
                let readers = self.store.keys.readers(group, kind);
                let add = writes.cmd("ZADD").arg(&readers).arg(now + lasts).arg(id);
                add.ignore();
                let lapsed = writes.cmd("ZREMRANGEBYSCORE").arg(&readers);
                lapsed.arg("-inf").arg(now).ignore();
                writes.cmd("PEXPIRE").arg(readers).arg(lasts).ignore();
            }
            self.store.ask::<()>(&writes).await?;
        }
        Ok(())
    }

    /// An instance, other than `not_it`, that reads the events of a type in that group and has a handler
    /// for it, and for another type where that is needed too.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn reader(
        &self,
        group: &str,
        kind: &str,
        besides: Option<&str>,
        not_it: &str,
    ) -> Result<Reader, CoordinationError> {
        let mut call = READER.prepare_invoke();
        call.key(self.store.keys.active())
            .key(self.store.keys.readers(group, kind));
        if let Some(kind) = besides {
            call.key(self.store.keys.readers(group, kind));
        }
        call.arg(not_it).arg(fastrand::f64()).arg(LOOKED_AT);
        let (found, late): (String, bool) = self.store.invoke(&call).await?;
        Ok(match (found.is_empty(), late) {
            (false, _) => Reader::Found(found),
            (true, true) => Reader::Late,
            (true, false) => Reader::Nobody,
        })
    }

    /// Whether an entry may be handed to an instance: it is alive, does not leave, and reads the events of both types in
    /// that group, and nothing is at the key that counts how often the entry was handed on.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn takes(
        &self,
        id: &str,
        group: &str,
        kinds: [&str; 2],
        handed: &str,
    ) -> Result<bool, CoordinationError> {
        let keys = &self.store.keys;
        let mut look = redis::pipe();
        self.store.ask_time(&mut look).await?;
        look.cmd("EXISTS").arg(handed);
        look.cmd("HGET").arg(keys.instance(id)).arg("mode");
        look.cmd("ZSCORE").arg(keys.active()).arg(id);
        for kind in kinds {
            look.cmd("ZSCORE").arg(keys.readers(group, kind)).arg(id);
        }
        type Found = (
            ServerTime,
            bool,
            Option<Vec<u8>>,
            Option<f64>,
            Option<f64>,
            Option<f64>,
        );
        let (ServerTime(now), handed, mode, lives, reads, besides): Found =
            self.store.ask(&look).await?;
        let mode = mode.and_then(|mode| rmp_serde::from_slice::<WorkerMode>(&mode).ok());
        let leaves = mode.is_some_and(|mode| mode.draining);
        let lasts = |until: Option<f64>| until.is_some_and(|until| until > now as f64);
        Ok(!handed && !leaves && [lives, reads, besides].into_iter().all(lasts))
    }

    /// The domains of the event types that instances have handlers for, sorted. O(log n) for each.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn domains(&self) -> Result<Vec<String>, CoordinationError> {
        let mut domains: Vec<String> = Vec::new();
        let mut from = "-".to_owned();
        while domains.len() < MAX_DOMAINS {
            let mut next = redis::pipe();
            next.cmd("ZRANGEBYLEX")
                .arg(self.store.keys.capabilities())
                .arg(&from)
                .arg(&["+", "LIMIT", "0", "1"]);
            let (found,): (Vec<String>,) = self.store.ask(&next).await?;
            let Some(member) = found.first() else {
                break;
            };
            let domain = keys::domain_of(member.split(' ').next().unwrap_or_default());
            // '/' follows the dot, and no type contains it.
            from = format!("[{domain}/");
            domains.push(domain.to_owned());
        }
        domains.sort_unstable();
        domains.dedup();
        Ok(domains)
    }
}
