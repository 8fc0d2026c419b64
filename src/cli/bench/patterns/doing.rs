//! Work that is asked for again and again while a worker is killed: votes, batches and tasks.

use super::Asker;
use convoke::protocol::pattern::Patterned;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long before the kill one begins to ask, and how long after it one goes on.
pub(super) const BEFORE: Duration = Duration::from_millis(500);
const AFTER: Duration = Duration::from_millis(5500);
/// Between two askings.
const EACH: Duration = Duration::from_millis(100);
/// Between two looks whether it is done.
const LOOK: Duration = Duration::from_millis(25);
/// What takes longer is late: a worker that looks for tasks does so once a second at least.
pub(super) const LATE: Duration = Duration::from_millis(1500);
/// What takes longer has no answer.
const GIVEN_UP: Duration = Duration::from_secs(20);
/// Items of a batch.
const ITEMS: usize = 8;
/// The kind of the tasks.
pub(super) const TASK: &str = "bench.task";

/// A decision, batch or task that was asked for.
pub(super) struct Done {
    pub(crate) took: Duration,
    pub(crate) at: Instant,
    /// Whether its result was right; nothing: it was not done.
    pub(crate) right: Option<bool>,
}

/// Asks from now on, and until what was asked for is done; `living` are two that nobody kills.
pub(super) async fn all(
    asker: &Asker<'_>,
    event: Patterned,
    name: &str,
    living: &[String],
) -> anyhow::Result<Vec<Done>> {
    let began = Instant::now();
    let number = ((BEFORE + AFTER).as_millis() / EACH.as_millis()) as u32;
    let each = futures_util::stream::iter(0..number).map(async |turn| {
        tokio::time::sleep_until((began + EACH * turn).into()).await;
        let (asked, id) = (Instant::now(), format!("{name}-{event}-{turn}"));
        let one = async {
            match event {
                Patterned::Quorum => decide(asker, &id, living).await,
                Patterned::Batch => process(asker, &id).await,
                _ => run(asker, &id).await,
            }
        };
        let right = match tokio::time::timeout(GIVEN_UP, one).await {
            Ok(Ok(right)) => Some(right),
            Ok(Err(error)) => {
                tracing::warn!(%error, id, "was refused");
                Some(false)
            }
            Err(_) => None,
        };
        anyhow::Ok(Done {
            took: asked.elapsed(),
            at: Instant::now(),
            right,
        })
    });
    each.buffer_unordered(number as usize).try_collect().await
}

/// Two of three vote, and ask until it is decided.
async fn decide(asker: &Asker<'_>, id: &str, living: &[String]) -> anyhow::Result<bool> {
    let mut told = Value::Null;
    for voter in living {
        told = vote(asker, id, voter).await?;
    }
    while told["status"] == "open" {
        tokio::time::sleep(LOOK).await;
        for voter in living.iter().take(1) {
            told = vote(asker, id, voter).await?;
        }
    }
    Ok(told["final_decision"] == true)
}

async fn vote(asker: &Asker<'_>, id: &str, voter: &str) -> anyhow::Result<Value> {
    let vote = json!({"decision": id, "instance_id": voter, "value": true});
    asker.request("system.quorum.vote", &vote).await
}

async fn process(asker: &Asker<'_>, id: &str) -> anyhow::Result<bool> {
    let batch = json!({
        "batch_id": id, "item_type": "system.ping", "items": vec![json!({}); ITEMS], "mode": "fan_out",
    });
    let told = asker.request("system.batch.process", &batch).await?;
    Ok(told["items_processed"] == ITEMS)
}

/// A task, until it is completed.
async fn run(asker: &Asker<'_>, id: &str) -> anyhow::Result<bool> {
    let task = json!({"task_id": id, "kind": TASK});
    asker.request("task.create", &task).await?;
    loop {
        let task = asker.request("task.get", &json!({"task_id": id})).await?;
        match task["status"].as_str() {
            Some("pending" | "assigned") => tokio::time::sleep(LOOK).await,
            status => return Ok(status == Some("completed")),
        }
    }
}
