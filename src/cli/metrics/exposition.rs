//! The text format of Prometheus.

use crate::cli::output::printable;
use anyhow::Context as _;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// The answer of `system.metrics` with histograms, as far as it is told on.
#[derive(Debug, Deserialize)]
struct Metrics {
    events_processed: u64,
    events_failed: u64,
    tasks_completed: u64,
    throughput: f64,
    memory_bytes: u64,
    instances: u64,
    oldest_report_ms: u64,
    latency: Buckets,
    handlers: BTreeMap<String, Handler>,
    queue: Queue,
    scaling: Scaling,
}

#[derive(Debug, Deserialize)]
struct Handler {
    calls: u64,
    errors: u64,
    retries: u64,
    rate_limited: u64,
    cache_hits: u64,
    circuit: Option<String>,
    latency: Buckets,
}

#[derive(Debug, Deserialize)]
struct Buckets {
    sum_ms: f64,
    below_us: Vec<(u64, u64)>,
}

#[derive(Debug, Deserialize)]
struct Queue {
    in_flight: u64,
}

#[derive(Debug, Deserialize)]
struct Scaling {
    load_balance: f64,
}

/// What `system.metrics` answered, as exposition text.
pub fn of(metrics: Value) -> anyhow::Result<String> {
    let mut metrics: Metrics = serde_json::from_value(metrics)
        .context("the answer lacks what this version tells on: the worker may be older")?;
    // The encoder escapes what the format demands, which is less than a terminal does.
    let handlers = std::mem::take(&mut metrics.handlers).into_iter();
    metrics.handlers = handlers
        .map(|(kind, handler)| (printable(&kind).into_owned(), handler))
        .collect();
    let mut registry = Registry::default();
    registry.register_collector(Box::new(metrics));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counters = [
            (
                "convoke_events_processed",
                "Events whose outcome was committed",
                self.events_processed,
            ),
            (
                "convoke_events_failed",
                "Runs of handlers that failed",
                self.events_failed,
            ),
            (
                "convoke_tasks_completed",
                "Tasks that were completed",
                self.tasks_completed,
            ),
        ];
        for (name, help, value) in counters {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            metric.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
        }
        let seconds = self.oldest_report_ms as f64 / 1000.0;
        let gauges = [
            (
                "convoke_instances",
                "Instances that are alive",
                None,
                self.instances as f64,
            ),
            (
                "convoke_throughput",
                "Events processed a second, in the last ten seconds or so",
                None,
                self.throughput,
            ),
            (
                "convoke_memory",
                "Resident memory of all instances",
                Some(&Unit::Bytes),
                self.memory_bytes as f64,
            ),
            (
                "convoke_in_flight",
                "Events read and not settled",
                None,
                self.queue.in_flight as f64,
            ),
            (
                "convoke_load_balance",
                "How evenly the load is spread: 1 is evenly",
                None,
                self.scaling.load_balance,
            ),
            (
                "convoke_oldest_report",
                "The age of the oldest report that this was made of",
                Some(&Unit::Seconds),
                seconds,
            ),
        ];
        for (name, help, unit, value) in gauges {
            let mut metric = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
            metric.encode_gauge(&value)?;
        }
        let mut metric = encoder.encode_descriptor(
            "convoke_run_duration",
            "How long runs of all handlers took",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        let (sum, count, buckets) = self.latency.series();
        metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        self.encode_handlers(&mut encoder)
    }
}

type Pick = fn(&Handler) -> u64;

impl Metrics {
    fn encode_handlers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counters: [(&str, &str, Pick); 5] = [
            ("convoke_handler_calls", "Runs of a handler", |h| h.calls),
            ("convoke_handler_errors", "Runs that failed", |h| h.errors),
            (
                "convoke_handler_retries",
                "Failures that were tried again",
                |h| h.retries,
            ),
            (
                "convoke_handler_rate_limited",
                "Runs that the rate limit refused",
                |h| h.rate_limited,
            ),
            (
                "convoke_handler_cache_hits",
                "Results that came from the cache",
                |h| h.cache_hits,
            ),
        ];
        for (name, help, pick) in counters {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (kind, handler) in &self.handlers {
                let labels = [("type", kind.as_str())];
                metric
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, u64, u64>(&pick(handler), None)?;
            }
        }
        self.encode_circuits(encoder)?;
        let mut metric = encoder.encode_descriptor(
            "convoke_handler_duration",
            "How long runs of a handler took",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for (kind, handler) in &self.handlers {
            let labels = [("type", kind.as_str())];
            let (sum, count, buckets) = handler.latency.series();
            metric
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn encode_circuits(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if self
            .handlers
            .values()
            .all(|handler| handler.circuit.is_none())
        {
            return Ok(());
        }
        let mut metric = encoder.encode_descriptor(
            "convoke_handler_circuit",
            "The worst circuit of any instance: 0 closed, 1 half-open, 2 open",
            None,
            MetricType::Gauge,
        )?;
        for (kind, handler) in &self.handlers {
            let state: i64 = match handler.circuit.as_deref() {
                None => continue,
                Some("closed") => 0,
                Some("half-open") => 1,
                Some(_) => 2,
            };
            let labels = [("type", kind.as_str())];
            metric.encode_family(&labels)?.encode_gauge(&state)?;
        }
        Ok(())
    }
}

impl Buckets {
    /// The sum in seconds, the count, and for each end in seconds the count below it and not below
    /// the end before; the last end is infinite.
    fn series(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let count = self.below_us.iter().map(|(_, count)| count).sum();
        let last = self.below_us.len().saturating_sub(1);
        let buckets = self.below_us.iter().enumerate().map(|(at, (end, count))| {
            // Longer times than the last end are counted in the last bucket.
            let end = if at == last {
                f64::INFINITY
            } else {
                *end as f64 / 1e6
            };
            (end, *count)
        });
        (self.sum_ms / 1000.0, count, buckets.collect())
    }
}
