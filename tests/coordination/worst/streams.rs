//! What is done with streams: published, promoted, taken over, renewed, committed, trimmed, replayed.

#[allow(dead_code)]
#[path = "../../bus/setup.rs"]
mod setup;

use self::setup::{Bus, GROUP, Held};
use super::meter::Meter;
use super::seed::Seed;
use crate::fleet::Fleet;
use crate::support::{beside, name, users};
use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::operator::delayed::{DelayedChange, DelayedPages, Queue};
use convoke::operator::replay::planning::Candidate;
use convoke::operator::replay::repair::{RepairStep, Stepped, Way};
use convoke::operator::replay::{Move, Operator, STEP, Source, WORDS};
use convoke::protocol::event::EntryId;
use convoke::settings::{RedisUrl, Settings};
use convoke::streams::cancel::{self, Canceller, Name, Order};
use convoke::streams::claim::{self, Handing, Pending};
use convoke::streams::commit::MAX_PUBLICATIONS;
use convoke::streams::commit::{Note, Publication};
use convoke::streams::delay;
use convoke::streams::fence::Fence;
use convoke::streams::first::{Asks, FirstCheck, Firsts, Judge, KEPT};
use convoke::streams::hold::{self, HELD};
use convoke::streams::outbox;
use convoke::streams::own::{self, OwnKeys, Taking};
use convoke::streams::park::{self, How};
use convoke::streams::trim::{remove, trim};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const EVENTS: &str = "cb:events:image";
const DEAD: &str = "cb:dead:image";

pub(super) async fn drive(fleet: &mut Fleet, meter: &mut Meter) {
    publishes(fleet, meter).await;
    waits(fleet, meter).await;
    trims(fleet, meter).await;
    holds(meter).await;
    asks(meter).await;
    replays(meter).await;
    delayed(meter).await;
    moves(fleet, meter).await;
    parks(meter).await;
    cancels(meter).await;
    owns(meter).await;
}

/// As many leases as are renewed in one call, each taken from another owner, and let go.
async fn owns(meter: &mut Meter) {
    let bus = Bus::start().await;
    let mut connection = bus.connection.clone();
    let keys = |partition| OwnKeys {
        owner: beside("image", &format!("cb:owner:image-{partition}:workers")),
        fence: beside("image", &format!("cb:fence:image-{partition}:workers")),
    };
    let name = "w".repeat(128);
    let taking = Taking {
        instance: &name,
        process: &name,
        ttl: Duration::from_secs(60),
        ended: None,
        until: 1 << 53,
        replaces: true,
    };
    let driven = async {
        let mut leases = Vec::new();
        for partition in 0..own::RENEWED {
            let keys = keys(partition);
            let older = Taking {
                process: "older",
                ..taking
            };
            own::take(&mut connection, &keys, older).await.unwrap();
            let fence = own::take(&mut connection, &keys, taking).await.unwrap();
            leases.push((keys, fence.unwrap()));
        }
        let renewed = own::renew(&mut connection, &name, taking.ttl, &leases).await;
        assert!(renewed.unwrap().into_iter().all(|renewed| renewed));
        let (keys, fence) = &leases[0];
        assert!(
            own::leave(&mut connection, keys, &name, *fence)
                .await
                .unwrap()
        );
    };
    meter.of(&bus.redis, driven).await;
}

