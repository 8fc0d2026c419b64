//! A handler's own SQL takes effect once.

use crate::rig::{Rig, Store};
use crate::support;
use convoke::ledger::{self, dialect::Dialect};
use convoke::protocol::error::Code;
use convoke::sqlx::{self, PgPool, Pool, Postgres, Row, Sqlite, SqlitePool};
use convoke::{Batch, Context, HandlerError, State, testing};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

async fn postgres(store: &Store) -> PgPool {
    store.run("CREATE TABLE effects (event text)").await;
    let pool = PgPool::connect(store.url().expose()).await.unwrap();
    ledger::migrate(&pool).await.unwrap();
    pool
}

async fn sqlite(store: &Store) -> SqlitePool {
    store.database().migrate().await.unwrap();
    store.run("CREATE TABLE effects (event text)").await;
    SqlitePool::connect(store.url().expose()).await.unwrap()
}

fn run_of(rig: &Rig, id: &str) -> Context {
    let event = testing::event(&()).kind("account.charge").id(id);
    event.settings(rig.settings()).context()
}

async fn both(test: impl AsyncFn(&Rig, Either)) {
    for store in Store::both() {
        let rig = Rig::new(store).await;
        let pool = match &rig.store {
            Store::File(_) => Either::Sqlite(sqlite(&rig.store).await),
            Store::Server(_) => Either::Postgres(postgres(&rig.store).await),
        };
        test(&rig, pool).await;
    }
}

enum Either {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Either {
    /// Charges: one row, and a number that says which run it was.
    async fn charge(&self, context: &Context, runs: &AtomicU32) -> Result<u32, HandlerError> {
        match self {
            Either::Sqlite(pool) => {
                charge::<Sqlite>(context, pool, "INSERT INTO effects VALUES (?)", runs).await
            }
            Either::Postgres(pool) => {
                charge::<Postgres>(context, pool, "INSERT INTO effects VALUES ($1)", runs).await
            }
        }
    }

    /// Inserts the rows of those that are new, except of those that fail; which were new.
    async fn charge_many(&self, batch: &Batch, fails: &[usize], seen: &Seen) -> Many {
        match self {
            Either::Sqlite(pool) => {
                charge_many::<Sqlite>(batch, pool, "INSERT INTO effects VALUES (?)", fails, seen)
                    .await
            }
            Either::Postgres(pool) => {
                charge_many::<Postgres>(batch, pool, "INSERT INTO effects VALUES ($1)", fails, seen)
                    .await
            }
        }
    }

