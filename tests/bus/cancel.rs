//! Cancelling: an event is finished or cancelled, never both, whoever is in the middle of what with it.

use crate::setup::{Bus, GROUP, Held, NEXT, REPLY, connector, text};
use crate::support::{beside, name, users};
use convoke::protocol::event::EntryId;
use convoke::protocol::json;
use convoke::protocol::keys::Keys;
use convoke::settings::Settings;
use convoke::streams::cancel::{CancelError, Canceller, Fate, Name, Order, Standing};
use convoke::streams::commit::Disposition;
use convoke::streams::delay::encode_member;
use convoke::streams::park::{self, Candidate, How, Weighed};
use convoke::streams::trim::Trimmer;
use std::time::Duration;

const EVENTS: &str = "cb:events:image";
const QUEUE: &str = "cb:delayed:image";
const DEAD: &str = "cb:dead:image";
const PARKED: &str = "cb:parked:image:image.made";
const MANY: usize = 1_000_000;

fn canceller(bus: &Bus) -> Canceller {
    let connector = connector(&bus.redis.url_for(users::OPERATOR));
    Canceller::new(connector, bus.keys.clone(), &Settings::default())
}

fn order() -> Order {
    Order {
        by: "ada@desk".into(),
        reason: "ticket 17".into(),
        keep: false,
    }
}

async fn cancel_name(bus: &Bus, name: Name) -> Fate {
    let cancelled = canceller(bus)
        .cancel("image", &[name], &order(), MANY)
        .await;
    cancelled.unwrap().pop().unwrap()
}

async fn cancel(bus: &Bus, id: &str) -> Fate {
    cancel_name(bus, Name::Id(id.into())).await
}

async fn put(bus: &mut Bus, due: u64, member: &[u8]) {
    let mut add = redis::cmd("ZADD");
    add.arg(QUEUE).arg(due).arg(member);
    let () = add.query_async(&mut bus.connection).await.unwrap();
}

/// The facts of cancellations: what each holds.
async fn facts(bus: &mut Bus) -> Vec<serde_json::Value> {
    let told = bus.entries("cb:broadcast").await;
    let told = told
        .iter()
        .filter(|fact| text(fact, "type") == "event.cancelled");
    told.map(|fact| json::to_json(&fact["data"]).unwrap())
        .collect()
}

#[tokio::test]
async fn what_is_not_read_yet_is_given_to_nobody_and_the_second_call_says_who_cancelled_it() {
    let mut bus = Bus::start().await;
    let added = bus.add(3).await;
    let fate = cancel(&bus, "e1").await;
    assert_eq!((fate.state, fate.cancelled), (Standing::Waiting, true));
    assert_eq!((fate.entry, fate.told), (Some(added[1]), None));
    let again = cancel(&bus, "e1").await;
    assert_eq!((again.state, again.cancelled), (Standing::Finished, true));
    let earlier = again.earlier.unwrap();
    assert_eq!((&*earlier.by, &*earlier.reason), ("ada@desk", "ticket 17"));
    let by_entry = cancel_name(&bus, Name::Entry(added[1])).await;
    assert!(by_entry.cancelled && by_entry.earlier.is_some());
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    let held = bus.deliver("w-1", &committer.claims(), 10).await;
    let ids: Vec<String> = held.iter().map(Held::id).collect();
    assert_eq!(ids, ["e0", "e2"]);
    let told = facts(&mut bus).await;
    assert_eq!(told.len(), 1, "{told:?}");
    let expected = serde_json::json!({"id": "e1", "type": "image.made", "stream": name("image", EVENTS),
        "entry": added[1].to_string(), "state": "waiting", "by": "ada@desk", "reason": "ticket 17", "kept": false});
    assert_eq!(told[0], expected);
    // What was cancelled is known for a time only.
    let ttl: i64 = bus.ask("PTTL cb:cancelled:image:e1").await;
    assert!(ttl > 0);
}

