//! Rows that handlers insert, each once: one after the other, many transactions at a time, and 500 in a transaction.

use super::figure::{Figure, Goal};
use super::handlers::worker;
use super::meter::Sample;
use super::rig::Rig;
use crate::bench::load::Race;
use anyhow::Context as _;
use convoke::sqlx::postgres::PgPoolOptions;
use convoke::sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use convoke::sqlx::{self, PgPool, SqlitePool};
use convoke::worker::builder::Builder;
use convoke::{Batch, Batches, Context, HandlerError, Policy, ledger};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

const ONE: &str = "one at a time";
const SPREAD: &str = "64 at a time";
const MANY: &str = "500 an insert";
/// Rows of a batch.
const BATCH: usize = 500;
/// How many rows fewer are inserted one at a time, and 64 at a time.
const FEWER: [u64; 2] = [100, 20];

#[derive(Clone, Deserialize, JsonSchema)]
struct Row {
    n: u64,
    text: String,
}

/// A database, and the table that rows go to.
#[derive(Clone)]
enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

async fn insert(context: Context, row: Row) -> Result<(), HandlerError> {
    context.state::<Arc<Race>>()?.take(1);
    let n = row.n as i64;
    match context.state::<Pool>()? {
        Pool::Sqlite(pool) => {
            let insert = sqlx::query("INSERT INTO convoke_bench (n, text) VALUES (?, ?)");
            let once = context.once(pool, async |connection| {
                insert.bind(n).bind(&row.text).execute(connection).await?;
                Ok(())
            });
            once.await
        }
        Pool::Postgres(pool) => {
            let insert = sqlx::query("INSERT INTO convoke_bench (n, text) VALUES ($1, $2)");
            let once = context.once(pool, async |connection| {
                insert.bind(n).bind(&row.text).execute(connection).await?;
                Ok(())
            });
            once.await
        }
    }
}

async fn insert_many(
    batch: Batch,
    rows: Vec<Row>,
) -> Result<Vec<Result<(), HandlerError>>, HandlerError> {
    let race = batch.state::<Arc<Race>>()?;
    race.take(rows.len() as u64);
    match batch.state::<Pool>()? {
        Pool::Sqlite(pool) => {
            let once = batch.once(pool, async |connection, new: Vec<usize>| {
                for at in &new {
                    let row = &rows[*at];
                    let insert = sqlx::query("INSERT INTO convoke_bench (n, text) VALUES (?, ?)");
                    let insert = insert.bind(row.n as i64).bind(&row.text);
                    insert.execute(&mut *connection).await?;
                }
                Ok(new.iter().map(|_| Ok(())).collect())
            });
            once.await
        }
        Pool::Postgres(pool) => {
            let once = batch.once(pool, async |connection, new: Vec<usize>| {
                let numbers: Vec<i64> = new.iter().map(|at| rows[*at].n as i64).collect();
                let texts: Vec<&str> = new.iter().map(|at| rows[*at].text.as_str()).collect();
                let insert = "INSERT INTO convoke_bench (n, text) SELECT * FROM unnest($1::bigint[], $2::text[])";
                let insert = sqlx::query(insert).bind(numbers).bind(texts);
                insert.execute(connection).await?;
                Ok(new.iter().map(|_| Ok(())).collect())
            });
            once.await
        }
    }
}

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<()> {
    let dir = std::env::temp_dir().join(format!("convoke-bench-{:08x}", fastrand::u32(..)));
    std::fs::create_dir(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    let options = SqliteConnectOptions::new()
        .filename(dir.join("bench.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let pool = SqlitePoolOptions::new().max_connections(1);
    let measured = async {
        let pool = pool.connect_with(options).await?;
        ledger::migrate(&pool).await?;
        let table = "CREATE TABLE convoke_bench (n integer, text text)";
        sqlx::query(table).execute(&pool).await?;
        compare(rig, "SQLite", Pool::Sqlite(pool.clone()), None).await?;
        pool.close().await;
        anyhow::Ok(())
    };
    let measured = measured.await;
    std::fs::remove_dir_all(&dir).ok();
    measured?;
    if !rig.database.is_postgres() {
        if !rig.output.is_json() {
            let more =
                "\nbatch: with CONVOKE_DATABASE_URL=postgres://… PostgreSQL is measured, too";
            rig.output.line(more)?;
        }
        return Ok(());
    }
    let pool = PgPoolOptions::new().max_connections(16);
    let pool = pool.connect(rig.database.expose()).await?;
    ledger::migrate(&pool).await?;
    let table = "CREATE TABLE IF NOT EXISTS convoke_bench (n bigint, text text)";
    sqlx::query(table).execute(&pool).await?;
    let goal = Some(Goal::AtLeast(20.0));
    let measured = compare(rig, "PostgreSQL", Pool::Postgres(pool.clone()), goal).await;
    sqlx::query("DROP TABLE convoke_bench")
        .execute(&pool)
        .await?;
    measured
}

async fn compare(rig: &Rig, name: &str, pool: Pool, goal: Option<Goal>) -> anyhow::Result<()> {
    let load = rig.load(1, Some(64));
    let events = if rig.plan.quick { 2000 } else { 100_000 };
    let batches = Batches::of(BATCH).within(Duration::from_millis(10));
    let one = async |side, events: u64| -> anyhow::Result<Sample> {
        let handled = |builder: Builder, kind: &str| {
            let builder = builder.state(pool.clone());
            match side {
                ONE => builder.handler_with(kind, insert, Policy::new().concurrency(1)),
                SPREAD => builder.handler(kind, insert),
                _ => builder.batch_handler(kind, insert_many, batches),
            }
        };
        let events = match side {
            ONE => events.div_ceil(FEWER[0]),
            SPREAD => events.div_ceil(FEWER[1]),
            _ => events,
        };
        worker(rig, &load, events, handled).await
    };
    let [single, spread, many] = rig.rounds([ONE, SPREAD, MANY], events, one).await?;
    let sides = [(ONE, &single), (SPREAD, &spread), (MANY, &many)];
    rig.tell(
        Figure::new(
            "batch",
            format!("rows into {name}"),
            "events/s",
            events,
            &sides,
        )
        .ratio(
            "speed, 500 an insert / one at a time",
            &many,
            &single,
            |s| s.value,
            goal,
        )
        .ratio(
            "speed, 500 an insert / 64 at a time",
            &many,
            &spread,
            |s| s.value,
            None,
        ),
    )
}
