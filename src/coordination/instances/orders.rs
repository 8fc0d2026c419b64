//! Orders to workers: leave, be quiet, run another number of handlers at a time.
//!
//! An order stands in the hash of the instance and belongs to the process that has the id; a fact tells it. The worker
//! asks for it with each look, and says in the same call how it is, so what is listed is the worker's own word.

use super::Instances;
use super::instance::Instance;
use super::roster::{Condition, Detail};
use crate::connect::script::script_with;
use crate::coordination::bounds::{check_id, invalid, named};
use crate::coordination::error::CoordinationError;
use crate::coordination::scripts::VERSION;
use crate::protocol::event::Entry;
use crate::protocol::keys;
use redis::Script;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::LazyLock;

static ORDER: LazyLock<Script> =
    LazyLock::new(|| script_with(&[VERSION], include_str!("order.lua")));
static MODE: LazyLock<Script> = LazyLock::new(|| script_with(&[VERSION], include_str!("mode.lua")));

/// Handlers that a worker may run at a time.
pub const CONCURRENCY: RangeInclusive<u64> = 1..=65_536;
/// Bytes of the name of a version.
pub const MAX_VERSION: usize = 64;
/// Instances that one order reaches at the most.
const REACHED: usize = 1000;
/// Instances that are looked through.
const LOOKED: usize = 100_000;
/// Bytes of the name of who orders.
const MAX_BY: usize = 128;

/// Whom an order is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// One instance, by its id.
    Id(String),
    /// All workers that hold the role.
    Role(String),
    /// All workers of a version.
    Version(String),
}

/// What is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Finish what runs, and leave.
    Drain,
    /// Finish what runs, and read nothing more.
    Quiet,
    /// Run as many handlers at a time, and be quiet no more.
    Scale(u64),
}

/// What a worker is ordered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Order {
    /// To leave.
    pub drain: bool,
    /// To read nothing more.
    pub quiet: bool,
    /// How many handlers to run at a time.
    pub concurrency: Option<u64>,
    /// Who ordered it last.
    pub by: String,
    /// When, Unix ms on the server.
    pub at: u64,
}

/// How a worker is, by its own word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerMode {
    /// The version of the program, as its settings name it.
    pub version: String,
    /// Handlers that it runs at a time.
    pub concurrency: u64,
    /// Whether it reads nothing more.
    pub quiet: bool,
    /// Whether it finishes what runs, and leaves then.
    pub draining: bool,
    /// In which pattern it answers each event that has several, by their names; empty in one of an earlier version.
    pub patterns: BTreeMap<String, String>,
}

impl WorkerMode {
    /// The word for it: `draining`, `quiet`, or empty where it works.
    pub fn word(&self) -> &'static str {
        match (self.draining, self.quiet) {
            (true, _) => "draining",
            (false, true) => "quiet",
            (false, false) => "",
        }
    }
}

impl Instances {
    /// Orders something of those whom it is for; their ids.
    ///
    /// # Errors
    /// `Invalid` for a value out of bounds; `NotFound` if an instance is not active; `FailedPrecondition` if it is
    /// external, or if an order would reach more than a thousand; `Bus`, and then some may be ordered: the call can
    /// be repeated.
    pub async fn order(
        &self,
        whom: &Whom,
        what: What,
        by: &str,
    ) -> Result<Vec<String>, CoordinationError> {
        if let What::Scale(concurrency) = what
            && !CONCURRENCY.contains(&concurrency)
        {
            let (least, most) = (CONCURRENCY.start(), CONCURRENCY.end());
            return Err(invalid(format!(
                "concurrency: {concurrency} is not {least} to {most}"
            )));
        }
        let ids = match whom {
            Whom::Id(id) => {
                check_id("instance_id", id)?;
                vec![id.clone()]
            }
            Whom::Role(role) => {
                named("role", keys::check_name("role", role))?;
                self.workers(|one| one.roles.contains(role)).await?
            }
            Whom::Version(version) => self.workers(|one| one.mode.version == *version).await?,
        };
        let mut reached = Vec::with_capacity(ids.len());
        for id in ids {
            match (self.order_one(&id, what, by).await?, whom) {
                (0, _) => reached.push(id),
                (1, Whom::Id(_)) => {
                    return Err(CoordinationError::NotFound(format!(
                        "instance {id} is not active"
                    )));
                }
                (_, Whom::Id(_)) => {
                    return Err(CoordinationError::FailedPrecondition(format!(
                        "instance {id} is external: it follows no orders of the bus"
                    )));
                }
                // Gone meanwhile.
                _ => {}
            }
        }
        Ok(reached)
    }

    async fn workers(
        &self,
        fits: impl Fn(&Instance) -> bool,
    ) -> Result<Vec<String>, CoordinationError> {
        let known = self.known(Detail::Brief, LOOKED).await?;
        let alive = known.listed.into_iter();
        let fit = alive
            .filter(|(condition, one)| *condition != Condition::Lost && one.sealed && fits(one));
        let ids: Vec<String> = fit.map(|(_, one)| one.id).collect();
        match ids.len() {
            ..=REACHED => Ok(ids),
            count => Err(CoordinationError::FailedPrecondition(format!(
                "{count} instances fit, and an order reaches {REACHED} at the most: name fewer"
            ))),
        }
    }

    async fn order_one(&self, id: &str, what: What, by: &str) -> Result<u8, CoordinationError> {
        let (word, concurrency) = match what {
            What::Drain => ("drain", String::new()),
            What::Quiet => ("quiet", String::new()),
            What::Scale(concurrency) => ("scale", concurrency.to_string()),
        };
        let keys = &self.store.keys;
        let mut call = ORDER.prepare_invoke();
        call.key(keys.instance(id))
            .key(keys.active())
            .key(keys.broadcast())
            .key(keys.state())
            .arg(id)
            .arg(word)
            .arg(concurrency)
            .arg(&by[..by.floor_char_boundary(MAX_BY)]);
        Ok(self.store.invoke(&call).await?)
    }

    /// Says how this process's own instance is; what it is ordered.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn look_for_orders(
        &self,
        id: &str,
        mode: &WorkerMode,
    ) -> Result<Option<Order>, CoordinationError> {
        let mode = rmp_serde::to_vec_named(mode).map_err(|error| invalid(error.to_string()))?;
        let mut call = MODE.prepare_invoke();
        call.key(self.store.keys.instance(id))
            .key(self.store.keys.state())
            .arg(self.process())
            .arg(mode);
        let order: Vec<u8> = self.store.invoke(&call).await?;
        Ok(rmp_serde::from_slice(&order).ok())
    }
}

/// Whether a fact is an order to that instance.
pub fn is_order_to(fact: &Entry, id: &str) -> bool {
    fact.get("type") == Some(b"instance.ordered") && fact.get("subject") == Some(id.as_bytes())
}