#[tokio::test]
async fn an_outcome_that_comes_after_the_cancellation_is_void_on_the_fast_way_and_on_the_slow_one()
{
    let mut bus = Bus::start().await;
    bus.add(6).await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    let held = bus.deliver("w-1", &committer.claims(), 6).await;
    // Both are watched, and in hand.
    assert_eq!(committer.commit(vec![held[0].done()]).await.committed, 1);
    let fate = cancel(&bus, "e1").await;
    assert_eq!((fate.state, fate.cancelled), (Standing::Running, true));
    assert_eq!(fate.instance.as_deref(), Some("w-1"));
    let tally = committer.commit(vec![held[1].done(), held[2].done()]).await;
    assert_eq!((tally.committed, tally.fenced), (1, 1));
    // One by one, and as a retry.
    cancel(&bus, "e3").await;
    cancel(&bus, "e4").await;
    let mut old = held[3].done();
    old.receipt.claims = 0;
    let later = held[4].ending(Disposition::Later {
        fields: Vec::new(),
        wait: Duration::ZERO,
    });
    let tally = committer.commit(vec![old, later]).await;
    assert_eq!((tally.committed, tally.fenced), (0, 2));
    assert_eq!(bus.replied().await, ["e0", "e2"]);
    assert_eq!(bus.entries(NEXT).await.len(), 2);
    let waits: u64 = bus.ask(&format!("ZCARD {QUEUE}")).await;
    assert_eq!(waits, 0);
    let left: Vec<EntryId> = bus.pending().await.iter().map(|one| one.id).collect();
    assert_eq!(left, [held[5].entry.id]);
}

#[tokio::test]
async fn a_commit_that_came_first_stands() {
    let mut bus = Bus::start().await;
    let added = bus.add(1).await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    let held = bus.deliver("w-1", &committer.claims(), 1).await;
    assert_eq!(committer.commit(vec![held[0].done()]).await.committed, 1);
    let fate = cancel(&bus, "e0").await;
    assert_eq!((fate.state, fate.cancelled), (Standing::Finished, false));
    let fate = cancel_name(&bus, Name::Entry(added[0])).await;
    assert_eq!((fate.state, fate.cancelled), (Standing::Finished, false));
    assert_eq!(bus.replied().await, ["e0"]);
    assert!(facts(&mut bus).await.is_empty());
    let nobody = cancel(&bus, "e7").await;
    assert_eq!((nobody.state, nobody.cancelled), (Standing::Unknown, false));
}

#[tokio::test]
async fn what_waits_for_its_time_or_for_its_next_try_is_taken_away_by_id_and_by_entry() {
    const FAR: u64 = 4_102_444_800_000;
    let mut bus = Bus::start().await;
    let fields = ["type", "image.made", "id", "later"];
    put(&mut bus, FAR, &encode_member("a-token", &fields)).await;
    let fate = cancel(&bus, "later").await;
    assert_eq!((fate.state, fate.cancelled), (Standing::Delayed, true));
    // One that failed is delayed: it is found by the entry that it was.
    let added = bus.add(2).await;
    let mut committer = bus.committer("w-1");
    committer.start().await.unwrap();
    let held = bus.deliver("w-1", &committer.claims(), 2).await;
    let failed = held.iter().map(|one| {
        let id = one.id();
        let fields = ["type", "image.made", "id", &id, "attempt", "2"];
        one.ending(Disposition::Later {
            fields: fields.map(Vec::from).into(),
            wait: Duration::from_secs(3600),
        })
    });
    assert_eq!(committer.commit(failed.collect()).await.retried, 2);
    let fate = cancel_name(&bus, Name::Entry(added[0])).await;
    assert_eq!((fate.state, fate.cancelled), (Standing::Delayed, true));
    let fate = cancel(&bus, "e1").await;
    assert_eq!((fate.state, fate.cancelled), (Standing::Delayed, true));
    let waits: u64 = bus.ask(&format!("ZCARD {QUEUE}")).await;
    assert_eq!(waits, 0);
    assert_eq!(facts(&mut bus).await.len(), 3);
    let again = cancel(&bus, "e1").await;
    assert!(again.cancelled && again.earlier.is_some());
}

