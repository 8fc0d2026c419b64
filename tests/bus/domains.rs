//! How many partitions a domain has is a fact on the bus.

use crate::setup::connector;
use crate::support::{Redis, until, users};
use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::protocol::domain::{Before, Domain, DomainOrder};
use convoke::protocol::json;
use convoke::protocol::keys::Keys;
use convoke::settings::RedisUrl;
use convoke::streams::domains::{DomainError, Domains, Use, is_change};
use convoke::streams::read::entries_of;
use serde_json::json;
use std::time::{Duration, Instant};

/// What one program knows, that is set to have that many.
fn domains(redis: &Redis, partitions: u16) -> (Domains, Keys) {
    let keys = Keys::tagged("cb", partitions).unwrap();
    let domains = Domains::new(connector(&redis.url()), keys.clone());
    (domains, keys)
}

fn operator(redis: &Redis) -> Domains {
    let url = RedisUrl::new(redis.url_for(users::OPERATOR));
    let connector = Connector::new(&url, 2).unwrap();
    Domains::new(connector, Keys::tagged("cb", 1).unwrap())
}

fn client(redis: &Redis, partitions: u16) -> Client {
    let url = RedisUrl::new(redis.url_for(users::PUBLISHER));
    let connector = Connector::new(&url, 2).unwrap();
    let keys = Keys::tagged("cb", partitions).unwrap();
    Client::new(connector, keys, ClientOptions::default()).unwrap()
}

fn say<T: redis::FromRedisValue>(redis: &Redis, line: &str) -> T {
    let words: Vec<&str> = line.split(' ').collect();
    let mut command = redis::cmd(words[0]);
    command
        .arg(&words[1..])
        .query(&mut redis.connect())
        .unwrap()
}

/// A subject whose events belong there.
fn subject_of(partition: u16, partitions: u16) -> String {
    let keys = Keys::tagged("cb", partitions).unwrap();
    let mut subjects = (0..).map(|number| format!("s-{number}"));
    let fits = |subject: &String| keys.partition_of("image", subject) == partition;
    subjects.find(fits).unwrap()
}

