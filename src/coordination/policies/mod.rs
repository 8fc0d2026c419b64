//! Policies: what operators ask of the events of a type, a domain or a subject, while all goes on.
//!
//! One document for each scope, in one hash of the control plane. A change is checked against the version that it
//! replaces, and told by the fact `policy.changed` in the same step. Workers hold the documents in memory: they read
//! them when they start, and again where the number of the last change is another one. They look at that number with
//! each pulse, and when the fact is told.
//!
//! | part | of | what it does |
//! |---|---|---|
//! | `pause` | type, domain, subject | what it names waits, in order, until the pause is taken back or its time passes |
//! | `rate` | type | at most this many runs begin in a period |
//! | `concurrency` | type | at most this many go on in each worker, and in all of them |
//! | `timeout_ms`, `max_attempts` | type, domain | how long a run may take, and how often an event is tried |
//!
//! A limit stands in for that of the handler's own policy. What a type's document says goes before its domain's.

mod held;
mod history;
mod parts;
mod scope;

pub use held::{Documents, Paused};
pub use history::{KEPT_CHANGES, MAX_CHANGES, PolicyChange};
pub use parts::{Ends, MAX_REASON, PARTS, Pause, PolicyPart, RunLimits, period_ms};
pub use scope::Scope;

use super::bounds::invalid;
use super::error::CoordinationError;
use super::store::Store;
use crate::connect::clock::ServerTime;
use crate::connect::connector::Connector;
use crate::connect::script::script;
use crate::mutex::locked;
use crate::protocol::event::Entry;
use crate::protocol::keys::Keys;
use parts::{Parts, add, check_reason, limits_of, pause_of, take_away, unknown};
use redis::Script;
use serde::Deserialize;
use serde_bytes::ByteBuf;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};
use tokio::sync::Notify;

static PUT: LazyLock<Script> = LazyLock::new(|| script(include_str!("policy_put.lua")));

/// Documents at the most.
pub const MAX_DOCUMENTS: usize = 1000;
/// Bytes of the name of who changed a document.
const MAX_BY: usize = 256;
/// How often a change is tried that names no version, while others change the same document.
const TRIES: u32 = 8;
/// Ended pauses that are cleared at a time, once there are as many documents as there may be.
const CLEARED: usize = 32;
/// The field of the hash that counts changes; scopes have a colon.
const CHANGES: &str = "version";

/// What operators ask of one scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// What it names waits.
    pub pause: Option<Pause>,
    /// What holds for the runs of what it names.
    pub limits: RunLimits,
    /// Rises with each change.
    pub version: u64,
    /// Who changed it last.
    pub by: String,
    /// When, in Unix ms on the server.
    pub at: u64,
    /// Why.
    pub reason: String,
    /// Whether it has other parts than a pause.
    pub(crate) has_others: bool,
}

/// Who changes a document, and why.
#[derive(Clone, Copy, Debug)]
pub struct Author<'a> {
    /// Who.
    pub by: &'a str,
    /// Why.
    pub reason: &'a str,
}

impl<'a> From<&'a str> for Author<'a> {
    fn from(by: &'a str) -> Self {
        Self { by, reason: "" }
    }
}

/// A document as it is kept. Parts of a later version stay as they are.
#[derive(Deserialize)]
struct Kept {
    parts: ByteBuf,
    version: u64,
    by: String,
    at: u64,
    #[serde(default)]
    reason: String,
}

impl Kept {
    fn parse(bytes: &[u8]) -> Option<(Self, Parts)> {
        let kept: Self = rmp_serde::from_slice(bytes).ok()?;
        let parts = rmp_serde::from_slice(&kept.parts).ok()?;
        Some((kept, parts))
    }

    fn document(bytes: &[u8]) -> Option<Document> {
        let (kept, parts) = Self::parse(bytes)?;
        Some(Document {
            pause: pause_of(&parts),
            limits: limits_of(&parts),
            version: kept.version,
            by: kept.by,
            at: kept.at,
            reason: kept.reason,
            has_others: parts.keys().any(|part| part != "pause"),
        })
    }
}

/// The policies of one namespace, as one process knows them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Policies {
    store: Store,
    known: Arc<Known>,
}

#[derive(Debug, Default)]
struct Known {
    held: Mutex<Arc<Documents>>,
    told: Notify,
}

