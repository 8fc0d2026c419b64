//! Pulses that a collector writes.

use crate::fleet::Fleet;
use convoke::coordination::instances::Instances;
use std::time::Duration;

const WITHIN: Duration = Duration::from_secs(600);

async fn expiry(fleet: &mut Fleet, id: &str) -> u64 {
    let score: f64 = fleet.ask(&format!("ZSCORE cb:instances:active {id}")).await;
    score as u64
}

/// Sends a pulse of an instance whose last one is older; returns when its lease ended then.
async fn sent(fleet: &mut Fleet, id: &str, incarnation: u64) -> u64 {
    fleet
        .run(&format!("ZINCRBY cb:instances:active -1000 {id}"))
        .await;
    let before = expiry(fleet, id).await;
    let sent = fleet.instances.send_pulse(id, incarnation, 3.0, &[]).await;
    let left = sent.unwrap().left.expect("it is alive");
    assert!(left <= Duration::from_secs(30), "{left:?}");
    before
}

async fn collect(instances: &Instances) -> u64 {
    let collected = instances.collect_pulses(None, WITHIN).await;
    collected.unwrap().1
}

#[tokio::test]
async fn a_pulse_counts_from_when_it_was_sent_and_is_looked_at_once() {
    let mut fleet = Fleet::start().await;
    let incarnation = fleet.register("w-1", &["worker"]).await.incarnation;
    let before = sent(&mut fleet, "w-1", incarnation).await;
    fleet
        .run("ZADD cb:instances:suspect 9999999999999 w-1")
        .await;
    // Whoever collects speaks for others.
    let collector = Fleet::seen_from(&fleet.redis, &fleet.keys);
    let (next, counted) = collector.collect_pulses(None, WITHIN).await.unwrap();
    assert_eq!(counted, 1);
    let after = expiry(&mut fleet, "w-1").await;
    assert!(after > before, "{after}, was {before}");
    let entry = next.clone().expect("an entry");
    let at: u64 = entry.split('-').next().unwrap().parse().unwrap();
    assert_eq!(after, at + 30_000, "30 s after it was sent");
    let load: String = fleet.ask("HGET cb:instance:w-1 load").await;
    assert_eq!(load, "3");
    let suspects: u64 = fleet.ask("ZCARD cb:instances:suspect").await;
    assert_eq!(suspects, 0, "the pulse refutes it");
    // Nothing new.
    let again = collector
        .collect_pulses(next.clone(), WITHIN)
        .await
        .unwrap();
    assert_eq!(again, (next, 0));
    // Another one begins from the start: what was written counts no more.
    assert_eq!(collect(&collector).await, 0);
}

#[tokio::test]
async fn a_pulse_revives_nobody_and_is_the_word_of_its_own_process_and_incarnation() {
    let mut fleet = Fleet::start().await;
    let incarnation = fleet.register("w-1", &["worker"]).await.incarnation;
    // Another process, and another incarnation.
    let other = Fleet::seen_from(&fleet.redis, &fleet.keys);
    fleet.run("ZINCRBY cb:instances:active -1000 w-1").await;
    let before = expiry(&mut fleet, "w-1").await;
    let by_other = other.send_pulse("w-1", incarnation, 9.0, &[]).await;
    assert_eq!(by_other.unwrap().left, None, "the lease is not its own");
    assert_eq!(collect(&other).await, 0);
    fleet
        .instances
        .send_pulse("w-1", incarnation + 1, 9.0, &[])
        .await
        .unwrap();
    assert_eq!(collect(&other).await, 0);
    assert_eq!(expiry(&mut fleet, "w-1").await, before);
    // It was waited for no longer when the server ran it.
    let process: String = fleet.ask("HGET cb:instance:w-1 process").await;
    let late = format!("id w-1 incarnation {incarnation} process {process} load 1 until");
    fleet.run(&format!("XADD cb:pulses * {late} 1000")).await;
    assert_eq!(collect(&other).await, 0);
    assert_eq!(expiry(&mut fleet, "w-1").await, before);
    fleet
        .run(&format!("XADD cb:pulses * {late} 9999999999999"))
        .await;
    assert_eq!(collect(&other).await, 1);
    // Its lease is over.
    sent(&mut fleet, "w-1", incarnation).await;
    fleet.expire("w-1").await;
    assert_eq!(collect(&other).await, 0);
    assert_eq!(expiry(&mut fleet, "w-1").await, 1000);
    let sent = fleet
        .instances
        .send_pulse("w-1", incarnation, 9.0, &["w-2".to_owned()])
        .await
        .unwrap();
    assert_eq!((sent.left, sent.watch[0].left), (None, Duration::ZERO));
    // Nonsense in the stream, and who is nobody.
    fleet.run("XADD cb:pulses * id w-1").await;
    fleet
        .run("XADD cb:pulses * id nobody incarnation 1 process p load 1")
        .await;
    fleet
        .run("XADD cb:pulses * id w-1 incarnation x process y load z")
        .await;
    assert_eq!(collect(&other).await, 0);
    // An external one is nobody's who pulses so.
    let external = convoke::coordination::instances::instance::Registering::new("x-1", ["worker"]);
    let external = fleet.asked().register(&external).await.unwrap();
    sent_by(&fleet.asked(), "x-1", external.incarnation).await;
    assert_eq!(collect(&other).await, 0);
}

async fn sent_by(instances: &Instances, id: &str, incarnation: u64) {
    instances
        .send_pulse(id, incarnation, 1.0, &[])
        .await
        .unwrap();
}
