//! Reports on what a run wrote to the server itself, when the server may have lost that.

use crate::rig::Rig;
use crate::support::{Redis, name, until, users};
use convoke::client::publish::Outgoing;
use convoke::handler::dispatch::Part;
use convoke::handler::policy::Policy;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError};
use futures_util::future::BoxFuture;
use redis::AsyncCommands;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::Semaphore;

const NOTE: &str = "cb:lease:note";

/// Runs of one handler, which wait at a gate.
#[derive(Clone)]
struct Gate {
    runs: Arc<AtomicU32>,
    open: Arc<Semaphore>,
}

impl Gate {
    fn new() -> Self {
        Self {
            runs: Arc::default(),
            open: Arc::new(Semaphore::new(0)),
        }
    }

    fn runs(&self) -> u32 {
        self.runs.load(Ordering::SeqCst)
    }

    async fn pass(&self) {
        self.runs.fetch_add(1, Ordering::SeqCst);
        self.open.acquire().await.unwrap().forget();
    }
}

/// Writes a note, and waits.
async fn note(context: &Context, gate: &Gate) -> Result<(), HandlerError> {
    let mut redis = context.redis().await?;
    let written: redis::RedisResult<()> = redis.set(name("load", NOTE), "written").await;
    written.map_err(|error| HandlerError::unavailable(error.to_string()))?;
    drop(redis);
    gate.pass().await;
    Ok(())
}

fn noting(builder: Builder, gate: &Gate) -> Builder {
    let gate = gate.clone();
    builder.handler("load.noting", move |context: Context, _: Value| {
        let gate = gate.clone();
        async move { note(&context, &gate).await }
    })
}

/// A handler that waits and writes nothing.
fn waiting(
    gate: Gate,
) -> impl Fn(Context, Value) -> BoxFuture<'static, Result<(), HandlerError>> + Clone {
    move |_, _| {
        let gate = gate.clone();
        Box::pin(async move {
            gate.pass().await;
            Ok(())
        })
    }
}

/// A restart that loses the note.
async fn forget(rig: &mut Rig) {
    rig.redis.restart();
    rig.connection = rig.redis.connection().await;
    rig.connection.del::<_, ()>(NOTE).await.unwrap();
}