#[tokio::test]
async fn who_uses_a_domain_first_says_how_many_partitions_it_has() {
    let redis = Redis::start();
    let (first, knows) = domains(&redis, 2);
    first.learn(&["image", "system"], Use::Works).await.unwrap();
    assert_eq!(knows.partitions("image"), 2);
    let (second, follows) = domains(&redis, 8);
    assert_eq!(follows.partitions("image"), 8);
    second.learn(&["image"], Use::Works).await.unwrap();
    assert_eq!(follows.partitions("image"), 2);
    assert_eq!(follows.partitions("system"), 1);
    // Who only looks writes nothing.
    let (third, looks) = domains(&redis, 3);
    third.learn(&["mail"], Use::Looks).await.unwrap();
    assert_eq!(looks.partitions("mail"), 3);
    assert_eq!(third.learn_all().await.unwrap(), ["image"]);
    let fields: Vec<String> = say(&redis, "HKEYS {cb}:domains");
    assert_eq!(fields, ["image"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_are_first_at_a_time_one_says_it() {
    let redis = Redis::start();
    let each = (1..=20).map(|partitions| {
        let (domains, keys) = domains(&redis, partitions);
        tokio::spawn(async move {
            domains.learn(&["image"], Use::Works).await.unwrap();
            keys.partitions("image")
        })
    });
    let each: Vec<_> = each.collect();
    let mut known = Vec::new();
    for one in each {
        known.push(one.await.unwrap());
    }
    known.dedup();
    assert_eq!(known.len(), 1, "{known:?}");
}

#[tokio::test]
async fn plain_names_have_no_such_fact() {
    let redis = Redis::start();
    let domains = Domains::new(connector(&redis.url()), Keys::new("cb").unwrap());
    domains.learn(&["image"], Use::Works).await.unwrap();
    assert!(domains.learn_all().await.unwrap().is_empty());
    assert!(domains.is_open("image", 0, "workers").await.unwrap());
    let said = domains.set("image", 2, None, "ann").await.unwrap_err();
    assert!(said.to_string().contains("plain names"), "{said}");
    assert!(!say::<bool>(&redis, "EXISTS {cb}:domains"));
}

#[tokio::test]
async fn a_client_publishes_where_the_bus_says_whatever_it_is_set_to() {
    let redis = Redis::start();
    let (first, _) = domains(&redis, 2);
    first.learn(&["image"], Use::Works).await.unwrap();
    let client = client(&redis, 16);
    let event = |number: u32| Outgoing::new("image.made", &number).subject(format!("s-{number}"));
    for number in 0..20 {
        client.publish(event(number)).await.unwrap();
    }
    let many: Vec<Outgoing> = (20..40).map(event).collect();
    for stored in client.publish_many(&many).await {
        stored.unwrap();
    }
    let keys: Vec<String> = say(&redis, "KEYS {cb:image:*}:events");
    assert_eq!(keys.len(), 2, "{keys:?}");
    // Nobody used that one: it says so itself.
    client
        .publish(Outgoing::new("mail.send", &1))
        .await
        .unwrap();
    let (other, knows) = domains(&redis, 1);
    other.learn(&["mail"], Use::Looks).await.unwrap();
    assert_eq!(knows.partitions("mail"), 16);
}

#[tokio::test]
async fn a_client_follows_a_change_while_it_publishes() {
    let redis = Redis::start();
    let client = client(&redis, 2);
    let subject = subject_of(3, 4);
    let event = || Outgoing::new("image.made", &1).subject(&subject);
    client.publish(event()).await.unwrap();
    assert!(say::<bool>(&redis, "EXISTS {cb:image:1}:events"));
    let is = operator(&redis).set("image", 4, None, "ann").await.unwrap();
    assert_eq!((is.partitions, is.version), (4, 2));
    until("it publishes into the new partition", async || {
        client.publish(event()).await.unwrap();
        say::<bool>(&redis, "EXISTS {cb:image:3}:events")
    })
    .await;
}

#[tokio::test]
async fn a_change_is_told_once_and_the_same_again_changes_nothing() {
    let redis = Redis::start();
    let (first, _) = domains(&redis, 2);
    first.learn(&["image"], Use::Works).await.unwrap();
    let operator = operator(&redis);
    let is = operator.set("image", 4, Some(1), "ann").await.unwrap();
    assert_eq!((is.partitions, is.version, &*is.by), (4, 2, "ann"));
    assert_eq!(is.before.len(), 1);
    assert_eq!((is.before[0].partitions, is.before[0].until), (2, is.at));
    assert_eq!(operator.set("image", 4, Some(1), "bob").await.unwrap(), is);
    match operator.set("image", 8, Some(1), "bob").await {
        Err(DomainError::Changed { version: 2, .. }) => {}
        other => panic!("{other:?}"),
    }
    let said: redis::Value = say(&redis, "XRANGE {cb}:broadcast - +");
    let facts = entries_of(said).unwrap();
    assert_eq!(facts.len(), 1);
    assert!(is_change(&facts[0]));
    let told = json::to_json(facts[0].get("data").unwrap()).unwrap();
    assert_eq!(
        (&told["domain"], &told["partitions"]),
        (&"image".into(), &4.into())
    );
    assert_eq!(told["before"][0]["partitions"], 2);
    // One that nobody used yet.
    let new = operator.set("mail", 6, None, "ann").await.unwrap();
    assert_eq!((new.partitions, new.version, new.before.len()), (6, 2, 0));
}

#[tokio::test]
async fn a_number_that_keeps_no_order_is_refused() {
    let redis = Redis::start();
    let (domains, _) = domains(&redis, 4);
    domains.learn(&["image"], Use::Works).await.unwrap();
    for (domain, partitions, why) in [
        ("image", 2, "can only grow"),
        ("image", 6, "by a factor"),
        ("image", 0, "1 to 1024"),
        ("image", 1025, "1 to 1024"),
        ("system", 2, "control plane"),
        ("Image", 2, "not the part"),
        ("a.b", 2, "not the part"),
        ("inbox", 2, "not the part"),
    ] {
        let said = domains
            .set(domain, partitions, None, "ann")
            .await
            .unwrap_err();
        assert!(
            said.to_string().contains(why),
            "{domain} {partitions}: {said}"
        );
    }
    assert!(!say::<bool>(&redis, "EXISTS {cb}:broadcast"));
}

#[tokio::test]
async fn a_new_partition_is_read_when_the_one_that_it_came_from_is_read_and_settled() {
    let redis = Redis::start();
    let (domains, _) = domains(&redis, 2);
    // It was changed long ago, at 10,000 ms; what was published until 5 s later may have been by the old number.
    let grown = Domain {
        version: 3,
        at: 50_000,
        before: vec![
            Before {
                partitions: 2,
                until: 10_000,
            },
            Before {
                partitions: 4,
                until: 50_000,
            },
        ],
        ..Domain::first(8)
    };
    let mut write = redis::cmd("HSET");
    write.arg("{cb}:domains").arg("image").arg(grown.encode());
    write.exec(&mut redis.connect()).unwrap();
    domains.learn(&["image"], Use::Works).await.unwrap();
    let open = async |partition| {
        domains
            .is_open("image", partition, "workers")
            .await
            .unwrap()
    };
    for partition in 0..8 {
        assert!(
            open(partition).await,
            "{partition}: nothing was ever published"
        );
    }
    let old = "{cb:image:1}:events";
    for entry in ["9000-0", "14999-3", "15001-0"] {
        say::<String>(&redis, &format!("XADD {old} {entry} type image.made"));
    }
    // 3 came from 1; 7 came from 3, which has yet to be read; 5 from 1.
    for (partition, is) in [
        (0, true),
        (1, true),
        (2, true),
        (3, false),
        (5, false),
        (7, false),
    ] {
        assert_eq!(open(partition).await, is, "{partition}: nobody reads");
    }
    say::<String>(&redis, &format!("XGROUP CREATE {old} workers 0"));
    assert!(!open(3).await, "nothing is read");
    let read = |count| {
        let line = format!("XREADGROUP GROUP workers w-1 COUNT {count} STREAMS {old} >");
        say::<redis::Value>(&redis, &line);
    };
    read(1);
    say::<u8>(&redis, &format!("XACK {old} workers 9000-0"));
    assert!(!open(3).await, "one is not read");
    read(1);
    assert!(!open(3).await, "one is pending");
    say::<u8>(&redis, &format!("XACK {old} workers 14999-3"));
    assert!(open(3).await && open(7).await);
    // For 5 another time counts: what came at 15,001 is of before.
    assert!(!open(5).await);
    read(1);
    assert!(!open(5).await);
    say::<u8>(&redis, &format!("XACK {old} workers 15001-0"));
    assert!(open(5).await);
    // Another group reads for itself.
    assert!(!domains.is_open("image", 3, "others").await.unwrap());
}

#[tokio::test]
async fn a_new_partition_waits_until_all_publishers_must_have_looked() {
    let redis = Redis::start();
    let (domains, _) = domains(&redis, 1);
    domains.learn(&["image"], Use::Works).await.unwrap();
    let asked = Instant::now();
    domains.set("image", 2, None, "ann").await.unwrap();
    assert!(domains.is_open("image", 0, "workers").await.unwrap());
    let open = domains.is_open("image", 1, "workers").await.unwrap();
    assert!(!open || asked.elapsed() > Duration::from_secs(4));
    until("its time has come", async || {
        domains.is_open("image", 1, "workers").await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn what_somebody_wrote_there_that_is_no_fact_counts_for_nothing() {
    let redis = Redis::start();
    let (domains, keys) = domains(&redis, 4);
    say::<u8>(&redis, "HSET {cb}:domains image nonsense");
    say::<u8>(
        &redis,
        &format!("HSET {{cb}}:domains mail {}", "x".repeat(5000)),
    );
    domains
        .learn(&["image", "mail", "text"], Use::Works)
        .await
        .unwrap();
    assert_eq!([keys.partitions("image"), keys.partitions("mail")], [4, 4]);
    let is = domains.set("image", 8, None, "ann").await.unwrap();
    assert_eq!((is.partitions, is.version, is.before.len()), (8, 2, 0));
    // Of an earlier version.
    say::<u8>(&redis, "DEL {cb}:domains");
    say::<u8>(&redis, "ZADD {cb}:domains 1 image");
    let said = domains.learn(&["image"], Use::Works).await.unwrap_err();
    assert!(
        said.to_string().contains("redis-cli DEL {cb}:domains"),
        "{said}"
    );
}

/// Writes what the bus says of a domain.
fn write(redis: &Redis, domain: &str, fact: &[u8]) {
    let mut write = redis::cmd("HSET");
    write.arg("{cb}:domains").arg(domain).arg(fact);
    write.exec(&mut redis.connect()).unwrap();
}

/// What it says.
fn said(redis: &Redis, domain: &str) -> Domain {
    let mut read = redis::cmd("HGET");
    read.arg("{cb}:domains").arg(domain);
    let said: Vec<u8> = read.query(&mut redis.connect()).unwrap();
    Domain::decode(&said).unwrap()
}

#[tokio::test]
async fn what_a_server_forgot_is_not_believed_and_told_again() {
    let redis = Redis::start();
    let (domains, keys) = domains(&redis, 2);
    domains.learn(&["image"], Use::Works).await.unwrap();
    let is = domains.set("image", 8, None, "ann").await.unwrap();
    // A failover lost the change.
    write(&redis, "image", &Domain::first(2).encode());
    domains.learn(&["image"], Use::Works).await.unwrap();
    assert_eq!(keys.partitions("image"), 8);
    domains.keep(&["image"]).await.unwrap();
    assert_eq!(said(&redis, "image"), is);
    // Everything was lost: who is next writes what it knows, not what it is set to.
    say::<u8>(&redis, "DEL {cb}:domains");
    domains.learn(&["image"], Use::Works).await.unwrap();
    assert_eq!(said(&redis, "image"), is);
    // What is newer stays.
    let newer = operator(&redis)
        .set("image", 16, None, "bob")
        .await
        .unwrap();
    domains.keep(&["image"]).await.unwrap();
    assert_eq!(said(&redis, "image"), newer);
}

#[tokio::test]
async fn what_was_said_of_a_domain_before_anybody_used_it_is_told_again_too() {
    let redis = Redis::start();
    let (domains, keys) = domains(&redis, 2);
    let order = Some(DomainOrder::Subject);
    let operator = operator(&redis);
    let is = operator.change("image", Some(4), order, None, "ann").await;
    let is = is.unwrap();
    domains.learn(&["image"], Use::Works).await.unwrap();
    // A failover lost it, and a publisher that never saw it comes first.
    for partitions in [4, 8] {
        write(&redis, "image", &Domain::first(partitions).encode());
        domains.learn(&["image"], Use::Works).await.unwrap();
        assert_eq!(keys.domain("image").unwrap(), is);
        domains.keep(&["image"]).await.unwrap();
        assert_eq!(said(&redis, "image"), is);
    }
}

#[tokio::test]
async fn what_scripts_can_read_and_programs_cannot_is_said_again() {
    let redis = Redis::start();
    let new = |redis| domains(redis, 4);
    let odd = [
        json!({"version": 3, "partitions": 5000}),
        json!({"version": 3, "partitions": 8, "order": "x"}),
        json!({"version": 3, "partitions": 8, "before": "x", "at": 9}),
        json!({"version": 3, "partitions": 8, "before": [{"partitions": 3, "until": 1}], "at": 9}),
        json!({"version": 3, "partitions": 8, "before": [{"partitions": 4, "until": 10}], "at": 9}),
        json!({"version": u64::MAX, "partitions": 8}),
        json!({"version": 0, "partitions": 8}),
        json!(7),
    ];
    for fact in odd {
        write(&redis, "image", &json::from_json(&fact));
        let (fresh, keys) = new(&redis);
        fresh.learn(&["image"], Use::Works).await.unwrap();
        assert_eq!(keys.domain("image"), None, "{fact}");
        fresh.set("image", 16, None, "ann").await.unwrap();
        assert_eq!(said(&redis, "image").partitions, 16, "{fact}");
    }
}

#[tokio::test]
async fn a_clock_that_was_set_back_neither_closes_a_partition_for_good_nor_opens_it_too_soon() {
    let redis = Redis::start();
    let (domains, _) = domains(&redis, 1);
    let far = 4_000_000_000_000;
    for (domain, until) in [("image", far), ("mail", 10_000)] {
        let grown = Domain {
            version: 2,
            at: until,
            before: vec![Before {
                partitions: 1,
                until,
            }],
            ..Domain::first(2)
        };
        write(&redis, domain, &grown.encode());
        domains.learn(&[domain], Use::Works).await.unwrap();
        let open = async || domains.is_open(domain, 1, "workers").await.unwrap();
        assert!(open().await, "{domain}: nothing was ever published");
        let old = format!("{{cb:{domain}:0}}:events");
        say::<String>(&redis, &format!("XADD {old} {far}-1 type {domain}.made"));
        say::<String>(&redis, &format!("XGROUP CREATE {old} workers 0"));
        assert!(!open().await, "{domain}: one is not read");
        let read = format!("XREADGROUP GROUP workers w-1 COUNT 1 STREAMS {old} >");
        say::<redis::Value>(&redis, &read);
        assert!(!open().await, "{domain}: one is pending");
        say::<u8>(&redis, &format!("XACK {old} workers {far}-1"));
        assert!(open().await, "{domain}");
    }
}
