//! A publisher: it publishes and asks, and neither reads nor settles.

use super::{Guarded, client, length, whole};
use crate::support::users;
use convoke::Worker;
use convoke::client::publish::Outgoing;
use convoke::protocol::keys::Keys;
use convoke::settings::Settings;
use convoke::streams::delay;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_can_publish_and_ask_in_every_way() {
    for keys in [Keys::new("cb"), Keys::tagged("cb", 2)] {
        let keys = keys.expect("a namespace");
        let guarded = Guarded::start();
        let client = client(&guarded, "convoke-publisher", keys.clone());
        let event = || Outgoing::new("image.resize", &7);
        client.publish(&event()).await.expect("stored");
        for _ in 0..2 {
            let once = event().id("once").dedup(true);
            client.publish(&once).await.expect("stored once");
        }
        let later = event().delay(Duration::from_secs(60));
        client.publish(&later).await.expect("stored for later");
        let later = event().id("later").dedup(true).at(4_000_000_000_000);
        client.publish(&later).await.expect("stored for later");
        for stored in client.publish_many(&[event(), event()]).await {
            stored.expect("stored");
        }
        let confirmed = event().confirm(1, Duration::from_millis(1));
        let doubt = client.publish(&confirmed).await.expect_err("no replica");
        assert!(doubt.to_string().contains("replica"), "{doubt}");

        let asked = Outgoing::new("system.health", &()).id("asked");
        let (reply, ()) = tokio::join!(
            client.request(asked, Duration::from_secs(30)),
            answer(&guarded, &keys)
        );
        assert_eq!(reply.expect("a reply").correlation_id, "asked");
        client.close().await;
        assert_eq!(guarded.redis.refused(), Vec::<String>::new());
    }
}

/// Answers the one request for `system.health`, as the server's owner.
async fn answer(guarded: &Guarded, keys: &Keys) {
    let mut connection = guarded.redis.connection().await;
    let events = keys.events("system", 0);
    crate::support::until("the request arrives", || {
        let mut connection = connection.clone();
        let events = &events;
        async move {
            let length: i64 = redis::cmd("XLEN")
                .arg(events)
                .query_async(&mut connection)
                .await
                .expect("a length");
            length == 1
        }
    })
    .await;
    redis::cmd("XADD")
        .arg(keys.reply("system", 0, "shop"))
        .arg("*")
        .arg(&["correlationid", "asked", "type", "system.health.result"])
        .arg(&["status", "ok", "data"])
        .arg(b"\xc0")
        .exec_async(&mut connection)
        .await
        .expect("answered");
}

#[test]
fn a_publisher_can_neither_read_events_nor_settle_them_nor_look_around() {
    let guarded = Guarded::start();
    guarded.must_refuse(
        "convoke-publisher",
        &[
            "XREAD STREAMS cb:events:image 0",
            "XRANGE cb:events:image - +",
            "XREADGROUP GROUP workers me STREAMS cb:events:image >",
            "XACK cb:events:image workers 1-1",
            "XDEL cb:events:image 1-1",
            "XTRIM cb:events:image MAXLEN 0",
            "XGROUP CREATE cb:events:image other 0 MKSTREAM",
            "XADD cb:broadcast * type instance.lost",
            "XADD cb:results:image * status ok",
            "XADD cbx:events:image * type image.resize",
            "XADD {cbx}:events:image * type image.resize",
            "ZADD cb:instances:active 1 w-1",
            "UNLINK cb:events:image",
            "DEL cb:events:image",
            "DEL cb:delayed:image",
            "DEL {cb:image:0}:events",
            "SET cb:events:image junk",
            "SET cb:events:system junk",
            "SET cb:delayed:image junk",
            "PEXPIRE cb:events:image 1",
            "PEXPIRE cb:delayed:image 1",
            "PEXPIRE {cb:image:0}:delayed 1",
            "ZADD cb:events:image 1 m",
            "ZADD cb:inbox_delayed:w-1 1 m",
            "ZADD {cb}:inbox_delayed:w-1 1 m",
            "XADD cb:delayed:image * type image.whole",
            "XADD cb:dedup:image:1 * type image.whole",
            "SCRIPT LOAD x",
            "SCRIPT FLUSH",
            "SCRIPT KILL",
            "DEL cb:instance:w-1",
            "EVAL return 0",
            "KEYS *",
            "SCAN 0",
            "FLUSHALL",
            "CONFIG GET *",
            "CLIENT LIST",
            "CLIENT KILL ID 1",
            "ACL WHOAMI",
            "DEBUG SLEEP 0",
            "SHUTDOWN NOSAVE",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_puts_nothing_into_the_inbox_of_a_worker() {
    let guarded = Guarded::start();
    // Where earlier versions kept the delay queue of an inbox, and a publisher's pattern fits.
    let forged = delay::encode_member("1", &["type", "image.whole", "data", "\x07"]);
    let mut publisher = guarded.redis.connection_for(users::PUBLISHER).await;
    redis::cmd("ZADD")
        .arg(&["cb:delayed:inbox:w-1", "1"])
        .arg(forged)
        .exec_async(&mut publisher)
        .await
        .expect("that is its to write");
    let settings = Settings {
        redis_url: guarded.url(users::WORKER),
        id: "w-1".into(),
        ..Settings::default()
    };
    let worker = Worker::builder()
        .settings(settings)
        .handler("image.whole", whole);
    let drain = CancellationToken::new();
    let worker = worker.build().expect("a worker");
    let running = tokio::spawn(worker.run_until(drain.clone()));
    let keys = Keys::new("cb").expect("a namespace");
    let client = client(&guarded, users::PUBLISHER, keys);
    // What is due after the worker's first look at the delay queues has run at its second.
    let ran = ["cb:results:image".to_owned()];
    for round in 1..=2 {
        let later = Outgoing::new("image.whole", &7).delay(Duration::from_millis(1));
        client.publish(&later).await.expect("stored for later");
        crate::support::until("it ran", || async { length(&guarded, &ran).await == round }).await;
    }
    let mut connection = guarded.redis.connection().await;
    let left = redis::cmd("ZCARD").arg("cb:delayed:inbox:w-1").to_owned();
    let left: u64 = left.query_async(&mut connection).await.expect("a number");
    assert_eq!(left, 1);
    assert_eq!(length(&guarded, &["cb:inbox:w-1".to_owned()]).await, 0);
    client.close().await;
    drain.cancel();
    running.await.expect("no panic").expect("drained");
}
