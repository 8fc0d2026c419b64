//! `system.metrics`, in three patterns ([`pattern`](crate::protocol::pattern)).

mod hybrid;

use crate::builtin::Services;
use crate::coordination::answered::Answers;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::Instances;
use crate::coordination::tasks::Tasks;
use crate::coordination::totals::Global;
use crate::handler::state::State;
use crate::protocol::histogram::Histogram;
use crate::protocol::pattern::{Pattern, Patterned};
use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub(crate) use hybrid::put_together;

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Ask {
    /// Whether to report each handler, each pattern, what is in flight and how the load is spread.
    #[serde(default)]
    detailed: bool,
    /// Whether to add the histograms themselves.
    #[serde(default)]
    histograms: bool,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(in crate::builtin) struct Metrics {
    /// Events whose outcome was committed, by all instances that there were.
    events_processed: u64,
    /// Runs of handlers that failed, likewise.
    events_failed: u64,
    /// Events that were cancelled in the hands of a worker, likewise.
    events_cancelled: u64,
    /// Events that lay in another partition than that of their subject or id, likewise.
    events_misplaced: u64,
    /// Tasks that were completed.
    tasks_completed: u64,
    /// Of all runs.
    average_latency_ms: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Events that the living process a second, in their last ten seconds or so.
    throughput: f64,
    /// Resident memory of the living.
    memory_bytes: u64,
    /// Instances that are alive.
    instances: u64,
    /// How old the oldest report is that this was made of, in ms.
    oldest_report_ms: u64,
    /// How long ago the leader put this together, in ms, where it does so.
    #[serde(skip_serializing_if = "Option::is_none")]
    merged_ms: Option<u64>,
    /// What external instances say of themselves: those that an event registered. Nothing above is of them.
    external: Outside,
    /// Living workers that were asked to report and did not within the deadline, where all are asked; at most 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<Vec<String>>,
    /// How many those are.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing_total: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Buckets>,
    #[serde(skip_serializing_if = "Option::is_none")]
    handlers: Option<BTreeMap<String, Handler>>,
    /// How system events that have patterns were answered, by event and by pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    patterns: Option<BTreeMap<String, BTreeMap<String, Answering>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<Queue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scaling: Option<Scaling>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Handler {
    calls: u64,
    errors: u64,
    retries: u64,
    p50_ms: f64,
    p99_ms: f64,
    /// The worst of the living: `closed`, `half-open` or `open`; null where none has one.
    circuit: Option<Cow<'static, str>>,
    rate_limited: u64,
    cache_hits: u64,
    /// Runs of the living now that take their time.
    running: u64,
    /// How long the oldest of them goes on, in ms; null if nothing runs.
    oldest_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Buckets>,
}

/// How an event was answered in one pattern, by all instances that there were.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Answering {
    /// Answers, and attempts that failed.
    calls: u64,
    errors: u64,
    p50_ms: f64,
    p99_ms: f64,
    /// How old the oldest part of an answer was; left out where answers have no age.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_p50_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    age_p99_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Buckets>,
    #[serde(skip_serializing_if = "Option::is_none")]
    age: Option<Buckets>,
}

/// What the living external instances last reported.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Outside {
    instances: u64,
    events_processed: u64,
    events_failed: u64,
    throughput: f64,
    memory_bytes: u64,
}

