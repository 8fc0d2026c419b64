//! `convoke dead drop`: deletes dead letters for good.

use super::Which;
use super::list::{add, listing};
use crate::cli::confirm::confirm;
use crate::cli::output::{self, count};
use crate::cli::{Exit, Misuse, Session};
use clap::Args;
use convoke::operator::inspect;
use convoke::operator::replay::STEP;
use redis::aio::ConnectionLike;
use serde_json::json;

/// Delete dead letters for good
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke dead drop --id 1700000000000-0
  convoke dead drop image --reason invalid_argument --dry-run
  convoke dead drop image --until 30d --yes

Asks before it acts. What was dropped, when and by whom is told on the broadcast \
(operator.dropped). Dropping all of a stream needs --all.")]
pub(super) struct Flags {
    #[command(flatten)]
    which: Which,
    /// Drop all that is there
    #[arg(long)]
    all: bool,
    /// Only show what would be dropped
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) async fn run(
    session: &Session,
    connection: &mut impl ConnectionLike,
    flags: &Flags,
) -> anyhow::Result<Exit> {
    if flags.which.is_all() && !flags.all {
        return Err(Misuse::error(
            "say which (--type, --reason, --id, …), or --all",
        ));
    }
    let now = inspect::now(connection).await?;
    let sight = session.sight()?;
    let spans = flags.which.spans(session, connection).await?;
    let mut listing = listing(session, spans.len() > 1);
    let mut total = 0u64;
    for span in &spans {
        let mut letters = flags.which.letters(&sight, span);
        while let Some((entry, letter)) = letters.next().await? {
            total += 1;
            if flags.dry_run {
                add(&mut listing, &span.stream, &entry, &letter, now)?;
            }
        }
    }
    listing.finish()?;
    flags.which.filters.complain();
    let letters = count(total, "dead letter", "dead letters");
    if flags.dry_run || total == 0 {
        if !session.output.is_json() {
            output::complain_line(&format!("{letters} would be dropped"));
        }
        return Ok(Exit::Done);
    }
    if !confirm(&format!("Drop {letters} for good?"), flags.yes)? {
        output::complain_line("nothing was dropped");
        return Ok(Exit::Failed);
    }
    let operator = session.operator(None)?;
    let mut dropped = 0u64;
    for span in &spans {
        let mut letters = flags.which.letters(&sight, span);
        loop {
            let mut step = Vec::with_capacity(STEP);
            while step.len() < STEP
                && let Some((entry, _)) = letters.next().await?
            {
                step.push(entry.id);
            }
            if step.is_empty() {
                break;
            }
            let done = operator.drop_dead(connection, &span.stream.key, &step);
            dropped += done.await?.iter().filter(|there| **there).count() as u64;
        }
    }
    match session.output.is_json() {
        true => session
            .output
            .json(&json!({ "dropped": dropped, "run": operator.run() }))?,
        false => session.output.line(&format!(
            "dropped {}",
            count(dropped, "dead letter", "dead letters")
        ))?,
    }
    Ok(Exit::Done)
}
