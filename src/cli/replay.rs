//! `convoke replay`: publishes again what was published before.

mod bar;
mod edit;
mod flags;
mod mend;
mod planned;
mod repair;
mod source;
mod tally;

pub(super) use flags::Flags;

use super::confirm::confirm;
use super::output::{Column, Table, count, number, span};
use super::{Exit, Misuse, Session, output};
use bar::bar;
use convoke::connect::clock::whole_ms;
use convoke::connect::connector::Pooled;
use convoke::operator::inspect;
use convoke::operator::replay::edit as edit_payload;
use convoke::operator::replay::planning::Candidate;
use convoke::operator::replay::{Move, Operator, Pace, Source, Step, drop_deadline};
use convoke::protocol::event::{Entry, EntryId, payload_of};
use convoke::protocol::keys::StreamName;
use flags::{Act, Command, HandOver};
use indicatif::ProgressBar;
use mend::Program;
use planned::{planned, row};
use serde_json::{Map, Value, json};
use source::{From, Walk};
use std::collections::BTreeMap;
use std::time::Duration;
use tally::Tally;
use tokio_util::sync::CancellationToken;

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let (from, act, over) = match flags.command {
        Command::Dead(flags) => (From::Dead(flags.which), flags.act, Some(flags.over)),
        Command::Pending(flags) => (
            From::Pending(flags.streams, flags.held, flags.filters),
            flags.act,
            None,
        ),
        Command::Range(flags) => (
            From::Range(flags.streams, flags.group, flags.filters),
            flags.act,
            None,
        ),
        Command::Follow(flags) => return repair::follow(&session, &flags).await,
        Command::List(_) => return repair::list(&session).await,
        Command::Cancel(flags) => return repair::cancel(&session, &flags).await,
    };
    let operator = session.operator(act.run.as_deref())?;
    let mut connection = session.connector()?.pooled().await?;
    let walk = Walk::begin(&session, &mut connection, from, &act, &operator).await?;
    let program = Program::of(&act, &session, operator.by());
    let mut replay = Replay {
        program,
        session: &session,
        connection,
        operator,
        walk,
        act,
        over: over.filter(|over| over.detach),
    };
    replay.run().await
}

struct Replay<'a> {
    session: &'a Session,
    /// What mends the payloads.
    program: Option<Program>,
    connection: Pooled,
    operator: Operator,
    walk: Walk,
    act: Act,
    /// How it is handed to the workers, if it is.
    over: Option<HandOver>,
}

