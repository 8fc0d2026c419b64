//! Does repairs: bulk replays that somebody asked for. One worker at a time has the right to one.

use super::Chores;
use crate::connect::connector::reconnect_delay;
use crate::coordination::error::CoordinationError;
use crate::coordination::repairs::{LEASE, Right};
use crate::operator::browse::Sight;
use crate::operator::inspect;
use crate::operator::replay::planning::Candidate;
use crate::operator::replay::repair::{Progress, RepairStep, Stepped};
use crate::operator::replay::walk::Choice;
use crate::operator::replay::{Operator, Pace, Source, drop_deadline};
use crate::protocol::event::EntryId;
use crate::protocol::keys::StreamName;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The pause between two looks for repairs that nobody does.
const PAUSE: Duration = Duration::from_secs(5);
/// How long a repair waits that was held up.
const HELD_UP: Duration = Duration::from_secs(5);
/// How much later than the repair began a letter may have died that it still meets: clocks differ.
const LATE_MS: u64 = 60_000;

/// Why a repair is not gone on with here.
enum Stop {
    /// Somebody else does it, or it is over.
    Lost,
    /// The worker leaves, or is to be quiet.
    Leaving,
    /// Something that passes, or that somebody must see to.
    HeldUp(String),
    Failed(CoordinationError),
}

impl<E: Into<CoordinationError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Failed(error.into())
    }
}

/// Looks again and again, and when it is told.
pub(super) async fn run(chores: &Chores) {
    let mut held_up = HashMap::new();
    loop {
        let pause = match look(chores, &mut held_up).await {
            Ok(()) => PAUSE.mul_f64(fastrand::f64() / 2.0 + 0.75),
            Err(error) => {
                tracing::debug!(%error, "the repairs could not be looked at");
                reconnect_delay(3)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = chores.repairs.changed() => {}
        }
    }
}

/// Does each repair that nobody does, until it is done. One that fails holds no other one up: `held_up` has by its name
/// until when it is not tried again here.
async fn look(
    chores: &Chores,
    held_up: &mut HashMap<String, Instant>,
) -> Result<(), CoordinationError> {
    let mut all = Ok(());
    held_up.retain(|_, until| *until > Instant::now());
    for (name, state) in chores.repairs.list().await? {
        let is_for_workers = state.runs() && !state.terminal;
        if !is_for_workers || chores.leaves() || held_up.contains_key(&name) {
            continue;
        }
        let done = match chores.repairs.take(&name, chores.id(), LEASE).await {
            Ok(Right::Held(fence)) => do_it(chores, &name, fence).await,
            Ok(Right::Others | Right::Over) => Ok(true),
            Err(error) => Err(error),
        };
        if let Ok(false) = done {
            held_up.insert(name, Instant::now() + HELD_UP);
        }
        all = all.and(done.map(|_| ()));
    }
    all
}

/// Whether nothing holds it up.
async fn do_it(chores: &Chores, name: &str, fence: u64) -> Result<bool, CoordinationError> {
    let mut doing = Doing {
        chores,
        name,
        fence,
        renewed: Instant::now(),
    };
    let repairs = &chores.repairs;
    let keep = |lease, note: String| async move {
        repairs.keep(name, chores.id(), fence, lease, &note).await
    };
    match doing.run().await {
        Ok(()) => match repairs.finish(name, chores.id(), fence).await {
            // It was cancelled just then, or somebody else has it.
            Err(CoordinationError::Aborted(_)) => Ok(true),
            finished => finished.map(|()| true),
        },
        Err(Stop::Lost) => Ok(true),
        Err(Stop::Leaving) => keep(Duration::ZERO, String::new()).await.map(|_| true),
        Err(Stop::HeldUp(why)) => {
            let shown = &why[..why.floor_char_boundary(256)];
            tracing::warn!(
                repair = name,
                why = shown,
                "a repair is held up; it is tried again"
            );
            keep(Duration::ZERO, why).await?;
            Ok(false)
        }
        Err(Stop::Failed(CoordinationError::Bus(error))) if error.code().is_none() => {
            Err(error.into())
        }
        Err(Stop::Failed(error)) => {
            tracing::warn!(repair = name, %error, "a repair is held up; others may do it");
            keep(Duration::ZERO, error.to_string()).await?;
            Ok(false)
        }
    }
}

impl Chores {
    /// Whether it should begin nothing that takes long.
    fn leaves(&self) -> bool {
        self.draining() || self.lanes.is_quiet()
    }
}

/// A repair to which this worker has the right.
struct Doing<'a> {
    chores: &'a Chores,
    name: &'a str,
    fence: u64,
    renewed: Instant,
}

