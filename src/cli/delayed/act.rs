//! `convoke delayed run-now`, `edit` and `drop`: changing what waits.

use super::Which;
use super::list::{add, listing};
use super::walk::Walk;
use crate::cli::choose::{self, Due};
use crate::cli::confirm::confirm;
use crate::cli::output::{self, count};
use crate::cli::{Exit, Misuse, Session, input};
use clap::Args;
use convoke::operator::delayed::{DelayedChange, Queue, Waiting};
use convoke::operator::inspect;
use convoke::operator::replay::{Operator, STEP, STEP_BYTES};
use convoke::protocol::keys::StreamKind;
use redis::aio::ConnectionLike;
use serde_json::json;

/// How to go about it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "How")]
struct Act {
    /// All that waits
    #[arg(long)]
    all: bool,
    /// Only show what would happen
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Publish events at once that wait
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke delayed run-now --id order-4711
  convoke delayed run-now image --retries --dry-run
  convoke delayed run-now mail --due-before 1h --yes

Each event leaves the delay queue and enters its stream in one step: once, however often this is broken off and \
repeated. A retry keeps its attempt. What was done is told on the broadcast (operator.replayed).")]
pub(super) struct RunNow {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    act: Act,
}

/// Change the payload or the due time of events that wait
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke delayed edit --id order-4711 --due 2030-01-31T06:00Z
  convoke delayed edit --id order-4711 --data '{\"width\": 80}'
  convoke delayed edit image --retries --due 10m --yes

An event that has left the queue meanwhile is left alone. What was done is told on the broadcast \
(operator.changed).")]
pub(super) struct Edit {
    #[command(flatten)]
    which: Which,
    /// When they are due: 10m (from now), or a date such as 2030-01-31T06:00Z
    #[arg(long, value_name = "TIME", value_parser = choose::due, help_heading = "What becomes of them")]
    due: Option<Due>,
    /// Their payload: JSON, @FILE, or - for standard input
    #[arg(
        long,
        value_name = "JSON|@FILE|-",
        help_heading = "What becomes of them"
    )]
    data: Option<String>,
    #[command(flatten)]
    act: Act,
}

/// Take events that wait out of the queue for good
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke delayed drop --id order-4711
  convoke delayed drop report --due-after 365d --dry-run
  convoke delayed drop image --type 'image.*' --yes

They never run, and whoever waits for a reply gets none. What was dropped, when and by whom is told on the \
broadcast (operator.dropped). Dropping all that waits needs --all.")]
pub(super) struct Drop {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    act: Act,
}

/// What is done to events.
enum Deed {
    RunNow,
    Edit(DelayedChange),
    Drop,
}

impl Deed {
    /// What is asked before, and what is said after.
    fn words(&self) -> (&'static str, &'static str, &'static str) {
        match self {
            Deed::RunNow => ("Publish", "at once", "published"),
            Deed::Edit(_) => ("Change", "that wait", "changed"),
            Deed::Drop => ("Drop", "for good", "dropped"),
        }
    }

    /// Whether there is anything to do.
    fn is_needed(&self, waiting: &Waiting) -> bool {
        match self {
            Deed::RunNow => waiting.event.is_some(),
            Deed::Edit(change) => waiting.event.is_some() && !change.is_done(waiting),
            Deed::Drop => waiting.is_whole(),
        }
    }

    /// Does it to a step's events; returns to how many.
    async fn step(
        &self,
        operator: &Operator,
        connection: &mut impl ConnectionLike,
        queue: &Queue,
        step: &[Waiting],
    ) -> anyhow::Result<u64> {
        let done = match self {
            Deed::RunNow => {
                let step = operator.run_delayed(connection, queue, step).await?;
                if let Some(error) = step.stopped {
                    anyhow::bail!("{}: {error}", queue.stream.key);
                }
                step.moved.iter().map(Option::is_some).collect()
            }
            Deed::Edit(change) => {
                operator
                    .change_delayed(connection, queue, step, change)
                    .await?
            }
            Deed::Drop => operator.drop_delayed(connection, queue, step).await?,
        };
        let done: Vec<bool> = done;
        Ok(done.into_iter().filter(|there| *there).count() as u64)
    }
}