/// As many names as are looked for at a time, among many small and the largest entries; what was parked; and the largest
/// event is kept.
async fn cancels(meter: &mut Meter) {
    let mut bus = Bus::start().await;
    let connector = Connector::new(&RedisUrl::new(bus.redis.url_for(users::OPERATOR)), 2).unwrap();
    let canceller = Canceller::new(connector, bus.keys.clone(), &Settings::default());
    let mut order = Order::default();
    (order.by, order.reason, order.keep) = ("ada@desk".into(), "x".repeat(256), true);
    for group in 0..8 {
        bus.run(&format!("XGROUP CREATE {EVENTS} group-{group} 0"))
            .await;
    }
    bus.add(2000).await;
    let fields: String = (0..30).map(|n| format!(" f{n} x")).collect();
    let dedup = "dedup 1 replyto cb:reply:me";
    bus.run(&format!(
        "XADD {EVENTS} * type image.made id wide {dedup}{fields}"
    ))
    .await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    bus.deliver("w-1", &committer.claims(), 1000).await;
    let mut connection = bus.connection.clone();
    for n in 0..600 {
        let place = format!("{:020}-{:020}", n + 1, 0);
        let line = "-".repeat(40);
        let event = delay::encode_member("1-1", &["type", "image.made", "n", &n.to_string()]);
        let member = [format!("t{place}{line}").into_bytes(), event].concat();
        let mut add = redis::cmd("ZADD");
        add.arg(bus.route.parked_of("image.made"))
            .arg(0)
            .arg(member);
        let () = add.query_async(&mut connection).await.unwrap();
    }
    bus.run("HSET cb:parked:image image.made 1").await;
    let large = "x".repeat(1 << 20);
    for _ in 0..3 {
        let mut add = redis::cmd("XADD");
        add.arg(&[EVENTS, "*", "type", "image.made", "data", &large]);
        let () = add.query_async(&mut connection).await.unwrap();
    }
    let mut names: Vec<Name> = (0..cancel::NAMES - 1)
        .map(|n| Name::Id(format!("e{}", 3 * n)))
        .collect();
    names.push(Name::Id("wide".into()));
    let (all, redis) = (usize::MAX, &bus.redis);
    let fates = meter.of(redis, canceller.cancel("image", &names, &order, all));
    let fates = fates.await.unwrap();
    assert!(fates.iter().all(|fate| fate.cancelled));
}

async fn publishes(fleet: &mut Fleet, meter: &mut Meter) {
    fleet.run("FLUSHALL").await;
    let connector = Connector::new(&RedisUrl::new(fleet.redis.url()), 1).unwrap();
    let client = Client::new(connector, fleet.keys.clone(), ClientOptions::default()).unwrap();
    let event = || Outgoing::new("image.made", &"x".repeat(1_000_000)).id("once");
    let later = || event().dedup(true).delay(Duration::from_secs(60));
    meter
        .of(&fleet.redis, async {
            for _ in 0..2 {
                client.publish(&later()).await.unwrap();
            }
            for _ in 0..2 {
                client.publish(&event().dedup(true).id("2")).await.unwrap();
            }
        })
        .await;
    client.close().await;
}

/// Very many small ones, some large ones, and the largest that are no events are due.
async fn waits(fleet: &mut Fleet, meter: &mut Meter) {
    const LARGEST: usize = 1 << 20;
    let event = |number: usize, bytes: usize| {
        let data = vec![b'x'; bytes];
        let fields = [&b"type"[..], b"image.made", b"data", &data];
        delay::encode_member(&number.to_string(), &fields)
    };
    let many_fields = |number: usize| {
        let value = "x".repeat(LARGEST / 64 - 64);
        let fields = (0..64).flat_map(|n| [format!("f-{n}"), value.clone()]);
        delay::encode_member(&number.to_string(), &fields.collect::<Vec<_>>())
    };
    let small = (0..5000).map(|number| match number % 10 {
        9 => format!("no event {number}").into_bytes(),
        _ => event(number, 10),
    });
    let large = (0..8).map(|number| event(number, LARGEST));
    let wide = (0..8).map(many_fields);
    // Numbers, and arrays in arrays: a decoder would make a table of each.
    let no_events = (0..8).map(|number| {
        let mut member = vec![0xdd, 0, 0x0f, 0xff, 0];
        member.resize(LARGEST - number, if number % 2 == 0 { 1 } else { 0x91 });
        member
    });
    let kinds: [Vec<Vec<u8>>; 4] = [
        small.collect(),
        large.collect(),
        wide.collect(),
        no_events.collect(),
    ];
    let mut connection = fleet.redis.connection_for(users::WORKER).await;
    let route = fleet.keys.route("image", 0);
    for members in kinds {
        fleet.run("FLUSHALL").await;
        let mut seed = Seed::more(fleet);
        for member in members {
            let mut add = redis::cmd("ZADD");
            seed.add(add.arg(&route.delayed).arg(1).arg(member).to_owned())
                .await;
        }
        seed.done().await;
        let promotes = delay::promote(&mut connection, &route, delay::AT_ONCE, 2 << 20);
        let promoted = meter.of(&fleet.redis, promotes).await.unwrap();
        assert!(promoted.moved + promoted.dead > 0);
    }
}

