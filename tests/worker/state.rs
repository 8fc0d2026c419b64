//! What a worker says about the whole: `system.get_state` and `system.discover`.

use crate::rig::Rig;
use crate::support::{keys, name};
use convoke::builtin::exec;
use convoke::client::publish::Outgoing;
use convoke::connect::connector::Connector;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::instance::Registering;
use convoke::handler::policy::Policy;
use convoke::protocol::error::Code;
use convoke::settings::{RedisUrl, Settings};
use convoke::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Deserialize, JsonSchema)]
struct Resize {
    /// In pixels.
    #[expect(dead_code, reason = "only its schema matters")]
    width: u32,
}

#[derive(Serialize, JsonSchema)]
struct Resized {
    pixels: u64,
}

async fn resize(_: Context, _: Resize) -> Result<Resized, HandlerError> {
    Ok(Resized { pixels: 1 })
}

async fn add(_: Context, _: u32) -> Result<u32, HandlerError> {
    Ok(1)
}

impl Rig {
    async fn answer(&self, kind: &str, payload: &Value) -> Value {
        self.ask(kind, payload).await.unwrap().decode().unwrap()
    }

    fn named(&self, id: &str) -> Settings {
        Settings {
            id: id.into(),
            ..self.settings()
        }
    }

    fn instances(&self) -> Instances {
        let connector = Connector::new(&RedisUrl::new(self.redis.url()), 2).unwrap();
        Instances::new(connector, keys())
    }
}

