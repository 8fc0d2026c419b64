//! A lane that stood still does not know whose its entries are, and finds out.

use crate::rig::{Rig, Running};
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::settings::Settings;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

/// Starts a worker that reads four in one batch: the first holds the lane's thread, the others are in its hands,
/// unstarted.
async fn held_by_the_first(rig: &Rig, builder: Builder, began: &AtomicU32) -> Running {
    for _ in 0..4 {
        let event = Outgoing::new("gone.hold", &());
        rig.client.publish(&event).await.unwrap();
    }
    let running = rig.start(builder);
    until("the first holds the thread", async || {
        began.load(Ordering::Relaxed) == 1
    })
    .await;
    running
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stream_that_is_gone_keeps_no_other_waiting() {
    let rig = Rig::new().await;
    let (lets_go, held) = mpsc::channel::<()>();
    let (held, began) = (Arc::new(Mutex::new(held)), Arc::new(AtomicU32::new(0)));
    let begins = began.clone();
    let holds = move |_: Context, (): ()| {
        let held = held.clone();
        begins.fetch_add(1, Ordering::Relaxed);
        async move {
            held.lock().unwrap().recv().ok();
            Ok::<_, HandlerError>(())
        }
    };
    let answers = async |_: Context, (): ()| Ok::<_, HandlerError>(7);
    let settings = Settings {
        concurrency: 1,
        ..rig.settings()
    };
    let builder = rig.builder().settings(settings);
    let builder = builder
        .handler("gone.hold", holds)
        .handler("stays.ask", answers);
    let running = held_by_the_first(&rig, builder, &began).await;
    rig.run("SET cb:events:gone x").await;
    // For longer than the lane may stand still.
    tokio::time::sleep(rig.settings().heartbeat_ttl / 2).await;
    drop(lets_go);
    let reply = rig.ask("stays.ask", &()).await.unwrap();
    assert_eq!(reply.data, [7]);
    assert_eq!(began.load(Ordering::Relaxed), 1, "none of the gone begins");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_others_took_while_a_first_poll_held_the_thread_is_not_started() {
    let rig = Rig::new().await;
    let (lets_go, held) = mpsc::channel::<()>();
    let (held, began) = (Arc::new(Mutex::new(held)), Arc::new(AtomicU32::new(0)));
    let begins = began.clone();
    let holds = move |context: Context, (): ()| {
        let held = held.clone();
        begins.fetch_add(1, Ordering::Relaxed);
        async move {
            held.lock().unwrap().recv().ok();
            // Then it waits, as most handlers do.
            context.draining().cancelled().await;
            Ok::<_, HandlerError>(())
        }
    };
    let answers = async |_: Context, (): ()| Ok::<_, HandlerError>(7);
    let builder = rig.builder().handler("gone.hold", holds);
    let builder = builder.handler("stays.ask", answers);
    let running = held_by_the_first(&rig, builder, &began).await;
    let mut take = redis::cmd("XCLAIM");
    take.arg(&["cb:events:gone", "workers", "other", "0"]);
    for entry in &rig.entries("cb:events:gone").await[1..] {
        take.arg(entry.id.to_string());
    }
    take.arg("JUSTID");
    // Again and again: what nobody renews is taken from whoever has it.
    let keeps = async {
        let mut connection = rig.connection.clone();
        loop {
            take.exec_async(&mut connection).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let asks = async {
        // For longer than the lane may stand still.
        tokio::time::sleep(rig.settings().heartbeat_ttl / 2).await;
        drop(lets_go);
        rig.ask("stays.ask", &()).await.unwrap()
    };
    let reply = tokio::select! {
        biased;
        never = keeps => never,
        reply = asks => reply,
    };
    assert_eq!(reply.data, [7]);
    assert_eq!(
        began.load(Ordering::Relaxed),
        1,
        "none of the others begins"
    );
    running.stop().await;
}
