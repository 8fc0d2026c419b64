//! What waits for a total.

use super::{
    DEAD, EVENTS, RESULTS, Runs, answering, clear, limit, publish, stop, taken, total, worker,
    workers,
};
use crate::rig::Rig;
use crate::support::{Redis, keys, until};
use convoke::client::publish::Outgoing;
use convoke::client::request::RequestError;
use convoke::connect::clock::local_now;
use convoke::connect::connector::Connector;
use convoke::coordination::seats::{Needs, Seats};
use convoke::protocol::error::Code;
use convoke::settings::{RedisUrl, Settings};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_total_and_a_rate_hold_both_and_nothing_stands_still() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let asks = answering(&rig).await;
    let both = json!({
        "concurrency": {"total": 1},
        "rate": {"limit": 15, "period_ms": 100},
    });
    limit(&rig, "mail.brief", both.clone()).await;
    let mut of_subject = both;
    of_subject["rate"]["per"] = "subject".into();
    of_subject["concurrency"]["worker"] = 2.into();
    limit(&rig, "mail.row", of_subject).await;
    let all = workers(&rig, &runs, 2).await;
    for n in 0..80 {
        publish(&rig, "mail.brief", "", 4 * n).await;
    }
    rig.wait_for(RESULTS, 80).await;
    assert_eq!(runs.most(), 1);
    for n in 0..80 {
        publish(&rig, "mail.row", &format!("s-{}", n % 3), n).await;
    }
    rig.wait_for(RESULTS, 160).await;
    assert_eq!(runs.most(), 1);
    stop(all).await;
    asks.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_a_subject_keep_their_order_under_a_total_that_changes() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let asks = answering(&rig).await;
    limit(&rig, "mail.row", total(2)).await;
    let all = workers(&rig, &runs, 1).await;
    for n in 0..160 {
        publish(&rig, "mail.row", &format!("s-{}", n % 4), n).await;
        match n % 40 {
            10 => limit(&rig, "mail.row", total(1)).await,
            20 => clear(&rig, "mail.row", "concurrency").await,
            30 => limit(&rig, "mail.row", total(3)).await,
            _ => {}
        }
    }
    rig.wait_for(RESULTS, 160).await;
    for subject in 0..4 {
        let ran = runs.ran().into_iter();
        let own = ran.filter(|(of, ..)| *of == format!("s-{subject}"));
        let own: Vec<u64> = own.map(|(_, n, _)| n).collect();
        let expected: Vec<u64> = (0..160).filter(|n| n % 4 == subject).collect();
        assert_eq!(own, expected, "{subject}");
    }
    stop(all).await;
    asks.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_drains_leaves_what_waits_to_the_others() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let asks = answering(&rig).await;
    limit(&rig, "mail.hold", total(2)).await;
    let mut all = workers(&rig, &runs, 2).await;
    for n in 0..20 {
        publish(&rig, "mail.hold", "", n).await;
    }
    until("two run, the others are read", async || {
        runs.now() == 2 && rig.pending(EVENTS).await == 20
    })
    .await;
    let second = all.pop().unwrap();
    let first = all.pop().unwrap();
    let drains = tokio::spawn(first.stop());
    runs.end(100);
    drains.await.unwrap();
    rig.wait_for(RESULTS, 20).await;
    assert_eq!(runs.most(), 2);
    second.stop().await;
    asks.stop().await;
    assert_eq!(rig.entries(DEAD).await.len(), 0);
    let mut numbers: Vec<u64> = runs.ran().into_iter().map(|(_, n, _)| n).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..20).collect::<Vec<u64>>(), "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requester_waits_for_a_seat_as_long_as_its_deadline_lets_it() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let asks = answering(&rig).await;
    limit(&rig, "mail.hold", total(1)).await;
    let all = workers(&rig, &runs, 2).await;
    publish(&rig, "mail.hold", "", 0).await;
    until("one runs", async || runs.now() == 1).await;
    let soon = Outgoing::new("mail.hold", &1u64).deadline(local_now() + 300);
    match rig.client.request(soon, Duration::from_secs(30)).await {
        Err(RequestError::Remote(error)) => assert_eq!(error.code, Code::DeadlineExceeded),
        other => panic!("not refused: {other:?}"),
    }
    assert_eq!(runs.most(), 1);
    let waits = rig.ask("mail.hold", &2u64);
    let ends = async {
        until("it waits", async || {
            taken(&rig, "mail.hold").await.waits == 1
        })
        .await;
        runs.end(2);
    };
    let (answer, ()) = tokio::join!(waits, ends);
    answer.unwrap();
    assert_eq!(runs.most(), 1);
    stop(all).await;
    asks.stop().await;
}

