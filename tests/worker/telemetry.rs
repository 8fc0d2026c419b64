//! What a worker tells OpenTelemetry: spans of runs, retries, publications and batches, and how they hang together.

use crate::batches::batch;
use crate::rig::Rig;
use crate::support::{name, until};
use convoke::client::publish::Outgoing;
use convoke::settings::Settings;
use convoke::worker::logs;
use convoke::{Context, HandlerError};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore};

/// Trace and span of a publisher.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// The log is the process's, and goes to the worker that began last.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Each span, each record and each metric that was told.
struct Told {
    spans: Vec<Value>,
    records: Vec<Value>,
    metrics: Vec<Value>,
}

impl Told {
    fn read(file: &Path) -> Self {
        let text = std::fs::read_to_string(file).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let all = |of: &str, scope: &str, what: &str| {
            let of = lines.iter().filter_map(|line| line[of].as_array());
            let scopes = of
                .flatten()
                .filter_map(|of| of[scope].as_array().cloned())
                .flatten();
            let each = scopes.flat_map(|scope| scope[what].as_array().cloned().unwrap());
            each.collect()
        };
        Self {
            spans: all("resourceSpans", "scopeSpans", "spans"),
            records: all("resourceLogs", "scopeLogs", "logRecords"),
            metrics: all("resourceMetrics", "scopeMetrics", "metrics"),
        }
    }

    /// The spans of that name in a trace whose parent is that one, in the order of their beginnings.
    fn under(&self, trace: &str, parent: Option<&str>, name: &str) -> Vec<&Value> {
        let parent = parent.map(Value::from).unwrap_or_default();
        let is = |span: &&Value| {
            span["traceId"] == trace && span["parentSpanId"] == parent && span["name"] == name
        };
        let mut spans: Vec<&Value> = self.spans.iter().filter(is).collect();
        spans.sort_by_key(|span| number(&span["startTimeUnixNano"]));
        spans
    }

    /// The only one.
    #[track_caller]
    fn one(&self, trace: &str, parent: &Value, name: &str) -> &Value {
        let found = self.under(trace, parent["spanId"].as_str(), name);
        assert_eq!(found.len(), 1, "{name} in {:#?}", self.spans);
        found[0]
    }
}

fn number(text: &Value) -> u64 {
    text.as_str().unwrap().parse().unwrap()
}

