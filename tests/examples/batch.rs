//! A batch: many items of one type, each run by the handler of that type. One worker holds the batch; if it dies,
//! another one goes on where it stopped, and each item counts once.
//!
//!     cargo run --example batch -- redis://127.0.0.1

use convoke::{Client, Context, HandlerError, Worker};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

#[derive(Serialize)]
struct Batch {
    batch_id: &'static str,
    item_type: &'static str,
    items: Vec<u32>,
}

#[derive(Deserialize)]
struct Processed {
    status: String,
    items_processed: u64,
    items_failed: u64,
    failures: Vec<Failure>,
}

#[derive(Deserialize)]
struct Failure {
    index: u64,
    message: String,
}

async fn square(_: Context, side: u32) -> Result<u32, HandlerError> {
    let too_large = || HandlerError::invalid_argument("too large");
    side.checked_mul(side).ok_or_else(too_large)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("a Redis URL is missing")?;
    let worker = Worker::builder().redis(&url).handler("area.square", square);
    let drain = CancellationToken::new();
    let working = tokio::spawn(worker.build()?.run_until(drain.clone()));

    let client = Client::connect(url).await?;
    let batch = Batch {
        batch_id: "squares-1",
        item_type: "area.square",
        items: vec![3, 4, 70_000],
    };
    let done: Processed = client.ask("system.batch.process", &batch).await?;
    let (well, failed) = (done.items_processed, done.items_failed);
    println!("{}: {well} went well, {failed} failed", done.status);
    for Failure { index, message } in done.failures {
        println!("item {index}: {message}");
    }
    drain.cancel();
    Ok(working.await??)
}
