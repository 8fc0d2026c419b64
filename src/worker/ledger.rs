//! The worker's part in the ledger: which streams it is filled from, and what runs beside.
//!
//! Every replica that is given a `database_url` takes part; the group shares the work. A worker
//! without one keeps no ledger: its facts would be scattered over files on many machines, and the
//! group would keep streams from being trimmed after the last such worker is gone.

use super::supervisor::Supervisor;
use super::{RunError, Worker};
use crate::connect::connector::Connector;
use crate::coordination::instances::Instances;
use crate::ledger::database::Database;
use crate::ledger::fill::{Counts, Filler, LedgerStream, in_control_slot};
use crate::ledger::{fill, relay, retention};
use crate::protocol::keys::Keys;
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
}

impl Ledger {
    /// Starts filling, if a database is set. `own` are the dead letters' streams of the worker.
    pub(super) fn start(
        worker: &Worker,
        own: Vec<String>,
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
        let cluster = connector.is_cluster();
        let (sender, sources) = watch::channel(sources(cluster, &keys, &own, &[]));
        let filler = Filler {
            connector: connector.clone(),
            keys: keys.clone(),
            consumer: settings.id.clone(),
            database: database.clone(),
            sources,
            claim_idle: settings.claim_idle,
            max_payload: settings.max_payload,
            counts: counts.clone(),
            drain: drain.clone(),
        };
        let relay = relay::Relay::new(database.clone(), settings)?;
        let mut parts = Parts {
            supervisor,
            drain,
            tasks: JoinSet::new(),
        };
        parts.begin("ledger fill", filler.run());
        let instances = worker.instances.clone();
        let looking = look(instances, keys, cluster, own, sender, drain.clone());
        parts.begin("ledger domains", looking);
        parts.begin("ledger relay", relay.run(drain.clone()));
        if !settings.ledger_retention.is_zero() {
            let kept = retention::keep_for(
                database.clone(),
                settings.namespace.clone(),
                settings.ledger_retention,
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
        }))
    }

    /// Waits until it has ended, which it was told to; not for long.
    pub(super) async fn ended(mut self) {
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

/// What the ledger reads.
fn sources(cluster: bool, keys: &Keys, own: &[String], domains: &[String]) -> Vec<LedgerStream> {
    let all = fill::sources(keys, own, domains);
    match cluster {
        true => in_control_slot(all, keys),
        false => all,
    }
}

/// Looks for the domains of all active instances: theirs may keep no ledger.
async fn look(
    instances: Instances,
    keys: Keys,
    cluster: bool,
    own: Vec<String>,
    sender: watch::Sender<Vec<LedgerStream>>,
    stop: CancellationToken,
) {
    let mut seen: Vec<String> = Vec::new();
    loop {
        match instances.domains().await {
            Ok(domains) => {
                // A domain that nobody handles any more may still have dead letters.
                seen.extend(domains);
                seen.sort_unstable();
                seen.dedup();
                let now = sources(cluster, &keys, &own, &seen);
                sender.send_if_modified(|before| {
                    let changed = *before != now;
                    *before = now;
                    changed
                });
            }
            Err(error) => tracing::debug!(%error, "the domains could not be looked at"),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => return,
        }
    }
}
