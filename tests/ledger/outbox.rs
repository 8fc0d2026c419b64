//! What a service wrote is told, what it took back is not.

use crate::rig::{Rig, Store};
use crate::support;
use convoke::ledger::outbox::{Post, PostError};
use convoke::ledger::relay::Relay;
use convoke::protocol::event::Entry;
use convoke::sqlx::{PgPool, Postgres, Sqlite, SqlitePool};
use convoke::streams::read::entries_of;
use std::collections::HashMap;
use tokio_util::sync::CancellationToken;

const EVENTS: &str = "cb:events:order";

async fn insert(store: &Store, posts: Vec<Post>, commit: bool) -> Result<(), PostError> {
    match store {
        Store::File(_) => {
            let pool = SqlitePool::connect(store.url().expose()).await.unwrap();
            let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
            for post in posts {
                post.insert::<Sqlite>(&mut transaction).await?;
            }
            if commit {
                transaction.commit().await.unwrap();
            }
        }
        Store::Server(_) => {
            let pool = PgPool::connect(store.url().expose()).await.unwrap();
            let mut transaction = pool.begin().await.unwrap();
            for post in posts {
                post.insert::<Postgres>(&mut transaction).await?;
            }
            if commit {
                transaction.commit().await.unwrap();
            }
        }
    }
    Ok(())
}

/// What was published.
async fn entries(rig: &Rig) -> Vec<Entry> {
    let reply = redis::cmd("XRANGE")
        .arg(&[EVENTS, "-", "+"])
        .query_async(&mut rig.connection.clone())
        .await
        .unwrap();
    entries_of(reply).unwrap()
}

/// (id, subject, data) of what was published.
async fn published(rig: &Rig) -> Vec<(String, String, Vec<u8>)> {
    let text =
        |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
    entries(rig)
        .await
        .iter()
        .map(|entry| {
            (
                text(entry.get("id")),
                text(entry.get("subject")),
                entry.get("data").unwrap().to_vec(),
            )
        })
        .collect()
}

async fn ready(store: Store) -> Rig {
    let rig = Rig::new(store).await;
    rig.store.database().migrate().await.unwrap();
    rig
}

fn relay(rig: &Rig) -> Relay {
    Relay::new(rig.store.database(), &rig.settings()).unwrap()
}

#[tokio::test]
async fn what_was_committed_is_published_once_and_what_was_rolled_back_is_not() {
    for store in Store::both() {
        let rig = ready(store).await;
        let posts = vec![
            Post::new("order.placed", &7)
                .id("e-1")
                .subject("o-7")
                .source("shop"),
        ];
        insert(&rig.store, posts, true).await.unwrap();
        insert(&rig.store, vec![Post::new("order.placed", &8)], false)
            .await
            .unwrap();
        let bad = insert(&rig.store, vec![Post::new("order", &8)], true)
            .await
            .unwrap_err();
        assert!(bad.to_string().starts_with("type:"), "{bad}");
        // From any program.
        rig.store
            .run("INSERT INTO convoke_outbox (kind, json) VALUES ('order.noted', '{\"a\": [1]}')")
            .await;
        let relay = relay(&rig);
        assert_eq!(relay.run_once().await.unwrap(), (2, true));
        assert_eq!(relay.run_once().await.unwrap(), (0, true));
        let found = published(&rig).await;
        assert_eq!(found.len(), 2);
        assert!(found.contains(&("e-1".into(), "o-7".into(), vec![7])));
        let noted = rmp_serde::to_vec_named(&serde_json::json!({"a": [1]})).unwrap();
        assert!(
            found
                .iter()
                .any(|(id, _, data)| id.starts_with("outbox-") && *data == noted)
        );
    }
}

#[tokio::test]
async fn the_trace_of_the_run_that_wrote_an_event_goes_on_in_who_runs_it() {
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for store in Store::both() {
        let rig = ready(store).await;
        let posts = vec![Post::new("order.placed", &7).traceparent(trace)];
        insert(&rig.store, posts, true).await.unwrap();
        assert_eq!(relay(&rig).run_once().await.unwrap(), (1, true));
        let found = entries(&rig).await;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].get("traceparent"), Some(trace.as_bytes()));
    }
}

