//! The delay queue: what is due enters its stream, once, in order; nothing stands in its way.

use crate::publish::{client, event};
use crate::setup::{Bus, connector, text};
use crate::support::{name, users};
use convoke::connect::clock::ClockSource;
use convoke::protocol::event::{Event, Limits};
use convoke::streams::delay::{Promoted, due_by, encode_member, promote};
use std::time::Duration;

const STREAM: &str = "cb:events:image";
const QUEUE: &str = "cb:delayed:image";
/// Bytes of a member at the most.
const MOST: usize = 1 << 20;

async fn put(bus: &mut Bus, due: u64, member: &[u8]) {
    let mut cmd = redis::cmd("ZADD");
    cmd.arg(QUEUE).arg(due).arg(member);
    let added: u32 = cmd.query_async(&mut bus.connection).await.unwrap();
    assert_eq!(added, 1);
}

async fn put_event(bus: &mut Bus, due: u64, id: &str) {
    let member = encode_member(id, &["type", "image.made", "id", id]);
    put(bus, due, &member).await;
}

async fn run(bus: &mut Bus, limit: usize) -> Promoted {
    promote(&mut bus.connection, &bus.route.clone(), limit, MOST)
        .await
        .unwrap()
}

async fn ids(bus: &mut Bus) -> Vec<String> {
    let entries = bus.entries(STREAM).await;
    entries.iter().map(|entry| text(entry, "id")).collect()
}

#[tokio::test]
async fn what_is_published_for_later_enters_its_stream_as_it_was_when_it_is_due() {
    let mut bus = Bus::start().await;
    let client = client(&bus);
    let payload = vec![0xc4, 3, 0x00, 0xff, 0xc1];
    let later = convoke::client::publish::Outgoing::encoded("image.made", payload.clone())
        .id("e0")
        .field("x", vec![0xff, 0x00]);
    client
        .publish(&later.clone().delay(Duration::from_secs(3600)))
        .await
        .unwrap();
    let waiting = run(&mut bus, 10).await;
    assert_eq!((waiting.moved, waiting.dead), (0, 0));
    let now: (u64, u64) = bus.ask("TIME").await;
    let due = waiting.next_due_ms.unwrap();
    let hour = now.0 * 1000 + 3_600_000;
    assert!((hour - 60_000..hour + 2_000).contains(&due), "{due} {hour}");
    client.publish(&later.at(1)).await.unwrap();
    let promoted = run(&mut bus, 10).await;
    assert_eq!((promoted.moved, promoted.next_due_ms), (1, Some(due)));
    let reply: redis::Value = bus.ask(&format!("XRANGE {STREAM} - +")).await;
    let entry = convoke::streams::read::entries_of(reply).unwrap().remove(0);
    let event = Event::parse(entry, &Limits::default(), &bus.keys, &name("image", STREAM)).unwrap();
    assert_eq!((event.id(), event.data()), ("e0".into(), &payload[..]));
    assert_eq!(event.entry().get("x"), Some(&[0xff, 0x00][..]));
}

#[tokio::test]
async fn the_due_move_in_order_and_no_more_at_a_time_than_asked_for() {
    let mut bus = Bus::start().await;
    for number in [3, 1, 4, 2, 0] {
        put_event(&mut bus, 1000 + number, &format!("e{number}")).await;
    }
    put_event(&mut bus, 9_000_000_000_000, "far").await;
    let first = run(&mut bus, 2).await;
    assert_eq!((first.moved, first.next_due_ms), (2, Some(1002)));
    let second = run(&mut bus, 10).await;
    assert_eq!(
        (second.moved, second.next_due_ms),
        (3, Some(9_000_000_000_000))
    );
    assert_eq!(run(&mut bus, 10).await.moved, 0);
    assert_eq!(ids(&mut bus).await, ["e0", "e1", "e2", "e3", "e4"]);
    bus.run(&format!("DEL {QUEUE}")).await;
    assert_eq!(run(&mut bus, 10).await.next_due_ms, None);
}