/// The number of the last call of each worker, and whether it has seats or waits.
async fn calls(rig: &Rig, kind: &str) -> BTreeMap<String, (u64, bool)> {
    let mut all = redis::cmd("HGETALL");
    all.arg(format!("cb:seats:{kind}"));
    let all: BTreeMap<String, String> = all
        .query_async(&mut rig.connection.clone())
        .await
        .unwrap_or_default();
    let number = |said: &str, nth| -> u64 { said.split(' ').nth(nth).unwrap().parse().unwrap() };
    let seen = |said: String| (number(&said, 2), number(&said, 3) + number(&said, 4) > 0);
    all.into_iter().map(|(of, said)| (of, seen(said))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_goes_on_when_the_bus_is_back_and_no_more_than_before() {
    let mut rig = Rig::on(Redis::durable()).await;
    let runs = Runs::new();
    let asks = answering(&rig).await;
    let both = json!({"concurrency": {"total": 2, "worker": 5}});
    limit(&rig, "mail.few", both).await;
    limit(&rig, "mail.hold", total(2)).await;
    let all = workers(&rig, &runs, 2).await;
    for n in 0..12 {
        publish(&rig, "mail.hold", "", n).await;
        publish(&rig, "mail.few", "", n).await;
    }
    until("two hold, all others ran", async || {
        runs.now() == 2 && runs.ran().len() == 14 && taken(&rig, "mail.hold").await.waits > 0
    })
    .await;
    let before = calls(&rig, "mail.hold").await;
    rig.redis.restart();
    rig.connection = rig.redis.connection().await;
    until("both say again what they have", async || {
        let now = calls(&rig, "mail.hold").await;
        let is_later = |of: &String, call: u64| now.get(of).is_some_and(|(now, _)| *now > call);
        let mut those = before.iter().filter(|(_, (_, needs_some))| *needs_some);
        those.all(|(of, (call, _))| is_later(of, *call))
    })
    .await;
    assert_eq!(taken(&rig, "mail.hold").await.seats, 2);
    runs.most();
    runs.end(100);
    rig.wait_for(RESULTS, 24).await;
    assert_eq!(runs.most(), 2);
    stop(all).await;
    asks.stop().await;
}

/// Has another worker say what it needs; how many seats more it gets.
async fn other(seats: &Seats, has: usize, wants: usize) -> usize {
    static CALL: AtomicU64 = AtomicU64::new(1);
    let needs = Needs {
        kind: "mail.row",
        call: CALL.fetch_add(1, Ordering::SeqCst),
        total: 1,
        has,
        wants,
    };
    seats.take(needs).await.unwrap().gets
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seat_that_waits_for_a_slot_goes_to_whoever_has_one() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let asks = answering(&rig).await;
    limit(&rig, "mail.row", total(1)).await;
    let connector = Connector::new(&RedisUrl::new(rig.redis.url()), 2).unwrap();
    let seats = Seats::new(connector, keys(), "w-9", Duration::from_secs(60));
    assert_eq!(other(&seats, 0, 1).await, 1);
    let settings = Settings {
        id: "w-1".into(),
        concurrency: 1,
        heartbeat_ttl: Duration::from_secs(30),
        claim_idle: Duration::from_secs(20),
        ..rig.settings()
    };
    let full = rig.start(worker(&rig, "w-1", &runs).settings(settings));
    rig.wait_for_fact("instance.registered", 2).await;
    publish(&rig, "mail.row", "", 1).await;
    until("it waits for the seat", async || {
        taken(&rig, "mail.row").await.waits == 1
    })
    .await;
    publish(&rig, "mail.hold", "", 0).await;
    until("its slot is taken", async || runs.now() == 1).await;
    assert_eq!(other(&seats, 0, 0).await, 0);
    until("it has the seat, and no slot", async || {
        taken(&rig, "mail.row").await.seats == 1
    })
    .await;
    until("another one gets it", async || {
        other(&seats, 0, 1).await == 1
    })
    .await;
    assert_eq!(runs.ran().len(), 1);
    other(&seats, 0, 0).await;
    runs.end(1);
    rig.wait_for(RESULTS, 2).await;
    full.stop().await;
    asks.stop().await;
}
