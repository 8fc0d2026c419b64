//! The settings: one documented struct with every default.
//!
//! The command line fills it from a file, the environment and flags (flags win); a library user
//! sets fields through [`Worker::builder`](crate::Worker::builder), or loads the same sources by [`Worker::from_env`](crate::Worker::from_env).

mod check;
mod client;
mod command;
mod database_url;
mod drivers;
mod limit;
#[doc(hidden)]
pub mod outcomes;
mod pipe;
#[cfg(feature = "config")]
#[doc(hidden)]
pub mod sources;
pub(crate) mod variables;

pub use crate::connect::sentinel_url::{Login, SentinelUrl};
pub use crate::connect::url::RedisUrl;
pub use check::SettingError;
pub use client::ConnectError;
pub use command::CommandLine;
pub use database_url::{DatabaseKind, DatabaseUrl};
pub use pipe::{Pipe, PipeFormat};
#[cfg(feature = "config")]
pub use sources::LoadError;

use crate::client::{ClientOptions, DEDUP_WINDOW, REPLY_TTL, STREAM_HISTORY};
use crate::connect::options::ConnectOptions;
use crate::protocol::event::Limits;
use crate::protocol::keys::{Keys, NameError};
use crate::protocol::pattern::Patterns;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Everything that can be set. Durations are written `500ms`, `2s`, `1m` in files, variables and flags.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where Redis is: `redis://` or `rediss://` (TLS), which asks whether the server is a node of a cluster; or the
    /// Sentinels that watch it: `redis+sentinel://` or `rediss+sentinel://`, see [`SentinelUrl`]; or nodes of a
    /// cluster: `redis+cluster://host:port,host:port` or `rediss+cluster://`.
    pub redis_url: RedisUrl,
    /// The file (PEM) of the authorities that a `rediss://` server's certificate may be of, in the
    /// place of those that the system trusts. Read at the start.
    pub tls_ca: String,
    /// The file (PEM) of the certificate, with its chain, that is shown to a `rediss://` server. It
    /// goes with `tls_key`.
    pub tls_cert: String,
    /// The file (PEM) of its private key. The path is no secret; the file should be its owner's.
    pub tls_key: String,
    /// Where the ledger is: `postgres://`, `sqlite:PATH`, or `sqlite:` for a file under the state
    /// directory. Empty: a worker keeps no ledger.
    pub database_url: DatabaseUrl,
    /// The first part of every key: 1 to 32 of `a-z 0-9 _ -`.
    pub namespace: String,
    /// Streams that each data domain is split over; 0 means plain names without hash tags, and 1 on a cluster.
    pub partitions: u16,
    /// The consumer group of the workers.
    pub group: String,
    /// The instance id; empty means one made from the host name and a random part.
    pub id: String,
    /// Roles that the instance holds.
    pub role: Vec<String>,
    /// Types that nobody needs to handle, such as `image.resized`, or those of a whole domain: `image.*`.
    /// Their streams are read. Events of them that nobody has a handler for, and nobody asked an answer for,
    /// are acknowledged and counted instead of becoming dead letters.
    pub ignore: Vec<String>,
    /// Tasks that may be assigned to the instance at a time.
    pub capacity: u32,
    /// Handlers of the data lanes that may be waiting at a time; 1 to 65536.
    pub concurrency: usize,
    /// How much of `concurrency` the runs of one event type may hold, in percent of what those of other
    /// types leave, so that a type that hangs starves no other; 1 to 100. At least one run of each; a
    /// worker with one handler has no others to spare anything for.
    pub type_share: u8,
    /// By what the handlers of a type are limited, in the place of what their policy says, such as
    /// `mail.send=concurrency:4,total:9,rate:10/s,per:source,timeout:5s,attempts:3,circuit:5/30s`. Without `per` a rate is
    /// that of the whole type; `mail.send=4` is a concurrency, and `total` that of all workers that say so.
    pub limit: Vec<String>,
    /// How long an instance counts as alive after a pulse. It pulses every third of it.
    #[serde(with = "duration")]
    pub heartbeat_ttl: Duration,
    /// How long an entry may be idle before anyone takes it over. A running handler renews every third of it.
    #[serde(with = "duration")]
    pub claim_idle: Duration,
    /// How long a handler may run, unless its policy says otherwise.
    #[serde(with = "duration")]
    pub handler_timeout: Duration,
    /// Tries of an event whose failures are retryable, the first included.
    pub max_attempts: u32,
    /// Deliveries of an event that is never committed before it counts as poison.
    pub max_deliveries: u32,
    /// The upper bound of the wait before the second try; doubled for each further one.
    #[serde(with = "duration")]
    pub backoff_base: Duration,
    /// The longest wait between tries.
    #[serde(with = "duration")]
    pub backoff_cap: Duration,
    /// Bytes in a payload.
    pub max_payload: usize,
    /// How long shutdown waits for running handlers.
    #[serde(with = "duration")]
    pub drain_timeout: Duration,
    /// How long the holder of a batch keeps it without progress.
    #[serde(with = "duration")]
    pub batch_lease: Duration,
    /// Entries that capped streams and the history of event streams keep, about.
    pub stream_history: u64,
    /// How long a published id is remembered for deduplication.
    #[serde(with = "duration")]
    pub dedup_window: Duration,
    /// How long a reply stream outlives its last reply.
    #[serde(with = "duration")]
    pub reply_ttl: Duration,
    /// How long the ledger keeps a fact; zero means for good.
    #[serde(with = "duration")]
    pub ledger_retention: Duration,
    /// Of which events the ledger keeps what became of their runs: `DOMAIN=all`, `DOMAIN=1/N` (one of N, by the event's id)
    /// or `DOMAIN=none` each; `*` stands for the domains that are not named. Empty: of none.
    pub ledger_outcomes: Vec<String>,
    /// How long it keeps them; zero means for good.
    #[serde(with = "duration")]
    pub ledger_outcomes_retention: Duration,
    /// The command of an MCP server that speaks over its standard input and output, for `sh -c`.
    /// Empty: none, and `system.health` calls it disabled. It may hold a token: it shows in no output and
    /// no argument list.
    pub mcp_server: CommandLine,
    /// Programs that stay alive and handle a type of event, by that type.
    pub pipe: BTreeMap<String, Pipe>,
    /// In which pattern system events are answered where the bus says nothing of it: see
    /// [`patterns`](crate::docs::patterns).
    pub patterns: Patterns,
    /// The directory in which the worker keeps the socket that `convoke probe` asks: one of the user's own, made
    /// if it is not there. Empty: a library's worker keeps none, and `convoke worker` takes the one of
    /// [`directory`](crate::worker::vital::probe::directory).
    pub runtime_dir: String,
    /// The file into which the worker writes the metrics of the bus every 15 s, as a whole, in Prometheus's
    /// text format: for the textfile collector of `node_exporter`, which wants a name that ends in `.prom`. Empty:
    /// none.
    pub metrics_file: String,
    /// What this version of the program is called, at most 64 bytes: `convoke drain --version` finds workers by it.
    pub app_version: String,
    /// The file to which the worker adds spans, metrics and its log for OpenTelemetry, as JSON lines of OTLP; `-` is
    /// standard output, and `{id}` in it stands for the instance's id. Empty: none. See
    /// [`operating`](crate::docs::operating#telemetry).
    pub telemetry_file: String,
    /// Which part of the traces that begin at this worker is told, 0 to 1. One that a publisher began is told if
    /// the publisher says so.
    pub telemetry_sample: f64,
    /// Bytes of that file at the most: then it is put aside as `.1`, in the place of the one before.
    pub telemetry_size: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            redis_url: RedisUrl::default(),
            tls_ca: String::new(),
            tls_cert: String::new(),
            tls_key: String::new(),
            database_url: DatabaseUrl::default(),
            namespace: "cb".into(),
            partitions: 0,
            group: "workers".into(),
            id: String::new(),
            role: vec!["worker".into()],
            ignore: Vec::new(),
            capacity: 10,
            concurrency: 64,
            type_share: 75,
            limit: Vec::new(),
            heartbeat_ttl: Duration::from_secs(30),
            claim_idle: Duration::from_secs(60),
            handler_timeout: Duration::from_secs(30),
            max_attempts: 5,
            max_deliveries: 5,
            backoff_base: Duration::from_millis(500),
            backoff_cap: Duration::from_secs(60),
            max_payload: 1024 * 1024,
            drain_timeout: Duration::from_secs(30),
            batch_lease: Duration::from_secs(30),
            stream_history: STREAM_HISTORY,
            dedup_window: DEDUP_WINDOW,
            reply_ttl: REPLY_TTL,
            // A year.
            ledger_retention: Duration::from_secs(31_557_600),
            ledger_outcomes: Vec::new(),
            ledger_outcomes_retention: Duration::from_secs(30 * 24 * 3600),
            mcp_server: CommandLine::default(),
            pipe: BTreeMap::new(),
            patterns: Patterns::default(),
            runtime_dir: String::new(),
            metrics_file: String::new(),
            app_version: env!("CARGO_PKG_VERSION").into(),
            telemetry_file: String::new(),
            telemetry_sample: 1.0,
            telemetry_size: 64 << 20,
        }
    }
}

impl Settings {
    /// The key names.
    pub fn keys(&self) -> Result<Keys, NameError> {
        match self.partitions {
            0 if !self.redis_url.is_cluster() => Keys::new(&self.namespace),
            partitions => Keys::tagged(&self.namespace, partitions),
        }
    }

    /// The bounds on events.
    pub fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        limits.payload.bytes = self.max_payload;
        limits
    }
}

impl From<&Settings> for ConnectOptions {
    fn from(settings: &Settings) -> Self {
        Self {
            url: settings.redis_url.clone(),
            tls_ca: settings.tls_ca.clone(),
            tls_cert: settings.tls_cert.clone(),
            tls_key: settings.tls_key.clone(),
            namespace: settings.namespace.clone(),
        }
    }
}

impl From<&Settings> for ClientOptions {
    fn from(settings: &Settings) -> Self {
        Self {
            limits: settings.limits(),
            dedup_window: settings.dedup_window,
            stream_history: settings.stream_history,
            reply_ttl: settings.reply_ttl,
            ..Self::default()
        }
    }
}

/// Durations as people write them.
mod duration {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_duration(&text)
            .map_err(|error| D::Error::custom(format!("{text:?}: {error}; write 500ms, 2s or 1m")))
    }
}
