//! A small service whole: it takes orders, answers at once, and does the rest by events of its own, each with
//! a policy: orders of one customer in order, mails by a rate and behind a circuit breaker.
//!
//!     cargo run --example service -- redis://127.0.0.1

use convoke::{Client, Context, Event, HandlerError, Policy, State, Worker};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

struct Stock(Mutex<u32>);
type Mails = UnboundedSender<String>;

async fn place(context: Context, pieces: u32, stock: State<Stock>) -> Result<u32, HandlerError> {
    let mut left = stock.0.lock().await;
    let Some(rest) = left.checked_sub(pieces) else {
        let message = format!("only {left} are left");
        return Err(HandlerError::failed_precondition(message));
    };
    *left = rest;
    // It has this order's subject, and is stored only if the order is done.
    context.publish("mail.send", &pieces)?;
    Ok(rest)
}

async fn mail(context: Context, pieces: u32, out: State<Mails>) -> Result<(), HandlerError> {
    let to = context.event().subject().unwrap_or("nobody");
    Ok(out.send(format!("{to}: {pieces} pieces"))?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("a Redis URL is missing")?;
    let (sender, mut mails): (Mails, _) = unbounded_channel();
    let minute = Duration::from_secs(60);
    let mailing = Policy::new().rate_limit(100, minute).circuit(5, minute);
    let worker = Worker::builder()
        .redis(&url)
        .state(Stock(Mutex::new(10)))
        .state(sender)
        .handler_with("order.place", place, Policy::new().ordered())
        .handler_with("mail.send", mail, mailing)
        .build()?;
    let drain = CancellationToken::new();
    let working = tokio::spawn(worker.run_until(drain.clone()));
    let client = Client::connect(url).await?;
    for pieces in [7, 7] {
        let order = Event::new("order.place", &pieces).subject("ada");
        match client.ask_with::<u32>(order).await {
            Ok(left) => println!("{left} left"),
            Err(error) => println!("{error}"),
        }
    }
    println!("{}", mails.recv().await.unwrap_or_default());
    drain.cancel();
    Ok(working.await??)
}
