//! A circuit with the numbers of its policy: how many failures open it, how many successes close it.

use super::{ask, code};
use crate::rig::Rig;
use crate::support::until;
use convoke::handler::policy::CircuitPolicy;
use convoke::protocol::error::Code;
use convoke::{Context, HandlerError, Policy, State};
use futures_util::future::{join_all, pending};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// A shop whose circuit has the values of most: 5 failures, 3 probes, 3 successes.
struct Shop {
    /// When each run began.
    began: Mutex<Vec<Instant>>,
    goes: Semaphore,
}

const OPEN: Duration = Duration::from_millis(400);

impl Shop {
    async fn sell(&self, what: &str) -> Result<&'static str, HandlerError> {
        self.began.lock().unwrap().push(Instant::now());
        match what {
            "bad" => return Err(HandlerError::invalid_argument("no such thing")),
            "fail" => return Err(HandlerError::internal("broken").permanent()),
            "hang" => pending().await,
            "hold" => self.goes.acquire().await.unwrap().forget(),
            _ => {}
        }
        Ok("sold")
    }

    fn runs(&self) -> usize {
        self.began.lock().unwrap().len()
    }

    fn last(&self) -> Instant {
        *self.began.lock().unwrap().last().unwrap()
    }
}

async fn sell(
    _: Context,
    what: String,
    shop: State<Arc<Shop>>,
) -> Result<&'static str, HandlerError> {
    shop.sell(&what).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circuit_opens_after_five_failures_and_closes_after_three_successes() {
    let rig = Rig::new().await;
    let shop = Arc::new(Shop {
        began: Mutex::default(),
        goes: Semaphore::new(0),
    });
    let circuit = CircuitPolicy {
        failures: 5,
        open_for: OPEN,
        open_cap: OPEN * 60,
        probes: 3,
        successes: 3,
    };
    let policy = Policy::new()
        .attempts(1)
        .timeout(OPEN * 30)
        .circuit_policy(circuit)
        .fallback(|_, what: String| Ok(format!("kept: {what}")));
    let quick = policy.clone().timeout(Duration::from_millis(50));
    let builder = rig
        .builder()
        .state(shop.clone())
        .handler_with("shop.sell", sell, policy);
    let worker = rig.start(builder.handler_with("shop.lend", sell, quick));
    let asked = |what: &'static str| ask(&rig, "shop.sell", json!(what));
    let failed = |kind: &'static str, what: &'static str| {
        let failed = code(&rig, kind, json!(what));
        async move { failed.await.0 }
    };
    // A refusal says nothing of the handler, a success starts again; a time-out is a failure too.
    for _ in 0..4 {
        assert_eq!(failed("shop.sell", "fail").await, Code::Internal);
    }
    assert_eq!(asked("one").await, "sold");
    for _ in 0..6 {
        assert_eq!(failed("shop.sell", "bad").await, Code::InvalidArgument);
    }
    for _ in 0..5 {
        assert_eq!(failed("shop.lend", "hang").await, Code::DeadlineExceeded);
    }
    let opened = rig.wait_for_fact("circuit.opened", 1).await;
    let fact: Value = rmp_serde::from_slice(opened[0].get("data").unwrap()).unwrap();
    assert_eq!(fact["type"], "shop.lend");
    assert_eq!(asked("one").await, "sold");
    for _ in 0..5 {
        assert_eq!(failed("shop.sell", "fail").await, Code::Internal);
    }
    let fifth = shop.last();
    rig.wait_for_fact("circuit.opened", 2).await;

    // Open: the handler is left alone. Each probe that fails opens it for longer.
    let mut before = fifth;
    for times in [1, 2, 4] {
        let runs = shop.runs();
        until("it was probed", || async {
            let reply = rig.ask("shop.sell", &json!("fail")).await;
            assert!(shop.runs() <= runs + 1);
            match reply {
                Ok(reply) => assert_eq!(reply.decode::<String>().unwrap(), "kept: fail"),
                Err(error) => assert!(error.to_string().contains("broken"), "{error}"),
            }
            shop.runs() > runs
        })
        .await;
        let probed = shop.last();
        assert!(probed - before >= OPEN * times, "{:?}", probed - before);
        before = probed;
    }

    // Half-open: three at a time, and the rest by the fallback.
    until("a probe goes well", || async {
        asked("one").await == "sold"
    })
    .await;
    let runs = shop.runs();
    let kept = AtomicUsize::new(0);
    let hold = async || {
        let reply = asked("hold").await;
        kept.fetch_add(usize::from(reply != "sold"), Ordering::SeqCst);
        reply
    };
    let release = async {
        until("three probe, and five do not", || async {
            (shop.runs() - runs, kept.load(Ordering::SeqCst)) == (3, 5)
        })
        .await;
        shop.goes.add_permits(3);
    };
    let (held, ()) = tokio::join!(join_all((0..8).map(|_| hold())), release);
    let sold = held.iter().filter(|&reply| reply == "sold").count();
    assert_eq!(sold, 3, "{held:?}");
    rig.wait_for_fact("circuit.closed", 1).await;

    // Closed: everything.
    let runs = shop.runs();
    shop.goes.add_permits(8);
    assert!(
        join_all((0..8).map(|_| asked("hold")))
            .await
            .iter()
            .all(|it| it == "sold")
    );
    assert_eq!(shop.runs(), runs + 8);
    worker.stop().await;
}
