//! A service that publishes events and asks for answers; the example `worker` handles them.
//!
//!     cargo run --example client -- redis://127.0.0.1

use convoke::{Client, Event};
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Serialize)]
struct Resize {
    width: u32,
}

#[derive(Deserialize)]
struct Resized {
    pixels: u32,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("a Redis URL is missing")?;
    let client = Client::connect(url).await?;

    // Somebody runs it at some time. The same id is stored once only, however often it is published.
    let event = Event::new("image.resize", &Resize { width: 640 })
        .subject("cat")
        .id("order-4711")
        .dedup(true);
    let first = client.publish(&event).await?;
    let second = client.publish(&event).await?;
    println!(
        "stored again: {}, then {}",
        first.is_duplicate(),
        second.is_duplicate()
    );

    // Not before an hour has passed.
    let later = Event::new("image.resize", &Resize { width: 80 }).delay(Duration::from_secs(3600));
    println!("waits: {}", client.publish(later).await?.entry().is_none());

    let resized: Resized = client
        .ask("image.resize", &Resize { width: 80 })
        .within(Duration::from_secs(20))
        .await?;
    println!("{} pixels", resized.pixels);

    let refused = client
        .ask::<Resized>("image.resize", &Resize { width: 20_000 })
        .await;
    if let Err(error) = refused {
        println!("{error}");
    }
    client.close().await;
    Ok(())
}
