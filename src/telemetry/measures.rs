//! What a worker counted so far, as metrics.

use super::document::{Attribute, Attributes};
use crate::protocol::histogram::Histogram;
use serde::Serialize;
use std::time::SystemTime;

/// What a worker counted since it began, and how it is now.
#[derive(Clone, Debug)]
pub struct Measures {
    /// When it began.
    pub since: SystemTime,
    /// When this was read.
    pub at: SystemTime,
    /// Events that were started and are not settled.
    pub in_flight: u64,
    /// Bytes of memory that it holds.
    pub memory: u64,
    /// Events that were settled.
    pub processed: u64,
    /// Runs by event type.
    pub handlers: Vec<Handled>,
    /// Records of telemetry that were dropped.
    pub dropped: u64,
}

/// What the handler of one type did.
#[derive(Clone, Debug)]
pub struct Handled {
    /// The event type.
    pub kind: String,
    /// Runs.
    pub calls: u64,
    /// Runs that failed.
    pub errors: u64,
    /// Failures that are tried again.
    pub retries: u64,
    /// Runs refused by the rate limit.
    pub rate_limited: u64,
    /// How long the runs took.
    pub latency: Histogram,
}

/// A metric as the protocol writes it.
#[derive(Debug, Serialize)]
pub(super) struct Metric {
    name: &'static str,
    description: &'static str,
    unit: &'static str,
    #[serde(flatten)]
    data: Data,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
enum Data {
    Sum(Sum),
    Gauge(Points<Number>),
    Histogram(Distribution),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Points<T> {
    data_points: Vec<T>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Sum {
    data_points: Vec<Number>,
    aggregation_temporality: u8,
    is_monotonic: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Distribution {
    data_points: Vec<Times>,
    aggregation_temporality: u8,
}

/// `AGGREGATION_TEMPORALITY_CUMULATIVE`: since the worker began.
const CUMULATIVE: u8 = 2;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Number {
    attributes: Attributes,
    start_time_unix_nano: String,
    time_unix_nano: String,
    as_int: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Times {
    attributes: Attributes,
    start_time_unix_nano: String,
    time_unix_nano: String,
    count: String,
    sum: f64,
    bucket_counts: Vec<String>,
    explicit_bounds: Vec<f64>,
}

impl Measures {
    pub(super) fn metrics(&self) -> Vec<Metric> {
        let number = |value: u64, attributes: Attributes| Number {
            attributes,
            start_time_unix_nano: super::unix_ns(self.since).to_string(),
            time_unix_nano: super::unix_ns(self.at).to_string(),
            as_int: value.min(i64::MAX as u64).to_string(),
        };
        let sum = |name, unit, description, data_points| Metric {
            name,
            description,
            unit,
            data: Data::Sum(Sum {
                data_points,
                aggregation_temporality: CUMULATIVE,
                is_monotonic: true,
            }),
        };
        let gauge = |name, unit, description, value| Metric {
            name,
            description,
            unit,
            data: Data::Gauge(Points {
                data_points: vec![number(value, Vec::new())],
            }),
        };
        let by_type = |count: fn(&Handled) -> u64| -> Vec<Number> {
            let each = self.handlers.iter();
            each.map(|handled| number(count(handled), of_type(&handled.kind)))
                .collect()
        };
        let mut all = vec![
            gauge(
                "convoke.in_flight",
                "{event}",
                "Events that were started and are not settled",
                self.in_flight,
            ),
            gauge(
                "process.memory.usage",
                "By",
                "Memory that the process holds",
                self.memory,
            ),
            sum(
                "convoke.settled",
                "{event}",
                "Events that were settled",
                vec![number(self.processed, Vec::new())],
            ),
            sum(
                "convoke.telemetry.dropped",
                "{record}",
                "Spans and log records that were dropped",
                vec![number(self.dropped, Vec::new())],
            ),
        ];
        if self.handlers.is_empty() {
            return all;
        }
        let times = self.handlers.iter().map(|handled| self.times(handled));
        let times = Distribution {
            data_points: times.collect(),
            aggregation_temporality: CUMULATIVE,
        };
        all.extend([
            sum(
                "messaging.client.consumed.messages",
                "{message}",
                "Runs of handlers",
                by_type(|handled| handled.calls),
            ),
            sum(
                "convoke.errors",
                "{run}",
                "Runs that failed",
                by_type(|handled| handled.errors),
            ),
            sum(
                "convoke.retries",
                "{run}",
                "Failures that are tried again",
                by_type(|handled| handled.retries),
            ),
            sum(
                "convoke.rate_limited",
                "{run}",
                "Runs that the rate limit put off",
                by_type(|handled| handled.rate_limited),
            ),
            Metric {
                name: "messaging.process.duration",
                description: "How long runs took",
                unit: "s",
                data: Data::Histogram(times),
            },
        ]);
        all
    }

    fn times(&self, handled: &Handled) -> Times {
        let octaves: Vec<(u64, u64)> = handled.latency.octaves().collect();
        // The last one has no end.
        let bounds = octaves.iter().take(octaves.len() - 1);
        Times {
            attributes: of_type(&handled.kind),
            start_time_unix_nano: super::unix_ns(self.since).to_string(),
            time_unix_nano: super::unix_ns(self.at).to_string(),
            count: handled.latency.count().to_string(),
            sum: handled.latency.sum as f64 / 1e6,
            bucket_counts: octaves.iter().map(|(_, count)| count.to_string()).collect(),
            explicit_bounds: bounds.map(|(end, _)| *end as f64 / 1e6).collect(),
        }
    }
}

fn of_type(kind: &str) -> Attributes {
    vec![
        Attribute::text("messaging.system", "redis_streams"),
        Attribute::text("messaging.operation.name", "process"),
        Attribute::text("convoke.event.type", kind),
    ]
}
