//! The server's clock steps by an hour and by a day, ahead and back, under live workers.

use crate::outages::{Scene, TTL};
use crate::rig::Rig;
use crate::support::{Redis, until};
use convoke::client::publish::Outgoing;
use convoke::{Context, HandlerError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// In seconds.
const STEPS: [i64; 4] = [3600, -3600, 86_400, -86_400];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_of_the_clock_robs_nobody_and_the_dead_are_found() {
    for step in STEPS {
        let redis = Redis::with_a_clock();
        let scene = Scene::begin(redis).await;
        scene.ghost().await;
        scene.rig.redis.step_clock(step).await;
        let after = scene.now().await;
        scene.settle(after).await;
        // Who died before the step is found, whichever way it went.
        scene.rig.wait_for_fact("instance.lost", 1).await;
        let waited = scene.now().await.saturating_sub(after);
        assert!(
            waited < 10 * TTL.as_millis() as u64,
            "{step} s: {waited} ms"
        );
        // Somebody leads.
        scene.settle(scene.now().await).await;
        until("somebody leads", async || scene.leader().await.is_some()).await;
        scene.end(&format!("a step of {step} s")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_its_time_runs_once_whichever_way_the_clock_steps() {
    for step in STEPS {
        let redis = Redis::with_a_clock();
        let rig = Rig::on(redis).await;
        let runs = Arc::new(AtomicU32::new(0));
        let counted = runs.clone();
        let handler = move |context: Context, (): ()| {
            let runs = counted.clone();
            async move {
                runs.fetch_add(1, Ordering::SeqCst);
                match context.event().attempt() {
                    1 => Err(HandlerError::unavailable("again")),
                    _ => Ok(()),
                }
            }
        };
        let worker = rig.start(rig.builder().handler("load.later", handler));
        rig.wait_for_fact("instance.registered", 1).await;
        let later = Outgoing::new("load.later", &()).delay(Duration::from_secs(2));
        rig.client.publish(&later).await.unwrap();
        rig.redis.step_clock(step).await;
        if step < 0 {
            // It waits until its time comes again.
            tokio::time::sleep(Duration::from_millis(2500)).await;
            assert_eq!(runs.load(Ordering::SeqCst), 0, "{step} s");
            rig.redis.step_clock(4).await;
        }
        let results = rig.wait_for("cb:results:load", 1).await;
        assert_eq!(results.len(), 1, "{step} s");
        assert_eq!(
            runs.load(Ordering::SeqCst),
            2,
            "{step} s: a failure and its retry"
        );
        worker.stop().await;
        assert_eq!(rig.entries("cb:results:load").await.len(), 1, "{step} s");
        assert!(!rig.exists("cb:dead:load").await, "{step} s");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_is_judged_by_the_clock_as_it_was_when_the_lane_connected() {
    let rig = Rig::on(Redis::with_a_clock()).await;
    let handler = async |_: Context, (): ()| Ok::<_, HandlerError>(());
    let builder = || rig.builder().handler("load.soon", handler);
    let worker = rig.start(builder());
    rig.wait_for_fact("instance.registered", 1).await;
    rig.ask("load.soon", &()).await.unwrap();
    rig.redis.step_clock(3600).await;
    let soon = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let deadline = now.unwrap().as_millis() as u64 + 1_800_000;
        Outgoing::new("load.soon", &()).deadline(deadline)
    };
    rig.client.publish(&soon()).await.unwrap();
    rig.wait_for("cb:results:load", 1).await;
    worker.stop().await;
    // Who connects now knows that it is past.
    let worker = rig.start(builder());
    rig.client.publish(&soon()).await.unwrap();
    let ask = rig.client.request(soon(), Duration::from_secs(20)).await;
    let refused = format!("{:?}", ask.unwrap_err());
    assert!(refused.contains("DeadlineExceeded"), "{refused}");
    worker.stop().await;
    assert_eq!(rig.entries("cb:results:load").await.len(), 1);
}
