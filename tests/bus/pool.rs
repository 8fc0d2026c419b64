//! Borrowed connections: asked whether they live only where that is in doubt.

use crate::setup::{Bus, connector};
use crate::support::proxy::{Mode, Proxy};
use crate::support::{is_cluster, skip_on_cluster, users};
use convoke::connect::connector::{Connector, Pooled};
use convoke::settings::{RedisUrl, Settings};
use std::time::Duration;

async fn get(connector: &Connector) -> redis::RedisResult<Option<String>> {
    let mut connection = connector.pooled().await.unwrap();
    redis::cmd("GET")
        .arg("cb:key")
        .query_async(&mut connection)
        .await
}

async fn pings(bus: &mut Bus) -> u64 {
    let stats: String = bus.ask("INFO commandstats").await;
    let ping = stats
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_ping:calls="));
    ping.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_connection_that_answered_just_now_is_lent_as_it_is() {
    let mut bus = Bus::start().await;
    let connector = connector(&bus.redis.url());
    let (before, began) = (pings(&mut bus).await, std::time::Instant::now());
    for _ in 0..200 {
        get(&connector).await.unwrap();
    }
    // One a second at the most, however long this took; on a cluster also of its own slot's.
    let kinds = if is_cluster() { 2 } else { 1 };
    let most = kinds * (began.elapsed().as_secs() + 1);
    assert!(pings(&mut bus).await - before <= most);
}

#[tokio::test]
async fn a_connection_that_failed_is_replaced_before_it_is_lent_again() {
    let mut bus = Bus::start().await;
    let connector = connector(&bus.redis.url());
    get(&connector).await.unwrap();
    for _ in 0..5 {
        bus.run("CLIENT KILL TYPE normal SKIPME yes").await;
        // This one may find out.
        get(&connector).await.ok();
        get(&connector).await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_that_idled_is_asked_before_it_is_lent() {
    let mut bus = Bus::start().await;
    let connector = connector(&bus.redis.url());
    get(&connector).await.unwrap();
    bus.run("CLIENT KILL TYPE normal SKIPME yes").await;
    // What counts as alive without being asked is over.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    get(&connector).await.unwrap();
}

#[tokio::test]
async fn a_server_that_refused_the_password_is_asked_seldom_on_every_kind_of_connection() {
    let mut bus = Bus::start().await;
    let connector = connector(&bus.redis.url().replace("test@", "wrong@"));
    let began = std::time::Instant::now();
    for _ in 0..25 {
        assert!(connector.wire().await.is_err());
        assert!(connector.pooled().await.is_err());
        assert!(connector.dedicated().await.is_err());
        assert!(connector.unchecked().await.is_err());
    }
    let log: Vec<std::collections::HashMap<String, redis::Value>> = bus.ask("ACL LOG").await;
    let tries = log.iter().map(|entry| match entry["count"] {
        redis::Value::Int(count) => count,
        _ => 0,
    });
    // After 0, 1, 3, 7 s, however long this took; each node by itself.
    let nodes = bus.redis.ports().len() as i64;
    let (tries, most) = (
        tries.sum::<i64>(),
        nodes * (began.elapsed().as_secs() as i64 + 1),
    );
    assert!(
        (1..=most).contains(&tries),
        "{tries} tries, {most} at the most"
    );
}

#[tokio::test]
async fn what_was_given_up_while_it_was_lent_is_not_lent_again() {
    if skip_on_cluster("SELECT: the connection is known by its database") {
        return;
    }
    let bus = Bus::start().await;
    let connector = Connector::new(&RedisUrl::new(bus.redis.url()), 1).unwrap();
    // Its database is a property of a connection, and only there the key is.
    async fn mark(connection: &mut Pooled) {
        let select = redis::cmd("SELECT").arg(1).exec_async(connection).await;
        select.unwrap();
        let mut set = redis::cmd("SET");
        set.arg("cb:mark")
            .arg(1)
            .exec_async(connection)
            .await
            .unwrap();
    }
    async fn is_marked(connection: &mut Pooled) -> bool {
        let mut exists = redis::cmd("EXISTS");
        exists.arg("cb:mark").query_async(connection).await.unwrap()
    }
    let mut lent = connector.pooled().await.unwrap();
    mark(&mut lent).await;
    connector.forget_pooled();
    assert!(is_marked(&mut lent).await, "who has it may end with it");
    drop(lent);
    let mut next = connector.pooled().await.unwrap();
    assert!(!is_marked(&mut next).await);
    mark(&mut next).await;
    // All of the pool is lent.
    let apart = connector.apart(Duration::from_secs(5)).unwrap();
    assert!(!is_marked(&mut apart.pooled().await.unwrap()).await);
    drop(next);
    assert!(is_marked(&mut connector.pooled().await.unwrap()).await);
}

#[tokio::test]
async fn who_has_no_time_does_not_wait_for_a_connection_that_is_not_made() {
    let bus = Bus::start().await;
    let proxy = Proxy::before(&bus.redis).await;
    proxy.set(Mode::Nowhere);
    let url = RedisUrl::new(proxy.url_of(&bus.redis, users::WORKER));
    let settings = Settings {
        redis_url: url,
        ..Settings::default()
    };
    let connector = Connector::prompt(&settings, 1, Duration::from_millis(100)).unwrap();
    // Others wait for three seconds.
    let lent = tokio::time::timeout(Duration::from_secs(2), connector.pooled());
    assert!(lent.await.expect("it is given up").is_err());
}
