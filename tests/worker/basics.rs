use crate::rig::{Rig, text};
use convoke::client::publish::Outgoing;
use convoke::protocol::error::Code;
use convoke::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Sum {
    a: i64,
    b: i64,
}

async fn add(_: Context, sum: Sum) -> Result<i64, HandlerError> {
    Ok(sum.a + sum.b)
}

async fn slow_add(_: Context, sum: Sum) -> Result<i64, HandlerError> {
    tokio::time::sleep(Duration::from_millis(20)).await;
    Ok(sum.a + sum.b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_gets_the_handlers_result() {
    let rig = Rig::new().await;
    let worker = rig.start(
        rig.builder()
            .handler("math.add", add)
            .handler("math.slow", slow_add),
    );
    for kind in ["math.add", "math.slow"] {
        let reply = rig.ask(kind, &Sum { a: 2, b: 3 }).await.unwrap();
        assert_eq!(reply.decode::<i64>().unwrap(), 5);
        assert_eq!(reply.kind, format!("{kind}.result"));
    }
    assert_eq!(rig.pending("cb:events:math").await, 0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_asks_for_no_reply_leaves_its_result_on_the_results_stream() {
    let rig = Rig::new().await;
    let event = Outgoing::new("math.add", &Sum { a: 1, b: 1 }).id("e-1");
    // Before any worker started: the group begins at 0.
    rig.client.publish(&event).await.unwrap();
    let worker = rig.start(rig.builder().handler("math.add", add));
    let results = rig.wait_for("cb:results:math", 1).await;
    assert_eq!(text(&results[0], "correlationid"), "e-1");
    assert_eq!(text(&results[0], "status"), "ok");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_type_that_nobody_has_is_unimplemented_or_dead() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().handler("math.add", add));
    let error = rig.refused("math.multiply", &1).await;
    assert_eq!(error.code, Code::Unimplemented);
    assert!(!rig.exists("cb:dead:math").await);
    let event = Outgoing::new("math.multiply", &1);
    rig.client.publish(&event).await.unwrap();
    let dead = rig.wait_for("cb:dead:math", 1).await;
    assert_eq!(text(&dead[0], "deadreason"), "unimplemented");
    assert_eq!(text(&dead[0], "type"), "math.multiply");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_type_that_another_worker_has_is_left_for_that_one() {
    let rig = Rig::new().await;
    let mut other = rig.settings();
    other.id = "other".into();
    let adds = rig.start(rig.builder().handler("math.add", add));
    let slow = rig.start(
        convoke::Worker::builder()
            .settings(other)
            .handler("math.slow", slow_add),
    );
    rig.wait_for_fact("instance.registered", 2).await;
    let (mut sums, mut slows) = (0, 0);
    for n in 0..50 {
        let kind = if n % 2 == 0 { "math.add" } else { "math.slow" };
        // Until both are registered, one may not know the other.
        match rig.ask(kind, &Sum { a: n, b: 1 }).await {
            Ok(reply) if n % 2 == 0 => {
                assert_eq!(reply.decode::<i64>().unwrap(), n + 1);
                sums += 1;
            }
            Ok(reply) => {
                assert_eq!(reply.source.as_deref(), Some("other"));
                slows += 1;
            }
            Err(error) => assert!(n < 4, "{n}: {error}"),
        }
    }
    assert!(sums > 20 && slows > 20);
    adds.stop().await;
    slow.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_a_failure_of_that_event_only() {
    let rig = Rig::new().await;
    let mut settings = rig.settings();
    settings.max_attempts = 2;
    async fn explode(_: Context, late: bool) -> Result<(), HandlerError> {
        if late {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("boom {late}");
    }
    let worker = rig.start(
        convoke::Worker::builder()
            .settings(settings)
            .handler("math.explode", explode)
            .handler("math.add", add),
    );
    for late in [false, true] {
        let error = rig.refused("math.explode", &late).await;
        assert_eq!(error.code, Code::Internal);
        assert!(error.message.contains(&format!("boom {late}")), "{error}");
        assert!(rig.ask("math.add", &Sum { a: 1, b: 1 }).await.is_ok());
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_after_the_runs_end_is_an_error_and_not_lost_unseen() {
    type Kept = std::sync::Arc<std::sync::Mutex<Vec<Context>>>;
    let rig = Rig::new().await;
    let kept = Kept::default();
    let keep = async |context: Context, fails: bool| {
        context.publish("math.kept", &1)?;
        context
            .state::<Kept>()?
            .lock()
            .unwrap()
            .push(context.clone());
        match fails {
            true => Err(HandlerError::not_found("nothing")),
            false => Ok(()),
        }
    };
    let worker = rig.start(rig.builder().state(kept.clone()).handler("math.keep", keep));
    assert!(rig.ask("math.keep", &false).await.is_ok());
    rig.refused("math.keep", &true).await;
    let contexts = std::mem::take(&mut *kept.lock().unwrap());
    assert_eq!(contexts.len(), 2);
    for context in contexts {
        let error = context.publish("math.kept", &2).unwrap_err();
        assert_eq!((error.code, error.retryable), (Code::Internal, false));
        assert!(error.message.contains("the run has ended"), "{error}");
    }
    worker.stop().await;
}