impl Policies {
    /// The policies of the namespace of `keys`.
    pub fn new(connector: Connector, keys: Keys) -> Self {
        Self {
            store: Store::new(connector, keys),
            known: Arc::default(),
        }
    }

    /// The same, what is known included, by another way to the same server.
    pub fn by(&self, connector: Connector) -> Self {
        Self {
            store: self.store.by(connector),
            known: self.known.clone(),
        }
    }

    /// The documents as this process knows them.
    pub fn held(&self) -> Arc<Documents> {
        locked(&self.known.held).clone()
    }

    /// Reads the documents if one changed since they were read; whether they did.
    ///
    /// # Errors
    /// `Bus`. What was known before stays.
    pub async fn refresh(&self) -> Result<bool, CoordinationError> {
        let mut read = redis::pipe();
        read.cmd("HGET")
            .arg(self.store.keys.policies())
            .arg(CHANGES);
        let (version,): (Option<Vec<u8>>,) = self.store.ask(&read).await?;
        if version.map_or(0, |text| number(&text)) == self.held().version() {
            return Ok(false);
        }
        let (version, all) = self.read().await?;
        let held = Documents::of(version, all);
        *locked(&self.known.held) = Arc::new(held);
        Ok(true)
    }

    async fn read(&self) -> Result<(u64, Vec<(Scope, Document)>), CoordinationError> {
        let mut read = redis::pipe();
        read.cmd("HGETALL").arg(self.store.keys.policies());
        let (mut said,): (HashMap<Vec<u8>, Vec<u8>>,) = self.store.ask(&read).await?;
        let version = said.remove(CHANGES.as_bytes());
        let version = version.map_or(0, |text| number(&text));
        let count = said.len();
        let all = said.into_iter().filter_map(|(scope, bytes)| {
            // A later version may know scopes that this one does not.
            let scope = Scope::parse(str::from_utf8(&scope).ok()?).ok()?;
            Some((scope, Kept::document(&bytes)?))
        });
        let all: Vec<_> = all.collect();
        let odd = count - all.len();
        if odd > 0 || version == ODD {
            let key = self.store.keys.policies();
            tracing::warn!(
                key,
                odd,
                "policies that this version cannot read are passed over: see whether something else writes there"
            );
        }
        Ok((version, all))
    }

