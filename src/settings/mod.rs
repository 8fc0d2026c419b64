//! The settings: one documented struct with every default.
//!
//! The command line fills it from a file, the environment and flags (flags win); a library user
//! sets fields through [`crate::Worker::builder`].

mod client;
mod command;
mod database_url;
mod drivers;
mod pipe;
#[cfg(feature = "config")]
#[doc(hidden)]
pub mod sources;
pub(crate) mod variables;

pub use crate::connect::sentinel_url::{Login, SentinelUrl};
pub use crate::connect::url::RedisUrl;
pub use client::ConnectError;
pub use command::CommandLine;
pub use database_url::{DatabaseKind, DatabaseUrl};
pub use pipe::{Pipe, PipeFormat};
#[cfg(feature = "config")]
pub use sources::LoadError;

use crate::client::{ClientOptions, DEDUP_WINDOW, REPLY_TTL, STREAM_HISTORY};
use crate::connect::options::ConnectOptions;
use crate::protocol::bounds::{LEASE_MS, MAX_CAPACITY, MAX_ROLES, TTL_MS};
use crate::protocol::event::Limits;
use crate::protocol::keys::{self, Keys, NameError};
use crate::protocol::pattern::{Patterned, Patterns};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Everything that can be set. Durations are written `500ms`, `2s`, `1m` in files, variables and flags.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where Redis is: `redis://` or `rediss://` (TLS); or the Sentinels that watch it:
    /// `redis+sentinel://` or `rediss+sentinel://`, see [`SentinelUrl`]; or nodes of a cluster:
    /// `redis+cluster://host:port,host:port` or `rediss+cluster://`.
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

    /// Checks every setting against its range.
    ///
    /// # Errors
    /// The first setting that is out of range, with its value and what would do.
    pub fn check(&self) -> Result<(), SettingError> {
        if let Err(problem) = self.redis_url.check() {
            return Err(SettingError::new("redis_url", problem));
        }
        for (setting, path, other, with) in [
            ("tls_cert", &self.tls_cert, &self.tls_key, "tls_key"),
            ("tls_key", &self.tls_key, &self.tls_cert, "tls_cert"),
        ] {
            if !path.is_empty() && other.is_empty() {
                let problem = format!("{path} needs {with} beside it");
                return Err(SettingError::new(setting, problem));
            }
        }
        for (setting, path) in [("tls_ca", &self.tls_ca), ("tls_cert", &self.tls_cert)] {
            if !path.is_empty() && !self.redis_url.is_tls() {
                let problem = format!("{path} is of no use without rediss:// in redis_url");
                return Err(SettingError::new(setting, problem));
            }
        }
        if let Err(problem) = self.database_url.check() {
            return Err(SettingError::new("database_url", problem));
        }
        if cfg!(not(feature = "mcp")) && !self.mcp_server.expose().trim().is_empty() {
            let problem = format!("a command {}", lacks("mcp"));
            return Err(SettingError::new("mcp_server", problem));
        }
        self.keys()
            .map_err(|error| SettingError::new("namespace", error.to_string()))?;
        within("partitions", self.partitions.into(), 0..=1024)?;
        named("group", &self.group)?;
        if !self.id.is_empty() {
            named("id", &self.id)?;
        }
        if self.role.len() > MAX_ROLES {
            let problem = format!(
                "{} roles are over the limit of {MAX_ROLES}",
                self.role.len()
            );
            return Err(SettingError::new("role", problem));
        }
        for role in &self.role {
            named("role", role)?;
        }
        for pattern in &self.ignore {
            ignorable(pattern)?;
        }
        within("capacity", self.capacity.into(), 0..=MAX_CAPACITY.into())?;
        within("concurrency", self.concurrency as u64, 1..=65_536)?;
        within("type_share", self.type_share.into(), 1..=100)?;
        within("max_attempts", self.max_attempts.into(), 1..=1000)?;
        within("max_deliveries", self.max_deliveries.into(), 1..=1000)?;
        within("max_payload", self.max_payload as u64, 1..=512 << 20)?;
        within("stream_history", self.stream_history, 1..=1_000_000_000)?;
        if !(0.0..=1.0).contains(&self.telemetry_sample) {
            let problem = format!("{} is not 0 to 1", self.telemetry_sample);
            return Err(SettingError::new("telemetry_sample", problem));
        }
        within("telemetry_size", self.telemetry_size, 1 << 20..=1 << 40)?;
        lasting("heartbeat_ttl", self.heartbeat_ttl, TTL_MS)?;
        lasting("claim_idle", self.claim_idle, 100..=DAY)?;
        lasting("handler_timeout", self.handler_timeout, 1..=DAY)?;
        lasting("backoff_base", self.backoff_base, 1..=DAY)?;
        lasting("backoff_cap", self.backoff_cap, 1..=30 * DAY)?;
        lasting("drain_timeout", self.drain_timeout, 1..=DAY)?;
        lasting("batch_lease", self.batch_lease, LEASE_MS)?;
        lasting("dedup_window", self.dedup_window, 1..=30 * DAY)?;
        lasting("reply_ttl", self.reply_ttl, 1000..=30 * DAY)?;
        if !self.ledger_retention.is_zero() {
            lasting(
                "ledger_retention",
                self.ledger_retention,
                DAY..=36_500 * DAY,
            )?;
        }
        for (kind, pipe) in &self.pipe {
            let problem = match keys::is_event_type(kind.as_bytes()) {
                true => pipe.problem(),
                false => Some("not an event type".to_owned()),
            };
            if let Some(problem) = problem {
                return Err(SettingError::new("pipe", format!("{kind}: {problem}")));
            }
        }
        for event in Patterned::ALL {
            if let Err(problem) = event.check(self.patterns.of(event)) {
                return Err(SettingError::new(event.setting(), problem));
            }
        }
        if self.backoff_cap < self.backoff_base {
            let problem = format!(
                "{} is shorter than backoff_base, {}",
                humantime::format_duration(self.backoff_cap),
                humantime::format_duration(self.backoff_base)
            );
            return Err(SettingError::new("backoff_cap", problem));
        }
        Ok(())
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

/// A day in ms.
pub(crate) const DAY: u64 = 24 * 60 * 60 * 1000;

/// A setting that is out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
#[non_exhaustive]
pub struct SettingError {
    /// Its name.
    pub setting: &'static str,
    /// Its value and what would do.
    pub problem: String,
}

impl SettingError {
    fn new(setting: &'static str, problem: String) -> Self {
        Self { setting, problem }
    }
}

fn ignorable(pattern: &str) -> Result<(), SettingError> {
    let kind = match pattern.strip_suffix(".*") {
        Some(domain) => format!("{domain}.a"),
        None => pattern.to_owned(),
    };
    if !keys::is_event_type(kind.as_bytes()) {
        let problem = format!("{pattern:?} is neither an event type nor a domain and .*");
        return Err(SettingError::new("ignore", problem));
    }
    if keys::is_control(keys::domain_of(&kind)) {
        let problem = format!("{pattern} belongs to the control plane");
        return Err(SettingError::new("ignore", problem));
    }
    Ok(())
}

/// What is wrong with a setting that is of no use in this build.
fn lacks(feature: &str) -> String {
    format!(
        "needs the feature `{feature}` of the crate convoke, and this program is built without it"
    )
}

fn within(
    setting: &'static str,
    value: u64,
    range: RangeInclusive<u64>,
) -> Result<(), SettingError> {
    if range.contains(&value) {
        return Ok(());
    }
    let problem = format!("{value} is not {} to {}", range.start(), range.end());
    Err(SettingError::new(setting, problem))
}

fn lasting(
    setting: &'static str,
    value: Duration,
    range_ms: RangeInclusive<u64>,
) -> Result<(), SettingError> {
    let text = |duration| humantime::format_duration(duration).to_string();
    let (least, most) = (
        Duration::from_millis(*range_ms.start()),
        Duration::from_millis(*range_ms.end()),
    );
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let problem = format!("{} is not {} to {}", text(value), text(least), text(most));
    Err(SettingError::new(setting, problem))
}

fn named(setting: &'static str, name: &str) -> Result<(), SettingError> {
    if keys::is_name(name) {
        return Ok(());
    }
    let name: String = name.chars().take(keys::MAX_NAME).collect();
    let problem = format!("{name:?} is not 1 to 128 of the characters A-Z a-z 0-9 . _ -");
    Err(SettingError::new(setting, problem))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_is_checked_and_the_error_names_setting_and_value() {
        type Change = fn(&mut Settings);
        let changes: [(&str, &str, Change); 37] = [
            ("redis_url", "no service", |s| {
                s.redis_url = RedisUrl::new("redis+sentinel://h")
            }),
            ("redis_url", "http://h", |s| {
                s.redis_url = RedisUrl::new("http://h")
            }),
            ("namespace", "\"Cb\"", |s| s.namespace = "Cb".into()),
            ("partitions", "1025", |s| s.partitions = 1025),
            ("group", "\"a b\"", |s| s.group = "a b".into()),
            ("id", "\"a b\"", |s| s.id = "a b".into()),
            ("role", "\"\"", |s| s.role = vec![String::new()]),
            ("role", "33", |s| s.role = vec!["a".into(); 33]),
            ("ignore", "\"image\"", |s| s.ignore = vec!["image".into()]),
            ("ignore", "system.*", |s| s.ignore = vec!["system.*".into()]),
            ("capacity", "1000001", |s| s.capacity = 1_000_001),
            ("concurrency", "0", |s| s.concurrency = 0),
            ("concurrency", "65537", |s| s.concurrency = 65_537),
            ("type_share", "0", |s| s.type_share = 0),
            ("type_share", "101", |s| s.type_share = 101),
            ("heartbeat_ttl", "99ms", |s| {
                s.heartbeat_ttl = Duration::from_millis(99)
            }),
            ("heartbeat_ttl", "1h 1s", |s| {
                s.heartbeat_ttl = Duration::from_secs(3601)
            }),
            ("claim_idle", "0s", |s| s.claim_idle = Duration::ZERO),
            ("handler_timeout", "0s", |s| {
                s.handler_timeout = Duration::ZERO
            }),
            ("max_attempts", "0", |s| s.max_attempts = 0),
            ("max_deliveries", "0", |s| s.max_deliveries = 0),
            ("backoff_cap", "1ms", |s| {
                s.backoff_cap = Duration::from_millis(1)
            }),
            ("max_payload", "536870913", |s| {
                s.max_payload = (512 << 20) + 1
            }),
            ("drain_timeout", "0s", |s| s.drain_timeout = Duration::ZERO),
            ("pipe", "nodot: not an event type", |s| {
                s.pipe.insert("nodot".into(), Pipe::new("a"));
            }),
            ("pipe", "a.b: no command", |s| {
                s.pipe.insert("a.b".into(), Pipe::new(" "));
            }),
            ("pipe", "workers: 0", |s| {
                s.pipe.insert(
                    "a.b".into(),
                    Pipe {
                        workers: 0,
                        ..Pipe::new("a")
                    },
                );
            }),
            ("stream_history", "0", |s| s.stream_history = 0),
            ("telemetry_sample", "1.5", |s| s.telemetry_sample = 1.5),
            ("telemetry_sample", "NaN", |s| s.telemetry_sample = f64::NAN),
            ("telemetry_size", "1", |s| s.telemetry_size = 1),
            ("database_url", "mysql://***@h", |s| {
                s.database_url = DatabaseUrl::new("mysql://u:p@h")
            }),
            ("tls_cert", "c.pem", |s| s.tls_cert = "c.pem".into()),
            ("tls_key", "k.pem", |s| s.tls_key = "k.pem".into()),
            ("tls_ca", "ca.pem", |s| s.tls_ca = "ca.pem".into()),
            ("tls_cert", "c.pem", |s| {
                (s.tls_cert, s.tls_key) = ("c.pem".into(), "k.pem".into())
            }),
            ("ledger_retention", "1h", |s| {
                s.ledger_retention = Duration::from_secs(3600)
            }),
        ];
        assert_eq!(Settings::default().check(), Ok(()));
        for (setting, value, change) in changes {
            let mut settings = Settings::default();
            change(&mut settings);
            let error = settings.check().unwrap_err();
            assert_eq!(error.setting, setting, "{error}");
            assert!(error.problem.contains(value), "{error}");
        }
    }

    #[test]
    fn a_setting_that_needs_a_feature_is_refused_without_it() {
        type Change = fn(&mut Settings);
        let changes: [(&str, &str, bool, Change); 3] = [
            (
                "database_url",
                "ledger-sqlite",
                cfg!(feature = "ledger-sqlite"),
                |s| s.database_url = DatabaseUrl::new("sqlite:ledger.db"),
            ),
            (
                "database_url",
                "ledger-postgres",
                cfg!(feature = "ledger-postgres"),
                |s| s.database_url = DatabaseUrl::new("postgres://u:s3cret@h/db"),
            ),
            ("mcp_server", "mcp", cfg!(feature = "mcp"), |s| {
                s.mcp_server = CommandLine::from("serve s3cret".to_owned())
            }),
        ];
        for (setting, feature, is_there, change) in changes {
            let mut settings = Settings::default();
            change(&mut settings);
            match settings.check() {
                Ok(()) => assert!(is_there, "{feature}"),
                Err(error) => {
                    assert!(!is_there, "{error}");
                    assert_eq!(error.setting, setting);
                    let needed = format!("needs the feature `{feature}`");
                    assert!(error.problem.contains(&needed), "{error}");
                    assert!(!error.problem.contains("s3cret"), "{error}");
                }
            }
        }
    }
}
