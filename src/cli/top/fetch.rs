//! Looks at the bus: asks Redis directly, reads only, in steps that are small for the server.

use super::beside::beside;
use super::flow::group_id;
use super::panel::Panel;
use super::sample::{Focus, LISTED, Opened, Sample, Wish};
use super::survey::Survey;
use crate::cli::output::{date, json, number, span};
use crate::cli::owners::Owners;
use crate::cli::{Session, payload, vote};
use convoke::connect::connector::{Connector, Pooled};
use convoke::connect::error::BusError;
use convoke::connect::memory::Together;
use convoke::coordination::ballots::Ballots;
use convoke::coordination::batches::Batches;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::roster::Detail;
use convoke::coordination::metrics::OldestRun;
use convoke::coordination::patterns::PatternStore;
use convoke::coordination::tasks::Tasks;
use convoke::operator::browse::Sight;
use convoke::operator::inspect;
use convoke::operator::memory;
use convoke::protocol::dead::Letter;
use convoke::protocol::keys::Keys;
use convoke::protocol::progress::Progress;
use std::fmt::Display;

/// Nodes of a cluster that are named since they do not answer.
const NODES: usize = 16;
/// Instances that are listed.
const INSTANCES: usize = 500;
/// Streams whose size is asked for in one round trip.
const SIZED: usize = 100;
/// Consumers, votes, failures that are shown of what was opened.
const SHOWN: usize = 100;
/// Dead letters that are shown of a stream. Each may be as large as an event, so few.
const LETTERS: usize = 10;

/// Takes samples.
pub(super) struct Watcher {
    connector: Connector,
    connection: Option<Pooled>,
    keys: Keys,
    sight: Sight,
    instances: Instances,
    tasks: Tasks,
    batches: Batches,
    ballots: Ballots,
    patterns: PatternStore,
    survey: Survey,
    /// Whether the server does not tell how large a key is.
    sizes_refused: bool,
}

impl Watcher {
    pub(super) fn new(session: &Session) -> anyhow::Result<Self> {
        let (connector, keys) = (session.connector()?, session.settings.keys()?);
        Ok(Self {
            instances: Instances::new(connector.clone(), keys.clone()),
            tasks: Tasks::new(connector.clone(), keys.clone()),
            batches: Batches::new(connector.clone(), keys.clone()),
            ballots: Ballots::new(connector.clone(), keys.clone()),
            patterns: PatternStore::new(connector.clone(), keys.clone(), Default::default()),
            connection: None,
            sight: session.sight()?,
            connector,
            keys,
            survey: Survey::default(),
            sizes_refused: false,
        })
    }

