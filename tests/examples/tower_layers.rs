//! tower's own layers around a handler, as they are.
//!
//!     cargo run --example tower_layers -- redis://127.0.0.1

use convoke::{Client, Context, HandlerError, Policy, Worker};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;

async fn upper(_: Context, text: String) -> Result<String, HandlerError> {
    match text.as_str() {
        "slow" => std::future::pending().await,
        "" => Err(HandlerError::not_found("no text")),
        text => Ok(text.to_uppercase()),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("a Redis URL is missing")?;
    let layers = ServiceBuilder::new()
        .load_shed()
        .buffer(16)
        .rate_limit(100, Duration::from_secs(1))
        .concurrency_limit(8)
        .timeout(Duration::from_millis(200));
    let policy = Policy::new().attempts(1).tower(layers);
    let builder = Worker::builder().redis(&url);
    let worker = builder.handler_with("text.upper", upper, policy);
    let drain = CancellationToken::new();
    let working = tokio::spawn(worker.build()?.run_until(drain.clone()));
    let client = Client::connect(url).await?;
    for text in ["hello", "", "slow"] {
        match client.ask::<String>("text.upper", text).await {
            Ok(text) => println!("{text}"),
            Err(error) => println!("{error}"),
        }
    }
    drain.cancel();
    Ok(working.await??)
}
