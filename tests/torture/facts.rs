//! What the broadcast tells: whatever fences must rise, and whoever lived was not declared lost.

use crate::outcomes::Problems;
use crate::world::World;
use convoke::protocol::event::{Entry, EntryId};
use convoke::streams::read::entries_of;
use serde_json::Value;
use std::collections::HashMap;

/// A fact and when it was stored.
pub(crate) struct Fact {
    pub(crate) id: EntryId,
    pub(crate) kind: String,
    pub(crate) data: Value,
}

/// The facts from that entry on.
pub(crate) async fn since(world: &World, from: EntryId) -> Vec<Fact> {
    let mut connection = world.redis.connection().await;
    let mut range = redis::cmd("XRANGE");
    range.arg(&["cb:broadcast", &from.to_string(), "+"]);
    let reply = range.query_async(&mut connection).await.unwrap();
    let fact = |entry: Entry| Fact {
        id: entry.id,
        kind: String::from_utf8_lossy(entry.get("type").unwrap()).into_owned(),
        data: rmp_serde::from_slice(entry.get("data").unwrap()).unwrap(),
    };
    entries_of(reply).unwrap().into_iter().map(fact).collect()
}

async fn all(world: &World) -> Vec<(String, Value)> {
    let facts = since(world, EntryId::default()).await.into_iter();
    facts.map(|fact| (fact.kind, fact.data)).collect()
}

/// Checks that the leaders' terms and each instance's incarnations rise; how many leaders there were.
/// A process that takes over a name that is still alive keeps its incarnation, and counts a restart.
pub(crate) async fn rise(world: &World) -> usize {
    let mut problems = Problems::default();
    let (mut term, mut leaders) = (0, 0);
    let mut incarnations: HashMap<String, (u64, u64)> = HashMap::new();
    for (kind, data) in all(world).await {
        match kind.as_str() {
            "leader.elected" => {
                let next = data["term"].as_u64().unwrap();
                if next <= term {
                    problems.found(format!("term {next} came after {term}"));
                }
                (term, leaders) = (next, leaders + 1);
            }
            "instance.registered" => {
                let id = data["id"].as_str().unwrap().to_owned();
                let restarts = data["restarts"].as_u64().unwrap_or(0);
                let next = (data["incarnation"].as_u64().unwrap(), restarts);
                let last = incarnations.insert(id.clone(), next);
                if last.is_some_and(|last| next <= last) {
                    problems.found(format!(
                        "{id}: (incarnation, restarts) {next:?} came after {last:?}"
                    ));
                }
            }
            _ => {}
        }
    }
    problems.none();
    leaders
}

/// Who was declared lost.
pub(crate) async fn lost(world: &World) -> Vec<String> {
    let facts = all(world).await.into_iter();
    let lost = facts.filter(|fact| fact.0 == "instance.lost");
    lost.map(|fact| fact.1["id"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// Checks that nobody was declared lost.
pub(crate) async fn nobody_was_lost(world: &World) {
    let lost = lost(world).await;
    assert!(lost.is_empty(), "alive and declared lost: {lost:?}");
}
