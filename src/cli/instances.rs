//! `convoke instances`: who is registered.

use super::{Exit, Session, input, output};
use clap::{Args, ValueEnum};
use convoke::coordination::instances::instance::Instance;
use convoke::coordination::instances::roster::{Condition, Detail};
use convoke::protocol::json;
use convoke::protocol::pattern::Patterns;
use serde_json::{Value, json};

/// Instances that are read at the most.
const LIMIT: usize = 100_000;

const EXAMPLES: &str = "\
Examples:
  convoke instances
  convoke instances --role gpu --sort load
  convoke instances --format json | jq -r 'select(.load > .capacity).id'

Reads Redis directly, so it works without a worker. Besides the healthy ones it shows those that are
suspect (the last pulse is too old) and those that were lost in the last ten minutes. External ones were
registered by an event, not by their own process: whoever publishes system events can make one up.
UP is how long the process runs; RESTARTS, how many others had the id before it. PATTERNS, shown where
any differs, are those in which a worker answers system events otherwise than by default.";

/// List the registered instances
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// Only those that hold this role
    #[arg(long, value_name = "ROLE", value_parser = input::role)]
    role: Option<String>,
    /// In which order
    #[arg(long, value_name = "ORDER", default_value = "id")]
    sort: Order,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Order {
    Id,
    /// The busiest for their capacity first
    Load,
    /// The longest silent first
    Pulse,
    /// The longest registered first
    Age,
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: &Flags) -> anyhow::Result<Exit> {
    let instances = session.instances()?;
    let known = instances.known(Detail::Full, LIMIT).await?;
    // The server's clock, which also wrote the times of the pulses.
    let now = known.at;
    let mut listed = known.listed;
    if let Some(role) = &flags.role {
        listed.retain(|(_, instance)| instance.roles.contains(role));
    }
    // By id where they are equal otherwise.
    match flags.sort {
        Order::Id => {}
        Order::Load => listed.sort_by(|(_, a), (_, b)| share(b).total_cmp(&share(a))),
        Order::Pulse => listed.sort_by_key(|(_, instance)| instance.last_seen),
        Order::Age => listed.sort_by_key(|(_, instance)| instance.registered_at),
    }
    if session.output.is_json() {
        for (condition, instance) in &listed {
            session.output.json(&described(*condition, instance, now))?;
        }
        return Ok(Exit::Done);
    }
    if listed.is_empty() {
        let namespace = &session.settings.namespace;
        let role = match &flags.role {
            Some(role) => format!(" of role {role}"),
            None => String::new(),
        };
        output::complain_line(&format!("no instances{role} in namespace {namespace}"));
        return Ok(Exit::Done);
    }
    let differs = listed.iter().any(|(_, one)| others(one) != "-");
    let rows: Vec<Vec<String>> = listed
        .iter()
        .map(|(condition, instance)| {
            let mut row = vec![
                instance.id.clone(),
                standing(*condition, instance),
                instance.roles.join(","),
                instance.capacity.to_string(),
                instance.load.to_string(),
                session.output.moment(instance.last_seen, now),
                session.output.moment(instance.started_at, now),
                instance.restarts.to_string(),
                instance.incarnation.to_string(),
                instance.capabilities.len().to_string(),
            ];
            if differs {
                row.push(others(instance));
            }
            row
        })
        .collect();
    let mut headings = vec![
        "ID",
        "STATUS",
        "ROLES",
        "CAPACITY",
        "LOAD",
        "PULSE",
        "UP",
        "RESTARTS",
        "INCARNATION",
        "HANDLERS",
    ];
    if differs {
        headings.push("PATTERNS");
    }
    session.output.table(&headings, &rows)?;
    Ok(Exit::Done)
}

/// All patterns in which an instance answers; none where it is external or older.
pub(super) fn patterns(instance: &Instance) -> String {
    told(instance.mode.patterns.iter())
}

fn told<'a>(patterns: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let named = patterns.map(|(event, pattern)| format!("{event}={pattern}"));
    match named.collect::<Vec<_>>().join(",") {
        none if none.is_empty() => "-".to_owned(),
        named => named,
    }
}

/// The patterns of an instance that are not the default.
fn others(instance: &Instance) -> String {
    let default = Patterns::default().names();
    let others = instance.mode.patterns.iter();
    let others = others.filter(|(event, pattern)| default.get(*event) != Some(*pattern));
    told(others)
}

/// The load for the capacity.
pub(super) fn share(instance: &Instance) -> f64 {
    instance.load / f64::from(instance.capacity.max(1))
}

/// The condition of an instance, and whether it is external, drains or is quiet.
pub(super) fn standing(condition: Condition, instance: &Instance) -> String {
    let condition = condition.as_str();
    match (instance.sealed, instance.mode.word()) {
        (true, "") => condition.to_owned(),
        (true, mode) => format!("{condition}, {mode}"),
        (false, _) => format!("{condition}, external"),
    }
}

pub(super) fn described(condition: Condition, instance: &Instance, now: u64) -> Value {
    json!({
        "id": instance.id,
        "status": condition.as_str(),
        "roles": instance.roles,
        "capacity": instance.capacity,
        "load": instance.load,
        "last_seen": instance.last_seen,
        "age_ms": now.saturating_sub(instance.last_seen),
        "ttl_ms": instance.ttl_ms,
        "registered_at": instance.registered_at,
        "started_at": instance.started_at,
        "restarts": instance.restarts,
        "external": !instance.sealed,
        "mode": instance.mode.word(),
        "version": instance.mode.version,
        "concurrency": instance.mode.concurrency,
        "patterns": instance.mode.patterns,
        "incarnation": instance.incarnation,
        "capabilities": instance.capabilities,
        "metadata": json::to_json(&instance.metadata).unwrap_or_default(),
    })
}