/// As many as are weighed at a time, each behind released ones that are done with; and as many as are released, beside
/// those of as many paused subjects as there may be.
async fn parks(meter: &mut Meter) {
    const KIND: &str = "image.made";
    const PAUSED: usize = 1000;
    let mut bus = Bus::start().await;
    let route = bus.route.clone();
    let mut connection = bus.redis.connection_for(users::WORKER).await;
    let subjects: Vec<String> = (0..PAUSED).map(|n| format!("s-{n}")).collect();
    let fields = |n: usize| -> Vec<String> { (0..64).map(|at| format!("f{at}-{n}")).collect() };
    let mut parked = 0;
    for round in 0..(PAUSED / park::WEIGHED) + 3 {
        bus.add(park::WEIGHED).await;
        let committer = bus.committer("me");
        let held: Vec<Held> = bus.deliver("me", &committer.claims(), park::WEIGHED).await;
        let pending: Vec<park::Candidate<'_>> = held
            .iter()
            .enumerate()
            .map(|(at, held)| {
                // The last ones are of one subject; the others each of its own.
                let many = round * park::WEIGHED + at;
                let of = subjects.get(many).map_or("last", String::as_str);
                park::Candidate {
                    entry: held.entry.id,
                    deliveries: 1,
                    subject: Some(of),
                    how: if of == "last" {
                        How::Type
                    } else {
                        How::Subject
                    },
                    member: delay::encode_member("1-0", &fields(many)),
                }
            })
            .collect();
        let weighs = park::weigh(&mut connection, &route, GROUP, "me", KIND, &pending);
        parked += meter.of(&bus.redis, weighs).await.unwrap().len();
    }
    assert!(parked > PAUSED);
    let paused = || subjects.iter().map(String::as_str);
    for limit in [park::RELEASED, park::RELEASED] {
        let releases = park::release(
            &mut connection,
            &route,
            GROUP,
            KIND,
            limit,
            1 << 20,
            paused(),
        );
        meter.of(&bus.redis, releases).await.unwrap();
    }
    // The released ones end, unweighed, and others of their subject come.
    let committer = bus.committer("me");
    let back: Vec<Held> = bus.deliver("me", &committer.claims(), 1000).await;
    for held in back {
        let stream = &bus.route.events.clone();
        bus.run(&format!("XACK {stream} {GROUP} {}", held.entry.id))
            .await;
    }
    bus.add(park::WEIGHED).await;
    let held: Vec<Held> = bus.deliver("me", &committer.claims(), park::WEIGHED).await;
    let pending: Vec<park::Candidate<'_>> = held
        .iter()
        .map(|held| park::Candidate {
            entry: held.entry.id,
            deliveries: 1,
            subject: Some("last"),
            how: How::Not,
            member: delay::encode_member("1-0", &fields(0)),
        })
        .collect();
    let weighs = park::weigh(&mut connection, &route, GROUP, "me", KIND, &pending);
    meter.of(&bus.redis, weighs).await.unwrap();
    let releases = park::release(
        &mut connection,
        &route,
        GROUP,
        KIND,
        park::RELEASED,
        1 << 20,
        paused(),
    );
    meter.of(&bus.redis, releases).await.unwrap();
}

/// As many as are moved at a time, with as many fields as there may be.
async fn moves(fleet: &mut Fleet, meter: &mut Meter) {
    fleet.run("FLUSHALL").await;
    let outbox = fleet.keys.outbox("image", 0);
    let mut seed = Seed::more(fleet);
    for _ in 0..100 {
        let mut add = redis::cmd("XADD");
        add.arg(&outbox).arg("*").arg("@stream").arg(EVENTS);
        for field in 0..32 {
            add.arg(format!("f{field}")).arg("x");
        }
        seed.add(add).await;
    }
    seed.done().await;
    let keys = fleet.keys.clone();
    let mut connection = fleet.redis.connection_for(users::WORKER).await;
    let mut way = outbox::Way::default();
    let moves = outbox::empty(&mut connection, &keys, &outbox, &mut way);
    let moved = meter.of(&fleet.redis, moves).await.unwrap();
    assert_eq!(moved.moved, 100);
    // Once more nothing of it comes.
    let again = outbox::empty(&mut connection, &keys, &outbox, &mut way)
        .await
        .unwrap();
    let mut length = redis::cmd("XLEN");
    let length: u64 = length
        .arg(EVENTS)
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!((again.moved, length), (0, 100));
}

