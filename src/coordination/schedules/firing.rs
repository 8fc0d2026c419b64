//! What is due is done: every replica looks, and the script lets one of them store the event.

use super::plan::Plan;
use super::schedule::{MAX_SCHEDULES, event_id};
use super::{DECODED, Definition, Missed, Schedules, encode, standing_of};
use crate::connect::clock::ServerTime;
use crate::connect::script::script_with;
use crate::coordination::bounds::invalid;
use crate::coordination::error::CoordinationError;
use crate::streams::outbox;
use redis::Script;
use serde::Serialize;
use std::sync::LazyLock;
use std::time::Duration;

static FIRE: LazyLock<Script> =
    LazyLock::new(|| script_with(&[DECODED], include_str!("schedule_fire.lua")));

/// How long a schedule that has no tick any more is kept, in ms.
const KEPT: u64 = 86_400_000;
/// Calls that store missed ticks of one schedule in one look.
const STEPS: usize = 128;

/// The fact that says which ticks are left out.
#[derive(Serialize)]
struct MissedFact<'a> {
    name: &'a str,
    count: u64,
    /// Whether there were more, which nobody counted.
    more: bool,
    first: u64,
    last: u64,
    missed: Missed,
}

impl Schedules {
    /// Does what is due; says how long it is until the next is, `None` if nothing is to come. `by` is the source of the
    /// events.
    ///
    /// # Errors
    /// `Bus`. What was not done is due still.
    pub async fn fire_due(&self, by: &str) -> Result<Option<Duration>, CoordinationError> {
        let due = &self.store.keys.schedules().due;
        let mut reads = redis::pipe();
        self.store.ask_time(&mut reads).await?;
        reads.cmd("ZRANGE").arg(due).arg(0).arg(MAX_SCHEDULES);
        reads.arg("WITHSCORES");
        let (ServerTime(now), all): (ServerTime, Vec<(String, f64)>) =
            self.store.ask(&reads).await?;
        let is_due = |(_, due): &&(String, f64)| *due <= now as f64;
        let names: Vec<&str> = all
            .iter()
            .filter(is_due)
            .map(|(name, _)| name.as_str())
            .collect();
        let mut next = all
            .iter()
            .find(|one| !is_due(one))
            .map(|(_, due)| *due as u64);
        for name in names {
            match self.step(name, now, by).await {
                Ok(then) => next = [next, then].into_iter().flatten().min(),
                Err(CoordinationError::Bus(error)) if error.code().is_none() => {
                    return Err(error.into());
                }
                Err(error) => tracing::debug!(schedule = name, %error, "its tick waits"),
            }
        }
        Ok(next.map(|next| Duration::from_millis(next.saturating_sub(now))))
    }

    /// Does what is due of one schedule; says when the next is, if that is known.
    async fn step(&self, name: &str, now: u64, by: &str) -> Result<Option<u64>, CoordinationError> {
        let keys = self.store.keys.schedules();
        let mut reads = redis::pipe();
        reads.cmd("HGET").arg(keys.schedules).arg(name);
        reads.cmd("HGET").arg(keys.states).arg(name);
        let (bytes, state): (Option<Vec<u8>>, Option<Vec<u8>>) = self.store.ask(&reads).await?;
        let mut standing = standing_of(state.as_deref());
        let (Some(bytes), Some(_)) = (bytes, standing.tick) else {
            self.remove(name, by, "over").await?;
            return Ok(None);
        };
        let definition: Definition = rmp_serde::from_slice(&bytes)
            .map_err(|error| invalid(format!("the definition: {error}")))?;
        let timing = definition.when.timing()?;
        let clockwork = definition.clockwork(name, &timing);
        for _ in 0..STEPS {
            let Some(tick) = standing.tick else {
                return Ok(Some(now + KEPT));
            };
            let Some(plan) = clockwork.plan(tick, now) else {
                return Ok(Some(clockwork.tick(tick).due));
            };
            let (done, _) = self.fire(name, &definition, &bytes, tick, plan, by).await?;
            if !done {
                // Another replica did it.
                return Ok(plan.next.map(|next| next.due));
            }
            standing.tick = plan.next.map(|next| next.at);
        }
        Ok(Some(now))
    }

    async fn fire(
        &self,
        name: &str,
        definition: &Definition,
        bytes: &[u8],
        tick: u64,
        plan: Plan,
        by: &str,
    ) -> Result<(bool, String), CoordinationError> {
        let told = plan.left_out.map(|left| MissedFact {
            name,
            count: left.count,
            more: left.is_more,
            first: left.first,
            last: left.last,
            missed: definition.missed,
        });
        let told = told.as_ref().map(encode).transpose()?;
        let id = plan.fire.map(|fire| event_id(name, fire.at));
        let mut call = FIRE.prepare_invoke();
        self.declare(&mut call);
        let keys = &self.store.keys;
        let stream = id.as_ref().map(|id| definition.stream(keys, id));
        // One step writes to one slot: what is for another one goes through the outbox.
        let (outbox, broadcast) = (keys.route("system", 0).outbox, keys.broadcast());
        let is_cluster = self.store.connector.is_cluster();
        let apart = |stream: &&String| is_cluster && !outbox::is_beside(stream, &broadcast);
        let to = stream.as_ref().filter(apart);
        if let Some(stream) = &stream {
            call.key(if to.is_some() { &outbox } else { stream });
        }
        let kept = || self.kept_until(tick, plan);
        call.arg(name)
            .arg(bytes)
            .arg(tick)
            .arg(
                plan.next
                    .map_or_else(String::new, |next| next.at.to_string()),
            )
            .arg(plan.next.map_or_else(kept, |next| next.due))
            .arg(told.unwrap_or_default())
            .arg(by);
        if let (Some(fire), Some(id)) = (plan.fire, id) {
            call.arg(fire.at).arg(fire.due).arg(id);
            call.arg(to.map_or("", String::as_str));
        }
        Ok(self.store.invoke(&call).await?)
    }

    fn kept_until(&self, tick: u64, plan: Plan) -> u64 {
        plan.fire.map_or(tick, |fire| fire.due) + KEPT
    }
}
