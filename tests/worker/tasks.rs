//! Tasks over the bus, run by workers with their own handlers.

use crate::rig::{Rig, text};
use crate::support::until;
use convoke::builtin::exec;
use convoke::protocol::error::Code;
use convoke::{Context, HandlerError, Policy};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

async fn ask(rig: &Rig, kind: &str, payload: Value) -> Value {
    let reply = rig.ask(kind, &payload).await;
    reply.unwrap().decode().unwrap()
}

async fn task(rig: &Rig, id: &str) -> Value {
    ask(rig, "task.get", json!({"task_id": id})).await
}

/// Waits until a task has that status, and gives it.
async fn wait_for(rig: &Rig, id: &str, status: &str) -> Value {
    until(&format!("{id} is {status}"), || async {
        task(rig, id).await["status"] == status
    })
    .await;
    task(rig, id).await
}

fn settings(rig: &Rig, id: &str, capacity: u32) -> convoke::settings::Settings {
    convoke::settings::Settings {
        id: id.into(),
        capacity,
        ..rig.settings()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_run_by_the_worker_that_has_a_command_for_it() {
    let rig = Rig::new().await;
    let upper = exec::registration("text.upper", "tr '[:lower:]' '[:upper:]'", 1 << 20);
    let fail = exec::registration("text.fail", "echo no such text >&2; exit 65", 1 << 20);
    let one = rig.start(
        rig.builder()
            .settings(settings(&rig, "w-1", 2))
            .register(upper),
    );
    let two = rig.start(
        rig.builder()
            .settings(settings(&rig, "w-2", 2))
            .register(fail),
    );
    let created = ask(
        &rig,
        "task.create",
        json!({"task_id": "t-1", "kind": "text.upper", "payload": {"a": "é x"}}),
    )
    .await;
    assert_eq!(created["task_id"], "t-1");
    let done = wait_for(&rig, "t-1", "completed").await;
    assert_eq!(done["result"], json!({"A": "é X"}));
    assert_eq!(
        (&done["instance_id"], &done["attempt"]),
        (&json!("w-1"), &json!(1))
    );
    // Without an id the event's is taken.
    let created = ask(&rig, "task.create", json!({"kind": "text.fail"})).await;
    let id = created["task_id"].as_str().unwrap();
    let failed = wait_for(&rig, id, "failed").await;
    assert_eq!(failed["instance_id"], "w-2");
    assert!(
        failed["error"].as_str().unwrap().contains("no such text"),
        "{failed}"
    );
    let listed = ask(&rig, "task.list", json!({"status": "failed"})).await;
    assert_eq!(listed["tasks"][0]["task_id"], id);
    one.stop().await;
    two.stop().await;
    assert_eq!(rig.pending("cb:inbox:w-1").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_errors_of_task_events_name_code_and_field() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder());
    let refused = async |kind: &str, payload: Value| {
        let error = rig.refused(kind, &payload).await;
        (error.code, error.message.to_string())
    };
    for (payload, field) in [
        (json!({}), "kind"),
        (json!({"kind": "resize"}), "kind"),
        (json!({"kind": "a.b", "priority": 101}), "priority"),
        (json!({"kind": "a.b", "priority": -1}), "priority"),
        (json!({"kind": "a.b", "task_id": "a b"}), "task_id"),
        (json!({"kind": "a.b", "requires": ["x"]}), "requires[0]"),
        (json!({"kind": "a.b", "max_attempts": 0}), "max_attempts"),
    ] {
        let (code, message) = refused("task.create", payload).await;
        assert_eq!(code, Code::InvalidArgument);
        assert!(message.contains(field), "{message}");
    }
    let nobodys = json!({"task_id": "t-9", "instance_id": "w-1", "fence": 1, "error": "x"});
    assert_eq!(
        refused("task.complete", nobodys.clone()).await.0,
        Code::NotFound
    );
    assert_eq!(
        refused("task.fail", nobodys.clone()).await.0,
        Code::NotFound
    );
    assert_eq!(refused("task.get", nobodys).await.0, Code::NotFound);
    let (code, message) = refused("task.list", json!({"status": "done"})).await;
    assert!(
        code == Code::InvalidArgument && message.starts_with("status: "),
        "{message}"
    );
    ask(
        &rig,
        "task.create",
        json!({"task_id": "t-1", "kind": "no.body"}),
    )
    .await;
    let other = json!({"task_id": "t-1", "kind": "no.body", "payload": 1});
    assert_eq!(refused("task.create", other).await.0, Code::AlreadyExists);
    worker.stop().await;
}

async fn publish(context: Context, n: u32) -> Result<u32, HandlerError> {
    context.publish("audit.counted", &n)?;
    match n {
        0 => Err(HandlerError::unavailable("not today")),
        n => Ok(n),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_tasks_handler_publishes_comes_with_its_completion_only() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().handler("number.count", publish));
    for (id, n) in [("bad", 0), ("good", 7)] {
        let event = json!({"task_id": id, "kind": "number.count", "payload": n, "max_attempts": 2});
        ask(&rig, "task.create", event).await;
    }
    let failed = wait_for(&rig, "bad", "failed").await;
    assert_eq!(
        failed["attempt"], 2,
        "retryable: tried until no attempt was left"
    );
    assert_eq!(failed["error"], "unavailable: not today");
    wait_for(&rig, "good", "completed").await;
    let published = rig.wait_for("cb:events:audit", 1).await;
    assert_eq!(published.len(), 1);
    assert_eq!(text(&published[0], "type"), "audit.counted");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_tasks_run_at_a_time_as_the_capacity_says_and_system_events_pass_them() {
    let rig = Rig::new().await;
    let (now, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let seen = (now.clone(), most.clone(), gate.clone());
    let wait = move |_: Context, _: Value| {
        let (now, most, gate) = seen.clone();
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            now.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, HandlerError>(())
        }
    };
    let mut settings = settings(&rig, "w-1", 20);
    // What bounds the other lanes has nothing to do with tasks.
    settings.concurrency = 2;
    let worker = rig.start(rig.builder().settings(settings).handler("gate.wait", wait));
    for number in 0..30 {
        let event = json!({"task_id": format!("t-{number}"), "kind": "gate.wait", "payload": {}});
        ask(&rig, "task.create", event).await;
    }
    until("the capacity is used", || async {
        now.load(Ordering::SeqCst) == 20
    })
    .await;
    let health = ask(&rig, "system.health", json!({})).await;
    assert_eq!(health["status"], "healthy");
    let waiting = ask(&rig, "task.list", json!({"status": "pending"})).await;
    assert_eq!(waiting["tasks"].as_array().unwrap().len(), 10);
    until("the pulse tells the load", || async {
        let mut connection = rig.connection.clone();
        let load: String = redis::cmd("HGET")
            .arg(&["cb:instance:w-1", "load"])
            .query_async(&mut connection)
            .await
            .unwrap();
        load.parse::<f64>().unwrap() >= 20.0
    })
    .await;
    gate.add_permits(30);
    until("all are done", || async {
        let done = ask(&rig, "task.list", json!({"status": "completed"})).await;
        done["tasks"].as_array().unwrap().len() == 30
    })
    .await;
    assert_eq!(most.load(Ordering::SeqCst), 20);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_or_stale_assignment_runs_nothing() {
    let rig = Rig::new().await;
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let count = move |_: Context, _: Value| {
        let counted = counted.clone();
        async move {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok::<_, HandlerError>(())
        }
    };
    let worker = rig.start(
        rig.builder()
            .settings(settings(&rig, "w-1", 2))
            .handler("count.up", count),
    );
    let event = json!({"task_id": "t-1", "kind": "count.up", "payload": {}});
    ask(&rig, "task.create", event).await;
    let done = wait_for(&rig, "t-1", "completed").await;
    let fence = done["fence"].as_u64().unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    let assigned = |fence: u64| json!({"task_id": "t-1", "kind": "count.up", "payload": {}, "fence": fence, "attempt": 1});
    // A publisher may write to the stream of task events.
    let forged = rig.refused("task.assigned", &assigned(fence)).await;
    assert_eq!(forged.code, Code::PermissionDenied);
    // Entries of an inbox may be old: done with, or someone else's.
    let mut connection = rig.connection.clone();
    for fence in [fence, fence - 1] {
        redis::cmd("XADD")
            .arg(&["cb:inbox:w-1", "*", "type", "task.assigned", "data"])
            .arg(rmp_serde::to_vec_named(&assigned(fence)).unwrap())
            .exec_async(&mut connection)
            .await
            .unwrap();
    }
    until("the inbox is empty", || async {
        let entries = rig.entries("cb:inbox:w-1").await.len();
        entries == 3 && rig.pending("cb:inbox:w-1").await == 0
    })
    .await;
    worker.stop().await;
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert!(rig.entries("cb:dead:inbox").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_leaves_hands_on_what_it_can_not_finish() {
    let rig = Rig::new().await;
    let slow = async |context: Context, ms: u64| {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        Ok::<_, HandlerError>(context.instance().to_owned())
    };
    let mut leaving = settings(&rig, "w-1", 5);
    leaving.drain_timeout = Duration::from_millis(300);
    let first = rig.start(rig.builder().settings(leaving).handler("time.pass", slow));
    let create = async |id: &str, ms: u64| {
        let event = json!({"task_id": id, "kind": "time.pass", "payload": ms});
        ask(&rig, "task.create", event).await
    };
    until("there is a worker", || async {
        create("t-0", 0).await;
        task(&rig, "t-0").await["status"] == "completed"
    })
    .await;
    for id in ["t-1", "t-2"] {
        assert_eq!(create(id, 5000).await["assigned_to"], "w-1");
    }
    let before = task(&rig, "t-1").await["fence"].as_u64();
    let second = rig.start(
        rig.builder()
            .settings(settings(&rig, "w-2", 5))
            .handler("time.pass", slow),
    );
    first.stop().await;
    for id in ["t-1", "t-2"] {
        let done = wait_for(&rig, id, "completed").await;
        assert_eq!(
            (&done["result"], &done["attempt"]),
            (&json!("w-2"), &json!(1))
        );
        assert!(done["fence"].as_u64() > before);
    }
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_runs_longer_than_the_claim_time_runs_once() {
    let rig = Rig::new().await;
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let slow = move |_: Context, ms: u64| {
        let counted = counted.clone();
        async move {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(ms)).await;
            Ok::<_, HandlerError>(())
        }
    };
    let mut settings = settings(&rig, "w-1", 5);
    settings.claim_idle = Duration::from_secs(1);
    let policy = Policy::new().no_timeout();
    let builder = rig.builder().settings(settings);
    let worker = rig.start(builder.handler_with("time.pass", slow, policy));
    let event = json!({"task_id": "t-1", "kind": "time.pass", "payload": 4000});
    ask(&rig, "task.create", event).await;
    let done = wait_for(&rig, "t-1", "completed").await;
    assert_eq!(done["attempt"], 1);
    worker.stop().await;
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_is_held_back_uses_no_attempt_up() {
    let rig = Rig::new().await;
    let echo = async |_: Context, n: u32| Ok::<_, HandlerError>(n);
    let policy = Policy::new().rate_limit(1, Duration::from_millis(600));
    let worker = rig.start(rig.builder().handler_with("number.echo", echo, policy));
    for number in 0..3 {
        let event = json!({
            "task_id": format!("t-{number}"), "kind": "number.echo", "payload": number,
            "max_attempts": 1
        });
        ask(&rig, "task.create", event).await;
    }
    for number in 0..3 {
        let done = wait_for(&rig, &format!("t-{number}"), "completed").await;
        assert_eq!(done["result"], number);
    }
    worker.stop().await;
}

/// What a client in any language does: Redis commands and MessagePack, nothing of this library.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_client_can_register_take_and_complete_tasks() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder());
    let mut redis = rig.connection.clone();
    let mut seen = "0".to_owned();
    let mut send = async |stream: &str, kind: &str, payload: Value| -> (String, Value) {
        redis::cmd("XADD")
            .arg(&[
                stream,
                "*",
                "type",
                kind,
                "replyto",
                "cb:reply:foreign",
                "data",
            ])
            .arg(rmp_serde::to_vec_named(&payload).unwrap())
            .exec_async(&mut redis)
            .await
            .unwrap();
        type Entries = Vec<(String, std::collections::HashMap<String, Vec<u8>>)>;
        let read: Vec<(String, Entries)> = redis::cmd("XREAD")
            .arg(&["BLOCK", "20000", "STREAMS", "cb:reply:foreign", &seen])
            .query_async(&mut redis)
            .await
            .unwrap();
        let (id, fields) = &read[0].1[0];
        seen.clone_from(id);
        let status = String::from_utf8(fields["status"].clone()).unwrap();
        (status, rmp_serde::from_slice(&fields["data"]).unwrap())
    };
    let (tasks, system) = ("cb:events:task", "cb:events:system");
    let create =
        json!({"task_id": "t-1", "kind": "film.cut", "payload": [1, "two"], "role": "cutter"});
    let (status, created) = send(tasks, "task.create", create).await;
    assert_eq!(
        (status.as_str(), &created["status"]),
        ("ok", &json!("pending"))
    );
    let register = json!({"id": "foreign-1", "roles": ["cutter"], "capacity": 1});
    let (_, registered) = send(system, "system.register", register).await;
    assert_eq!(registered["assigned"], json!(["t-1"]));
    let inbox = rig.entries("cb:inbox:foreign-1").await;
    assert_eq!(text(&inbox[0], "type"), "task.assigned");
    let assigned: Value = rmp_serde::from_slice(inbox[0].get("data").unwrap()).unwrap();
    assert_eq!(assigned["payload"], json!([1, "two"]));
    assert_eq!(
        (&assigned["task_id"], &assigned["attempt"]),
        (&json!("t-1"), &json!(1))
    );
    let mut outcome = json!({
        "task_id": "t-1", "instance_id": "foreign-1", "fence": assigned["fence"], "error": "jam"
    });
    let (_, failed) = send(tasks, "task.fail", outcome.clone()).await;
    assert_eq!(
        failed,
        json!({"status": "assigned"}),
        "nobody else cuts films"
    );
    let (status, _) = send(tasks, "task.complete", outcome.clone()).await;
    assert_eq!(status, "aborted", "the fence is old");
    let again = rig.entries("cb:inbox:foreign-1").await.pop().unwrap();
    let again: Value = rmp_serde::from_slice(again.get("data").unwrap()).unwrap();
    assert!(again["fence"].as_u64() > assigned["fence"].as_u64());
    outcome["fence"] = again["fence"].clone();
    outcome["result"] = json!({"minutes": 90});
    for _ in 0..2 {
        let (_, completed) = send(tasks, "task.complete", outcome.clone()).await;
        assert_eq!(completed, json!({"status": "completed"}));
    }
    let (_, got) = send(tasks, "task.get", json!({"task_id": "t-1"})).await;
    assert_eq!(got["result"], json!({"minutes": 90}));
    assert_eq!(
        (&got["attempt"], &got["payload"]),
        (&json!(2), &json!([1, "two"]))
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_task_ends_the_run_that_listens_and_whatever_it_returns_is_discarded() {
    let rig = Rig::new().await;
    let (begun, told) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (began, seen) = (begun.clone(), told.clone());
    let listens = move |context: Context, answer: bool| {
        let (began, seen) = (began.clone(), seen.clone());
        async move {
            began.fetch_add(1, Ordering::SeqCst);
            context.cancellation().cancelled().await;
            seen.fetch_add(1, Ordering::SeqCst);
            match answer {
                true => Ok(7),
                false => Err(HandlerError::unavailable("it was cancelled")),
            }
        }
    };
    let builder = rig.builder().settings(settings(&rig, "w-1", 2));
    let worker = rig.start(builder.handler("slow.work", listens));
    for (id, answer) in [("t-1", true), ("t-2", false), ("t-3", true)] {
        let payload = json!({"task_id": id, "kind": "slow.work", "payload": answer});
        ask(&rig, "task.create", payload).await;
    }
    for id in ["t-1", "t-2"] {
        wait_for(&rig, id, "assigned").await;
    }
    assert_eq!(task(&rig, "t-3").await["status"], "pending");
    until("both run", || async { begun.load(Ordering::SeqCst) == 2 }).await;
    rig.until_heard(1).await;
    // One that waits, then those that run.
    for id in ["t-3", "t-1", "t-2"] {
        let payload = json!({"task_id": id, "reason": "no more"});
        let cancelled = ask(&rig, "task.cancel", payload).await;
        assert_eq!(cancelled, json!({"status": "cancelled"}));
    }
    until("both were told", || async {
        told.load(Ordering::SeqCst) == 2
    })
    .await;
    until("both are settled", || async {
        rig.pending("cb:inbox:w-1").await == 0
    })
    .await;
    for id in ["t-1", "t-2", "t-3"] {
        let is = task(&rig, id).await;
        assert_eq!(
            (&is["status"], &is["reason"]),
            (&json!("cancelled"), &json!("no more"))
        );
        assert_eq!(is.get("result"), None);
    }
    assert!(!rig.exists("cb:dead:inbox").await);
    let refused = rig.refused("task.cancel", &json!({"task_id": "t-9"})).await;
    assert_eq!(refused.code, Code::NotFound);
    worker.stop().await;
}