/// Far more than the history, of which nobody needs any; and of which a group needs the end.
async fn trims(fleet: &mut Fleet, meter: &mut Meter) {
    const ENTRIES: usize = 13_000;
    let mut connection = fleet.redis.connection_for(users::WORKER).await;
    for (group, bytes) in [(false, 10), (true, 10), (false, 4000)] {
        fleet.run("FLUSHALL").await;
        let mut seed = Seed::more(fleet);
        let data = "x".repeat(bytes);
        for number in 0..ENTRIES {
            let mut add = redis::cmd("XADD");
            add.arg(EVENTS).arg(format!("{}-1", number + 1));
            seed.add(add.arg("data").arg(&data).to_owned()).await;
        }
        if group {
            for name in 0..8 {
                let mut create = redis::cmd("XGROUP");
                create.arg(&["CREATE", EVENTS, &format!("group-{name}"), "12000-1"]);
                seed.add(create).await;
            }
        }
        seed.done().await;
        let candidate = EntryId { ms: 12_000, seq: 1 };
        let trims = trim(&mut connection, EVENTS, 1000, Some(candidate));
        let trimmed = meter.of(&fleet.redis, trims).await.unwrap();
        assert!(trimmed.removed > 0);
        let last = EntryId { ms: 12_000, seq: 1 };
        let removed = meter.of(&fleet.redis, remove(&mut connection, EVENTS, last));
        assert!(removed.await.unwrap());
    }
}

fn noted(key: &str) -> Note {
    Note {
        key: key.to_owned(),
        value: vec![b'x'; KEPT],
        kept: Duration::from_secs(60),
    }
}

/// Who came first: the first one, the same again, another one.
async fn asks(meter: &mut Meter) {
    let bus = Bus::start().await;
    let connector = Connector::new(&RedisUrl::new(bus.redis.url()), 1).unwrap();
    let judge = Judge::new(connector.toward(&bus.route.events));
    let (keys, window) = (bus.keys.clone(), Duration::from_secs(60));
    let firsts = Firsts {
        keys: &keys,
        domain: "image",
        partition: 0,
        window,
    };
    let to = keys.reply("image", 0, &"c".repeat(128));
    let id = "i".repeat(256);
    meter
        .of(&bus.redis, async {
            for (ms, is_first) in [(1, true), (1, true), (2, false)] {
                let asks = Asks {
                    id: &id,
                    name: EntryId { ms, seq: 0 },
                    to: Some(&to),
                };
                let verdict = loop {
                    // The first connection sees which history it is.
                    match judge.ask(firsts, asks).await {
                        Ok(verdict) => break verdict,
                        Err(error) => assert_eq!(ms, 1, "{error}"),
                    }
                };
                assert_eq!(matches!(verdict, FirstCheck::First { .. }), is_first);
            }
        })
        .await;
}