/// An attribute's value.
fn says(span: &Value, key: &str) -> String {
    let attributes = span["attributes"].as_array().unwrap();
    let found = attributes.iter().find(|one| one["key"] == key);
    let value = found.map(|one| one["value"].as_object().unwrap().values().next().unwrap());
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

async fn tries(context: Context, (): ()) -> Result<(), HandlerError> {
    tracing::info!(attempt = context.event().attempt(), "tries it");
    if context.event().attempt() == 1 {
        return Err(HandlerError::unavailable("not yet"));
    }
    context.publish("other.thing", &1)
}

async fn adds(context: Context, n: u64) -> Result<u64, HandlerError> {
    context.publish("other.thing", &n)?;
    Ok(n)
}

/// The name of a span of what is done with a stream of events.
fn span(verb: &str, domain: &str) -> String {
    let stream = format!("cb:events:{domain}");
    format!("{verb} {}", name(domain, &stream))
}

fn place() -> PathBuf {
    let place = std::env::temp_dir().join(format!("convoke-otlp-{:x}", fastrand::u64(..)));
    std::fs::create_dir(&place).unwrap();
    place
}

fn parent(trace: &str, flags: &str) -> String {
    format!("00-{trace}-{SPAN}-{flags}")
}

/// Runs a worker on those events, and what comes of them, and reads what it told.
async fn told(sample: f64, events: &[(Outgoing, usize)], batches: &[Outgoing]) -> Told {
    let _alone = ALONE.lock().await;
    let _logs = logs::start("info", logs::Form::Text, true).unwrap();
    let rig = Rig::new().await;
    let place = place();
    let settings = Settings {
        id: "w-1".to_owned(),
        telemetry_file: place.join("{id}.jsonl").display().to_string(),
        telemetry_sample: sample,
        ..rig.settings()
    };
    let builder = convoke::Worker::builder().settings(settings);
    let builder = builder.handler("text.try", tries);
    let builder = builder.handler("number.add", adds);
    let takes = async |_: Context, n: u64| Ok::<_, HandlerError>(n);
    let worker = rig.start(builder.handler("other.thing", takes));
    let mut things = 0;
    for (event, made) in events {
        rig.client.publish(event).await.unwrap();
        things += made;
    }
    for batch in batches {
        let reply = rig.client.request(batch.clone(), Duration::from_secs(60));
        let result: Value = reply.await.unwrap().decode().unwrap();
        things += result["items_processed"].as_u64().unwrap() as usize;
    }
    rig.wait_for("cb:results:other", things).await;
    worker.stop().await;
    let file = place.join("w-1.jsonl");
    // The protocol's own types, where they are at hand: see scripts/deploy-check.
    if let Some(python) = std::env::var_os("CONVOKE_OTLP_PYTHON") {
        let reader = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/deploy/otlp.py");
        let mut read = std::process::Command::new(python);
        assert!(read.arg(reader).arg(&file).status().unwrap().success());
    }
    let told = Told::read(&file);
    std::fs::remove_dir_all(place).unwrap();
    told
}

fn try_it(flags: &str) -> Outgoing {
    Outgoing::new("text.try", &()).traceparent(parent(TRACE, flags))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_goes_on_through_retries_and_what_they_publish() {
    let told = told(0.0, &[(try_it("01"), 1)], &[]).await;
    let runs = told.under(TRACE, Some(SPAN), &span("process", "text"));
    let [first, second] = runs[..] else {
        panic!("{:#?}", told.spans);
    };
    for (run, attempt) in [(first, "1"), (second, "2")] {
        for (key, value) in [
            ("messaging.system", "redis_streams"),
            ("messaging.operation.type", "process"),
            ("messaging.consumer.group.name", "workers"),
            (
                "messaging.destination.name",
                &name("text", "cb:events:text"),
            ),
            ("messaging.client.id", "w-1"),
            ("convoke.event.type", "text.try"),
            ("convoke.attempt", attempt),
        ] {
            assert_eq!(says(run, key), value, "{run:#}");
        }
        assert_eq!(run["kind"], 5);
        // The parent is another process's, and the trace is told.
        assert_eq!(run["flags"], 0x301);
        assert!(number(&run["endTimeUnixNano"]) >= number(&run["startTimeUnixNano"]));
    }
    let id = says(first, "messaging.message.id");
    assert_eq!(says(second, "messaging.message.id"), id);
    assert_ne!(says(second, "convoke.entry"), says(first, "convoke.entry"));
    assert_eq!(first["status"]["code"], 2);
    assert_eq!(says(first, "error.type"), "unavailable");
    assert!(second.get("status").is_none());
    told.one(TRACE, first, &span("retry", "text"));
    let ack = told.one(TRACE, second, &span("ack", "text"));
    assert_eq!(says(ack, "messaging.operation.type"), "settle");
    assert!(number(&ack["startTimeUnixNano"]) >= number(&second["startTimeUnixNano"]));
    let sent = told.one(TRACE, second, &span("publish", "other"));
    assert_eq!((&sent["kind"], &sent["flags"]), (&4.into(), &0x101.into()));
    assert_eq!(says(sent, "messaging.operation.type"), "send");
    let thing = told.one(TRACE, sent, &span("process", "other"));
    told.one(TRACE, thing, &span("ack", "other"));
    // What failed published nothing, and nothing else was told.
    assert_eq!(told.spans.len(), 7, "{:#?}", told.spans);

    // What was said in a run bears its trace.
    let said = told
        .records
        .iter()
        .filter(|one| one["body"]["stringValue"] == "tries it");
    let said: Vec<&Value> = said.collect();
    for run in [first, second] {
        let of_run = |one: &&&Value| one["spanId"] == run["spanId"];
        let record = said.iter().find(of_run).expect("a record of the run");
        assert_eq!(record["traceId"], TRACE);
        assert_eq!(record["severityText"], "INFO");
        assert_eq!(says(record, "attempt"), says(run, "convoke.attempt"));
    }
    let metric = |name: &str| {
        let mut named = told.metrics.iter().filter(|metric| metric["name"] == name);
        let last = named.next_back().expect("a metric of that name");
        last.clone()
    };
    let runs = metric("messaging.client.consumed.messages");
    let points = runs["sum"]["dataPoints"].as_array().unwrap().iter();
    let tried = points.filter(|point| says(point, "convoke.event.type") == "text.try");
    let tried: Vec<u64> = tried.map(|point| number(&point["asInt"])).collect();
    assert_eq!(tried, [2]);
    let dropped = metric("convoke.telemetry.dropped");
    assert_eq!(dropped["sum"]["dataPoints"][0]["asInt"], "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_who_wants_its_trace_untold_is_heard_whatever_the_ratio() {
    let told = told(1.0, &[(try_it("00"), 1)], &[]).await;
    let of_trace = |span: &&Value| span["traceId"] == TRACE;
    assert_eq!(told.spans.iter().find(of_trace), None);
    assert!(!told.metrics.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_without_a_trace_begins_one_that_all_its_attempts_share() {
    let event = || Outgoing::new("text.try", &());
    let all = told(1.0, &[(event(), 1)], &[]).await;
    let is_run = |span: &&Value| span["name"] == self::span("process", "text");
    let run = all.spans.iter().find(is_run).expect("a run");
    let trace = run["traceId"].as_str().unwrap();
    let runs = all.under(trace, None, &span("process", "text"));
    assert_eq!(runs.len(), 2, "{:#?}", all.spans);
    let sent = all.one(trace, runs[1], &span("publish", "other"));
    all.one(trace, sent, &span("process", "other"));
    // And what it leads to is untold with it.
    let none = told(0.0, &[(event(), 1)], &[]).await;
    assert_eq!(none.spans, Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_items_of_a_batch_are_under_its_run() {
    let traces = ["a".repeat(32), "b".repeat(32)];
    let modes = ["exclusive", "fan_out"];
    let asked: Vec<Outgoing> = std::iter::zip(&traces, modes)
        .map(|(trace, mode)| {
            let wanted = batch(mode, mode, 0..3);
            Outgoing::new("system.batch.process", &wanted).traceparent(parent(trace, "01"))
        })
        .collect();
    let told = told(0.0, &[], &asked).await;
    for (trace, mode) in std::iter::zip(&traces, modes) {
        let publisher = serde_json::json!({"spanId": SPAN});
        let run = told.one(trace, &publisher, &span("process", "system"));
        // An item that the holder runs has no stream of its own.
        let (item, kind) = match mode {
            "exclusive" => ("process number.add".to_owned(), 1),
            _ => (span("process", "number"), 5),
        };
        let items = told.under(trace, run["spanId"].as_str(), &item);
        assert_eq!(items.len(), 3, "{mode} in {:#?}", told.spans);
        for item in items {
            assert_eq!(item["kind"], kind);
            let id = says(item, "messaging.message.id");
            assert!(id.starts_with(mode), "{id}");
            let sent = told.one(trace, item, &span("publish", "other"));
            told.one(trace, sent, &span("process", "other"));
        }
    }
}

/// A worker's spans where its handler publishes, and the test takes the entry away before that run ends.
async fn told_of_what_was_taken_away() -> Told {
    let _alone = ALONE.lock().await;
    let _logs = logs::start("info", logs::Form::Text, true).unwrap();
    let rig = Rig::new().await;
    let place = place();
    let settings = Settings {
        id: "w-1".to_owned(),
        telemetry_file: place.join("w-1.jsonl").display().to_string(),
        // Nobody renews it meanwhile: the commit finds out.
        claim_idle: Duration::from_secs(60),
        ..rig.settings()
    };
    let go = Arc::new(Semaphore::new(0));
    let gate = go.clone();
    let slow = move |context: Context, (): ()| {
        let gate = gate.clone();
        async move {
            context.publish("other.thing", &1)?;
            gate.acquire().await.unwrap().forget();
            Ok::<_, HandlerError>(())
        }
    };
    let builder = convoke::Worker::builder().settings(settings);
    let worker = rig.start(builder.handler("text.slow", slow));
    let event = Outgoing::new("text.slow", &()).traceparent(parent(TRACE, "01"));
    rig.client.publish(&event).await.unwrap();
    until("it is in hand", || async {
        rig.pending("cb:events:text").await == 1
    })
    .await;
    // Only what has been in hand for a moment is looked at like that.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let entry = rig.entries("cb:events:text").await[0].id;
    rig.run(&format!("XCLAIM cb:events:text workers human 0 {entry}"))
        .await;
    go.add_permits(1);
    worker.stop().await;
    let told = Told::read(&place.join("w-1.jsonl"));
    std::fs::remove_dir_all(place).unwrap();
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_committed_published_nothing_and_its_settlement_says_so() {
    let told = told_of_what_was_taken_away().await;
    let publisher = serde_json::json!({"spanId": SPAN});
    let run = told.one(TRACE, &publisher, &span("process", "text"));
    let ack = told.one(TRACE, run, &span("ack", "text"));
    assert_eq!(says(ack, "error.type"), "not_committed");
    assert_eq!(ack["status"]["code"], 2);
    assert_eq!(told.spans.len(), 2, "{:#?}", told.spans);
}
