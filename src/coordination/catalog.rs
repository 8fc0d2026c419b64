//! The catalog: what the workers can be asked for, and how.
//!
//! *Who* has a handler for a type, registration says (`capabilities`). *What* the handler takes and
//! gives, its worker publishes: one key a type, which the worker writes before it registers, when it
//! registers again, and each third of the key's time to live ([`KEPT`]). So nothing needs to be
//! cleaned up: when the last worker of a type is gone, its key goes away by itself, and until then
//! nobody sees it, because only types that an active instance has are listed. Of workers that differ
//! (a rolling upgrade) the one that wrote last is shown. An instance that only registered, without
//! publishing anything, is shown with a schema that takes anything.
//!
//! The *domains* that workers read are kept for longer ([`DOMAINS_KEPT`]): a backlog that no worker
//! is left for is what an operator looks for.

use super::error::CoordinationError;
use super::store::Store;
use crate::connect::clock::whole_ms;
use crate::connect::connector::Connector;
use crate::connect::script::script;
use crate::protocol::keys::{self, Keys};
use crate::protocol::msgpack::{self, PayloadLimits};
use crate::protocol::rate::{Metered, Per};
use redis::Script;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

/// How long what a worker published is kept without being published again.
pub const KEPT: Duration = Duration::from_secs(3600);
/// How long a domain is remembered after the last worker said that it reads it.
pub const DOMAINS_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Domains that are remembered: the ones last heard of.
pub const MAX_DOMAINS: usize = 256;
/// Bytes of what is published of one handler; of a longer one the schemas are left out.
pub const MAX_METHOD: usize = 32 * 1024;
/// Methods in one answer.
pub const MAX_METHODS: usize = 1024;
/// Bytes of one answer, about: it must fit into a reply.
const MAX_ANSWER: usize = 768 * 1024;
/// Bytes of a description.
const MAX_DESCRIPTION: usize = 1024;

/// Keys read or written in one round trip.
const PAGE: usize = 64;
/// Look-ups of one call of the script: a few ms.
const LOOKUPS: usize = 500;

static OFFERED: LazyLock<Script> = LazyLock::new(|| script(include_str!("offered.lua")));

/// What a worker publishes of a handler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Method {
    /// What it does.
    pub description: String,
    /// The JSON Schema of the payload.
    pub input_schema: Value,
    /// The JSON Schema of the result.
    pub output_schema: Value,
    /// Runs that it may have.
    pub rate_limit: Option<RateLimit>,
    /// How long a run may take, in ms; `None`: as long as it takes, or not known.
    pub timeout_ms: Option<u64>,
}

/// How many runs there may be in which time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RateLimit {
    /// Runs.
    pub limit: u32,
    /// How many ms from now.
    pub period_ms: u64,
    /// Whose runs count together: `subject` or `type`; nil: those of a source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per: Option<String>,
}

impl From<Metered> for RateLimit {
    fn from(metered: Metered) -> Self {
        let Metered { rate, per } = metered;
        Self {
            limit: rate.limit,
            period_ms: whole_ms(rate.period),
            per: (per != Per::Source).then(|| per.to_string()),
        }
    }
}

impl Method {
    /// Of a handler that nobody described: it may take and give anything.
    pub fn undescribed() -> Method {
        Method {
            description: String::new(),
            input_schema: Value::Bool(true),
            output_schema: Value::Bool(true),
            rate_limit: None,
            timeout_ms: None,
        }
    }

    fn encode(&self) -> Vec<u8> {
        // Strings, numbers and JSON have a form in MessagePack.
        let encode = |method: &Method| rmp_serde::to_vec_named(method).unwrap_or_default();
        let cut = self.description.floor_char_boundary(MAX_DESCRIPTION);
        let method = Method {
            description: self.description[..cut].to_owned(),
            ..self.clone()
        };
        let bytes = encode(&method);
        if within(&bytes) {
            return bytes;
        }
        encode(&Method {
            input_schema: Value::Bool(true),
            output_schema: Value::Bool(true),
            ..method
        })
    }

    /// Reads what a worker stored of a handler; `None` if it is not one.
    pub fn decode(bytes: &[u8]) -> Option<Method> {
        within(bytes).then(|| rmp_serde::from_slice(bytes).ok())?
    }
}

/// Whether it may be stored, and decoded.
fn within(bytes: &[u8]) -> bool {
    let limits = PayloadLimits {
        bytes: MAX_METHOD,
        ..PayloadLimits::default()
    };
    msgpack::scan(bytes, &limits).is_ok()
}

/// A type that active instances have a handler for.
#[derive(Clone, Debug, PartialEq)]
pub struct Offered {
    /// The event type.
    pub kind: String,
    /// How many active instances have a handler for it.
    pub instances: u64,
    /// What a worker published of it.
    pub method: Method,
}

/// What the active instances can be asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Discovered {
    /// By type, in order; at most [`MAX_METHODS`].
    pub methods: Vec<Offered>,
    /// At least this many types are there besides, and did not fit into the answer.
    pub omitted: u64,
}

/// The catalog of one namespace. Cheap to clone; every clone and every process sees the same.
#[derive(Clone, Debug)]
pub struct Catalog {
    store: Store,
}

impl Catalog {
    /// The catalog of the namespace of `keys`.
    pub fn new(connector: Connector, keys: Keys) -> Self {
        let store = Store::new(connector, keys);
        Self { store }
    }