pub(super) async fn run_now(
    session: &Session,
    connection: &mut impl ConnectionLike,
    flags: &RunNow,
) -> anyhow::Result<Exit> {
    act(session, connection, &flags.which, &flags.act, Deed::RunNow).await
}

pub(super) async fn edit(
    session: &Session,
    connection: &mut impl ConnectionLike,
    flags: &Edit,
) -> anyhow::Result<Exit> {
    if flags.due.is_none() && flags.data.is_none() {
        return Err(Misuse::error("say what becomes of them: --due, --data"));
    }
    let mut change = DelayedChange::new();
    if let Some(due) = flags.due {
        change = change.due_ms(due.ms(inspect::now(connection).await?));
    }
    if let Some(data) = &flags.data {
        change = change.data(input::payload(data, session.settings.max_payload)?);
    }
    act(
        session,
        connection,
        &flags.which,
        &flags.act,
        Deed::Edit(change),
    )
    .await
}

pub(super) async fn drop(
    session: &Session,
    connection: &mut impl ConnectionLike,
    flags: &Drop,
) -> anyhow::Result<Exit> {
    act(session, connection, &flags.which, &flags.act, Deed::Drop).await
}

async fn act(
    session: &Session,
    connection: &mut impl ConnectionLike,
    which: &Which,
    how: &Act,
    deed: Deed,
) -> anyhow::Result<Exit> {
    if which.is_all() && !how.all {
        return Err(Misuse::error(
            "say which (--id, --type, --due-after, …), or --all",
        ));
    }
    let now = inspect::now(connection).await?;
    let queues = which.queues(session, &[StreamKind::Events]).await?;
    let (verb, how_so, done_so) = deed.words();
    let mut listing = listing(session, queues.len() > 1);
    let mut total = 0u64;
    let mut walk = Walk::begin(session, which, queues.clone(), now);
    while let Some((queue, page)) = walk.next(connection).await? {
        for waiting in page.iter().filter(|waiting| deed.is_needed(waiting)) {
            total += 1;
            if how.dry_run {
                add(&mut listing, &queue, waiting, now)?;
            }
        }
    }
    listing.finish()?;
    which.what.complain();
    let events = count(total, "event", "events");
    if how.dry_run || total == 0 {
        if !session.output.is_json() {
            output::complain_line(&format!("{events} would be {done_so}"));
        }
        return Ok(Exit::Done);
    }
    if !confirm(&format!("{verb} {events} {how_so}?"), how.yes)? {
        output::complain_line(&format!("nothing was {done_so}"));
        return Ok(Exit::Failed);
    }
    let operator = session.operator(None)?;
    let mut done = 0u64;
    let mut walk = Walk::begin(session, which, queues, now);
    let mut next = walk.next(connection).await?;
    while let Some((queue, page)) = next {
        // The next page is read first: it follows the last event of this one, which is about to leave.
        next = walk.next(connection).await?;
        let page: Vec<Waiting> = page.into_iter().filter(|one| deed.is_needed(one)).collect();
        for step in steps(&page) {
            done += deed.step(&operator, connection, &queue, step).await?;
        }
    }
    match session.output.is_json() {
        true => session
            .output
            .json(&json!({ done_so: done, "run": operator.run() }))?,
        false => session
            .output
            .line(&format!("{done_so} {}", count(done, "event", "events")))?,
    }
    Ok(Exit::Done)
}

/// The events in steps that the server does at once.
fn steps(page: &[Waiting]) -> Vec<&[Waiting]> {
    let mut steps = Vec::new();
    let (mut from, mut bytes) = (0, 0);
    for (at, waiting) in page.iter().enumerate() {
        let full = at - from == STEP || bytes + waiting.bytes > STEP_BYTES as u64;
        if full && at > from {
            steps.push(&page[from..at]);
            (from, bytes) = (at, 0);
        }
        bytes += waiting.bytes;
    }
    if from < page.len() {
        steps.push(&page[from..]);
    }
    steps
}
