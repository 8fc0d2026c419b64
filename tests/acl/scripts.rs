//! Who may load scripts does it for those who may not.

use super::{Guarded, as_user, client, users, whole};
use convoke::Worker;
use convoke::client::publish::{Outgoing, PublishError};
use convoke::connect::connector::Connector;
use convoke::coordination::instances::Instances;
use convoke::protocol::keys::Keys;
use convoke::settings::Settings;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

fn worker(guarded: &Guarded) -> Worker {
    let settings = Settings {
        redis_url: guarded.url(users::WORKER),
        id: "w-1".into(),
        heartbeat_ttl: Duration::from_secs(2),
        ..Settings::default()
    };
    let worker = Worker::builder().settings(settings);
    let worker = worker.handler("image.whole", whole);
    worker.build().expect("a worker")
}

fn flush(guarded: &Guarded) {
    let flushed = redis::cmd("SCRIPT")
        .arg("FLUSH")
        .exec(&mut guarded.redis.connect());
    flushed.expect("no scripts");
}

/// What a publisher has that needs a script, alone, confirmed and among many.
async fn publishes_all(publisher: &convoke::client::Client, round: u32) {
    let event = || Outgoing::new("image.whole", &7);
    let later = || event().delay(Duration::from_secs(60));
    let once = || event().id(format!("once-{round}")).dedup(true);
    publisher.publish(&later()).await.expect("stored for later");
    publisher.publish(&once()).await.expect("stored once");
    let confirmed = later().confirm(1, Duration::from_millis(1));
    let doubt = publisher.publish(&confirmed).await;
    let doubt = doubt.expect_err("there is no replica");
    assert!(matches!(doubt, PublishError::Unknown { .. }), "{doubt}");
    let many = [event(), later(), once(), event()];
    for stored in publisher.publish_many(&many).await {
        stored.expect("stored");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_can_do_all_after_a_restart_and_a_flush_where_a_worker_is() {
    let mut guarded = Guarded::start();
    // It finds out by itself whether it may.
    guarded.redis.expect_refusals();
    flush(&guarded);
    let drain = CancellationToken::new();
    let running = tokio::spawn(worker(&guarded).run_until(drain.clone()));
    let keys = Keys::new("cb").expect("a namespace");
    let publisher = client(&guarded, users::DATA_PUBLISHER, keys);
    let connection = guarded.redis.connection().await;
    super::support::until("the worker is there", || async {
        let mut connection = connection.clone();
        let mut command = redis::cmd("ZCARD");
        let alive = command.arg("cb:instances:active");
        alive.query_async(&mut connection).await == Ok(1)
    })
    .await;
    publishes_all(&publisher, 1).await;
    flush(&guarded);
    publishes_all(&publisher, 2).await;
    guarded.redis.restart_without_scripts();
    // What was sent into the restart may be stored, nobody knows.
    super::support::until("the publisher has connected again", || async {
        let plain = Outgoing::new("image.whole", &7);
        publisher.publish(&plain).await.is_ok()
    })
    .await;
    publishes_all(&publisher, 3).await;
    let asked = publisher.request(Outgoing::new("image.whole", &7), Duration::from_secs(30));
    assert_eq!(
        asked.await.expect("a reply").decode::<u32>().expect("it"),
        7
    );
    publisher.close().await;
    drain.cancel();
    running.await.expect("no panic").expect("drained");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_anyone_who_may_load_them_it_is_said_who_must() {
    let mut guarded = Guarded::start();
    guarded.redis.expect_refusals();
    flush(&guarded);
    let later = ["publish", "image.whole", "--delay", "1m"];
    let advice = "start a worker, or run `convoke health`";
    let (code, _, said) = as_user(&guarded, users::PUBLISHER, 0, &later).await;
    assert!(code == 1 && said.contains(advice), "{said}");
    let connector = Connector::new(&guarded.url(users::MONITOR), 1).expect("a url");
    let looks = Instances::new(connector, Keys::new("cb").expect("a namespace"));
    let said = looks.census().await.expect_err("no script").to_string();
    assert!(said.contains(advice), "{said}");
    let nothing: u64 = redis::cmd("DBSIZE")
        .query(&mut guarded.redis.connect())
        .expect("a size");
    assert_eq!(nothing, 0);
    // Nobody answers it, but it loads them, if it connects within that time.
    let asked = ["health", "--timeout", "3s"];
    let (_, _, said) = as_user(&guarded, users::OPERATOR, 0, &asked).await;
    assert!(!said.contains("script"), "{said}");
    let (code, _, said) = as_user(&guarded, users::PUBLISHER, 0, &later).await;
    assert_eq!(code, 0, "{said}");
    looks.census().await.expect("counted");
}

#[test]
fn an_operator_can_stop_a_script_that_hangs() {
    let guarded = Guarded::start();
    let hangs = redis::Script::new("while true do end");
    let mut connection = guarded.redis.connect();
    hangs.load(&mut connection).expect("loaded");
    let threshold = ["SET", "busy-reply-threshold", "50"];
    redis::cmd("CONFIG")
        .arg(&threshold)
        .exec(&mut connection)
        .expect("set");
    let hanging = std::thread::spawn(move || hangs.key("cb:leader").invoke::<()>(&mut connection));
    super::support::eventually("the script is stopped", || {
        guarded.try_as(users::OPERATOR, &["SCRIPT", "KILL"]).is_ok()
    });
    let stopped = hanging.join().expect("no panic").expect_err("stopped");
    assert!(stopped.to_string().contains("killed"), "{stopped}");
}
