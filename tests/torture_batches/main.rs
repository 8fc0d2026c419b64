//! Holders of batches that are killed at random points, or stopped past their lease and continued.

#[path = "../support/mod.rs"]
mod support;

use convoke::client::Client;
use convoke::client::publish::Outgoing;
use convoke::client::request::RequestError;
use convoke::connect::connector::Connector;
use convoke::coordination::batches::Batches;
use convoke::coordination::batches::batch::{Batch, BatchStatus};
use convoke::protocol::event::{Entry, EntryId};
use convoke::protocol::pattern::Pattern;
use convoke::settings::RedisUrl;
use convoke::streams::read::entries_of;
use convoke::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;
use support::fleet::{self, Fleet};
use support::{Redis, signal, torture, until};

/// Batches that are under way at a time.
const AT_A_TIME: usize = 6;
/// Batches of the leader at the least: enough that chance does not decide who began most of them.
const BEGUN: u64 = 18;
/// Items of each.
const ITEMS: u64 = 300;
/// The lease of each, in ms.
const LEASE: u64 = 500;
/// Items that a holder runs at the most whose runs are not committed: one commit's, and the next.
const REPEATED: usize = 33;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Item {
    batch: String,
    n: u64,
}

/// Takes a moment, records the run, and has an effect that is committed with it; each 50th fails.
async fn item(context: Context, item: Item) -> Result<u64, HandlerError> {
    tokio::time::sleep(Duration::from_millis(item.n % 9)).await;
    let name = format!("{}/{}", item.batch, item.n);
    let mut connection = context.redis().await?;
    redis::cmd("XADD")
        .arg(&["cb:runs", "*", "item", &name])
        .exec_async(&mut connection)
        .await?;
    if item.n % 50 == 49 {
        return Err(HandlerError::not_found("every 50th"));
    }
    context.publish("effect.made", &name)?;
    Ok(item.n)
}

#[test]
fn a_worker_process() {
    fleet::worker_process(|worker| worker.handler("load.item", item));
}

/// Batches that are asked for again and again until they are completed.
struct Load {
    client: Client,
    batches: Batches,
    open: BTreeSet<u64>,
    begun: u64,
}

fn id(number: u64) -> String {
    format!("b-{number}")
}

impl Load {
    /// Asks for a batch: once more, or for the first time. Every third is fanned out.
    async fn ask(&self, number: u64) {
        let id = id(number);
        let items: Vec<Item> = (0..ITEMS)
            .map(|n| Item {
                batch: id.clone(),
                n,
            })
            .collect();
        let mode = ["exclusive", "exclusive", "fan_out"][number as usize % 3];
        let batch = json!({"batch_id": id, "item_type": "load.item", "items": items, "mode": mode, "lease_ms": LEASE});
        let event = Outgoing::new("system.batch.process", &batch).reply_to("cb:reply:torture");
        self.client.publish(&event).await.unwrap();
    }

    /// The open batches as they are now; those that are completed are replaced as long as `more`.
    async fn look(&mut self, more: bool) -> Vec<Batch> {
        let mut found = Vec::new();
        for number in self.open.clone() {
            match self.batches.find(&id(number)).await.unwrap() {
                Some(batch) if batch.status == BatchStatus::Completed => {
                    self.open.remove(&number);
                }
                Some(batch) => found.push(batch),
                None => {}
            }
        }
        while more && self.open.len() < AT_A_TIME {
            self.ask(self.begun).await;
            self.open.insert(self.begun);
            self.begun += 1;
        }
        found
    }
}