#[tokio::test]
async fn what_is_parked_is_taken_away_and_the_others_of_its_subject_go_on_in_order() {
    let mut bus = Bus::start().await;
    bus.add(4).await;
    let committer = bus.committer("me");
    let held = bus.deliver("me", &committer.claims(), 4).await;
    let (mut connection, route) = (bus.connection.clone(), bus.route.clone());
    let hows = [How::Type, How::Subject, How::Type, How::Subject];
    let parked: Vec<Candidate<'_>> = held
        .iter()
        .zip(hows)
        .map(|(one, how)| {
            let id = one.id();
            let fields = ["type", "image.made", "id", &id, "subject", "s"];
            Candidate {
                entry: one.entry.id,
                deliveries: 1,
                subject: Some("s"),
                how,
                member: encode_member(&one.entry.id.to_string(), &fields),
            }
        })
        .collect();
    let weighed = park::weigh(&mut connection, &route, GROUP, "me", "image.made", &parked);
    assert_eq!(weighed.await.unwrap(), [Weighed::Parked; 4]);
    for id in ["e0", "e3"] {
        let fate = cancel(&bus, id).await;
        assert_eq!(
            (fate.state, fate.cancelled),
            (Standing::Waiting, true),
            "{id}"
        );
    }
    let released = park::release(
        &mut connection,
        &route,
        GROUP,
        "image.made",
        10,
        1 << 20,
        std::iter::empty(),
    );
    assert_eq!(released.await.unwrap(), (2, false));
    let back = bus.deliver("me", &committer.claims(), 4).await;
    let ids: Vec<String> = back.iter().map(Held::id).collect();
    assert_eq!(ids, ["e2", "e1"]);
    // A released one is in the stream again.
    let fate = cancel(&bus, "e1").await;
    assert_eq!((fate.state, fate.cancelled), (Standing::Running, true));
    let fate = cancel(&bus, "e2").await;
    assert_eq!((fate.state, fate.cancelled), (Standing::Running, true));
    let released = park::release(
        &mut connection,
        &route,
        GROUP,
        "image.made",
        10,
        1 << 20,
        std::iter::empty(),
    );
    assert_eq!(released.await.unwrap(), (0, false));
    let left: u64 = bus.ask(&format!("EXISTS {PARKED} cb:parked:image")).await;
    assert_eq!(left, 0, "nothing of it is left");
}

#[tokio::test]
async fn whoever_asked_is_told_in_the_same_step_and_no_reply_stream_lives_for_good() {
    let mut bus = Bus::start().await;
    bus.run(&format!(
        "XADD {EVENTS} * type image.made id asked replyto {REPLY}"
    ))
    .await;
    let json = "datacontenttype application/json data 1";
    bus.run(&format!(
        "XADD {EVENTS} * type image.made id json {json} replyto {REPLY}"
    ))
    .await;
    let gone = beside("image", "cb:inbox:gone");
    bus.run(&format!(
        "XADD {EVENTS} * type image.made id inbox replyto {gone}"
    ))
    .await;
    for (id, told) in [("asked", true), ("json", true), ("inbox", false)] {
        assert_eq!(cancel(&bus, id).await.told, Some(told), "{id}");
    }
    let replies = bus.entries(REPLY).await;
    let of = |n: usize, name: &str| text(&replies[n], name);
    assert_eq!(replies.len(), 2);
    assert_eq!(
        (of(0, "correlationid"), of(0, "status"), of(0, "type")),
        (
            "asked".into(),
            "cancelled".into(),
            "image.made.result".into()
        )
    );
    let said = serde_json::json!({"code": "cancelled", "message": "cancelled by ada@desk: ticket 17",
        "retryable": false});
    assert_eq!(json::to_json(&replies[0]["data"]).unwrap(), said);
    let told: serde_json::Value = serde_json::from_slice(&replies[1]["data"]).unwrap();
    assert_eq!(told, said);
    let ttl: i64 = bus.ask(&format!("PTTL {REPLY}")).await;
    assert!(ttl > 0);
    let inbox: u64 = bus.ask(&format!("EXISTS {gone}")).await;
    assert_eq!(inbox, 0, "no inbox is made");
}

#[tokio::test]
async fn what_is_kept_is_a_dead_letter_and_what_cannot_be_kept_stays_where_it_is() {
    let mut bus = Bus::start().await;
    let added = bus.add(2).await;
    let keeps = Order {
        keep: true,
        ..order()
    };
    let name = |id: &str| [Name::Id(id.into())];
    bus.run(&format!("SET {DEAD} x")).await;
    let refused = canceller(&bus)
        .cancel("image", &name("e0"), &keeps, MANY)
        .await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("WRONGTYPE"), "{refused}");
    assert_eq!(bus.entries(EVENTS).await.len(), 2);
    assert!(facts(&mut bus).await.is_empty());
    bus.run(&format!("DEL {DEAD}")).await;
    let kept = canceller(&bus)
        .cancel("image", &name("e0"), &keeps, MANY)
        .await;
    assert!(kept.unwrap()[0].cancelled);
    let letters = bus.entries(DEAD).await;
    assert_eq!(letters.len(), 1);
    for (name, value) in [
        ("id", "e0"),
        ("deadreason", "cancelled"),
        ("deadmessage", "cancelled by ada@desk: ticket 17"),
        ("deadstream", EVENTS),
        ("deadentry", &added[0].to_string()),
        ("deadinstance", "ada@desk"),
    ] {
        assert_eq!(text(&letters[0], name), value, "{name}");
    }
}

