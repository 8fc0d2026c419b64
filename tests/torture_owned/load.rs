//! What is published: the numbers of each subject in turn, by one who follows how many partitions there are, and by one who
//! is late to learn it.

use crate::bus::{connector, keys};
use crate::support::users;
use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::protocol::domain::Domain;
use convoke::protocol::keys::Keys;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// The domains.
pub(crate) const DOMAINS: [&str; 3] = ["line", "track", "road"];
/// How late the one is. Workers wait for 5 s.
const LATE: Duration = Duration::from_secs(3);

/// Changes that the late one is yet to learn.
type Changes = Arc<Mutex<Vec<(Instant, &'static str, Domain)>>>;

pub(crate) struct Load {
    over: Arc<AtomicBool>,
    changes: Changes,
    /// Who publishes the even subjects, and the odd ones.
    both: [JoinHandle<u64>; 2],
}

/// How many numbers of each subject were published.
pub(crate) struct Published([u64; 2]);

impl Published {
    pub(crate) fn of(&self, subject: u64) -> u64 {
        self.0[(subject % 2) as usize]
    }

    pub(crate) fn sum(&self, subjects: u64) -> u64 {
        (0..subjects).map(|subject| self.of(subject)).sum()
    }
}

impl Load {
    /// Of that many subjects, where each domain has that many partitions at first; each number a while after the one before.
    pub(crate) fn start(
        url_of: &dyn Fn(&str) -> String,
        partitions: u16,
        subjects: u64,
        pause: Duration,
    ) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let changes = Changes::default();
        let connector = || connector(url_of(users::PUBLISHER));
        let client = Client::new(connector(), keys(partitions), ClientOptions::default()).unwrap();
        let late = Late {
            connector: connector(),
            keys: keys(partitions),
            changes: changes.clone(),
        };
        let follows = tokio::spawn({
            let over = over.clone();
            async move {
                let mut number = 0;
                while !over.load(Ordering::Relaxed) {
                    for subject in (0..subjects).step_by(2) {
                        publish(&client, subject, number).await;
                    }
                    number += 1;
                    tokio::time::sleep(pause).await;
                }
                number
            }
        });
        let is_late = tokio::spawn({
            let over = over.clone();
            async move {
                let mut number = 0;
                while !over.load(Ordering::Relaxed) {
                    for subject in (1..subjects).step_by(2) {
                        late.publish(subject, number).await;
                    }
                    number += 1;
                    tokio::time::sleep(pause).await;
                }
                number
            }
        });
        Self {
            over,
            changes,
            both: [follows, is_late],
        }
    }

    /// Has the late one learn that, later.
    pub(crate) fn changed(&self, domain: &'static str, is: Domain) {
        let mut changes = self.changes.lock().unwrap();
        changes.push((Instant::now() + LATE, domain, is));
    }

    pub(crate) async fn stop(self) -> Published {
        self.over.store(true, Ordering::Relaxed);
        let [follows, is_late] = self.both;
        Published([follows.await.unwrap(), is_late.await.unwrap()])
    }
}

/// The domain in which the events of a subject are. Each has subjects of both publishers.
pub(crate) fn domain_of(subject: u64) -> &'static str {
    DOMAINS[(subject / 2 % DOMAINS.len() as u64) as usize]
}

pub(crate) fn id(subject: u64, number: u64) -> String {
    format!("{subject}-{number}")
}

async fn publish(client: &Client, subject: u64, number: u64) {
    let event = Outgoing::new(format!("{}.step", domain_of(subject)), &(subject, number));
    let event = event
        .subject(format!("s-{subject}"))
        .id(id(subject, number));
    client.publish(event).await.unwrap();
}

/// A program that does what the protocol says, and looks seldom.
struct Late {
    connector: Connector,
    keys: Keys,
    changes: Changes,
}

impl Late {
    async fn publish(&self, subject: u64, number: u64) {
        let now = Instant::now();
        for (_, domain, is) in self
            .changes
            .lock()
            .unwrap()
            .extract_if(.., |it| it.0 <= now)
        {
            self.keys.learn(domain, is);
        }
        let (domain, name) = (domain_of(subject), format!("s-{subject}"));
        let partition = self.keys.partition_of(domain, &name);
        let stream = self.keys.events(domain, partition);
        let data = rmp_serde::to_vec(&(subject, number)).unwrap();
        let mut add = redis::cmd("XADD");
        add.arg(&stream).arg("*");
        add.arg("type").arg(format!("{domain}.step"));
        add.arg("subject").arg(name);
        add.arg("id").arg(id(subject, number));
        add.arg("data").arg(data);
        let connector = self.connector.toward(&stream);
        let mut connection = connector.pooled().await.unwrap();
        add.exec_async(&mut connection).await.unwrap();
    }
}