async fn server_ms(redis: &Redis) -> u64 {
    let mut connection = redis.connection().await;
    let (seconds, micros): (u64, u64) = redis::cmd("TIME")
        .query_async(&mut connection)
        .await
        .unwrap();
    seconds * 1000 + micros / 1000
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_stopped_holders_lose_no_item_and_commit_nothing_with_an_old_fence() {
    let kills = torture::size("TORTURE_HOLDER_KILLS", 60, 200);
    let stops = torture::size("TORTURE_HOLDER_STOPS", 15, 500);
    holders_die(&[], kills, stops).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_stopped_leaders_lose_no_item_of_the_batches_that_they_hold() {
    let (kills, stops) = fewer();
    holders_die(&[Pattern::Centralized], kills, stops).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_nobody_holds_are_whole_and_once_whoever_is_killed_and_stopped() {
    let (kills, stops) = fewer();
    holders_die(&[Pattern::Distributed], kills, stops).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pattern_that_changes_while_batches_run_loses_none_and_runs_none_twice() {
    let (kills, stops) = fewer();
    holders_die(&Pattern::ALL, kills, stops).await;
}

/// Kills and stops where the pattern is not the default.
fn fewer() -> (u64, u64) {
    let kills = torture::size("TORTURE_PATTERN_KILLS", 9, 50);
    (kills, torture::size("TORTURE_PATTERN_STOPS", 3, 20))
}

/// Has all batches processed in that pattern from now on.
async fn choose(client: &Client, pattern: Pattern) {
    let chosen = json!({"event": "batch", "pattern": pattern.as_str()});
    loop {
        let event = Outgoing::new("system.pattern.set", &chosen);
        match client.request(event, Duration::from_secs(60)).await {
            Ok(_) => return,
            Err(RequestError::Remote(error)) if error.retryable => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Kills and stops holders, in that pattern; in the next one after each of them, where there are several; without one, in
/// what the environment or the default says.
async fn holders_die(patterns: &[Pattern], kills: u64, stops: u64) {
    fastrand::seed(torture::seed());
    let redis = Redis::start();
    let mut fleet = Fleet::start(&redis, 4);
    let client = fleet::client(&redis);
    if let Some(first) = patterns.first() {
        choose(&client, *first).await;
    }
    let connector = Connector::new(&RedisUrl::new(redis.url()), 4).unwrap();
    let mut load = Load {
        batches: Batches::new(connector, client.keys().clone()),
        client,
        open: BTreeSet::new(),
        begun: 0,
    };
    let (mut killed, mut stopped, mut turn) = (0, 0, 0);
    while killed < kills || stopped < stops {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(20..160))).await;
        let held = load.look(true).await;
        turn += 1;
        if turn % 4 == 0
            && let Some(&number) = load.open.iter().nth(fastrand::usize(..AT_A_TIME))
        {
            load.ask(number).await;
        }
        let now = server_ms(&redis).await;
        let held: Vec<Batch> = held
            .into_iter()
            .filter(|batch| batch.expires_at > now)
            .collect();
        if held.is_empty() {
            continue;
        }
        let victim = &held[fastrand::usize(..held.len())];
        let Some(index) = fleet.position(&victim.processor_id) else {
            continue;
        };
        if stopped < stops && turn % 5 == 0 {
            let pid = fleet.pid(index);
            signal(pid, "STOP");
            load.ask(victim.id[2..].parse().unwrap()).await;
            let (batches, client) = (&load.batches, &load);
            let number = victim.id[2..].parse().unwrap();
            let mut looks = 0;
            until("somebody else holds the batch", || {
                looks += 1;
                let again = looks % 20 == 0;
                async move {
                    if again {
                        client.ask(number).await;
                    }
                    let now = batches.find(&victim.id).await.unwrap().unwrap();
                    now.fence > victim.fence
                        || now.processor_id != victim.processor_id
                        || now.status == BatchStatus::Completed
                }
            })
            .await;
            signal(pid, "CONT");
            stopped += 1;
        } else if killed < kills {
            fleet.kill(index, fastrand::bool());
            killed += 1;
        } else {
            continue;
        }
        if patterns.len() > 1 {
            let next = (killed + stopped) as usize % patterns.len();
            choose(&load.client, patterns[next]).await;
        }
    }
    while patterns == [Pattern::Centralized] && load.begun < BEGUN {
        tokio::time::sleep(Duration::from_millis(50)).await;
        load.look(true).await;
    }
    let mut looks = 0;
    while !load.open.is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
        load.look(false).await;
        looks += 1;
        if looks >= 1200 {
            let found = load.look(false).await;
            panic!(
                "not completed within a minute: {found:?}; {}",
                left_behind(&redis).await
            );
        }
    }
    until(
        "every request is settled, also those of the killed",
        || async { fleet::pending(&redis, "cb:events:system").await == 0 },
    )
    .await;
    fleet.drain();
    let counts = check(&redis, load.begun, patterns).await;
    let shared = patterns.contains(&Pattern::Distributed);
    // Of a batch that is nobody's the same worker may go on that was killed and came back.
    let hit = counts.takeovers as u64;
    assert!(shared || hit >= kills, "the kills hit nobody");
    torture::Report::default()
        .fault(killed, "holders of batches killed")
        .fault(stopped, "holders of batches stopped past the lease")
        .event(load.begun, "batches completed")
        .event(counts.takeovers as u64, "takeovers of batches")
        .event(counts.stale, "stale writes accepted")
        .event(counts.again as u64, "items run again")
        .event(counts.aborted as u64, "holders answered aborted")
        .note(format!("{} facts of batches in order", counts.facts))
        .note(format!("{} batches begun by who led", counts.led))
        .tell(match patterns {
            [Pattern::Centralized] => "batches of the leader",
            [Pattern::Distributed] => "batches of nobody",
            [_, _, ..] => "batches while their pattern changes",
            _ => "batches",
        });
}

/// What a batch that nobody works on may be waiting for.
async fn left_behind(redis: &Redis) -> String {
    let mut connection = redis.connection().await;
    let mut told = String::new();
    for words in [
        "XPENDING cb:events:system workers - + 50",
        "XINFO GROUPS cb:events:system",
        "XINFO CONSUMERS cb:events:system workers",
        "ZRANGE cb:delayed:system 0 -1 WITHSCORES",
        "ZRANGE cb:instances:active 0 -1 WITHSCORES",
        "TIME",
    ] {
        let mut words = words.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        let answer: redis::Value = command
            .arg(words.collect::<Vec<_>>())
            .query_async(&mut connection)
            .await
            .unwrap();
        told += &format!("{answer:?}\n");
    }
    for event in all(redis, "cb:events:system").await {
        let data: serde_json::Value = rmp_serde::from_slice(event.get("data").unwrap()).unwrap();
        let id = String::from_utf8_lossy(event.get("id").unwrap_or_default()).into_owned();
        told += &format!("{} {id} asks for {}\n", event.id, data["batch_id"]);
    }
    for fact in all(redis, "cb:broadcast").await {
        let data: serde_json::Value = rmp_serde::from_slice(fact.get("data").unwrap()).unwrap();
        let kind = String::from_utf8_lossy(fact.get("type").unwrap()).into_owned();
        told += &format!("{} {kind} {data}\n", fact.id);
    }
    for reply in all(redis, "cb:reply:torture").await {
        let data: serde_json::Value = rmp_serde::from_slice(reply.get("data").unwrap()).unwrap();
        let field = |name| String::from_utf8_lossy(reply.get(name).unwrap()).into_owned();
        told += &format!(
            "{} {} by {}: {data}\n",
            reply.id,
            field("correlationid"),
            field("source")
        );
    }
    told
}

#[derive(Default)]
struct Counts {
    takeovers: usize,
    again: usize,
    facts: usize,
    aborted: usize,
    /// Effects beside the first of an item: what a stale holder wrote.
    stale: u64,
    /// Batches that were begun by who led then.
    led: usize,
}

async fn all(redis: &Redis, stream: &str) -> Vec<Entry> {
    let mut connection = redis.connection().await;
    let mut entries: Vec<Entry> = Vec::new();
    let mut from = EntryId::default();
    loop {
        let reply = redis::cmd("XRANGE")
            .arg(&[stream, &from.to_string(), "+", "COUNT", "5000"])
            .query_async(&mut connection)
            .await
            .unwrap();
        let page = entries_of(reply).unwrap();
        let Some(last) = page.last() else {
            return entries;
        };
        from = last.id.next();
        entries.extend(page);
    }
}

#[derive(Deserialize)]
struct Fact {
    batch_id: String,
    processor_id: String,
    items_processed: u64,
    items_failed: u64,
    total: u64,
    fence: u64,
}

#[derive(Deserialize)]
struct Elected {
    id: String,
}

#[derive(Default)]
struct Seen {
    fence: u64,
    processor: String,
    finished: u64,
    takeovers: usize,
    completed: usize,
    exclusive: bool,
}

/// Which of the batches are nobody's.
async fn nobodys(redis: &Redis, batches: u64) -> BTreeSet<String> {
    let mut connection = redis.connection().await;
    let mut found = BTreeSet::new();
    for number in 0..batches {
        let key = format!("cb:batch:{}", id(number));
        let shared: Option<u8> = redis::cmd("HGET")
            .arg(&[&key, "shared"])
            .query_async(&mut connection)
            .await
            .unwrap();
        found.extend((shared == Some(1)).then(|| id(number)));
    }
    found
}

async fn check(redis: &Redis, batches: u64, patterns: &[Pattern]) -> Counts {
    let mut counts = Counts::default();
    let nobodys = nobodys(redis, batches).await;
    match patterns {
        [Pattern::Distributed] => assert!(!nobodys.is_empty()),
        [_] => assert!(nobodys.is_empty(), "{nobodys:?}"),
        _ => {}
    }
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    let mut leader = String::new();
    for entry in all(redis, "cb:broadcast").await {
        let kind = entry.get("type").unwrap();
        if kind == b"leader.elected" {
            let elected: Elected = rmp_serde::from_slice(entry.get("data").unwrap()).unwrap();
            leader = elected.id;
        }
        if !kind.starts_with(b"batch.") {
            continue;
        }
        counts.facts += 1;
        let fact: Fact = rmp_serde::from_slice(entry.get("data").unwrap()).unwrap();
        counts.led += usize::from(kind == b"batch.started" && fact.processor_id == leader);
        let seen = seen.entry(fact.batch_id.clone()).or_default();
        let finished = fact.items_processed + fact.items_failed;
        assert_eq!(seen.completed, 0, "{}: told after its end", fact.batch_id);
        assert!(fact.fence >= seen.fence, "{}: an old fence", fact.batch_id);
        assert!(
            finished >= seen.finished,
            "{}: progress fell",
            fact.batch_id
        );
        assert!(finished <= fact.total);
        if nobodys.contains(&fact.batch_id) {
            assert!(
                seen.fence == 0 || seen.fence == fact.fence,
                "somebody took it"
            );
            let other = seen.fence > 0 && seen.processor != fact.processor_id;
            seen.takeovers += usize::from(other);
            seen.processor = fact.processor_id.clone();
        } else if fact.fence > seen.fence {
            seen.takeovers += usize::from(seen.fence > 0);
            seen.processor = fact.processor_id.clone();
        }
        assert_eq!(
            seen.processor, fact.processor_id,
            "two holders at one fence"
        );
        (seen.fence, seen.finished) = (fact.fence, finished);
        seen.completed += usize::from(kind == b"batch.completed");
    }
    assert_eq!(seen.len() as u64, batches);
    if patterns == [Pattern::Centralized] {
        // The others are of those who read an event while nobody led: one in four would be the leader's by chance.
        let led = counts.led;
        assert!(led * 2 > seen.len(), "the leader began {led} of {batches}");
        let mut connection = redis.connection().await;
        let mut handed = redis::cmd("KEYS");
        handed.arg("cb:handed:system:*");
        let handed: Vec<String> = handed.query_async(&mut connection).await.unwrap();
        assert!(!handed.is_empty(), "nobody handed a batch to the leader");
    }
    for number in 0..batches {
        let seen = seen.get_mut(&id(number)).unwrap();
        seen.exclusive = number % 3 != 2;
        assert_eq!(
            (seen.completed, seen.finished),
            (1, ITEMS),
            "{}",
            id(number)
        );
        counts.takeovers += seen.takeovers;
    }
    let runs = fleet::tally(redis, "cb:runs", "item").await;
    assert_eq!(
        runs.len() as u64,
        batches * ITEMS,
        "items that were never run"
    );
    let mut again: HashMap<&str, usize> = HashMap::new();
    for (item, count) in &runs {
        let (batch, _) = std::str::from_utf8(item).unwrap().split_once('/').unwrap();
        *again.entry(batch).or_default() += *count as usize - 1;
    }
    for (batch, again) in again {
        counts.again += again;
        // A fanned-out item is run again when its own worker dies.
        let seen = &seen[batch];
        let bound = seen.takeovers * REPEATED;
        assert!(
            !seen.exclusive || again <= bound,
            "{batch}: {again} of {bound}"
        );
    }
    let effects = fleet::tally(redis, "cb:events:effect", "data").await;
    counts.stale = effects.values().map(|count| u64::from(*count) - 1).sum();
    assert_eq!(counts.stale, 0, "an effect was stored twice");
    assert_eq!(effects.len() as u64, batches * ITEMS / 50 * 49);
    let replies = fleet::tally(redis, "cb:reply:torture", "status").await;
    let known = [&b"ok"[..], b"aborted"];
    assert!(
        replies.keys().all(|status| known.contains(&&**status)),
        "{replies:?}"
    );
    counts.aborted = replies.get(&b"aborted"[..]).copied().unwrap_or(0) as usize;
    assert_eq!(all(redis, "cb:dead:system").await, []);
    assert_eq!(fleet::pending(redis, "cb:events:system").await, 0);
    counts
}
