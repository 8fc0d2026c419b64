//! What is on the bus: how many partitions there are, and what was published and became of it.

use crate::support::users;
use convoke::connect::connector::Connector;
use convoke::connect::error::BusError;
use convoke::protocol::domain::{Domain, DomainOrder, SETTLES_MS};
use convoke::protocol::event::Entry;
use convoke::protocol::keys::Keys;
use convoke::settings::{RedisUrl, Settings};
use convoke::streams::domains::Domains;
use convoke::streams::read::entries_of;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

/// A node of a cluster that is away is replaced by then.
const PATIENCE: Duration = Duration::from_secs(90);

/// An operator, who may look at all of it.
pub(crate) struct Bus {
    connector: Connector,
    names: &'static [&'static str],
    domains: Domains,
    pub(crate) keys: Keys,
}

/// What became of an event.
pub(crate) struct Outcome {
    pub(crate) number: u64,
    pub(crate) partition: u16,
    ms: u64,
}

pub(crate) fn connector(url: String) -> Connector {
    let settings = Settings {
        redis_url: RedisUrl::new(url),
        ..Settings::default()
    };
    Connector::of(&settings, 4).unwrap()
}

/// Names of a domain that has that many partitions, as long as nobody knows more.
pub(crate) fn keys(partitions: u16) -> Keys {
    Keys::tagged("cb", partitions).unwrap()
}

impl Bus {
    /// Each of the domains begins with that many partitions, and has an order.
    pub(crate) async fn with_order(
        url_of: &dyn Fn(&str) -> String,
        names: &'static [&'static str],
        partitions: u16,
    ) -> Self {
        let connector = connector(url_of(users::OPERATOR));
        let keys = keys(partitions);
        let domains = Domains::new(connector.clone(), keys.clone());
        for domain in names {
            let order = Some(DomainOrder::Subject);
            let set = domains.change(domain, Some(partitions), order, None, "ann");
            set.await.unwrap();
        }
        Self {
            connector,
            names,
            domains,
            keys,
        }
    }

    /// Twice as many partitions.
    pub(crate) async fn split(&self, domain: &str) -> Domain {
        let partitions = self.keys.partitions(domain) * 2;
        let set = async || self.domains.set(domain, partitions, None, "ann").await;
        again(&format!("{domain} gets {partitions} partitions"), set).await
    }

    fn places(&self) -> impl Iterator<Item = (&'static str, u16)> {
        let partitions = |domain: &'static str| {
            (0..self.keys.partitions(domain)).map(move |partition| (domain, partition))
        };
        self.names.iter().copied().flat_map(partitions)
    }

    async fn ask<T: redis::FromRedisValue>(&self, key: &str, words: &[&str]) -> T {
        let connector = self.connector.toward(key);
        let mut ask = redis::cmd(words[0]);
        ask.arg(key).arg(&words[1..]);
        let asked = async || -> Result<T, BusError> {
            let mut connection = connector.pooled().await?;
            Ok(ask.query_async(&mut connection).await?)
        };
        again(&format!("{} {key}", words[0]), asked).await
    }

    /// How many outcomes there are.
    pub(crate) async fn settled(&self) -> u64 {
        let mut sum = 0;
        for (domain, partition) in self.places() {
            let results = self.keys.results(domain, partition);
            sum += self.ask::<u64>(&results, &["XLEN"]).await;
        }
        sum
    }

    /// Who owns each partition of the only domain.
    pub(crate) async fn owners(&self) -> BTreeMap<u16, String> {
        let mut owners = BTreeMap::new();
        for (domain, partition) in self.places() {
            let key = self.keys.owner(domain, partition, "workers");
            let owner: Option<String> = self.ask(&key, &["HGET", "instance"]).await;
            if let Some(owner) = owner.filter(|owner| !owner.is_empty()) {
                owners.insert(partition, owner);
            }
        }
        owners
    }

    async fn entries(&self, stream: &str) -> Vec<Entry> {
        entries_of(self.ask(stream, &["XRANGE", "-", "+"]).await).unwrap()
    }

    /// The partitions in which each number of each subject was published. It is two where who published did not know
    /// whether that was so, and asked again after a change.
    pub(crate) async fn published(&self) -> HashMap<(u64, u64), HashSet<u16>> {
        let mut published: HashMap<(u64, u64), HashSet<u16>> = HashMap::new();
        for (domain, partition) in self.places() {
            for entry in self.entries(&self.keys.events(domain, partition)).await {
                let event = numbers(entry.get("id").unwrap());
                published.entry(event).or_default().insert(partition);
            }
        }
        published
    }

    /// Of each subject what became of its events, in the order of each partition.
    pub(crate) async fn outcomes(&self) -> HashMap<u64, Vec<Outcome>> {
        let mut all: HashMap<u64, Vec<Outcome>> = HashMap::new();
        for (domain, partition) in self.places() {
            for entry in self.entries(&self.keys.results(domain, partition)).await {
                let (subject, number) = numbers(entry.get("correlationid").unwrap());
                let outcome = Outcome {
                    number,
                    partition,
                    ms: entry.id.ms,
                };
                all.entry(subject).or_default().push(outcome);
            }
        }
        all
    }

    /// Subjects of which something was published by a number of partitions that was over for longer than a publisher may
    /// take: their order is not kept then.
    pub(crate) async fn published_too_late(&self) -> HashSet<u64> {
        let mut late = HashSet::new();
        for domain in self.names {
            let is = self.keys.domain(domain).unwrap();
            let sizes = is.before.iter().map(|it| (it.partitions, it.until));
            let sizes: Vec<(Keys, u64)> = sizes
                .chain([(is.partitions, u64::MAX - SETTLES_MS)])
                .map(|(partitions, until)| (keys(partitions), until))
                .collect();
            for partition in 0..is.partitions {
                for entry in self.entries(&self.keys.events(domain, partition)).await {
                    let subject = entry.get("subject").unwrap().to_vec();
                    let subject = String::from_utf8(subject).unwrap();
                    let held = |it: &&(Keys, u64)| it.0.partition_of(domain, &subject) == partition;
                    let (_, until) = sizes.iter().rfind(held).unwrap();
                    if entry.id.ms > until + SETTLES_MS {
                        late.insert(subject[2..].parse().unwrap());
                    }
                }
            }
        }
        late
    }
}

