//! A flood of large events takes nothing from the control plane.

use crate::rig::{Rig, text};
use crate::support::until;
use convoke::{Context, HandlerError};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const EVENTS: &str = "cb:events:flood";
/// Bytes of a payload.
const LARGE: usize = 64 * 1024;
/// Events that are on the server at a time.
const WAVE: usize = 400;
/// How long an instance lives without a pulse.
const TTL: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_flooded_with_large_events_keeps_its_pulses_and_answers_heartbeats() {
    let rig = Rig::new().await;
    let done = Arc::new(AtomicUsize::new(0));
    let counted = done.clone();
    let take = move |_: Context, text: String| {
        assert_eq!(text.len(), LARGE);
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, HandlerError>(()) }
    };
    let settings = convoke::settings::Settings {
        id: "w-flooded".into(),
        heartbeat_ttl: TTL,
        ..rig.settings()
    };
    let builder = convoke::Worker::builder().settings(settings);
    let running = rig.start(builder.handler("flood.take", take));
    rig.wait_for_fact("instance.registered", 1).await;
    let incarnation = rig.hash("cb:instance:w-flooded", "incarnation").await;
    let data = rmp_serde::to_vec(&"x".repeat(LARGE)).unwrap();
    let (began, mut sent) = (Instant::now(), 0);
    // It would be lost three times by now if no pulse came through.
    while began.elapsed() < 3 * TTL {
        let mut pipe = redis::pipe();
        for _ in 0..WAVE {
            pipe.cmd("XADD").arg(EVENTS).arg("*");
            pipe.arg("type").arg("flood.take").arg("data").arg(&data);
        }
        let mut connection = rig.connection.clone();
        pipe.exec_async(&mut connection).await.unwrap();
        sent += WAVE;
        rig.ask("system.ping", &serde_json::json!({}))
            .await
            .unwrap();
        until("the wave is handled", async || {
            done.load(Ordering::SeqCst) >= sent && rig.pending(EVENTS).await == 0
        })
        .await;
        // Memory of the server is not what is tested.
        rig.run(&format!("XTRIM {EVENTS} MAXLEN 0")).await;
    }
    for fact in rig.entries("cb:broadcast").await {
        let kind = text(&fact, "type");
        assert!(!kind.starts_with("instance.lost"), "{fact:?}");
        assert!(!kind.starts_with("instance.suspect"), "{fact:?}");
    }
    assert_eq!(
        rig.hash("cb:instance:w-flooded", "incarnation").await,
        incarnation
    );
    running.stop().await;
}
