//! `convoke metrics`: asks a worker what all of them did.

use super::output::{self, printable};
use super::{Exit, Format, Misuse, Session, request};
use anyhow::Context as _;
use clap::{Args, ValueHint};
use convoke::builtin::exposition::{self, Dialect};
use convoke::client::publish::Outgoing;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  convoke metrics
  convoke metrics --detailed
  convoke metrics --detailed --format json | jq .handlers
  convoke metrics --format prometheus > convoke.prom
  convoke metrics --watch /var/lib/node_exporter/convoke.prom --every 30s

A worker answers it: with its own numbers of this moment, and those that the others sent with their
last pulse, or report now where that is chosen (`convoke pattern`). Counters go on counting what instances did that are gone. --format prometheus writes the
text format of Prometheus (0.0.4), which node_exporter's textfile collector reads, --format openmetrics
that of OpenMetrics 1.0; both always in detail, with the histograms. --watch writes FILE so again and \
again, each time as a whole, until it is told to end; while nobody answers the file stays as it is, and \
grows old. A worker does it by itself with --metrics-file.";

/// Ask the workers what they did and how they are
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// Also each handler, each pattern of system events, what is in flight, and how the load is spread
    #[arg(long)]
    detailed: bool,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    timeout: Duration,
    /// Write it into this file, for Prometheus unless --format says otherwise, and do not end
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    watch: Option<PathBuf>,
    /// How often
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "15s", requires = "watch")]
    every: Duration,
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let dialect = match session.output.format() {
        Format::Prometheus => Some(Dialect::Prometheus),
        Format::OpenMetrics => Some(Dialect::OpenMetrics),
        Format::Text if flags.watch.is_some() => Some(Dialect::Prometheus),
        Format::Text | Format::Json => None,
    };
    if let Some(file) = &flags.watch {
        let dialect = dialect.ok_or_else(|| {
            Misuse::error("--watch writes --format prometheus or openmetrics, not json")
        })?;
        return watch(&session, &flags, dialect, file).await;
    }
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
        Some(dialect) => session.output.text(&text_of(metrics, dialect)?)?,
        None if session.output.is_json() => session.output.json(&metrics)?,
        None => print(&session, &metrics)?,
    }
    Ok(Exit::Done)
}

fn text_of(metrics: Value, dialect: Dialect) -> anyhow::Result<String> {
    exposition::of(metrics, dialect)
        .context("the answer lacks what this version tells on: the worker may be older")
}

/// Writes the file for ever. What goes wrong is told when it begins; the first time it ends the command.
async fn watch(
    session: &Session,
    flags: &Flags,
    dialect: Dialect,
    file: &Path,
) -> anyhow::Result<Exit> {
    let mut told = None;
    loop {
        let written = write_once(session, flags.timeout, dialect, file).await;
        match written {
            Err(error) if told.is_none() => return Err(error),
            Err(error) => {
                let error = format!("{error:#}");
                if told.as_ref() != Some(&error) {
                    output::complain(session.output.format(), &error);
                }
                told = Some(error);
            }
            Ok(()) => told = Some(String::new()),
        }
        tokio::time::sleep(flags.every).await;
    }
}

async fn write_once(
    session: &Session,
    timeout: Duration,
    dialect: Dialect,
    file: &Path,
) -> anyhow::Result<()> {
    let ask = json!({"detailed": true, "histograms": true});
    let event = Outgoing::new("system.metrics", &ask);
    let reply = request::ask(session, event, timeout).await??;
    let text = text_of(request::result(&reply)?, dialect)?;
    exposition::write(file, &text).with_context(|| format!("{} cannot be written", file.display()))
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
        ("events cancelled", count("events_cancelled")),
        ("events misplaced", count("events_misplaced")),
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
    if let Some(missing) = metrics["missing_total"]
        .as_u64()
        .filter(|missing| *missing > 0)
    {
        let named = metrics["missing"].as_array().into_iter().flatten();
        let named: Vec<&str> = named.filter_map(Value::as_str).collect();
        let named = printable(&named.join(", ")).into_owned();
        lines.push(("not reported", format!("{missing}: {named}")));
    }
    if let Some(in_flight) = metrics["queue"]["in_flight"].as_u64() {
        lines.push(("in flight", in_flight.to_string()));
    }
    if let Some(balance) = metrics["scaling"]["load_balance"].as_f64() {
        lines.push(("load balance", format!("{balance:.2}")));
    }
    if metrics.get("merged_ms").is_some() {
        lines.push((
            "put together",
            format!("by the leader, {} ago", ms("merged_ms")),
        ));
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
    session.output.table(&headings, &rows)?;
    print_patterns(session, &metrics["patterns"])
}

/// How system events were answered, where any that has patterns was.
fn print_patterns(session: &Session, patterns: &Value) -> anyhow::Result<()> {
    let events = patterns.as_object().into_iter().flatten();
    let mut rows = Vec::new();
    for (event, patterns) in events {
        for (pattern, answers) in patterns.as_object().into_iter().flatten() {
            let count = |name: &str| answers[name].as_u64().unwrap_or(0).to_string();
            let age = |name: &str| match &answers[name] {
                Value::Null => "-".to_owned(),
                age => milliseconds(age),
            };
            rows.push(vec![
                printable(event).into_owned(),
                printable(pattern).into_owned(),
                count("calls"),
                count("errors"),
                milliseconds(&answers["p50_ms"]),
                milliseconds(&answers["p99_ms"]),
                age("age_p50_ms"),
                age("age_p99_ms"),
            ]);
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    session.output.line("")?;
    let headings = [
        "EVENT", "PATTERN", "CALLS", "ERRORS", "P50", "P99", "AGE P50", "AGE P99",
    ];
    Ok(session.output.table(&headings, &rows)?)
}

fn milliseconds(value: &Value) -> String {
    let ms = value.as_f64().unwrap_or(0.0);
    format!("{ms:.3} ms")
}
