//! What of the bus a command could ask: on a cluster with a node away it goes on with the rest, and says what it left out.

use super::Format;
use super::output;
use convoke::connect::connector::{ANSWER, Connector};
use convoke::connect::reach::{Away, Reach};
use convoke::operator::delayed::{self, Queue};
use convoke::operator::inspect;
use convoke::protocol::keys::{Keys, StreamName};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OnceCell;

/// What the node of the control plane has besides its streams.
const CONTROL: &str = "who lives, and how many partitions there are";
/// Streams that are named of those that were left out.
const NAMED: usize = 5;

/// What a command can ask. All clones are of one look at the nodes.
#[derive(Clone)]
pub(super) struct Within {
    connector: Connector,
    reach: Arc<OnceCell<Reach>>,
    missing: Missing,
}

/// What was left out, by the node that has it.
#[derive(Clone)]
pub(super) struct Missing {
    format: Format,
    left: Arc<Mutex<BTreeMap<String, Left>>>,
}

#[derive(Default)]
struct Left {
    error: String,
    /// The keys that were asked for by name.
    keys: BTreeSet<String>,
    is_told: bool,
}

impl Within {
    pub(super) fn new(connector: Connector, reach: Arc<OnceCell<Reach>>, missing: Missing) -> Self {
        Self {
            connector,
            reach,
            missing,
        }
    }

    /// Which nodes answer.
    pub(super) async fn reach(&self) -> anyhow::Result<&Reach> {
        let look = || Box::pin(Reach::look(&self.connector, ANSWER));
        Ok(self.reach.get_or_try_init(look).await?)
    }

    /// All streams that are there.
    pub(super) async fn streams(&self, keys: &Keys) -> anyhow::Result<Vec<StreamName>> {
        let nodes = self.all().await?.nodes();
        Ok(inspect::streams_within(nodes, keys).await?)
    }

    /// All delay queues that are there.
    pub(super) async fn queues(&self, keys: &Keys) -> anyhow::Result<Vec<Queue>> {
        let nodes = self.all().await?.nodes();
        Ok(delayed::queues_within(nodes, keys).await?)
    }

    /// Which nodes answer, for who wants all that there is.
    async fn all(&self) -> anyhow::Result<&Reach> {
        let reach = self.reach().await?;
        for away in reach.away() {
            self.missing.note(away, None);
        }
        Ok(reach)
    }

    /// Whether the node of a key answers; else it is noted.
    pub(super) async fn reaches(&self, key: &str) -> anyhow::Result<bool> {
        let away = self.reach().await?.missing(key);
        if let Some(away) = away {
            self.missing.note(away, Some(key));
        }
        Ok(away.is_none())
    }

    /// Whether the node of the control plane is away, as far as it was looked at.
    pub(super) fn is_blind(&self, keys: &Keys) -> bool {
        let missing = self.reach.get().and_then(|it| it.missing(&keys.domains()));
        if let Some(away) = missing {
            self.missing.note(away, Some(CONTROL));
        }
        missing.is_some()
    }

    /// Of these streams those whose node answers; the others are noted.
    pub(super) async fn of(&self, names: Vec<StreamName>) -> anyhow::Result<Vec<StreamName>> {
        let mut reached = Vec::with_capacity(names.len());
        for name in names {
            if self.reaches(&name.key).await? {
                reached.push(name);
            }
        }
        // Before anything is done with the rest.
        self.missing.tell();
        Ok(reached)
    }
}

impl Missing {
    pub(super) fn new(format: Format) -> Self {
        Self {
            format,
            left: Arc::default(),
        }
    }

    fn left(&self) -> MutexGuard<'_, BTreeMap<String, Left>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, away: &Away, key: Option<&str>) {
        let mut all = self.left();
        let left = all.entry(away.node.clone()).or_default();
        left.error.clone_from(&away.error);
        if let Some(key) = key {
            left.is_told &= !left.keys.insert(key.to_owned());
        }
    }

    /// Whether anything was left out.
    pub(super) fn is_any(&self) -> bool {
        !self.left().is_empty()
    }

    /// Says on stderr what was left out, and was not told yet.
    pub(super) fn tell(&self) {
        for (node, left) in self.left().iter_mut().filter(|(_, left)| !left.is_told) {
            left.is_told = true;
            match self.format {
                Format::Json => {
                    let told = json!({ "node": node, "error": left.error, "streams": left.keys });
                    output::complain_line(&output::json(&json!({ "unreachable": told })));
                }
                format => output::complain(format, &left.told(node)),
            }
        }
    }
}

impl Left {
    fn told(&self, node: &str) -> String {
        let named: Vec<&str> = self.keys.iter().take(NAMED).map(String::as_str).collect();
        let what = match self.keys.len() {
            0 => "what it has".to_owned(),
            all if all > NAMED => format!("{} and {} more", named.join(", "), all - NAMED),
            _ => named.join(", "),
        };
        format!("{node} cannot be asked: {}; left out: {what}", self.error)
    }
}
