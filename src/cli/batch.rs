//! `convoke batch`: has a batch processed, and looks at batches.

use super::output;
use super::output::printable;
use super::request::{ask, complain, result};
use super::{Exit, Misuse, Session, input, who};
use clap::{Args, Subcommand, ValueEnum};
use convoke::client::publish::Outgoing;
use convoke::connect::clock::whole_ms;
use convoke::coordination::batches::batch::{Batch, BatchStatus, Mode};
use convoke::coordination::batches::{Batches, LISTED};
use rmpv::Value as Packed;
use serde_json::{Value, json};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

const EXAMPLES: &str = "\
Examples:
  convoke batch run number.add --items '[1, 2, 3]'
  convoke batch run image.resize --items @jobs.json --id nightly --mode fan_out
  convoke batch show nightly
  convoke batch list --format json | jq -r 'select(.status == \"running\").id'
  convoke batch cancel nightly --reason 'an item hangs'

The handler of the type is run for every item. Asked for again with the same id and items, a batch
goes on where it stopped; a completed one answers with its result, for a day.";

const RUN_EXAMPLES: &str = "\
Examples:
  convoke batch run number.add --items '[1, 2, 3]'
  convoke batch run image.resize --items @jobs.json --id nightly --mode fan_out

Waits until the batch is completed, whoever works on it. If an item failed, the exit code is 1; what
failed is printed on stderr. Interrupted or timed out, it changes nothing for the batch: look with
`convoke batch show`, or run the same again.";

/// Have the items of a batch processed, each once committed, and look at batches
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Run(Run),
    Show(Show),
    List(List),
    Cancel(Cancel),
}

/// Have a batch processed and wait for it
#[derive(Args)]
#[command(after_help = RUN_EXAMPLES)]
struct Run {
    /// The event type whose handler runs the items
    #[arg(value_name = "TYPE", value_parser = input::event_type)]
    kind: String,
    /// The items: a JSON array, @FILE, or - for standard input
    #[arg(long, value_name = "JSON|@FILE|-")]
    items: String,
    /// The batch's id [default: one made up]
    #[arg(long, value_parser = input::batch)]
    id: Option<String>,
    /// Who runs the items: one instance in order, or all of them over the bus
    #[arg(long, default_value = "exclusive")]
    mode: ModeFlag,
    /// How long the batch may stay without a sign of life of its holder [default: the worker's batch_lease]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    lease: Option<Duration>,
    /// How long to wait for it
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "1h")]
    timeout: Duration,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeFlag {
    Exclusive,
    #[value(name = "fan_out", alias = "fan-out")]
    FanOut,
}

/// Show how far a batch is, and what failed
#[derive(Args)]
struct Show {
    /// The batch's id
    #[arg(value_parser = input::batch)]
    id: String,
}

/// List running and recent batches, the one that changed last first
#[derive(Args)]
struct List {
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

const CANCEL_EXAMPLES: &str = "\
Examples:
  convoke batch cancel nightly --reason 'an item hangs'

What was finished stays. The item that runs is told to end, and nothing more of it is kept; with
fan_out, items that were given out already may run, and do not count.";

/// Have nobody go on with a batch
#[derive(Args)]
#[command(after_help = CANCEL_EXAMPLES)]
struct Cancel {
    /// The batch's id
    #[arg(value_parser = input::batch)]
    id: String,
    /// Why: whoever asked for the batch is told
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    timeout: Duration,
}

/// Pause between two looks at a batch that somebody works on.
const LOOK: Duration = Duration::from_millis(250);

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let batches = Batches::new(session.connector()?, session.settings.keys()?);
    match flags.action {
        Action::Run(flags) => process(&session, &batches, flags).await,
        Action::Show(flags) => match batches.find(&flags.id).await? {
            Some(batch) => show(&session, &batch),
            None => Ok(missing(&session, &flags.id)),
        },
        Action::Cancel(flags) => cancel(&session, flags).await,
        Action::List(flags) => list(&session, batches.list(flags.limit.min(LISTED)).await?),
    }
}

