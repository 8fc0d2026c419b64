//! Registering, pulsing, looking and tasks over the bus, with the values at which others went wrong.

mod circuit;

use crate::rig::Rig;
use crate::support::until;
use convoke::protocol::error::Code;
use convoke::settings::Settings;
use convoke::{Context, HandlerError};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

async fn ask(rig: &Rig, kind: &str, payload: Value) -> Value {
    let reply = rig.ask(kind, &payload).await;
    reply.unwrap().decode().unwrap()
}

async fn code(rig: &Rig, kind: &str, payload: Value) -> (Code, String) {
    let error = rig.refused(kind, &payload).await;
    (error.code, error.message.to_string())
}

/// An external instance that takes tasks of `a.b` in the role `hand`.
async fn hand(rig: &Rig, id: &str, capacity: u32, ttl_ms: u64) -> Value {
    let register = json!({"id": id, "roles": ["hand"], "capacity": capacity,
        "capabilities": ["a.b"], "ttl_ms": ttl_ms});
    ask(rig, "system.register", register).await
}

async fn create(rig: &Rig, id: &str, priority: u8) -> Value {
    let create = json!({"task_id": id, "kind": "a.b", "role": "hand", "priority": priority});
    ask(rig, "task.create", create).await
}

async fn task(rig: &Rig, id: &str) -> Value {
    ask(rig, "task.get", json!({"task_id": id})).await
}

/// How many tasks each instance holds.
async fn held(rig: &Rig) -> BTreeMap<String, u32> {
    let listed = ask(
        rig,
        "task.list",
        json!({"status": "assigned", "limit": 1000}),
    )
    .await;
    let mut held = BTreeMap::new();
    for task in listed["tasks"].as_array().unwrap() {
        let holder = task["instance_id"].as_str().unwrap().to_owned();
        *held.entry(holder).or_default() += 1;
    }
    held
}

