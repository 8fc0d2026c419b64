//! A service writes to its database and says so, in one transaction: a worker publishes what was
//! committed, and nothing that was rolled back.
//!
//!     cargo run --example outbox -- redis://127.0.0.1

use convoke::ledger::Database;
use convoke::ledger::outbox::Post;
use convoke::settings::DatabaseUrl;
use convoke::sqlx::{self, Sqlite, SqlitePool};
use convoke::{Context, HandlerError, Settings, State, Worker};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

type Seen = UnboundedSender<u32>;
type Failure = Box<dyn std::error::Error>;

async fn placed(_: Context, order: u32, seen: State<Seen>) -> Result<(), HandlerError> {
    Ok(seen.send(order)?)
}

async fn place(pool: &SqlitePool, order: u32, is_paid: bool) -> Result<(), Failure> {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    let insert = sqlx::query("INSERT INTO orders VALUES (?)").bind(order);
    insert.execute(&mut *transaction).await?;
    let told = Post::new("order.placed", &order).subject(order.to_string());
    told.insert::<Sqlite>(&mut transaction).await?;
    match is_paid {
        true => transaction.commit().await?,
        false => transaction.rollback().await?,
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let url = std::env::args().nth(1).ok_or("a Redis URL is missing")?;
    let file = std::env::temp_dir().join(format!("convoke-outbox-{}.db", std::process::id()));
    let settings = Settings {
        database_url: DatabaseUrl::new(format!("sqlite:{}", file.display())),
        ..Settings::default()
    };
    Database::new(&settings.database_url)?.migrate().await?;
    let pool = SqlitePool::connect(settings.database_url.expose()).await?;
    let table = sqlx::query("CREATE TABLE orders (id INTEGER)");
    table.execute(&pool).await?;
    place(&pool, 1, false).await?;
    place(&pool, 2, true).await?;

    let (seen, mut orders): (Seen, _) = unbounded_channel();
    let builder = Worker::builder().settings(settings).redis(url);
    let worker = builder.handler("order.placed", placed).state(seen);
    let drain = CancellationToken::new();
    let working = tokio::spawn(worker.build()?.run_until(drain.clone()));
    let order = orders.recv().await.unwrap_or_default();
    println!("order {order} was placed");
    drain.cancel();
    working.await??;
    std::fs::remove_file(file)?;
    Ok(())
}