#[tokio::test]
async fn a_cancelled_event_with_dedup_stays_the_first_of_its_id() {
    let mut bus = Bus::start().await;
    let first: String = bus
        .ask(&format!(
            "XADD {EVENTS} * type image.made id once dedup 1 replyto {REPLY}"
        ))
        .await;
    assert!(cancel(&bus, "once").await.cancelled);
    let mark: String = bus.ask("GET cb:dedup:image:once").await;
    assert_eq!(mark, first);
    let ttl: i64 = bus.ask(&format!("PTTL cb:said:image:{first}:once")).await;
    assert!(ttl > 0, "what its repeats are told");
}

#[tokio::test]
async fn an_event_is_found_among_many_and_not_among_more_than_may_be_looked_at() {
    let mut bus = Bus::start().await;
    bus.add(1200).await;
    let canceller = canceller(&bus);
    let names = ["e0", "e700", "e1199"].map(|id| Name::Id(id.into()));
    let looked = canceller.look("image", &names, MANY).await.unwrap();
    assert!(looked.iter().all(|one| one.state == Standing::Waiting));
    assert!(looked.iter().all(|one| !one.cancelled));
    let few = canceller.look("image", &names, 600).await;
    assert!(matches!(few, Err(CancelError::TooMany { .. })), "{few:?}");
    let done = canceller.cancel("image", &names, &order(), MANY).await;
    assert!(done.unwrap().iter().all(|one| one.cancelled));
    assert_eq!(bus.entries(EVENTS).await.len(), 1197);
}

#[tokio::test]
async fn no_other_domain_is_touched_and_none_of_the_control_plane() {
    let bus = Bus::start().await;
    for domain in ["system", "task", "inbox", "a.b", "", "x:y"] {
        let refused = canceller(&bus)
            .cancel(domain, &[Name::Id("x".into())], &order(), MANY)
            .await;
        assert!(matches!(refused, Err(CancelError::Domain(_))), "{domain}");
    }
    let long = Order {
        reason: "x".repeat(257),
        ..order()
    };
    let refused = canceller(&bus).cancel("image", &[], &long, MANY).await;
    assert!(matches!(refused, Err(CancelError::Reason(257))));
}

#[tokio::test]
async fn an_id_is_found_in_every_partition_and_an_entry_of_two_is_nobodys() {
    let mut bus = Bus::with(Keys::tagged("cb", 3).unwrap()).await;
    let streams: Vec<String> = (0..3).map(|n| bus.keys.events("image", n)).collect();
    for (at, stream) in streams.iter().enumerate() {
        bus.run(&format!("XADD {stream} 7-1 type image.made id own-{at}"))
            .await;
    }
    let canceller = canceller(&bus);
    let seven = Name::Entry(EntryId { ms: 7, seq: 1 });
    let both = canceller.cancel("image", &[seven], &order(), MANY).await;
    let both = both.unwrap().pop().unwrap();
    assert!(both.several && !both.cancelled);
    let own = Name::Id("own-2".into());
    let own = canceller.cancel("image", &[own], &order(), MANY).await;
    let own = own.unwrap().pop().unwrap();
    assert!(own.cancelled && !own.several);
    let left: u64 = bus.ask(&format!("XLEN {}", streams[2])).await;
    assert_eq!(left, 0);
    // The fact follows, since the broadcast is in another slot.
    let facts: u64 = bus.ask("XLEN {cb}:broadcast").await;
    assert_eq!(facts, 1);
}

#[tokio::test]
async fn a_search_never_copies_many_large_entries_at_once() {
    let mut bus = Bus::start().await;
    bus.add(20).await;
    let data = vec![b'x'; 1 << 20];
    for _ in 0..64 {
        let mut add = redis::cmd("XADD");
        add.arg(&[EVENTS, "*", "type", "image.made", "data"]);
        let () = add
            .arg(&data)
            .query_async(&mut bus.connection)
            .await
            .unwrap();
    }
    let name = Name::Id("nobody".into());
    let looked = canceller(&bus).look("image", &[name], MANY).await.unwrap();
    assert_eq!(looked[0].state, Standing::Unknown);
    let memory: String = bus.ask("INFO memory").await;
    let bytes = |name: &str| -> u64 {
        let of = memory.lines().find_map(|line| line.strip_prefix(name));
        of.unwrap().trim_start_matches(':').parse().unwrap()
    };
    let more = bytes("used_memory_peak:") - bytes("used_memory_dataset:");
    assert!(more < 32 << 20, "{more} bytes at once");
}

