//! A handler's SQL takes effect once, however often its event is run. Here it is SQLite; PostgreSQL goes the
//! same way.
//!
//!     cargo run --example once -- redis://127.0.0.1

use convoke::sqlx::{self, SqlitePool};
use convoke::{Client, Context, Event, HandlerError, State, Worker, ledger};
use tokio_util::sync::CancellationToken;

async fn charge(
    context: Context,
    cents: i64,
    pool: State<SqlitePool>,
) -> Result<i64, HandlerError> {
    println!("runs");
    let update = "UPDATE account SET balance = balance - ? RETURNING balance";
    // The effect and the event's id are one transaction.
    context
        .once(&pool, async |transaction| {
            let left = sqlx::query_scalar(update).bind(cents);
            Ok(left.fetch_one(transaction).await?)
        })
        .await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("a Redis URL is missing")?;
    let file = std::env::temp_dir().join(format!("convoke-once-{}.db", std::process::id()));
    let pool = SqlitePool::connect(&format!("sqlite:{}?mode=rwc", file.display())).await?;
    // What `convoke ledger migrate` does.
    ledger::migrate(&pool).await?;
    let table = sqlx::query("CREATE TABLE account AS SELECT 100 AS balance");
    table.execute(&pool).await?;

    let worker = Worker::builder()
        .redis(&url)
        .handler("account.charge", charge)
        .state(pool);
    let drain = CancellationToken::new();
    let working = tokio::spawn(worker.build()?.run_until(drain.clone()));
    let client = Client::connect(url).await?;
    // A publisher that does not know whether its first try arrived.
    for _ in 0..2 {
        let event = Event::new("account.charge", &30).id("order-4711");
        println!("{} left", client.ask_with::<i64>(event).await?);
    }
    drain.cancel();
    working.await??;
    std::fs::remove_file(file)?;
    Ok(())
}
