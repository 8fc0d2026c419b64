//! Databases and workers that are killed under load.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

use convoke::client::publish::{Outgoing, PublishError};
use convoke::connect::connector::Connector;
use convoke::ledger::fact::Fact;
use convoke::ledger::fill::{Filler, sources};
use convoke::ledger::history::Filter;
use convoke::protocol::event::EntryId;
use convoke::protocol::json;
use convoke::protocol::keys::Keys;
use convoke::settings::{DatabaseUrl, RedisUrl};
use convoke::sqlx::{self, Row};
use convoke::streams::read::entries_of;
use convoke::{Batch, Batches, Context, HandlerError};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::fleet::{self, Fleet, Work};
use support::store::Store;
use support::{Redis, torture};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[test]
fn a_worker_process() {
    fleet::worker_process(|worker| {
        let database = std::env::var(fleet::DATABASE).unwrap();
        worker
            .state(Pool::open(&database))
            .handler("account.charge", charge)
            .batch_handler(
                "account.many",
                charge_many,
                Batches::of(50).within(Duration::from_millis(20)),
            )
            .handler("account.broken", broken)
    });
}

/// A pool of the handler's own.
enum Pool {
    Sqlite(sqlx::SqlitePool),
    Postgres(sqlx::PgPool),
}

impl Pool {
    fn open(url: &str) -> Self {
        if DatabaseUrl::new(url).is_postgres() {
            let options = sqlx::postgres::PgPoolOptions::new();
            Pool::Postgres(options.connect_lazy(url).unwrap())
        } else {
            let options = sqlx::sqlite::SqlitePoolOptions::new();
            Pool::Sqlite(options.max_connections(1).connect_lazy(url).unwrap())
        }
    }
}

/// Writes a row, once.
async fn charge(context: Context, work: Work) -> Result<u64, HandlerError> {
    let event = context.event().id();
    let pause = Duration::from_millis(work.ms);
    match context.state::<Pool>()? {
        Pool::Sqlite(pool) => {
            let insert = "INSERT INTO effects (event) VALUES (?)";
            let once = context.once(pool, async |connection| {
                sqlx::query(insert).bind(event).execute(connection).await?;
                Ok(work.n)
            });
            once.await?;
        }
        Pool::Postgres(pool) => {
            let insert = "INSERT INTO effects (event) VALUES ($1)";
            let once = context.once(pool, async |connection| {
                sqlx::query(insert).bind(event).execute(connection).await?;
                tokio::time::sleep(pause).await;
                Ok(work.n)
            });
            once.await?;
        }
    }
    // Time to die between the effect and the commit on the bus.
    tokio::time::sleep(pause).await;
    Ok(work.n)
}

/// Writes the rows of all that are new, in one transaction.
async fn charge_many(
    batch: Batch,
    work: Vec<Work>,
) -> Result<Vec<Result<u64, HandlerError>>, HandlerError> {
    let pause = Duration::from_millis(work[0].ms);
    let ids = batch.events().iter().map(|context| context.event().id());
    let ids: Vec<String> = ids.collect();
    let done = match batch.state::<Pool>()? {
        Pool::Sqlite(pool) => {
            let once = batch.once(pool, async |connection, new: Vec<usize>| {
                for at in &new {
                    let insert = sqlx::query("INSERT INTO effects (event) VALUES (?)");
                    insert.bind(&ids[*at]).execute(&mut *connection).await?;
                }
                Ok(new.iter().map(|at| Ok(work[*at].n)).collect())
            });
            once.await?
        }
        Pool::Postgres(pool) => {
            let once = batch.once(pool, async |connection, new: Vec<usize>| {
                let rows: Vec<&String> = new.iter().map(|at| &ids[*at]).collect();
                let insert = "INSERT INTO effects (event) SELECT * FROM unnest($1::text[])";
                let insert = sqlx::query(insert).bind(rows);
                insert.execute(connection).await?;
                tokio::time::sleep(pause).await;
                Ok(new.iter().map(|at| Ok(work[*at].n)).collect())
            });
            once.await?
        }
    };
    // Time to die between the effect and the commit on the bus.
    tokio::time::sleep(pause).await;
    Ok(done)
}

async fn broken(_: Context, _: u64) -> Result<u64, HandlerError> {
    Err(HandlerError::internal("broken").permanent())
}