/// The subject and the number in an event's id.
fn numbers(id: &[u8]) -> (u64, u64) {
    let id = std::str::from_utf8(id).unwrap();
    let (subject, number) = id.split_once('-').unwrap();
    (subject.parse().unwrap(), number.parse().unwrap())
}

/// Tries until that succeeds: a node may be away.
async fn again<T, E: std::fmt::Display>(
    what: &str,
    mut tried: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let began = Instant::now();
    loop {
        match tried().await {
            Ok(done) => return done,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{what}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Of a subject each number has one outcome; and unless some were published too late they are in order, over all
/// partitions in which it was.
pub(crate) fn assert_in_order(subject: u64, outcomes: &[Outcome], numbers: u64, late: bool) {
    let mut sorted: Vec<u64> = outcomes.iter().map(|it| it.number).collect();
    sorted.sort_unstable();
    let mut once = sorted.clone();
    once.dedup();
    assert_eq!(
        sorted.len(),
        once.len(),
        "subject {subject}: doubled: {sorted:?}"
    );
    let all: Vec<u64> = (0..numbers).collect();
    assert_eq!(once, all, "subject {subject}: lost");
    if late {
        return;
    }
    // In a partition they are in the order of its stream.
    for two in outcomes.windows(2) {
        let order = two[0].partition != two[1].partition || two[0].number < two[1].number;
        assert!(
            order,
            "subject {subject}: {} before {}",
            two[0].number, two[1].number
        );
    }
    let mut by_number: Vec<&Outcome> = outcomes.iter().collect();
    by_number.sort_by_key(|it| it.number);
    for two in by_number.windows(2) {
        assert!(
            two[0].ms <= two[1].ms,
            "subject {subject}: {} in {} after {} in {}",
            two[0].number,
            two[0].partition,
            two[1].number,
            two[1].partition
        );
    }
}