#[tokio::test]
async fn a_row_that_can_never_be_published_is_set_aside_and_holds_nothing_up() {
    for store in Store::both() {
        let rig = ready(store).await;
        for row in [
            "INSERT INTO convoke_outbox (kind, subject, json) VALUES ('nodot', 's', '1')",
            "INSERT INTO convoke_outbox (kind, subject, json) VALUES ('order.a', 's', 'no json')",
            "INSERT INTO convoke_outbox (kind, subject, json) VALUES ('order.b', 's', '2')",
        ] {
            rig.store.run(row).await;
        }
        let relay = relay(&rig);
        assert_eq!(relay.run_once().await.unwrap(), (1, true));
        assert_eq!(published(&rig).await.len(), 1);
        let extent = rig.store.database().extent().await.unwrap();
        assert_eq!((extent.outbox_waiting, extent.outbox_refused), (0, 2));
    }
}

#[tokio::test]
async fn several_relays_keep_the_order_of_each_subject_and_redis_may_die() {
    for store in Store::both() {
        let mut rig = ready(store).await;
        rig.redis = support::Redis::durable();
        let stop = CancellationToken::new();
        let relays: Vec<_> = (0..3)
            .map(|_| tokio::spawn(relay(&rig).run(stop.clone())))
            .collect();
        let (subjects, rounds) = (5, 40u64);
        for n in 0..rounds {
            let posts = (0..subjects).map(|s| {
                Post::new("order.placed", &n)
                    .subject(format!("o-{s}"))
                    .id(format!("{s}-{n}"))
            });
            insert(&rig.store, posts.collect(), true).await.unwrap();
            if n == rounds / 2 {
                rig.redis.restart();
            }
        }
        let database = rig.store.database();
        support::until("the outbox is empty", || async {
            database
                .extent()
                .await
                .is_ok_and(|extent| extent.outbox_waiting == 0)
        })
        .await;
        stop.cancel();
        for relay in relays {
            relay.await.unwrap();
        }
        rig.connection = rig.redis.connection().await;
        let mut orders: HashMap<String, Vec<u64>> = HashMap::new();
        for (_, subject, data) in published(&rig).await {
            orders
                .entry(subject)
                .or_default()
                .push(rmp_serde::from_slice(&data).unwrap());
        }
        assert_eq!(orders.len(), subjects);
        for (subject, order) in orders {
            assert_eq!(order, (0..rounds).collect::<Vec<_>>(), "{subject}");
        }
    }
}

#[tokio::test]
async fn an_event_that_can_not_be_stored_yet_holds_its_subject_up_and_no_other() {
    for store in Store::both() {
        let rig = ready(store).await;
        let mut connection = rig.connection.clone();
        redis::cmd("SET")
            .arg(&[EVENTS, "no stream"])
            .exec_async(&mut connection)
            .await
            .unwrap();
        let posts = vec![
            Post::new("order.placed", &1).subject("s"),
            Post::new("mail.sent", &2).subject("s"),
            Post::new("mail.sent", &3).subject("t"),
        ];
        insert(&rig.store, posts, true).await.unwrap();
        let relay = relay(&rig);
        relay.run_once().await.unwrap_err();
        let mails = || async {
            let command = redis::cmd("XLEN").arg("cb:events:mail").clone();
            command
                .query_async::<u64>(&mut rig.connection.clone())
                .await
                .unwrap()
        };
        assert_eq!(mails().await, 1);
        redis::cmd("DEL")
            .arg(EVENTS)
            .exec_async(&mut connection)
            .await
            .unwrap();
        assert_eq!(relay.run_once().await.unwrap(), (2, true));
        assert_eq!((mails().await, published(&rig).await.len()), (2, 1));
    }
}

#[tokio::test]
async fn rows_of_one_number_in_two_databases_are_two_events() {
    let rig = ready(Store::file()).await;
    let other = Store::file();
    other.database().migrate().await.unwrap();
    for store in [&rig.store, &other] {
        store
            .run("INSERT INTO convoke_outbox (kind, time, json) VALUES ('order.noted', 1000, '1')")
            .await;
    }
    other.run("UPDATE convoke_outbox SET time = 2000").await;
    for database in [rig.store.database(), other.database()] {
        let relay = Relay::new(database, &rig.settings()).unwrap();
        assert_eq!(relay.run_once().await.unwrap(), (1, true));
    }
    assert_eq!(published(&rig).await.len(), 2);
}
