//! `convoke replay`: publishes again what was published before.

mod bar;
mod done;
mod edit;
mod flags;
mod hold;
mod mend;
mod planned;
mod repair;
mod source;
mod tally;

pub(super) use flags::Flags;

use super::confirm::confirm;
use super::output::{Column, Table, count, number};
use super::{Exit, Misuse, Session, output};
use bar::bar;
use convoke::connect::connector::Pooled;
use convoke::operator::inspect;
use convoke::operator::replay::edit as edit_payload;
use convoke::operator::replay::planning::Candidate;
use convoke::operator::replay::repair::{Plan, Way};
use convoke::operator::replay::{Move, Operator, Pace, Source, Step, drop_deadline};
use convoke::protocol::event::{Entry, EntryId, payload_of};
use done::{Done, MORE_CAME};
use flags::{Act, Command, HandOver};
use hold::{Held, Hold};
use indicatif::ProgressBar;
use mend::Program;
use planned::{planned, row};
use serde_json::{Map, Value, json};
use source::{From, Walk};
use tally::Tally;
use tokio_util::sync::CancellationToken;

/// Entries left alone that are noted at once, at the most.
const ALONE: usize = 250;

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let (from, act, over) = match flags.command {
        Command::Dead(flags) => (From::Dead(flags.which), flags.act, flags.over),
        Command::Pending(flags) => (
            From::Pending(flags.streams, flags.held, flags.filters),
            flags.act,
            flags.over,
        ),
        Command::Range(flags) => (
            From::Range(flags.streams, flags.group, flags.filters),
            flags.act,
            flags.over,
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
        over: over.detach.then_some(over),
        begun: None,
        hold: None,
    };
    replay.run().await
}

/// As many of what is replayed.
fn what(from: Source, many: u64) -> String {
    match from {
        Source::Dead => count(many, "dead letter", "dead letters"),
        Source::Pending => count(many, "pending entry", "pending entries"),
        Source::Range => count(many, "finished event", "finished events"),
    }
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
    /// What a terminal began before, and this one goes on with.
    begun: Option<Plan>,
    /// The right to it, where others may follow it.
    hold: Option<Hold>,
}

