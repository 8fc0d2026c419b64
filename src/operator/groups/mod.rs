//! Consumer groups: dropped, or moved to another place of their stream.
//!
//! Both tell on the broadcast what they did: `operator.group_dropped`, `operator.group_reset`.

use crate::connect::error::BusError;
use crate::connect::script::script;
use crate::operator::replay::Operator;
use crate::protocol::event::EntryId;
use redis::Script;
use redis::aio::ConnectionLike;
use serde::Serialize;
use std::sync::LazyLock;

static DROP: LazyLock<Script> = LazyLock::new(|| script(include_str!("group_drop.lua")));
static RESET: LazyLock<Script> = LazyLock::new(|| script(include_str!("group_reset.lua")));

const SHAPE: BusError = BusError::Reply { what: "a group" };

/// What a group that was dropped had not settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dropped {
    /// Entries that were delivered and not acknowledged.
    pub pending: u64,
    /// What was delivered last.
    pub delivered: EntryId,
}

/// What became of a group that was to go to another place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reset {
    /// The group is at the new place.
    Moved {
        /// What had been delivered last.
        from: EntryId,
    },
    /// The group went on since it was looked at, and stays.
    WentOn {
        /// What was delivered last.
        delivered: EntryId,
    },
    /// The group stays, since an entry behind the new place is pending.
    Held {
        /// The first of them.
        entry: EntryId,
    },
}

#[derive(Serialize)]
struct DropFact<'a> {
    run: &'a str,
    by: &'a str,
    stream: &'a str,
    group: &'a str,
    pending: u64,
    delivered: String,
}

#[derive(Serialize)]
struct ResetFact<'a> {
    run: &'a str,
    by: &'a str,
    stream: &'a str,
    group: &'a str,
    from: String,
    to: String,
}

impl Operator {
    /// Drops a group of a stream; `None` if there is no such group.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn drop_group(
        &self,
        connection: &mut impl ConnectionLike,
        stream: &str,
        group: &str,
    ) -> Result<Option<Dropped>, BusError> {
        let mut call = DROP.prepare_invoke();
        call.key(stream);
        let told = self.tell(&mut call, stream);
        call.arg(self.run()).arg(self.by()).arg(group);
        let answer: Option<(u64, String)> = call.invoke_async(connection).await?;
        let Some((pending, delivered)) = answer else {
            return Ok(None);
        };
        let delivered: EntryId = delivered.parse().map_err(|_| SHAPE)?;
        if !told {
            let fact = DropFact {
                run: self.run(),
                by: self.by(),
                stream,
                group,
                pending,
                delivered: delivered.to_string(),
            };
            self.publish(connection, "operator.group_dropped", &fact)
                .await?;
        }
        Ok(Some(Dropped { pending, delivered }))
    }

    /// Moves a group so that the entry after `to` is delivered next, unless it went on since `seen` was what it had been
    /// delivered last; `None` if there is no such group. What lies ahead of its stream's last entry would leave out what
    /// is to come: `to` is at most that.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn reset_group(
        &self,
        connection: &mut impl ConnectionLike,
        stream: &str,
        group: &str,
        seen: EntryId,
        to: EntryId,
    ) -> Result<Option<Reset>, BusError> {
        let mut call = RESET.prepare_invoke();
        call.key(stream);
        let told = self.tell(&mut call, stream);
        call.arg(self.run())
            .arg(self.by())
            .arg(group)
            .arg(to.to_string())
            .arg(to.next().to_string())
            .arg(seen.to_string());
        let answer: Option<(String, String, bool)> = call.invoke_async(connection).await?;
        let Some((from, held, moved)) = answer else {
            return Ok(None);
        };
        if !held.is_empty() {
            let entry = held.parse().map_err(|_| SHAPE)?;
            return Ok(Some(Reset::Held { entry }));
        }
        let from: EntryId = from.parse().map_err(|_| SHAPE)?;
        if !moved {
            return Ok(Some(Reset::WentOn { delivered: from }));
        }
        if !told && from != to {
            let fact = ResetFact {
                run: self.run(),
                by: self.by(),
                stream,
                group,
                from: from.to_string(),
                to: to.to_string(),
            };
            self.publish(connection, "operator.group_reset", &fact)
                .await?;
        }
        Ok(Some(Reset::Moved { from }))
    }
}