#[tokio::test]
async fn what_is_no_event_becomes_a_dead_letter_and_holds_nobody_up() {
    let mut bus = Bus::start().await;
    let deep = [vec![0x91; 100_000], vec![0xc0]].concat();
    let mut bomb = vec![0xdd, 0xff, 0xff, 0xff, 0xff];
    bomb.extend([0xa1, b'x']);
    // A decoder would make a table of these, long before it sees that they are no event.
    let numbers = [&[0xdc, 0x0f, 0xff][..], &[1; 4095]].concat();
    let within = [
        &[0x93, 0xa1, b't', 0xa1, b'a', 0xdc, 0x0f, 0xff][..],
        &[1; 4095],
    ]
    .concat();
    let behind = [encode_member("t", &["type", "a.b"]), vec![1]].concat();
    let wide: Vec<String> = (0..130).map(|n| n.to_string()).collect();
    let bad: [&[u8]; 13] = [
        b"text",
        &[],
        &[0xc1],
        &encode_member("t", &["type"]),
        &encode_member::<&str>("t", &[]),
        &[0x93, 1, 2, 3],
        &[0x83, 1, 0xa1, b'a', 2, 0xa1, b'b', 3, 0xc0],
        &deep,
        &bomb,
        &numbers,
        &within,
        &behind,
        &encode_member("t", &wide),
    ];
    for (number, member) in bad.iter().enumerate() {
        put(&mut bus, number as u64, member).await;
    }
    put_event(&mut bus, 100, "e0").await;
    let promoted = run(&mut bus, 100).await;
    assert_eq!((promoted.moved, promoted.dead), (1, bad.len() as u64));
    assert_eq!(promoted.next_due_ms, None);
    let letters = bus.entries("cb:dead:image").await;
    let members: Vec<&[u8]> = letters.iter().map(|letter| &letter["member"][..]).collect();
    assert_eq!(members, bad);
    assert_eq!(text(&letters[0], "deadreason"), "invalid_argument");
    assert_eq!(text(&letters[0], "deadstream"), QUEUE);
    assert_eq!(ids(&mut bus).await, ["e0"]);
    // With nowhere to put it, it waits behind the others.
    bus.run("DEL cb:dead:image").await;
    bus.run("SET cb:dead:image text").await;
    put(&mut bus, 1, b"text").await;
    put_event(&mut bus, 2, "e1").await;
    let promoted = run(&mut bus, 1).await;
    assert_eq!((promoted.moved, promoted.dead), (0, 0));
    assert_eq!(run(&mut bus, 1).await.moved, 1);
    assert_eq!(bus.ask::<u32>(&format!("ZCARD {QUEUE}")).await, 1);
}

#[tokio::test]
async fn the_server_makes_no_table_of_what_is_no_event() {
    let mut bus = Bus::start().await;
    // A million numbers: 16 MiB as a table.
    let mut numbers = vec![0xdd, 0, 0x0f, 0xff, 0];
    numbers.resize(1 << 20, 1);
    let within = [&[0x93, 0xa1, b't', 0xa1, b'a'][..], &numbers].concat();
    put(&mut bus, 1, &numbers).await;
    put(&mut bus, 2, &within).await;
    for _ in 0..2 {
        assert_eq!(run(&mut bus, 1).await.dead, 1);
        let memory: String = bus.ask("INFO memory").await;
        let lua = memory
            .lines()
            .find_map(|line| line.strip_prefix("used_memory_lua:"));
        let lua: u64 = lua.unwrap().trim().parse().unwrap();
        assert!(lua < 12 << 20, "{lua} bytes");
    }
}

#[tokio::test]
async fn a_member_that_is_larger_than_any_event_becomes_a_dead_letter_that_is_cut() {
    let mut bus = Bus::start().await;
    let large = vec!["x".repeat(MOST - 100); 4];
    let within = encode_member("t", &["type", "image.made", "id", "e0", "data", &large[0]]);
    put(&mut bus, 1, &within).await;
    put(&mut bus, 2, &encode_member("t", &large[..2])).await;
    put_event(&mut bus, 3, "e1").await;
    // A call ends once it has moved half a MiB, and the next one goes on.
    let (mut moved, mut dead) = (0, 0);
    for _ in 0..3 {
        let promoted = run(&mut bus, 100).await;
        (moved, dead) = (moved + promoted.moved, dead + promoted.dead);
    }
    assert_eq!((moved, dead), (2, 1));
    assert_eq!(ids(&mut bus).await, ["e0", "e1"]);
    let letters = bus.entries("cb:dead:image").await;
    assert_eq!(letters[0]["member"].len(), 1024);
    let said = text(&letters[0], "deadmessage");
    assert!(said.contains("over the limit of 1048576"), "{said}");
    // So do many that are large.
    for number in 0..12 {
        let member = encode_member(
            &format!("t{number}"),
            &["type", "image.made", "data", &large[0]],
        );
        put(&mut bus, number, &member).await;
    }
    let mut calls = Vec::new();
    while calls.iter().sum::<u64>() < 12 {
        let promoted = run(&mut bus, 100).await;
        assert!(promoted.moved > 0, "{calls:?} {promoted:?}");
        calls.push(promoted.moved);
    }
    assert_eq!(calls.iter().sum::<u64>(), 12);
    assert!(calls.len() > 1, "{calls:?}");
}

