//! Publishing while the server fails over, stands still, restarts, or the wire is cut.

use crate::publish::{client, client_at, code, event, is_unknown, options};
use crate::setup::{Bus, text};
use crate::support::cluster::Cluster;
use crate::support::proxy::Proxy;
use crate::support::{Redis, is_cluster, keys, name, skip_on_cluster, users};
use convoke::client::ClientOptions;
use convoke::client::publish::{Doubt, PublishError};
use std::time::Duration;

const STREAM: &str = "cb:events:image";

#[tokio::test]
async fn a_replica_rejects_and_the_client_finds_the_primary_again() {
    if skip_on_cluster("REPLICAOF: a node is a replica by what the cluster's nodes agree on") {
        return;
    }
    let mut bus = Bus::start().await;
    let client = client(&bus);
    client.publish(&event("e0")).await.unwrap();
    let other = Redis::start();
    bus.run(&format!("REPLICAOF 127.0.0.1 {}", other.port()))
        .await;
    assert_eq!(code(client.publish(&event("e1")).await), "READONLY");
    let refused = client.publish(&event("e2").dedup(true)).await;
    // A server that does not tell its role takes nothing either.
    let told = if users::lack("ROLE") {
        "READONLY"
    } else {
        "replica"
    };
    assert!(code(refused).contains(told));
    bus.run("REPLICAOF NO ONE").await;
    client.publish(&event("e3").dedup(true)).await.unwrap();
}

#[tokio::test]
async fn a_server_that_stands_still_leaves_it_unknown_and_the_same_id_is_stored_once() {
    let mut bus = Bus::start().await;
    let client = client(&bus);
    let once = event("e0").dedup(true);
    client.publish(&event("first").dedup(true)).await.unwrap();
    bus.redis.signal("STOP");
    let outcome = client.publish(&once).await;
    bus.redis.signal("CONT");
    assert!(is_unknown(&outcome), "{outcome:?}");
    client.publish(&once).await.unwrap();
    assert!(client.publish(&once).await.unwrap().is_duplicate());
    assert_eq!(bus.entries(STREAM).await.len(), 2);
}

#[tokio::test]
async fn a_lost_answer_is_unknown_and_with_dedup_the_client_repeats_it_by_itself() {
    let mut bus = Bus::start().await;
    let proxy = Proxy::before(&bus.redis).await;
    let client = client_at(&proxy.url_of(&bus.redis, users::PUBLISHER), options());
    client.publish(&event("first").dedup(true)).await.unwrap();
    // What goes the same way as those of which an answer is lost: the answer is theirs then, not one to connecting.
    let between = || event("between");
    client.publish(&between()).await.unwrap();
    let later = event("later").delay(Duration::from_secs(9));
    for event in [event("plain"), event("once").dedup(true), later] {
        proxy.cut_next_answer();
        let outcome = client.publish(&event).await;
        assert!(proxy.has_cut() && is_unknown(&outcome), "{outcome:?}");
        // The connection is replaced.
        client.publish(&between()).await.unwrap();
    }
    let twice = [event("many-1"), event("many-2").dedup(true)];
    client.publish_many(&[between()]).await;
    proxy.cut_next_answer();
    assert!(client.publish_many(&twice).await.iter().all(is_unknown));
    let patient = client_at(
        &proxy.url_of(&bus.redis, users::PUBLISHER),
        ClientOptions {
            patience: Duration::from_secs(30),
            ..options()
        },
    );
    patient.publish(&event("warm").dedup(true)).await.unwrap();
    proxy.cut_next_answer();
    let outcome = patient.publish(&event("again").dedup(true)).await.unwrap();
    assert!(proxy.has_cut() && outcome.is_duplicate());
    let entries = bus.entries(STREAM).await;
    let mut ids: Vec<String> = entries.iter().map(|e| text(e, "id")).collect();
    ids.retain(|id| id != "between");
    ids.sort();
    assert_eq!(
        ids,
        [
            "again", "first", "many-1", "many-2", "once", "plain", "warm"
        ]
    );
}

