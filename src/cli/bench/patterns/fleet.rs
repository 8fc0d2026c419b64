//! Instances that are data: registered, with reports, and with inboxes that one task answers.

use crate::cli::bench::rig::Rig;
use anyhow::Context as _;
use convoke::connect::connector::Connector;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::gossip::{PING, Peer};
use convoke::coordination::instances::instance::{Beat, Registering};
use convoke::coordination::instances::pull::REPORT;
use convoke::coordination::metrics::{Gauges, HandlerSums, Report, Sums};
use convoke::protocol::histogram::Histogram;
use convoke::protocol::keys::Keys;
use futures_util::{StreamExt, TryStreamExt};
use redis::Value;
use redis::streams::{StreamReadOptions, StreamReadReply};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::task::AbortOnDropHandle;

/// How long they live without a pulse: longer than what is measured.
const TTL: Duration = Duration::from_secs(3600);
/// The name of the process that speaks for them.
const PROCESS: &str = "bench-fleet";
/// Entries that one read brings.
const COUNT: usize = 1000;
/// Instances that ask their neighbours at a time: they mostly wait.
const ASKING: usize = 256;
/// Reports at a time.
const AT_ONCE: usize = 16;

pub(super) struct Fleet<'a> {
    rig: &'a Rig,
    instances: Instances,
    ids: Arc<Mutex<Vec<String>>>,
    incarnations: Vec<u64>,
    _answering: AbortOnDropHandle<()>,
}

impl<'a> Fleet<'a> {
    pub(super) fn new(rig: &'a Rig) -> anyhow::Result<Self> {
        let connector = Connector::of(&rig.settings, AT_ONCE)?;
        let instances = Instances::of_process(connector, rig.keys.clone(), PROCESS);
        let ids = Arc::<Mutex<Vec<String>>>::default();
        let answering = Answering {
            connector: rig.connector.toward(&rig.keys.inbox(PROCESS)),
            keys: rig.keys.clone(),
            group: rig.settings.group.clone(),
            instances: instances.clone(),
            ids: ids.clone(),
        };
        let answering = tokio::spawn(async move {
            if let Err(error) = answering.run().await {
                tracing::warn!(%error, "inboxes are answered no more");
            }
        });
        Ok(Self {
            rig,
            instances,
            ids,
            incarnations: Vec::new(),
            _answering: AbortOnDropHandle::new(answering),
        })
    }

    pub(super) fn size(&self) -> usize {
        locked(&self.ids).len()
    }

    /// Registers more of them, this many together with the worker that is asked.
    pub(super) async fn grow(&mut self, size: usize) -> anyhow::Result<()> {
        for place in self.size()..size - 1 {
            let id = format!("bench-data-{place}");
            let mut registering = Registering::new(&id, ["bench-data"]);
            registering.ttl_ms = TTL.as_millis() as u64;
            registering.capabilities = vec![PING.to_owned()];
            let registered = self.instances.register(&registering).await?;
            self.incarnations.push(registered.incarnation);
            let mut connection = self.rig.connector.pooled().await?;
            let mut open = redis::cmd("XADD");
            open.arg(self.rig.keys.inbox(&id))
                .arg(&["*", "type", "bench.opened"]);
            open.exec_async(&mut connection).await?;
            self.instances.heartbeat(&beat(&id, 0)).await?;
            locked(&self.ids).push(id);
            self.keep_health(place).await?;
        }
        Ok(())
    }

    /// One instance's own pulse, with what it did in that round.
    pub(super) async fn pulse(&self, place: usize, round: u64) -> anyhow::Result<()> {
        let id = self.id(place)?;
        self.instances.heartbeat(&beat(&id, round)).await?;
        Ok(())
    }

    /// One instance's pulse to a collector.
    pub(super) async fn send_pulse(&self, place: usize, peers: &[String]) -> anyhow::Result<()> {
        let id = self.id(place)?;
        let incarnation = self.incarnations[place];
        self.instances
            .send_pulse(&id, incarnation, 0.0, peers)
            .await?;
        Ok(())
    }

    /// What a collector does once in a while; returns where it goes on.
    pub(super) async fn collect(&self, after: Option<String>) -> anyhow::Result<Option<String>> {
        let collected = self.instances.collect_pulses(after, TTL).await?;
        Ok(collected.0)
    }

    /// What all of them do in a round in which neighbours ask each other; returns how long each took, in seconds.
    pub(super) async fn ask_neighbours(&self, wait: Duration) -> anyhow::Result<Vec<f64>> {
        let all = futures_util::stream::iter(0..self.size()).map(async |place| {
            let (id, began) = (self.id(place)?, Instant::now());
            let around = self.instances.look_around(&id).await?;
            let asked = around.neighbours.into_iter().chain([id.clone()]);
            let asked: Vec<Peer> = asked
                .map(|id| Peer {
                    id,
                    left: Duration::ZERO,
                })
                .collect();
            self.instances.ping_peers(&id, &asked, wait).await?;
            anyhow::Ok(began.elapsed().as_secs_f64())
        });
        all.buffer_unordered(ASKING).try_collect().await
    }

