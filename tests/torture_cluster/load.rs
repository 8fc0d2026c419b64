//! What is published: with a confirmation of the replica, plainly, and in order within each subject.

use crate::PARTITIONS;
use crate::nodes::Nodes;
use crate::outcomes;
use crate::support::fleet::Work;
use convoke::client::publish::{Outgoing, PublishError};
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::settings::{RedisUrl, Settings};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Publishers of each kind.
const PUBLISHERS: u64 = 4;
/// Subjects of each publisher in order.
const SUBJECTS: u64 = 10;
/// After this long a publisher says what keeps it from publishing.
const LONG: Duration = Duration::from_secs(20);
/// Where the numbers of the plain ones begin.
const PLAIN: u64 = 1_000_000_000;

/// What a publisher knows.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) acknowledged: BTreeSet<String>,
    pub(crate) unknown: u64,
    pub(crate) rejected: u64,
}

impl Known {
    fn add(&mut self, other: Known) {
        self.acknowledged.extend(other.acknowledged);
        self.unknown += other.unknown;
        self.rejected += other.rejected;
    }
}

/// What all publishers know.
#[derive(Default)]
pub(crate) struct Published {
    pub(crate) confirmed: Known,
    pub(crate) plain: Known,
    pub(crate) ordered: Known,
}

pub(crate) struct Load {
    stop: CancellationToken,
    confirmed: Vec<JoinHandle<Known>>,
    plain: Vec<JoinHandle<Known>>,
    ordered: Vec<JoinHandle<Known>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Confirmed,
    Plain,
    Ordered,
}

fn client(url: &str) -> Client {
    let settings = Settings {
        redis_url: RedisUrl::new(url),
        partitions: PARTITIONS,
        ..Settings::default()
    };
    let options = ClientOptions {
        patience: Duration::ZERO,
        ..ClientOptions::default()
    };
    let connector = Connector::of(&settings, 4).unwrap();
    Client::new(connector, settings.keys().unwrap(), options).unwrap()
}

impl Load {
    pub(crate) async fn start(url: &str) -> Self {
        let stop = CancellationToken::new();
        let some = |kind: Kind| -> Vec<JoinHandle<Known>> {
            let publishers = 0..PUBLISHERS;
            publishers
                .map(|which| tokio::spawn(publish(client(url), kind, which, stop.clone())))
                .collect()
        };
        Self {
            confirmed: some(Kind::Confirmed),
            plain: some(Kind::Plain),
            ordered: some(Kind::Ordered),
            stop,
        }
    }

    /// Waits until some events are done.
    pub(crate) fn until_done(&self, nodes: &Nodes, count: u64) {
        tokio::task::block_in_place(|| {
            nodes.wait("events are done", || {
                outcomes::results(nodes, "load") >= count
            });
        });
    }

    /// Publishes no more; what was published.
    pub(crate) async fn stop(self) -> Published {
        self.stop.cancel();
        let mut published = Published::default();
        for (tasks, known) in [
            (self.confirmed, &mut published.confirmed),
            (self.plain, &mut published.plain),
            (self.ordered, &mut published.ordered),
        ] {
            for task in tasks {
                known.add(task.await.unwrap());
            }
        }
        published
    }
}

fn event(kind: Kind, which: u64, at: u64) -> (String, Outgoing) {
    let n = at * PUBLISHERS + which;
    match kind {
        Kind::Confirmed => {
            let work = Work { n, ms: n % 5 };
            let id = format!("e-{n}");
            let event = Outgoing::new("load.work", &work).id(id.clone());
            (id, event.dedup(true))
        }
        Kind::Plain => {
            let n = PLAIN + n;
            let id = format!("e-{n}");
            let event = Outgoing::new("load.work", &Work { n, ms: n % 5 }).id(id.clone());
            (id, event)
        }
        Kind::Ordered => {
            let (subject, step) = (which * SUBJECTS + at % SUBJECTS, at / SUBJECTS);
            let id = format!("s{subject}-{step}");
            let event = Outgoing::new("line.step", &Work { n: step, ms: n % 3 });
            let event = event.id(id.clone()).subject(format!("s{subject}"));
            (id, event.dedup(true))
        }
    }
}

/// Publishes one after the other until told to stop; what is to be confirmed, each until it is.
async fn publish(client: Client, kind: Kind, which: u64, stop: CancellationToken) -> Known {
    let mut known = Known::default();
    let mut at = 0;
    // Since when nothing was published; one that gets nowhere says why.
    let mut since = Instant::now();
    while !stop.is_cancelled() {
        let (id, event) = event(kind, which, at);
        let event = match kind {
            Kind::Plain => event,
            _ => event.confirm(1, Duration::from_millis(500)),
        };
        let published = client.publish(&event).await;
        if let Err(error) = &published
            && since.elapsed() > LONG
        {
            println!("{kind:?} publisher {which} gets nowhere with {id}: {error}");
            since = Instant::now();
        }
        match published {
            Ok(_) => {
                since = Instant::now();
                known.acknowledged.insert(id);
                at += 1;
            }
            Err(PublishError::Unknown { .. }) => {
                known.unknown += 1;
                at += u64::from(kind == Kind::Plain);
            }
            Err(PublishError::Rejected { .. }) => {
                known.rejected += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    known
}