    /// Takes a sample. A part that cannot be read is named in it.
    ///
    /// # Errors
    /// If the server cannot be asked at all.
    pub(super) async fn sample(&mut self, wish: &Wish) -> anyhow::Result<Sample> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connector.pooled().await?,
        };
        let mut sample = Sample {
            at: inspect::now(&mut connection).await?,
            ..Sample::default()
        };
        let streams = self.streams(&mut connection, wish, &mut sample).await;
        note(&mut sample, "streams", streams);
        let census = self.instances.census().await;
        sample.census = note(&mut sample, "instances", census);
        let leader = self.instances.leader().await;
        sample.leader = note(&mut sample, "leader", leader);
        let known = self.instances.known(Detail::Brief, INSTANCES).await;
        sample.instances = note(&mut sample, "instances", known).listed;
        let global = self.instances.metrics(true).await;
        sample.global = note(&mut sample, "metrics", global);
        let chosen = self.patterns.list().await;
        let chosen = note(&mut sample, "patterns", chosen).into_iter();
        let chosen = chosen.filter(|one| one.is_chosen());
        sample.patterns = chosen.map(|one| (one.event, one.pattern)).collect();
        let counts = self.tasks.counts().await;
        sample.tasks = note(&mut sample, "tasks", counts);
        let tasks = self.tasks.list(None, LISTED).await;
        sample.listed_tasks = note(&mut sample, "tasks", tasks);
        let batches = self.batches.list(LISTED).await;
        sample.batches = note(&mut sample, "batches", batches);
        let ballots = self.ballots.list(LISTED).await;
        sample.ballots = note(&mut sample, "ballots", ballots);
        if let Some(focus) = &wish.focus {
            let lines = self.open(&mut connection, focus, &sample).await;
            let lines = note(&mut sample, "details", lines);
            let focus = focus.clone();
            sample.opened = Some(Opened { focus, lines });
        }
        self.connection = Some(connection);
        Ok(sample)
    }

    async fn streams(
        &mut self,
        connection: &mut Pooled,
        wish: &Wish,
        sample: &mut Sample,
    ) -> Result<(), BusError> {
        let look = self.survey.look(
            &self.connector,
            connection,
            &self.keys,
            &wish.filters,
            sample.at,
        );
        (sample.streams, sample.others) = look.await?;
        if let Some(reach) = self.survey.reach() {
            sample.away = reach.away().take(NODES).cloned().collect();
            let away = sample.away.iter();
            let away = away.map(|away| format!("{}: {}", away.node, away.error));
            sample.problems.extend(away);
            sample.memory = Together::look(reach).await?;
        }
        let keys: Vec<&str> = sample.streams.iter().map(|s| s.name.key.as_str()).collect();
        for page in keys.chunks(SIZED) {
            if self.sizes_refused {
                break;
            }
            let sizes = memory::of_keys(connection, page).await?;
            // One that is not told was refused, or is gone since.
            self.sizes_refused = sizes.iter().all(Option::is_none);
            let sized = page.iter().zip(sizes);
            let sized = sized.filter_map(|(key, size)| Some(((*key).to_owned(), size?)));
            sample.sizes.extend(sized);
        }
        Ok(())
    }

    /// More about one row than its panel shows.
    async fn open(
        &self,
        connection: &mut Pooled,
        focus: &Focus,
        sample: &Sample,
    ) -> anyhow::Result<Vec<String>> {
        Ok(match focus.panel {
            Panel::Streams => self.consumers(connection, focus, sample).await?,
            Panel::Dead => letters(&self.sight, &focus.id, sample.at).await?,
            Panel::Ballots => {
                let shown = self.ballots.show(&focus.id).await?;
                let votes = shown.into_iter().flat_map(|shown| shown.votes);
                let line = |(id, value): (String, Option<Vec<u8>>)| match value {
                    Some(value) => format!("{id}: {}", json(&vote::as_json(&value))),
                    None => format!("{id}: no vote yet"),
                };
                votes.take(SHOWN).map(line).collect()
            }
            Panel::Batches => {
                let failures = self.batches.failures(&focus.id).await?;
                let failures = failures.into_iter().take(SHOWN);
                failures
                    .map(|f| format!("item {}: {}: {}", f.index, f.code, f.message))
                    .collect()
            }
            Panel::Instances => runs(sample, |run| run.instance == focus.id),
            Panel::Handlers => runs(sample, |run| run.kind == focus.id),
            Panel::Tasks => Vec::new(),
        })
    }

    async fn consumers(
        &self,
        connection: &mut Pooled,
        focus: &Focus,
        sample: &Sample,
    ) -> anyhow::Result<Vec<String>> {
        let groups = sample.streams.iter().flat_map(|stream| {
            let groups = stream.groups.iter();
            groups.map(|group| (&stream.name, group.name.as_str()))
        });
        let opened = groups
            .into_iter()
            .find(|(stream, group)| group_id(&stream.key, group) == focus.id);
        let Some((stream, group)) = opened else {
            return Ok(Vec::new());
        };
        let key = stream.key.as_str();
        let mut told = beside(&self.connector, &self.keys, stream, group, sample.at).await?;
        let mut consumers = inspect::consumers(connection, key, group).await?;
        consumers.sort_by_key(|consumer| std::cmp::Reverse(consumer.pending));
        consumers.truncate(SHOWN);
        let mut owners = Owners::new(Some(self.instances.clone()));
        owners
            .learn(consumers.iter().map(|c| c.name.as_str()))
            .await?;
        let lines = consumers.iter().map(|consumer| {
            let word = match owners.lives(&consumer.name) {
                Some(true) => "alive",
                Some(false) => "gone",
                None => "not known",
            };
            let idle = span(consumer.idle_ms);
            let (name, pending) = (&consumer.name, consumer.pending);
            format!("consumer {name} ({word}): {pending} pending, idle {idle}")
        });
        told.extend(lines);
        Ok(told)
    }
}

/// The longest runs of those, and how far they are.
fn runs(sample: &Sample, fits: impl Fn(&OldestRun) -> bool) -> Vec<String> {
    let runs = sample.global.runs.iter().filter(|run| fits(run));
    let line = |run: &OldestRun| {
        let OldestRun { kind, stream, .. } = run;
        let (entry, instance, age) = (run.entry, &run.instance, span(run.age_ms));
        let far = run.progress.as_ref().map(far).unwrap_or_default();
        format!("runs for {age}: {kind} {entry} of {stream} on {instance}{far}")
    };
    runs.take(SHOWN).map(line).collect()
}

/// How far a run is.
fn far(progress: &Progress) -> String {
    let done = number(progress.done);
    let done = match progress.total {
        Some(total) => format!("{done} of {}", number(total)),
        None => done,
    };
    let note = progress.note.as_deref().unwrap_or_default();
    format!(", at {done} {note}").trim_end().to_owned()
}

/// The letters that came last.
async fn letters(sight: &Sight, key: &str, now: u64) -> Result<Vec<String>, BusError> {
    let latest = sight.latest(key, LETTERS).await?;
    let lines = latest.into_iter().map(|entry| {
        let letter = Letter::read(&entry);
        let kind = String::from_utf8_lossy(entry.get("type").unwrap_or_default()).into_owned();
        let time = letter.time.unwrap_or(entry.id.ms);
        let age = match now.checked_sub(time) {
            Some(age) => format!("{} ago", span(age)),
            None => date(time),
        };
        let (id, reason) = (entry.id, letter.reason);
        let message = payload::too_large(&entry).unwrap_or(letter.message);
        let message: String = message.chars().take(500).collect();
        format!("{id} {kind}: {reason}: {message} ({age})")
    });
    Ok(lines.collect())
}

/// What was read; what cannot be read is noted and empty.
fn note<T: Default, E: Display>(sample: &mut Sample, part: &str, read: Result<T, E>) -> T {
    read.unwrap_or_else(|error| {
        sample.problems.push(format!("{part}: {error}"));
        T::default()
    })
}
