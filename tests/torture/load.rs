//! Open-loop load: events come at their time, whether or not the ones before were stored.

use crate::history::History;
use crate::worker::{Fate, Work};
use convoke::client::Client;
use convoke::client::publish::{Outgoing, PublishError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Publishes that may be under way at a time.
const AT_ONCE: u32 = 2000;
/// Tries of an event whose fate is unknown, and of one that was rejected.
const TRIES: u32 = 10;

/// Where replies of the load go.
pub(crate) const REPLIES: &str = "cb:reply:torture";

/// Load that is being published.
pub(crate) struct Load {
    stop: CancellationToken,
    task: JoinHandle<Vec<u64>>,
}

/// How many events a second, and which of several loads it is: the events of each have numbers of
/// their own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) per_second: u64,
    pub(crate) load: u64,
    pub(crate) loads: u64,
}

impl From<u64> for Rate {
    fn from(per_second: u64) -> Self {
        Self {
            per_second,
            load: 0,
            loads: 1,
        }
    }
}

/// What becomes of event `n`.
pub(crate) fn fate(n: u64) -> Fate {
    match n {
        _ if n % 53 == 17 => Fate::Retry,
        _ if n % 101 == 19 => Fate::Dead,
        _ => Fate::Done,
    }
}

/// Published without a dedup id, and never repeated.
pub(crate) fn is_plain(n: u64) -> bool {
    n % 10 == 3
}

/// Published to be run later.
pub(crate) fn is_delayed(n: u64) -> bool {
    let replies = fate(n) == Fate::Done && n.is_multiple_of(3);
    !replies && n % 47 == 5
}

pub(crate) fn id(n: u64) -> String {
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
        _ if is_delayed(n) => event.delay(Duration::from_millis(n % 700)),
        _ => event,
    }
}

/// An event to be published.
pub(crate) struct Made {
    pub(crate) id: String,
    pub(crate) event: Outgoing,
    /// It is published without a dedup id, and not repeated.
    pub(crate) plain: bool,
}

impl Load {
    /// This many events a second from now on.
    pub(crate) fn start(client: Client, history: Arc<History>, rate: impl Into<Rate>) -> Self {
        Self::of(made, client, history, rate)
    }

    /// The same of other events.
    pub(crate) fn of(
        make: fn(u64) -> Made,
        client: Client,
        history: Arc<History>,
        rate: impl Into<Rate>,
    ) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(make, client, history, rate.into(), stop.clone()));
        Self { stop, task }
    }

    /// Publishes no more; the numbers of the events, once each has its outcome.
    pub(crate) async fn stop(self) -> Vec<u64> {
        self.stop.cancel();
        self.task.await.unwrap()
    }
}

async fn run(
    make: fn(u64) -> Made,
    client: Client,
    history: Arc<History>,
    rate: Rate,
    stop: CancellationToken,
) -> Vec<u64> {
    let permits = Arc::new(Semaphore::new(AT_ONCE as usize));
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let (mut numbers, mut due) = (Vec::new(), 0);
    while !stop.is_cancelled() {
        ticks.tick().await;
        due += rate.per_second;
        while due >= 100 {
            due -= 100;
            let permit = permits.clone().acquire_owned().await.unwrap();
            let (client, history) = (client.clone(), history.clone());
            let n = numbers.len() as u64 * rate.loads + rate.load;
            numbers.push(n);
            tokio::spawn(async move {
                publish_made(&client, &history, make(n)).await;
                drop(permit);
            });
        }
    }
    let _all = permits.acquire_many(AT_ONCE).await.unwrap();
    numbers
}

fn made(n: u64) -> Made {
    Made {
        id: id(n),
        event: event(n),
        plain: is_plain(n),
    }
}

/// Publishes event `n` of the load, and notes its outcome.
pub(crate) async fn publish(client: &Client, history: &History, n: u64) {
    publish_made(client, history, made(n)).await;
}

async fn publish_made(client: &Client, history: &History, made: Made) {
    let Made { id, event, plain } = made;
    history.note("publish", "invoke", &id, "", "");
    let mut unknown = false;
    for _ in 0..TRIES {
        match client.publish(&event).await {
            Ok(_) => {
                history.note("publish", "ok", &id, "", "");
                return;
            }
            Err(PublishError::Unknown { .. }) => {
                unknown = true;
                if plain {
                    break;
                }
            }
            // Certainly not stored, this time.
            Err(PublishError::Rejected { .. }) if plain => break,
            Err(PublishError::Rejected { .. }) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    let phase = if unknown { "unknown" } else { "fail" };
    history.note("publish", phase, &id, "", "");
}
