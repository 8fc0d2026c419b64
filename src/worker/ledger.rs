//! The worker's part in the ledger: which streams it is filled from, and what runs beside.
//!
//! Every replica that is given a `database_url` takes part; the group shares the work. A worker
//! without one keeps no ledger: its facts would be scattered over files on many machines, and the
//! group would keep streams from being trimmed after the last such worker is gone.

mod keeping;

use super::outcomes::OutcomesReceiver;
use super::supervisor::Supervisor;
use super::{RunError, Worker};
use crate::connect::connector::Connector;
use crate::coordination::instances::Instances;
use crate::ledger::database::Database;
use crate::ledger::fill::{Counts, Filler, LedgerStream};
use crate::ledger::{fill, relay, retention};
use crate::protocol::keys::Keys;
use keeping::Keeping;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Connections for what the filler does besides reading.
const POOL: usize = 2;
/// How often is looked for domains that others have handlers for.
const LOOK: Duration = Duration::from_secs(30);
/// How long the end waits for what is under way; what is not acknowledged by then comes again.
const END: Duration = Duration::from_secs(5);

/// The ledger's tasks of one worker.
pub(super) struct Ledger {
    tasks: JoinSet<()>,
    database: Database,
    counts: Arc<Counts>,
    /// Nothing is committed any more.
    last: CancellationToken,
}

impl Ledger {
    /// Starts filling, if a database is set. `own` are the dead letters' streams of the worker.
    pub(super) fn start(
        worker: &Worker,
        own: Vec<String>,
        outcomes: Option<OutcomesReceiver>,
        drain: &CancellationToken,
        supervisor: &Supervisor,
    ) -> Result<Option<Self>, RunError> {
        let settings = &worker.settings;
        if settings.database_url.is_empty() {
            return Ok(None);
        }
        let keys = worker.process.keys.clone();
        let connector = Connector::of(settings, POOL)?;
        let database = Database::new(&settings.database_url)?;
        let counts = Arc::<Counts>::default();
        let filler = Filler {
            connector,
            keys: keys.clone(),
            consumer: settings.id.clone(),
            database: database.clone(),
            sources: watch::channel(Vec::new()).1,
            claim_idle: settings.claim_idle,
            max_payload: settings.max_payload,
            counts: counts.clone(),
            drain: drain.clone(),
        };
        let mut fillers = Fillers {
            like: filler,
            supervisor: supervisor.clone(),
            sources: BTreeMap::new(),
            tasks: JoinSet::new(),
        };
        fillers.fill_from(fill::sources(&keys, &own, &[]));
        let relay = relay::Relay::new(database.clone(), settings)?;
        let mut parts = Parts {
            supervisor,
            drain,
            tasks: JoinSet::new(),
        };
        let looking = look(worker.instances.clone(), keys, own, fillers);
        parts.begin("ledger domains", looking);
        parts.begin("ledger relay", relay.run(drain.clone()));
        let last = CancellationToken::new();
        if let Some(outcomes) = outcomes {
            let keeping = Keeping {
                outcomes,
                database: database.clone(),
                namespace: settings.namespace.clone(),
                instance: settings.id.clone(),
                last: last.clone(),
            };
            parts.begin("ledger outcomes", keeping.run());
        }
        let retained = [
            settings.ledger_retention,
            settings.ledger_outcomes_retention,
        ];
        if retained.iter().any(|age| !age.is_zero()) {
            let [facts, outcomes] = retained;
            let kept = retention::keep_for(
                database.clone(),
                settings.namespace.clone(),
                facts,
                outcomes,
                drain.clone(),
            );
            parts.begin("ledger retention", kept);
        }
        let tasks = parts.tasks;
        tracing::info!(database = %settings.database_url, "keeping the ledger");
        Ok(Some(Self {
            tasks,
            database,
            counts,
            last,
        }))
    }

    /// Waits until it has ended, which it was told to; not for long.
    pub(super) async fn ended(mut self) {
        self.last.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(END, ended).await.is_err() {
            tracing::warn!("the ledger did not end in time; what it held comes again");
            self.tasks.shutdown().await;
        }
        tokio::time::timeout(END, self.database.close()).await.ok();
        let written = self.counts.written.load(Ordering::Relaxed);
        tracing::info!(written, "the ledger is closed");
    }
}

/// The ledger's parts, each a task.
struct Parts<'a> {
    supervisor: &'a Supervisor,
    drain: &'a CancellationToken,
    tasks: JoinSet<()>,
}

impl Parts<'_> {
    fn begin(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let (supervisor, drain) = (self.supervisor.clone(), self.drain.clone());
        self.tasks.spawn(async move {
            supervisor.run(name, &drain, part).await;
        });
    }
}

/// The fillers: one, or on a cluster one for each slot that something is read from.
struct Fillers {
    /// What they have in common.
    like: Filler,
    supervisor: Supervisor,
    /// What each reads, by its slot.
    sources: BTreeMap<Option<u16>, watch::Sender<Vec<LedgerStream>>>,
    tasks: JoinSet<()>,
}

impl Fillers {
    /// Has each of them read what lies in its slot.
    fn fill_from(&mut self, all: Vec<LedgerStream>) {
        let keys: Vec<&str> = all.iter().map(|source| source.stream.as_str()).collect();
        for way in self.like.connector.ways_to(&keys) {
            let now: Vec<LedgerStream> = way.places.iter().map(|at| all[*at].clone()).collect();
            if let Some(sender) = self.sources.get(&way.slot) {
                sender.send_if_modified(|before| {
                    let changed = *before != now;
                    *before = now;
                    changed
                });
                continue;
            }
            let (sender, sources) = watch::channel(now);
            self.sources.insert(way.slot, sender);
            let filler = Filler {
                connector: way.connector,
                sources,
                ..self.like.clone()
            };
            let (supervisor, drain) = (self.supervisor.clone(), self.like.drain.clone());
            self.tasks.spawn(async move {
                supervisor.run("ledger fill", &drain, filler.run()).await;
            });
        }
    }
}

/// Looks for the domains of all active instances: theirs may keep no ledger. Ends when all fillers have.
async fn look(instances: Instances, keys: Keys, own: Vec<String>, mut fillers: Fillers) {
    let mut seen: Vec<String> = Vec::new();
    let stop = fillers.like.drain.clone();
    while !stop.is_cancelled() {
        match instances.domains().await {
            Ok(domains) => {
                // A domain that nobody handles any more may still have dead letters.
                seen.extend(domains);
                seen.sort_unstable();
                seen.dedup();
                fillers.fill_from(fill::sources(&keys, &own, &seen));
            }
            Err(error) => tracing::debug!(%error, "the domains could not be looked at"),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => {}
        }
    }
    while fillers.tasks.join_next().await.is_some() {}
}