#[tokio::test]
async fn a_stream_that_can_not_be_written_keeps_the_due_in_the_queue() {
    let mut bus = Bus::start().await;
    bus.run(&format!("DEL {STREAM}")).await;
    bus.run(&format!("SET {STREAM} text")).await;
    put_event(&mut bus, 1000, "e0").await;
    put_event(&mut bus, 1001, "e1").await;
    let route = bus.route.clone();
    let error = promote(&mut bus.connection, &route, 10, MOST)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some("WRONGTYPE"));
    let queue: Vec<(Vec<u8>, u64)> = bus.ask(&format!("ZRANGE {QUEUE} 0 -1 WITHSCORES")).await;
    let dues: Vec<u64> = queue.iter().map(|(_, due)| *due).collect();
    assert_eq!(dues, [1000, 1001]);
    bus.run(&format!("DEL {STREAM}")).await;
    assert_eq!(run(&mut bus, 10).await.moved, 2);
    assert_eq!(ids(&mut bus).await, ["e0", "e1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promoters_at_once_move_each_event_once() {
    let mut bus = Bus::start().await;
    for number in 0..300 {
        put_event(&mut bus, 1000 + number, &format!("e{number}")).await;
    }
    let promoters = [(); 3].map(|()| {
        let route = bus.route.clone();
        let connector = connector(&bus.redis.url()).toward(&route.events);
        tokio::spawn(async move {
            let mut connection = connector.dedicated().await.unwrap();
            let mut moved = 0;
            loop {
                match promote(&mut connection, &route, 7, MOST)
                    .await
                    .unwrap()
                    .moved
                {
                    0 => return moved,
                    some => moved += some,
                }
            }
        })
    });
    let mut moved = 0;
    for promoter in promoters {
        moved += promoter.await.unwrap();
    }
    assert_eq!(moved, 300);
    let all: Vec<String> = (0..300).map(|number| format!("e{number}")).collect();
    assert_eq!(ids(&mut bus).await, all);
}

#[tokio::test]
async fn a_full_memory_loses_nothing_that_is_due() {
    let mut bus = Bus::start().await;
    put_event(&mut bus, 1000, "e0").await;
    put(&mut bus, 1001, b"text").await;
    bus.run("CONFIG SET maxmemory 1").await;
    let route = bus.route.clone();
    // Whether it moves is the server's choice.
    promote(&mut bus.connection, &route, 10, MOST).await.ok();
    bus.run("CONFIG SET maxmemory 0").await;
    run(&mut bus, 10).await;
    assert_eq!(ids(&mut bus).await, ["e0"]);
    assert_eq!(bus.entries("cb:dead:image").await.len(), 1);
}

#[tokio::test]
async fn equal_events_do_not_merge() {
    let mut bus = Bus::start().await;
    let client = client(&bus);
    let later = event("same").at(5).time("1");
    client.publish(&later).await.unwrap();
    client.publish(&later).await.unwrap();
    assert_eq!(run(&mut bus, 10).await.moved, 2);
}

#[tokio::test]
async fn a_look_tells_which_queues_hold_what_is_due_by_then() {
    if users::skip_without("TIME") {
        return;
    }
    let mut bus = Bus::start().await;
    bus.run("SET cb:delayed:odd text").await;
    bus.run("ZADD cb:delayed:late 5000 x").await;
    put_event(&mut bus, 4999, "e0").await;
    put_event(&mut bus, 9000, "e1").await;
    let routes = ["image", "none", "odd", "late"].map(|domain| bus.keys.route(domain, 0));
    let routes: Vec<_> = routes.iter().collect();
    let queue = &routes[0].delayed;
    let (due, clock) = due_by(
        &mut bus.connection,
        &routes,
        (ClockSource::Time, queue),
        4999,
    )
    .await
    .unwrap();
    let now = clock.now();
    assert_eq!(due, [true, false, false, false]);
    let server: (u64, u64) = bus.ask("TIME").await;
    // Such a clock is ahead by as long as the question was under way.
    let around = |ms: u64| ms - 60_000..ms + 60_000;
    assert!(around(server.0 * 1000).contains(&now));
    // Where there is no TIME, a key tells it.
    bus.run("SET cb:clock x PXAT 4102444800000").await;
    let by_key = due_by(
        &mut bus.connection,
        &routes,
        (ClockSource::Key, queue),
        5000,
    );
    let (due, clock) = by_key.await.unwrap();
    assert_eq!(due, [true, false, false, true]);
    assert!(around(now).contains(&clock.now()));
}
