//! `convoke schedule`: events that are published at times.

use super::confirm::confirm;
use super::output::{self, Cell, Column, FAINT, Table, YELLOW};
use super::publish::unix_ms;
use super::request::{ask, complain, result};
use super::{Exit, Session, input, who};
use clap::{Args, Subcommand};
use convoke::client::publish::Outgoing;
use convoke::connect::clock::{local_now, whole_ms};
use convoke::protocol::json::{from_json, to_json};
use convoke::protocol::keys;
use serde_json::{Value, json};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  convoke schedule put night r.make --cron '30 2 * * *' --time-zone Asia/Tokyo
  convoke schedule put beat health.check --every 30s --jitter 5s --missed skip
  convoke schedule put go mail.send --at 2030-01-31T06:00:00Z --data @m.json
  convoke schedule list
  convoke schedule pause night; convoke schedule resume night
  convoke schedule run night                         now, besides its ticks

Any worker publishes what is due, once for each tick, whoever dies: the event's id is NAME@TICK. \
`convoke docs protocol` says what becomes of missed ticks and of the nights when the clock changes.";

/// Publish events at times: cron with time zones, intervals, once
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    #[command(subcommand)]
    command: Command,
    /// How long to wait for the answer
    #[arg(long, global = true, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    timeout: Duration,
}

#[derive(Subcommand)]
enum Command {
    /// List the schedules, their next times and their last event
    List,
    Put(Box<Put>),
    /// Delete a schedule
    Delete {
        #[command(flatten)]
        one: One,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Have it not tick until it is resumed
    Pause(One),
    /// Have it go on with the first tick from now
    Resume(One),
    /// Publish its event now, besides its ticks
    Run(One),
}

#[derive(Args)]
struct One {
    /// The name of the schedule
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
}

const PUT_EXAMPLES: &str = "\
Examples:
  convoke schedule put night r.make --cron '30 2 * * *' --time-zone Asia/Tokyo
  convoke schedule put shift rota.turn --cron '0 0 6,14,22 * * *' --missed all
  convoke schedule put beat health.check --every 30s --jitter 5s --missed skip

--cron has five fields (minute hour day month weekday), or six with seconds first; lists, ranges, steps, \
names, L, W and #, and @daily and its like. --every ticks at each multiple of the interval since 1970 UTC. \
The same again changes nothing, so a deploy may put all its schedules each time.";

/// Put a schedule, or replace the one of that name
#[derive(Args)]
#[command(after_help = PUT_EXAMPLES)]
struct Put {
    #[command(flatten)]
    one: One,
    /// The type of its events, such as report.make
    #[arg(value_name = "TYPE", value_parser = input::event_type)]
    kind: String,
    /// When: a cron expression
    #[arg(long, value_name = "EXPRESSION", required_unless_present_any = ["every", "at"], conflicts_with_all = ["every", "at"])]
    cron: Option<String>,
    /// The time zone of --cron, by its IANA name [default: UTC]
    #[arg(long, value_name = "ZONE", requires = "cron")]
    time_zone: Option<String>,
    /// When: each interval, at least 1s
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, conflicts_with = "at")]
    every: Option<Duration>,
    /// When: once, at this time: RFC 3339, or Unix milliseconds
    #[arg(long, value_name = "TIME", value_parser = unix_ms)]
    at: Option<u64>,
    /// The payload of its events: JSON, @FILE, or - for standard input; without it nil
    #[arg(long, value_name = "JSON|@FILE|-")]
    data: Option<String>,
    /// Their ordering and partition key
    #[arg(long, value_name = "KEY")]
    subject: Option<String>,
    /// What becomes of missed ticks: the last is made up for, none is, or each is
    #[arg(long, value_name = "POLICY", value_parser = ["once", "skip", "all"], default_value = "once")]
    missed: String,
    /// Store each event up to this much later than its tick
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    jitter: Option<Duration>,
    /// Put it paused
    #[arg(long)]
    paused: bool,
    /// Only if this is its version
    #[arg(long, value_name = "N")]
    version: Option<u64>,
}

fn name(text: &str) -> Result<String, keys::NameError> {
    keys::check_name("schedule", text)?;
    Ok(text.to_owned())
}

