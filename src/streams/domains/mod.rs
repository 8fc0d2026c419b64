//! What the bus says of domains: over how many partitions each is split, and since when.
//!
//! Whoever publishes or reads looks there, and writes it for a domain that nobody used before. A change keeps the order
//! of what was published before: the number of partitions grows by a factor, so the events of a subject stay where they
//! are or go on in one new partition, and that one is read only when the old one is read as far as others may still have
//! published into it ([`Domains::is_open`]).

use crate::connect::clock::ServerTime;
use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::connect::script::script;
use crate::protocol::domain::{Domain, DomainOrder, MAX_FACT, MAX_PARTITIONS, SETTLES_MS};
use crate::protocol::event::{Entry, EntryId};
use crate::protocol::keys::{self, Keys};
use crate::streams::made;
use crate::streams::read::entries_of;
use redis::aio::ConnectionLike;
use redis::{FromRedisValue, RedisError, Script, Value};
use std::collections::HashMap;
use std::sync::LazyLock;

static SET: LazyLock<Script> = LazyLock::new(|| script(include_str!("domain_set.lua")));
static KEEP: LazyLock<Script> = LazyLock::new(|| script(include_str!("domain_keep.lua")));

/// Domains that are looked at, at the most.
pub const MAX_DOMAINS: usize = 10_000;
/// Domains asked about in one round trip.
const PAGE: usize = 256;
/// Bytes of the name of who changed one.
const MAX_BY: usize = 256;

/// What one does with the domains that one asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Publishes or reads: what nobody used before is written.
    Works,
    /// Looks only.
    Looks,
}

/// Why a domain cannot be changed so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// A number that keeps no order, or a name that is no domain.
    #[error("{0}")]
    Refused(String),
    /// Somebody else changed it meanwhile.
    #[error("{domain} is at version {version}: somebody else changed it meanwhile; look again")]
    Changed {
        /// The domain.
        domain: String,
        /// The version that it has.
        version: u64,
    },
    /// The bus failed.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// Learns what the bus says of domains; `keys` knows it from then on. What one may not look at counts as it is set.
///
/// # Errors
/// The server did not say. What was known before stays.
pub async fn learn(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    domains: &[&str],
    what: Use,
) -> Result<(), BusError> {
    let Some(partitions) = keys.set_partitions() else {
        return Ok(());
    };
    let split: Vec<&str> = domains
        .iter()
        .copied()
        .filter(|it| keys.is_split(it))
        .collect();
    let (hash, first) = (keys.domains(), Domain::first(partitions));
    for page in split.chunks(PAGE) {
        let mut ask = redis::pipe();
        for domain in page {
            if what == Use::Works {
                // What one knows goes before what one is set to: the server may have lost it.
                let said = keys.domain(domain).unwrap_or_else(|| first.clone());
                ask.cmd("HSETNX").arg(&hash).arg(domain).arg(said.encode());
            }
            ask.cmd("HSTRLEN").arg(&hash).arg(domain);
            ask.add_command(made::ask(keys, domain));
        }
        ask.ignore_errors();
        let said: Vec<Value> = ask.query_async(connection).await?;
        let each = match what {
            Use::Works => 3,
            Use::Looks => 2,
        };
        let mut there = Vec::with_capacity(page.len());
        for (domain, said) in page.iter().zip(said.chunks(each)) {
            let Some((marks, said)) = said.split_last() else {
                continue;
            };
            made::answered(keys, domain, marks.clone());
            let length = said.last().cloned().unwrap_or(Value::Nil);
            match length.extract_error().map(u64::from_redis_value) {
                Ok(Ok(0)) => refused_to_write(domain, said),
                Ok(Ok(length)) if length as usize <= MAX_FACT => there.push(*domain),
                Ok(_) => unreadable(domain, "it is too long"),
                Err(error) if error.code() == Some("NOPERM") => {
                    tracing::debug!(
                        hash,
                        "this user may not look at how many partitions there are: the setting counts"
                    );
                    return Ok(());
                }
                Err(error) => return Err(of_the_hash(error, &hash)),
            }
        }
        if there.is_empty() {
            continue;
        }
        let mut ask = redis::pipe();
        for domain in &there {
            ask.cmd("HGET").arg(&hash).arg(domain);
        }
        let said: Vec<Option<Vec<u8>>> = ask.query_async(connection).await?;
        for (domain, bytes) in there.into_iter().zip(said) {
            match bytes.as_deref().map(Domain::decode) {
                Some(Ok(is)) => keys.learn(domain, is),
                Some(Err(error)) => unreadable(domain, &error),
                None => {}
            }
        }
    }
    Ok(())
}