    /// Publishes what a worker's handlers are, for [`KEPT`], and which domains it reads.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn publish(&self, methods: &[(String, Method)]) -> Result<(), CoordinationError> {
        for page in methods.chunks(PAGE) {
            let mut writes = redis::pipe();
            for (kind, method) in page {
                writes
                    .cmd("SET")
                    .arg(self.store.keys.method(kind))
                    .arg(method.encode())
                    .arg("PX")
                    .arg(whole_ms(KEPT));
            }
            self.store.ask::<()>(&writes).await?;
        }
        let domains: BTreeSet<&str> = methods
            .iter()
            .map(|(kind, _)| keys::domain_of(kind))
            .collect();
        if domains.is_empty() {
            return Ok(());
        }
        let now = self.store.now().await?;
        let key = self.store.keys.read_domains();
        let mut writes = redis::pipe();
        let heard_of = writes.cmd("ZADD").arg(&key);
        for domain in domains {
            heard_of.arg(now).arg(domain);
        }
        let oldest = now.saturating_sub(whole_ms(DOMAINS_KEPT));
        writes
            .cmd("ZREMRANGEBYSCORE")
            .arg(&key)
            .arg("-inf")
            .arg(oldest);
        writes
            .cmd("ZREMRANGEBYRANK")
            .arg(&key)
            .arg(0)
            .arg(-1 - MAX_DOMAINS as i64);
        Ok(self.store.ask(&writes).await?)
    }

    /// The domains that workers read, now or within [`DOMAINS_KEPT`], in order.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn domains(&self) -> Result<Vec<String>, CoordinationError> {
        let mut reads = redis::pipe();
        reads
            .cmd("ZRANGE")
            .arg(self.store.keys.read_domains())
            .arg(0)
            .arg(-1);
        let (mut domains,): (Vec<String>,) = self.store.ask(&reads).await?;
        domains.sort();
        Ok(domains)
    }

    /// What the active instances have handlers for, in one domain or in all.
    ///
    /// # Errors
    /// `Invalid` for a malformed domain, `Bus` else.
    pub async fn discover(&self, domain: Option<&str>) -> Result<Discovered, CoordinationError> {
        let domain = domain.unwrap_or_default();
        if !domain.is_empty() && keys::check_event_type(&format!("{domain}.x")).is_err()
            || domain.contains('.')
        {
            let shown: String = domain.chars().take(keys::MAX_TYPE).collect();
            return Err(CoordinationError::Invalid(format!(
                "domain: {shown:?} is not the part of an event type before its first dot"
            )));
        }
        let (offered, mut omitted) = self.offered(domain).await?;
        let mut methods = Vec::with_capacity(offered.len());
        let mut bytes = 0;
        for page in offered.chunks(PAGE) {
            let mut reads = redis::pipe();
            for (kind, _) in page {
                reads.cmd("GET").arg(self.store.keys.method(kind));
            }
            let published: Vec<Option<Vec<u8>>> = self.store.ask(&reads).await?;
            for ((kind, instances), published) in page.iter().zip(published) {
                bytes += kind.len() + published.as_ref().map_or(0, Vec::len) + 128;
                if bytes > MAX_ANSWER {
                    omitted += 1;
                    continue;
                }
                let method = published.and_then(|bytes| Method::decode(&bytes));
                methods.push(Offered {
                    kind: kind.clone(),
                    instances: *instances,
                    method: method.unwrap_or_else(Method::undescribed),
                });
            }
        }
        Ok(Discovered { methods, omitted })
    }

    /// The types, each with its number of active instances, and how many more there are.
    async fn offered(&self, domain: &str) -> Result<(Vec<(String, u64)>, u64), CoordinationError> {
        let mut offered: Vec<(String, u64)> = Vec::new();
        let mut after = String::new();
        loop {
            let mut call = OFFERED.prepare_invoke();
            call.key(self.store.keys.capabilities())
                .key(self.store.keys.active())
                .arg(domain)
                .arg(&after)
                .arg(LOOKUPS);
            let (next, found): (String, Vec<(String, u64)>) = self.store.invoke(&call).await?;
            offered.extend(found);
            // What is over the limit is counted in one more page at the most.
            if next.is_empty() || offered.len() > MAX_METHODS {
                let omitted = offered.len().saturating_sub(MAX_METHODS) as u64;
                offered.truncate(MAX_METHODS);
                return Ok((offered, omitted));
            }
            after = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn method(schema: Value) -> Method {
        Method {
            description: "Resizes.".into(),
            input_schema: schema,
            output_schema: json!({"type": "integer"}),
            rate_limit: Some(RateLimit {
                limit: 5,
                period_ms: 1000,
                per: Some("subject".into()),
            }),
            timeout_ms: Some(30_000),
        }
    }

    #[test]
    fn a_method_comes_back_as_it_was_published() {
        let method = method(json!({"type": "object", "minimum": -1.5, "required": ["a"]}));
        assert_eq!(Method::decode(&method.encode()), Some(method));
        assert_eq!(Method::decode(b"\xc1"), None);
    }

    #[test]
    fn a_schema_that_is_too_long_or_too_deep_becomes_any() {
        let deep = (0..40).fold(json!(1), |inner, _| json!({ "not": inner }));
        for schema in [json!({"description": "x".repeat(MAX_METHOD)}), deep] {
            let kept = Method::decode(&method(schema).encode()).unwrap();
            assert_eq!(kept.description, "Resizes.");
            assert_eq!(kept.input_schema, Value::Bool(true));
        }
    }
}
