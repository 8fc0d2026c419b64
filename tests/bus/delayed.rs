//! What waits for its time: seen whole, changed once, and only as it was seen.

use crate::publish::{client, event};
use crate::replay::{facts, operator, sorted};
use crate::setup::{Bus, text};
use crate::support::{name, users};
use convoke::connect::connector::Connector;
use convoke::operator::delayed::{DelayedChange, DelayedPages, Queue, Waiting, depths, queues};
use convoke::protocol::keys::Keys;
use convoke::settings::RedisUrl;
use convoke::streams::delay::encode_member;
use redis::aio::MultiplexedConnection;
use serde_json::json;
use std::collections::BTreeSet;

const EVENTS: &str = "cb:events:image";
const QUEUE: &str = "cb:delayed:image";
/// Bytes of a member that are held at the most.
const MOST: usize = 4096;
/// The year 2100.
const FAR: u64 = 4_102_444_800_000;

fn queue(keys: &Keys) -> Queue {
    let stream = keys.stream_name(&keys.events("image", 0)).unwrap();
    Queue::of(keys, &stream).unwrap()
}

async fn put(bus: &mut Bus, due: u64, member: &[u8]) {
    let mut cmd = redis::cmd("ZADD");
    cmd.arg(QUEUE).arg(due).arg(member);
    let () = cmd.query_async(&mut bus.connection).await.unwrap();
}

async fn put_event(bus: &mut Bus, due: u64, token: &str) {
    let fields = ["type", "image.made", "notbefore", "5", "n", token];
    put(bus, due, &encode_member(token, &fields)).await;
}

async fn looking(bus: &Bus) -> MultiplexedConnection {
    bus.redis.connection_for(users::OPERATOR).await
}

