//! One event for each tick: whoever calls, however the clock steps, whatever is changed meanwhile.

use crate::fleet::Fleet;
use crate::support::{Redis, is_cluster, keys};
use convoke::connect::connector::Connector;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::schedules::{
    Listed, MAX_PAYLOAD, MAX_SCHEDULES, Missed, ScheduleDraft, Schedules, When,
};
use convoke::protocol::event::{Entry, Event, Limits};
use convoke::protocol::keys::Keys;
use convoke::settings::RedisUrl;
use convoke::streams::read::entries_of;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

pub(crate) fn schedules(fleet: &Fleet) -> Schedules {
    let connector = Connector::new(&RedisUrl::new(fleet.redis.url()), 4).unwrap();
    Schedules::new(connector, fleet.keys.clone())
}

/// A schedule that ticks each second.
pub(crate) fn each_second(name: &str, missed: Missed) -> ScheduleDraft {
    ScheduleDraft {
        name: name.into(),
        when: When {
            every_ms: Some(1000),
            time_zone: "UTC".into(),
            ..When::default()
        },
        kind: "a.b".into(),
        payload: Some(vec![7]),
        subject: None,
        missed,
        jitter_ms: 0,
        paused: false,
    }
}

/// As if nobody had looked for twenty seconds.
pub(crate) async fn miss(fleet: &mut Fleet, name: &str) {
    let key = fleet.keys.schedules();
    let state: Vec<u8> = fleet.ask(&format!("HGET {} {name}", key.states)).await;
    let mut state: Value = rmp_serde::from_slice(&state).unwrap();
    let tick = state["tick"].as_u64().unwrap();
    state["tick"] = json!(tick - 20_000);
    let state = rmp_serde::to_vec_named(&state).unwrap();
    let mut set = redis::cmd("HSET");
    set.arg(key.states).arg(name).arg(state);
    set.exec_async(&mut fleet.connection).await.unwrap();
    fleet.run(&format!("ZADD {} 1000 {name}", key.due)).await;
}

async fn entries(fleet: &mut Fleet, stream: &str) -> Vec<Entry> {
    let reply: redis::Value = fleet.ask(&format!("XRANGE {stream} - +")).await;
    entries_of(reply).unwrap()
}

fn text(entry: &Entry, field: &str) -> String {
    let value = entry.get(field).unwrap_or_default();
    String::from_utf8_lossy(value).into_owned()
}

async fn ids(fleet: &mut Fleet) -> Vec<String> {
    fleet.move_published().await;
    let entries = entries(fleet, "cb:events:a").await;
    entries.iter().map(|entry| text(entry, "id")).collect()
}

/// The ticks that ids tell, in ms.
fn ticks(ids: &[String]) -> Vec<u64> {
    let tick = |id: &String| {
        let (_, tick) = id.split_once('@').unwrap();
        let tick = humantime::parse_rfc3339(tick).unwrap();
        tick.duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
    };
    ids.iter().map(tick).collect()
}

async fn facts(fleet: &mut Fleet, kind: &str) -> Vec<Value> {
    let facts = entries(fleet, &fleet.keys.broadcast()).await;
    let of_kind = facts.iter().filter(|fact| text(fact, "type") == kind);
    of_kind
        .map(|fact| rmp_serde::from_slice(fact.get("data").unwrap()).unwrap())
        .collect()
}

async fn listed(schedules: &Schedules, name: &str) -> Listed {
    let all = schedules.list().await.unwrap();
    all.into_iter().find(|one| one.name == name).unwrap()
}

