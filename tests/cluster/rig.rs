//! A cluster, a client and workers for one test.

use crate::support::cluster::Cluster;
use crate::support::users;
use convoke::client::Client;
use convoke::settings::{RedisUrl, Settings};
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Worker};
use std::collections::HashMap;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A worker that runs; dropped, it drains.
pub(crate) struct Running {
    drain: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// Drains it and waits until it is gone.
    pub(crate) async fn stop(self) {
        self.drain.cancel();
        self.task.await.unwrap();
    }
}

/// Quick settings: retries and takeovers within a test's patience.
pub(crate) fn settings(cluster: &Cluster, partitions: u16) -> Settings {
    Settings {
        redis_url: RedisUrl::new(cluster.url()),
        partitions,
        heartbeat_ttl: Duration::from_secs(5),
        claim_idle: Duration::from_secs(5),
        backoff_base: Duration::from_millis(20),
        backoff_cap: Duration::from_millis(200),
        drain_timeout: Duration::from_secs(5),
        ..Settings::default()
    }
}

pub(crate) fn client(cluster: &Cluster, partitions: u16) -> Client {
    let settings = Settings {
        redis_url: RedisUrl::new(cluster.url_for(users::PUBLISHER)),
        partitions,
        ..Settings::default()
    };
    Client::of(&settings).unwrap()
}

pub(crate) fn builder(cluster: &Cluster, partitions: u16) -> Builder {
    Worker::builder().settings(settings(cluster, partitions))
}

pub(crate) fn start(builder: Builder) -> Running {
    let worker = builder.build().unwrap();
    let drain = CancellationToken::new();
    let until = drain.clone();
    let task = tokio::spawn(async move { worker.run_until(until).await.unwrap() });
    Running { drain, task }
}

/// Doubles a number.
pub(crate) async fn double(_: Context, number: i64) -> Result<i64, HandlerError> {
    Ok(2 * number)
}

type Fields = Vec<(String, Vec<u8>)>;

/// What the entries of a stream say in one of their fields, in their order.
pub(crate) fn told(cluster: &Cluster, stream: &str, field: &str) -> Vec<String> {
    // A moment in which its node takes no commands: nothing is seen there.
    let entries: Vec<(String, Fields)> = cluster
        .try_at(stream, &["XRANGE", stream, "-", "+"])
        .unwrap_or_default();
    let values = entries.into_iter().map(|(_, fields)| {
        let found = fields.into_iter().find(|(name, _)| name == field);
        let (_, value) = found.unwrap_or_else(|| panic!("{stream}: no {field}"));
        value.escape_ascii().to_string()
    });
    values.collect()
}

/// The same, and how often.
pub(crate) fn counted(cluster: &Cluster, stream: &str, field: &str) -> HashMap<String, usize> {
    let mut counted = HashMap::new();
    for value in told(cluster, stream, field) {
        *counted.entry(value).or_default() += 1;
    }
    counted
}

/// The same over all partitions of a domain.
pub(crate) fn counted_in(
    cluster: &Cluster,
    domain: &str,
    partitions: u16,
    kind: &str,
    field: &str,
) -> HashMap<String, usize> {
    let mut all = HashMap::new();
    for partition in 0..partitions {
        let stream = format!("{{cb:{domain}:{partition}}}:{kind}");
        for (value, count) in counted(cluster, &stream, field) {
            *all.entry(value).or_default() += count;
        }
    }
    all
}

/// Entries that are not acknowledged, or not read, over all partitions of a domain.
pub(crate) fn left(cluster: &Cluster, domain: &str, partitions: u16) -> i64 {
    let mut left = 0;
    for partition in 0..partitions {
        let stream = format!("{{cb:{domain}:{partition}}}:events");
        // Before the first worker there is neither stream nor group.
        let groups: Vec<HashMap<String, redis::Value>> = cluster
            .try_at(&stream, &["XINFO", "GROUPS", &stream])
            .unwrap_or_default();
        for name in ["pending", "lag"] {
            match groups.first().and_then(|group| group.get(name)) {
                Some(redis::Value::Int(number)) => left += number,
                // Nobody can tell.
                _ => left += 1,
            }
        }
    }
    left
}
