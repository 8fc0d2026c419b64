//! Who may say what of an instance: its own process, events, other processes of its id.

mod external;

use crate::fleet::Fleet;
use convoke::connect::clock::whole_ms;
use convoke::connect::epoch::Epoch;
use convoke::connect::silence::{Answers, CallTime, quiet};
use convoke::coordination::error::CoordinationError;
use convoke::coordination::instances::gossip::{Observed, Opinion};
use convoke::coordination::instances::instance::{Beat, Registering};
use convoke::coordination::instances::{Instances, Registered, Seal};
use convoke::coordination::metrics::{Report, Sums};
use serde_json::json;
use std::time::{Duration, Instant};

fn worker() -> Registering {
    let mut registering = Registering::new("w-1", ["worker", "gpu"]);
    registering.capabilities = vec!["image.crop".into(), "image.resize".into()];
    registering
}

fn beat(registered: &Registered) -> Beat {
    let registering = worker();
    Beat {
        seal: Some(Seal {
            digest: registered.seal.clone(),
            roles: registering.roles.into_iter().collect(),
            capabilities: registering.capabilities.into_iter().collect(),
        }),
        ..Beat::new("w-1", Some(registered.incarnation))
    }
}

fn denied<T: std::fmt::Debug>(done: Result<T, CoordinationError>, what: &str) {
    match done {
        Err(CoordinationError::PermissionDenied(message)) => {
            assert!(
                message.contains("w-1") && message.contains(what),
                "{message}"
            );
        }
        other => panic!("not denied: {other:?}"),
    }
}

#[tokio::test]
async fn no_event_changes_what_a_process_registered_of_itself() {
    let mut fleet = Fleet::start().await;
    let registered = fleet.instances.register(&worker()).await.unwrap();
    let events = fleet.asked();
    let before = fleet.ask::<Vec<Vec<u8>>>("HGETALL cb:instance:w-1").await;
    let robbing = Registering::new("w-1", ["other"]);
    for expired in [false, true] {
        if expired {
            // Nobody declared it lost yet.
            fleet.expire("w-1").await;
        }
        denied(events.register(&robbing).await, "register");
        denied(events.unregister("w-1", None).await, "unregister");
        let known = Some(registered.incarnation);
        denied(events.unregister("w-1", known).await, "unregister");
        for incarnation in [None, known] {
            let beat = Beat {
                load: Some(1e6),
                ..Beat::new("w-1", incarnation)
            };
            denied(events.heartbeat(&beat).await, "pulse");
        }
    }
    assert_eq!(
        fleet.ask::<Vec<Vec<u8>>>("HGETALL cb:instance:w-1").await,
        before
    );
    assert_eq!(fleet.fact_names().await, ["instance.registered"]);
    assert_eq!(fleet.members("gpu").await, ["w-1"]);
    // Once it is gone, the id is free.
    fleet.instances.sweep(16).await.unwrap();
    assert!(events.register(&robbing).await.unwrap().new);
    // Its process takes it back.
    let pulse = fleet.instances.heartbeat(&beat(&registered)).await.unwrap();
    assert!(!pulse.alive);
    let back = fleet
        .instances
        .register_again(&worker())
        .await
        .unwrap()
        .unwrap();
    assert!(back.new && back.incarnation > registered.incarnation);
    denied(events.register(&robbing).await, "register");
}

#[tokio::test]
async fn its_own_pulse_revives_an_expired_one_until_it_was_declared_lost() {
    let mut fleet = Fleet::start().await;
    let registered = fleet.instances.register(&worker()).await.unwrap();
    fleet.expire("w-1").await;
    let pulse = fleet.instances.heartbeat(&beat(&registered)).await.unwrap();
    assert!(pulse.alive && !pulse.changed);
    assert!(fleet.instances.sweep(16).await.unwrap().lost.is_empty());
    fleet.expire("w-1").await;
    assert_eq!(fleet.instances.sweep(16).await.unwrap().lost.len(), 1);
    let pulse = fleet.instances.heartbeat(&beat(&registered)).await.unwrap();
    assert!(!pulse.alive && !pulse.superseded);
}

