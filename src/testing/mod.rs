//! A handler's test without a server, and a server of one's own where a test needs one.
//!
//! A trial runs a handler on a payload as a worker would: decoded, behind its policy, with its time-out; a
//! panic is a failure. What it returned, published and reported is there to be looked at, what the bus would do with
//! the event as well. Nothing is connected, unless the trial is given a server.
//!
//! ```
//! use convoke::testing::{self, Outcome};
//! use convoke::{Context, HandlerError, State};
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize, JsonSchema)]
//! struct Resize { width: u32 }
//! #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
//! struct Resized { pixels: u32 }
//! struct Camera { height: u32 }
//!
//! async fn resize(
//!     ctx: Context,
//!     job: Resize,
//!     camera: State<Camera>,
//! ) -> Result<Resized, HandlerError> {
//!     if job.width == 0 {
//!         return Err(HandlerError::invalid_argument("width: 0"));
//!     }
//!     let resized = Resized { pixels: job.width * camera.height };
//!     ctx.publish("image.resized", &resized)?;
//!     Ok(resized)
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let run = testing::run(resize, &Resize { width: 80 }).state(Camera { height: 2 }).await;
//! assert_eq!(run.result(), Ok(Resized { pixels: 160 }));
//! assert_eq!(run.published::<Resized>("image.resized"), [Resized { pixels: 160 }]);
//!
//! let nothing = Resize { width: 0 };
//! let run = testing::run(resize, &nothing).state(Camera { height: 2 }).attempt(2).await;
//! assert_eq!(run.error().unwrap().message, "width: 0");
//! assert_eq!(run.outcome(), Outcome::Failed);
//! # }
//! ```

mod batch;
mod run;
mod server;
mod trial;