/// Nobody has written it, since that was refused: until somebody may, the setting counts.
fn refused_to_write(domain: &str, said: &[Value]) {
    if let [wrote, _] = said
        && let Err(error) = wrote.clone().extract_error()
    {
        tracing::debug!(domain, %error, "how many partitions it has could not be written: the setting counts");
    }
}

fn unreadable(domain: &str, error: &str) {
    tracing::warn!(
        domain,
        error,
        "what the bus says of its partitions cannot be read: the setting counts (convoke domain set)"
    );
}

/// An earlier version kept something else under that name.
fn of_the_hash(error: RedisError, hash: &str) -> BusError {
    match error.code() {
        Some("WRONGTYPE") => BusError::Unsupported(format!(
            "{hash} is of an earlier version, which cannot work beside this one where names have tags: end \
             those workers, then redis-cli DEL {hash}"
        )),
        _ => error.into(),
    }
}

/// Where an answer says how far a group has read.
fn delivered(groups: Vec<HashMap<String, Value>>, group: &str) -> Option<EntryId> {
    let text = |value: Option<&Value>| String::from_redis_value(value?.clone()).ok();
    let own = groups
        .into_iter()
        .find(|one| text(one.get("name")).as_deref() == Some(group))?;
    text(own.get("last-delivered-id"))?.parse().ok()
}

/// Whether a group has read and settled all entries of a stream up to that time, by the clock of its node. Where that
/// clock is behind the stream, times say nothing: all entries count.
async fn is_read_until(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
    until: Option<u64>,
    now: u64,
) -> Result<bool, BusError> {
    let mut ask = redis::cmd("XREVRANGE");
    let last: Value = ask
        .arg(stream)
        .arg("+")
        .arg("-")
        .arg("COUNT")
        .arg(1)
        .query_async(connection)
        .await?;
    let ahead = entries_of(last)?
        .first()
        .is_some_and(|last| last.id.ms > now);
    let until = match until {
        Some(until) if !ahead => until.to_string(),
        _ => "+".to_owned(),
    };
    let mut ask = redis::cmd("XINFO");
    let groups: Result<Vec<HashMap<String, Value>>, RedisError> =
        ask.arg("GROUPS").arg(stream).query_async(connection).await;
    let read = match groups {
        Ok(groups) => delivered(groups, group),
        // Nothing was ever published there.
        Err(error) if error.to_string().contains("no such key") => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    let mut ask = redis::pipe();
    let from = read.map_or_else(|| "-".to_owned(), |id| format!("({id}"));
    ask.cmd("XRANGE")
        .arg(stream)
        .arg(from)
        .arg(&until)
        .arg("COUNT")
        .arg(1);
    if read.is_some() {
        ask.cmd("XPENDING")
            .arg(stream)
            .arg(group)
            .arg("-")
            .arg(&until)
            .arg(1);
    }
    let left: Vec<Vec<Value>> = ask.query_async(connection).await?;
    Ok(left.iter().all(Vec::is_empty))
}

/// What the bus says of the domains of one namespace. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Domains {
    connector: Connector,
    keys: Keys,
}

impl Domains {
    /// The domains of the namespace of `keys`.
    pub fn new(connector: Connector, keys: Keys) -> Self {
        Self { connector, keys }
    }

