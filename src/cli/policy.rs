//! `convoke pause`, `resume`, `limit` and `policy`: what operators ask of types, domains and subjects.

mod history;
mod limit;
mod words;

pub(super) use limit::{Limit, limit};

use super::output::{self, Cell, Column, FAINT, Table, YELLOW};
use super::request::{ask, complain, result};
use super::{Exit, Session, input, who};
use clap::{Args, Subcommand};
use convoke::client::publish::Outgoing;
use convoke::connect::clock::{local_now, whole_ms};
use convoke::protocol::json::from_json;
use serde_json::{Value, json};
use std::time::Duration;

/// Whose runs a rate counts together.
const PER: [&str; 3] = ["source", "subject", "type"];

const PAUSE_EXAMPLES: &str = "\
Examples:
  convoke pause mail.send --for 20m --reason 'the relay is being repaired'
  convoke pause --domain mail
  convoke pause --subject mail:shop-7 --reason 'ticket 4711'
  convoke resume mail.send

What is paused waits, in order, without blocking others and without an attempt being spent; a requester \
is told `unavailable` with the reason at once. What runs already ends as it would. Batches and what is sent \
to one worker's inbox go on.";

/// Have the events of a type, a domain or a subject wait
#[derive(Args)]
#[command(after_help = PAUSE_EXAMPLES)]
pub(super) struct Pause {
    #[command(flatten)]
    whom: Whom,
    /// How long it lasts, if it is not taken back before
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    lasts: Option<Duration>,
    /// Why: requesters are told
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    how: How,
}

const RESUME_EXAMPLES: &str = "\
Examples:
  convoke resume mail.send
  convoke resume --domain mail
  convoke resume --subject mail:shop-7

Each pause is taken back as it was made: a type stays paused while its domain is.";

