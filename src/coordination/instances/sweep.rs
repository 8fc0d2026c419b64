//! Instances whose silence counts are declared lost, and what they held goes to others.

use super::{Instances, KEPT, RECENTLY, TRIES, contended, learn};
use crate::connect::clock::whole_ms;
use crate::connect::script::script;
use crate::connect::silence::CallTime;
use crate::coordination::answer::answer;
use crate::coordination::error::CoordinationError;
use crate::coordination::tasks::assignment::{self, Inboxes};
use redis::Script;
use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Instances that one sweep declares lost at most, so that a sweep is short.
pub const SWEEP: usize = 16;
/// Expiries that one look brings back into reach after the clock went back.
const REACH: usize = 250;
static LOSE: LazyLock<Script> = LazyLock::new(|| assignment::script(include_str!("lose.lua")));
static SHORTEN: LazyLock<Script> = LazyLock::new(|| script(include_str!("shorten.lua")));

/// An instance that was declared lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Its id.
    pub id: String,
    /// The incarnation that is lost; 0 if somebody deleted its hash.
    pub incarnation: u64,
    /// Its last pulse, in Unix ms.
    pub last_seen: u64,
    /// Its tasks that went to others or wait for them.
    pub tasks_reassigned: u64,
}

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// The current leader, before the sweep's own losses.
    pub leader: Option<String>,
    /// The instances that this call, and no other, declared lost.
    pub lost: Vec<Lost>,
    /// Instances that are alive.
    pub active: u64,
    /// Expired instances that were left for the next sweep because of the limit.
    pub left: u64,
    /// Whether a partition begins or ends, as it was before the sweep's own losses (which change
    /// nothing about it): time for [`Instances::watch_partition`].
    pub partition_turns: bool,
}

answer! {
    /// What `lose.lua` answers.
    struct Loss {
        again: u8,
        held: String,
        lost: bool,
        incarnation: u64,
        last_seen: u64,
        tasks_reassigned: u64,
        named: String,
    }
}

impl Instances {
    /// Declares expired instances lost, the oldest first, at most `limit` of them ([`SWEEP`] is a
    /// good one). Any instance may call it at any time; each loss is declared once. Which silence counts:
    /// see [`crate::connect::silence`].
    ///
    /// # Errors
    /// `Bus`. What was declared lost before the error is known by the facts only.
    pub async fn sweep(&self, limit: usize) -> Result<Swept, CoordinationError> {
        let asked = Instant::now();
        let census = self.census_naming(limit).await?;
        if let Some(answers) = &self.answers {
            answers.heard(asked, census.counts.at, self.store.connector.epoch());
        }
        let mut lost = Vec::new();
        for id in &census.named {
            lost.extend(self.lose(id, self.span(), true).await?);
        }
        Ok(Swept {
            leader: census.leader,
            partition_turns: census.counts.partition != census.counts.is_partitioned(),
            left: census.expired.saturating_sub(lost.len() as u64),
            lost,
            active: census.counts.active,
        })
    }

    /// Declares an expired instance lost; with `silent`, only if its silence counts. Not without a span.
    pub(in crate::coordination) async fn lose(
        &self,
        id: &str,
        span: Option<CallTime>,
        silent: bool,
    ) -> Result<Option<Lost>, CoordinationError> {
        let Some(span) = span else {
            return Ok(None);
        };
        let keys = &self.store.keys;
        let mut declared = BTreeSet::new();
        let mut inboxes = Inboxes::of(id);
        let mut tries = 0;
        while tries < TRIES {
            let mut call = LOSE.prepare_invoke();
            call.key(keys.instance(id))
                .key(keys.active())
                .key(keys.capabilities())
                .key(keys.lost())
                .key(keys.broadcast())
                .key(keys.external())
                .key(keys.lost_external())
                .key(keys.inbox_route(id).delayed)
                .arg(id);
            self.declare(&mut call, &declared);
            call.arg(whole_ms(KEPT)).arg(whole_ms(RECENTLY));
            assignment::declare(&mut call, keys);
            inboxes.declare(&mut call, keys);
            let since = silent.then(|| span.since.to_string());
            call.arg(since.unwrap_or_default())
                .arg(span.from)
                .arg(span.until);
            let told: Loss = self.store.invoke(&call).await?;
            match told.again {
                0 => {
                    return Ok(told.lost.then(|| Lost {
                        id: id.to_owned(),
                        incarnation: told.incarnation,
                        last_seen: told.last_seen,
                        tasks_reassigned: told.tasks_reassigned,
                    }));
                }
                1 => {
                    tries += 1;
                    learn(&mut declared, &told.held);
                    inboxes.learn(&told.named);
                }
                _ => tries = 0,
            }
        }
        Err(contended(id))
    }

    /// Brings expiries that lie further ahead than a ttl back to one ttl from now, so that the dead expire
    /// after the server's clock went back; how many.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn shorten(&self, own_ttl: Duration) -> Result<u64, CoordinationError> {
        let keys = &self.store.keys;
        let (mut shortened, mut from) = (0, self.store.now().await? + whole_ms(own_ttl));
        loop {
            let mut far = redis::pipe();
            far.cmd("ZRANGEBYSCORE")
                .arg(keys.active())
                .arg(format!("({from}"))
                .arg(&["+inf", "WITHSCORES", "LIMIT", "0"])
                .arg(REACH);
            let (far,): (Vec<(String, f64)>,) = self.store.ask(&far).await?;
            let Some((_, last)) = far.last() else {
                return Ok(shortened);
            };
            from = *last as u64;
            let mut call = SHORTEN.prepare_invoke();
            call.key(keys.active()).key(keys.external());
            for (id, _) in &far {
                call.key(keys.instance(id)).arg(id);
            }
            shortened += self.store.invoke::<u64>(&call).await?;
        }
    }
}