impl Replay<'_> {
    async fn run(&mut self) -> anyhow::Result<Exit> {
        let tally = self.look().await?;
        self.say_left(&tally)?;
        let what = self.what(tally.chosen);
        if self.act.dry_run || tally.chosen == 0 {
            self.say_planned(&tally, &what)?;
            return Ok(Exit::Done);
        }
        let mended = match self.act.edit {
            true => Some(self.mend(&tally).await?),
            false => None,
        };
        let question = format!(
            "Replay {what} ({}) to {}?",
            Tally::named(&tally.types),
            tally.streams()
        );
        if !confirm(&output::printable(&question), self.act.yes)? {
            output::complain_line("nothing was replayed");
            return Ok(Exit::Failed);
        }
        if let Some(over) = &self.over {
            let (session, walk, act) = (self.session, &self.walk, &self.act);
            let total = tally.chosen;
            return repair::hand_over(session, walk, act, over, &self.operator, total).await;
        }
        self.go(tally.chosen, mended).await
    }

    fn what(&self, chosen: u64) -> String {
        match self.walk.source() {
            Source::Dead => count(chosen, "dead letter", "dead letters"),
            Source::Pending => count(chosen, "pending entry", "pending entries"),
            Source::Range => count(chosen, "finished event", "finished events"),
        }
    }

    /// Walks over all of it and changes nothing.
    async fn look(&mut self) -> anyhow::Result<Tally> {
        let mut tally = Tally::default();
        let columns = vec![
            Column::new("ENTRY"),
            Column::new("TYPE").shrinks(10),
            Column::new("FROM").shrinks(8),
            Column::new("TO").shrinks(8),
            Column::number("REPLAYS"),
            Column::new("WHAT").shrinks(10),
        ];
        let mut table = Table::new(&self.session.output, columns);
        let mut rows = 0u64;
        let limit = self.act.limit.unwrap_or(u64::MAX);
        'walk: while let Some(mut page) = self.walk.next(&mut self.connection).await? {
            if let Some(program) = self.program.as_ref().filter(|_| self.act.dry_run) {
                // As many as the run itself would take.
                let mut wanted = limit.saturating_sub(tally.chosen + tally.unmended);
                page.retain(|candidate| {
                    let taken = candidate.left.is_some() || wanted > 0;
                    wanted -= u64::from(taken && candidate.left.is_none());
                    taken
                });
                let chosen = page.iter().filter(|one| one.left.is_none()).count();
                page = program.mend(page, &self.walk).await;
                let mended = page.iter().filter(|one| one.left.is_none()).count();
                tally.unmended += (chosen - mended) as u64;
            }
            for candidate in &page {
                tally.note(candidate);
                if self.act.dry_run {
                    rows += 1;
                    match self.session.output.is_json() {
                        true => self.session.output.json(&planned(candidate))?,
                        false => table.row(row(candidate))?,
                    }
                }
                if tally.chosen == limit {
                    break 'walk;
                }
            }
            if tally.chosen + tally.unmended >= limit {
                break;
            }
        }
        if rows > 0 && !self.session.output.is_json() {
            table.finish()?;
        }
        Ok(tally)
    }

    fn say_left(&self, tally: &Tally) -> anyhow::Result<()> {
        if self.session.output.is_json() {
            return Ok(());
        }
        for (why, n) in &tally.left {
            let why = output::printable(why);
            output::complain_line(&format!("{} left alone: {why}", number(*n)));
        }
        Ok(())
    }

    fn say_planned(&self, tally: &Tally, what: &str) -> anyhow::Result<()> {
        if self.session.output.is_json() {
            let left: Map<String, Value> = tally
                .left
                .iter()
                .map(|(why, n)| (why.clone(), (*n).into()))
                .collect();
            let object = json!({ "would_replay": tally.chosen, "left": left });
            return Ok(self.session.output.json(&object)?);
        }
        output::complain_line(&format!("{what} would be replayed"));
        Ok(())
    }

    /// Has the one payload mended.
    async fn mend(&mut self, tally: &Tally) -> anyhow::Result<Vec<u8>> {
        if tally.chosen != 1 {
            return Err(Misuse::error(format_args!(
                "--edit is for a single entry, these are {}: choose one by --id",
                number(tally.chosen)
            )));
        }
        self.walk.rewind();
        while let Some(page) = self.walk.next(&mut self.connection).await? {
            if let Some(one) = page.iter().find(|candidate| candidate.left.is_none()) {
                let entry = Entry::new(EntryId::default(), &one.act.fields);
                return edit::edit(payload_of(&entry).as_deref());
            }
        }
        anyhow::bail!("the entry is gone")
    }

    /// Walks over it once more, and replays.
    async fn go(&mut self, total: u64, mended: Option<Vec<u8>>) -> anyhow::Result<Exit> {
        let stop = CancellationToken::new();
        let interrupted = stop.clone();
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                interrupted.cancel();
            }
        });
        let bar = bar(total, self.session.output.is_json());
        let mut pace = Pace::new(self.act.rate);
        let mut done = Done::default();
        let mut left = total;
        self.walk.rewind();
        let mut step: Vec<Candidate> = Vec::new();
        'walk: while left > 0 && !stop.is_cancelled() {
            let Some(mut page) = self.walk.next(&mut self.connection).await? else {
                break;
            };
            page.retain(|candidate| candidate.left.is_none());
            page.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            if let Some(program) = &self.program {
                page = tokio::select! {
                    page = program.mend(page, &self.walk) => page,
                    () = stop.cancelled() => break,
                };
            }
            for mut candidate in page {
                if let Some(why) = &candidate.left {
                    done.leave(why);
                    left -= 1;
                    continue;
                }
                if let Some(data) = &mended {
                    edit_payload(&mut candidate.act.fields, data, self.operator.by());
                }
                if !candidate.goes_with(&step, pace.step) {
                    self.step(&mut step, &mut done, &bar, &mut pace, &stop)
                        .await?;
                    if stop.is_cancelled() || done.stopped.is_some() {
                        break 'walk;
                    }
                }
                step.push(candidate);
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        if !stop.is_cancelled() && done.stopped.is_none() {
            self.step(&mut step, &mut done, &bar, &mut pace, &stop)
                .await?;
        }
        bar.finish_and_clear();
        self.say_done(&done, total, stop.is_cancelled(), pace.began.elapsed())
    }

    /// One atomic step.
    async fn step(
        &mut self,
        step: &mut Vec<Candidate>,
        done: &mut Done,
        bar: &ProgressBar,
        pace: &mut Pace,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let step = std::mem::take(step);
        let Some(first) = step.first() else {
            return Ok(());
        };
        tokio::select! {
            () = pace.wait(done.replayed) => {}
            () = stop.cancelled() => return Ok(()),
        }
        let (stream, to) = (first.stream.clone(), first.to.clone());
        let (shown, mut moves): (Vec<_>, Vec<_>) = step
            .into_iter()
            .map(|one| ((one.act.entry, one.kind, one.replays), one.act))
            .unzip();
        if self.walk.source() != Source::Pending {
            // They may have waited for hours, by a rate, a question or a program.
            let now = inspect::now(&mut self.connection).await?;
            for act in &mut moves {
                drop_deadline(&mut act.fields, now);
            }
        }
        let answer = self.send(&stream, &to, &moves).await;
        let answer = answer.map_err(|error| {
            let so_far = number(done.replayed);
            anyhow::anyhow!(
                "{error}; {so_far} were replayed before. Run it again: nothing is doubled"
            )
        })?;
        for ((entry, kind, replays), moved) in shown.iter().zip(&answer.moved) {
            match moved {
                Some(new) => {
                    done.replayed += 1;
                    if self.session.output.is_json() {
                        self.session.output.json(&json!({
                            "replayed": entry.to_string(),
                            "stream": stream.key,
                            "to": to,
                            "entry": new.to_string(),
                            "type": kind,
                            "replays": replays,
                        }))?;
                    }
                }
                None => done.gone += 1,
            }
        }
        done.stopped = answer.stopped;
        bar.set_position(done.replayed + done.gone + done.left_alone());
        Ok(())
    }

    async fn send(
        &mut self,
        stream: &StreamName,
        to: &str,
        moves: &[Move],
    ) -> Result<Step, convoke::connect::error::BusError> {
        let connection = &mut self.connection;
        match self.walk.source() {
            Source::Dead => {
                self.operator
                    .replay_dead(connection, &stream.key, to, moves)
                    .await
            }
            Source::Pending => {
                let group = self.walk.group().to_owned();
                self.operator
                    .replay_pending(connection, stream, &group, moves)
                    .await
            }
            Source::Range => {
                let force = self.act.force;
                self.operator
                    .replay_range(connection, stream, moves, force)
                    .await
            }
        }
    }

    fn say_done(
        &self,
        done: &Done,
        total: u64,
        interrupted: bool,
        took: Duration,
    ) -> anyhow::Result<Exit> {
        let run = self.operator.run();
        let unfinished = interrupted || done.stopped.is_some();
        if self.session.output.is_json() {
            self.session.output.json(&json!({
                "run": run,
                "replayed_total": done.replayed,
                "gone_meanwhile": done.gone,
                "left": done.left,
                "of": total,
                "interrupted": interrupted,
                "stopped": done.stopped,
            }))?;
        } else {
            let took = span(whole_ms(took));
            let what = self.what(done.replayed);
            self.session
                .output
                .line(&format!("replayed {what} in {took} (run {run})"))?;
            if done.gone > 0 {
                output::complain_line(&format!("{} were gone meanwhile", number(done.gone)));
            }
            for (why, n) in &done.left {
                let why = output::printable(why);
                output::complain_line(&format!("{} left alone: {why}", number(*n)));
            }
        }
        if let Some(error) = &done.stopped {
            anyhow::bail!("the server refused the next one: {error}");
        }
        if interrupted && !self.session.output.is_json() {
            let rest = number(total - done.replayed - done.gone - done.left_alone());
            output::complain_line(&format!("interrupted: {rest} are where they were"));
        }
        let failed = unfinished || !done.left.is_empty();
        Ok(if failed { Exit::Failed } else { Exit::Done })
    }
}

#[derive(Default)]
struct Done {
    replayed: u64,
    gone: u64,
    /// What could not be mended, by the reason.
    left: BTreeMap<String, u64>,
    stopped: Option<String>,
}

impl Done {
    fn leave(&mut self, why: &str) {
        tally::add(&mut self.left, why);
    }

    fn left_alone(&self) -> u64 {
        self.left.values().sum()
    }
}
