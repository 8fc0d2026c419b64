//! A type runs from the stream of its own domain and from inboxes, and from nowhere else.

use crate::rig::{Rig, text};
use convoke::streams::delay::encode_member;
use convoke::{Context, HandlerError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_type_in_another_domains_stream_is_never_run_whichever_door_it_came_through() {
    let rig = Rig::new().await;
    let mut settings = rig.settings();
    settings.id = "w-1".into();
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let resize = move |_: Context, (): ()| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok::<_, HandlerError>(()))
    };
    let upper = async |_: Context, (): ()| Ok::<_, HandlerError>(());
    // Taken over from a consumer that is gone.
    rig.run("XGROUP CREATE cb:events:text workers 0 MKSTREAM")
        .await;
    rig.run("XADD cb:events:text * type image.resize id taken")
        .await;
    rig.run("XREADGROUP GROUP workers gone COUNT 1 STREAMS cb:events:text >")
        .await;
    // Out of a delay queue.
    let fields = ["type", "image.resize", "id", "delayed"];
    redis::cmd("ZADD")
        .arg("cb:delayed:text")
        .arg(1)
        .arg(encode_member("1-1", &fields))
        .exec_async(&mut rig.connection.clone())
        .await
        .unwrap();
    let builder = rig.builder().settings(settings);
    let worker = rig.start(
        builder
            .handler("image.resize", resize)
            .handler("text.upper", upper),
    );
    // New; a request; the control plane.
    rig.run("XADD cb:events:text * type image.resize id new")
        .await;
    rig.run("XADD cb:events:text * type task.create id task replyto cb:reply:me")
        .await;
    let me = rmp_serde::to_vec_named(&serde_json::json!({"instance_id": "w-1"})).unwrap();
    for stream in ["cb:events:text", "cb:events:task"] {
        let mut leave = redis::cmd("XADD");
        leave.arg(stream).arg("*").arg("type");
        leave.arg("system.unregister").arg("data").arg(&me);
        leave.exec_async(&mut rig.connection.clone()).await.unwrap();
    }
    let mut dead = rig.wait_for("cb:dead:text", 5).await;
    dead.extend(rig.wait_for("cb:dead:task", 1).await);
    for letter in &dead {
        assert_eq!(text(letter, "deadreason"), "invalid_argument");
        let said = text(letter, "deadmessage");
        assert!(
            said.contains("runs from the stream of its own domain"),
            "{said}"
        );
    }
    let mut ids: Vec<String> = dead
        .iter()
        .filter_map(|letter| letter.get("id"))
        .map(|id| String::from_utf8_lossy(id).into_owned())
        .collect();
    ids.sort();
    assert_eq!(ids, ["delayed", "new", "taken", "task"]);
    let replies = rig.wait_for("cb:reply:me", 1).await;
    assert_eq!(text(&replies[0], "status"), "invalid_argument");
    assert!(rig.exists("cb:instance:w-1").await);
    assert_eq!(runs.load(Ordering::SeqCst), 0);
    // In their places they run.
    rig.run("XADD cb:inbox:w-1 * type image.resize").await;
    rig.run("XADD cb:events:image * type image.resize").await;
    rig.wait_for("cb:results:inbox", 1).await;
    rig.wait_for("cb:results:image", 1).await;
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    worker.stop().await;
}
