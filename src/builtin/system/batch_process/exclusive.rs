//! The holder runs the items itself, one after another.

use crate::builtin::system::batch_process::holding::{Holding, Stop};
use crate::handler::dispatch::{Done, Part};
use crate::handler::policy::RetryPolicy;
use crate::protocol::error::HandlerError;
use std::time::Duration;

/// How long an item waits whose run said that it could not begin, if it is not known better.
const REFUSED: Duration = Duration::from_secs(1);

/// Runs every item that is not finished.
pub(super) async fn run(
    holding: &mut Holding<'_>,
    kind: &str,
    items: &[Vec<u8>],
) -> Result<(), Stop> {
    let retry = holding.context.retries_of(kind).unwrap_or_default();
    for (index, data) in items.iter().enumerate() {
        if holding.is_finished(index) {
            continue;
        }
        let done = item(holding, kind, index, data, retry).await?;
        let failure = done.result.err().map(|error| {
            let message = error.bounded_message().to_owned();
            (error.code.as_str(), message)
        });
        holding.finish(index, failure, done.publications).await?;
    }
    holding.complete().await
}

/// Runs one item, and again after a retryable failure as its handler's schedule says. The batch
/// waits for it: its items are run in order.
async fn item(
    holding: &mut Holding<'_>,
    kind: &str,
    index: usize,
    data: &[u8],
    retry: RetryPolicy,
) -> Result<Done, Stop> {
    let mut attempt = 1;
    loop {
        holding.check().await?;
        let part = Part {
            kind,
            data: data.to_vec(),
            id: format!("{}/{index}", holding.id()),
            attempt,
        };
        let context = holding.context.clone();
        let done = match holding.beside(context.dispatch(part)).await? {
            Ok(done) => done,
            Err(why) => return Err(why.into()),
        };
        let wait = match &done.result {
            Ok(_) => None,
            Err(error) => wait_after(error, &mut attempt, retry),
        };
        match wait {
            Some(wait) => holding.until_drained(tokio::time::sleep(wait)).await?,
            None => return Ok(done),
        }
    }
}

/// How long to wait before the next try, if there is one. What could not begin spends no attempt.
fn wait_after(error: &HandlerError, attempt: &mut u32, retry: RetryPolicy) -> Option<Duration> {
    if error.refusal.is_some() {
        return Some(error.retry_after.unwrap_or(REFUSED));
    }
    if !error.retryable {
        return None;
    }
    let wait = retry.delay(*attempt)?;
    *attempt += 1;
    Some(wait.max(error.retry_after.unwrap_or_default()))
}