#[tokio::test]
async fn a_process_notices_with_its_pulse_what_was_changed_behind_its_back() {
    let mut fleet = Fleet::start().await;
    let mut registered = fleet.instances.register(&worker()).await.unwrap();
    for change in [
        "HSET cb:instance:w-1 roles other",
        "HSET cb:instance:w-1 capabilities mail.send",
        "HSET cb:instance:w-1 capacity 0",
        "HDEL cb:instance:w-1 metadata",
        "SREM cb:role:gpu w-1",
        "DEL cb:role:worker",
    ] {
        fleet.run(change).await;
        let pulse = fleet.instances.heartbeat(&beat(&registered)).await.unwrap();
        assert!(pulse.alive && pulse.changed, "{change}");
        let again = fleet.instances.register_again(&worker()).await.unwrap();
        registered = again.unwrap();
        let pulse = fleet.instances.heartbeat(&beat(&registered)).await.unwrap();
        assert!(pulse.alive && !pulse.changed, "{change}");
    }
    let member = "image.crop w-1".to_owned();
    redis::cmd("ZREM")
        .arg("cb:capabilities")
        .arg(&member)
        .exec_async(&mut fleet.connection)
        .await
        .unwrap();
    let pulse = fleet.instances.heartbeat(&beat(&registered)).await.unwrap();
    assert!(pulse.alive && pulse.changed, "{member}");
    for change in [
        "DEL cb:instance:w-1",
        "ZREM cb:instances:active w-1",
        "FLUSHALL",
    ] {
        fleet.run(change).await;
        let pulse = fleet.instances.heartbeat(&beat(&registered)).await.unwrap();
        assert!(!pulse.alive, "{change}");
        let again = fleet.instances.register_again(&worker()).await.unwrap();
        registered = again.unwrap();
        assert!(registered.new, "{change}");
    }
    assert_eq!(fleet.members("gpu").await, ["w-1"]);
    let capable = fleet.instances.capable("image.crop").await.unwrap();
    assert_eq!(capable.alive, ["w-1"]);
}

#[tokio::test]
async fn who_took_itself_out_is_not_back_by_a_call_that_arrives_late() {
    let fleet = Fleet::start().await;
    let registered = fleet.instances.register(&worker()).await.unwrap();
    let left = fleet
        .instances
        .unregister("w-1", Some(registered.incarnation));
    assert!(left.await.unwrap().unregistered);
    let late = fleet.instances.register_again(&worker()).await.unwrap();
    assert_eq!(late, None);
    assert!(fleet.instances.list().await.unwrap().is_empty());
    // One that begins under the id is another matter.
    let next = Fleet::seen_from(&fleet.redis, &fleet.keys);
    assert!(next.register(&worker()).await.unwrap().new);
}

#[tokio::test]
async fn a_restart_is_counted_and_told_and_the_older_process_changes_nothing_more() {
    let mut fleet = Fleet::start().await;
    let old = fleet.instances.register(&worker()).await.unwrap();
    fleet
        .run("HSET cb:instance:w-1 started_at 1000 registered_at 1000")
        .await;
    let newer = Fleet::seen_from(&fleet.redis, &fleet.keys);
    let new = newer.register(&worker()).await.unwrap();
    assert_eq!((new.new, new.incarnation), (false, old.incarnation));
    // Once, however often it registers.
    newer.register_again(&worker()).await.unwrap().unwrap();
    newer.register(&worker()).await.unwrap();
    let is = fleet.instances.list().await.unwrap().remove(0);
    assert_eq!((is.restarts, is.registered_at, is.sealed), (1, 1000, true));
    assert!(is.started_at > 1000, "its process began now");
    let told = json!({
        "id": "w-1", "roles": ["gpu", "worker"], "incarnation": new.incarnation, "restarts": 1
    });
    assert_eq!(
        fleet.facts().await[1..],
        [("instance.registered".into(), told)]
    );
    // The old one drains, and its counters go on.
    let reported = |processed| Beat {
        metrics: Some(Report {
            process: "old".into(),
            sums: Sums {
                events_processed: processed,
                ..Sums::default()
            },
            ..Report::default()
        }),
        ..beat(&old)
    };
    let pulse = fleet.instances.heartbeat(&reported(5)).await.unwrap();
    assert!(pulse.superseded && !pulse.alive);
    assert_eq!(
        fleet.instances.register_again(&worker()).await.unwrap(),
        None
    );
    let left = fleet
        .instances
        .unregister("w-1", Some(old.incarnation))
        .await
        .unwrap();
    assert!(!left.unregistered);
    assert!(newer.heartbeat(&beat(&new)).await.unwrap().alive);
    let mut both = reported(7);
    both.metrics.as_mut().unwrap().process = "new".into();
    newer.heartbeat(&both).await.unwrap();
    fleet.instances.heartbeat(&reported(6)).await.unwrap();
    newer.heartbeat(&both).await.unwrap();
    let sums = fleet.instances.metrics(false).await.unwrap().sums;
    assert_eq!(sums.events_processed, 13);
    // A crash counts as well, found or not, and so does leaving in order.
    fleet.expire("w-1").await;
    let third = Fleet::seen_from(&fleet.redis, &fleet.keys);
    let registered = third.register(&worker()).await.unwrap();
    assert!(registered.new && registered.incarnation > new.incarnation);
    fleet.expire("w-1").await;
    fleet.instances.sweep(16).await.unwrap();
    let fourth = Fleet::seen_from(&fleet.redis, &fleet.keys);
    fourth.register(&worker()).await.unwrap();
    assert!(fourth.unregister("w-1", None).await.unwrap().unregistered);
    let fifth = Fleet::seen_from(&fleet.redis, &fleet.keys);
    fifth.register(&worker()).await.unwrap();
    assert_eq!(fleet.instances.list().await.unwrap()[0].restarts, 4);
}

