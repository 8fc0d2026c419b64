//! Streams, groups and their flow, as the doctor finds them.

use super::Patient;
use crate::support;

#[test]
fn streams_that_are_ahead_of_their_time_or_that_nobody_reads() {
    let patient = Patient::healthy();
    patient.say(&[
        "XADD",
        "cb:results:image",
        "9999999999999-0",
        "status",
        "ok",
    ]);
    let findings = patient.examined();
    let fix = findings.of("last-id")["fix"].as_str().unwrap().to_owned();
    assert!(
        fix.contains("XDEL cb:results:image 9999999999999-0"),
        "{fix}"
    );
    patient.must_suffer(&["danger last-id"]);

    let patient = Patient::healthy();
    patient.say(&["XADD", "cb:events:image", "*", "type", "image.resize"]);
    patient.must_suffer(&["warning groups"]);

    let patient = Patient::healthy();
    patient.say(&["XADD", "cb:events:image", "*", "type", "image.resize"]);
    patient.say(&["XGROUP", "CREATE", "cb:events:image", "workers", "0"]);
    patient.must_suffer(&["danger workers"]);
}

#[test]
fn what_the_dead_left_behind() {
    let patient = Patient::healthy();
    patient.say(&[
        "XGROUP",
        "CREATE",
        "cb:events:image",
        "workers",
        "0",
        "MKSTREAM",
    ]);
    for n in 0..11 {
        let name = format!("gone-{n}");
        patient.say(&[
            "XGROUP",
            "CREATECONSUMER",
            "cb:events:image",
            "workers",
            &name,
        ]);
    }
    support::eventually("they are left over", || {
        patient.examined().bad() == ["warning consumers"]
    });
    assert!(
        patient.examined().of("consumers")["fix"]
            .as_str()
            .unwrap()
            .contains("DELCONSUMER")
    );

    let patient = Patient::healthy();
    patient.say(&["XADD", "cb:events:image", "*", "type", "image.resize"]);
    patient.say(&["XGROUP", "CREATE", "cb:events:image", "workers", "0"]);
    patient.say(&[
        "XREADGROUP",
        "GROUP",
        "workers",
        "gone",
        "STREAMS",
        "cb:events:image",
        ">",
    ]);
    support::eventually("it is stuck", || {
        patient.examined().bad() == ["danger workers", "warning stuck"]
    });
}

/// A stream of three entries, and a group that begins behind one of them.
fn asked_to(patient: &Patient, stream: &str, at: &str) {
    for n in 1..=3 {
        let id = format!("{n}-1");
        patient.say(&["XADD", stream, &id, "type", "image.resize"]);
    }
    patient.say(&["XGROUP", "CREATE", stream, "workers", at]);
}

