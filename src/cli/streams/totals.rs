//! What waits for the totals of types.

use crate::cli::Session;
use crate::cli::output::{Cell, number, span};
use convoke::connect::error::allowed;
use convoke::coordination::policies::{Policies, Scope};
use convoke::coordination::seats::{self, Taken};
use convoke::protocol::keys::{self, StreamKind, StreamName};
use serde_json::{Value, json};

/// Types that are looked at, at the most.
const MOST: usize = 100;

/// A type with a total, and what goes on and waits of it.
pub(super) struct OfTotal {
    kind: String,
    total: u32,
    taken: Taken,
}

/// Types with a total, of the domains of these streams.
pub(super) async fn read(session: &Session, names: &[StreamName]) -> anyhow::Result<Vec<OfTotal>> {
    let (connector, keys) = (session.connector()?, session.settings.keys()?);
    let held = Policies::new(connector.clone(), keys.clone());
    // Who may not look at them sees the streams all the same.
    let documents = held.list().await.map(|(documents, _)| documents);
    let mut all = Vec::new();
    for (scope, document) in documents.unwrap_or_default() {
        let (Scope::Type(kind), Some(total)) = (scope, document.limits.total) else {
            continue;
        };
        if all.len() < MOST
            && names.iter().any(|name| is_of(name, &kind))
            && let Some(taken) = allowed(seats::look(&connector, &keys, &kind).await)?
        {
            all.push(OfTotal { kind, total, taken });
        }
    }
    Ok(all)
}

/// Takes out the types of a stream's domain: they are not shown again with another partition of it.
pub(super) fn take(all: &mut Vec<OfTotal>, name: &StreamName) -> Vec<OfTotal> {
    all.extract_if(.., |one| is_of(name, &one.kind)).collect()
}

fn is_of(name: &StreamName, kind: &str) -> bool {
    name.kind == StreamKind::Events && name.part == keys::domain_of(kind)
}

pub(super) fn row(of: &OfTotal) -> Vec<Cell> {
    let (kind, runs, total) = (&of.kind, of.taken.seats, of.total);
    let oldest = of.taken.waits_ms.map_or_else(String::new, span);
    vec![
        format!("  {kind}: {} of {} run", number(runs), number(total.into())).into(),
        number(of.taken.waits).into(),
        "".into(),
        "".into(),
        "".into(),
        oldest.into(),
        "".into(),
    ]
}

pub(super) fn described(of: &OfTotal) -> Value {
    json!({
        "type": of.kind,
        "total": of.total,
        "taken": of.taken.seats,
        "waits": of.taken.waits,
        "workers": of.taken.workers,
        "waits_ms": of.taken.waits_ms,
    })
}