    pub(super) fn id(&self, place: usize) -> anyhow::Result<String> {
        let ids = locked(&self.ids);
        ids.get(place).cloned().context("no such instance")
    }

    /// One instance's part of a round.
    pub(super) async fn keep_health(&self, place: usize) -> anyhow::Result<()> {
        let id = self.id(place)?;
        let (at, _) = self.instances.moment().await?;
        let up = json!({"status": "up", "latency_ms": 0.3});
        let services = json!({"redis": up, "postgres": up, "mcp": {"status": "disabled"}});
        let report = json!({"at": at, "services": services, "flow": []});
        let report = rmp_serde::to_vec_named(&report)?;
        Ok(self.instances.keep_health(&id, &report, TTL).await?)
    }
}

/// What an instance of ten handlers reports that did more in each round.
fn beat(id: &str, round: u64) -> Beat {
    let latency = Histogram {
        counts: (0..20).map(|bucket| (bucket * 8, 100 + round)).collect(),
        sum: 1_000_000 + round,
    };
    let handlers = (0..10).map(|number| {
        let sums = HandlerSums {
            calls: 2000 + 20 * round,
            latency: Some(latency.clone()),
            ..HandlerSums::default()
        };
        (format!("bench{number}.work"), sums)
    });
    let report = Report {
        process: PROCESS.to_owned(),
        sums: Sums {
            events_processed: 20_000,
            latency: latency.clone(),
            ..Sums::default()
        },
        handlers: handlers.collect::<BTreeMap<_, _>>(),
        gauges: Gauges {
            memory_bytes: 12 << 20,
            ..Gauges::default()
        },
    };
    Beat {
        metrics: Some(report),
        ..Beat::new(id, None)
    }
}

/// Answers what arrives in the inboxes, as a worker does: it reports, then it replies.
struct Answering {
    connector: Connector,
    keys: Keys,
    group: String,
    instances: Instances,
    ids: Arc<Mutex<Vec<String>>>,
}

impl Answering {
    async fn run(self) -> anyhow::Result<()> {
        let mut connection = self.connector.dedicated().await?;
        let mut after: BTreeMap<String, String> = BTreeMap::new();
        loop {
            let ids = locked(&self.ids).clone();
            if ids.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
            let inboxes: Vec<String> = ids.iter().map(|id| self.keys.inbox(id)).collect();
            let from: Vec<String> = inboxes
                .iter()
                .map(|inbox| after.get(inbox).cloned().unwrap_or_else(|| "0".to_owned()))
                .collect();
            let options = StreamReadOptions::default().count(COUNT).block(20);
            let read: Option<StreamReadReply> =
                redis::AsyncCommands::xread_options(&mut connection, &inboxes, &from, &options)
                    .await?;
            let mut replies = redis::pipe();
            let (mut reporting, mut answers) = (Vec::new(), 0);
            for stream in read.into_iter().flat_map(|read| read.keys) {
                let id = ids
                    .iter()
                    .zip(&inboxes)
                    .find(|(_, inbox)| **inbox == stream.key);
                let Some((id, _)) = id else {
                    continue;
                };
                for entry in stream.ids {
                    after.insert(stream.key.clone(), entry.id.clone());
                    let Some(reply_to) = entry.get::<String>("replyto") else {
                        continue;
                    };
                    if entry.get::<String>("type").as_deref() == Some(REPORT) {
                        reporting.push(id.clone());
                    }
                    // As a worker commits: what it read it acknowledges in the same step.
                    replies.cmd("MULTI");
                    let done = replies.cmd("XACK").arg(&stream.key);
                    done.arg(&self.group).arg(&entry.id);
                    let reply = replies.cmd("XADD").arg(reply_to).arg("*");
                    reply.arg(&["type", "system.report.result", "status", "ok", "source", id]);
                    reply
                        .arg(&["correlationid", &entry.id])
                        .arg("data")
                        .arg(&[0x80u8][..]);
                    replies.cmd("EXEC");
                    answers += 1;
                }
            }
            if answers > 0 {
                let reports = futures_util::stream::iter(reporting)
                    .map(async |id| self.instances.heartbeat(&beat(&id, 0)).await);
                reports
                    .buffer_unordered(AT_ONCE)
                    .try_for_each(async |_| Ok(()))
                    .await?;
                replies.query_async::<Value>(&mut connection).await?;
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