async fn has_note(rig: &mut Rig) -> bool {
    rig.connection.exists(NOTE).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_repeated_if_the_server_may_have_lost_what_it_wrote_there() {
    if users::skip_without("INFO") {
        return;
    }
    let mut rig = Rig::on(Redis::durable()).await;
    let gates = [(); 4].map(|()| Gate::new());
    let [writes, parts, stateful, plain] = gates.clone();
    // Its part writes, not it itself.
    let outer = |context: Context, _: Value| async move {
        let part = Part {
            kind: "load.part",
            data: vec![0xc0],
            id: "part".into(),
            attempt: 1,
        };
        context.dispatch(part).await?.result.map(|_| ())
    };
    let builder = noting(rig.builder(), &writes)
        .handler("load.outer", outer)
        .handler("load.part", move |context: Context, _: Value| {
            let gate = parts.clone();
            async move { note(&context, &gate).await }
        })
        .handler_with("load.stateful", waiting(stateful), Policy::new().stateful())
        .handler("load.plain", waiting(plain));
    let worker = rig.start(builder);
    for kind in ["load.noting", "load.outer", "load.stateful", "load.plain"] {
        rig.client.publish(&Outgoing::new(kind, &())).await.unwrap();
    }
    let count = || gates.each_ref().map(Gate::runs);
    until("all run", || async { count() == [1; 4] }).await;
    forget(&mut rig).await;
    for gate in &gates {
        gate.open.add_permits(2);
    }
    let results = rig.wait_for("cb:results:load", 4).await;
    assert_eq!(results.len(), 4, "one outcome each");
    assert_eq!(count(), [2, 2, 2, 1]);
    assert!(has_note(&mut rig).await);
    // A run that began since the restart is not repeated.
    for gate in &gates {
        gate.open.add_permits(2);
    }
    for kind in ["load.noting", "load.stateful"] {
        let event = Outgoing::new(kind, &()).id(kind).dedup(true);
        rig.client.publish(&event).await.unwrap();
    }
    rig.wait_for("cb:results:load", 6).await;
    assert_eq!(count(), [3, 2, 3, 1]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_completed_only_where_what_its_handler_wrote_is() {
    if users::skip_without("INFO") {
        return;
    }
    let mut rig = Rig::on(Redis::durable()).await;
    let gate = Gate::new();
    let plain = Gate::new();
    let builder = noting(rig.builder(), &gate).handler("load.plain", waiting(plain.clone()));
    let worker = rig.start(builder);
    for (id, kind) in [("t-1", "load.noting"), ("t-2", "load.plain")] {
        let task = json!({"task_id": id, "kind": kind});
        rig.ask("task.create", &task).await.unwrap();
    }
    until("both run", || async {
        (gate.runs(), plain.runs()) == (1, 1)
    })
    .await;
    forget(&mut rig).await;
    gate.open.add_permits(2);
    plain.open.add_permits(2);
    until("both tasks are completed", || async {
        let facts = rig.entries("cb:broadcast").await;
        let kinds = facts.iter().map(|fact| fact.get("type"));
        let completed = kinds.filter(|kind| *kind == Some(b"task.completed"));
        completed.count() == 2
    })
    .await;
    assert_eq!((gate.runs(), plain.runs()), (2, 1));
    assert!(has_note(&mut rig).await);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_is_finished_only_where_what_its_handler_wrote_is() {
    if users::skip_without("INFO") {
        return;
    }
    for mode in ["exclusive", "fan_out"] {
        let mut rig = Rig::on(Redis::durable()).await;
        let gate = Gate::new();
        let worker = rig.start(noting(rig.builder(), &gate));
        let batch = json!({
            "batch_id": "b-1", "item_type": "load.noting", "items": [1], "mode": mode
        });
        let event = Outgoing::new("system.batch.process", &batch);
        rig.client.publish(&event).await.unwrap();
        until("it runs", || async { gate.runs() == 1 }).await;
        forget(&mut rig).await;
        gate.open.add_permits(2);
        let results = rig.wait_for("cb:results:system", 1).await;
        assert_eq!(results.len(), 1, "{mode}");
        assert_eq!(gate.runs(), 2, "{mode}");
        assert!(has_note(&mut rig).await, "{mode}");
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_before_the_last_one_that_was_read_elsewhere_are_read() {
    if users::skip_without("INFO") {
        return;
    }
    let mut rig = Rig::on(Redis::durable()).await;
    let gate = Gate::new();
    let worker = rig.start(rig.builder().handler("load.part", waiting(gate.clone())));
    let batch = json!({
        "batch_id": "b-1", "item_type": "load.part", "items": [1, 2, 3], "mode": "fan_out"
    });
    let event = Outgoing::new("system.batch.process", &batch);
    rig.client.publish(&event).await.unwrap();
    until("all items run", || async { gate.runs() == 3 }).await;
    // A primary that was cut off took this, late.
    let word: String = rig.connection.hget("cb:batch:b-1", "word").await.unwrap();
    let replies = name("load", &format!("cb:reply:batch-{word}"));
    let mut reply = redis::cmd("XADD");
    reply.arg(&replies).arg("4000000000000-0");
    let item = format!("b-1/{word}/0");
    reply.arg(&["correlationid", &item, "type", "load.part.result"]);
    reply.arg(&["status", "ok", "data"]).arg(b"\xc0");
    let _: String = reply.query_async(&mut rig.connection).await.unwrap();
    until("it is read", || async {
        let mut connection = rig.connection.clone();
        let processed = connection.hget("cb:batch:b-1", "processed").await;
        processed.unwrap_or(0) == 1
    })
    .await;
    // The next one did not.
    rig.connection.del::<_, ()>(&replies).await.unwrap();
    rig.redis.restart();
    rig.connection = rig.redis.connection().await;
    gate.open.add_permits(3);
    let results = rig.wait_for("cb:results:system", 1).await;
    assert_eq!(results.len(), 1);
    assert_eq!(gate.runs(), 3, "no item runs twice");
    assert!(!rig.exists(&replies).await, "the replies are removed");
    worker.stop().await;
}
