//! `convoke vote`: casts votes, shows ballots.

use super::output;
use super::output::printable;
use super::{Exit, Misuse, Session, input, request};
use clap::{Args, Subcommand};
use convoke::client::publish::Outgoing;
use convoke::connect::clock::whole_ms;
use convoke::coordination::ballots::ballot::{Ballot, BallotStatus};
use convoke::coordination::ballots::{Ballots, LISTED};
use convoke::coordination::instances::Instances;
use convoke::protocol::json;
use convoke::protocol::keys;
use serde_json::{Value, json};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  convoke vote cast upgrade-42 --instance w-1 --value '\"yes\"'
  convoke vote cast upgrade-42 --instance w-2 --value true --expires-in 10m
  convoke vote show upgrade-42
  convoke vote list --format json | jq -r 'select(.status == \"open\").decision'

The first vote opens a ballot and fixes who may vote: the instances that are active then. Give each
decision a name of its own: a day after its end a ballot is forgotten, and its name opens another.";

/// Cast votes and look at ballots
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Cast(Cast),
    Show(Show),
    List(List),
}

const CAST_EXAMPLES: &str = "\
Examples:
  convoke vote cast upgrade-42 --instance w-1 --value '\"yes\"'
  convoke vote cast upgrade-42 --instance w-1 --value '{\"to\": \"2.1\"}'

The vote is the instance's one vote: the same again changes nothing, another value is refused. A vote
that comes after the ballot has ended is not counted, and is told how it ended; that is no failure.";

/// Cast an instance's vote
#[derive(Args)]
#[command(after_help = CAST_EXAMPLES)]
struct Cast {
    /// The name of what is decided
    #[arg(value_name = "DECISION", value_parser = decision)]
    decision: String,
    /// Whose vote it is
    #[arg(long, value_name = "ID", value_parser = input::instance)]
    instance: String,
    /// What for: JSON, at most 1024 bytes
    #[arg(long, value_name = "JSON")]
    value: String,
    /// Who may vote, if this opens the ballot: active instances of this role
    #[arg(long, value_name = "ROLE", value_parser = input::role)]
    role: Option<String>,
    /// How long the ballot is open, if this opens it [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    expires_in: Option<Duration>,
    /// How long to wait for the answer; it is also the vote's deadline
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "30s")]
    timeout: Duration,
}

const SHOW_EXAMPLES: &str = "\
Examples:
  convoke vote show upgrade-42
  convoke vote show upgrade-42 --format json | jq '.votes[]'

Reads Redis directly, so it works without a worker.";

/// Show one ballot and who voted what
#[derive(Args)]
#[command(after_help = SHOW_EXAMPLES)]
struct Show {
    /// The name of what is decided
    #[arg(value_name = "DECISION", value_parser = decision)]
    decision: String,
}

const LIST_EXAMPLES: &str = "\
Examples:
  convoke vote list
  convoke vote list --limit 5 --format json

Reads Redis directly, so it works without a worker. The ballot that was opened last comes first.";

/// List the latest ballots
#[derive(Args)]
#[command(after_help = LIST_EXAMPLES)]
struct List {
    /// How many at the most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=LISTED as u64))]
    limit: u64,
}

fn decision(text: &str) -> Result<String, keys::NameError> {
    keys::check_name("decision", text).map(|()| text.to_owned())
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    match flags.action {
        Action::Cast(flags) => cast(&session, flags).await,
        Action::Show(flags) => show(&session, &flags.decision).await,
        Action::List(flags) => list(&session, flags.limit as usize).await,
    }
}

async fn cast(session: &Session, flags: Cast) -> anyhow::Result<Exit> {
    let value = input::encode(flags.value.as_bytes()).map_err(|problem| {
        Misuse::error(format_args!(
            "--value: {problem}; text stands in quotes: --value '\"yes\"'"
        ))
    })?;
    let mut payload = json!({
        "decision": flags.decision,
        "instance_id": flags.instance,
        "value": as_json(&value),
    });
    if let Some(role) = flags.role {
        payload["role"] = role.into();
    }
    if let Some(expires_in) = flags.expires_in {
        payload["expires_in_ms"] = whole_ms(expires_in).into();
    }
    let event = Outgoing::encoded("system.quorum.vote", json::from_json(&payload));
    let voted = match request::ask(session, event, flags.timeout).await? {
        Ok(reply) => request::result(&reply)?,
        Err(error) => {
            request::complain(session, &error);
            return Ok(Exit::Failed);
        }
    };
    if session.output.is_json() {
        session.output.json(&voted)?;
        return Ok(Exit::Done);
    }
    let counted = match voted["voted"].as_bool() {
        Some(true) => "counted",
        _ => "not counted",
    };
    let count = |field: &str| voted[field].as_u64().unwrap_or(0);
    let status = printable(voted["status"].as_str().unwrap_or("unknown"));
    let decision = match voted.get("final_decision") {
        Some(value) => format!(": {}", output::json(value)),
        None => String::new(),
    };
    session.output.line(&format!(
        "{counted}; {}{decision} ({} of {} voted, {} for one value decide)",
        session.output.bold(&status),
        count("vote_count"),
        count("electorate"),
        count("quorum"),
    ))?;
    Ok(Exit::Done)
}

