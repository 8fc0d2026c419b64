//! `convoke metrics`: asks a worker what all of them did.

mod exposition;

use super::output::printable;
use super::{Exit, Format, Session, request};
use clap::Args;
use convoke::client::publish::Outgoing;
use exposition::Dialect;
use serde_json::{Value, json};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  convoke metrics
  convoke metrics --detailed
  convoke metrics --detailed --format json | jq .handlers
  convoke metrics --format prometheus > convoke.prom

A worker answers it: with its own numbers of this moment, and those that the others sent with their
last pulse. Counters go on counting what instances did that are gone. --format prometheus writes the
text format of Prometheus (0.0.4), which node_exporter's textfile collector reads, --format openmetrics
that of OpenMetrics 1.0; both always in detail, with the histograms.";

/// Ask the workers what they did and how they are
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// Also each handler, what is in flight, and how the load is spread
    #[arg(long)]
    detailed: bool,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    timeout: Duration,
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let dialect = match session.output.format() {
        Format::Prometheus => Some(Dialect::Prometheus),
        Format::OpenMetrics => Some(Dialect::OpenMetrics),
        Format::Text | Format::Json => None,
    };
    let ask = json!({
        "detailed": flags.detailed || dialect.is_some(),
        "histograms": dialect.is_some(),
    });
    let event = Outgoing::new("system.metrics", &ask);
    let metrics = match request::ask(&session, event, flags.timeout).await? {
        Ok(reply) => request::result(&reply)?,
        Err(error) => {
            request::complain(&session, &error);
            return Ok(Exit::Failed);
        }
    };
    match dialect {
        Some(dialect) => session.output.text(&exposition::of(metrics, dialect)?)?,
        None if session.output.is_json() => session.output.json(&metrics)?,
        None => print(&session, &metrics)?,
    }
    Ok(Exit::Done)
}

fn print(session: &Session, metrics: &Value) -> anyhow::Result<()> {
    let count = |name: &str| metrics[name].as_u64().unwrap_or(0).to_string();
    let ms = |name: &str| milliseconds(&metrics[name]);
    let throughput = metrics["throughput"].as_f64().unwrap_or(0.0);
    let memory = metrics["memory_bytes"].as_u64().unwrap_or(0) as f64 / f64::from(1 << 20);
    let mut lines = vec![
        ("instances", count("instances")),
        ("events processed", count("events_processed")),
        ("events failed", count("events_failed")),
        ("tasks completed", count("tasks_completed")),
        ("throughput", format!("{throughput:.1} events/s")),
        ("latency, mean", ms("average_latency_ms")),
        ("latency, p50", ms("p50_ms")),
        ("latency, p99", ms("p99_ms")),
        ("memory", format!("{memory:.1} MiB")),
    ];
    let external = &metrics["external"];
    if let Some(count) = external["instances"].as_u64().filter(|count| *count > 0) {
        let events = external["events_processed"].as_u64().unwrap_or(0);
        let said = format!("{count} instances, which say that they processed {events} events");
        lines.push(("external", said));
    }
    if let Some(in_flight) = metrics["queue"]["in_flight"].as_u64() {
        lines.push(("in flight", in_flight.to_string()));
    }
    if let Some(balance) = metrics["scaling"]["load_balance"].as_f64() {
        lines.push(("load balance", format!("{balance:.2}")));
    }
    for (name, value) in lines {
        session.output.line(&format!("{name:18}{value}"))?;
    }
    let Some(handlers) = metrics["handlers"].as_object() else {
        return Ok(());
    };
    session.output.line("")?;
    let rows: Vec<Vec<String>> = handlers
        .iter()
        .map(|(kind, handler)| {
            let count = |name: &str| handler[name].as_u64().unwrap_or(0).to_string();
            vec![
                printable(kind).into_owned(),
                count("calls"),
                count("errors"),
                count("retries"),
                milliseconds(&handler["p50_ms"]),
                milliseconds(&handler["p99_ms"]),
                handler["circuit"].as_str().unwrap_or("-").to_owned(),
                count("rate_limited"),
                count("cache_hits"),
            ]
        })
        .collect();
    let headings = [
        "HANDLER", "CALLS", "ERRORS", "RETRIES", "P50", "P99", "CIRCUIT", "LIMITED", "CACHED",
    ];
    Ok(session.output.table(&headings, &rows)?)
}

fn milliseconds(value: &Value) -> String {
    let ms = value.as_f64().unwrap_or(0.0);
    format!("{ms:.3} ms")
}