/// A lane's share of pending entries is renewed, taken over, handed over; the largest commit.
async fn holds(meter: &mut Meter) {
    let mut bus = Bus::start().await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    bus.add(2 * claim::RENEWED).await;
    let claims = committer.claims();
    let held = bus.deliver("w-1", &claims, claim::RENEWED).await;
    assert_eq!(held.len(), claim::RENEWED);
    let pending = bus.pending().await;
    let unbegun = bus.deliver("w-1", &claims, claim::RENEWED).await;
    let unbegun: Vec<(EntryId, u32)> = unbegun.iter().map(|h: &Held| (h.entry.id, 1)).collect();
    let publications: Vec<Publication> = (0..MAX_PUBLICATIONS)
        .map(|n| Publication {
            stream: format!("cb:events:domain_{n}"),
            fields: ["type", "a.b", "n", "1"].map(|word| word.into()).to_vec(),
        })
        .collect();
    let mut settled = held[0].done();
    settled.receipt.claims = 0;
    settled.publications = publications;
    settled.notes = ["cb:dedup:image:e", "cb:said:image:1-1:e"]
        .map(|plain| noted(&name("image", plain)))
        .into();
    let leases: Vec<(EntryId, u32)> = held.iter().map(|h: &Held| (h.entry.id, 1)).collect();
    let mut connection = bus.redis.connection_for(users::WORKER).await;
    let (key, held) = (
        bus.keys.fence("image", 0, GROUP),
        bus.keys.held("image", 0, GROUP),
    );
    bus.run(&format!("SET {key} 1")).await;
    let fence = Fence::new(&key, 1, &held, CancellationToken::new());
    let tried = hold::Held {
        attempt: 2,
        due: 1 << 40,
        deliveries: 1,
        code: "internal".into(),
        message: String::new(),
    };
    let tried = tried.saying(&"x".repeat(500));
    let redis = &bus.redis;
    let keys = bus.keys.clone();
    meter
        .of(redis, async {
            let connection = &mut connection;
            let waits = leases[leases.len() - HELD..].iter();
            let waits: Vec<_> = waits.map(|(id, count)| (*id, *count, &tried)).collect();
            let lost = hold::hold(connection, EVENTS, GROUP, "w-1", &fence, &waits).await;
            assert!(lost.unwrap().is_empty());
            let lost = claim::renew(connection, EVENTS, GROUP, "w-1", &leases).await;
            assert!(lost.unwrap().is_empty());
            let back = claim::undeliver(connection, EVENTS, GROUP, "w-1", &unbegun).await;
            assert_eq!(back.unwrap(), claim::RENEWED);
            assert_eq!(committer.commit(vec![settled]).await.committed, 1);
            let handed = keys.handed("image", 0, "1-1");
            let handing = Handing {
                from: "w-1",
                to: "w-2",
                entry: leases[1].0,
                deliveries: 1,
                handed: &handed,
            };
            claim::give(connection, EVENTS, GROUP, handing)
                .await
                .unwrap();
            let claims = |owner: &str| keys.claims("image", 0, owner);
            let (page, now) = (&pending[2..2 + claim::TAKEN], Duration::ZERO);
            let taken = claim::take(connection, EVENTS, GROUP, "w-3", now, page, claims).await;
            assert_eq!(taken.unwrap().len(), claim::TAKEN);
            assert!(
                !claim::forget(connection, EVENTS, GROUP, "w-3")
                    .await
                    .unwrap()
            );
        })
        .await;
}

/// The largest steps that an operator does with what waits.
async fn delayed(meter: &mut Meter) {
    let mut bus = Bus::start().await;
    let queue = Queue::of(&bus.keys, &bus.keys.stream_name(&bus.route.events).unwrap()).unwrap();
    let fields: Vec<String> = (0..128).map(|n| format!("f{n}")).collect();
    for n in 0..5 * STEP {
        let member = delay::encode_member(&n.to_string(), &fields);
        let mut add = redis::cmd("ZADD");
        add.arg(&queue.key)
            .arg(4_102_444_800_000_u64)
            .arg(&member[..]);
        let () = add.query_async(&mut bus.connection).await.unwrap();
    }
    let operator = Operator::new(bus.keys.clone(), "run-1", "ada@desk");
    let mut connection = bus.redis.connection_for(users::OPERATOR).await;
    let mut pages = DelayedPages::of(&queue, 0, 1 << 20);
    let redis = &bus.redis;
    meter
        .of(redis, async {
            let connection = &mut connection;
            let page = pages.next(connection).await.unwrap();
            assert_eq!(page.len(), 5 * STEP);
            let change = DelayedChange::new().data(vec![1]).due_ms(5_000_000_000_000);
            let step = &page[..STEP];
            let changed = operator.change_delayed(connection, &queue, step, &change);
            assert!(changed.await.unwrap().iter().all(|done| *done));
            let step = &page[STEP..2 * STEP];
            let ran = operator.run_delayed(connection, &queue, step).await;
            assert!(ran.unwrap().moved.iter().all(Option::is_some));
            let step = &page[2 * STEP..3 * STEP];
            let gone = operator.drop_delayed(connection, &queue, step).await;
            assert!(gone.unwrap().iter().all(|done| *done));
            let to = EntryId { ms: 1, seq: 0 };
            let moved = operator.reset_group(connection, EVENTS, GROUP, EntryId::default(), to);
            let moved = moved.await;
            assert!(moved.unwrap().is_some());
            let gone = operator.drop_group(connection, EVENTS, GROUP).await;
            assert!(gone.unwrap().is_some());
        })
        .await;
}