    async fn rows(&self) -> i64 {
        let query = "SELECT count(*) FROM effects";
        match self {
            Either::Sqlite(pool) => sqlx::query(query).fetch_one(pool).await.unwrap().get(0),
            Either::Postgres(pool) => sqlx::query(query).fetch_one(pool).await.unwrap().get(0),
        }
    }
}

type Seen = Mutex<Vec<Vec<usize>>>;
type Many = Result<Vec<Result<usize, HandlerError>>, HandlerError>;

async fn charge_many<DB: Dialect>(
    batch: &Batch,
    pool: &Pool<DB>,
    insert: &'static str,
    fails: &[usize],
    seen: &Seen,
) -> Many
where
    for<'c> &'c mut DB::Connection: sqlx::Executor<'c, Database = DB>,
    DB::Arguments: sqlx::IntoArguments<DB>,
    for<'q> String: sqlx::Encode<'q, DB> + sqlx::Type<DB>,
{
    batch
        .once(pool, async |connection, new: Vec<usize>| {
            seen.lock().unwrap().push(new.clone());
            let mut outcomes = Vec::new();
            for at in new {
                if fails.contains(&at) {
                    outcomes.push(Err(HandlerError::unavailable("not this one")));
                    continue;
                }
                let id = batch.events()[at].event().id();
                sqlx::query(insert)
                    .bind(id)
                    .execute(&mut *connection)
                    .await?;
                outcomes.push(Ok(at));
            }
            Ok(outcomes)
        })
        .await
}

async fn charge<DB: Dialect>(
    context: &Context,
    pool: &Pool<DB>,
    insert: &'static str,
    runs: &AtomicU32,
) -> Result<u32, HandlerError>
where
    for<'c> &'c mut DB::Connection: sqlx::Executor<'c, Database = DB>,
    DB::Arguments: sqlx::IntoArguments<DB>,
    for<'q> String: sqlx::Encode<'q, DB> + sqlx::Type<DB>,
{
    let id = context.event().id();
    context
        .once(pool, async |connection: &mut DB::Connection| {
            sqlx::query(insert).bind(id).execute(connection).await?;
            Ok(runs.fetch_add(1, Ordering::Relaxed) + 1)
        })
        .await
}

#[tokio::test]
async fn a_second_run_changes_nothing_and_has_the_first_ones_result() {
    both(async |rig, pool| {
        let runs = AtomicU32::new(0);
        for _ in 0..3 {
            let result = pool.charge(&run_of(rig, "e-1"), &runs).await.unwrap();
            assert_eq!(result, 1);
        }
        assert_eq!(pool.charge(&run_of(rig, "e-2"), &runs).await.unwrap(), 2);
        assert_eq!((pool.rows().await, runs.into_inner()), (2, 2));
    })
    .await;
}

fn batch_of(rig: &Rig, ids: &[&str]) -> Batch {
    Batch::new(ids.iter().map(|id| run_of(rig, id)).collect())
}

fn oks(outcomes: Many) -> Vec<Option<usize>> {
    outcomes.unwrap().into_iter().map(Result::ok).collect()
}

#[tokio::test]
async fn an_id_that_no_database_stores_fails_alone() {
    both(async |rig, pool| {
        let seen = Seen::default();
        let batch = batch_of(rig, &["a", "n\0l", "b"]);
        let outcomes = pool.charge_many(&batch, &[], &seen).await.unwrap();
        let error = outcomes[1].as_ref().unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument);
        assert_eq!(oks(Ok(outcomes)), [Some(0), None, Some(2)]);
        // The batch has taken the events' own effects for its own.
        let second = pool.charge(&batch.events()[0], &AtomicU32::new(0)).await;
        assert!(second.unwrap_err().message.contains("a second time"));
    })
    .await;
}

#[tokio::test]
async fn each_event_of_a_batch_takes_effect_once_and_one_that_failed_may_be_tried_again() {
    both(async |rig, pool| {
        let seen = Seen::default();
        // One comes twice in it.
        let first = batch_of(rig, &["a", "b", "a", "c"]);
        let outcomes = oks(pool.charge_many(&first, &[3], &seen).await);
        assert_eq!(outcomes, [Some(0), Some(1), Some(0), None]);
        assert_eq!(pool.rows().await, 2);
        // A second call in one run would take the first one's results for its own.
        let refused = pool.charge_many(&first, &[], &seen).await.unwrap_err();
        assert_eq!((refused.code, refused.retryable), (Code::Internal, false));
        let second = batch_of(rig, &["c", "d", "b"]);
        let outcomes = oks(pool.charge_many(&second, &[], &seen).await);
        assert_eq!(outcomes, [Some(0), Some(1), Some(1)]);
        assert_eq!(pool.rows().await, 4);
        // Nothing of this one is new.
        let third = batch_of(rig, &["d", "c", "b", "a"]);
        let outcomes = oks(pool.charge_many(&third, &[], &seen).await);
        assert_eq!(outcomes, [Some(1), Some(0), Some(1), Some(0)]);
        assert_eq!(pool.rows().await, 4);
        let seen = seen.into_inner().unwrap();
        assert_eq!(seen, [vec![0, 1, 3], vec![0, 1]]);
    })
    .await;
}

