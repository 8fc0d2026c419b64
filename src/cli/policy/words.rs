//! The parts of a policy as people read them.

use crate::cli::output::{date, number};
use convoke::protocol::rate::Rate;
use serde_json::Value;
use std::time::Duration;

/// A part of a document: what it is called, and what it says.
pub(super) fn part(name: &str, said: &Value) -> String {
    match name {
        "pause" => match said["until"].as_u64() {
            None => "paused".to_owned(),
            Some(until) => format!("paused until {}", date(until)),
        },
        "rate" => {
            let limit = said["limit"].as_u64().unwrap_or_default();
            let rate = Rate {
                limit: u32::try_from(limit).unwrap_or(u32::MAX),
                period: span(&said["period_ms"]),
            };
            match said["per"].as_str() {
                None | Some("type") => format!("rate {rate}"),
                Some(per) => format!("rate {rate} per {per}"),
            }
        }
        "concurrency" => {
            let names = [("concurrency", "worker"), ("total", "total")];
            let said = names.into_iter().filter_map(|(name, part)| {
                let most = said.get(part)?;
                Some(format!("{name} {most}"))
            });
            said.collect::<Vec<_>>().join(", ")
        }
        "timeout_ms" => format!("timeout {}", humantime::format_duration(span(said))),
        "max_attempts" => format!("attempts {said}"),
        name => format!("{name} {said}"),
    }
}

/// The limits that a policy sets, `-` where it sets none.
pub(super) fn limits(policy: &Value) -> String {
    let parts = ["rate", "concurrency", "timeout_ms", "max_attempts"];
    let said = parts
        .iter()
        .filter_map(|name| Some(part(name, policy.get(name)?)));
    match said.collect::<Vec<_>>() {
        said if said.is_empty() => "-".to_owned(),
        said => said.join(", "),
    }
}

/// What goes on and waits of a type with a total, where that was asked for.
pub(super) fn seats(policy: &Value) -> String {
    let seats = &policy["seats"];
    match (seats["taken"].as_u64(), seats["waits"].as_u64()) {
        (Some(taken), Some(0)) => format!("{} taken", number(taken)),
        (Some(taken), Some(waits)) => format!("{} taken, {} wait", number(taken), number(waits)),
        _ => "-".to_owned(),
    }
}

fn span(ms: &Value) -> Duration {
    Duration::from_millis(ms.as_u64().unwrap_or_default())
}