#[tokio::test]
async fn an_event_that_names_another_incarnation_is_refused() {
    let fleet = Fleet::start().await;
    let events = fleet.asked();
    let refused = |done: Result<bool, CoordinationError>| match done {
        Err(CoordinationError::FailedPrecondition(message)) => {
            assert!(message.starts_with("incarnation: "), "{message}");
        }
        other => panic!("{other:?}"),
    };
    let register = async |incarnation| {
        let mut registering = Registering::new("x-1", ["worker"]);
        registering.incarnation = incarnation;
        events.register(&registering).await.map(|done| done.new)
    };
    let unregister = async |incarnation| {
        let left = events.unregister("x-1", incarnation).await;
        left.map(|left| left.unregistered)
    };
    refused(register(Some(7)).await);
    assert!(!unregister(Some(7)).await.unwrap(), "there is nothing");
    let registered = events.register(&Registering::new("x-1", ["worker"])).await;
    let is = registered.unwrap().incarnation;
    refused(register(Some(is + 1)).await);
    refused(unregister(Some(is + 1)).await);
    assert!(!register(Some(is)).await.unwrap(), "it is the same one");
    assert!(unregister(Some(is)).await.unwrap());
    assert!(unregister(Some(is)).await.unwrap(), "again");
    refused(register(Some(is)).await);
}

impl Fleet {
    /// Made-up instances that were never there, expired.
    async fn made_up(&mut self, count: usize) {
        let events = self.asked();
        for number in 0..count {
            let mut made_up = Registering::new(format!("x-{number}"), ["worker"]);
            made_up.ttl_ms = 100;
            events.register(&made_up).await.unwrap();
            self.expire(&format!("x-{number}")).await;
            self.run(&format!("ZADD cb:instances:external XX 1000 x-{number}"))
                .await;
        }
    }
}

impl Fleet {
    fn judging(&self, answers: &Answers) -> Instances {
        Fleet::seen_from(&self.redis, &self.keys).judging_by(answers.clone())
    }
}

/// Silence that counts is what lies behind the last gap.
#[tokio::test]
async fn nobody_is_lost_before_five_sixths_of_its_ttl_have_passed_since_the_last_gap() {
    let mut fleet = Fleet::start().await;
    let mut registering = Registering::new("w-1", ["worker"]);
    registering.ttl_ms = 1200;
    fleet.instances.register(&registering).await.unwrap();
    fleet.expire("w-1").await;
    let answers = Answers::new(Duration::from_secs(30));
    let sweeper = fleet.judging(&answers);
    let began = Instant::now();
    // The first answer begins what counts.
    assert!(sweeper.sweep(16).await.unwrap().lost.is_empty());
    while sweeper.sweep(16).await.unwrap().lost.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        began.elapsed() >= Duration::from_millis(950),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(answers.gaps(), 1);
}

#[tokio::test]
async fn a_call_that_was_under_way_in_a_gap_changes_nothing() {
    let fleet = Fleet::start().await;
    for id in ["w-1", "w-2", "w-3"] {
        fleet.register(id, &["worker"]).await;
    }
    let observed: Observed = [("w-2".to_owned(), Opinion::Suspect)].into();
    let suspects = async || fleet.instances.census().await.unwrap().suspect;
    let heard = |then| {
        let answers = Answers::new(Duration::from_secs(30));
        answers.heard(Instant::now(), then, Epoch::default());
        fleet.instances.clone().judging_by(answers)
    };
    let now = fleet.instances.server_time().await.unwrap();
    // As if it had been told a minute ago or ahead: the call is for another time.
    for then in [now - 60_000, now + 60_000] {
        let lost = heard(then).observe("w-1", None, &observed).await.unwrap();
        assert!(lost.is_empty());
        assert_eq!(suspects().await, 0);
    }
    let now = fleet.instances.server_time().await.unwrap();
    heard(now).observe("w-1", None, &observed).await.unwrap();
    assert_eq!(suspects().await, 1);
    let answers = Answers::new(Duration::from_secs(30));
    fleet.judging(&answers).sweep(16).await.unwrap();
    let span = answers.span().unwrap();
    assert!(span.from <= now && span.until > now && span.until < CallTime::ANY.until);
}

