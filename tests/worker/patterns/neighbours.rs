//! Pattern *distributed* of `system.heartbeat`: neighbours ask each other whether they live.

use super::{choose_for, facts};
use crate::rig::Rig;
use crate::support::keys;
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::connect::connector::Connector;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::gossip::PING;
use convoke::coordination::instances::instance::{Beat, Registering};
use convoke::protocol::pattern::{Pattern, Patterned};
use convoke::settings::{RedisUrl, Settings};
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Worker};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const TTL: Duration = Duration::from_secs(3);

fn settings(rig: &Rig, id: &str) -> Settings {
    let mut settings = rig.settings();
    settings.id = id.into();
    settings.heartbeat_ttl = TTL;
    settings.patterns.heartbeat = Pattern::Distributed;
    settings
}

fn neighbour(rig: &Rig, id: &str) -> Builder {
    Worker::builder().settings(settings(rig, id))
}

/// The instances as a process of its own sees them.
fn data(rig: &Rig) -> Instances {
    let connector = Connector::new(&RedisUrl::new(rig.redis.url()), 2).unwrap();
    Instances::of_process(connector, keys(), "data")
}

/// An instance that is data: it is in the ring, has an inbox, and answers nothing.
async fn mute(rig: &Rig, id: &str) -> Instances {
    let instances = data(rig);
    rig.run(&format!("XADD cb:inbox:{id} * type number.add"))
        .await;
    let mut registering = Registering::new(id, ["data"]);
    registering.capabilities = vec![PING.to_owned()];
    registering.ttl_ms = TTL.as_millis() as u64;
    instances.register(&registering).await.unwrap();
    instances
}

/// When an instance pulsed last by itself, and how long that lasts, in ttls.
async fn pulsed(rig: &Rig, id: &str) -> (u64, u64) {
    let mut both = redis::pipe();
    both.atomic();
    both.cmd("ZSCORE").arg("cb:instances:active").arg(id);
    both.cmd("HGET").arg(format!("cb:instance:{id}"));
    both.arg("last_seen");
    let mut connection = rig.connection.clone();
    let (expires, seen): (Option<f64>, Option<u64>) =
        both.query_async(&mut connection).await.unwrap();
    let (expires, seen) = (expires.unwrap_or_default() as u64, seen.unwrap_or_default());
    (seen, expires.saturating_sub(seen) / TTL.as_millis() as u64)
}

/// Waits until the pulses of all but the leader last so long.
async fn all_last(rig: &Rig, ids: &[&str], ttls: u64) {
    until("pulses last so long", || async {
        if !rig.exists("cb:leader").await {
            return false;
        }
        let leader = rig.hash("cb:leader", "id").await;
        for id in ids {
            let wanted = if *id == leader { 1 } else { ttls };
            if pulsed(rig, id).await.1 != wanted {
                return false;
            }
        }
        ids.contains(&leader.as_str())
    })
    .await;
}