async fn members(rig: &Rig, role: &str) -> Vec<String> {
    let state = ask(rig, "system.get_state", json!({})).await;
    let instances = state["instances"].as_array().unwrap().iter();
    let of_role = instances.filter(|it| it["roles"].as_array().unwrap().contains(&json!(role)));
    let mut ids: Vec<String> = of_role
        .map(|it| it["id"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids
}

fn one_worker(rig: &Rig) -> crate::rig::Running {
    let settings = Settings {
        id: "w-1".into(),
        ..rig.settings()
    };
    rig.start(rig.builder().settings(settings))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_are_none_two_or_replaced_and_wrong_ones_are_named() {
    let rig = Rig::new().await;
    let worker = one_worker(&rig);
    let none = ask(&rig, "system.register", json!({"id": "x-0", "roles": []})).await;
    assert_eq!(
        (&none["registered"], &none["assigned"]),
        (&json!(true), &json!([]))
    );
    let two = json!({"id": "x-2", "roles": ["gpu", "hand"]});
    let first = ask(&rig, "system.register", two).await;
    assert_eq!(members(&rig, "gpu").await, ["x-2"]);
    assert_eq!(members(&rig, "hand").await, ["x-2"]);
    // Others replace them, and the incarnation stays.
    let other = json!({"id": "x-2", "roles": ["hand", "press"]});
    let again = ask(&rig, "system.register", other).await;
    assert_eq!(again["incarnation"], first["incarnation"]);
    assert!(members(&rig, "gpu").await.is_empty());
    assert_eq!(members(&rig, "press").await, ["x-2"]);
    for roles in [
        json!("hand"),
        json!(7),
        json!([7]),
        json!(["a b"]),
        json!([""]),
        json!(["r".repeat(129)]),
        Value::Null,
    ] {
        let (code, said) = code(
            &rig,
            "system.register",
            json!({"id": "x-3", "roles": roles}),
        )
        .await;
        assert_eq!(code, Code::InvalidArgument, "{roles}");
        assert!(said.contains("role"), "{said}");
    }
    let (code, said) = code(&rig, "system.register", json!({"id": "x-3"})).await;
    assert!(
        code == Code::InvalidArgument && said.contains("roles"),
        "{said}"
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pulse_of_an_unknown_instance_makes_nobody_of_it() {
    let rig = Rig::new().await;
    let worker = one_worker(&rig);
    let pulse = async |id: &str| ask(&rig, "system.heartbeat", json!({"instance_id": id})).await;
    assert_eq!(pulse("x-9").await["alive"], false);
    assert_eq!(members(&rig, "hand").await, [""; 0]);
    hand(&rig, "x-1", 1, 20_000).await;
    let known = pulse("x-1").await;
    assert_eq!(
        (&known["alive"], &known["ttl_ms"]),
        (&json!(true), &json!(20_000))
    );
    ask(&rig, "system.unregister", json!({"instance_id": "x-1"})).await;
    assert_eq!(pulse("x-1").await["alive"], false);
    worker.stop().await;
}

/// Fields that are no numbers where a text stands, by their names.
fn numbers_in_text(at: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                numbers_in_text(&format!("{at}.{name}"), value, found);
            }
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| numbers_in_text(at, item, found)),
        Value::String(text) if text.parse::<f64>().is_ok() => found.push(format!("{at}: {text}")),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_is_empty_then_has_all_that_waits_and_a_list_has_as_many_as_were_asked_for() {
    let rig = Rig::new().await;
    let worker = one_worker(&rig);
    let state = ask(&rig, "system.get_state", json!({})).await;
    assert_eq!(state["tasks"]["items"], json!([]));
    let none = ask(&rig, "task.list", json!({})).await;
    assert_eq!(none, json!({"tasks": []}));
    for number in 0..20 {
        create(&rig, &format!("t-{number:02}"), 50).await;
    }
    let ten = ask(&rig, "task.list", json!({"limit": 10})).await;
    let ids = ten["tasks"].as_array().unwrap().iter();
    let ids: Vec<&str> = ids.map(|task| task["task_id"].as_str().unwrap()).collect();
    let oldest: Vec<String> = (0..10).map(|number| format!("t-{number:02}")).collect();
    assert_eq!(ids, oldest);
    hand(&rig, "x-1", 5, 20_000).await;
    let state = ask(&rig, "system.get_state", json!({})).await;
    assert_eq!(
        (&state["tasks"]["pending"], &state["tasks"]["assigned"]),
        (&json!(15), &json!(5))
    );
    let mut found = Vec::new();
    let answers = [
        ("system.get_state", json!({})),
        ("system.metrics", json!({"detailed": true})),
        ("system.health", json!({})),
        ("task.list", json!({})),
        ("task.get", json!({"task_id": "t-00"})),
        ("system.heartbeat", json!({"instance_id": "x-1"})),
        ("system.register", json!({"id": "x-1", "roles": ["hand"]})),
    ];
    for (kind, payload) in answers {
        numbers_in_text(kind, &ask(&rig, kind, payload).await, &mut found);
    }
    found.retain(|at| !at.contains("version"));
    assert_eq!(found, [""; 0]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn priorities_and_texts_have_bounds_at_both_ends() {
    let rig = Rig::new().await;
    let worker = one_worker(&rig);
    let ok = |priority: Value| json!({"kind": "a.b", "priority": priority});
    for priority in [0, 100] {
        ask(&rig, "task.create", ok(json!(priority))).await;
    }
    for priority in [
        json!(-1),
        json!(101),
        json!("50"),
        json!(1.5),
        json!(u64::MAX),
        json!([]),
    ] {
        let (code, said) = code(&rig, "task.create", ok(priority.clone())).await;
        assert_eq!(code, Code::InvalidArgument, "{priority}");
        assert!(said.contains("priority"), "{said}");
    }
    let long = |count: usize| "t".repeat(count);
    ask(
        &rig,
        "task.create",
        json!({"kind": "a.b", "task_id": long(128)}),
    )
    .await;
    let kind = format!("a.{}", "b".repeat(126));
    ask(&rig, "task.create", json!({"kind": kind})).await;
    for (field, payload) in [
        ("task_id", json!({"kind": "a.b", "task_id": long(129)})),
        ("task_id", json!({"kind": "a.b", "task_id": ""})),
        ("task_id", json!({"kind": "a.b", "task_id": "a\nb"})),
        ("kind", json!({"kind": format!("{kind}b")})),
        ("kind", json!({"kind": "A.b"})),
        ("role", json!({"kind": "a.b", "role": long(129)})),
    ] {
        let (code, said) = code(&rig, "task.create", payload).await;
        assert!(
            code == Code::InvalidArgument && said.contains(field),
            "{said}"
        );
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_has_one_holder_at_a_time_and_what_is_done_does_not_go_back() {
    let rig = Rig::new().await;
    let worker = one_worker(&rig);
    for id in ["x-1", "x-2"] {
        hand(&rig, id, 1, 60_000).await;
    }
    for id in ["t-1", "t-2"] {
        create(&rig, id, 50).await;
    }
    let is = task(&rig, "t-1").await;
    let holder = is["instance_id"].as_str().unwrap().to_owned();
    let other = if holder == "x-1" { "x-2" } else { "x-1" };
    // The other one is full.
    let word = json!({"task_id": "t-1", "instance_id": other});
    assert_eq!(
        code(&rig, "task.assign", word).await.0,
        Code::FailedPrecondition
    );
    let same = create(&rig, "t-1", 50).await;
    assert_eq!(
        (&same["status"], &same["assigned_to"]),
        (&json!("assigned"), &json!(holder))
    );
    let stranger = json!({"task_id": "t-1", "instance_id": other, "fence": is["fence"]});
    assert_eq!(code(&rig, "task.complete", stranger).await.0, Code::Aborted);
    let done = json!({"task_id": "t-1", "instance_id": holder, "fence": is["fence"], "result": 1});
    ask(&rig, "task.complete", done.clone()).await;
    for (kind, payload) in [
        ("task.cancel", json!({"task_id": "t-1"})),
        ("task.unassign", json!({"task_id": "t-1"})),
        ("task.update", json!({"task_id": "t-1", "priority": 1})),
        (
            "task.assign",
            json!({"task_id": "t-1", "instance_id": holder}),
        ),
    ] {
        assert_eq!(
            code(&rig, kind, payload).await.0,
            Code::FailedPrecondition,
            "{kind}"
        );
    }
    let fails =
        json!({"task_id": "t-1", "instance_id": holder, "fence": is["fence"], "error": "x"});
    assert_eq!(code(&rig, "task.fail", fails).await.0, Code::Aborted);
    let is = task(&rig, "t-1").await;
    assert_eq!(
        (&is["status"], &is["result"]),
        (&json!("completed"), &json!(1))
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_was_there_before_its_workers_goes_by_priority() {
    let rig = Rig::new().await;
    let scheduler = one_worker(&rig);
    for (id, priority) in [("t-10", 10), ("t-90", 90), ("t-50", 50)] {
        let create =
            json!({"task_id": id, "kind": "job.note", "payload": id, "priority": priority});
        assert_eq!(ask(&rig, "task.create", create).await["status"], "pending");
    }
    let ran = Arc::new(Mutex::new(Vec::new()));
    let notes = ran.clone();
    let note = move |_: Context, id: String| {
        notes.lock().unwrap().push(id);
        async { Ok::<_, HandlerError>(()) }
    };
    let settings = Settings {
        id: "w-2".into(),
        capacity: 1,
        ..rig.settings()
    };
    let worker = rig.start(rig.builder().settings(settings).handler("job.note", note));
    rig.wait_for_fact("task.completed", 3).await;
    assert_eq!(*ran.lock().unwrap(), ["t-90", "t-50", "t-10"]);
    worker.stop().await;
    scheduler.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_is_spread_within_two_and_never_above_the_capacity() {
    let rig = Rig::new().await;
    let worker = one_worker(&rig);
    for id in ["x-1", "x-2", "x-3"] {
        hand(&rig, id, 5, 60_000).await;
    }
    for number in 0..20 {
        create(&rig, &format!("t-{number:02}"), 50).await;
        let held = held(&rig).await;
        let (least, most) = (held.values().min(), held.values().max());
        let least = if held.len() == 3 { least } else { Some(&0) };
        assert!(
            most.unwrap() - least.unwrap() <= 2 && *most.unwrap() <= 5,
            "{held:?}"
        );
    }
    let full: Vec<u32> = held(&rig).await.into_values().collect();
    assert_eq!(full, [5, 5, 5]);
    let is = task(&rig, "t-00").await;
    let done = json!({"task_id": "t-00", "instance_id": is["instance_id"], "fence": is["fence"]});
    ask(&rig, "task.complete", done).await;
    let full: Vec<u32> = held(&rig).await.into_values().collect();
    assert_eq!(full, [5, 5, 5], "who waited has the room");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_silent_instance_held_goes_to_another_under_a_higher_fence() {
    let rig = Rig::new().await;
    let worker = one_worker(&rig);
    create(&rig, "t-1", 50).await;
    let registered = hand(&rig, "x-1", 5, 1000).await;
    assert_eq!(registered["assigned"], json!(["t-1"]));
    let inbox = rig.entries("cb:inbox:x-1").await;
    let before: Value = rmp_serde::from_slice(inbox[0].get("data").unwrap()).unwrap();
    hand(&rig, "x-2", 5, 60_000).await;
    until("it is with the other one", || async {
        task(&rig, "t-1").await["instance_id"] == "x-2"
    })
    .await;
    let after = task(&rig, "t-1").await;
    assert!(after["fence"].as_u64() > before["fence"].as_u64());
    assert_eq!(after["attempt"], 2);
    rig.wait_for_fact("instance.lost", 1).await;
    worker.stop().await;
}
