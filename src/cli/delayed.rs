//! `convoke delayed`: what waits for its time, and what can be done about it.

mod act;
mod list;
mod show;
mod walk;

use super::choose::{self, Due, What};
use super::{Exit, Session};
use clap::{Args, Subcommand};
use convoke::operator::delayed::{Queue, Waiting};
use convoke::protocol::event::{Entry, LAST_ERROR};
use convoke::protocol::keys::{StreamKind, StreamName};

const EXAMPLES: &str = "\
Examples:
  convoke delayed list                    how much waits, and until when
  convoke delayed list image --entries --due-before 10m
  convoke delayed show order-4711
  convoke delayed run-now mail --type 'mail.*' --dry-run
  convoke delayed edit --id order-4711 --due 2030-01-31T06:00Z
  convoke delayed drop --due-after 365d --yes";

/// Show and change events that wait for their time: published for later, or to be tried again
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(list::Flags),
    Show(show::Flags),
    RunNow(act::RunNow),
    Edit(act::Edit),
    Drop(act::Drop),
}

/// Which events that wait.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Which {
    /// Streams of events, or domains [default: all]
    #[arg(value_name = "STREAM")]
    streams: Vec<String>,
    /// Only these: the event's id, or that of the entry that it was; with commas between them
    #[arg(
        long = "id",
        value_name = "ID,…",
        value_delimiter = ',',
        help_heading = "Which entries (all conditions must hold)"
    )]
    ids: Vec<String>,
    #[command(flatten)]
    what: What,
    /// Only what is due from then on: 10m (from now), or a date such as 2030-01-31T06:00Z
    #[arg(
        long,
        value_name = "TIME",
        value_parser = choose::due,
        help_heading = "Which entries (all conditions must hold)"
    )]
    due_after: Option<Due>,
    /// Only what is due up to then
    #[arg(
        long,
        value_name = "TIME",
        value_parser = choose::due,
        help_heading = "Which entries (all conditions must hold)"
    )]
    due_before: Option<Due>,
    /// Only what failed before and is to be tried again
    #[arg(long, help_heading = "Which entries (all conditions must hold)")]
    retries: bool,
}

impl Which {
    /// Whether it is about everything.
    fn is_all(&self) -> bool {
        self.ids.is_empty()
            && self.what.is_empty()
            && self.due_after.is_none()
            && self.due_before.is_none()
            && !self.retries
    }

    /// Whether an event fits whose due time does.
    fn fit(&self, waiting: &Waiting) -> bool {
        let named = self.ids.is_empty()
            || self
                .ids
                .iter()
                .any(|id| *id == waiting.token || *id == waiting.id());
        let nothing = Entry::default();
        let event = waiting.event.as_ref().unwrap_or(&nothing);
        named && (!self.retries || attempt(event) > 1) && self.what.fit(event)
    }

    /// The queues of streams of these kinds in which it may be.
    async fn queues(&self, session: &Session, kinds: &[StreamKind]) -> anyhow::Result<Vec<Queue>> {
        let keys = session.keys().await?;
        let within = session.within()?;
        let all = within.queues(&keys).await?;
        let there: Vec<StreamName> = all.into_iter().map(|queue| queue.stream).collect();
        let streams = within
            .of(choose::named(&keys, &self.streams, kinds, &there)?)
            .await?;
        let queues = streams.iter().filter_map(|stream| Queue::of(&keys, stream));
        Ok(queues.collect())
    }
}

/// What is looked at: an inbox is its instance's own, and only that may change what waits for it.
const LOOKED_AT: [StreamKind; 2] = [StreamKind::Events, StreamKind::Inbox];

/// One field of an event as text.
fn text(event: &Entry, name: &str) -> Option<String> {
    let value = event.get(name)?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// Which try it will be.
fn attempt(event: &Entry) -> u64 {
    let told = text(event, "attempt").and_then(|text| text.parse().ok());
    told.unwrap_or(1)
}

/// Why an event waits, for people.
fn reason(event: &Entry) -> String {
    match attempt(event) {
        0 | 1 => String::new(),
        n => {
            let error = text(event, LAST_ERROR).unwrap_or_default();
            format!("attempt {n}: {error}")
        }
    }
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let mut connection = session.looking().await?;
    match flags.command {
        Command::List(flags) => list::run(&session, &mut connection, &flags).await,
        Command::Show(flags) => show::run(&session, &mut connection, &flags).await,
        Command::RunNow(flags) => act::run_now(&session, &mut connection, &flags).await,
        Command::Edit(flags) => act::edit(&session, &mut connection, &flags).await,
        Command::Drop(flags) => act::drop(&session, &mut connection, &flags).await,
    }
}
