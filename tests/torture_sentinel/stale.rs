//! Connections that lead to the wrong server, to none, or to one that is not ready.

use crate::support::fleet::{Fleet, Work};
use crate::support::sentinel::{Deployment, Node, SERVICE};
use crate::support::until;
use crate::{client, connector};
use convoke::client::Client;
use convoke::client::publish::{Outgoing, PublishError};
use convoke::connect::connector::Connector;
use convoke::connect::error::{BusError, Reaction};
use redis::aio::ConnectionLike;
use std::collections::HashSet;
use std::time::{Duration, Instant};

async fn set(connection: &mut impl ConnectionLike) -> Result<(), BusError> {
    let command = redis::cmd("SET").arg("cb:test:key").arg(1).clone();
    Ok(command.exec_async(connection).await?)
}

/// Keeps a pool's connections in use all at once, then returns them.
async fn fill_pool(connector: &Connector) {
    let mut lent = Vec::new();
    for _ in 0..4 {
        let mut pooled = connector.pooled().await.unwrap();
        set(&mut pooled).await.unwrap();
        lent.push(pooled);
    }
}

fn event(n: u64) -> Outgoing {
    Outgoing::new("load.work", &Work { n, ms: 0 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_connected_to_a_demoted_primary_is_never_used_again() {
    let deployment = tokio::task::block_in_place(Deployment::start);
    let (connector, client) = (connector(&deployment.url()), client(&deployment));
    fill_pool(&connector).await;
    let mut dedicated = connector.dedicated().await.unwrap();
    let mut wire = connector.wire().await.unwrap();
    client.publish(&event(0)).await.unwrap();
    let old = deployment.primary();
    let new = (old + 1) % 3;
    let (demoted, promoted) = (&deployment.nodes[old], &deployment.nodes[new]);
    // By hand, and unseen by the Sentinels: nobody closes the clients' connections.
    deployment.tell(&format!(
        "SENTINEL SET {SERVICE} down-after-milliseconds 60000"
    ));
    promoted.run("REPLICAOF NO ONE");
    demoted.run("REPLICAOF 127.0.0.1 1");
    for _ in 0..8 {
        let refused = connector.pooled().await.expect_err("nothing to hand out");
        assert_eq!(refused.reaction(), Reaction::Reconnect, "{refused}");
    }
    demoted.run("CONFIG SET replica-serve-stale-data no");
    let get = redis::cmd("GET").arg("cb:test:key").clone();
    for (code, answer) in [
        ("READONLY", set(&mut dedicated).await),
        (
            "MASTERDOWN",
            get.exec_async(&mut dedicated).await.map_err(BusError::from),
        ),
    ] {
        let error = answer.unwrap_err();
        assert_eq!(
            (error.code(), error.reaction()),
            (Some(code), Reaction::Reconnect)
        );
    }
    let rejected = client.publish(&event(1)).await.unwrap_err();
    assert!(
        matches!(rejected, PublishError::Rejected { .. }),
        "{rejected}"
    );
    assert!(connector.dedicated().await.is_err() && connector.wire().await.is_err());
    assert!(
        wire.ask(&[b"ROLE"]).await.is_ok(),
        "nobody knows of a move yet"
    );

    for command in [
        format!("SENTINEL REMOVE {SERVICE}"),
        format!("SENTINEL MONITOR {SERVICE} 127.0.0.1 {} 2", promoted.port),
    ] {
        deployment.tell(&command);
    }
    until("the new primary is in use", || async {
        connector.generation() > 0
    })
    .await;
    for _ in 0..20 {
        let mut pooled = connector.pooled().await.unwrap();
        set(&mut pooled).await.unwrap();
    }
    assert!(matches!(wire.ask(&[b"ROLE"]).await, Err(BusError::Moved)));
    until("the client publishes again", || async {
        client.publish(&event(2)).await.is_ok()
    })
    .await;
    let there = promoted.run("EXISTS cb:test:key cb:events:load");
    assert_eq!(there, redis::Value::Int(2));
}

/// Publishes until each of this many workers has answered; how long that took, and what the refused
/// publishes said.
async fn until_all_answer(client: &Client, workers: usize) -> (Duration, HashSet<String>) {
    let (began, mut refused, mut answered) = (Instant::now(), HashSet::new(), HashSet::new());
    while answered.len() < workers {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "answered: {answered:?}; {refused:?}"
        );
        match client.request(event(0), Duration::from_secs(2)).await {
            Ok(reply) => {
                answered.extend(reply.source);
            }
            Err(error) => {
                refused.insert(error.to_string());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    (began.elapsed(), refused)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_links_and_a_primary_that_loads_are_got_over_without_a_failover() {
    // Loading 12,000 commands takes 3.6 s; clients are answered in between.
    let options = [
        "--key-load-delay",
        "300",
        "--loading-process-events-interval-bytes",
        "1024",
    ];
    let mut deployment = tokio::task::block_in_place(|| Deployment::with(&options));
    deployment.tell(&format!(
        "SENTINEL SET {SERVICE} down-after-milliseconds 20000"
    ));
    let fleet = Fleet::at(&deployment.url(), 2);
    let (connector, client) = (connector(&deployment.url()), client(&deployment));
    fill_pool(&connector).await;
    until_all_answer(&client, 2).await;
    let primary = deployment.primary();
    half_open(&deployment.nodes[primary], &connector, &client).await;
    loading(&mut deployment.nodes[primary], &client).await;
    assert_eq!(deployment.primary(), primary, "nothing failed over");
    fleet.drain();
}

async fn half_open(node: &Node, connector: &Connector, client: &Client) {
    node.break_connections();
    let began = Instant::now();
    // One dead connection gives the others away: they do not cost a time-out each.
    let mut pooled = connector.pooled().await;
    if pooled.is_err() {
        pooled = connector.pooled().await;
    }
    set(&mut pooled.unwrap()).await.unwrap();
    let pool = began.elapsed();
    let (all, _) = until_all_answer(client, 2).await;
    println!("half-open: the pool serves after {pool:.1?}, every worker answers after {all:.1?}");
}

async fn loading(node: &mut Node, client: &Client) {
    let mut filling = redis::pipe();
    for n in 0..12_000 {
        filling.cmd("SET").arg("test:filling").arg(n).ignore();
    }
    filling.exec(&mut node.redis.connect()).unwrap();
    let asking = client.clone();
    node.redis.kill();
    let asked = tokio::spawn(async move { until_all_answer(&asking, 2).await });
    tokio::task::block_in_place(|| node.redis.restart());
    let (took, refused) = asked.await.unwrap();
    // The delay alone is that long. Whether anyone is told BusyLoading is a matter of when it connects.
    assert!(
        took > Duration::from_secs(3),
        "it was loading: {took:?} {refused:?}"
    );
    println!("loading: every worker answers after {took:.1?}");
}