#[tokio::test]
async fn a_pulse_that_was_under_way_in_a_gap_is_no_sign_of_life() {
    let mut fleet = Fleet::start().await;
    fleet.register("w-1", &["worker"]).await;
    fleet.expire("w-1").await;
    let now = fleet.instances.server_time().await.unwrap();
    let pulse = async |told| {
        let answers = Answers::new(Duration::from_secs(30));
        answers.heard(Instant::now(), told, Epoch::default());
        let own = fleet.instances.clone().judging_by(answers);
        own.heartbeat(&Beat::new("w-1", None)).await
    };
    let active = async || fleet.instances.list().await.unwrap().len();
    // It was sent a minute ago, and is waited for only a third of a ttl.
    let late = pulse(now - 60_000).await.unwrap_err();
    assert!(late.to_string().contains("waited for no longer"), "{late}");
    assert_eq!(active().await, 0);
    // A clock that is behind makes none too late.
    let pulse = pulse(now + 60_000).await.unwrap();
    assert!(pulse.alive);
    assert_eq!(active().await, 1);
}

/// A sweep looks, and then declares: in between there may be a gap.
#[tokio::test]
async fn a_loss_is_declared_only_in_the_time_in_which_it_was_judged() {
    const HOUR: i64 = 3_600_000;
    let mut fleet = Fleet::start().await;
    fleet.register("w-1", &["worker"]).await;
    fleet.expire("w-1").await;
    let now = fleet.instances.server_time().await.unwrap();
    // Who was told that it was so late, in hours from now, one after the other.
    let judging = |told: &[i64]| {
        // Four hours are a gap, and two no jump.
        let answers = Answers::new(Duration::from_secs(12 * 3600));
        for (at, hours) in (0..).zip(told) {
            // What a sweep asks for itself came before, and changes nothing.
            let asked = Instant::now() + Duration::from_secs(1000 + at);
            let told = now.checked_add_signed(hours * HOUR).unwrap();
            answers.heard(asked, told, Epoch::default());
        }
        assert_eq!(answers.gaps(), 1);
        fleet.judging(&answers)
    };
    // By all of them it has been silent for hours; the call belongs to what is over, or to what is yet to come.
    let (late, early) = (judging(&[-7, -6, -5]), judging(&[-1, 0, 1, 2, 3, 4, 5]));
    for other in [late, early] {
        assert!(other.sweep(16).await.unwrap().lost.is_empty());
    }
    let lost = judging(&[-1, 0]).sweep(16).await.unwrap().lost;
    assert_eq!(lost[0].id, "w-1");
}

/// To the millisecond, as far as a test can tell.
#[tokio::test]
async fn five_sixths_of_a_ttl_are_silence_enough_and_less_is_not() {
    let mut fleet = Fleet::start().await;
    let mut long = Registering::new("w-1", ["worker"]);
    long.ttl_ms = 3_600_000;
    fleet.instances.register(&long).await.unwrap();
    fleet.expire("w-1").await;
    let now = fleet.instances.server_time().await.unwrap();
    let enough = whole_ms(quiet(Duration::from_millis(long.ttl_ms)));
    let silent_for = async |ms: u64| {
        // Two hours are no jump, and what a sweep asks for itself came before.
        let answers = Answers::new(Duration::from_secs(12 * 3600));
        for (at, told) in (0..).zip([now - ms, now]) {
            let asked = Instant::now() + Duration::from_secs(1000 + at);
            answers.heard(asked, told, Epoch::default());
        }
        fleet.judging(&answers).sweep(16).await.unwrap().lost.len()
    };
    assert_eq!(silent_for(enough - 60_000).await, 0);
    assert_eq!(silent_for(enough).await, 1);
}

#[tokio::test]
async fn expiries_that_no_pulse_reaches_are_brought_back() {
    let mut fleet = Fleet::start().await;
    fleet.register("w-1", &["worker"]).await;
    let mut long = Registering::new("w-2", ["worker"]);
    long.ttl_ms = 3_600_000;
    fleet.instances.register(&long).await.unwrap();
    fleet
        .asked()
        .register(&Registering::new("x-1", ["worker"]))
        .await
        .unwrap();
    let own = Duration::from_secs(30);
    assert_eq!(fleet.instances.shorten(own).await.unwrap(), 0);
    let now = fleet.instances.server_time().await.unwrap();
    for key in ["active", "external"] {
        let hour = now + 3_600_000;
        for id in ["w-1", "x-1"] {
            fleet
                .run(&format!("ZADD cb:instances:{key} XX {hour} {id}"))
                .await;
        }
    }
    assert_eq!(fleet.instances.shorten(own).await.unwrap(), 2);
    assert_eq!(fleet.instances.shorten(own).await.unwrap(), 0);
    for (id, most) in [("w-1", 40_000), ("x-1", 40_000), ("w-2", 3_700_000)] {
        let expires: f64 = fleet.ask(&format!("ZSCORE cb:instances:active {id}")).await;
        let left = expires as u64 - now;
        assert!((25_000..most).contains(&left), "{id}: {left}");
    }
}