/// How many runs took how long.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Buckets {
    /// All of them together, in ms.
    sum_ms: f64,
    /// Pairs of an end in µs and how many took less than it and not less than the end before.
    below_us: Vec<(u64, u64)>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Queue {
    /// Events started and not settled, by the living.
    in_flight: u64,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Scaling {
    instance_count: u64,
    /// 1 if all are equally busy for their capacity, towards 1 / instances if one has it all.
    load_balance: f64,
}

/// How long all have to report, at most.
const DEADLINE: Duration = Duration::from_secs(1);
/// How many of those who did not are named.
const NAMED: usize = 100;

pub(super) async fn metrics(
    context: Context,
    ask: Ask,
    services: State<Services>,
) -> Result<Metrics, HandlerError> {
    let began = Instant::now();
    let pattern = services.patterns.of(Patterned::Metrics);
    let answer = answered(&context, &ask, &services, pattern).await;
    let of = (Patterned::Metrics, pattern);
    services.patterns.answered(of, began, &answer, |metrics| {
        Some(Duration::from_millis(metrics.oldest_report_ms))
    });
    answer
}

async fn answered(
    context: &Context,
    ask: &Ask,
    services: &Services,
    pattern: Pattern,
) -> Result<Metrics, HandlerError> {
    let instances = &services.instances;
    if pattern == Pattern::Hybrid {
        // Where nobody keeps one, whoever is asked puts it together.
        if let Ok(Some(kept)) = hybrid::answer(services, ask).await {
            return Ok(kept);
        }
    }
    // Its own numbers are those of this moment, not of its last pulse.
    let own = services.own_report.tell().await;
    own.map_err(CoordinationError::into_handler_error)?;
    let missing = match pattern {
        // What all report now is in the totals before they are read: by the same step as with a pulse, so
        // nothing is counted twice, and what the dead did stays.
        Pattern::Distributed => {
            let wait = context.time_left().map_or(DEADLINE, |left| left / 2);
            let asked = instances.pull(context.instance(), wait.min(DEADLINE)).await;
            Some(asked.map_err(CoordinationError::into_handler_error)?)
        }
        _ => None,
    };
    let global = instances
        .metrics(ask.detailed)
        .await
        .map_err(CoordinationError::into_handler_error)?;
    let tasks = services.tasks.counts();
    let tasks = tasks.await.map_err(CoordinationError::into_handler_error)?;
    let mut metrics = told(global, tasks.completed, ask);
    metrics.missing_total = missing.as_ref().map(|missing| missing.len() as u64);
    metrics.missing = missing;
    if let Some(missing) = &mut metrics.missing {
        missing.truncate(NAMED);
    }
    Ok(metrics)
}

/// Everything, of all instances, as they last reported it.
pub(in crate::builtin) async fn whole(
    instances: &Instances,
    tasks: &Tasks,
) -> Result<Metrics, CoordinationError> {
    let ask = Ask {
        detailed: true,
        histograms: true,
    };
    let global = instances.metrics(ask.detailed).await?;
    Ok(told(global, tasks.counts().await?.completed, &ask))
}

fn told(global: Global, tasks_completed: u64, ask: &Ask) -> Metrics {
    let buckets = |latency: &Histogram| {
        ask.histograms.then(|| Buckets {
            sum_ms: latency.sum as f64 / 1000.0,
            below_us: latency.octaves().collect(),
        })
    };
    let latency = &global.sums.latency;
    let mut metrics = Metrics {
        events_processed: global.sums.events_processed,
        events_failed: global.sums.events_failed,
        events_cancelled: global.sums.events_cancelled,
        events_misplaced: global.sums.events_misplaced,
        tasks_completed,
        average_latency_ms: latency.mean_ms(),
        p50_ms: latency.quantile_ms(0.5),
        p99_ms: latency.quantile_ms(0.99),
        throughput: global.throughput,
        memory_bytes: global.memory_bytes,
        instances: global.instances,
        oldest_report_ms: global.oldest_ms,
        merged_ms: None,
        external: Outside {
            instances: global.external.instances,
            events_processed: global.external.events_processed,
            events_failed: global.external.events_failed,
            throughput: global.external.throughput,
            memory_bytes: global.external.memory_bytes,
        },
        missing: None,
        missing_total: None,
        latency: buckets(latency),
        handlers: None,
        patterns: None,
        queue: None,
        scaling: None,
    };
    if !ask.detailed {
        return metrics;
    }
    let mut handlers = global.handlers;
    for kind in global.running.keys() {
        // What never ended was never counted.
        handlers.entry(kind.clone()).or_default();
    }
    let handlers = handlers.into_iter().map(|(kind, sums)| {
        let latency = sums.latency.unwrap_or_default();
        let handler = Handler {
            calls: sums.calls,
            errors: sums.errors,
            retries: sums.retries,
            p50_ms: latency.quantile_ms(0.5),
            p99_ms: latency.quantile_ms(0.99),
            circuit: global.circuits.get(&kind).map(|&state| state.into()),
            rate_limited: sums.rate_limited,
            cache_hits: sums.cache_hits,
            running: global.running.get(&kind).map_or(0, |running| running.runs),
            oldest_ms: global.running.get(&kind).map(|running| running.oldest_ms),
            latency: buckets(&latency),
        };
        (kind, handler)
    });
    metrics.handlers = Some(handlers.collect());
    let answering = |answers: Answers| {
        let aged = answers.age.count() > 0;
        let age = |part| aged.then(|| answers.age.quantile_ms(part));
        Answering {
            calls: answers.calls,
            errors: answers.errors,
            p50_ms: answers.latency.quantile_ms(0.5),
            p99_ms: answers.latency.quantile_ms(0.99),
            age_p50_ms: age(0.5),
            age_p99_ms: age(0.99),
            latency: buckets(&answers.latency),
            age: buckets(&answers.age).filter(|_| aged),
        }
    };
    let patterns = global.answered.into_iter().map(|(event, patterns)| {
        let patterns = patterns.into_iter();
        let patterns = patterns.map(|(pattern, answers)| (pattern, answering(answers)));
        (event, patterns.collect())
    });
    metrics.patterns = Some(patterns.collect());
    metrics.queue = Some(Queue {
        in_flight: global.in_flight,
    });
    metrics.scaling = Some(Scaling {
        instance_count: global.instances,
        load_balance: global.load_balance,
    });
    metrics
}