impl Put {
    fn data(&self, max_payload: usize) -> anyhow::Result<Value> {
        let mut data = json!({
            "name": self.one.name,
            "type": self.kind,
            "missed": self.missed,
            "paused": self.paused,
        });
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                data[name] = value;
            }
        };
        set("cron", self.cron.clone().map(Value::from));
        set("time_zone", self.time_zone.clone().map(Value::from));
        set("every_ms", self.every.map(whole_ms).map(Value::from));
        set("at", self.at.map(Value::from));
        set("subject", self.subject.clone().map(Value::from));
        set("jitter_ms", self.jitter.map(whole_ms).map(Value::from));
        set("version", self.version.map(Value::from));
        if let Some(text) = &self.data {
            let payload = input::payload(text, max_payload)?;
            set("payload", Some(to_json(&payload)?));
        }
        Ok(data)
    }
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let (kind, data) = match &flags.command {
        Command::List => ("system.schedule.list", json!({})),
        Command::Put(put) => (
            "system.schedule.put",
            put.data(session.settings.max_payload)?,
        ),
        Command::Delete { one, .. } => ("system.schedule.delete", json!({"name": one.name})),
        Command::Pause(one) => (
            "system.schedule.put",
            json!({"name": one.name, "paused": true}),
        ),
        Command::Resume(one) => (
            "system.schedule.put",
            json!({"name": one.name, "paused": false}),
        ),
        Command::Run(one) => ("system.schedule.run", json!({"name": one.name})),
    };
    if let Command::Delete { one, yes } = &flags.command
        && !confirm(&format!("Delete the schedule {}?", one.name), *yes)?
    {
        return Ok(Exit::Failed);
    }
    let request = Outgoing::encoded(kind, from_json(&data)).source(who());
    let said = match ask(&session, request, flags.timeout).await? {
        Ok(reply) => result(&reply)?,
        Err(error) => {
            complain(&session, &error);
            return Ok(Exit::Failed);
        }
    };
    let output = &session.output;
    if session.output.is_json() && !matches!(flags.command, Command::List) {
        output.json(&said)?;
        return Ok(Exit::Done);
    }
    match &flags.command {
        Command::List => list(&session, &said)?,
        Command::Delete { one, .. } => match said["deleted"].as_bool() {
            Some(true) => output.line(&format!("{}: deleted", one.name))?,
            _ => {
                output::complain(output.format(), &format!("no schedule {}", one.name));
                return Ok(Exit::Failed);
            }
        },
        Command::Run(_) => output.line(&output::printable(&text(&said["id"])))?,
        Command::Pause(one) => {
            output.line(&format!(
                "{}: paused, version {}",
                one.name, said["version"]
            ))?;
        }
        Command::Put(_) | Command::Resume(_) => {
            let line = format!(
                "{}: version {}, next {}",
                text(&said["name"]),
                said["version"],
                next(&said, 2, output::date)
            );
            output.line(&output::printable(&line))?;
        }
    }
    Ok(Exit::Done)
}

fn list(session: &Session, said: &Value) -> anyhow::Result<()> {
    let schedules = said["schedules"].as_array().map_or(&[][..], Vec::as_slice);
    if session.output.is_json() {
        for one in schedules {
            session.output.json(one)?;
        }
        return Ok(());
    }
    let now = local_now();
    let columns = vec![
        Column::new("NAME"),
        Column::new("WHEN").shrinks(12),
        Column::new("TYPE").shrinks(12),
        Column::new("NEXT"),
        Column::new("LAST"),
        Column::new("ENTRY").optional(),
        Column::number("STORED"),
        Column::number("LEFT OUT"),
        Column::new("BY").optional(),
    ];
    let mut table = Table::new(&session.output, columns);
    for one in schedules {
        let ahead = |at| session.output.ahead(at, now);
        let next = match one["paused"].as_bool() {
            Some(true) => Cell::styled("paused", YELLOW),
            _ if one["next"].as_array().is_none_or(Vec::is_empty) => Cell::styled("over", FAINT),
            _ => Cell::from(next(one, 2, ahead)),
        };
        let last = one["last"]["tick"].as_u64();
        let last = last.map_or_else(|| "-".to_owned(), |at| session.output.moment(at, now));
        table.row(vec![
            text(&one["name"]).into(),
            when(one).into(),
            text(&one["type"]).into(),
            next,
            last.into(),
            text(&one["last"]["entry"]).into(),
            text(&one["stored"]).into(),
            text(&one["left_out"]).into(),
            text(&one["by"]).into(),
        ])?;
    }
    Ok(table.finish()?)
}

/// When it ticks, as one would say it on the command line.
fn when(one: &Value) -> String {
    let ms = |name: &str| one[name].as_u64();
    let cron = one["cron"].as_str();
    match (cron, ms("every_ms"), ms("at")) {
        (Some(cron), ..) => match one["time_zone"].as_str() {
            Some(zone) if zone != "UTC" => format!("{cron} {zone}"),
            _ => cron.to_owned(),
        },
        (None, Some(every), _) => {
            format!(
                "every {}",
                humantime::format_duration(Duration::from_millis(every))
            )
        }
        (None, None, Some(at)) => output::date(at),
        _ => "-".into(),
    }
}

/// The next ticks, that many at the most.
fn next(one: &Value, most: usize, shown: impl Fn(u64) -> String) -> String {
    let ticks = one["next"].as_array().into_iter().flatten();
    let ticks: Vec<String> = ticks
        .filter_map(Value::as_u64)
        .take(most)
        .map(shown)
        .collect();
    match ticks.is_empty() {
        true => "none".into(),
        false => ticks.join(", "),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