/// Publishes until told to stop; every fifth event has a second entry, as of a publisher that forgot that
/// it published it. How many events, and how many entries besides.
async fn publish(redis: Redis, kind: &'static str, stop: CancellationToken) -> (Redis, u64, u64) {
    let client = fleet::client(&redis);
    let (mut n, mut besides) = (0, 0);
    while !stop.is_cancelled() {
        let event = Outgoing::new(kind, &Work { n, ms: n % 8 }).id(format!("e-{n}"));
        match client.publish(&event.clone().dedup(true)).await {
            Ok(_) => {
                if n.is_multiple_of(5) && client.publish(&event).await.is_ok() {
                    besides += 1;
                }
                n += 1;
            }
            Err(PublishError::Unknown { .. } | PublishError::Rejected { .. }) => {}
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    (redis, n, besides)
}

async fn effects(store: &Store) -> HashMap<String, i64> {
    let query = "SELECT event, count(*) FROM effects GROUP BY event";
    match store {
        Store::File(_) => {
            let pool = sqlx::SqlitePool::connect(store.url().expose())
                .await
                .unwrap();
            let rows = sqlx::query(query).fetch_all(&pool).await.unwrap();
            rows.iter().map(|row| (row.get(0), row.get(1))).collect()
        }
        Store::Server(_) => {
            let pool = sqlx::PgPool::connect(store.url().expose()).await.unwrap();
            let rows = sqlx::query(query).fetch_all(&pool).await.unwrap();
            rows.iter().map(|row| (row.get(0), row.get(1))).collect()
        }
    }
}

/// How many entries a stream got so far: of many it keeps the last ones.
async fn added(redis: &Redis, stream: &str) -> u64 {
    let mut connection = redis.connection().await;
    let info = redis::cmd("XINFO")
        .arg("STREAM")
        .arg(stream)
        .query_async::<HashMap<String, redis::Value>>(&mut connection)
        .await;
    let added = info.ok().and_then(|mut info| info.remove("entries-added"));
    added.map_or(0, |added| redis::from_redis_value(added).unwrap())
}

async fn length(redis: &Redis, stream: &str) -> u64 {
    let mut connection = redis.connection().await;
    let length = redis::cmd("XLEN")
        .arg(stream)
        .query_async(&mut connection)
        .await;
    length.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_effect_happens_once_however_often_worker_and_database_are_killed() {
    let kills = torture::size("TORTURE_LEDGER_KILLS", 25, 250);
    killed("account.charge", kills).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_of_a_batch_has_its_row_once_however_often_worker_and_database_are_killed() {
    let kills = torture::size("TORTURE_BATCH_KILLS", 12, 100);
    killed("account.many", kills).await;
}

async fn killed(kind: &'static str, kills: u64) {
    fastrand::seed(torture::seed());
    for mut store in Store::both() {
        store.database().migrate().await.unwrap();
        store.run("CREATE TABLE effects (event text)").await;
        let redis = Redis::start();
        let mut fleet = Fleet::with_database(&redis, 2, &store.url());
        let stop = CancellationToken::new();
        let publishing = tokio::spawn(publish(redis, kind, stop.clone()));
        let (began, mut of_database) = (Instant::now(), 0);
        for kill in 0..kills {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(100..900))).await;
            match &mut store {
                Store::Server(server) if kill % 2 == 0 => {
                    of_database += 1;
                    server.kill();
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..300))).await;
                    server.restart();
                }
                _ => fleet.kill(fastrand::usize(..fleet.len()), kill % 3 == 0),
            }
        }
        stop.cancel();
        let (redis, events, besides) = publishing.await.unwrap();
        // On a slow disk that takes long, and goes on.
        let mut done = 0;
        while done < events + besides {
            support::until("some more events are done", || async {
                added(&redis, "cb:results:account").await > done
            })
            .await;
            done = added(&redis, "cb:results:account").await;
        }
        fleet.drain();
        let effects = effects(&store).await;
        let repeated: Vec<_> = effects.iter().filter(|(_, rows)| **rows != 1).collect();
        assert!(
            repeated.is_empty(),
            "effects that happened more than once: {repeated:?}"
        );
        assert_eq!(effects.len() as u64, events, "an effect for each event");
        assert_eq!(length(&redis, "cb:dead:account").await, 0);
        let database = store.database();
        torture::Report::default()
            .fault(of_database, "kills of the ledger's database")
            .fault(kills - of_database, "kills of workers with a ledger")
            .event(events, "effects in the ledger, one row each")
            .event(besides, "second entries of an event without an effect")
            .note(format!(
                "{}: kills took {:.0} s",
                database.kind(),
                began.elapsed().as_secs_f64()
            ))
            .tell(database.kind());
    }
}

