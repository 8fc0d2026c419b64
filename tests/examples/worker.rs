//! A worker: one handler, run as its policy says, until SIGTERM or Ctrl-C; then it finishes what runs.
//!
//! Its settings are those of the program `convoke`: `CONVOKE_REDIS_URL`, `CONVOKE_ID`, or a file that
//! `CONVOKE_CONFIG` names.
//!
//!     cargo run --example worker

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
    let policy = Policy::new().timeout(Duration::from_secs(5)).concurrency(8);
    Worker::from_env()?
        .handler_with("image.resize", resize, policy)
        .run()
        .await?;
    Ok(())
}
