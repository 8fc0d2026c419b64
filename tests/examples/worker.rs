//! A worker: one handler, run as its policy says, until SIGTERM or Ctrl-C; then it finishes what runs.
//!
//!     cargo run --example worker -- redis://127.0.0.1

use convoke::{Context, HandlerError, Policy, Worker};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Deserialize, JsonSchema)]
struct Resize {
    width: u32,
}

#[derive(Serialize, JsonSchema)]
struct Resized {
    pixels: u32,
}

async fn resize(context: Context, job: Resize) -> Result<Resized, HandlerError> {
    if job.width > 10_000 {
        return Err(HandlerError::invalid_argument("width: more than 10000"));
    }
    println!(
        "{}: {} wide",
        context.event().subject().unwrap_or("-"),
        job.width
    );
    let resized = Resized {
        pixels: job.width * job.width,
    };
    // Stored together with the acknowledgement, or not at all.
    context.publish("archive.keep", &resized)?;
    Ok(resized)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("a Redis URL is missing")?;
    let policy = Policy::new().timeout(Duration::from_secs(5)).concurrency(8);
    Worker::builder()
        .redis(url)
        .handler_with("image.resize", resize, policy)
        .run()
        .await?;
    Ok(())
}
