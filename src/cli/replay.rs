//! `convoke replay`: publishes again what was published before.

mod edit;
mod source;

use super::choose::Filters;
use super::confirm::confirm;
use super::dead::Which;
use super::output::{Cell, Column, FAINT, Table, count, number, span};
use super::pending::Held;
use super::{Misuse, Outcome, Session, output};
use clap::{Args, Subcommand};
use convoke::operator::replay::{EDITED, Move, Operator, STEP, STEP_BYTES, Source, Step};
use convoke::protocol::event::{Entry, EntryId, payload_of};
use convoke::protocol::keys::StreamName;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use redis::aio::MultiplexedConnection;
use serde_json::{Map, Value, json};
use source::{Candidate, From, Walk};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Types that a question names.
const NAMED: usize = 3;
/// Reasons and types that are told apart; what comes on top is counted together.
const TOLD: usize = 100;

const EXAMPLES: &str = "\
Examples:
  convoke replay dead image --dry-run                  what would happen
  convoke replay dead image --reason unavailable       asks, then does it
  convoke replay dead --id 1700000000000-0 --edit      mend its payload first
  convoke replay pending image --idle 10m --yes        nobody works on these
  convoke replay range image --since 2h --until 1h     finished ones, once more

Each dead letter or pending entry leaves where it was in the step that publishes it again, so a \
replay can be interrupted at any moment and run again: nothing is lost, nothing is doubled.";

/// Publish dead letters, pending entries or a part of a stream again
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Dead(Dead),
    Pending(Pending),
    Range(Range),
}

/// Publish dead letters again
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke replay dead --dry-run
  convoke replay dead image --type image.resize --reason unavailable --rate 100
  convoke replay dead image --where user.name=ada --yes
  convoke replay dead --id 1700000000000-0 --edit

An event goes back to the stream that it stood on, keeps its id and its fields, and begins with its \
first attempt. Whoever asked for it was answered when it died: it gets no second reply, and a \
deadline that has passed is taken off. One that was replayed 3 times already is left alone, unless \
--force; its field `replays` counts. Other consumer groups of the stream get it again as well.")]
struct Dead {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    act: Act,
}

/// Publish pending entries again, and take them from whoever holds them
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke replay pending --dry-run
  convoke replay pending image --consumer w-1
  convoke replay pending image --idle 10m --min-deliveries 2 --yes

Only what an instance holds that was lost or has unregistered, and what nobody renewed for --idle \
(default: the setting claim_idle): a running handler renews its entry. --force takes any. The old \
delivery is acknowledged in the same step, and its owner is fenced: whatever it still commits of it \
is discarded. The copy stands at the end of the stream and was delivered to nobody yet.")]
struct Pending {
    /// Streams of events, or domains [default: all]
    #[arg(value_name = "STREAM")]
    streams: Vec<String>,
    #[command(flatten)]
    held: Held,
    #[command(flatten)]
    filters: Filters,
    #[command(flatten)]
    act: Act,
}

/// Publish copies of events that the group is done with
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke replay range image --since 2026-11-24T03:00Z --until 2h --dry-run
  convoke replay range image --since 1h --type image.resize --limit 10
  convoke replay range image --id 1700000000000-0,1700000000000-1 --yes

Only entries that are still in the stream (stream_history), and that the group has acknowledged: \
the others run anyway. Of an event that was retried or replayed, only its first entry. The originals \
stay, and whoever asked for them gets no second reply. A marker for each entry is kept for 24h, so a run that \
was interrupted can be repeated, and copies nothing twice; --force copies again what an earlier run \
copied. A forced run that was interrupted is continued with the --run that it printed.")]
struct Range {
    /// Streams of events, or domains
    #[arg(value_name = "STREAM", required = true)]
    streams: Vec<String>,
    /// The consumer group that must be done with them [default: the setting, workers]
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    #[command(flatten)]
    filters: Filters,
    #[command(flatten)]
    act: Act,
}

/// How to go about it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "How")]
struct Act {
    /// Only show what would happen
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// At most this many a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// End after this many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Also what is left alone for its own good: replayed too often, malformed, held by a live owner
    #[arg(long)]
    force: bool,
    /// Mend the payload as JSON in $EDITOR before; for a single entry
    #[arg(long, conflicts_with = "dry_run")]
    edit: bool,
    /// The name under which the facts on the broadcast report it [default: one made up]
    #[arg(long, value_name = "NAME", value_parser = run_name)]
    run: Option<String>,
}

