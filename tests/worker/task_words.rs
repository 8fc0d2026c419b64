//! Tasks that are changed, moved and claimed over the bus.

use crate::rig::{Rig, text};
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::protocol::error::Code;
use convoke::settings::Settings;
use convoke::{Context, HandlerError};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

async fn ask(rig: &Rig, kind: &str, payload: Value) -> Value {
    let reply = rig.ask(kind, &payload).await;
    reply.unwrap().decode().unwrap()
}

async fn refused(rig: &Rig, kind: &str, payload: Value) -> (Code, String) {
    let error = rig.refused(kind, &payload).await;
    (error.code, error.message.to_string())
}

async fn task(rig: &Rig, id: &str) -> Value {
    ask(rig, "task.get", json!({"task_id": id})).await
}

fn settings(rig: &Rig, id: &str, capacity: u32) -> Settings {
    Settings {
        id: id.into(),
        capacity,
        ..rig.settings()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_is_taken_away_ends_the_run_that_listens_and_goes_to_another_worker() {
    let rig = Rig::new().await;
    let (begun, told) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (began, seen) = (begun.clone(), told.clone());
    let listens = move |context: Context, _: u32| {
        let (began, seen) = (began.clone(), seen.clone());
        async move {
            if context.instance() == "w-2" {
                return Ok(2);
            }
            began.fetch_add(1, Ordering::SeqCst);
            context.cancellation().cancelled().await;
            seen.fetch_add(1, Ordering::SeqCst);
            Ok::<_, HandlerError>(1)
        }
    };
    let first = rig.builder().settings(settings(&rig, "w-1", 2));
    let first = rig.start(first.handler("slow.work", listens.clone()));
    for id in ["t-1", "t-2"] {
        let create = json!({"task_id": id, "kind": "slow.work", "payload": 7});
        ask(&rig, "task.create", create).await;
        until("it runs", || async {
            task(&rig, id).await["status"] == "assigned"
        })
        .await;
    }
    until("both run", || async { begun.load(Ordering::SeqCst) == 2 }).await;
    rig.until_heard(1).await;
    let second = rig.builder().settings(settings(&rig, "w-2", 5));
    let second = rig.start(second.handler("slow.work", listens));
    until("the second is there", || async {
        rig.exists("cb:instance:w-2").await
    })
    .await;
    let placed = ask(&rig, "task.unassign", json!({"task_id": "t-1"})).await;
    assert_eq!(placed["assigned_to"], "w-2");
    let word = json!({"task_id": "t-2", "instance_id": "w-2"});
    let placed = ask(&rig, "task.assign", word).await;
    assert_eq!(placed["assigned_to"], "w-2");
    for id in ["t-1", "t-2"] {
        until("it is done", || async {
            task(&rig, id).await["status"] == "completed"
        })
        .await;
        let is = task(&rig, id).await;
        assert_eq!((&is["result"], &is["attempt"]), (&json!(2), &json!(1)));
    }
    until("both runs were told", || async {
        told.load(Ordering::SeqCst) == 2
    })
    .await;
    until("all is settled", || async {
        rig.pending("cb:inbox:w-1").await == 0
    })
    .await;
    assert_eq!(rig.wait_for_fact("task.unassigned", 2).await.len(), 2);
    assert_eq!(rig.wait_for_fact("task.completed", 2).await.len(), 2);
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_takes_its_tasks_by_itself_and_never_reads_an_inbox() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().settings(settings(&rig, "w-1", 1)));
    let register =
        json!({"id": "x-1", "roles": ["cutter"], "capacity": 2, "capabilities": ["film.cut"]});
    ask(&rig, "system.register", register).await;
    let claim = json!({"instance_id": "x-1", "limit": 5});
    let none = ask(&rig, "task.claim", claim.clone()).await;
    assert_eq!(none, json!({"tasks": []}));
    for (id, priority) in [("t-10", 10), ("t-50", 50), ("t-90", 90)] {
        let create = json!({"task_id": id, "kind": "film.cut", "payload": {"id": id},
            "priority": priority, "role": "cutter"});
        let created = ask(&rig, "task.create", create).await;
        assert_eq!(created["status"], "pending");
    }
    let update =
        json!({"task_id": "t-10", "priority": 60, "payload": null, "metadata": {"by": "me"}});
    let updated = ask(&rig, "task.update", update).await;
    assert_eq!(updated, json!({"task_id": "t-10", "status": "pending"}));
    let is = task(&rig, "t-10").await;
    assert_eq!(
        (&is["payload"], &is["metadata"]),
        (&Value::Null, &json!({"by": "me"}))
    );
    // The answer is lost: the same claim again.
    let mut answers = Vec::new();
    for _ in 0..2 {
        let event = Outgoing::new("task.claim", &claim).id("claim-1");
        let reply = rig.client.request(event, Duration::from_secs(20)).await;
        answers.push(reply.unwrap().decode::<Value>().unwrap());
    }
    assert_eq!(answers[0], answers[1]);
    let claimed = answers[0]["tasks"].as_array().unwrap();
    let ids: Vec<&Value> = claimed.iter().map(|task| &task["task_id"]).collect();
    assert_eq!(ids, ["t-90", "t-10"], "two at a time");
    assert_eq!(claimed[0]["payload"], json!({"id": "t-90"}));
    assert_eq!(
        (&claimed[0]["attempt"], &claimed[1]["payload"]),
        (&json!(1), &Value::Null)
    );
    for (task, event) in [(&claimed[0], "task.complete"), (&claimed[1], "task.fail")] {
        let report = json!({"task_id": task["task_id"], "instance_id": "x-1", "fence": task["fence"],
            "result": 9, "error": "torn", "retryable": false});
        ask(&rig, event, report).await;
    }
    assert_eq!(task(&rig, "t-90").await["result"], 9);
    let last = ask(&rig, "task.claim", claim.clone()).await;
    assert_eq!(last["tasks"][0]["task_id"], "t-50");
    // Cancelled while it works on it: its completion is void.
    let fence = &last["tasks"][0]["fence"];
    ask(&rig, "task.cancel", json!({"task_id": "t-50"})).await;
    let report = json!({"task_id": "t-50", "instance_id": "x-1", "fence": fence});
    let (code, _) = refused(&rig, "task.complete", report).await;
    assert_eq!(code, Code::Aborted);
    assert!(!rig.exists("cb:inbox:x-1").await);
    let created = rig.wait_for_fact("task.created", 3).await;
    assert_eq!(text(&created[0], "type"), "task.created");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_against_a_word_is_said_with_its_code() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().settings(settings(&rig, "w-1", 1)));
    let create = json!({"task_id": "t-1", "kind": "no.body"});
    ask(&rig, "task.create", create).await;
    for (kind, payload, code, said) in [
        (
            "task.assign",
            json!({"task_id": "t-1", "instance_id": "w-1"}),
            Code::FailedPrecondition,
            "capability no.body",
        ),
        (
            "task.assign",
            json!({"task_id": "t-1", "instance_id": "w-9"}),
            Code::FailedPrecondition,
            "not active",
        ),
        (
            "task.assign",
            json!({"task_id": "t-9", "instance_id": "w-1"}),
            Code::NotFound,
            "t-9",
        ),
        (
            "task.assign",
            json!({"task_id": "t-1"}),
            Code::InvalidArgument,
            "instance_id",
        ),
        (
            "task.unassign",
            json!({"task_id": "t-9"}),
            Code::NotFound,
            "t-9",
        ),
        (
            "task.update",
            json!({"task_id": "t-9", "priority": 1}),
            Code::NotFound,
            "t-9",
        ),
        (
            "task.update",
            json!({"task_id": "t-1", "priority": 101}),
            Code::InvalidArgument,
            "priority",
        ),
        (
            "task.update",
            json!({"task_id": "t-1", "metadata": 1}),
            Code::InvalidArgument,
            "metadata",
        ),
        (
            "task.claim",
            json!({"instance_id": "w-1"}),
            Code::PermissionDenied,
            "w-1",
        ),
        (
            "task.claim",
            json!({"instance_id": "x-1"}),
            Code::FailedPrecondition,
            "not active",
        ),
        (
            "task.claim",
            json!({"instance_id": "x-1", "limit": 51}),
            Code::InvalidArgument,
            "limit",
        ),
        (
            "task.claim",
            json!({"instance_id": "x-1", "kinds": []}),
            Code::InvalidArgument,
            "kinds",
        ),
        (
            "task.claim",
            json!({"limit": 1}),
            Code::InvalidArgument,
            "instance_id",
        ),
    ] {
        let (refused, message) = refused(&rig, kind, payload).await;
        assert_eq!(refused, code, "{message}");
        assert!(message.contains(said), "{message}");
    }
    assert_eq!(task(&rig, "t-1").await["status"], "pending");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deepest_payload_that_a_task_may_have_can_be_claimed() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().settings(settings(&rig, "w-1", 1)));
    let register = json!({"id": "x-1", "roles": ["digger"], "capacity": 9});
    ask(&rig, "system.register", register).await;
    let deep = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
    for depth in (28..32).rev() {
        let create =
            json!({"task_id": "t-1", "kind": "a.b", "role": "digger", "payload": deep(depth)});
        let created = rig.ask("task.create", &create).await;
        if created.is_ok() {
            break;
        }
    }
    let claimed = ask(&rig, "task.claim", json!({"instance_id": "x-1"})).await;
    assert_eq!(claimed["tasks"][0]["payload"], deep(29));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_no_answer_can_hold_ends_and_is_in_nobodys_way() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().settings(settings(&rig, "w-1", 1)));
    let register = json!({"id": "x-1", "roles": ["cutter"], "capacity": 1});
    ask(&rig, "system.register", register).await;
    let create = async |id: &str, payload: rmpv::Value| {
        let fields = [("task_id", id), ("kind", "a.b"), ("role", "cutter")];
        let fields = fields.map(|(name, value)| (name.into(), value.into()));
        let payload = [("payload".into(), payload)];
        let task = rmpv::Value::Map(fields.into_iter().chain(payload).collect());
        rig.ask("task.create", &task).await.unwrap();
    };
    // In JSON it is twice as long.
    let large = rmpv::Value::Binary(vec![7; 600 << 10]);
    create("large", large.clone()).await;
    create("small", 7.into()).await;
    let claimed = async |number: usize| -> Value {
        let to = format!("cb:reply:{number}");
        let asked = r#"{"instance_id":"x-1","limit":5}"#;
        rig.run(&format!(
            "XADD cb:events:task * type task.claim id c-{number} data {asked} \
             datacontenttype application/json replyto {to}"
        ))
        .await;
        let reply = rig.wait_for(&to, 1).await.remove(0);
        assert_eq!(text(&reply, "status"), "ok", "{reply:?}");
        serde_json::from_slice(reply.get("data").unwrap()).unwrap()
    };
    assert_eq!(claimed(1).await, json!({"tasks": []}));
    let small = claimed(2).await;
    assert_eq!(small["tasks"][0]["task_id"], "small");
    let listed = ask(&rig, "task.list", json!({"status": "failed"})).await;
    assert_eq!(listed["tasks"][0]["task_id"], "large");
    let error = listed["tasks"][0]["error"].as_str().unwrap();
    assert!(error.contains("JSON"), "{error}");
    // Whoever reads MessagePack gets one as large.
    let done =
        json!({"task_id": "small", "instance_id": "x-1", "fence": small["tasks"][0]["fence"]});
    ask(&rig, "task.complete", done).await;
    create("packed", large).await;
    let claim = json!({"instance_id": "x-1"});
    let reply = rig.ask("task.claim", &claim).await.unwrap();
    let answer: rmpv::Value = reply.decode().unwrap();
    assert_eq!(answer["tasks"][0]["task_id"], "packed".into());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_names_its_incarnation_is_refused_once_it_is_another_one() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().settings(settings(&rig, "w-1", 1)));
    let register = json!({"id": "x-1", "roles": ["cutter"], "capacity": 1});
    let registered = ask(&rig, "system.register", register).await;
    let is = registered["incarnation"].as_u64().unwrap();
    let claim = json!({"instance_id": "x-1", "incarnation": is});
    let none = ask(&rig, "task.claim", claim.clone()).await;
    assert_eq!(none, json!({"tasks": []}));
    let create = json!({"task_id": "t-1", "kind": "a.b", "role": "cutter"});
    ask(&rig, "task.create", create).await;
    for wrong in [is - 1, is + 1, 0] {
        let claim = json!({"instance_id": "x-1", "incarnation": wrong});
        let (code, message) = refused(&rig, "task.claim", claim).await;
        assert_eq!(code, Code::FailedPrecondition);
        assert!(message.starts_with("incarnation"), "{message}");
    }
    assert_eq!(task(&rig, "t-1").await["status"], "pending");
    let claimed = ask(&rig, "task.claim", claim).await;
    assert_eq!(claimed["tasks"][0]["task_id"], "t-1");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_word_under_the_same_id_is_heeded_and_the_same_one_once() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().settings(settings(&rig, "w-1", 1)));
    for id in ["x-1", "x-2"] {
        let register = json!({"id": id, "roles": ["cutter"], "capabilities": ["film.cut"]});
        ask(&rig, "system.register", register).await;
    }
    let create = json!({"task_id": "t-1", "kind": "film.cut", "role": "cutter"});
    ask(&rig, "task.create", create).await;
    let word = async |id: &str, kind: &str, word: Value| {
        let event = Outgoing::new(kind, &word).id(id);
        let reply = rig.client.request(event, Duration::from_secs(20)).await;
        reply.unwrap().decode::<Value>().unwrap()["assigned_to"].clone()
    };
    let assign = async |id: &str, to: &str| {
        let payload = json!({"task_id": "t-1", "instance_id": to});
        word(id, "task.assign", payload).await
    };
    assert_eq!(assign("begins", "x-1").await, "x-1");
    assert_eq!(assign("t", "x-2").await, "x-2");
    assert_eq!(assign("t", "x-1").await, "x-1", "another word");
    assert_eq!(assign("t", "x-2").await, "x-1", "the same again");
    // Nothing was to be changed then; since then somebody else had his way.
    assert_eq!(assign("is", "x-1").await, "x-1");
    assert_eq!(assign("moves", "x-2").await, "x-2");
    assert_eq!(assign("is", "x-1").await, "x-2", "the same again");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_again_is_told_all_that_it_holds_and_takes_nothing() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().settings(settings(&rig, "w-1", 1)));
    let register = json!({"id": "x-1", "roles": ["cutter"], "capacity": 3});
    ask(&rig, "system.register", register).await;
    let claim =
        |limit: u32, again: bool| json!({"instance_id": "x-1", "limit": limit, "again": again});
    let none = ask(&rig, "task.claim", claim(5, true)).await;
    assert_eq!(none, json!({"tasks": []}));
    for id in ["t-1", "t-2", "t-3"] {
        let create = json!({"task_id": id, "kind": "film.cut", "role": "cutter"});
        ask(&rig, "task.create", create).await;
    }
    // Somebody else claimed in its name, and one was given to it that no claim was answered with.
    let claimed = ask(&rig, "task.claim", claim(1, false)).await;
    assert_eq!(claimed["tasks"][0]["task_id"], "t-1");
    let word = json!({"task_id": "t-3", "instance_id": "x-1"});
    ask(&rig, "task.assign", word).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let again = ask(&rig, "task.claim", claim(5, true)).await;
        held.push(again["tasks"].as_array().unwrap().clone());
    }
    assert_eq!(held[0], held[1]);
    let ids: Vec<&Value> = held[0].iter().map(|task| &task["task_id"]).collect();
    assert_eq!(ids, ["t-1", "t-3"]);
    assert_eq!(held[0][0]["fence"], claimed["tasks"][0]["fence"]);
    assert_eq!(task(&rig, "t-2").await["status"], "pending");
    let done = json!({"task_id": "t-1", "instance_id": "x-1", "fence": held[0][0]["fence"]});
    ask(&rig, "task.complete", done).await;
    let left = ask(&rig, "task.claim", claim(5, true)).await;
    assert_eq!(left["tasks"], json!([held[0][1]]));
    // What it was told is not told once more without that.
    let next = ask(&rig, "task.claim", claim(5, false)).await;
    assert_eq!(next["tasks"][0]["task_id"], "t-2");
    assert_eq!(next["tasks"].as_array().unwrap().len(), 1);
    for id in ["t-2", "t-3"] {
        ask(&rig, "task.cancel", json!({"task_id": id})).await;
    }
    // One that an answer in JSON cannot hold is nobody's fault.
    let bytes = rmpv::Value::Binary(vec![7; 600_000]);
    let large = rmpv::Value::Map(vec![
        ("task_id".into(), "t-0".into()),
        ("kind".into(), "film.cut".into()),
        ("role".into(), "cutter".into()),
        ("priority".into(), 90.into()),
        ("payload".into(), bytes),
    ]);
    rig.ask("task.create", &large).await.unwrap();
    let word = json!({"task_id": "t-0", "instance_id": "x-1"});
    ask(&rig, "task.assign", word).await;
    let asked = claim(5, true).to_string();
    let as_json = "datacontenttype application/json replyto cb:reply:me";
    rig.run(&format!(
        "XADD cb:events:task * type task.claim {as_json} data {asked}"
    ))
    .await;
    let refused = rig.wait_for("cb:reply:me", 1).await.remove(0);
    assert_eq!(text(&refused, "status"), "internal");
    let held = ask(&rig, "task.list", json!({"status": "assigned"})).await;
    assert_eq!(held["tasks"][0]["task_id"], "t-0", "who holds it goes on");
    worker.stop().await;
}
