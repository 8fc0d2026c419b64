//! A handler's tests without a server. In a crate of one's own these are `#[tokio::test]` functions.
//!
//!     cargo run --example trial

use convoke::testing::{self, Outcome};
use convoke::{Context, HandlerError, Policy, State};
use std::time::Duration;

struct Mailer {
    is_up: bool,
}

/// Sends a mail, and says so.
async fn send(context: Context, to: String, mailer: State<Mailer>) -> Result<u32, HandlerError> {
    if !to.contains('@') {
        return Err(HandlerError::invalid_argument(format!("{to}: no address")));
    }
    if !mailer.is_up {
        return Err(HandlerError::unavailable("the mail server is away"));
    }
    context.publish("mail.sent", &to)?;
    Ok(250)
}

async fn wait(context: Context, (): ()) -> Result<&'static str, HandlerError> {
    context.cancellation().cancelled().await;
    Ok("cancelled in time")
}

#[tokio::main]
async fn main() {
    let run = testing::run(send, "ada@example.org")
        .state(Mailer { is_up: true })
        .await;
    assert_eq!(run.result(), Ok(250));
    assert_eq!(run.published::<String>("mail.sent"), ["ada@example.org"]);

    let run = testing::run(send, "ada")
        .state(Mailer { is_up: true })
        .await;
    assert_eq!(run.outcome(), Outcome::Failed);
    assert_eq!(run.error().unwrap().message, "ada: no address");

    // It is tried five times, as nothing else is said.
    for (attempt, outcome) in [(1, Outcome::Retried), (5, Outcome::Failed)] {
        let run = testing::run(send, "ada@example.org").state(Mailer { is_up: false });
        assert_eq!(run.attempt(attempt).await.outcome(), outcome);
    }

    let policy = Policy::new().timeout(Duration::from_secs(60));
    let run = testing::run(wait, &()).policy(policy).cancel_when(async {});
    println!("{}", run.await.result::<String>().unwrap());
}
