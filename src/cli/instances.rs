//! `convoke instances`: who is registered.

use super::{Outcome, Session, output};
use clap::Args;
use convoke::bus::json;
use convoke::coordination::instance::Instance;
use serde_json::{Value, json};

const EXAMPLES: &str = "\
Examples:
  convoke instances
  convoke instances --format json | jq -r 'select(.load > .capacity).id'

Reads Redis directly, so it works without a worker. Instances whose last pulse is too old are not \
shown; health counts them.";

/// List the registered instances
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Flags {}

/// Runs the command.
pub async fn run(session: Session) -> anyhow::Result<Outcome> {
    let instances = session.instances()?;
    let mut listed = instances.list().await?;
    listed.sort_by(|a, b| a.id.cmp(&b.id));
    // The server's clock, which also wrote the times of the pulses.
    let now = instances.census().await?.at;
    if session.output.is_json() {
        for instance in &listed {
            session.output.json(&described(instance, now))?;
        }
        return Ok(Outcome::Done);
    }
    if listed.is_empty() {
        let namespace = &session.settings.namespace;
        output::complain_line(&format!("no instances in namespace {namespace}"));
        return Ok(Outcome::Done);
    }
    let rows: Vec<Vec<String>> = listed
        .iter()
        .map(|instance| {
            vec![
                instance.id.clone(),
                instance.roles.join(","),
                instance.capacity.to_string(),
                instance.load.to_string(),
                session.output.moment(instance.last_seen, now),
                instance.incarnation.to_string(),
                instance.capabilities.len().to_string(),
            ]
        })
        .collect();
    let headings = [
        "ID",
        "ROLES",
        "CAPACITY",
        "LOAD",
        "PULSE",
        "INCARNATION",
        "HANDLERS",
    ];
    session.output.table(&headings, &rows)?;
    Ok(Outcome::Done)
}

fn described(instance: &Instance, now: u64) -> Value {
    json!({
        "id": instance.id,
        "roles": instance.roles,
        "capacity": instance.capacity,
        "load": instance.load,
        "last_seen": instance.last_seen,
        "age_ms": now.saturating_sub(instance.last_seen),
        "ttl_ms": instance.ttl_ms,
        "registered_at": instance.registered_at,
        "incarnation": instance.incarnation,
        "capabilities": instance.capabilities,
        "metadata": json::to_json(&instance.metadata).unwrap_or_default(),
    })
}