/// All that waits from that time on.
async fn all(bus: &Bus, from: u64) -> Vec<Waiting> {
    let mut looking = looking(bus).await;
    let mut pages = DelayedPages::of(&queue(&bus.keys), from, MOST);
    let mut all = Vec::new();
    for _ in 0..1000 {
        let page = pages.next(&mut looking).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
    panic!("there is no end");
}

fn tokens(waiting: &[Waiting]) -> Vec<&str> {
    waiting.iter().map(|one| one.token.as_str()).collect()
}

#[tokio::test]
async fn all_that_waits_is_shown_in_the_order_in_which_it_is_due() {
    let mut bus = Bus::start().await;
    for n in 0..600 {
        put_event(&mut bus, FAR, &format!("tie-{n:03}")).await;
    }
    put_event(&mut bus, FAR - 1, "first").await;
    put_event(&mut bus, FAR + 1, "last").await;
    let shown = all(&bus, 0).await;
    assert_eq!(shown.len(), 602);
    assert_eq!(
        (shown[0].token.as_str(), shown[0].due_ms),
        ("first", FAR - 1)
    );
    assert_eq!(shown[601].token, "last");
    let once: BTreeSet<&str> = tokens(&shown).into_iter().collect();
    assert_eq!(once.len(), 602);
    let event = shown[0].event.as_ref().unwrap();
    assert_eq!(event.get("n"), Some(&b"first"[..]));
    assert_eq!(tokens(&all(&bus, FAR + 1).await), ["last"]);
    assert_eq!(all(&bus, FAR).await.len(), 601);
}

#[tokio::test]
async fn what_leaves_between_two_pages_hides_nothing() {
    let mut bus = Bus::start().await;
    for n in 0..600 {
        put_event(&mut bus, FAR + n, &format!("{n:03}")).await;
    }
    let mut looking = looking(&bus).await;
    let mut pages = DelayedPages::of(&queue(&bus.keys), 0, MOST);
    let mut seen = pages.next(&mut looking).await.unwrap().len() as u64;
    assert!(seen < 600, "{seen}");
    // With the one that the page ended with.
    bus.run(&format!("ZREMRANGEBYSCORE {QUEUE} 0 {}", FAR + seen - 1))
        .await;
    let next = pages.next(&mut looking).await.unwrap();
    assert_eq!(next[0].token, format!("{seen:03}"));
    seen += next.len() as u64;
    bus.run(&format!("ZREMRANGEBYSCORE {QUEUE} 0 {}", FAR + seen - 10))
        .await;
    let rest = pages.next(&mut looking).await.unwrap();
    assert_eq!(rest[0].token, format!("{seen:03}"));
    assert_eq!(seen + rest.len() as u64, 600);
    assert!(pages.next(&mut looking).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_member_larger_than_any_event_is_cut_and_stands_in_nobodys_way() {
    let mut bus = Bus::start().await;
    for n in 0..300 {
        let mut large = vec![b'x'; MOST + 1 + n];
        large[..3].copy_from_slice(format!("{n:03}").as_bytes());
        put(&mut bus, FAR, &large).await;
    }
    put(&mut bus, FAR + 1, b"no event").await;
    put_event(&mut bus, FAR + 2, "behind").await;
    let shown = all(&bus, 0).await;
    assert_eq!(shown.len(), 302);
    let large = &shown[299];
    assert!(!large.is_whole() && large.event.is_none());
    assert_eq!(large.bytes, (MOST + 300) as u64);
    assert!(shown[300].is_whole() && shown[300].event.is_none());
    assert_eq!(shown[301].token, "behind");
}

#[tokio::test]
async fn too_large_ones_among_others_of_one_due_time_end_no_walk_and_hide_nothing() {
    let mut bus = Bus::start().await;
    for n in 0..520 {
        match n % 3 {
            0 => put_event(&mut bus, FAR, &format!("{n:03}")).await,
            // Of a length that stands before and behind the others.
            _ => {
                let mut large = vec![b'a' + (n % 2) as u8 * 0x80; MOST + 1];
                large[1..4].copy_from_slice(format!("{n:03}").as_bytes());
                put(&mut bus, FAR, &large).await;
            }
        }
    }
    let shown = all(&bus, 0).await;
    assert_eq!(shown.len(), 520);
    let whole = shown.iter().filter(|one| one.is_whole()).count();
    assert_eq!(whole, 174);
    // All that is whole leaves while the pages are walked over, one page behind.
    let (operator, queue) = (operator(&bus.keys), queue(&bus.keys));
    let mut looking = looking(&bus).await;
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let mut pages = DelayedPages::of(&queue, 0, MOST);
    let mut page = pages.next(&mut looking).await.unwrap();
    let mut dropped = 0;
    for _ in 0..1000 {
        if page.is_empty() {
            break;
        }
        let next = pages.next(&mut looking).await.unwrap();
        page.retain(|one| one.is_whole() && one.event.is_some());
        if !page.is_empty() {
            let gone = operator.drop_delayed(connection, &queue, &page).await;
            dropped += gone.unwrap().into_iter().filter(|gone| *gone).count();
        }
        page = next;
    }
    assert_eq!(dropped, 174);
}

#[tokio::test]
async fn what_is_run_now_enters_its_stream_once_with_the_fact() {
    let mut bus = Bus::start().await;
    for token in ["a", "b", "c"] {
        put_event(&mut bus, FAR, token).await;
    }
    put(&mut bus, FAR, b"no event").await;
    let (operator, queue) = (operator(&bus.keys), queue(&bus.keys));
    let mut shown = all(&bus, 0).await;
    shown.retain(|one| one.token != "c");
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let step = operator.run_delayed(connection, &queue, &shown).await;
    let moved = step.unwrap().moved;
    let there: Vec<bool> = moved.iter().map(Option::is_some).collect();
    assert_eq!(there.iter().filter(|there| **there).count(), 2, "{there:?}");
    let again = operator.run_delayed(connection, &queue, &shown).await;
    assert!(again.unwrap().moved.iter().all(Option::is_none));
    let events = bus.entries(EVENTS).await;
    assert_eq!(events.len(), 2);
    assert_eq!(text(&events[0], "n"), "a");
    assert!(!events[0].contains_key("notbefore"), "{:?}", events[0]);
    assert_eq!(bus.ask::<u64>(&format!("ZCARD {QUEUE}")).await, 2);
    let facts = facts(&mut bus, "cb:broadcast").await;
    assert_eq!(facts.len(), 1);
    assert_eq!(facts[0].0, "operator.replayed");
    let expected = json!({
        "run": "run-1", "by": "ada@desk", "from": "delayed", "stream": name("image", QUEUE),
        "to": name("image", EVENTS),
        "count": 2, "entries": ["a", "b"],
    });
    assert_eq!(sorted(&facts[0].1), sorted(&expected));
}

#[tokio::test]
async fn what_cannot_enter_its_stream_still_waits() {
    let mut bus = Bus::start().await;
    put_event(&mut bus, FAR, "a").await;
    let (operator, queue) = (operator(&bus.keys), queue(&bus.keys));
    let shown = all(&bus, 0).await;
    for full in [
        format!("SET {EVENTS} x"),
        format!("XADD {EVENTS} 18446744073709551615-18446744073709551615 type a.b"),
    ] {
        bus.run(&format!("DEL {EVENTS}")).await;
        bus.run(&full).await;
        let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
        let step = operator.run_delayed(connection, &queue, &shown).await;
        let step = step.unwrap();
        assert!(step.stopped.is_some() && step.moved.is_empty(), "{step:?}");
        assert_eq!(all(&bus, 0).await[0].due_ms, FAR);
    }
    assert!(bus.entries("cb:broadcast").await.is_empty());
}

#[tokio::test]
async fn what_waits_is_changed_once_as_it_was_seen() {
    let mut bus = Bus::start().await;
    put_event(&mut bus, FAR, "a").await;
    put_event(&mut bus, FAR + 1, "b").await;
    let (operator, queue) = (operator(&bus.keys), queue(&bus.keys));
    let shown = all(&bus, 0).await;
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let change = DelayedChange::new().data(vec![7]);
    assert!(!change.is_done(&shown[0]));
    for expected in [[true, true], [false, false]] {
        let done = operator
            .change_delayed(connection, &queue, &shown, &change)
            .await
            .unwrap();
        assert_eq!(done, expected);
    }
    let changed = all(&bus, 0).await;
    assert_eq!((changed[0].due_ms, changed[1].due_ms), (FAR, FAR + 1));
    let event = changed[0].event.as_ref().unwrap();
    assert_eq!(event.get("data"), Some(&[7][..]));
    assert_eq!(event.get("n"), Some(&b"a"[..]));
    assert_eq!(tokens(&changed), ["a", "b"]);
    assert!(change.is_done(&changed[0]));
    let later = DelayedChange::new().due_ms(FAR + 9);
    let done = operator
        .change_delayed(connection, &queue, &changed[..1], &later)
        .await
        .unwrap();
    assert_eq!(done, [true]);
    let moved = all(&bus, 0).await;
    assert_eq!(tokens(&moved), ["b", "a"]);
    assert_eq!(moved[1].due_ms, FAR + 9);
    let facts = facts(&mut bus, "cb:broadcast").await;
    let told: Vec<_> = facts
        .iter()
        .map(|(kind, data)| (kind.as_str(), data["entries"].clone(), data["due"].clone()))
        .collect();
    let expected = [
        ("operator.changed", json!(["a", "b"]), json!(null)),
        ("operator.changed", json!(["a"]), json!(FAR + 9)),
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn what_waits_is_dropped_once_with_the_fact() {
    let mut bus = Bus::start().await;
    put_event(&mut bus, FAR, "a").await;
    put(&mut bus, FAR + 1, b"no event").await;
    put_event(&mut bus, FAR + 2, "c").await;
    let (operator, queue) = (operator(&bus.keys), queue(&bus.keys));
    let shown = all(&bus, 0).await;
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    for expected in [[true, true], [false, false]] {
        let done = operator
            .drop_delayed(connection, &queue, &shown[..2])
            .await
            .unwrap();
        assert_eq!(done, expected);
    }
    assert_eq!(tokens(&all(&bus, 0).await), ["c"]);
    let facts = facts(&mut bus, "cb:broadcast").await;
    assert_eq!(facts.len(), 1);
    assert_eq!(facts[0].0, "operator.dropped");
    assert_eq!(facts[0].1["entries"], json!(["a", ""]));
}

#[tokio::test]
async fn what_marks_an_id_moves_and_goes_with_its_event() {
    let mut bus = Bus::start().await;
    let client = client(&bus);
    let event = || event("once").id("once").dedup(true);
    let later = || event().at(FAR);
    client.publish(&later()).await.unwrap();
    let ttl = |bus: &Bus| {
        let mut ask = redis::cmd("PTTL");
        ask.arg("cb:dedup:image:once");
        ask.query::<i64>(&mut bus.redis.connect()).unwrap()
    };
    let before = ttl(&bus);
    let (operator, queue) = (operator(&bus.keys), queue(&bus.keys));
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let shown = all(&bus, 0).await;
    let change = DelayedChange::new().due_ms(FAR + 1_000_000_000);
    let done = operator.change_delayed(connection, &queue, &shown, &change);
    assert_eq!(done.await.unwrap(), [true]);
    let longer = ttl(&bus) - before;
    // Both are read to the ms, by a clock that may step back.
    assert!((990_000_000..=1_000_001_000).contains(&longer), "{longer}");
    assert!(client.publish(&later()).await.unwrap().is_duplicate());
    let shown = all(&bus, 0).await;
    let dropped = operator.drop_delayed(connection, &queue, &shown).await;
    assert_eq!(dropped.unwrap(), [true]);
    assert!(!client.publish(&event()).await.unwrap().is_duplicate());
    // The mark of one that is in its stream is not that of one which waits.
    let member = encode_member("other", &["type", "image.made", "id", "once"]);
    put(&mut bus, FAR, &member).await;
    let shown = all(&bus, 0).await;
    let dropped = operator.drop_delayed(connection, &queue, &shown).await;
    assert_eq!(dropped.unwrap(), [true]);
    assert!(client.publish(&event()).await.unwrap().is_duplicate());
    client.close().await;
}

#[tokio::test]
async fn a_payload_is_changed_in_the_form_that_it_is_in_and_says_by_whom() {
    let mut bus = Bus::start().await;
    let fields = [
        "type",
        "image.made",
        "datacontenttype",
        "application/json",
        "data",
        "{\"a\":1}",
    ];
    put(&mut bus, FAR, &encode_member("a", &fields)).await;
    put_event(&mut bus, FAR + 1, "b").await;
    let (operator, queue) = (operator(&bus.keys), queue(&bus.keys));
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let shown = all(&bus, 0).await;
    let change = DelayedChange::new().data(vec![0x81, 0xa1, b'a', 2]);
    let done = operator.change_delayed(connection, &queue, &shown, &change);
    assert_eq!(done.await.unwrap(), [true, true]);
    let changed = all(&bus, 0).await;
    let of = |n: usize, name| changed[n].event.as_ref().unwrap().get(name);
    assert_eq!(of(0, "data"), Some(&b"{\"a\":2}"[..]));
    assert_eq!(of(0, "datacontenttype"), Some(&b"application/json"[..]));
    assert_eq!(of(1, "data"), Some(&[0x81, 0xa1, b'a', 2][..]));
    assert_eq!(
        (of(0, "edited"), of(1, "edited")),
        (Some(&b"ada@desk"[..]), of(0, "edited"))
    );
    assert!(changed.iter().all(|one| change.is_done(one)));
}

#[tokio::test]
async fn queues_are_found_and_counted_and_in_a_cluster_the_fact_follows() {
    let keys = Keys::tagged("cb", 2).unwrap();
    let mut bus = Bus::with(keys.clone()).await;
    let member = encode_member("a", &["type", "image.made"]);
    let route = keys.route("image", 1);
    let mut add = redis::cmd("ZADD");
    add.arg(&route.delayed).arg(FAR).arg(&member[..]);
    let () = add.query_async(&mut bus.connection).await.unwrap();
    let connection = &mut bus.redis.connection_for(users::OPERATOR).await;
    let connector = Connector::new(&RedisUrl::new(bus.redis.url_for(users::OPERATOR)), 2).unwrap();
    let found = queues(&connector, &keys).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].stream.key, route.events);
    let other = keys.stream_name(&keys.events("image", 0)).unwrap();
    let other = Queue::of(&keys, &other).unwrap();
    let depths = depths(connection, &[&other, &found[0]]).await.unwrap();
    assert_eq!((depths[0].count, depths[0].next_due_ms), (0, None));
    assert_eq!((depths[1].count, depths[1].next_due_ms), (1, Some(FAR)));
    let mut looking = looking(&bus).await;
    let mut pages = DelayedPages::of(&found[0], 0, MOST);
    let shown = pages.next(&mut looking).await.unwrap();
    let operator = operator(&keys);
    let later = DelayedChange::new().due_ms(FAR + 9);
    let changed = operator.change_delayed(connection, &found[0], &shown, &later);
    assert_eq!(changed.await.unwrap(), [true]);
    let mut pages = DelayedPages::of(&found[0], 0, MOST);
    let shown = pages.next(&mut looking).await.unwrap();
    let step = operator.run_delayed(connection, &found[0], &shown).await;
    assert_eq!(step.unwrap().moved.len(), 1);
    let dropped = operator.drop_delayed(connection, &found[0], &shown).await;
    assert_eq!(dropped.unwrap(), [false]);
    let facts = facts(&mut bus, "{cb}:broadcast").await;
    assert_eq!(facts.len(), 2);
    assert_eq!(facts[0].1["due"], FAR + 9);
    assert_eq!(facts[1].1["to"], route.events);
    assert_eq!(facts[1].1["from"], "delayed");
}