/// The largest steps of an operator.
async fn replays(meter: &mut Meter) {
    let mut bus = Bus::start().await;
    let operator = Operator::new(bus.keys.clone(), "run-1", "ada@desk");
    let mut connection = bus.redis.connection_for(users::OPERATOR).await;
    let mut of_worker = bus.redis.connection_for(users::WORKER).await;
    for ms in 1..=3 * STEP {
        let add = format!("XADD {DEAD} {ms}-1 type image.made deadreason internal");
        bus.run(&add).await;
    }
    bus.add(STEP).await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    bus.deliver("w-1", &committer.claims(), STEP).await;
    let pending = bus.pending().await;
    let id = |ms: usize| EntryId {
        ms: ms as u64,
        seq: 1,
    };
    let one = |entry: EntryId, pending: Option<Pending>| Move {
        entry,
        fields: (0..WORDS / STEP).map(|n| format!("f{n}").into()).collect(),
        pending: pending.map(|pending| (pending, Duration::ZERO)),
    };
    let dead: Vec<Move> = (1..=STEP).map(|ms| one(id(ms), None)).collect();
    let seen = pending.iter();
    let seen: Vec<Move> = seen.map(|is| one(is.id, Some(is.clone()))).collect();
    let repaired = (2 * STEP + 1..=3 * STEP).map(|ms| one(id(ms), None));
    let name = bus.keys.stream_name(&bus.route.dead).unwrap();
    let events = bus.route.events.clone();
    let candidate = |act: Move, left: Option<String>| Candidate {
        stream: name.clone(),
        to: events.clone(),
        kind: "image.made".into(),
        replays: 1,
        act,
        before: None,
        left,
    };
    let repaired: Vec<Candidate> = repaired.map(|act| candidate(act, None)).collect();
    // Each is held by another one.
    bus.add(STEP).await;
    let mut held_on = Vec::new();
    for n in 0..STEP {
        let mut holder = bus.committer(&format!("h-{n}"));
        holder.start().await.unwrap();
        bus.deliver(&format!("h-{n}"), &holder.claims(), 1).await;
    }
    for is in bus.pending().await {
        if is.consumer.starts_with("h-") {
            let act = one(is.id, Some(is.clone()));
            held_on.push(candidate(act, None));
        }
    }
    let copied: Vec<Candidate> = held_on.clone();
    let left =
        (0..40).map(|n| candidate(one(id(1), None), Some(format!("{n} {}", "x".repeat(200)))));
    let left: Vec<Candidate> = left.collect();
    let dropped: Vec<EntryId> = (STEP + 1..=2 * STEP).map(id).collect();
    let stream = bus.keys.stream_name(&bus.route.events).unwrap();
    let redis = &bus.redis;
    meter
        .of(redis, async {
            let connection = &mut connection;
            let moved = operator.replay_dead(connection, DEAD, EVENTS, &dead).await;
            assert_eq!(moved.unwrap().moved.len(), STEP);
            let moved = operator
                .replay_pending(connection, &stream, GROUP, &seen)
                .await;
            assert_eq!(moved.unwrap().moved.len(), STEP);
            let moved = operator
                .replay_range(connection, &stream, &dead, false)
                .await;
            assert_eq!(moved.unwrap().moved.len(), STEP);
            let step = RepairStep {
                way: Way::Dead,
                stream: &name,
                noted: "r-1:1",
                fence: 1,
                before: None,
                after: id(3 * STEP),
                left: &left,
                moves: &repaired,
            };
            let (stepped, _) = operator.step_repair(&mut of_worker, step).await.unwrap();
            assert!(matches!(stepped, Stepped::Done(done) if done.replayed == STEP as u64));
            let held = Way::Pending { group: GROUP };
            for (way, moves) in [(held, &held_on), (Way::Range { force: true }, &copied)] {
                let noted = format!("r-1:{way:?}");
                let place = (Source::Range, &stream);
                let taken = operator.take_repair(&mut of_worker, place, &noted, 1);
                assert!(matches!(taken.await.unwrap(), Stepped::Done(_)));
                let step = RepairStep {
                    way,
                    stream: &stream,
                    noted: &noted,
                    fence: 1,
                    before: None,
                    after: moves.last().unwrap().act.entry,
                    left: &left,
                    moves,
                };
                let (stepped, _) = operator.step_repair(&mut of_worker, step).await.unwrap();
                assert!(matches!(stepped, Stepped::Done(done) if done.replayed == STEP as u64));
            }
            let gone = operator.drop_dead(connection, DEAD, &dropped).await;
            assert_eq!(gone.unwrap().len(), STEP);
        })
        .await;
}