/// Have the events of a paused type, domain or subject go on
#[derive(Args)]
#[command(after_help = RESUME_EXAMPLES)]
pub(super) struct Resume {
    #[command(flatten)]
    whom: Whom,
    #[command(flatten)]
    how: How,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Whom {
    /// The event type, such as mail.send
    #[arg(value_name = "TYPE", value_parser = input::event_type)]
    kind: Option<String>,
    /// All types of a domain
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
    /// The events of a domain that have this subject
    #[arg(long, value_name = "DOMAIN:SUBJECT")]
    subject: Option<String>,
}

impl Whom {
    fn scope(&self) -> String {
        match (&self.kind, &self.domain, &self.subject) {
            (Some(kind), ..) => format!("type:{kind}"),
            (None, Some(domain), _) => format!("domain:{domain}"),
            (None, None, subject) => format!("subject:{}", subject.as_deref().unwrap_or_default()),
        }
    }
}

#[derive(Args)]
struct How {
    /// Only if this is the version of the scope's document
    #[arg(long, value_name = "N")]
    version: Option<u64>,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    timeout: Duration,
}

const POLICY_EXAMPLES: &str = "\
Examples:
  convoke policy list
  convoke policy show type:mail.send
  convoke policy history type:mail.send                who changed what, and why
  convoke history --type policy.changed --since 90d    the same from the ledger
  convoke pause mail.send; convoke resume mail.send

Scopes are type:TYPE, domain:DOMAIN and subject:DOMAIN:SUBJECT.";

/// Show what is paused and limited, by whom and why
#[derive(Args)]
#[command(after_help = POLICY_EXAMPLES)]
pub(super) struct Flags {
    #[command(subcommand)]
    command: Command,
    /// How long to wait for the answer
    #[arg(long, global = true, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    timeout: Duration,
}

#[derive(Subcommand)]
enum Command {
    /// List the policies by scope
    List,
    /// Show the policy of one scope
    Show {
        /// type:TYPE, domain:DOMAIN or subject:DOMAIN:SUBJECT
        #[arg(value_name = "SCOPE")]
        scope: String,
    },
    /// List the last changes, the newest first: the bus keeps 1,000
    History {
        /// Only those of this scope
        #[arg(value_name = "SCOPE")]
        scope: Option<String>,
        /// Show this many
        #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
    },
}

/// Asks the workers; `None` once it was said why there is no answer.
async fn asked(
    session: &Session,
    kind: &str,
    data: &Value,
    timeout: Duration,
) -> anyhow::Result<Option<Value>> {
    let request = Outgoing::encoded(kind, from_json(data)).source(who());
    Ok(match ask(session, request, timeout).await? {
        Ok(reply) => Some(result(&reply)?),
        Err(error) => {
            complain(session, &error);
            None
        }
    })
}

/// Changes a document, and says which version it has.
async fn change(
    session: &Session,
    kind: &str,
    data: Value,
    how: &How,
    done: &str,
) -> anyhow::Result<Exit> {
    change_of(session, kind, data, how.version, how.timeout, done).await
}

async fn change_of(
    session: &Session,
    kind: &str,
    mut data: Value,
    version: Option<u64>,
    wait: Duration,
    done: &str,
) -> anyhow::Result<Exit> {
    if let Some(version) = version {
        data["version"] = version.into();
    }
    let Some(said) = asked(session, kind, &data, wait).await? else {
        return Ok(Exit::Failed);
    };
    let output = &session.output;
    if output.is_json() {
        output.json(&said)?;
        return Ok(Exit::Done);
    }
    let scope = said["scope"].as_str().unwrap_or_default();
    if said["version"] == json!(0) {
        output::complain(output.format(), &format!("no policy of {scope}"));
        return Ok(Exit::Failed);
    }
    let line = format!("{scope}: {done}, version {}", said["version"]);
    output.line(&output::printable(&line))?;
    Ok(Exit::Done)
}

/// `convoke pause`
pub(super) async fn pause(session: Session, flags: Pause) -> anyhow::Result<Exit> {
    let mut pause = json!({"reason": flags.reason});
    let mut done = "paused".to_owned();
    if let Some(lasts) = flags.lasts {
        pause["for_ms"] = whole_ms(lasts).into();
        done = format!("paused for {}", humantime::format_duration(lasts));
    }
    let data = json!({"scope": flags.whom.scope(), "pause": pause});
    change(&session, "system.policy.set", data, &flags.how, &done).await
}

/// `convoke resume`
pub(super) async fn resume(session: Session, flags: Resume) -> anyhow::Result<Exit> {
    let data = json!({"scope": flags.whom.scope(), "parts": ["pause"]});
    change(&session, "system.policy.clear", data, &flags.how, "goes on").await
}

/// `convoke policy`
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let data = match &flags.command {
        Command::List => json!({}),
        Command::Show { scope } => json!({"scope": scope}),
        Command::History { scope, limit } => {
            let limit = usize::from(*limit);
            return history::show(&session, scope.as_deref(), limit, flags.timeout).await;
        }
    };
    let Some(said) = asked(&session, "system.policy.get", &data, flags.timeout).await? else {
        return Ok(Exit::Failed);
    };
    let all = said["policies"].as_array().map_or(&[][..], Vec::as_slice);
    if let (Command::Show { scope }, []) = (&flags.command, all) {
        output::complain(session.output.format(), &format!("no policy of {scope}"));
        return Ok(Exit::Failed);
    }
    if session.output.is_json() {
        for one in all {
            session.output.json(one)?;
        }
        return Ok(Exit::Done);
    }
    let now = local_now();
    let columns = vec![
        Column::new("SCOPE").shrinks(16),
        Column::new("PAUSED"),
        Column::number("PARKED").optional(),
        Column::new("LIMITS").shrinks(12),
        Column::new("SEATS").optional(),
        Column::new("REASON").shrinks(12),
        Column::number("VERSION"),
        Column::new("BY").optional(),
        Column::new("CHANGED"),
    ];
    let mut table = Table::new(&session.output, columns);
    for one in all {
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let pause = &one["pause"];
        let until = pause["until"].as_u64();
        let paused = match (pause["lasts"].as_bool(), until) {
            (None, _) => Cell::from("-"),
            (Some(false), _) => Cell::styled("over", FAINT),
            (Some(true), None) => Cell::styled("until resumed", YELLOW),
            (Some(true), Some(at)) => {
                let ends = format!("ends {}", session.output.ahead(at, now));
                Cell::styled(ends, YELLOW)
            }
        };
        let changed = one["at"].as_u64().unwrap_or_default();
        table.row(vec![
            text(&one["scope"]).into(),
            paused,
            one["parked"]
                .as_u64()
                .map_or_else(|| "-".to_owned(), output::number)
                .into(),
            words::limits(one).into(),
            words::seats(one).into(),
            match one["reason"].is_null() {
                true => text(&pause["reason"]).into(),
                false => text(&one["reason"]).into(),
            },
            one["version"].to_string().into(),
            text(&one["by"]).into(),
            session.output.moment(changed, now).into(),
        ])?;
    }
    table.finish()?;
    Ok(Exit::Done)
}
