//! What became of a replay, and how that is said.

use super::{tally, what};
use crate::cli::output::{self, number, span};
use crate::cli::{Exit, Session};
use convoke::connect::clock::whole_ms;
use convoke::operator::replay::Source;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

/// Why a replay ended before the last one that it might have replayed.
pub(super) const MORE_CAME: &str = "more came than it was begun for";

#[derive(Default)]
pub(super) struct Done {
    pub(super) replayed: u64,
    pub(super) gone: u64,
    /// What could not be mended, by the reason.
    left: BTreeMap<String, u64>,
    pub(super) stopped: Option<String>,
    /// Entries that nobody agreed to came meanwhile.
    pub(super) is_cut: bool,
    /// Others could follow it, and another terminal can go on with it.
    pub(super) is_held: bool,
    /// Somebody else has the right to it by now.
    pub(super) is_lost: bool,
}

impl Done {
    pub(super) fn leave(&mut self, why: &str) {
        tally::add(&mut self.left, why);
    }

    pub(super) fn left_alone(&self) -> u64 {
        self.left.values().sum()
    }

    /// Says what became of a replay of that many.
    pub(super) fn say(
        &self,
        session: &Session,
        (run, from): (&str, Source),
        total: u64,
        interrupted: bool,
        took: Duration,
    ) -> anyhow::Result<Exit> {
        let unfinished = interrupted || self.stopped.is_some() || self.is_cut;
        let stopped = self.stopped.as_deref();
        if session.output.is_json() {
            session.output.json(&json!({
                "run": run,
                "replayed_total": self.replayed,
                "gone_meanwhile": self.gone,
                "left": self.left,
                "of": total,
                "interrupted": interrupted,
                "stopped": stopped.or(self.is_cut.then_some(MORE_CAME)),
            }))?;
        } else {
            let took = span(whole_ms(took));
            let what = what(from, self.replayed);
            session
                .output
                .line(&format!("replayed {what} in {took} (run {run})"))?;
            if self.gone > 0 {
                output::complain_line(&format!("{} were gone meanwhile", number(self.gone)));
            }
            for (why, n) in &self.left {
                let why = output::printable(why);
                output::complain_line(&format!("{} left alone: {why}", number(*n)));
            }
        }
        match &self.stopped {
            Some(why) if self.is_lost => anyhow::bail!("{run}: {why}"),
            Some(error) => anyhow::bail!("the server refused the next one: {error}"),
            None => {}
        }
        if interrupted && !session.output.is_json() {
            let rest = number(total - self.replayed - self.gone - self.left_alone());
            output::complain_line(&format!("interrupted: {rest} are where they were"));
        }
        let goes_on = self.is_cut || (interrupted && self.is_held);
        if !session.output.is_json() {
            if self.is_cut {
                output::complain_line(MORE_CAME);
            }
            if goes_on {
                output::complain_line(&format!("to go on: the same command, with --run {run}"));
            }
        }
        let failed = unfinished || !self.left.is_empty();
        Ok(if failed { Exit::Failed } else { Exit::Done })
    }
}