fn run_name(text: &str) -> Result<String, convoke::protocol::keys::NameError> {
    convoke::protocol::keys::check_name("run", text).map(|()| text.to_owned())
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Outcome> {
    let (from, act) = match flags.command {
        Command::Dead(flags) => (From::Dead(flags.which), flags.act),
        Command::Pending(flags) => (
            From::Pending(flags.streams, flags.held, flags.filters),
            flags.act,
        ),
        Command::Range(flags) => (
            From::Range(flags.streams, flags.group, flags.filters),
            flags.act,
        ),
    };
    let operator = session.operator(act.run.as_deref())?;
    let mut connection = session.connector()?.dedicated().await?;
    let walk = Walk::begin(&session, &mut connection, from, act.force, operator.run()).await?;
    let mut replay = Replay {
        session: &session,
        connection,
        operator,
        walk,
        act,
    };
    replay.run().await
}

/// What a walk came to.
#[derive(Default)]
struct Tally {
    chosen: u64,
    types: BTreeMap<String, u64>,
    streams: BTreeMap<String, u64>,
    left: BTreeMap<String, u64>,
}

fn add(counts: &mut BTreeMap<String, u64>, what: &str) {
    let known = counts.len() < TOLD || counts.contains_key(what);
    *counts
        .entry(if known { what } else { "…" }.to_owned())
        .or_default() += 1;
}

impl Tally {
    fn note(&mut self, candidate: &Candidate) {
        match &candidate.left {
            Some(why) => add(&mut self.left, why),
            None => {
                self.chosen += 1;
                add(&mut self.types, &candidate.kind);
                add(&mut self.streams, &candidate.to);
            }
        }
    }

    /// `image.resize 9,998, mail.send 2`
    fn named(counts: &BTreeMap<String, u64>) -> String {
        let mut most: Vec<_> = counts.iter().collect();
        most.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let named = most.iter().take(NAMED);
        let mut text: Vec<String> = named
            .map(|(name, n)| format!("{name} {}", number(**n)))
            .collect();
        if most.len() > NAMED {
            text.push(format!("and {} more", most.len() - NAMED));
        }
        text.join(", ")
    }

    fn streams(&self) -> String {
        let named: Vec<&str> = self
            .streams
            .keys()
            .take(NAMED)
            .map(String::as_str)
            .collect();
        match self.streams.len() {
            n if n > NAMED => format!("{} streams", n),
            _ => named.join(", "),
        }
    }
}

struct Replay<'a> {
    session: &'a Session,
    connection: MultiplexedConnection,
    operator: Operator,
    walk: Walk,
    act: Act,
}

