//! `convoke health`: asks the workers how they are.

use super::output::{GREEN, YELLOW, printable, span, wrapped};
use super::{Exit, Session, request};
use clap::Args;
use convoke::client::publish::Outgoing;
use serde_json::Value;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  convoke health && echo fine
  convoke health --timeout 2s --format json

A worker answers it, so it also tells whether one is there, and what does not flow: what waits though nobody
takes it, what hangs, who is lost. Exit code 0: healthy or degraded; \
1: unhealthy, or nobody answered.";

/// Ask the workers how they and their services are
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    timeout: Duration,
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let event = Outgoing::new("system.health", &serde_json::Map::new());
    let health = match request::ask(&session, event, flags.timeout).await? {
        Ok(reply) => request::result(&reply)?,
        Err(error) => {
            request::complain(&session, &error);
            return Ok(Exit::Failed);
        }
    };
    if session.output.is_json() {
        session.output.json(&health)?;
    } else {
        print(&session, &health)?;
    }
    match health["status"].as_str() {
        Some("healthy" | "degraded") => Ok(Exit::Done),
        _ => Ok(Exit::Failed),
    }
}

fn print(session: &Session, health: &Value) -> anyhow::Result<()> {
    let output = &session.output;
    let status = printable(health["status"].as_str().unwrap_or("unknown"));
    let status = match &*status {
        "healthy" => output.in_style(GREEN, &status),
        "degraded" => output.in_style(YELLOW, &status),
        _ => output.red(&status),
    };
    let count = |state: &str| health["instances"][state].as_u64().unwrap_or(0);
    let partition = match health["partition"].as_bool() {
        Some(true) => ", partition",
        _ => "",
    };
    let external = match count("external") {
        0 => String::new(),
        count => format!(", besides {count} external"),
    };
    output.line(&format!(
        "{status}; instances: {} healthy, {} suspect, {} lost{external}{partition}",
        count("healthy"),
        count("suspect"),
        count("lost"),
    ))?;
    match health["flow"].as_array() {
        Some(troubles) => {
            for trouble in troubles {
                tell(session, trouble)?;
            }
        }
        None => output.line(&output.faint("whether events flow could not be looked at"))?,
    }
    if let Some(reports) = health["reports"].as_object() {
        let count = |name: &str| reports.get(name).and_then(Value::as_u64).unwrap_or(0);
        let age = span(health["age_ms"].as_u64().unwrap_or(0));
        let missing = match count("missing") {
            0 => String::new(),
            missing => format!("; {missing} have not reported"),
        };
        let given = count("given");
        output.line(&output.faint(&format!(
            "from the reports of {given}, up to {age} old{missing}"
        )))?;
    }
    let services = health["services"].as_object();
    let rows: Vec<Vec<String>> = services
        .into_iter()
        .flatten()
        .map(|(name, service)| {
            let latency = service["latency_ms"].as_f64();
            vec![
                name.clone(),
                service["status"].as_str().unwrap_or("unknown").to_owned(),
                latency.map_or_else(String::new, |ms| format!("{ms:.1}ms")),
                error_of(service),
            ]
        })
        .collect();
    Ok(output.table(&["SERVICE", "STATUS", "LATENCY", "ERROR"], &rows)?)
}

/// What is wrong with a service, or with some of its nodes.
fn error_of(service: &Value) -> String {
    let error = service["error"].as_str().map(str::to_owned);
    let away = service["away"].as_array().into_iter().flatten();
    let away = away.map(|away| {
        let text = |name: &str| away[name].as_str().unwrap_or_default();
        format!("{} does not answer: {}", text("node"), text("error"))
    });
    error.into_iter().chain(away).collect::<Vec<_>>().join("; ")
}

/// Something that does not flow.
fn tell(session: &Session, trouble: &Value) -> anyhow::Result<()> {
    let output = &session.output;
    let text = |name: &str| trouble[name].as_str().unwrap_or_default().to_owned();
    let check = printable(&text("check")).into_owned();
    let check = match trouble["severe"].as_bool() {
        Some(true) => output.red(&check),
        _ => output.in_style(YELLOW, &check),
    };
    output.line(&format!("{check}: {}", printable(&text("what"))))?;
    for (name, text) in [("why", text("why")), ("mend", text("mend"))] {
        let told = format!("{name}: {}", printable(&text));
        for line in wrapped(&told, 4, output.width()) {
            output.line(&output.faint(&line))?;
        }
    }
    Ok(())
}