    /// The documents by scope, and the server's time.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn list(&self) -> Result<(Vec<(Scope, Document)>, u64), CoordinationError> {
        let (_, mut all) = self.read().await?;
        all.sort_by_cached_key(|(scope, _)| scope.to_string());
        Ok((all, self.store.now().await?))
    }

    /// Puts parts of a scope's document; its other parts stay. The same again changes nothing. Returns the version.
    ///
    /// # Errors
    /// `Invalid` for a value out of bounds; `Aborted` where `version` is not the present one; `Exhausted` if there are
    /// as many documents as there may be; `Bus` else, and the call can be repeated.
    pub async fn set(
        &self,
        scope: &Scope,
        parts: &[PolicyPart],
        version: Option<u64>,
        by: impl Into<Author<'_>>,
    ) -> Result<u64, CoordinationError> {
        let now = self.store.now().await?;
        let mut put = Parts::new();
        for part in parts {
            part.put(&mut put, scope, now)?;
        }
        self.change(scope, version, by.into(), |kept| {
            put.iter().for_each(|(name, part)| add(kept, name, part));
        })
        .await
    }

    /// Takes parts of a scope's document away; without names, all of it. Returns the version, 0 where there was
    /// no document.
    ///
    /// # Errors
    /// `Invalid` for a part that there is not; else as [`set`](Self::set).
    pub async fn clear(
        &self,
        scope: &Scope,
        parts: &[String],
        version: Option<u64>,
        by: impl Into<Author<'_>>,
    ) -> Result<u64, CoordinationError> {
        if let Some(odd) = unknown(parts) {
            let odd: String = odd.chars().take(64).collect();
            let known = PARTS.join(", ");
            return Err(invalid(format!("parts: \"{odd}\" is not one of {known}")));
        }
        self.change(scope, version, by.into(), |kept| match parts {
            [] => kept.clear(),
            parts => take_away(kept, parts),
        })
        .await
    }

    async fn change(
        &self,
        scope: &Scope,
        version: Option<u64>,
        author: Author<'_>,
        change: impl Fn(&mut Parts),
    ) -> Result<u64, CoordinationError> {
        check_reason("reason", author.reason)?;
        let keys = &self.store.keys;
        let name = scope.to_string();
        let mut is_full = false;
        for _ in 0..TRIES {
            let mut read = redis::pipe();
            read.cmd("HGET").arg(keys.policies()).arg(&name);
            let (kept,): (Option<Vec<u8>>,) = self.store.ask(&read).await?;
            let kept = kept.and_then(|bytes| Kept::parse(&bytes));
            let (is, mut parts) = match kept {
                Some((kept, parts)) => (kept.version, parts),
                None => (0, Parts::new()),
            };
            change(&mut parts);
            let bytes = match parts.is_empty() {
                true => Vec::new(),
                false => rmp_serde::to_vec_named(&parts)
                    .map_err(|error| invalid(format!("the document: {error}")))?,
            };
            let is = version.unwrap_or(is);
            let (state, is) = self.put(&name, &bytes, is, author).await?;
            match (state, version) {
                (1, _) => {
                    self.told();
                    return Ok(is);
                }
                // Somebody else changed it since it was read.
                (0, None) => {}
                (0, Some(_)) => {
                    return Err(CoordinationError::Aborted(format!(
                        "version: {scope} is at version {is}: somebody else changed it meanwhile"
                    )));
                }
                _ if !is_full && self.clear_ended(author.by).await? => is_full = true,
                _ => {
                    return Err(CoordinationError::Exhausted(format!(
                        "there are {MAX_DOCUMENTS} policies, which is the most there may be: clear one"
                    )));
                }
            }
        }
        Err(CoordinationError::Contended {
            what: name,
            tries: TRIES,
        })
    }

    /// Takes some documents away that do nothing any more, since the times of their pauses have passed; whether any is
    /// gone.
    async fn clear_ended(&self, by: &str) -> Result<bool, CoordinationError> {
        let (all, now) = self.list().await?;
        let ended = all.into_iter().filter(|(_, document)| {
            let pause = document.pause.as_ref();
            pause.is_some_and(|pause| !pause.lasts(now)) && !document.has_others
        });
        let mut any = false;
        for (scope, document) in ended.take(CLEARED) {
            let author = Author {
                by,
                reason: "its time had passed",
            };
            // Where another version is there by now, somebody paused it again.
            let scope = scope.to_string();
            any |= self.put(&scope, &[], document.version, author).await?.0 == 1;
        }
        Ok(any)
    }

    /// Puts a document in the place of that version; what the script says.
    async fn put(
        &self,
        scope: &str,
        parts: &[u8],
        version: u64,
        author: Author<'_>,
    ) -> Result<(u8, u64), CoordinationError> {
        let (keys, by) = (&self.store.keys, author.by);
        let mut call = PUT.prepare_invoke();
        call.key(keys.policies())
            .key(keys.broadcast())
            .key(keys.policy_changes())
            .arg(scope)
            .arg(parts)
            .arg(&by[..by.floor_char_boundary(MAX_BY)])
            .arg(version)
            .arg(MAX_DOCUMENTS)
            .arg(author.reason)
            .arg(KEPT_CHANGES);
        Ok(self.store.invoke(&call).await?)
    }

    /// The server's time in Unix ms.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn now(&self) -> Result<u64, CoordinationError> {
        let mut reads = redis::pipe();
        self.store.ask_time(&mut reads).await?;
        let (ServerTime(now),) = self.store.ask(&reads).await?;
        Ok(now)
    }

    /// Somebody changed a document: who waits for that reads it.
    pub fn told(&self) {
        self.known.told.notify_one();
    }

    /// Is ready when somebody changed one since the last time. For one who waits at a time.
    pub async fn changed(&self) {
        self.known.told.notified().await;
    }
}

/// What stands for a number of changes that is no number: the documents are read once all the same.
const ODD: u64 = u64::MAX;

fn number(text: &[u8]) -> u64 {
    let number = str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.unwrap_or(ODD)
}

/// Whether a fact is one of a changed policy.
pub fn is_change(fact: &Entry) -> bool {
    fact.get("type") == Some(b"policy.changed")
}