impl Replay<'_> {
    async fn run(&mut self) -> anyhow::Result<Exit> {
        if self.program.is_some() && self.act.run.is_some() && !self.act.dry_run {
            let (walk, act) = (&mut self.walk, &mut self.act);
            let (connection, name) = (&mut self.connection, self.operator.run());
            self.begun = hold::go_on(self.session, connection, walk, act, name).await?;
        }
        let tally = self.look().await?;
        self.say_left(&tally)?;
        let what = self.what(tally.chosen);
        if tally.chosen == 0 && self.begun.is_some() {
            return self.go(0, None).await;
        }
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
        what(self.walk.choice().from, chosen)
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
        if limit == 0 {
            return Ok(tally);
        }
        'walk: while let Some(mut page) = self.walk.next(&mut self.connection).await? {
            if let Some(program) = self.program.as_ref().filter(|_| self.act.dry_run) {
                // As many as the run itself would take.
                cut(
                    &mut page,
                    limit.saturating_sub(tally.chosen + tally.unmended),
                );
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

    /// Walks over it once more, and replays. After an error whoever goes on needs not wait until the right lapses.
    async fn go(&mut self, total: u64, mended: Option<Vec<u8>>) -> anyhow::Result<Exit> {
        let gone = self.go_through(total, mended).await;
        if let (Err(error), Some(hold)) = (&gone, self.hold.take()) {
            hold.give_back(&error.to_string()).await;
        }
        gone
    }

    async fn go_through(&mut self, total: u64, mended: Option<Vec<u8>>) -> anyhow::Result<Exit> {
        let stop = CancellationToken::new();
        let interrupted = stop.clone();
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                interrupted.cancel();
            }
        });
        self.hold(total).await?;
        let lost = self.hold.as_ref().map(Hold::lost);
        if let Some(lost) = lost.clone() {
            let stop = stop.clone();
            tokio::spawn(async move {
                lost.cancelled().await;
                stop.cancel();
            });
        }
        let bar = bar(total, self.session.output.is_json());
        let mut pace = Pace::new(self.act.rate);
        let mut done = Done::default();
        let mut left = total;
        self.walk.rewind();
        let mut step = Vec::new();
        let mut alone = Vec::new();
        let mut is_cut = false;
        // Those left alone behind the last one are noted too, where it is noted how far it is.
        let to_the_end = self.hold.is_some() && self.act.limit.is_none();
        'walk: while (left > 0 || to_the_end) && !is_cut && !stop.is_cancelled() {
            let Some(mut page) = self.walk.next(&mut self.connection).await? else {
                break;
            };
            if self.hold.is_none() {
                page.retain(|candidate| candidate.left.is_none());
            }
            is_cut = cut(&mut page, left);
            let known: Vec<bool> = page.iter().map(|one| one.left.is_some()).collect();
            if let Some(program) = &self.program {
                page = tokio::select! {
                    page = program.mend(page, &self.walk) => page,
                    () = stop.cancelled() => break,
                };
            }
            for (mut candidate, known) in page.into_iter().zip(known) {
                let is_first = |all: &[Candidate]| {
                    let same = |one: &Candidate| one.stream == candidate.stream;
                    all.last().is_none_or(same)
                };
                let is_left = candidate.left.is_some();
                let goes_with = match is_left {
                    true => alone.len() < ALONE,
                    false => candidate.goes_with(&step, pace.step),
                };
                if !(goes_with && is_first(&step) && is_first(&alone)) {
                    let all = (&mut step, &mut alone);
                    self.step(all, &mut done, &bar, &mut pace, &stop).await?;
                    if stop.is_cancelled() || done.stopped.is_some() {
                        break 'walk;
                    }
                }
                if let Some(why) = &candidate.left {
                    if !known {
                        done.leave(why);
                        left -= 1;
                    }
                    if self.hold.is_some() {
                        alone.push(candidate);
                    }
                    continue;
                }
                if let Some(data) = &mended {
                    edit_payload(&mut candidate.act.fields, data, self.operator.by());
                }
                step.push(candidate);
                left -= 1;
            }
        }
        if !stop.is_cancelled() && done.stopped.is_none() {
            let all = (&mut step, &mut alone);
            self.step(all, &mut done, &bar, &mut pace, &stop).await?;
        }
        bar.finish_and_clear();
        let mut noted = Ok(());
        if let Some(hold) = self.hold.take() {
            let is_lost = done.is_lost || lost.is_some_and(|lost| lost.is_cancelled());
            if is_lost {
                done.stopped = Some(hold.why_lost().await);
            } else if stop.is_cancelled() {
                hold.give_back("interrupted").await;
            } else if let Some(why) = &done.stopped {
                hold.give_back(why).await;
            } else if is_cut && to_the_end {
                done.is_cut = true;
                hold.give_back(MORE_CAME).await;
            } else {
                noted = hold.finish().await;
                if let Err(error) = &noted {
                    hold.give_back(&error.to_string()).await;
                }
            }
            done.is_lost = is_lost;
            done.is_held = true;
        }
        let interrupted = stop.is_cancelled() && !done.is_lost;
        let is = (self.operator.run(), self.walk.choice().from);
        let exit = done.say(self.session, is, total, interrupted, pace.began.elapsed())?;
        noted.map(|()| exit)
    }

    /// Where a program takes its time, others may follow.
    async fn hold(&mut self, total: u64) -> anyhow::Result<()> {
        if self.program.is_none() {
            return Ok(());
        }
        let plan = match self.begun.take() {
            Some(plan) => plan,
            None => hold::plan_of(&self.walk, &self.act)?,
        };
        let (connection, operator) = (&mut self.connection, &self.operator);
        self.hold = Hold::begin(self.session, connection, operator, plan, total).await?;
        let name = self.operator.run();
        if self.hold.is_some() && !self.session.output.is_json() {
            let line = format!("from another terminal: convoke replay follow {name}");
            output::complain_line(&line);
        }
        Ok(())
    }

    /// One atomic step.
    async fn step(
        &mut self,
        (step, alone): (&mut Vec<Candidate>, &mut Vec<Candidate>),
        done: &mut Done,
        bar: &ProgressBar,
        pace: &mut Pace,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let (mut step, alone) = (std::mem::take(step), std::mem::take(alone));
        if step.is_empty() && (alone.is_empty() || self.hold.is_none()) {
            return Ok(());
        }
        tokio::select! {
            () = pace.wait(done.replayed) => {}
            () = stop.cancelled() => return Ok(()),
        }
        if self.walk.choice().from != Source::Pending {
            // They may have waited for hours, by a rate, a question or a program.
            let now = inspect::now(&mut self.connection).await?;
            for one in &mut step {
                drop_deadline(&mut one.act.fields, now);
            }
        }
        let first = step.first();
        let stream = first.map(|one| one.stream.key.clone()).unwrap_or_default();
        let to = first.map(|one| one.to.clone()).unwrap_or_default();
        let shown = step
            .iter()
            .map(|one| (one.act.entry, one.kind.clone(), one.replays));
        let shown: Vec<_> = shown.collect();
        let way = self.walk.choice().way();
        let connection = &mut self.connection;
        let answer = match &mut self.hold {
            Some(hold) => {
                let step = hold.step(connection, &self.operator, way, &alone, &step);
                step.await
            }
            None => {
                let step = send(connection, &self.operator, way, step).await;
                step.map(Held::Done).map_err(anyhow::Error::from)
            }
        };
        let answer = answer.map_err(|error| {
            let so_far = number(done.replayed);
            let again = match &self.hold {
                Some(_) => format!("Run it again, with --run {}", self.operator.run()),
                None => "Run it again".to_owned(),
            };
            anyhow::anyhow!("{error}; {so_far} were replayed before. {again}: nothing is doubled")
        })?;
        let Held::Done(answer) = answer else {
            done.is_lost = true;
            stop.cancel();
            return Ok(());
        };
        for ((entry, kind, replays), moved) in shown.iter().zip(&answer.moved) {
            match moved {
                Some(new) => {
                    done.replayed += 1;
                    if self.session.output.is_json() {
                        self.session.output.json(&json!({
                            "replayed": entry.to_string(),
                            "stream": stream,
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
}

/// Ends before the first one that would be one too many to replay; those that are left alone do not count. Says whether
/// there was one.
fn cut(page: &mut Vec<Candidate>, most: u64) -> bool {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut replayed = page
        .iter()
        .enumerate()
        .filter(|(_, one)| one.left.is_none());
    let end = replayed.nth(most).map(|(place, _)| place);
    if let Some(end) = end {
        page.truncate(end);
    }
    end.is_some()
}

/// Replays them, all of one stream and to one stream.
async fn send(
    connection: &mut Pooled,
    operator: &Operator,
    way: Way<'_>,
    step: Vec<Candidate>,
) -> Result<Step, convoke::connect::error::BusError> {
    let Some(first) = step.first() else {
        return Ok(Step::default());
    };
    let (stream, to) = (first.stream.clone(), first.to.clone());
    let moves: Vec<Move> = step.into_iter().map(|one| one.act).collect();
    match way {
        Way::Dead => {
            let dead = &stream.key;
            operator.replay_dead(connection, dead, &to, &moves).await
        }
        Way::Pending { group } => {
            let stream = &stream;
            operator
                .replay_pending(connection, stream, group, &moves)
                .await
        }
        Way::Range { force } => {
            let stream = &stream;
            operator
                .replay_range(connection, stream, &moves, force)
                .await
        }
    }
}
