//! A vote: instances decide something together. The first vote fixes who may vote; what more than half of
//! them want is the decision.
//!
//!     cargo run --example vote -- redis://127.0.0.1

use convoke::{Client, Settings, Worker};
use serde::Deserialize;
use std::collections::HashMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

#[derive(Deserialize)]
struct Voted {
    status: String,
    vote_count: u32,
    electorate: u32,
    final_decision: Option<String>,
}

#[derive(Deserialize)]
struct State {
    instances_total: u32,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("a Redis URL is missing")?;
    let drain = CancellationToken::new();
    let mut working = Vec::new();
    for id in ["a", "b", "c"] {
        let settings = Settings {
            id: id.into(),
            ..Settings::default()
        };
        let worker = Worker::builder().settings(settings).redis(&url).build()?;
        working.push(tokio::spawn(worker.run_until(drain.clone())));
    }
    let client = Client::connect(url).await?;
    let mut there = 0;
    while there < 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let state: State = client.ask("system.get_state", &()).await?;
        there = state.instances_total;
    }
    for (voter, value) in [("a", "blue"), ("b", "green"), ("c", "blue")] {
        let mut vote = HashMap::from([("decision", "colour-2026-11-29")]);
        vote.extend([("instance_id", voter), ("value", value)]);
        let voted: Voted = client.ask("system.quorum.vote", &vote).await?;
        let decided = voted.final_decision.unwrap_or_else(|| "nothing".into());
        let counted = format!("{} of {}", voted.vote_count, voted.electorate);
        println!("{counted}, {}: {decided}", voted.status);
    }
    drain.cancel();
    for worker in working {
        worker.await??;
    }
    Ok(())
}
