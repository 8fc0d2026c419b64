//! A task: work that is assigned to one worker with room for it, is assigned again if that worker dies, and
//! can be looked at until it ends. An event is for what is over in seconds, a task for what takes longer.
//!
//!     cargo run --example tasks -- redis://127.0.0.1

use convoke::{Client, Context, HandlerError, Worker};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

#[derive(Serialize)]
struct Create {
    /// The event type whose handler runs it.
    kind: &'static str,
    payload: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
struct Created {
    task_id: String,
}

#[derive(Deserialize)]
struct Task {
    status: String,
    result: Option<u64>,
}

async fn sum(_: Context, numbers: Vec<u64>) -> Result<u64, HandlerError> {
    Ok(numbers.iter().sum())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("a Redis URL is missing")?;
    let worker = Worker::builder().redis(&url).handler("math.sum", sum);
    let drain = CancellationToken::new();
    let working = tokio::spawn(worker.build()?.run_until(drain.clone()));

    let client = Client::connect(url).await?;
    let task = Create {
        kind: "math.sum",
        payload: vec![20, 22],
    };
    let created: Created = client.ask("task.create", &task).await?;
    loop {
        let task: Task = client.ask("task.get", &created).await?;
        if let Some(result) = task.result {
            println!("{}: {result}", task.status);
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drain.cancel();
    Ok(working.await??)
}