/// An effect whose result may be nothing at all.
async fn maybe<DB: Dialect>(
    batch: &Batch,
    pool: &Pool<DB>,
    runs: &AtomicU32,
) -> Vec<Result<Option<u32>, HandlerError>> {
    let outcomes = batch.once(pool, async |_: &mut DB::Connection, new: Vec<usize>| {
        let numbers = new.iter().map(|_| runs.fetch_add(1, Ordering::Relaxed));
        Ok(numbers.map(|n| Ok((n % 2 == 1).then_some(n))).collect())
    });
    outcomes.await.unwrap()
}

#[tokio::test]
async fn a_result_that_is_nothing_is_told_again_like_every_other_one() {
    both(async |rig, pool| {
        let runs = AtomicU32::new(0);
        for _ in 0..2 {
            let batch = batch_of(rig, &["a", "b", "c", "d"]);
            let outcomes = match &pool {
                Either::Sqlite(pool) => maybe(&batch, pool, &runs).await,
                Either::Postgres(pool) => maybe(&batch, pool, &runs).await,
            };
            let outcomes: Vec<Option<u32>> = outcomes.into_iter().map(Result::unwrap).collect();
            assert_eq!(outcomes, [None, Some(1), None, Some(3)]);
        }
        for _ in 0..2 {
            let context = run_of(rig, "alone");
            let ran = async || {
                runs.fetch_add(1, Ordering::Relaxed);
                Ok(())
            };
            match &pool {
                Either::Sqlite(pool) => context.once(pool, async |_| ran().await).await.unwrap(),
                Either::Postgres(pool) => context.once(pool, async |_| ran().await).await.unwrap(),
            }
        }
        assert_eq!(runs.into_inner(), 5);
    })
    .await;
}

#[tokio::test]
async fn no_plan_of_the_inbox_is_kept_from_when_it_was_empty() {
    let rig = Rig::new(Store::server()).await;
    let all = postgres(&rig.store).await;
    let one = sqlx::postgres::PgPoolOptions::new().max_connections(1);
    let one = one.connect(rig.store.url().expose()).await.unwrap();
    all.close().await;
    let pool = Either::Postgres(one.clone());
    let batch = batch_of(&rig, &["a", "b", "c"]);
    let outcomes = oks(pool.charge_many(&batch, &[], &Seen::default()).await);
    assert_eq!(outcomes, [Some(0), Some(1), Some(2)]);
    let kept: Vec<String> = sqlx::query_scalar("SELECT statement FROM pg_prepared_statements")
        .fetch_all(&one)
        .await
        .unwrap();
    // Such a plan looks through the whole table for each event of a batch: ten seconds for 500 events, seen in a benchmark.
    assert!(kept.iter().any(|it| it.contains("effects")), "{kept:?}");
    assert!(!kept.iter().any(|it| it.starts_with("UPDATE")), "{kept:?}");
}

#[tokio::test]
async fn batches_that_share_events_wait_for_each_other_and_not_in_a_circle() {
    both(async |rig, pool| {
        let seen = Seen::default();
        for round in 0..10 {
            let name = |n: usize| format!("{round}-{n}");
            let ids: Vec<String> = (0..20).map(name).collect();
            let mut ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let there = batch_of(rig, &ids);
            ids.reverse();
            let back = batch_of(rig, &ids);
            let (there, back) = tokio::join!(
                pool.charge_many(&there, &[], &seen),
                pool.charge_many(&back, &[], &seen)
            );
            assert_eq!(oks(there).len() + oks(back).len(), 40);
        }
        assert_eq!(pool.rows().await, 200);
        assert_eq!(seen.into_inner().unwrap().len(), 10);
    })
    .await;
}