pub use batch::{BatchTrial, batch};
pub use run::{Ended, Outcome};
pub use server::Server;
pub use trial::{Trial, event, run};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::clock::local_now;
    use crate::protocol::error::Code;
    use crate::{Context, HandlerError, Policy, Progress};
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::sync::Notify;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Publishes each of them, and fails at 0.
    async fn tell(context: Context, numbers: Vec<u32>) -> Result<usize, HandlerError> {
        for number in &numbers {
            context.publish("number.told", number)?;
        }
        context.publish("number.counted", &numbers.len())?;
        match numbers.contains(&0) {
            true => Err(HandlerError::internal("a zero")),
            false => Ok(numbers.len()),
        }
    }

    #[tokio::test]
    async fn what_a_handler_returned_and_published_is_there() {
        let run = run(tell, &[3, 5]).await;
        assert_eq!(run.result(), Ok(2));
        assert_eq!(run.published::<u32>("number.told"), [3, 5]);
        assert_eq!(
            run.kinds(),
            ["number.told", "number.told", "number.counted"]
        );
        assert_eq!((run.outcome(), run.error()), (Outcome::Done, None));
    }

    #[tokio::test]
    async fn a_run_that_failed_publishes_nothing_and_is_retried_until_its_attempts_are_spent() {
        for (attempt, outcome) in [(1, Outcome::Retried), (5, Outcome::Failed)] {
            let run = run(tell, &[0]).attempt(attempt).await;
            assert_eq!(run.result::<usize>().unwrap_err().message, "a zero");
            assert!(run.kinds().is_empty());
            assert_eq!(run.outcome(), outcome);
        }
        // No list.
        let run = run(tell, "three").await;
        assert_eq!(run.error().unwrap().code, Code::InvalidArgument);
        assert_eq!(run.outcome(), Outcome::Failed);
    }

    #[tokio::test]
    async fn the_handler_sees_the_event_that_was_given() {
        let look = async |context: Context, (): ()| {
            let event = context.event();
            let given = [event.kind(), event.given_id().unwrap_or("none")];
            let by = [
                event.source().unwrap_or("none"),
                event.subject().unwrap_or("none"),
            ];
            let left = context.time_left().unwrap_or_default();
            let text = format!("{given:?} {by:?} {} {}", event.attempt(), left.as_secs());
            Ok::<_, HandlerError>(text)
        };
        let plain = run(look, &()).await.result::<String>();
        assert_eq!(
            plain.unwrap(),
            r#"["test.run", "none"] ["none", "none"] 1 0"#
        );
        let given = run(look, &())
            .kind("a.b")
            .id("e")
            .source("s")
            .subject("x")
            .attempt(3);
        let before = local_now();
        let given = given.deadline(MINUTE).await.result::<String>().unwrap();
        assert!(
            given.starts_with(r#"["a.b", "e"] ["s", "x"] 3 "#),
            "{given}"
        );
        let left: u64 = given.rsplit(' ').next().unwrap().parse().unwrap();
        let took = local_now().saturating_sub(before);
        assert!(left <= 60 && left + took / 1000 + 1 >= 60, "{left}");
    }

    #[tokio::test]
    async fn all_progress_is_there_in_order_however_the_run_ended() {
        let counts = async |context: Context, rows: u64| {
            for done in 1..=rows {
                context.progress(Progress::new(done).of(rows));
            }
            match rows {
                2 => Ok(()),
                _ => Err(HandlerError::internal("a row is missing")),
            }
        };
        for rows in [2, 3] {
            let run = run(counts, &rows).await;
            let told: Vec<u64> = run.progress().iter().map(|told| told.done).collect();
            assert_eq!(told, (1..=rows).collect::<Vec<u64>>());
            assert_eq!(run.progress()[0].total, Some(rows));
        }
        assert!(run(tell, &[1]).await.progress().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_policy_holds() {
        let hangs =
            async |_: Context, (): ()| -> Result<(), HandlerError> { std::future::pending().await };
        for policy in [Policy::new(), Policy::new().concurrency(1)] {
            let began = tokio::time::Instant::now();
            let run = run(hangs, &()).policy(policy.timeout(MINUTE)).await;
            assert_eq!(run.error().unwrap().code, Code::DeadlineExceeded);
            // A worker's own would have been 30 s.
            assert!(began.elapsed() >= MINUTE);
            assert_eq!(run.outcome(), Outcome::Retried);
        }
        let panics = async |_: Context, (): ()| -> Result<(), HandlerError> { panic!("so") };
        let run = run(panics, &()).await;
        assert!(run.error().unwrap().message.contains("so"));
    }

    #[tokio::test]
    async fn a_run_is_cancelled_in_the_middle_and_a_worker_drains() {
        for drains in [false, true] {
            let began = Arc::new(Notify::new());
            let says = began.clone();
            let waits = move |context: Context, (): ()| {
                let says = says.clone();
                async move {
                    assert!(!context.cancellation().is_cancelled());
                    says.notify_one();
                    tokio::select! {
                        () = context.cancellation().cancelled() => Ok::<_, HandlerError>("cancelled"),
                        () = context.draining().cancelled_owned() => Ok("drained"),
                    }
                }
            };
            let moment = async move { began.notified().await };
            let trial = run(waits, &());
            let ended = match drains {
                false => trial.cancel_when(moment).await,
                true => trial.drain_when(moment).await,
            };
            let said = if drains { "drained" } else { "cancelled" };
            assert_eq!(ended.result::<String>().unwrap(), said);
        }
    }

    async fn count(context: Context, (): ()) -> Result<u32, HandlerError> {
        let mut redis = context.redis().await?;
        Ok(redis::cmd("INCR")
            .arg("count")
            .query_async(&mut redis)
            .await?)
    }

    #[tokio::test]
    async fn a_handler_has_the_server_that_it_was_given_and_none_else() {
        let alone = run(count, &()).await;
        assert_eq!(alone.error().unwrap().code, Code::Unavailable);
        assert_eq!(alone.outcome(), Outcome::Postponed);
        let (one, other) = (Server::start().unwrap(), Server::start().unwrap());
        for expected in [1, 2] {
            assert_eq!(run(count, &()).server(&one).await.result(), Ok(expected));
        }
        assert_eq!(run(count, &()).server(&other).await.result(), Ok(1));
        let url = one.url();
        drop(one);
        let gone = crate::Client::connect(url).await;
        gone.expect_err("the server was stopped");
    }
}