async fn cancel(session: &Session, flags: Cancel) -> anyhow::Result<Exit> {
    let data = json!({"batch_id": flags.id, "reason": flags.reason});
    let event = Outgoing::new("system.batch.cancel", &data).source(who());
    let said = match ask(session, event, flags.timeout).await? {
        Ok(reply) => result(&reply)?,
        Err(error) => {
            complain(session, &error);
            return Ok(Exit::Failed);
        }
    };
    let output = &session.output;
    let cancelled = said["status"] == "cancelled";
    if output.is_json() {
        output.json(&said)?;
    } else {
        let number = |field: &str| said[field].as_u64().unwrap_or_default();
        let (done, failed) = (number("items_processed"), number("items_failed"));
        let (id, status) = (&flags.id, said["status"].as_str().unwrap_or_default());
        let total = number("total");
        let mut line = format!("{id}: {status}: {done} processed, {failed} failed of {total}");
        if let (true, Some(by)) = (cancelled, said["by"].as_str().filter(|by| *by != who())) {
            line += &format!(", by {by}");
        }
        output.line(&printable(&line))?;
    }
    Ok(match cancelled {
        true => Exit::Done,
        false => Exit::Failed,
    })
}

async fn process(session: &Session, batches: &Batches, flags: Run) -> anyhow::Result<Exit> {
    let id = flags
        .id
        .unwrap_or_else(|| format!("batch-{}", Uuid::now_v7().simple()));
    let items = input::payload(&flags.items, session.settings.max_payload)?;
    let items = rmpv::decode::read_value(&mut items.as_slice())?;
    if !items.is_array() {
        return Err(Misuse::error("--items: not a JSON array"));
    }
    let mode = match flags.mode {
        ModeFlag::Exclusive => Mode::Exclusive,
        ModeFlag::FanOut => Mode::FanOut,
    };
    let mut fields: Vec<(Packed, Packed)> = vec![
        ("batch_id".into(), id.as_str().into()),
        ("item_type".into(), flags.kind.as_str().into()),
        ("items".into(), items),
        ("mode".into(), mode.as_str().into()),
    ];
    if let Some(lease) = flags.lease {
        fields.push(("lease_ms".into(), whole_ms(lease).into()));
    }
    let event = Outgoing::new("system.batch.process", &Packed::Map(fields));
    let deadline = Instant::now() + flags.timeout;
    let mut bar = Bar::new(session);
    let answered = {
        let asked = ask(session, event, flags.timeout);
        tokio::pin!(asked);
        loop {
            tokio::select! {
                answered = &mut asked => break answered?,
                () = tokio::time::sleep(LOOK), if bar.shown => {
                    // The reply is what counts; a look that failed is no failure.
                    if let Ok(Some(batch)) = batches.find(&id).await {
                        bar.draw(&batch);
                    }
                }
            }
        }
    };
    if let Err(error) = answered {
        bar.clear();
        complain(session, &error);
        return Ok(Exit::Failed);
    }
    // Whoever answered is done, or has told that another one is at it.
    loop {
        let Some(batch) = batches.find(&id).await? else {
            bar.clear();
            return Ok(missing(session, &id));
        };
        if batch.status != BatchStatus::Running {
            bar.clear();
            return show(session, &batch);
        }
        if Instant::now() >= deadline {
            bar.clear();
            show(session, &batch)?;
            anyhow::bail!("{id} is not completed in time; it goes on");
        }
        bar.draw(&batch);
        tokio::time::sleep(LOOK).await;
    }
}

fn missing(session: &Session, id: &str) -> Exit {
    let namespace = &session.settings.namespace;
    let message = format!(
        "no batch {id} in namespace {namespace}: never begun, or completed more than a day ago"
    );
    output::complain(session.output.format(), &message);
    Exit::Failed
}

/// Prints a batch; failed if it is completed with failures.
fn show(session: &Session, batch: &Batch) -> anyhow::Result<Exit> {
    let output = &session.output;
    if output.is_json() {
        output.json(&described(batch))?;
    } else {
        output.line(&printable(&summary(batch)))?;
        for failure in &batch.failures {
            let line = format!(
                "item {}: {}: {}",
                failure.index, failure.code, failure.message
            );
            output::complain_line(&printable(&line));
        }
        let unrecorded = batch.failed.saturating_sub(batch.failures.len() as u64);
        if unrecorded > 0 {
            output::complain_line(&format!("… and {unrecorded} failures more"));
        }
    }
    Ok(match (batch.status, batch.failed) {
        (BatchStatus::Completed, 1..) | (BatchStatus::Cancelled, _) => Exit::Failed,
        _ => Exit::Done,
    })
}