    /// Learns what the bus says of some; see [`learn`].
    ///
    /// # Errors
    /// `Bus`.
    pub async fn learn(&self, domains: &[&str], what: Use) -> Result<(), BusError> {
        if self.keys.set_partitions().is_none() {
            return Ok(());
        }
        let mut connection = self.connector.pooled().await?;
        learn(&mut connection, &self.keys, domains, what).await
    }

    /// Learns what the bus says of all, and names them, in order.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn learn_all(&self) -> Result<Vec<String>, BusError> {
        if self.keys.set_partitions().is_none() {
            return Ok(Vec::new());
        }
        let mut connection = self.connector.pooled().await?;
        let hash = self.keys.domains();
        let mut ask = redis::cmd("HLEN");
        let count: Result<usize, RedisError> = ask.arg(&hash).query_async(&mut connection).await;
        let count = count.map_err(|error| of_the_hash(error, &hash))?;
        if count > MAX_DOMAINS {
            return Err(BusError::Unsupported(format!(
                "{hash} has {count} fields, and {MAX_DOMAINS} domains is the most: see who writes there"
            )));
        }
        let mut ask = redis::cmd("HKEYS");
        let names: Vec<Vec<u8>> = ask.arg(&hash).query_async(&mut connection).await?;
        let names = names
            .into_iter()
            .filter_map(|name| String::from_utf8(name).ok());
        let mut names: Vec<String> = names.filter(|name| is_domain(name)).collect();
        names.sort_unstable();
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        learn(&mut connection, &self.keys, &all, Use::Looks).await?;
        Ok(names)
    }

    /// Puts back what is known of domains, where the server forgot it.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn keep(&self, domains: &[&str]) -> Result<(), BusError> {
        let changed = |domain: &&&str| self.keys.domain(domain).is_some_and(|is| is.version > 1);
        let changed: Vec<&&str> = domains.iter().filter(changed).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let mut connection = self.connector.pooled().await?;
        for domain in changed {
            let Some(is) = self.keys.domain(domain) else {
                continue;
            };
            let mut call = KEEP.prepare_invoke();
            call.key(self.keys.domains())
                .arg(*domain)
                .arg(is.version)
                .arg(is.encode());
            let put_back: u8 = call.invoke_async(&mut connection).await?;
            if put_back == 1 {
                tracing::warn!(
                    domain,
                    partitions = is.partitions,
                    "the server had forgotten how many partitions there are: it is told again"
                );
            }
        }
        Ok(())
    }

    /// Says how many partitions a domain has, and tells it. The same again changes nothing.
    ///
    /// # Errors
    /// As of [`change`](Self::change).
    pub async fn set(
        &self,
        domain: &str,
        partitions: u16,
        version: Option<u64>,
        by: &str,
    ) -> Result<Domain, DomainError> {
        self.change(domain, Some(partitions), None, version, by)
            .await
    }

    /// Says how many partitions a domain has, or whether its subjects have an order, or both, and tells it. The same again
    /// changes nothing.
    ///
    /// # Errors
    /// `Refused` for a number that keeps no order; `Changed` where `version` is not the present one; `Bus`.
    pub async fn change(
        &self,
        domain: &str,
        partitions: Option<u16>,
        order: Option<DomainOrder>,
        version: Option<u64>,
        by: &str,
    ) -> Result<Domain, DomainError> {
        let refused = |why: String| Err(DomainError::Refused(why));
        if !is_domain(domain) {
            return refused(format!(
                "{domain:?} is not the part of an event type before its first dot"
            ));
        }
        let Some(first) = self
            .keys
            .set_partitions()
            .filter(|_| self.keys.is_split(domain))
        else {
            return refused(match keys::is_control(domain) {
                true => format!("{domain} belongs to the control plane, which has no partitions"),
                false => {
                    "plain names have no partitions: set `partitions`, or use a cluster".into()
                }
            });
        };
        self.learn(&[domain], Use::Looks).await?;
        let is = self.keys.domain(domain);
        let partitions = partitions.unwrap_or(is.as_ref().map_or(first, |is| is.partitions));
        if !(1..=MAX_PARTITIONS).contains(&partitions) {
            return refused(format!(
                "{partitions} partitions: there are 1 to {MAX_PARTITIONS}"
            ));
        }
        if let Some(is) = &is
            && (partitions < is.partitions || !partitions.is_multiple_of(is.partitions))
        {
            return refused(format!(
                "{domain} has {} partitions: their number can only grow, by a factor, since so the events of a \
                 subject keep their order",
                is.partitions
            ));
        }
        let present = is.as_ref().map_or(0, |is| is.version);
        let order = order.unwrap_or(is.map_or(DomainOrder::None, |is| is.order));
        let by = &by[..by.floor_char_boundary(MAX_BY)];
        let mut call = SET.prepare_invoke();
        call.key(self.keys.domains())
            .key(self.keys.broadcast())
            .arg(domain)
            .arg(version.unwrap_or(present))
            .arg(partitions)
            .arg(order.as_str())
            .arg(by);
        let mut connection = self.connector.pooled().await?;
        let (state, version): (u8, u64) = call
            .invoke_async(&mut connection)
            .await
            .map_err(BusError::from)?;
        if state != 1 {
            let domain = domain.to_owned();
            return Err(DomainError::Changed { domain, version });
        }
        learn(&mut connection, &self.keys, &[domain], Use::Looks).await?;
        let is = self.keys.domain(domain);
        is.ok_or(DomainError::Bus(BusError::Reply { what: "HGET" }))
    }

    /// Whether a group may begin with a partition: what was published of its subjects before there was this partition
    /// is read and settled. What waits for a retry or for its time, or is parked, does not count.
    ///
    /// # Errors
    /// `Bus`: it is not known.
    pub async fn is_open(
        &self,
        domain: &str,
        partition: u16,
        group: &str,
    ) -> Result<bool, BusError> {
        let waits_for = self.waits_for(domain, partition, group).await?;
        Ok(waits_for.is_none())
    }

    /// Which partition has what must be read and settled before a group may begin with this one; see
    /// [`Domains::is_open`]. Where several have some, the latest of them.
    ///
    /// # Errors
    /// `Bus`: it is not known.
    pub async fn waits_for(
        &self,
        domain: &str,
        partition: u16,
        group: &str,
    ) -> Result<Option<u16>, BusError> {
        let Some(is) = self.keys.domain(domain) else {
            return Ok(None);
        };
        let mut at = partition;
        let mut now = None;
        // Each step leads to a lower partition.
        while let Some((from, changed)) = is.came_from(at) {
            let now = match now {
                Some(now) => now,
                None => *now.insert(self.now_at(&self.keys.domains()).await?),
            };
            // A change that is yet to come: the clock was set back, and nobody knows how long ago it was.
            let until = match changed > now.saturating_add(SETTLES_MS) {
                true => None,
                false => Some(changed.saturating_add(SETTLES_MS)),
            };
            if until.is_some_and(|until| now <= until) {
                return Ok(Some(from));
            }
            let stream = self.keys.events(domain, from);
            let of_node = self.now_at(&stream).await?;
            let mut connection = self.connector.toward(&stream).pooled().await?;
            // What is in it comes back.
            let gone = self.connector.is_cluster()
                && made::is_gone(&mut connection, &self.keys, (domain, from)).await?;
            if gone || !is_read_until(&mut connection, &stream, group, until, of_node).await? {
                return Ok(Some(from));
            }
            at = from;
        }
        Ok(None)
    }

    /// The time by the clock of the node that has a key.
    async fn now_at(&self, key: &str) -> Result<u64, BusError> {
        let connector = self.connector.toward(key);
        let question = self.connector.clock().await?.question(key);
        let mut connection = connector.pooled().await?;
        let ServerTime(now) = question.query_async(&mut connection).await?;
        Ok(now)
    }
}

/// Whether it may be the domain of an event.
fn is_domain(name: &str) -> bool {
    !name.contains('.') && keys::check_event_type(&format!("{name}.x")).is_ok()
}

/// Whether a fact is one of a domain that somebody changed.
pub fn is_change(fact: &Entry) -> bool {
    fact.get("type") == Some(b"domain.changed")
}