/// Waits for that many pulses of its own; how long each lasts is passed on.
async fn pulses(rig: &Rig, id: &str, count: usize) -> Vec<u64> {
    let mut seen = BTreeMap::new();
    let start = Instant::now();
    while seen.len() < count {
        assert!(start.elapsed() < Duration::from_secs(60), "{id}: {seen:?}");
        let (at, lasts) = pulsed(rig, id).await;
        seen.insert(at, lasts);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    seen.into_values().collect()
}

async fn lost(rig: &Rig) -> Vec<String> {
    let lost = facts(rig.wait_for_fact("instance.lost", 0).await).into_iter();
    lost.map(|lost| lost["id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_answers_none_of_its_neighbours_is_lost_long_before_its_lease_ends() {
    let rig = Rig::new().await;
    let ids = ["w-1", "w-2", "w-3"];
    let workers = ids.map(|id| rig.start(neighbour(&rig, id)));
    all_last(&rig, &ids, 3).await;
    let instances = mute(&rig, "w-0").await;
    let lasting = Beat {
        lasting: true,
        ..Beat::new("w-0", None)
    };
    instances.heartbeat(&lasting).await.unwrap();
    // No lease will say so while this test runs.
    rig.run("ZINCRBY cb:instances:active 3600000 w-0").await;
    let told = facts(rig.wait_for_fact("instance.lost", 1).await);
    assert_eq!(told[0]["id"], "w-0");
    all_last(&rig, &ids, 3).await;
    assert_eq!(lost(&rig).await, ["w-0"]);
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_pulses_by_itself_is_not_lost_though_it_answers_nobody() {
    let rig = Rig::new().await;
    let ids = ["w-1", "w-2", "w-3"];
    let workers = ids.map(|id| rig.start(neighbour(&rig, id)));
    all_last(&rig, &ids, 3).await;
    let instances = mute(&rig, "w-0").await;
    let before = rig.entries("cb:inbox:w-0").await.len();
    // Three neighbours ask it ten times each.
    until("it was asked often", || async {
        let pulse = instances.heartbeat(&Beat::new("w-0", None)).await;
        assert!(pulse.unwrap().alive, "it was robbed");
        rig.entries("cb:inbox:w-0").await.len() >= before + 30
    })
    .await;
    assert!(lost(&rig).await.is_empty());
    for worker in workers {
        worker.stop().await;
    }
}

/// Its lanes answer nobody; the thread that pulses does what a worker's does where it finds itself suspect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_pulses_when_it_finds_itself_suspect_is_not_lost() {
    let rig = Rig::new().await;
    let ids = ["w-1", "w-2", "w-3"];
    let workers = ids.map(|id| rig.start(neighbour(&rig, id)));
    all_last(&rig, &ids, 3).await;
    let instances = mute(&rig, "w-0").await;
    let lasting = Beat {
        lasting: true,
        ..Beat::new("w-0", None)
    };
    instances.heartbeat(&lasting).await.unwrap();
    let before = rig.entries("cb:inbox:w-0").await.len();
    let warned = Cell::new(0);
    until("it was asked often, and warned", || async {
        let around = instances.look_around("w-0").await.unwrap();
        if around.suspect {
            warned.set(warned.get() + 1);
            assert!(instances.heartbeat(&lasting).await.unwrap().alive);
        }
        assert!(around.left.is_some(), "it was robbed");
        rig.entries("cb:inbox:w-0").await.len() >= before + 45 && warned.get() >= 3
    })
    .await;
    assert!(lost(&rig).await.is_empty());
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_warned_pulses_in_its_next_round_however_long_its_lease_lasts() {
    let rig = Rig::new().await;
    let ids = ["w-1", "w-2", "w-3"];
    let workers = ids.map(|id| rig.start(neighbour(&rig, id)));
    all_last(&rig, &ids, 3).await;
    let leader = rig.hash("cb:leader", "id").await;
    let warned = ids.into_iter().find(|id| *id != leader).unwrap();
    let look = data(&rig);
    // It need not pulse for its lease while this test runs, nor does the warning lapse.
    rig.run(&format!("ZINCRBY cb:instances:active 3600000 {warned}"))
        .await;
    let for_long = [(warned.to_owned(), Duration::from_secs(3600))];
    look.warn(&for_long).await.unwrap();
    until("its pulse has ended the warning", || async {
        !look.look_around(warned).await.unwrap().suspect
    })
    .await;
    assert!(pulsed(&rig, warned).await.1 <= 3, "its lease is its own");
    assert!(lost(&rig).await.is_empty());
    for worker in workers {
        worker.stop().await;
    }
}

/// Runs a worker on a thread of its own, which one handler holds until it is told to let go.
fn on_one_thread(
    rig: &Rig,
    id: &str,
    held: Arc<AtomicBool>,
    drain: CancellationToken,
) -> std::thread::JoinHandle<()> {
    let hold = move |_: Context, _: u64| {
        let held = held.clone();
        async move {
            while held.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok::<(), HandlerError>(())
        }
    };
    let worker = neighbour(rig, id).handler("thread.hold", hold);
    let worker = worker.build().unwrap();
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(worker.run_until(drain)).unwrap();
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_hears_nothing_pulses_by_itself_until_it_does() {
    let rig = Rig::new().await;
    let ids = ["w-1", "w-2", "w-3"];
    let workers = ids.map(|id| rig.start(neighbour(&rig, id)));
    all_last(&rig, &ids, 3).await;
    // Another one leads.
    let (held, drain) = (Arc::new(AtomicBool::new(true)), CancellationToken::new());
    let thread = on_one_thread(&rig, "w-0", held.clone(), drain.clone());
    let all = ["w-0", "w-1", "w-2", "w-3"];
    all_last(&rig, &all, 3).await;
    let hold = Outgoing::new("thread.hold", &1u64);
    rig.client.publish(&hold).await.unwrap();
    // Its neighbours ask in vain for several ttls.
    pulses(&rig, "w-0", 15).await;
    assert!(lost(&rig).await.is_empty(), "it was robbed");
    held.store(false, Ordering::SeqCst);
    all_last(&rig, &all, 3).await;
    drain.cancel();
    for worker in workers {
        worker.stop().await;
    }
    thread.join().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pulse_as_ever_and_who_pulses_seldom_follows_the_next_choice() {
    let rig = Rig::new().await;
    let mut workers: Vec<_> = ["w-1", "w-2"]
        .map(|id| rig.start(neighbour(&rig, id)))
        .into();
    // One neighbour cannot end a lease: so each of the two pulses in each round.
    for id in ["w-1", "w-2"] {
        until("it is there", || async { pulsed(&rig, id).await.0 > 0 }).await;
        assert_eq!(pulses(&rig, id, 5).await, [1; 5]);
    }
    workers.push(rig.start(neighbour(&rig, "w-3")));
    let ids = ["w-1", "w-2", "w-3"];
    all_last(&rig, &ids, 3).await;
    choose_for(&rig, Patterned::Heartbeat, Pattern::Centralized).await;
    all_last(&rig, &ids, 1).await;
    choose_for(&rig, Patterned::Heartbeat, Pattern::Distributed).await;
    all_last(&rig, &ids, 3).await;
    assert!(lost(&rig).await.is_empty());
    for worker in workers {
        worker.stop().await;
    }
}
