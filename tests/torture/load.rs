//! Open-loop load: events come at their time, whether or not the ones before were stored.

use crate::history::History;
use crate::worker::{Fate, Work};
use convoke::bus::client::Client;
use convoke::bus::publish::{Outgoing, PublishError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Publishes that may be under way at a time.
const AT_ONCE: u32 = 2000;
/// Tries of an event whose fate is unknown, and of one that was rejected.
const TRIES: u32 = 10;

/// Where replies of the load go.
pub const REPLIES: &str = "cb:reply:torture";

/// Load that is being published.
pub struct Load {
    stop: CancellationToken,
    task: JoinHandle<u64>,
    published: Arc<AtomicU64>,
}

/// What becomes of event `n`.
pub fn fate(n: u64) -> Fate {
    match n {
        _ if n % 53 == 17 => Fate::Retry,
        _ if n % 101 == 19 => Fate::Dead,
        _ => Fate::Done,
    }
}

/// Published without a dedup id, and never repeated.
pub fn is_plain(n: u64) -> bool {
    n % 10 == 3
}

pub fn id(n: u64) -> String {
    format!("e-{n}")
}

fn event(n: u64) -> Outgoing {
    let fate = fate(n);
    let ms = if n.is_multiple_of(4) { 0 } else { n % 25 };
    let event = Outgoing::new("load.work", &Work { n, ms, fate })
        .id(id(n))
        .dedup(!is_plain(n));
    match n {
        _ if fate == Fate::Done && n.is_multiple_of(3) => event.reply_to(REPLIES),
        _ if n % 47 == 5 => event.delay(Duration::from_millis(n % 700)),
        _ => event,
    }
}

impl Load {
    /// So many events a second from now on.
    pub fn start(client: Client, history: Arc<History>, rate: u64) -> Self {
        let stop = CancellationToken::new();
        let published = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(run(client, history, rate, stop.clone(), published.clone()));
        Self {
            stop,
            task,
            published,
        }
    }

    /// Events stored so far.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Publishes no more; how many events there were once each has its outcome.
    pub async fn stop(self) -> u64 {
        self.stop.cancel();
        self.task.await.unwrap()
    }
}

async fn run(
    client: Client,
    history: Arc<History>,
    rate: u64,
    stop: CancellationToken,
    published: Arc<AtomicU64>,
) -> u64 {
    let permits = Arc::new(Semaphore::new(AT_ONCE as usize));
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let (mut n, mut due) = (0, 0);
    while !stop.is_cancelled() {
        ticks.tick().await;
        due += rate;
        while due >= 100 {
            due -= 100;
            let permit = permits.clone().acquire_owned().await.unwrap();
            let (client, history, published) = (client.clone(), history.clone(), published.clone());
            let number = n;
            n += 1;
            tokio::spawn(async move {
                if publish(&client, &history, number).await {
                    published.fetch_add(1, Ordering::Relaxed);
                }
                drop(permit);
            });
        }
    }
    let _all = permits.acquire_many(AT_ONCE).await.unwrap();
    n
}

/// Publishes one; true if it was stored.
async fn publish(client: &Client, history: &History, n: u64) -> bool {
    let (event, id) = (event(n), id(n));
    history.note("publish", "invoke", &id, "", "");
    let mut unknown = false;
    for _ in 0..TRIES {
        match client.publish(&event).await {
            Ok(_) => {
                history.note("publish", "ok", &id, "", "");
                return true;
            }
            Err(PublishError::Unknown { .. }) => {
                unknown = true;
                if is_plain(n) {
                    break;
                }
            }
            // Certainly not stored, this time.
            Err(PublishError::Rejected { .. }) if is_plain(n) => break,
            Err(PublishError::Rejected { .. }) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    let phase = if unknown { "unknown" } else { "fail" };
    history.note("publish", phase, &id, "", "");
    false
}