#[tokio::test]
async fn an_id_is_looked_for_among_as_many_entries_as_was_said_of_whatever_size() {
    let mut bus = Bus::start().await;
    let data = vec![b'x'; 20 << 10];
    for n in 0..600 {
        let mut add = redis::cmd("XADD");
        add.arg(&[
            EVENTS,
            "*",
            "type",
            "image.made",
            "id",
            &format!("n{n}"),
            "data",
        ]);
        let () = add
            .arg(&data)
            .query_async(&mut bus.connection)
            .await
            .unwrap();
    }
    let name = [Name::Id("n599".into())];
    let looked = canceller(&bus).look("image", &name, 1000).await.unwrap();
    assert_eq!(looked[0].state, Standing::Waiting);
    let few = canceller(&bus).look("image", &name, 500).await;
    assert!(matches!(few, Err(CancelError::TooMany { .. })), "{few:?}");
}

#[tokio::test]
async fn all_copies_of_an_event_with_dedup_are_cancelled_by_the_entry_of_one() {
    let mut bus = Bus::start().await;
    let add = format!("XADD {EVENTS} * type image.made id twice dedup 1 replyto {REPLY}");
    let _: String = bus.ask(&add).await;
    let second: String = bus.ask(&add).await;
    bus.add(1).await;
    let fate = cancel_name(&bus, Name::Entry(second.parse().unwrap())).await;
    assert_eq!((fate.state, fate.cancelled), (Standing::Waiting, true));
    let left = bus.entries(EVENTS).await;
    let left: Vec<String> = left.iter().map(|one| text(one, "id")).collect();
    assert_eq!(
        left,
        ["e0"],
        "the first one is not left to vanish as a repeat"
    );
    let replies = bus.entries(REPLY).await;
    assert!(replies.iter().all(|one| text(one, "status") == "cancelled"));
    assert_eq!(replies.len(), 2);
}

#[tokio::test]
async fn where_an_event_may_not_be_taken_away_nobody_is_told_that_it_was() {
    let mut bus = Bus::start().await;
    bus.run(&format!(
        "XADD {EVENTS} * type image.made id asked replyto {REPLY}"
    ))
    .await;
    let mut admin = bus.redis.connection().await;
    let all = ["clearselectors", "~*", "&*", "+@all", "-xdel"];
    let mut less = redis::cmd("ACL");
    less.arg("SETUSER").arg(users::OPERATOR).arg(&all);
    let () = less.query_async(&mut admin).await.unwrap();
    for keep in [false, true] {
        let order = Order { keep, ..order() };
        let name = [Name::Id("asked".into())];
        let refused = canceller(&bus).cancel("image", &name, &order, MANY).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("XDEL"), "{refused}");
    }
    assert_eq!(bus.entries(EVENTS).await.len(), 1);
    assert!(bus.entries(REPLY).await.is_empty(), "it will run");
    assert!(bus.entries(DEAD).await.is_empty());
    assert!(facts(&mut bus).await.is_empty());
    let noted: u64 = bus.ask("EXISTS cb:cancelled:image:asked").await;
    assert_eq!(noted, 0);
}

#[tokio::test]
async fn a_stream_of_which_an_unread_event_was_cancelled_is_trimmed_all_the_same() {
    let mut bus = Bus::start().await;
    let claims = bus.committer("w-1").claims();
    let mut ends = bus.add(999).await;
    ends.pop();
    for held in bus.deliver("w-1", &claims, 998).await {
        bus.run(&format!("XACK {EVENTS} {GROUP} {}", held.entry.id))
            .await;
    }
    assert!(cancel(&bus, "e998").await.cancelled);
    bus.run(&format!("XADD {EVENTS} * type image.made id last"))
        .await;
    for held in bus.deliver("w-1", &claims, 10).await {
        bus.run(&format!("XACK {EVENTS} {GROUP} {}", held.entry.id))
            .await;
    }
    let streams = [(name("image", EVENTS), 250)];
    let trimmed = Trimmer::default()
        .run_once(&mut bus.connection, &streams)
        .await
        .remove(0);
    assert_eq!(trimmed.unwrap().removed, 700);
}