async fn show(session: &Session, decision: &str) -> anyhow::Result<Exit> {
    let ballots = Ballots::new(session.connector()?, session.settings.keys()?);
    let Some(shown) = ballots.show(decision).await? else {
        anyhow::bail!(
            "no ballot on {decision} in namespace {}: the first vote opens one, and a day after its \
             end it is forgotten",
            session.settings.namespace
        );
    };
    if session.output.is_json() {
        let mut object = described(&shown.ballot);
        let votes = shown.votes.iter().map(|(id, value)| {
            let mut vote = json!({ "instance": id });
            if let Some(value) = value {
                vote["value"] = as_json(value);
            }
            vote
        });
        object["votes"] = votes.collect();
        session.output.json(&object)?;
        return Ok(Exit::Done);
    }
    let ballot = &shown.ballot;
    let role = match &ballot.role {
        Some(role) => format!("instances of role {role}"),
        None => "instances".to_owned(),
    };
    let output = &session.output;
    output.line(&format!(
        "{}: {}",
        output.bold(&printable(&ballot.decision)),
        result(ballot)
    ))?;
    output.line(&printable(&format!(
        "{} of {} {role} voted, {} for one value decide",
        ballot.vote_count, ballot.electorate, ballot.quorum
    )))?;
    for (value, votes) in shown.tally() {
        output.line(&format!("{votes} for {}", output::json(&as_json(value))))?;
    }
    let rows: Vec<Vec<String>> = shown
        .votes
        .iter()
        .map(|(id, value)| {
            let value = value.as_ref().map(|value| output::json(&as_json(value)));
            vec![id.clone(), value.unwrap_or_else(|| "-".to_owned())]
        })
        .collect();
    output.table(&["INSTANCE", "VOTE"], &rows)?;
    Ok(Exit::Done)
}

async fn list(session: &Session, limit: usize) -> anyhow::Result<Exit> {
    let ballots = Ballots::new(session.connector()?, session.settings.keys()?);
    let listed = ballots.list(limit).await?;
    if session.output.is_json() {
        for ballot in &listed {
            session.output.json(&described(ballot))?;
        }
        return Ok(Exit::Done);
    }
    if listed.is_empty() {
        let namespace = &session.settings.namespace;
        output::complain_line(&format!("no ballots in namespace {namespace}"));
        return Ok(Exit::Done);
    }
    // The server's clock, which also wrote the times of the ballots.
    let instances = Instances::new(session.connector()?, session.settings.keys()?);
    let now = instances.census().await?.at;
    let rows: Vec<Vec<String>> = listed
        .iter()
        .map(|ballot| {
            vec![
                ballot.decision.clone(),
                format!("{} of {}", ballot.vote_count, ballot.electorate),
                ballot.leading.to_string(),
                ballot.quorum.to_string(),
                ballot.role.clone().unwrap_or_else(|| "-".to_owned()),
                session.output.moment(ballot.opened_at, now),
                result(ballot),
            ]
        })
        .collect();
    let headings = [
        "DECISION", "VOTED", "LEADING", "QUORUM", "ROLE", "OPENED", "RESULT",
    ];
    session.output.table(&headings, &rows)?;
    Ok(Exit::Done)
}

/// How it stands, and what was decided.
pub(super) fn result(ballot: &Ballot) -> String {
    match (&ballot.value, ballot.status) {
        (Some(value), BallotStatus::Decided) => {
            format!("decided: {}", output::json(&as_json(value)))
        }
        (_, status) => status.as_str().to_owned(),
    }
}

pub(super) fn as_json(value: &[u8]) -> Value {
    json::to_json(value).unwrap_or_default()
}

pub(super) fn described(ballot: &Ballot) -> Value {
    let mut object = json!({
        "decision": ballot.decision,
        "status": ballot.status.as_str(),
        "vote_count": ballot.vote_count,
        "leading": ballot.leading,
        "quorum": ballot.quorum,
        "electorate": ballot.electorate,
        "opened_at": ballot.opened_at,
        "expires_at": ballot.expires_at,
        "kept_until": ballot.kept_until,
        "pattern": ballot.pattern.as_str(),
    });
    if let Some(role) = &ballot.role {
        object["role"] = role.as_str().into();
    }
    if let Some(ended_at) = ballot.ended_at {
        object["ended_at"] = ended_at.into();
    }
    if let Some(value) = &ballot.value {
        object["final_decision"] = as_json(value);
    }
    object
}
