//! `convoke limit`: how often and how long the handlers of a type run.

use super::{PER, change_of, input};
use crate::cli::{Exit, Misuse, Session};
use clap::Args;
use convoke::connect::clock::whole_ms;
use convoke::protocol::rate::Rate;
use serde_json::{Value, json};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  convoke limit mail.send --rate 10/s --reason 'the relay asked for it'
  convoke limit mail.send --rate 100/m --per source
  convoke limit mail.send --concurrency 2 --timeout 5s --attempts 3
  convoke limit mail.send --total 10               in all workers together
  convoke limit --domain mail --timeout 5s
  convoke limit mail.send --clear rate
  convoke limit mail.send --clear                  all of them

A limit stands in for that of the handler's own policy until it is cleared; the workers follow at once. \
What waits for it holds no slot, and spends no attempt. A rate and --total are counted over all workers, \
--concurrency is of each worker. What runs when a limit comes goes on, and counts. What a killed worker \
ran counts for up to 15 s more. A batch handler has no rate and no total. What waits for a rate or a total \
fills its stream in the end, and holds up the other types of its domain: to stop one type alone, pause it.";

/// The limits, by the names that they have here and in the protocol.
const LIMITS: [(&str, &str); 5] = [
    ("rate", "rate"),
    ("concurrency", "concurrency.worker"),
    ("total", "concurrency.total"),
    ("timeout", "timeout_ms"),
    ("attempts", "max_attempts"),
];

/// The parts of a policy that they are.
const PARTS: [&str; 4] = ["rate", "concurrency", "timeout_ms", "max_attempts"];

/// Limit how often, how many at a time and for how long the handlers of a type run
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct Limit {
    #[command(flatten)]
    whom: Whom,
    /// At most this many runs begin in any such period, over all workers
    #[arg(long, value_name = "RUNS/PERIOD", value_parser = Rate::parse)]
    rate: Option<Rate>,
    /// Each source, or each subject, may have that rate; without it, all of the type together
    #[arg(long, value_name = "WHOM", value_parser = PER, requires = "rate")]
    per: Option<String>,
    /// At most this many runs go on at a time in each worker
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// At most this many runs go on at a time in all workers together
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    total: Option<u32>,
    /// How long a run may take
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// How often an event is tried, the first time included
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    attempts: Option<u32>,
    /// Take limits back, these or all: the handler's own policy counts again
    #[arg(
        long, value_name = "LIMIT", num_args = 0.., value_parser = LIMITS.map(|(name, _)| name),
        conflicts_with_all = ["rate", "concurrency", "total", "timeout", "attempts"]
    )]
    clear: Option<Vec<String>>,
    /// Why: for the record
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Only if this is the version of the scope's document
    #[arg(long, value_name = "N")]
    version: Option<u64>,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    wait: Duration,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Whom {
    /// The event type, such as mail.send
    #[arg(value_name = "TYPE", value_parser = input::event_type)]
    kind: Option<String>,
    /// All types of a domain: its time-out and attempts
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
}

/// `convoke limit`
pub(in crate::cli) async fn limit(session: Session, flags: Limit) -> anyhow::Result<Exit> {
    let scope = match (&flags.whom.kind, &flags.whom.domain) {
        (Some(kind), _) => format!("type:{kind}"),
        (None, domain) => format!("domain:{}", domain.as_deref().unwrap_or_default()),
    };
    let mut data = json!({"scope": scope, "reason": flags.reason});
    let (kind, done) = match &flags.clear {
        Some(names) => {
            let named = LIMITS.iter();
            let named = named.filter(|(name, _)| names.iter().any(|one| one == name));
            data["parts"] = match names.is_empty() {
                true => PARTS.map(Value::from).into_iter().collect(),
                false => named.map(|(_, part)| Value::from(*part)).collect(),
            };
            ("system.policy.clear", "not limited any more")
        }
        None => {
            let mut set = |part: &str, value: Option<Value>| {
                if let Some(value) = value {
                    data[part] = value;
                }
            };
            let rate = flags.rate.map(|rate| {
                let mut said = json!({"limit": rate.limit, "period_ms": whole_ms(rate.period)});
                if let Some(per) = &flags.per {
                    said["per"] = per.as_str().into();
                }
                said
            });
            set("rate", rate);
            let most = [("worker", flags.concurrency), ("total", flags.total)];
            let most = most
                .into_iter()
                .filter_map(|(of, most)| Some((of.to_owned(), most?.into())));
            let most: serde_json::Map<String, Value> = most.collect();
            set(
                "concurrency",
                Some(most).filter(|most| !most.is_empty()).map(Value::from),
            );
            set(
                "timeout_ms",
                flags.timeout.map(|time| whole_ms(time).into()),
            );
            set("max_attempts", flags.attempts.map(Value::from));
            if PARTS.iter().all(|part| data[*part].is_null()) {
                return Err(Misuse::error(
                    "give a limit: --rate, --concurrency, --total, --timeout or --attempts; or --clear",
                ));
            }
            ("system.policy.set", "limited")
        }
    };
    change_of(&session, kind, data, flags.version, flags.wait, done).await
}
