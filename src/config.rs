//! The settings: one documented struct with every default.
//!
//! The command line fills it from a file, the environment and flags (flags win); a library user
//! sets fields through [`crate::Worker::builder`].

use crate::bus::event::Limits;
use crate::bus::keys::{Keys, NameError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Everything that can be set. Durations are written `500ms`, `2s`, `1m` in files, variables and flags.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where Redis is: `redis://` or `rediss://` (TLS).
    pub redis_url: RedisUrl,
    /// The first part of every key: 1 to 32 of `a-z 0-9 _ -`.
    pub namespace: String,
    /// Streams that each data domain is split over; 0 means plain names without hash tags (no cluster).
    pub partitions: u16,
    /// The consumer group of the workers.
    pub group: String,
    /// The instance id; empty means one made from the host name and a random part.
    pub id: String,
    /// Roles that the instance holds.
    pub role: Vec<String>,
    /// Tasks that may be assigned to the instance at a time.
    pub capacity: u32,
    /// Handlers of the data lanes that may be waiting at a time; 1 to 65536.
    pub concurrency: usize,
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
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            redis_url: RedisUrl::default(),
            namespace: "cb".into(),
            partitions: 0,
            group: "workers".into(),
            id: String::new(),
            role: vec!["worker".into()],
            capacity: 10,
            concurrency: 64,
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
            stream_history: 10_000,
            dedup_window: Duration::from_secs(3600),
            reply_ttl: Duration::from_secs(3600),
        }
    }
}

impl Settings {
    /// The key names.
    pub fn keys(&self) -> Result<Keys, NameError> {
        match self.partitions {
            0 => Keys::new(&self.namespace),
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

/// A Redis URL. It may carry a password, so it never prints itself whole.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// Wraps a URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// The URL with its password: for opening connections, nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it carries a password.
    pub fn has_password(&self) -> bool {
        self.userinfo().is_some_and(|info| info.contains(':'))
    }

    fn userinfo(&self) -> Option<&str> {
        let (_, rest) = self.0.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        authority.rsplit_once('@').map(|(info, _)| info)
    }
}

impl Default for RedisUrl {
    fn default() -> Self {
        Self("redis://127.0.0.1:6379".into())
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A password may hold any character, so everything from the scheme to the last @ goes.
        match (self.0.split_once("://"), self.0.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, host))) => write!(f, "{scheme}://***@{host}"),
            _ => f.write_str(&self.0),
        }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Durations as people write them.
mod duration {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::time::Duration;

    pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*duration))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_duration(&text)
            .map_err(|error| D::Error::custom(format!("{text:?}: {error}; write 500ms, 2s or 1m")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_never_prints_its_password() {
        for url in [
            "redis://:s3cret@host:6379/0",
            "rediss://user:s3cret@host/0",
            "redis://user:s3cr/et@s3cret@host",
        ] {
            let url = RedisUrl::new(url);
            assert!(!format!("{url} {url:?}").contains("s3cr"), "{url}");
        }
        assert!(RedisUrl::new("redis://u:p@h").has_password());
        assert!(!RedisUrl::new("redis://u@h").has_password());
        assert!(!RedisUrl::default().has_password());
    }
}