fn method<'a>(found: &'a Value, kind: &str) -> Option<&'a Value> {
    let methods = found["methods"].as_array().unwrap();
    methods.iter().find(|method| method["type"] == kind)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discover_tells_of_every_workers_handlers_with_their_schemas() {
    let rig = Rig::new().await;
    let policy = Policy::new()
        .describe("Resizes an image.")
        .timeout(Duration::from_secs(7))
        .rate_limit(50, Duration::from_secs(60));
    let resizes = rig.start(rig.builder().settings(rig.named("w-1")).handler_with(
        "image.resize",
        resize,
        policy,
    ));
    let adds = rig.start(
        rig.builder()
            .settings(rig.named("w-2"))
            .handler("math.add", add)
            .handler_with("math.wait", add, Policy::new().no_timeout())
            .register(exec::registration("shell.run", "secret-command", 1000)),
    );
    // Somebody who registered by hand, and published nothing.
    let mut foreign = Registering::new("foreign", ["worker"]);
    foreign.capabilities = vec!["image.rotate".into(), "math.add".into()];
    rig.instances().register(&foreign).await.unwrap();
    crate::support::until("all are there", || async {
        let found = rig.answer("system.discover", &json!({})).await;
        ["image.resize", "math.wait"]
            .iter()
            .all(|kind| method(&found, kind).is_some())
    })
    .await;

    let found = rig.answer("system.discover", &json!({})).await;
    let resize = method(&found, "image.resize").unwrap();
    assert_eq!(resize["description"], "Resizes an image.");
    assert_eq!(resize["input_schema"]["required"], json!(["width"]));
    let width = &resize["input_schema"]["properties"]["width"];
    assert_eq!(width["description"], "In pixels.");
    let pixels = &resize["output_schema"]["properties"]["pixels"];
    assert_eq!(pixels["type"], "integer");
    assert_eq!(
        resize["rate_limit"],
        json!({"limit": 50, "period_ms": 60_000})
    );
    assert_eq!(
        (&resize["timeout_ms"], &resize["instances"]),
        (&json!(7000), &json!(1))
    );
    let add = method(&found, "math.add").unwrap();
    assert_eq!(
        (&add["timeout_ms"], &add["instances"]),
        (&json!(30_000), &json!(2))
    );
    assert_eq!(add.get("rate_limit"), None);
    let wait = method(&found, "math.wait").unwrap();
    assert_eq!(wait.get("timeout_ms"), Some(&Value::Null));
    let rotate = method(&found, "image.rotate").unwrap();
    assert_eq!(
        (&rotate["input_schema"], &rotate["instances"]),
        (&json!(true), &json!(1))
    );
    // A command takes anything, and is not told to the bus: it may hold a secret.
    let shell = method(&found, "shell.run").unwrap();
    assert_eq!(shell["input_schema"].get("type"), None);
    assert!(!found.to_string().contains("secret-command"));
    // The built-in ones are on both.
    let vote = method(&found, "system.quorum.vote").unwrap();
    assert_eq!(vote["instances"], 2);
    assert!(
        vote["input_schema"]["properties"]["value"] == json!(true)
            || vote["input_schema"]["properties"]["value"]
                .get("type")
                .is_none()
    );
    assert!(method(&found, "system.heartbeat").unwrap()["rate_limit"]["limit"] == 1000);
    let kinds: Vec<&str> = found["methods"]
        .as_array()
        .unwrap()
        .iter()
        .map(|method| method["type"].as_str().unwrap())
        .collect();
    assert!(kinds.is_sorted(), "{kinds:?}");
    // Only workers say it, to each other.
    assert!(!kinds.contains(&"worker.nudge"), "{kinds:?}");

    // One domain; none; what is no domain.
    let math = rig
        .answer("system.discover", &json!({"domain": "math"}))
        .await;
    assert_eq!(math["methods"].as_array().unwrap().len(), 2);
    let none = rig
        .answer("system.discover", &json!({"domain": "mat"}))
        .await;
    assert_eq!(none["methods"], json!([]));
    for domain in ["math.add", "a b", "*"] {
        let error = rig
            .refused("system.discover", &json!({ "domain": domain }))
            .await;
        assert_eq!(error.code, Code::InvalidArgument);
        assert!(error.message.contains("domain"), "{}", error.message);
    }

    // Who is gone, or expired, has no methods any more.
    adds.stop().await;
    rig.run("ZADD cb:instances:active XX 1000 foreign").await;
    let found = rig.answer("system.discover", &json!({})).await;
    for kind in ["math.add", "math.wait", "image.rotate", "shell.run"] {
        assert_eq!(method(&found, kind), None);
    }
    assert!(method(&found, "image.resize").is_some());
    resizes.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_handlers_are_is_published_again_when_the_server_lost_it() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().handler("math.add", add));
    rig.ask("math.add", &1).await.unwrap();
    rig.run("FLUSHALL").await;
    // The next pulse finds that nobody is registered any more.
    crate::support::until("it is described again", || async {
        let event = Outgoing::new("system.discover", &json!({"domain": "math"}));
        let asked = rig.client.request(event, Duration::from_secs(2)).await;
        let found: Option<Value> = asked.ok().and_then(|reply| reply.decode().ok());
        found.is_some_and(|found| found["methods"][0]["timeout_ms"] == 30_000)
    })
    .await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_is_what_is_there_at_that_moment() {
    let rig = Rig::new().await;
    let worker = rig.start(
        rig.builder()
            .settings(rig.named("w-1"))
            .handler("math.add", add),
    );
    rig.ask("math.add", &1).await.unwrap();
    let state = rig.answer("system.get_state", &json!({})).await;
    assert_eq!(state["worker_version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(state["instances_total"], 1);
    assert_eq!(state["instances"][0]["id"], "w-1");
    assert_eq!(state["instances"][0]["status"], "healthy");
    assert_eq!(state["instances"][0]["roles"], json!(["worker"]));
    assert_eq!(
        (&state["batches"], &state["decisions"]),
        (&json!([]), &json!([]))
    );
    let none = json!({"pending": 0, "assigned": 0, "completed": 0, "failed": 0, "cancelled": 0, "items": []});
    assert_eq!(state["tasks"], none);
    assert_eq!(state.get("leader").and_then(Value::as_str), leader(&state));
    let facts = state["recent_events"].as_array().unwrap();
    let first = facts.last().unwrap();
    assert_eq!(first["type"], "instance.registered");
    assert_eq!(first["data"]["id"], "w-1");
    // The clock may have been set back by a little.
    assert!(first["time"].as_u64().unwrap() <= state["at"].as_u64().unwrap() + 20);
    assert!(first["id"].as_str().unwrap().contains('-'));

    // Everything that changes is seen at once.
    let before = state["version"].as_u64().unwrap();
    let task = json!({"task_id": "t-1", "kind": "math.unheard_of"});
    rig.answer("task.create", &task).await;
    let state = rig.answer("system.get_state", &json!({})).await;
    assert!(state["version"].as_u64().unwrap() > before);
    assert_eq!(state["tasks"]["pending"], 1);
    assert_eq!(state["tasks"]["items"][0]["task_id"], "t-1");
    let instances = rig.instances();
    for id in ["v-2", "v-3", "v-4"] {
        instances
            .register(&Registering::new(id, ["voter"]))
            .await
            .unwrap();
    }
    for (voter, value) in [("v-2", 1), ("v-3", 2)] {
        let vote = json!({
            "decision": "d", "instance_id": voter, "value": value, "role": "voter"
        });
        rig.answer("system.quorum.vote", &vote).await;
    }
    let batch = json!({"batch_id": "b", "item_type": "math.add", "items": [1, 2, "three"]});
    rig.answer("system.batch.process", &batch).await;
    rig.run("ZADD cb:instances:active XX 1000 v-4").await;
    rig.run("XADD cb:broadcast * type odd data xx").await;
    let state = rig.answer("system.get_state", &json!({"recent": 2})).await;
    let batch = &state["batches"][0];
    assert_eq!(
        (&batch["batch_id"], &batch["status"]),
        (&json!("b"), &json!("completed"))
    );
    assert_eq!(
        (&batch["items_processed"], &batch["items_failed"]),
        (&json!(2), &json!(1))
    );
    let decision = &state["decisions"][0];
    assert_eq!(decision["decision"], "d");
    assert_eq!(
        (&decision["status"], &decision["vote_count"]),
        (&json!("open"), &json!(2))
    );
    assert_eq!(
        (&decision["quorum"], &decision["leading"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(state["instances_total"], 4);
    let told = state["instances"].as_array().unwrap();
    let expired = told
        .iter()
        .find(|instance| instance["id"] == "v-4")
        .unwrap();
    // Meanwhile it may have been declared lost.
    assert_ne!(expired["status"], "healthy");
    let facts = state["recent_events"].as_array().unwrap();
    assert_eq!(facts.len(), 2);
    let odd = |fact: &&Value| fact["type"] == "odd";
    assert_eq!(
        facts.iter().find(odd).map(|fact| &fact["data"]),
        Some(&Value::Null)
    );

    let none = rig.answer("system.get_state", &json!({"recent": 0})).await;
    assert_eq!(none["recent_events"], json!([]));
    let error = rig
        .refused("system.get_state", &json!({"recent": 101}))
        .await;
    assert_eq!(error.code, Code::InvalidArgument);
    worker.stop().await;
}

/// The leader, if the state has one: it is one of the instances.
fn leader(state: &Value) -> Option<&str> {
    let ids = state["instances"].as_array().unwrap().iter();
    let mut ids = ids.filter_map(|instance| instance["id"].as_str());
    let leader = state.get("leader")?.as_str()?;
    ids.find(|id| *id == leader)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_seen_even_when_its_workers_are_gone() {
    let rig = Rig::new().await;
    let gone = rig.start(rig.builder().handler("math.add", add));
    rig.ask("math.add", &1).await.unwrap();
    gone.stop().await;
    let other = rig.start(rig.builder());
    for _ in 0..3 {
        rig.client
            .publish(&Outgoing::new("math.add", &1))
            .await
            .unwrap();
    }
    rig.run("XREADGROUP GROUP workers ghost COUNT 1 STREAMS cb:events:math >")
        .await;
    let state = rig.answer("system.get_state", &json!({})).await;
    let streams = state["streams"].as_array().unwrap();
    let stream = |name: &str| streams.iter().find(|stream| stream["name"] == name);
    let math = stream(&name("math", "cb:events:math")).unwrap();
    assert_eq!(
        (&math["length"], &math["pending"], &math["lag"]),
        (&json!(4), &json!(1), &json!(2))
    );
    assert!(
        ["cb:events:system", "cb:broadcast"]
            .iter()
            .all(|key| stream(&name("system", key)).is_some())
    );
    // What does not exist, or is no stream, is not shown.
    assert_eq!(stream(&name("math", "cb:dead:math")), None);
    rig.run("SET cb:dead:math 1").await;
    rig.answer("system.get_state", &json!({})).await;
    other.stop().await;
}