/// Facts and dead letters at a steady rate.
async fn happen(redis: Redis, stop: CancellationToken) -> Redis {
    let client = fleet::client(&redis);
    let mut connection = redis.connection().await;
    let mut n = 0u64;
    while !stop.is_cancelled() {
        let data = json::from_json(&serde_json::json!({"task_id": format!("t-{n}"), "n": n}));
        let mut told = redis::cmd("XADD");
        told.arg("cb:broadcast")
            .arg("*")
            .arg("type")
            .arg("task.completed")
            .arg("data")
            .arg(data);
        told.exec_async(&mut connection).await.unwrap();
        if n.is_multiple_of(5) {
            let event = Outgoing::new("account.broken", &n).id(format!("b-{n}"));
            client.publish(&event).await.unwrap();
        }
        n += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    redis
}

async fn entries(redis: &Redis, stream: &str) -> BTreeSet<(String, String)> {
    let reply = redis::cmd("XRANGE")
        .arg(&[stream, "-", "+"])
        .query_async(&mut redis.connection().await)
        .await
        .unwrap();
    let entries = entries_of(reply).unwrap();
    entries
        .iter()
        .map(|entry| (stream.to_owned(), entry.id.to_string()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_is_complete_after_outages_and_no_worker_stopped() {
    let outages = torture::size("TORTURE_LEDGER_OUTAGES", 10, 50);
    fastrand::seed(torture::seed());
    for mut store in Store::both() {
        let redis = Redis::start();
        let mut fleet = Fleet::with_database(&redis, 2, &store.url());
        let stop = CancellationToken::new();
        let happening = tokio::spawn(happen(redis, stop.clone()));
        for outage in 0..outages {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(200..800))).await;
            match &mut store {
                Store::Server(server) => {
                    server.kill();
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..600))).await;
                    server.restart();
                }
                // There is no server: what writes the file is killed.
                Store::File(_) => fleet.kill(fastrand::usize(..fleet.len()), outage % 2 == 0),
            }
            assert!(fleet.all_run());
        }
        stop.cancel();
        let redis = happening.await.unwrap();
        let database = store.database();
        support::until("every dead letter is there", || async {
            let mut connection = redis.connection().await;
            let pending: redis::Value = redis::cmd("XPENDING")
                .arg("cb:events:account")
                .arg("workers")
                .query_async(&mut connection)
                .await
                .unwrap();
            matches!(pending, redis::Value::Array(parts) if parts[0] == redis::Value::Int(0))
        })
        .await;
        let mut happened = entries(&redis, "cb:broadcast").await;
        happened.extend(entries(&redis, "cb:dead:account").await);
        let written = || async {
            let facts = database.history(&Filter::default(), 1_000_000).await;
            let id = |fact: &Fact| EntryId {
                ms: fact.at as u64,
                seq: fact.seq as u64,
            };
            let place = |fact: &Fact| (fact.stream.clone(), id(fact).to_string());
            facts.unwrap().iter().map(place).collect::<Vec<_>>()
        };
        // What a killed worker held is taken over before long.
        support::until("the ledger is complete", || async {
            let written: BTreeSet<_> = written().await.into_iter().collect();
            happened.is_subset(&written)
        })
        .await;
        assert!(fleet.all_run());
        let written = written().await;
        let unique: BTreeSet<_> = written.iter().collect();
        assert_eq!(unique.len(), written.len(), "each fact once");
        fleet.drain();
        torture::Report::default()
            .fault(outages, "outages of the ledger")
            .event(happened.len() as u64, "facts in the ledger, once each")
            .tell(database.kind());
    }
}

fn resident_mib() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let resident: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    resident * 4096 / (1 << 20)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_caught_up_with_bounded_memory() {
    let facts = torture::size("TORTURE_LEDGER_FACTS", 20_000, 100_000);
    for store in Store::both() {
        let redis = Redis::start();
        let mut connection = redis.connection().await;
        for from in (0..facts).step_by(1000) {
            let mut pipe = redis::pipe();
            for n in from..(from + 1000).min(facts) {
                let data = json::from_json(&serde_json::json!({
                    "batch_id": format!("b-{}", n / 100), "processor_id": "w-1", "items_processed": n % 100,
                    "items_failed": 0, "total": 100, "fence": 1
                }));
                pipe.cmd("XADD")
                    .arg("cb:broadcast")
                    .arg("*")
                    .arg("type")
                    .arg("batch.progress");
                pipe.arg("time")
                    .arg(1_700_000_000_000 + n)
                    .arg("data")
                    .arg(data)
                    .ignore();
            }
            pipe.exec_async(&mut connection).await.unwrap();
        }
        let keys = Keys::new("cb").unwrap();
        let database = store.database();
        database.migrate().await.unwrap();
        let drain = CancellationToken::new();
        let counts = Arc::<convoke::ledger::fill::Counts>::default();
        let filler = Filler {
            connector: Connector::new(&RedisUrl::new(redis.url()), 2).unwrap(),
            keys: keys.clone(),
            consumer: "w-1".into(),
            database: database.clone(),
            sources: watch::channel(sources(&keys, &[], &[])).1,
            claim_idle: Duration::from_secs(60),
            max_payload: 1 << 20,
            counts: Arc::clone(&counts),
            drain: drain.clone(),
        };
        let before = resident_mib();
        let began = Instant::now();
        let running = tokio::spawn(filler.run());
        let peak = AtomicU64::new(before);
        support::until("the backlog is written", || async {
            peak.fetch_max(resident_mib(), Ordering::Relaxed);
            counts.acknowledged.load(Ordering::Relaxed) >= facts
        })
        .await;
        let peak = peak.into_inner();
        let rate = facts as f64 / began.elapsed().as_secs_f64();
        drain.cancel();
        running.await.unwrap();
        assert_eq!(database.extent().await.unwrap().facts as u64, facts);
        println!(
            "{}: {facts} facts at {rate:.0}/s; resident {before} MiB before, {peak} MiB at most",
            database.kind()
        );
        assert!(
            peak - before < 64,
            "resident memory grew from {before} to {peak} MiB"
        );
    }
}