fn summary(batch: &Batch) -> String {
    let Batch {
        id,
        processed,
        failed,
        total,
        ..
    } = batch;
    let status = batch.status.as_str();
    let by = &batch.processor_id;
    let mut line =
        format!("{id}: {status} by {by}: {processed} processed, {failed} failed of {total}");
    if let Some((by, reason)) = &batch.cancelled {
        line =
            format!("{id}: cancelled by {by}: {processed} processed, {failed} failed of {total}");
        if !reason.is_empty() {
            line += &format!("; {reason}");
        }
    }
    line
}

fn list(session: &Session, batches: Vec<Batch>) -> anyhow::Result<Exit> {
    let output = &session.output;
    if output.is_json() {
        for batch in &batches {
            output.json(&described(batch))?;
        }
        return Ok(Exit::Done);
    }
    if batches.is_empty() {
        let namespace = &session.settings.namespace;
        output::complain_line(&format!("no batches in namespace {namespace}"));
        return Ok(Exit::Done);
    }
    let rows: Vec<Vec<String>> = batches
        .iter()
        .map(|batch| {
            vec![
                batch.id.clone(),
                batch.item_type.clone(),
                batch.mode.as_str().to_owned(),
                batch.status.as_str().to_owned(),
                batch.processor_id.clone(),
                batch.processed.to_string(),
                batch.failed.to_string(),
                batch.total.to_string(),
            ]
        })
        .collect();
    let headings = [
        "ID",
        "TYPE",
        "MODE",
        "STATUS",
        "PROCESSOR",
        "PROCESSED",
        "FAILED",
        "TOTAL",
    ];
    output.table(&headings, &rows)?;
    Ok(Exit::Done)
}

pub(super) fn described(batch: &Batch) -> Value {
    json!({
        "id": batch.id,
        "item_type": batch.item_type,
        "mode": batch.mode.as_str(),
        "status": batch.status.as_str(),
        "processor_id": batch.processor_id,
        "items_processed": batch.processed,
        "items_failed": batch.failed,
        "total": batch.total,
        "fence": batch.fence,
        "expires_at": batch.expires_at,
        "started_at": batch.started_at,
        "updated_at": batch.updated_at,
        "failures": batch.failures,
        "cancelled": batch.cancelled.as_ref().map(|(by, reason)| json!({"by": by, "reason": reason})),
    })
}

/// One line on the terminal that is drawn over and over.
struct Bar {
    shown: bool,
}

impl Bar {
    fn new(session: &Session) -> Self {
        let shown = !session.output.is_json() && io::stderr().is_terminal();
        Self { shown }
    }

    fn draw(&mut self, batch: &Batch) {
        if self.shown {
            let line = format!("{} {}", filled(batch), summary(batch));
            write!(io::stderr(), "\r\x1b[K{}", printable(&line)).ok();
        }
    }

    fn clear(&mut self) {
        if self.shown {
            write!(io::stderr(), "\r\x1b[K").ok();
        }
    }
}

/// `[████░░░░]`
fn filled(batch: &Batch) -> String {
    const WIDTH: u64 = 20;
    let done = batch.processed + batch.failed;
    let full = (done * WIDTH).checked_div(batch.total).unwrap_or(WIDTH);
    let (full, empty) = (full.min(WIDTH), WIDTH.saturating_sub(full));
    let bar = "█".repeat(full as usize) + &"░".repeat(empty as usize);
    format!("[{bar}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_as_full_as_the_batch() {
        let of = |processed, failed, total| {
            let batch = Batch {
                processed,
                failed,
                total,
                ..Batch::default()
            };
            filled(&batch).chars().filter(|c| *c == '█').count()
        };
        assert_eq!(
            [of(0, 0, 7), of(3, 2, 10), of(9, 1, 10), of(0, 0, 0)],
            [0, 10, 20, 20]
        );
    }
}