#[test]
fn a_group_that_was_made_again_by_hand() {
    let patient = Patient::healthy();
    asked_to(&patient, "cb:events:image", "3-1");
    let found = patient.examined();
    let what = found.of("remade")["what"].as_str().unwrap();
    assert!(
        what.contains("cb:events:image") && what.contains("3-1"),
        "{what}"
    );
    let fix = found.of("remade")["fix"].as_str().unwrap();
    assert!(
        fix.contains("XGROUP SETID cb:events:image workers"),
        "{fix}"
    );
    patient.must_suffer(&["warning remade"]);

    // At the beginning of a stream that was trimmed: it was read before.
    let patient = Patient::healthy();
    asked_to(&patient, "cb:events:image", "3-1");
    patient.say(&["XTRIM", "cb:events:image", "MAXLEN", "2"]);
    patient.say(&["XGROUP", "DESTROY", "cb:events:image", "workers"]);
    patient.say(&["XGROUP", "CREATE", "cb:events:image", "workers", "0"]);
    patient.must_suffer(&["danger workers", "warning remade", "warning no-consumer"]);

    // One that has read nothing yet.
    let patient = Patient::healthy();
    asked_to(&patient, "cb:events:image", "0");
    patient.must_suffer(&["danger workers", "warning no-consumer"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_its_workers_made_again() {
    use convoke::protocol::keys::Keys;
    use convoke::settings::{RedisUrl, Settings};
    use convoke::{Context, HandlerError, Worker};

    let patient = Patient::healthy();
    let settings = Settings {
        redis_url: RedisUrl::new(&patient.url),
        ..Settings::default()
    };
    let (runs, mut ran) = tokio::sync::mpsc::unbounded_channel();
    let resize = move |context: Context, ()| {
        let runs = runs.clone();
        async move {
            runs.send(context.event().id()).ok();
            Ok::<_, HandlerError>(())
        }
    };
    let worker = Worker::builder()
        .settings(settings)
        .handler("image.resize", resize);
    let drain = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(worker.build().unwrap().run_until(drain.clone()));
    let mut connection = redis::Client::open(patient.url.as_str())
        .unwrap()
        .get_connection()
        .unwrap();
    for _ in 0..3 {
        let mut event = redis::cmd("XADD");
        event.arg(&["cb:events:image", "*", "type", "image.resize", "data"]);
        event.arg(&[0xc0_u8][..]).exec(&mut connection).unwrap();
        ran.recv().await.unwrap();
    }
    assert_eq!(patient.examined().of("remade")["status"], "fine");
    patient.say(&["XGROUP", "DESTROY", "cb:events:image", "workers"]);
    for _ in 0..3 {
        ran.recv().await.unwrap();
    }
    let found = patient.examined();
    let finding = found.of("remade");
    assert_eq!(finding["status"], "warning", "{finding}");
    let what = finding["what"].as_str().unwrap();
    assert!(
        what.contains("the group workers was gone and was made again on cb:events:image")
            && what.contains("3 events"),
        "{what}"
    );
    drain.cancel();
    running.await.unwrap().unwrap();
    let key = Keys::new("cb").unwrap().remade();
    patient.say(&["DEL", &key]);
    assert_eq!(patient.examined().of("remade")["status"], "fine");
}

/// A stream with these groups, whose entries have waited for ever.
fn waiting(patient: &Patient, stream: &str, groups: &[&str]) {
    for id in ["1-1", "2-1", "3-1"] {
        patient.say(&["XADD", stream, id, "type", "image.resize"]);
    }
    for group in groups {
        patient.say(&["XGROUP", "CREATE", stream, group, "0"]);
    }
}

#[tokio::test]
async fn events_that_do_not_flow_are_named_with_why_and_how_to_mend_it() {
    let patient = Patient::healthy();
    waiting(&patient, "cb:events:image", &["workers", "audit"]);
    let read = "XREADGROUP GROUP workers w-1 COUNT 1 STREAMS cb:events:image >";
    patient.say(&read.split(' ').collect::<Vec<_>>());
    // One that lives, and has no handler.
    registered(&patient, "w-1").await;
    let findings = patient.examined();
    for (check, status, said) in [
        (
            "stalled",
            "danger",
            "nothing goes out of cb:events:image while 2 entries wait and 1 are held",
        ),
        (
            "no-consumer",
            "warning",
            "3 entries of cb:events:image wait for the group audit",
        ),
        (
            "no-handler",
            "warning",
            "events of type image.resize, and no instance has a handler",
        ),
    ] {
        let finding = findings.of(check);
        assert_eq!(finding["status"], status, "{finding}");
        assert!(
            finding["what"].as_str().unwrap().contains(said),
            "{finding}"
        );
    }
    patient.must_suffer(&[
        "danger stalled",
        "warning no-consumer",
        "warning no-handler",
    ]);
}

#[tokio::test]
async fn a_ledger_that_is_behind_and_a_delay_queue_that_nobody_empties() {
    let patient = Patient::healthy();
    patient.say(&["XADD", "cb:broadcast", "1-1", "type", "leader.elected"]);
    patient.say(&["XGROUP", "CREATE", "cb:broadcast", "ledger", "0"]);
    patient.must_suffer(&["warning ledger"]);

    let patient = Patient::healthy();
    patient.say(&["XADD", "cb:dead:image", "1-1", "type", "image.resize"]);
    patient.say(&["ZADD", "cb:delayed:image", "1000", "x"]);
    let findings = patient.examined();
    let what = findings.of("delayed")["what"].as_str().unwrap();
    assert!(
        what.starts_with("1 events in cb:delayed:image were due"),
        "{what}"
    );
    patient.must_suffer(&["danger delayed"]);
}

async fn registered(patient: &Patient, id: &str) {
    use convoke::connect::connector::Connector;
    use convoke::coordination::instances::Instances;
    use convoke::coordination::instances::instance::Registering;
    use convoke::protocol::keys::Keys;
    use convoke::settings::RedisUrl;
    let connector = Connector::new(&RedisUrl::new(patient.url.clone()), 1).unwrap();
    let instances = Instances::of_process(connector, Keys::new("cb").unwrap(), "test");
    let registering = Registering::new(id, ["worker"]);
    instances.register(&registering).await.unwrap();
}
