//! Requests: each gets its own reply, through restarts too, and leaves nothing behind.

use crate::publish::{client, options};
use crate::setup::{Bus, GROUP, connector, text};
use crate::support::router::ANY_NAME;
use crate::support::{name, until, users};
use convoke::client::Client;
use convoke::client::publish::Outgoing;
use convoke::client::request::RequestError;
use convoke::protocol::event::Entry;
use convoke::protocol::keys::Keys;
use convoke::streams::read::read_group;
use redis::RedisResult;
use redis::aio::MultiplexedConnection;
use std::time::Duration;
use tokio::task::JoinHandle;

const LONG: Duration = Duration::from_secs(30);

/// Answers as any client in any language could: reads the group, adds the reply.
async fn respond(connection: &mut MultiplexedConnection, entry: &Entry) -> RedisResult<()> {
    let text = |name: &str| String::from_utf8(entry.get(name).unwrap().to_vec()).unwrap();
    let failed = entry.get("fail").is_some();
    let data = match failed {
        false => entry.get("data").unwrap().to_vec(),
        true => rmp_serde::to_vec_named(&serde_json::json!({
            "code": "not_found", "message": "no such image", "retryable": false
        }))
        .unwrap(),
    };
    redis::cmd("XADD")
        .arg(text("replyto"))
        .arg("*")
        .arg(&["correlationid", &text("id"), "type", "image.echo.result"])
        .arg(&["status", if failed { "not_found" } else { "ok" }])
        .arg("data")
        .arg(data)
        .exec_async(connection)
        .await
}

fn responder(bus: &Bus) -> JoinHandle<()> {
    let stream = bus.route.events.clone();
    let connector = connector(&bus.redis.url()).toward(&stream);
    tokio::spawn(async move {
        loop {
            let block = Duration::from_millis(200);
            let (Ok(mut wire), Ok(mut connection)) = (
                connector.blocking_wire(block).await,
                connector.dedicated().await,
            ) else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let mut answers = true;
            while answers
                && let Ok(batches) =
                    read_group(&mut wire, GROUP, "r", &[&stream], 10, block, 1 << 21).await
            {
                for entry in batches.iter().flat_map(|batch| &batch.entries) {
                    // The requester tries again.
                    answers &= respond(&mut connection, entry).await.is_ok();
                }
            }
        }
    })
}

async fn echo(client: &Client, number: u64) -> Result<u64, RequestError> {
    let reply = client
        .request(Outgoing::new("image.echo", &number), LONG)
        .await?;
    Ok(reply.decode().unwrap())
}

#[tokio::test]
async fn each_request_gets_its_own_reply() {
    let mut bus = Bus::start().await;
    let responder = responder(&bus);
    let client = client(&bus);
    let answers = futures_util::future::join_all((0..200).map(|n| echo(&client, n))).await;
    let answers: Vec<u64> = answers.into_iter().map(Result::unwrap).collect();
    assert!(answers.into_iter().eq(0..200));
    let failing = Outgoing::new("image.echo", &0).field("fail", "yes");
    match client.request(failing, LONG).await {
        Err(RequestError::Remote(error)) => assert_eq!(error.message, "no such image"),
        other => panic!("{other:?}"),
    }
    let event = &bus.entries("cb:events:image").await[0];
    assert_eq!(text(event, "replyto"), "cb:reply:me");
    assert!(text(event, "deadline").parse::<u64>().unwrap() > 1_700_000_000_000);
    assert!(bus.ask::<i64>("PTTL cb:reply:me").await > 3_000_000);
    client.close().await;
    assert_eq!(bus.ask::<u32>("EXISTS cb:reply:me").await, 0);
    assert!(matches!(echo(&client, 1).await, Err(RequestError::Closed)));
    responder.abort();
}

#[tokio::test]
async fn without_an_answer_a_request_times_out_and_a_late_one_reaches_nobody_else() {
    let mut bus = Bus::start().await;
    let client = client(&bus);
    let event = Outgoing::new("image.echo", &1).id("r-1");
    // Long enough for the event to be stored.
    let short = Duration::from_secs(2);
    match client.request(event, short).await {
        Err(RequestError::TimedOut {
            kind,
            id,
            stream,
            within,
        }) => {
            assert_eq!((kind.as_str(), id.as_str()), ("image.echo", "r-1"));
            assert_eq!((stream, within), (name("image", "cb:events:image"), short));
        }
        other => panic!("{other:?}"),
    }
    let responder = responder(&bus);
    assert_eq!(echo(&client, 7).await.unwrap(), 7);
    assert_eq!(bus.entries("cb:reply:me").await.len(), 2);
    responder.abort();
}