#[tokio::test]
async fn a_connection_that_was_closed_while_it_idled_makes_nothing_unknown() {
    let mut bus = Bus::start().await;
    let client = client(&bus);
    for round in 0..3 {
        let two = [event(&format!("a{round}")), event(&format!("b{round}"))];
        for outcome in client.publish_many(&two).await {
            outcome.unwrap();
        }
        bus.run("CLIENT KILL TYPE normal SKIPME yes").await;
        // By now the end of the other connections has arrived as well.
        bus.run("PING").await;
    }
    assert_eq!(bus.entries(STREAM).await.len(), 6);
}

#[tokio::test]
async fn without_replicas_a_confirmed_publish_is_stored_but_unknown() {
    if users::skip_without("WAIT") {
        return;
    }
    let mut bus = Bus::start().await;
    let client = client(&bus);
    let wait = Duration::from_millis(50);
    for event in [
        event("e0").confirm(1, wait),
        event("e1").dedup(true).confirm(1, wait),
    ] {
        match client.publish(&event).await {
            Err(PublishError::Unknown {
                source:
                    Doubt::Unconfirmed {
                        published,
                        confirmed,
                        wanted,
                    },
                ..
            }) => {
                assert!(published.entry().is_some());
                assert_eq!((confirmed, wanted), (0, 1));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bus.entries(STREAM).await.len(), 2);
}

#[tokio::test]
async fn a_confirmed_publish_is_on_the_replica() {
    if users::skip_without("WAIT") {
        return;
    }
    let (cluster, bus);
    let (client, of_replica, replica) = if is_cluster() {
        cluster = Cluster::with_replicas();
        let replica = cluster.replica_of(&name("image", STREAM));
        let client = client_at(&cluster.url_for(users::PUBLISHER), options());
        (client, None, replica.connect())
    } else {
        bus = Bus::start().await;
        let (save, of) = (["--save", ""], ["--replicaof", "127.0.0.1"]);
        let port = bus.redis.port().to_string();
        let replica = Redis::with(&[&save[..], &of, &[port.as_str()]].concat());
        let looks = replica.connect();
        (client(&bus), Some(replica), looks)
    };
    let event = event("e0")
        .dedup(true)
        .confirm(1, Duration::from_millis(200));
    let mut confirmed = client.publish(&event).await;
    // Until the replica has caught up; a repeated publish of the same id is confirmed as well.
    for _ in 0..300 {
        if confirmed.is_ok() {
            break;
        }
        confirmed = client.publish(&event).await;
    }
    confirmed.unwrap();
    let mut replica = replica;
    if of_replica.is_none() {
        redis::cmd("READONLY").exec(&mut replica).unwrap();
    }
    let mut length = redis::cmd("XLEN");
    length.arg(name("image", STREAM));
    assert_eq!(length.query::<u32>(&mut replica).unwrap(), 1);
}

#[tokio::test]
async fn a_client_lives_through_restarts_and_killed_connections() {
    let mut bus = Bus::on(Redis::durable(), keys()).await;
    let client = client_at(
        &bus.redis.url_for(users::PUBLISHER),
        ClientOptions {
            patience: Duration::from_secs(30),
            ..options()
        },
    );
    for round in 0..6 {
        let id = format!("e{round}");
        client.publish(&event(&id).dedup(true)).await.unwrap();
        if round % 3 == 2 {
            bus.redis.restart();
            bus.connect().await;
        } else {
            bus.run("CLIENT KILL TYPE normal SKIPME yes").await;
        }
    }
    assert_eq!(bus.entries(STREAM).await.len(), 6);
}

#[tokio::test]
async fn without_a_server_a_publish_is_rejected() {
    let url = format!("redis://127.0.0.1:{}", crate::support::free_port());
    let client = client_at(&url, options());
    assert!(code(client.publish(&event("e0")).await).contains("cannot connect"));
    let many = client.publish_many(&[event("e0")]).await;
    assert!(code(many.into_iter().next().unwrap()).contains("cannot connect"));
}