/// One stream.
struct Stand<'a> {
    operator: &'a Operator,
    choice: &'a Choice,
    limit: Option<u64>,
    noted: &'a str,
    stream: StreamName,
    pace: &'a mut Pace,
    /// What was done in the streams before, and in this one.
    before: u64,
    here: Progress,
    /// What was done before this worker took it.
    until_now: u64,
}

impl Stand<'_> {
    fn replayed(&self) -> u64 {
        self.before + self.here.replayed
    }

    /// How many it may still replay.
    fn rest(&self) -> u64 {
        let limit = self.limit.unwrap_or(u64::MAX);
        limit.saturating_sub(self.replayed())
    }
}

impl Doing<'_> {
    async fn run(&mut self) -> Result<(), Stop> {
        let (plan, state) = self.chores.repairs.read(self.name).await?;
        if plan.program {
            return Err(Stop::Leaving);
        }
        let keys = &self.chores.keys;
        let limits = self.chores.settings.limits();
        let operator = Operator::new(keys.clone(), self.name, state.by.as_str());
        let planner = plan.planner(keys, limits, &state.by);
        let settings = &self.chores.settings;
        let (group, idle) = (&settings.group, settings.claim_idle);
        let choice = plan.choice(planner, self.name, group, idle);
        let mut pace = Pace::new(plan.rate);
        let noted = state.noted(self.name);
        let done = self.chores.repairs.progress(&noted, &plan).await?;
        // What dies again while it goes on is not met again, wherever a stretch ends. Of events the note beside their
        // stream says where it ended.
        let last = EntryId {
            ms: match plan.from {
                Source::Dead => state.at.saturating_add(LATE_MS),
                Source::Pending | Source::Range => u64::MAX,
            },
            seq: u64::MAX,
        };
        let mut before = 0;
        for stretch in &plan.stretches {
            let stream = plan.stream(keys, &stretch.stream);
            let mut stand = Stand {
                operator: &operator,
                choice: &choice,
                limit: plan.limit,
                noted: &noted,
                stream: stream.map_err(Stop::HeldUp)?,
                pace: &mut pace,
                before,
                here: Progress::default(),
                until_now: done.replayed,
            };
            let (from, to) = (entry(stretch.from), entry(stretch.to).min(last));
            self.stream(&mut stand, from, to).await?;
            before = stand.replayed();
        }
        Ok(())
    }

    async fn stream(
        &mut self,
        stand: &mut Stand<'_>,
        first: EntryId,
        to: EntryId,
    ) -> Result<(), Stop> {
        let connector = self.chores.connector.toward(&stand.stream.key);
        let mut connection = connector.pooled().await?;
        let (stream, from) = (stand.stream.clone(), stand.choice.from);
        let taken =
            stand
                .operator
                .take_repair(&mut connection, (from, &stream), stand.noted, self.fence);
        match taken.await? {
            Stepped::Done(progress) => stand.here = progress,
            _ => return Err(Stop::Lost),
        }
        let to = match stand.here.end {
            Some(end) => to.min(end),
            // The stream was not there when it began: what is there now came later.
            None if from != Source::Dead => return Ok(()),
            None => to,
        };
        let first = stand.here.at.map_or(first, |at| first.max(at.next()));
        let sight = Sight::new(
            self.chores.connector.clone(),
            self.chores.settings.limits().entry(),
        );
        let now = inspect::now(&mut connection).await?;
        let walk = stand
            .choice
            .walk(&sight, &mut connection, &stream, first, to);
        let walk = walk.await?;
        drop(connection);
        let Some(mut walk) = walk else {
            let (key, group) = (&stream.key, &stand.choice.group);
            let why = format!("{key} has no group {group}: what of it was run, nobody knows");
            return Err(Stop::HeldUp(why));
        };
        while stand.rest() > 0 {
            self.keep().await?;
            let mut connection = connector.pooled().await?;
            let Some(page) = walk.next(stand.choice, &mut connection).await? else {
                break;
            };
            drop(connection);
            let last = page.last;
            let gone = self.chores.instances.gone_among(&page.owners()).await?;
            let mut step = Vec::new();
            let mut left = Vec::new();
            for candidate in stand.choice.judge(&stream, page, &gone, now) {
                if candidate.left.is_some() {
                    left.push(candidate);
                    continue;
                }
                let most = usize::try_from(stand.rest()).unwrap_or(usize::MAX);
                if !candidate.goes_with(&step, stand.pace.step.min(most)) {
                    self.step(stand, &mut step, &mut left, None).await?;
                    if stand.rest() == 0 {
                        return Ok(());
                    }
                }
                step.push(candidate);
            }
            self.step(stand, &mut step, &mut left, Some(last)).await?;
            // Others of this thread have their turn, however fast the server answers.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Does a step, which stands at `upto` after it, or at its last entry.
    async fn step(
        &mut self,
        stand: &mut Stand<'_>,
        step: &mut Vec<Candidate>,
        left: &mut Vec<Candidate>,
        upto: Option<EntryId>,
    ) -> Result<(), Stop> {
        let (mut moves, left) = (std::mem::take(step), std::mem::take(left));
        let last = |all: &[Candidate]| all.last().map(|one| one.act.entry);
        let Some(after) = upto.or(last(&moves).max(last(&left))) else {
            return Ok(());
        };
        let done = stand.replayed().saturating_sub(stand.until_now);
        stand.pace.wait(done).await;
        self.keep().await?;
        let connector = self.chores.connector.toward(&stand.stream.key);
        if !moves.is_empty() && stand.choice.from != Source::Pending {
            // They may have waited for hours, by a rate.
            let now = inspect::now(&mut connector.pooled().await?).await?;
            for one in &mut moves {
                drop_deadline(&mut one.act.fields, now);
            }
        }
        let mut again = false;
        loop {
            let step = RepairStep {
                way: stand.choice.way(),
                stream: &stand.stream,
                noted: stand.noted,
                fence: self.fence,
                before: stand.here.at,
                after,
                left: &left,
                moves: &moves,
            };
            let mut connection = connector.pooled().await?;
            let (stepped, _) = match stand.operator.step_repair(&mut connection, step).await {
                // It may have been done: the same again says so.
                Err(error) if error.code().is_none() && !again => {
                    again = true;
                    connector.forget_pooled();
                    continue;
                }
                stepped => stepped?,
            };
            match stepped {
                Stepped::Done(progress) => stand.here = progress,
                Stepped::Refused(why, _) => return Err(Stop::HeldUp(why)),
                Stepped::Elsewhere(_) | Stepped::Lost => return Err(Stop::Lost),
            }
            return Ok(());
        }
    }

    /// Keeps the right, when it is time to.
    async fn keep(&mut self) -> Result<(), Stop> {
        if self.chores.leaves() {
            return Err(Stop::Leaving);
        }
        if self.renewed.elapsed() < LEASE / 3 {
            return Ok(());
        }
        let (name, id) = (self.name, self.chores.id());
        let now = Instant::now();
        let kept = self
            .chores
            .repairs
            .keep(name, id, self.fence, LEASE, "")
            .await?;
        match kept {
            Right::Held(_) => {
                self.renewed = now;
                Ok(())
            }
            Right::Others | Right::Over => Err(Stop::Lost),
        }
    }
}

fn entry((ms, seq): (u64, u64)) -> EntryId {
    EntryId { ms, seq }
}
