//! One look as JSON: a contract that may grow fields, never lose one.

use super::flow::{group_id, waiting};
use super::model::Model;
use crate::cli::{batch, instances, vote};
use convoke::coordination::metrics::{HandlerSums, OldestRun};
use convoke::operator::inspect::{Group, Stream};
use convoke::protocol::keys::StreamKind;
use serde_json::{Value, json};

/// Runs that are told, the longest of all.
const RUNS: usize = 100;

/// The model as one object; `None` before the first sample.
pub(super) fn of(model: &Model) -> Option<Value> {
    let sample = model.sample()?;
    let (rate_in, rate_out) = model.totals();
    let global = &sample.global;
    let census = &sample.census;
    let (dead, alive): (Vec<&Stream>, Vec<&Stream>) = sample
        .streams
        .iter()
        .partition(|stream| stream.name.kind == StreamKind::Dead);
    let instances = sample.instances.iter().map(|(condition, instance)| {
        let mut object = instances::described(*condition, instance, sample.at);
        object["leads"] = (sample.leader.as_ref() == Some(&instance.id)).into();
        if let Some(object) = object.as_object_mut() {
            // They are not read.
            object.shift_remove("capabilities");
            object.shift_remove("metadata");
        }
        object
    });
    Some(json!({
        "namespace": model.namespace,
        "at": sample.at,
        "interval_ms": model.elapsed_ms(),
        "leader": sample.leader,
        "partition": census.partition,
        "healthy": census.healthy(),
        "suspect": census.suspect + census.expired,
        "lost": census.recently_lost,
        "in_per_s": rate_in,
        "out_per_s": rate_out,
        "waiting": model.backlog(),
        "dead_letters": model.dead_letters(),
        "in_flight": global.in_flight,
        "memory_bytes": global.memory_bytes,
        "redis": sample.memory.as_ref().map(|told| json!({
            "used_bytes": told.memory.used,
            "limit_bytes": Some(told.memory.limit).filter(|limit| *limit > 0),
            "nodes": told.nodes,
            "fullest": told.share(),
            "fullest_node": told.fullest.as_ref().map(|(node, _)| node),
        })),
        "unreachable": sample.away.iter().map(|away| json!({
            "node": away.node,
            "error": away.error,
        })).collect::<Vec<_>>(),
        "events_processed": global.sums.events_processed,
        "events_failed": global.sums.events_failed,
        "tasks": {
            "pending": sample.tasks.pending,
            "assigned": sample.tasks.assigned,
            "completed": sample.tasks.completed,
            "failed": sample.tasks.failed,
            "cancelled": sample.tasks.cancelled,
        },
        "instances": instances.collect::<Vec<_>>(),
        "streams": alive.iter().map(|stream| of_stream(model, stream, sample.at)).collect::<Vec<_>>(),
        "streams_found": sample.streams.len() + sample.others.streams + sample.others.dead_streams,
        "handlers": handlers(model),
        "runs": global.runs.iter().take(RUNS).map(of_run).collect::<Vec<_>>(),
        "batches": sample.batches.iter().map(batch::described).collect::<Vec<_>>(),
        "ballots": sample.ballots.iter().map(vote::described).collect::<Vec<_>>(),
        "dead": dead.iter().map(|stream| of_dead(model, stream, sample.at)).collect::<Vec<_>>(),
        "problems": sample.problems,
    }))
}

/// A run, and how far it is.
fn of_run(run: &OldestRun) -> Value {
    json!({
        "instance": run.instance,
        "type": run.kind,
        "stream": run.stream,
        "entry": run.entry.to_string(),
        "age_ms": run.age_ms,
        "progress": run.progress,
    })
}

fn of_stream(model: &Model, stream: &Stream, now: u64) -> Value {
    let key = stream.name.key.as_str();
    let group = |group: &Group| {
        let flow = model.flow(&group_id(key, &group.name));
        json!({
            "group": group.name,
            "out_per_s": flow.and_then(|flow| flow.rate_out),
            "lag": group.lag,
            "pending": group.pending,
            "waiting": waiting(group),
            "oldest_ms": group.oldest.map(|id| now.saturating_sub(id.ms)),
        })
    };
    let ids = stream.groups.iter().map(|group| group_id(key, &group.name));
    let mut flows = ids.chain([key.to_owned()]).filter_map(|id| model.flow(&id));
    json!({
        "stream": key,
        "kind": stream.name.kind.as_str(),
        "length": stream.length,
        "bytes": bytes(model, key),
        "in_per_s": flows.next().and_then(|flow| flow.rate_in),
        "groups": stream.groups.iter().map(group).collect::<Vec<_>>(),
    })
}

fn bytes(model: &Model, key: &str) -> Option<u64> {
    model.sample()?.sizes.get(key).copied()
}

fn of_dead(model: &Model, stream: &Stream, now: u64) -> Value {
    let key = stream.name.key.as_str();
    json!({
        "stream": key,
        "length": stream.length,
        "bytes": bytes(model, key),
        "in_per_s": model.flow(key).and_then(|flow| flow.rate_in),
        "oldest_ms": stream.first.map(|first| now.saturating_sub(first.ms)),
    })
}

fn handlers(model: &Model) -> Vec<Value> {
    let Some(global) = model.sample().map(|sample| &sample.global) else {
        return Vec::new();
    };
    let one = |(kind, sums): (&String, &HandlerSums)| {
        let lately = model.lately(kind);
        let latency = sums.latency.as_ref().filter(|all| all.count() > 0);
        json!({
            "type": kind,
            "calls": sums.calls,
            "errors": sums.errors,
            "retries": sums.retries,
            "calls_per_s": lately.calls,
            "errors_per_s": lately.errors,
            "p50_ms": latency.map(|latency| latency.quantile_ms(0.5)),
            "p99_ms": latency.map(|latency| latency.quantile_ms(0.99)),
            "circuit": global.circuits.get(kind),
            "running": global.running.get(kind).map_or(0, |running| running.runs),
            "oldest_ms": global.running.get(kind).map(|running| running.oldest_ms),
        })
    };
    let mut handlers = global.handlers.clone();
    for kind in global.running.keys() {
        // What never ended was never counted.
        handlers.entry(kind.clone()).or_default();
    }
    handlers.iter().map(one).collect()
}
