//! The range of each setting.

use super::Settings;
use super::outcomes::OutcomesKept;
use crate::protocol::bounds::{LEASE_MS, MAX_CAPACITY, MAX_ROLES, TTL_MS};
use crate::protocol::keys;
use crate::protocol::pattern::Patterned;
use std::ops::RangeInclusive;
use std::time::Duration;

/// A day in ms.
const DAY: u64 = 24 * 60 * 60 * 1000;

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

impl Settings {
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
        self.handler_limits()?;
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
        if !self.ledger_outcomes_retention.is_zero() {
            let (setting, kept) = ("ledger_outcomes_retention", self.ledger_outcomes_retention);
            lasting(setting, kept, 60_000..=36_500 * DAY)?;
        }
        let kept = OutcomesKept::parse(&self.ledger_outcomes)
            .map_err(|problem| SettingError::new("ledger_outcomes", problem))?;
        if !kept.is_nothing() && self.database_url.is_empty() {
            let problem = "outcomes are kept in the ledger: it needs database_url beside it".into();
            return Err(SettingError::new("ledger_outcomes", problem));
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
pub(super) fn lacks(feature: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{CommandLine, DatabaseUrl, Pipe, RedisUrl};

    #[test]
    fn every_range_is_checked_and_the_error_names_setting_and_value() {
        type Change = fn(&mut Settings);
        let changes: [(&str, &str, Change); 40] = [
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
            ("ledger_outcomes", "\"order\"", |s| {
                s.ledger_outcomes = vec!["order".into()]
            }),
            ("ledger_outcomes", "database_url", |s| {
                s.ledger_outcomes = vec!["order=all".into()]
            }),
            ("ledger_outcomes_retention", "1s", |s| {
                s.ledger_outcomes_retention = Duration::from_secs(1)
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