#[tokio::test]
async fn without_the_schema_it_is_said_what_to_run_and_the_event_is_not_tried_again() {
    both(async |rig, pool| {
        rig.store.run("DROP TABLE convoke_inbox").await;
        let runs = AtomicU32::new(0);
        let error = pool.charge(&run_of(rig, "e-1"), &runs).await.unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition);
        assert!(
            !error.retryable && error.message.contains("convoke ledger migrate"),
            "{error}"
        );
        assert_eq!(runs.into_inner(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_second_effect_in_one_run_is_refused_and_not_skipped_unseen() {
    both(async |rig, pool| {
        let runs = AtomicU32::new(0);
        for _ in 0..2 {
            let context = run_of(rig, "e-1");
            assert_eq!(pool.charge(&context, &runs).await.unwrap(), 1);
            let refused = pool.charge(&context, &runs).await.unwrap_err();
            assert_eq!((refused.code, refused.retryable), (Code::Internal, false));
        }
        assert_eq!((pool.rows().await, runs.into_inner()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn of_two_effects_at_the_same_time_the_second_is_refused_in_every_order() {
    both(async |rig, pool| {
        let runs = AtomicU32::new(0);
        let context = run_of(rig, "e-1");
        let (first, second) = (pool.charge(&context, &runs), pool.charge(&context, &runs));
        let (first, second) = tokio::join!(first, second);
        assert_eq!(first.unwrap(), 1);
        let refused = second.unwrap_err();
        assert_eq!((refused.code, refused.retryable), (Code::Internal, false));
        assert_eq!((pool.rows().await, runs.into_inner()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn an_effect_that_fails_leaves_nothing_behind_and_may_be_tried_again() {
    both(async |rig, pool| {
        let context = run_of(rig, "e-1");
        for expected in ["at first", "at second"] {
            let failed: Result<u32, _> = match &pool {
                Either::Sqlite(pool) => {
                    context
                        .once(pool, async |connection| {
                            sqlx::query("INSERT INTO effects VALUES ('half')")
                                .execute(connection)
                                .await?;
                            Err(HandlerError::not_found(expected))
                        })
                        .await
                }
                Either::Postgres(pool) => {
                    context
                        .once(pool, async |connection| {
                            sqlx::query("INSERT INTO effects VALUES ('half')")
                                .execute(connection)
                                .await?;
                            Err(HandlerError::not_found(expected))
                        })
                        .await
                }
            };
            assert_eq!(failed.unwrap_err().message, expected);
        }
        assert_eq!(pool.rows().await, 0);
        assert_eq!(pool.charge(&context, &AtomicU32::new(0)).await.unwrap(), 1);
        assert_eq!(pool.rows().await, 1);
    })
    .await;
}

#[tokio::test]
async fn runs_at_the_same_time_wait_for_each_other() {
    both(async |rig, pool| {
        let runs = AtomicU32::new(0);
        let contexts: Vec<Context> = (0..8).map(|_| run_of(rig, "e-1")).collect();
        let all = contexts.iter().map(|context| pool.charge(context, &runs));
        for result in futures_util::future::join_all(all).await {
            assert_eq!(result.unwrap(), 1);
        }
        assert_eq!((pool.rows().await, runs.load(Ordering::Relaxed)), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn a_database_that_is_away_makes_the_event_wait() {
    let mut rig = Rig::new(Store::server()).await;
    let pool = Either::Postgres(
        sqlx::postgres::PgPoolOptions::new()
            .acquire_timeout(Duration::from_secs(1))
            .connect_lazy(rig.store.url().expose())
            .unwrap(),
    );
    rig.store.database().migrate().await.unwrap();
    rig.store.run("CREATE TABLE effects (event text)").await;
    let Store::Server(server) = &mut rig.store else {
        unreachable!()
    };
    server.kill();
    let context = run_of(&rig, "e-1");
    let runs = AtomicU32::new(0);
    let error = pool.charge(&context, &runs).await.unwrap_err();
    assert_eq!((error.code, error.retryable), (Code::Unavailable, true));
    let Store::Server(server) = &mut rig.store else {
        unreachable!()
    };
    server.restart();
    support::until("it runs", || async {
        pool.charge(&context, &runs).await.is_ok()
    })
    .await;
    assert_eq!(pool.rows().await, 1);
}

#[tokio::test]
async fn effects_that_conflict_are_undone_and_may_be_tried_again() {
    let rig = Rig::new(Store::server()).await;
    rig.store.database().migrate().await.unwrap();
    rig.store
        .run("ALTER SYSTEM SET default_transaction_isolation = serializable")
        .await;
    rig.store.run("SELECT pg_reload_conf()").await;
    rig.store
        .run("CREATE TABLE balance AS SELECT 0::bigint AS cents")
        .await;
    let pool = PgPool::connect(rig.store.url().expose()).await.unwrap();
    let conflicts = AtomicU32::new(0);
    // Reads, and writes what follows from it: of two at a time only one may be committed.
    let add = async |n: u32| {
        let context = run_of(&rig, &format!("e-{n}"));
        loop {
            let done = context
                .once(&pool, async |connection| {
                    let read = sqlx::query("SELECT cents FROM balance");
                    let cents: i64 = read.fetch_one(&mut *connection).await?.get(0);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    sqlx::query("UPDATE balance SET cents = $1")
                        .bind(cents + 1)
                        .execute(connection)
                        .await?;
                    Ok(())
                })
                .await;
            match done {
                Ok(()) => return,
                Err(error) => {
                    assert!(
                        error.retryable && error.message.contains("serialize"),
                        "{error}"
                    );
                    conflicts.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    };
    futures_util::future::join_all((0..6).map(add)).await;
    let balance = sqlx::query("SELECT cents FROM balance")
        .fetch_one(&pool)
        .await;
    assert_eq!(balance.unwrap().get::<i64, _>(0), 6);
    assert!(conflicts.into_inner() > 0);
}

#[tokio::test]
async fn an_effect_for_which_there_is_no_room_leaves_its_connection_usable() {
    let rig = Rig::new(Store::file()).await;
    rig.store.database().migrate().await.unwrap();
    rig.store.run("CREATE TABLE effects (event text)").await;
    let one = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
    let pool = one.connect(rig.store.url().expose()).await.unwrap();
    let full: i64 = sqlx::query("PRAGMA page_count")
        .fetch_one(&pool)
        .await
        .unwrap()
        .get(0);
    let limit = |pages: i64| sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
    sqlx::query(limit(full)).execute(&pool).await.unwrap();
    let context = run_of(&rig, "e-1");
    let large = async |connection: &mut sqlx::SqliteConnection| {
        sqlx::query("INSERT INTO effects VALUES (hex(randomblob(100000)))")
            .execute(connection)
            .await?;
        Ok(1)
    };
    let error = context.once(&pool, large).await.unwrap_err();
    assert!(error.retryable && error.message.contains("full"), "{error}");
    sqlx::query(limit(1 << 20)).execute(&pool).await.unwrap();
    assert_eq!(context.once(&pool, large).await.unwrap(), 1);
    assert_eq!(Either::Sqlite(pool).rows().await, 1);
}

#[tokio::test]
async fn a_handlers_test_has_its_database_in_memory_and_the_error_says_what_is_missing() {
    async fn count(
        ctx: Context,
        pieces: i64,
        pool: State<SqlitePool>,
    ) -> Result<i64, HandlerError> {
        let add = sqlx::query("UPDATE stock SET pieces = pieces + ?").bind(pieces);
        ctx.once(&pool, async |transaction| {
            add.execute(&mut *transaction).await?;
            let now = sqlx::query_scalar("SELECT pieces FROM stock");
            Ok(now.fetch_one(transaction).await?)
        })
        .await
    }
    let one = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
    let pool = one.connect("sqlite::memory:").await.unwrap();
    let stock = "CREATE TABLE stock (pieces integer); INSERT INTO stock VALUES (1)";
    sqlx::raw_sql(stock).execute(&pool).await.unwrap();
    let counted = || testing::run(count, &2).id("e-1").state(pool.clone());

    let error = counted().await.result::<i64>().unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition);
    assert!(error.message.contains("ledger::migrate"), "{error}");
    for _ in 0..2 {
        ledger::migrate(&pool).await.unwrap();
        assert_eq!(counted().await.result(), Ok(3));
    }
}