/// Fires until the stream holds that many events.
async fn fire_until(fleet: &mut Fleet, schedules: &Schedules, count: usize) -> Vec<String> {
    let began = Instant::now();
    loop {
        schedules.fire_due("w-1").await.unwrap();
        let ids = ids(fleet).await;
        if ids.len() >= count {
            return ids;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{ids:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn assert_each_once(ticks: &[u64]) {
    assert!(
        ticks.windows(2).all(|pair| pair[1] == pair[0] + 1000),
        "{ticks:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_tick_has_one_event_however_many_call() {
    let mut fleet = Fleet::start().await;
    let one = schedules(&fleet);
    let wanted = each_second("s-1", Missed::All);
    one.put(&wanted, None, "ann").await.unwrap();
    // Twenty are missed, so that all have something to do at once.
    miss(&mut fleet, "s-1").await;
    let mut callers = tokio::task::JoinSet::new();
    let over = Arc::new(AtomicBool::new(false));
    for number in 0..6 {
        let (caller, over) = (schedules(&fleet), over.clone());
        callers.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                caller.fire_due(&format!("w-{number}")).await.unwrap();
                tokio::time::sleep(Duration::from_millis(3 + 7 * number)).await;
            }
        });
    }
    fire_until(&mut fleet, &one, 23).await;
    // A call that is cut off may store a tick while the entries are read.
    over.store(true, Ordering::Relaxed);
    callers.join_all().await;
    fleet.move_published().await;
    let stored = entries(&mut fleet, "cb:events:a").await;
    let ids: Vec<String> = stored.iter().map(|entry| text(entry, "id")).collect();
    assert_each_once(&ticks(&ids));
    for (entry, id) in stored.into_iter().zip(&ids) {
        let event = Event::parse(entry, &Limits::default(), &fleet.keys, "cb:events:a").unwrap();
        assert!(id.starts_with("s-1@"), "{id}");
        assert_eq!((event.kind(), event.data()), ("a.b", &[7][..]));
        assert!(
            event
                .source()
                .is_some_and(|source| source.starts_with("w-"))
        );
    }
    let shown = listed(&one, "s-1").await;
    let last = shown.standing.last.unwrap();
    assert_eq!(last.tick, *ticks(&ids).last().unwrap());
    assert_eq!(shown.standing.stored, ids.len() as u64);
    assert_eq!(shown.next.len(), 5);
    assert_eq!(shown.next[0], last.tick + 1000);
    assert_eq!(facts(&mut fleet, "schedule.missed").await, [] as [Value; 0]);
}

#[tokio::test]
async fn what_is_put_again_changes_nothing_and_a_change_leaves_the_tick_that_is_due() {
    let mut fleet = Fleet::start().await;
    let one = schedules(&fleet);
    let mut wanted = each_second("s-1", Missed::Once);
    wanted.when.every_ms = Some(3_600_000);
    let put = one.put(&wanted, None, "ann").await.unwrap();
    assert_eq!((put.version, put.next.len()), (1, 5));
    assert_eq!(one.put(&wanted, None, "bob").await.unwrap(), put);
    assert_eq!(one.put(&wanted, Some(1), "bob").await.unwrap(), put);
    let before = listed(&one, "s-1").await;
    // As if it were due for some time.
    fleet.run("ZADD cb:schedules:due 1000 s-1").await;
    wanted.payload = Some(vec![8]);
    assert_eq!(one.put(&wanted, Some(1), "bob").await.unwrap().version, 2);
    let due: f64 = fleet.ask("ZSCORE cb:schedules:due s-1").await;
    assert_eq!(due, 1000.0);
    assert_eq!(
        listed(&one, "s-1").await.standing.tick,
        before.standing.tick
    );
    let other = one
        .put(&each_second("s-1", Missed::Once), Some(1), "eve")
        .await;
    assert!(
        matches!(other, Err(CoordinationError::Aborted(_))),
        "{other:?}"
    );
    // Another interval: another next tick.
    wanted.when.every_ms = Some(7_200_000);
    one.put(&wanted, None, "bob").await.unwrap();
    let due: f64 = fleet.ask("ZSCORE cb:schedules:due s-1").await;
    assert!(due > 1000.0);
    let told = facts(&mut fleet, "schedule.changed").await;
    let told: Vec<Value> = told
        .iter()
        .map(|fact| {
            json!([
                fact["version"],
                fact["by"],
                fact["before"]["every_ms"],
                fact["after"]["every_ms"]
            ])
        })
        .collect();
    assert_eq!(
        told,
        [
            json!([1, "ann", null, 3_600_000]),
            json!([2, "bob", 3_600_000, 3_600_000]),
            json!([3, "bob", 3_600_000, 7_200_000]),
        ]
    );
    assert!(one.delete("s-1", "ann").await.unwrap());
    assert!(!one.delete("s-1", "ann").await.unwrap());
    assert!(one.list().await.unwrap().is_empty());
    assert_eq!(
        facts(&mut fleet, "schedule.changed").await[3]["change"],
        "deleted"
    );
    assert_eq!(fleet.all_keys().await, ["cb:broadcast"]);
}

#[tokio::test]
async fn a_paused_one_does_not_tick_and_goes_on_from_now() {
    let mut fleet = Fleet::start().await;
    let one = schedules(&fleet);
    one.put(&each_second("s-1", Missed::All), None, "ann")
        .await
        .unwrap();
    fire_until(&mut fleet, &one, 1).await;
    let paused = one.pause("s-1", true, None, "bob").await.unwrap();
    assert_eq!((paused.version, paused.next), (2, vec![]));
    let stored = ids(&mut fleet).await.len();
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(one.fire_due("w-1").await.unwrap(), None);
    assert_eq!(ids(&mut fleet).await.len(), stored);
    one.pause("s-1", false, None, "bob").await.unwrap();
    let after = fire_until(&mut fleet, &one, stored + 1).await;
    let after = ticks(&after);
    assert!(after[stored] >= after[stored - 1] + 3000, "{after:?}");
    // What it is stayed.
    let shown = listed(&one, "s-1").await;
    assert_eq!(
        (
            shown.definition.kind.as_str(),
            shown.definition.payload_bytes
        ),
        ("a.b", 1)
    );
    let missing = one.pause("s-2", true, None, "bob").await;
    assert!(
        matches!(missing, Err(CoordinationError::NotFound(_))),
        "{missing:?}"
    );
}

#[tokio::test]
async fn an_hour_ahead_is_made_up_for_as_it_says_and_an_hour_back_brings_no_tick_again() {
    for missed in [Missed::Once, Missed::Skip, Missed::All] {
        let mut fleet = Fleet::on(Redis::with_a_clock(), keys()).await;
        let one = schedules(&fleet);
        one.put(&each_second("s-1", missed), None, "ann")
            .await
            .unwrap();
        let before = fire_until(&mut fleet, &one, 2).await;
        fleet.redis.step_clock(3600).await;
        let most = if missed == Missed::All { 100 } else { 1 };
        let ids_then = fire_until(&mut fleet, &one, before.len() + most).await;
        let then = ticks(&ids_then);
        let jump = then[before.len()] - then[before.len() - 1];
        let least = 3_600_000 - most as u64 * 1000;
        assert!(
            (least..least + 120_000).contains(&jump),
            "{missed:?}: {jump}"
        );
        assert_each_once(&then[before.len()..]);
        let told = facts(&mut fleet, "schedule.missed").await;
        let number = |fact: &Value, field: &str| fact[field].as_u64().unwrap();
        let left_out: u64 = told.iter().map(|fact| number(fact, "count")).sum();
        let first = told.iter().map(|fact| number(fact, "first")).min();
        let all = (then.last().unwrap() - first.unwrap().min(then[0])) / 1000 + 1;
        assert_eq!(
            left_out + then.len() as u64,
            all,
            "{missed:?}: each is stored or told"
        );
        // Back again: what was stored is not stored again, and the next one waits for its time.
        fleet.redis.step_clock(0).await;
        for _ in 0..20 {
            let next = one.fire_due("w-1").await.unwrap().unwrap();
            assert!(next > Duration::from_secs(3000), "{next:?}");
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        // Nor if it is put again meanwhile.
        let mut other = each_second("s-1", missed);
        other.when.every_ms = Some(2000);
        let next = one.put(&other, None, "ann").await.unwrap().next;
        assert!(next[0] > *then.last().unwrap(), "{next:?}");
        assert_eq!(ids(&mut fleet).await, ids_then, "{missed:?}");
        fleet.redis.step_clock(3660).await;
        let all = fire_until(&mut fleet, &one, ids_then.len() + 1).await;
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }
}

#[tokio::test]
async fn a_tick_waits_while_its_stream_cannot_be_written_and_holds_no_other_up() {
    let mut fleet = Fleet::start().await;
    let one = schedules(&fleet);
    fleet.run("SET cb:events:a x").await;
    one.put(&each_second("bad", Missed::All), None, "ann")
        .await
        .unwrap();
    let mut good = each_second("good", Missed::All);
    good.kind = "b.c".into();
    one.put(&good, None, "ann").await.unwrap();
    let began = Instant::now();
    while entries(&mut fleet, "cb:events:b").await.len() < 2 {
        one.fire_due("w-1").await.unwrap();
        fleet.move_published().await;
        assert!(began.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // On a cluster it waits in the outbox.
    if !is_cluster() {
        assert_eq!(listed(&one, "bad").await.standing.stored, 0);
    }
    fleet.run("DEL cb:events:a").await;
    let stored = fire_until(&mut fleet, &one, 3).await;
    assert_each_once(&ticks(&stored));
}

#[tokio::test]
async fn once_is_stored_once_and_forgotten_a_day_later() {
    let mut fleet = Fleet::on(Redis::with_a_clock(), keys()).await;
    let one = schedules(&fleet);
    let (seconds, _): (u64, u64) = fleet.ask("TIME").await;
    let mut wanted = each_second("s-1", Missed::Once);
    wanted.when.every_ms = None;
    // Far enough ahead: it still is when it is put.
    let at = seconds * 1000 + 3500;
    wanted.when.at = Some(at);
    let put = one.put(&wanted, None, "ann").await.unwrap();
    assert_eq!(put.next, [at]);
    let stored = fire_until(&mut fleet, &one, 1).await;
    assert!(stored[0].ends_with(".5Z"), "{stored:?}");
    assert_eq!(listed(&one, "s-1").await.next, [] as [u64; 0]);
    // A deploy that puts it again changes nothing; as another one it lies in the past.
    assert_eq!(one.put(&wanted, None, "ann").await.unwrap().version, 1);
    wanted.subject = Some("x".into());
    let past = one.put(&wanted, None, "ann").await;
    assert!(
        matches!(past, Err(CoordinationError::Invalid(_))),
        "{past:?}"
    );
    fleet.redis.step_clock(86_500).await;
    one.fire_due("w-1").await.unwrap();
    assert!(one.list().await.unwrap().is_empty());
    assert_eq!(ids(&mut fleet).await.len(), 1);
    assert_eq!(
        facts(&mut fleet, "schedule.changed").await[1]["change"],
        "over"
    );
}

#[tokio::test]
async fn names_with_hash_tags_work_too() {
    let keys = Keys::tagged("cb", 4).unwrap();
    let mut fleet = Fleet::with(keys).await;
    let one = schedules(&fleet);
    let mut wanted = each_second("s-1", Missed::All);
    wanted.subject = Some("cat".into());
    one.put(&wanted, None, "ann").await.unwrap();
    let partition = fleet.keys.partition_of("a", "cat");
    let stream = fleet.keys.events("a", partition);
    let began = Instant::now();
    while entries(&mut fleet, &stream).await.is_empty() {
        one.fire_due("w-1").await.unwrap();
        fleet.move_published().await;
        assert!(began.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(
        text(&entries(&mut fleet, &stream).await[0], "subject"),
        "cat"
    );
}

#[tokio::test]
async fn what_has_no_bounds_is_refused_with_its_field() {
    let mut fleet = Fleet::start().await;
    let one = schedules(&fleet);
    let good = each_second("s-1", Missed::Once);
    let with = |change: &dyn Fn(&mut ScheduleDraft)| {
        let mut wanted = good.clone();
        change(&mut wanted);
        wanted
    };
    for (wanted, says) in [
        (with(&|w| w.name = "a b".into()), "name: "),
        (with(&|w| w.name = "x".repeat(129)), "name: "),
        (with(&|w| w.kind = "nodot".into()), "type: "),
        (with(&|w| w.kind = "inbox.open".into()), "type: "),
        (with(&|w| w.subject = Some("x".repeat(300))), "subject"),
        (with(&|w| w.payload = Some(vec![0xc1])), "payload: "),
        (with(&|w| w.jitter_ms = 86_400_001), "jitter_ms: "),
        (with(&|w| w.when.every_ms = Some(999)), "every_ms: "),
        (with(&|w| w.when.every_ms = None), "cron, every_ms, at: "),
        (with(&|w| w.when.at = Some(5)), "cron, every_ms, at: "),
        (
            with(&|w| w.when.time_zone = "Europe/Berlin".into()),
            "time_zone: ",
        ),
        (
            with(&|w| (w.when.every_ms, w.when.at) = (None, Some(5))),
            "at: ",
        ),
        (
            with(&|w| (w.when.every_ms, w.when.cron) = (None, Some("0 0 30 2 *".into()))),
            "cron: ",
        ),
        (
            with(&|w| {
                let mut payload = vec![0xc6];
                payload.extend((MAX_PAYLOAD as u32).to_be_bytes());
                payload.resize(MAX_PAYLOAD + 5, 0);
                w.payload = Some(payload);
            }),
            "payload: ",
        ),
    ] {
        match one.put(&wanted, None, "ann").await {
            Err(CoordinationError::Invalid(said)) => assert!(said.contains(says), "{said}"),
            other => panic!("{says} {other:?}"),
        }
    }
    assert_eq!(fleet.all_keys().await, [] as [&str; 0]);
    for number in 0..MAX_SCHEDULES {
        let wanted = with(&|w| w.name = format!("s-{number}"));
        one.put(&wanted, None, "ann").await.unwrap();
    }
    let over = one
        .put(&with(&|w| w.name = "more".into()), None, "ann")
        .await;
    assert!(
        matches!(over, Err(CoordinationError::Exhausted(_))),
        "{over:?}"
    );
    // One that is there can still be changed.
    one.put(&with(&|w| w.payload = None), None, "ann")
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_told_of_a_run_names_who_asked() {
    let fleet = Fleet::start().await;
    let one = schedules(&fleet);
    let wanted = each_second("s-1", Missed::Once);
    one.put(&wanted, None, "ann").await.unwrap();
    let (id, [event, fact]) = one.run("s-1", "bob", "w-1").await.unwrap();
    assert!(id.starts_with("s-1@") && id.ends_with("Z/run"), "{id}");
    assert_eq!(event.stream, fleet.keys.events("a", 0));
    let words: Vec<&str> = event
        .fields
        .iter()
        .map(|w| std::str::from_utf8(w).unwrap())
        .collect();
    assert_eq!(words[..4], ["type", "a.b", "data", "\u{7}"]);
    assert_eq!(words[4..8], ["id", &id, "source", "w-1"]);
    assert_eq!(fact.stream, fleet.keys.broadcast());
    let told: Value = rmp_serde::from_slice(fact.fields.last().unwrap()).unwrap();
    assert_eq!(
        (&told["by"], &told["change"]),
        (&json!("bob"), &json!("run"))
    );
    let missing = one.run("s-2", "bob", "w-1").await;
    assert!(matches!(missing, Err(CoordinationError::NotFound(_))));
}
