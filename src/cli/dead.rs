//! `convoke dead`: what will not be retried, and why.

mod drop;
mod list;
mod show;

use super::choose;
use super::choose::{Filters, Span};
use super::{Exit, Session};
use clap::{Args, Subcommand};
use convoke::operator::browse::{Pages, Sight};
use convoke::operator::inspect;
use convoke::protocol::dead::Letter;
use convoke::protocol::event::{Entry, EntryId};
use convoke::protocol::keys::StreamKind;
use redis::aio::ConnectionLike;
use std::vec;

const EXAMPLES: &str = "\
Examples:
  convoke dead list                      reasons and types, with counts
  convoke dead list image --reason internal --entries
  convoke dead show 1700000000000-0      the whole story of one
  convoke dead drop image --type 'image.*' --until 30d --dry-run
  convoke replay dead image              publish them again";

/// Show dead letters: events that will not be retried, and why
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
    Drop(drop::Flags),
}

/// Which dead letters.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Which {
    /// Streams of dead letters, or domains [default: all]
    #[arg(value_name = "STREAM")]
    pub(crate) streams: Vec<String>,
    #[command(flatten)]
    pub(crate) filters: Filters,
    /// Only this reason: an error code, or poison
    #[arg(
        long,
        value_name = "REASON",
        help_heading = "Which entries (all conditions must hold)"
    )]
    pub(crate) reason: Option<String>,
    /// Only what this instance gave up
    #[arg(
        long,
        value_name = "ID",
        help_heading = "Which entries (all conditions must hold)"
    )]
    pub(crate) instance: Option<String>,
}

impl Which {
    /// Whether it is about everything.
    pub(super) fn is_all(&self) -> bool {
        self.filters.is_empty() && self.reason.is_none() && self.instance.is_none()
    }

    /// The letter, if it fits.
    pub(super) fn fit(&self, entry: &Entry) -> Option<Letter> {
        if !self.filters.fit_id(entry.id) {
            return None;
        }
        let letter = Letter::read(entry);
        let fits = self
            .reason
            .as_ref()
            .is_none_or(|reason| *reason == letter.reason)
            && (self.instance.is_none() || self.instance == letter.instance)
            && self.filters.fit(entry);
        fits.then_some(letter)
    }

    /// Where to look, as it is now.
    pub(super) async fn spans(
        &self,
        session: &Session,
        connection: &mut impl ConnectionLike,
    ) -> anyhow::Result<Vec<Span>> {
        let keys = session.keys().await?;
        let kinds = [StreamKind::Dead];
        let streams = choose::streams(&session.within()?, &keys, &self.streams, &kinds).await?;
        let now = inspect::now(connection).await?;
        let (from, to) = self.filters.bounds(now);
        let sight = session.sight()?;
        let mut spans = Vec::with_capacity(streams.len());
        for stream in streams {
            let last = sight.last_id(&stream.key).await?;
            if last > EntryId::default() {
                let to = to.min(last);
                spans.push(Span { stream, from, to });
            }
        }
        Ok(spans)
    }

    /// The letters of a span that fit.
    fn letters(&self, sight: &Sight, span: &Span) -> Letters<'_> {
        Letters {
            which: self,
            pages: Pages::new(sight, &span.stream.key, span.from, span.to),
            page: Vec::new().into_iter(),
        }
    }
}

/// Dead letters that fit, in the order of their ids.
struct Letters<'a> {
    which: &'a Which,
    pages: Pages,
    page: vec::IntoIter<Entry>,
}

impl Letters<'_> {
    async fn next(&mut self) -> anyhow::Result<Option<(Entry, Letter)>> {
        loop {
            for entry in self.page.by_ref() {
                if let Some(letter) = self.which.fit(&entry) {
                    return Ok(Some((entry, letter)));
                }
            }
            let page = self.pages.next().await?;
            if page.is_empty() {
                return Ok(None);
            }
            self.page = page.into_iter();
        }
    }
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let mut connection = session.looking().await?;
    match flags.command {
        Command::List(flags) => list::run(&session, &mut connection, &flags).await,
        Command::Show(flags) => show::run(&session, &mut connection, &flags).await,
        Command::Drop(flags) => drop::run(&session, &mut connection, &flags).await,
    }
}

/// When it died, in Unix ms.
fn died(letter: &Letter, entry: &Entry) -> u64 {
    letter.time.unwrap_or(entry.id.ms)
}
