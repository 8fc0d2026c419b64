//! Outcomes that tell of what their run wrote to the server itself.

use crate::rig::Rig;
use crate::support::{Redis, until};
use convoke::bus::publish::Outgoing;
use convoke::registry::policy::Policy;
use convoke::{Context, HandlerError};
use redis::AsyncCommands;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::Semaphore;

const NOTE: &str = "cb:lease:note";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_repeated_if_the_server_may_have_lost_what_it_wrote_there() {
    let mut rig = Rig::on(Redis::durable()).await;
    let gate = Arc::new(Semaphore::new(0));
    let runs: [Arc<AtomicU32>; 3] = Default::default();
    let [writes, stateful, plain] = runs.clone();
    let wait = |gate: &Arc<Semaphore>, runs: Arc<AtomicU32>| {
        let gate = gate.clone();
        move |_: Context, (): ()| {
            let (gate, runs) = (gate.clone(), runs.clone());
            async move {
                runs.fetch_add(1, Ordering::SeqCst);
                gate.acquire().await.unwrap().forget();
                Ok::<_, HandlerError>(())
            }
        }
    };
    let held = gate.clone();
    let noting = move |context: Context, (): ()| {
        let (gate, runs) = (held.clone(), writes.clone());
        async move {
            let mut redis = context.redis().await?;
            let written: redis::RedisResult<()> = redis.set(NOTE, "written").await;
            written.map_err(|error| HandlerError::unavailable(error.to_string()))?;
            drop(redis);
            runs.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            Ok(())
        }
    };
    let builder = rig.builder();
    let builder = builder.handler("load.noting", noting).handler_with(
        "load.stateful",
        wait(&gate, stateful),
        Policy::new().stateful(),
    );
    let worker = rig.start(builder.handler("load.plain", wait(&gate, plain)));
    for kind in ["load.noting", "load.stateful", "load.plain"] {
        rig.client.publish(&Outgoing::new(kind, &())).await.unwrap();
    }
    let count = || runs.each_ref().map(|runs| runs.load(Ordering::SeqCst));
    until("all three run", || async { count() == [1, 1, 1] }).await;
    rig.redis.restart();
    rig.connection = rig.redis.connection().await;
    rig.connection.del::<_, ()>(NOTE).await.unwrap();
    gate.add_permits(5);
    let results = rig.wait_for("cb:results:load", 3).await;
    assert_eq!(results.len(), 3, "one outcome each");
    assert_eq!(count(), [2, 2, 1]);
    let note: Option<String> = rig.connection.get(NOTE).await.unwrap();
    assert_eq!(note.as_deref(), Some("written"));
    worker.stop().await;
}
