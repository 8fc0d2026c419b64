//! A tower layer of one's own around a handler: it sees each run's context and result.
//!
//!     cargo run --example layer -- redis://127.0.0.1

use convoke::handler::function::{Encoded, Run};
use convoke::handler::policy::Stack;
use convoke::{Client, Context, HandlerError, Policy, Worker};
use std::task::{self, Poll};
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service};

struct Audit;

impl Layer<Stack> for Audit {
    type Service = Audited;

    fn layer(&self, inner: Stack) -> Audited {
        Audited(inner)
    }
}

#[derive(Clone)]
struct Audited(Stack);

impl Service<Context> for Audited {
    type Response = Encoded;
    type Error = HandlerError;
    type Future = Run;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), HandlerError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, context: Context) -> Run {
        let run = self.0.call(context.clone());
        Box::pin(async move {
            let result = run.await;
            let kind = context.event().kind();
            println!("{kind} succeeded: {}", result.is_ok());
            result
        })
    }
}

async fn upper(_: Context, text: String) -> Result<String, HandlerError> {
    Ok(text.to_uppercase())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("a Redis URL is missing")?;
    let builder = Worker::builder().redis(&url);
    let worker = builder.handler_with("text.upper", upper, Policy::new().layer(Audit));
    let drain = CancellationToken::new();
    let working = tokio::spawn(worker.build()?.run_until(drain.clone()));
    let client = Client::connect(url).await?;
    println!("{}", client.ask::<String>("text.upper", "hello").await?);
    drain.cancel();
    Ok(working.await??)
}