#[tokio::test]
async fn requests_go_on_after_killed_connections_a_flush_and_a_restart() {
    let mut bus = Bus::start().await;
    let client = client(&bus);
    let responder = responder(&bus);
    for (round, fault) in ["none", "kill", "flush", "restart"].into_iter().enumerate() {
        match fault {
            "kill" => bus.run("CLIENT KILL TYPE normal SKIPME yes").await,
            "flush" => bus.run("FLUSHALL").await,
            "restart" => bus.redis.restart(),
            _ => {}
        }
        bus.connect().await;
        let stream = bus.route.events.clone();
        convoke::streams::read::ensure_group(&mut bus.connection, &stream, GROUP)
            .await
            .unwrap();
        let number = round as u64;
        // The first tries may meet the broken connection: rejected or without an answer.
        until(fault, async || {
            let event = Outgoing::new("image.echo", &number);
            let reply = client.request(event, Duration::from_secs(2)).await;
            reply.is_ok_and(|reply| reply.decode::<u64>().unwrap() == number)
        })
        .await;
    }
    responder.abort();
}

#[tokio::test]
async fn under_hash_tags_events_replies_and_commits_stay_in_their_partition() {
    let keys = Keys::tagged("cb", 4).unwrap();
    let mut bus = Bus::with(keys.clone()).await;
    let client = Client::new(
        connector(&bus.redis.url_for(users::PUBLISHER)),
        keys.clone(),
        options(),
    )
    .unwrap();
    let mut partitions = std::collections::BTreeSet::new();
    for number in 0..40 {
        let subject = format!("user-{number}");
        let partition = keys.partition_of("image", &subject);
        partitions.insert(partition);
        let event = Outgoing::new("image.made", &number)
            .id(format!("e{number}"))
            .subject(subject);
        let mut once = event.clone().dedup(true);
        assert!(!client.publish(&once).await.unwrap().is_duplicate());
        once = once.time("1");
        assert!(client.publish(&once).await.unwrap().is_duplicate());
        let later = event.id(format!("l{number}")).delay(LONG);
        client.publish(&later).await.unwrap();
    }
    assert_eq!(partitions.len(), 4);
    let mut stored = 0;
    for partition in 0..4 {
        for entry in bus.entries(&keys.events("image", partition)).await {
            stored += 1;
            assert_eq!(
                keys.partition_of("image", &text(&entry, "subject")),
                partition
            );
        }
    }
    assert_eq!(stored, 40);
    // A request in partition 0, committed with the reply in the same slot.
    let subject = (0..).map(|n| format!("s{n}"));
    let subject = { subject }
        .find(|s| keys.partition_of("image", s) == 0)
        .unwrap();
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    let claims = committer.claims();
    bus.deliver("w-1", &claims, 100).await;
    let request = Outgoing::new("image.made", &1).id("r-1").subject(subject);
    let asking = client.clone();
    let asking = tokio::spawn(async move { asking.request(request, LONG).await });
    let held = loop {
        let mut held = bus.deliver("w-1", &claims, 1).await;
        if let Some(held) = held.pop() {
            break held;
        }
    };
    let mut settlement = held.done();
    let to = "{cb:image:0}:reply:me";
    assert_eq!(held.entry.get("replyto"), Some(to.as_bytes()));
    settlement.reply.as_mut().unwrap().to = Some(to.into());
    settlement.publications.clear();
    assert_eq!(committer.commit(vec![settlement]).await.committed, 1);
    assert_eq!(asking.await.unwrap().unwrap().correlation_id, "r-1");
    let mut all: Vec<String> = bus.ask(&format!("KEYS {ANY_NAME}")).await;
    // How many partitions there are is the control plane's to say.
    all.retain(|key| !users::is_clock(key) && *key != keys.domains());
    assert!(
        all.iter().all(|key| key.starts_with("{cb:image:")),
        "{all:?}"
    );
}