impl Replay<'_> {
    async fn run(&mut self) -> anyhow::Result<Outcome> {
        let tally = self.look().await?;
        self.say_left(&tally)?;
        let what = self.what(tally.chosen);
        if self.act.dry_run || tally.chosen == 0 {
            self.say_planned(&tally, &what)?;
            return Ok(Outcome::Done);
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
            return Ok(Outcome::Failed);
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
        'walk: while let Some(page) = self.walk.next(&mut self.connection).await? {
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
    async fn go(&mut self, total: u64, mended: Option<Vec<u8>>) -> anyhow::Result<Outcome> {
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
            let Some(page) = self.walk.next(&mut self.connection).await? else {
                break;
            };
            for mut candidate in page {
                if candidate.left.is_some() {
                    continue;
                }
                if let Some(data) = &mended {
                    self.replace(&mut candidate.act, data);
                }
                if !goes_with(&step, &candidate, pace.step) {
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

    /// Puts the mended payload in, and who did it.
    fn replace(&self, act: &mut Move, data: &[u8]) {
        // What is put in is MessagePack.
        let mut pairs = act.fields.chunks_exact(2);
        if let Some(at) = pairs.position(|pair| pair[0] == b"datacontenttype") {
            act.fields.drain(2 * at..2 * at + 2);
        }
        for (name, value) in [("data", data), (EDITED, self.operator.by().as_bytes())] {
            let mut pairs = act.fields.chunks_exact(2);
            match pairs.rposition(|pair| pair[0] == name.as_bytes()) {
                Some(at) => act.fields[2 * at + 1] = value.to_vec(),
                None => act.fields.extend([name.into(), value.to_vec()]),
            }
        }
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
        let (shown, moves): (Vec<_>, Vec<_>) = step
            .into_iter()
            .map(|one| ((one.act.entry, one.kind, one.replays), one.act))
            .unzip();
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
        bar.set_position(done.replayed + done.gone);
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
    ) -> anyhow::Result<Outcome> {
        let run = self.operator.run();
        let unfinished = interrupted || done.stopped.is_some();
        if self.session.output.is_json() {
            self.session.output.json(&json!({
                "run": run,
                "replayed_total": done.replayed,
                "gone_meanwhile": done.gone,
                "of": total,
                "interrupted": interrupted,
                "stopped": done.stopped,
            }))?;
        } else {
            let took = span(took.as_millis() as u64);
            let what = self.what(done.replayed);
            self.session
                .output
                .line(&format!("replayed {what} in {took} (run {run})"))?;
            if done.gone > 0 {
                output::complain_line(&format!("{} were gone meanwhile", number(done.gone)));
            }
        }
        if let Some(error) = &done.stopped {
            anyhow::bail!("the server refused the next one: {error}");
        }
        if interrupted && !self.session.output.is_json() {
            let rest = number(total - done.replayed - done.gone);
            output::complain_line(&format!("interrupted: {rest} are where they were"));
        }
        Ok(if unfinished {
            Outcome::Failed
        } else {
            Outcome::Done
        })
    }
}

#[derive(Default)]
struct Done {
    replayed: u64,
    gone: u64,
    stopped: Option<String>,
}

/// Whether a candidate may be part of the same step.
fn goes_with(step: &[Candidate], candidate: &Candidate, limit: usize) -> bool {
    let bytes = |one: &Candidate| one.act.fields.iter().map(Vec::len).sum::<usize>();
    let Some(first) = step.first() else {
        return true;
    };
    let size = step.iter().map(bytes).sum::<usize>() + bytes(candidate);
    step.len() < limit
        && size <= STEP_BYTES
        && first.stream == candidate.stream
        && first.to == candidate.to
}

/// Keeps to a rate: small steps, each at its time.
struct Pace {
    began: Instant,
    rate: Option<u32>,
    step: usize,
}

impl Pace {
    fn new(rate: Option<u32>) -> Self {
        let step = rate.map_or(STEP, |rate| (rate as usize / 10).clamp(1, STEP));
        let began = Instant::now();
        Self { began, rate, step }
    }

    /// Waits until this many may have been done.
    async fn wait(&self, done: u64) {
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(done as f64 / f64::from(rate));
            tokio::time::sleep(due.saturating_sub(self.began.elapsed())).await;
        }
    }
}

fn bar(total: u64, hidden: bool) -> ProgressBar {
    let target = match hidden {
        true => ProgressDrawTarget::hidden(),
        false => ProgressDrawTarget::stderr(),
    };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    let form = "{wide_bar} {human_pos}/{human_len}  {rate}  {eta} left";
    if let Ok(style) = ProgressStyle::with_template(form) {
        let rate = |state: &ProgressState, text: &mut dyn Write| {
            // Nobody who could be told that it cannot be written.
            write!(text, "{}/s", number(state.per_sec().round() as u64)).ok();
        };
        bar.set_style(style.with_key("rate", rate));
    }
    bar
}

fn row(candidate: &Candidate) -> Vec<Cell> {
    let what = match &candidate.left {
        None => "replay".into(),
        Some(why) => Cell::styled(format!("leave: {why}"), FAINT),
    };
    vec![
        candidate.act.entry.to_string().into(),
        candidate.kind.clone().into(),
        super::choose::short(&candidate.stream).into(),
        candidate.to.clone().into(),
        candidate.replays.to_string().into(),
        what,
    ]
}

fn planned(candidate: &Candidate) -> Value {
    let mut fields = Map::new();
    for pair in candidate.act.fields.chunks_exact(2) {
        if pair[0] != b"data" {
            let name = String::from_utf8_lossy(&pair[0]).into_owned();
            fields.insert(name, String::from_utf8_lossy(&pair[1]).into());
        }
    }
    let data = candidate
        .act
        .fields
        .chunks_exact(2)
        .find(|pair| pair[0] == b"data");
    let mut object = json!({
        "would": if candidate.left.is_none() { "replay" } else { "leave" },
        "why": candidate.left,
        "stream": candidate.stream.key,
        "entry": candidate.act.entry.to_string(),
        "to": candidate.to,
        "type": candidate.kind,
        "replays": candidate.replays,
        "fields": fields,
    });
    super::payload::describe(data.map(|pair| pair[1].as_slice()), &mut object);
    object
}
