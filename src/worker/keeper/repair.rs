//! Does repairs: bulk replays of dead letters that somebody asked for. One worker at a time has the right to one.

use super::Chores;
use crate::connect::connector::reconnect_delay;
use crate::coordination::error::CoordinationError;
use crate::coordination::repairs::Right;
use crate::operator::browse::{Pages, Sight};
use crate::operator::inspect;
use crate::operator::replay::planning::{Candidate, Planner};
use crate::operator::replay::repair::{Plan, Progress, RepairStep, Stepped};
use crate::operator::replay::{Operator, Pace, drop_deadline};
use crate::protocol::event::EntryId;
use crate::protocol::keys::StreamName;
use std::time::{Duration, Instant};

/// The pause between two looks for repairs that nobody does.
const PAUSE: Duration = Duration::from_secs(5);
/// For how long the right to a repair is taken. It is renewed three times as often.
const LEASE: Duration = Duration::from_secs(10);
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
    loop {
        let pause = match look(chores).await {
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

/// Does each repair that nobody does, until it is done. One that fails holds no other one up.
async fn look(chores: &Chores) -> Result<(), CoordinationError> {
    let mut all = Ok(());
    for (name, state) in chores.repairs.list().await? {
        if !state.runs() || chores.leaves() {
            continue;
        }
        let done = match chores.repairs.take(&name, chores.id(), LEASE).await {
            Ok(Right::Held(fence)) => do_it(chores, &name, fence).await,
            Ok(Right::Others | Right::Over) => Ok(()),
            Err(error) => Err(error),
        };
        all = all.and(done);
    }
    all
}

async fn do_it(chores: &Chores, name: &str, fence: u64) -> Result<(), CoordinationError> {
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
            Err(CoordinationError::Aborted(_)) => Ok(()),
            finished => finished,
        },
        Err(Stop::Lost) => Ok(()),
        Err(Stop::Leaving) => keep(Duration::ZERO, String::new()).await.map(|_| ()),
        Err(Stop::HeldUp(why)) => {
            tracing::warn!(repair = name, why, "a repair is held up; it is tried again");
            keep(LEASE, why).await?;
            tokio::time::sleep(HELD_UP).await;
            Ok(())
        }
        Err(Stop::Failed(CoordinationError::Bus(error))) if error.code().is_none() => {
            Err(error.into())
        }
        Err(Stop::Failed(error)) => {
            tracing::warn!(repair = name, %error, "a repair is held up; others may do it");
            keep(Duration::ZERO, error.to_string()).await?;
            tokio::time::sleep(HELD_UP).await;
            Ok(())
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

/// One stream of dead letters.
struct Stand<'a> {
    operator: &'a Operator,
    planner: &'a Planner,
    plan: &'a Plan,
    noted: &'a str,
    dead: StreamName,
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
        let limit = self.plan.limit.unwrap_or(u64::MAX);
        limit.saturating_sub(self.replayed())
    }
}

impl Doing<'_> {
    async fn run(&mut self) -> Result<(), Stop> {
        let (plan, state) = self.chores.repairs.read(self.name).await?;
        let keys = &self.chores.keys;
        let limits = self.chores.settings.limits();
        let operator = Operator::new(keys.clone(), self.name, state.by.as_str());
        let planner = plan.planner(keys, limits, &state.by);
        let mut pace = Pace::new(plan.rate);
        let noted = state.noted(self.name);
        let done = self.chores.repairs.progress(&noted, &plan).await?;
        // What dies again while it goes on is not met again, wherever a stretch ends.
        let last = EntryId {
            ms: state.at.saturating_add(LATE_MS),
            seq: u64::MAX,
        };
        let mut before = 0;
        for stretch in &plan.stretches {
            let dead = plan.stream(keys, &stretch.stream);
            let mut stand = Stand {
                operator: &operator,
                planner: &planner,
                plan: &plan,
                noted: &noted,
                dead: dead.map_err(Stop::HeldUp)?,
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
        from: EntryId,
        to: EntryId,
    ) -> Result<(), Stop> {
        let connector = self.chores.connector.toward(&stand.dead.key);
        let mut connection = connector.pooled().await?;
        let taken =
            stand
                .operator
                .take_repair(&mut connection, &stand.dead, stand.noted, self.fence);
        match taken.await? {
            Stepped::Done(progress) => stand.here = progress,
            _ => return Err(Stop::Lost),
        }
        let now = inspect::now(&mut connection).await?;
        drop(connection);
        let from = stand.here.at.map_or(from, |at| from.max(at.next()));
        let sight = Sight::new(
            self.chores.connector.clone(),
            self.chores.settings.limits().entry(),
        );
        let mut pages = Pages::new(&sight, &stand.dead.key, from, to);
        while stand.rest() > 0 {
            self.keep().await?;
            let page = pages.next().await?;
            let Some(last) = page.last().map(|entry| entry.id) else {
                break;
            };
            let mut step = Vec::new();
            let mut left = Vec::new();
            for entry in &page {
                let Some(letter) = stand.plan.wanted.fit(entry) else {
                    continue;
                };
                let candidate = stand.planner.letter(&stand.dead, entry, letter, now);
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

    /// Does a step, which stands at `upto` after it, or at its last letter.
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
        let connector = self.chores.connector.toward(&stand.dead.key);
        if !moves.is_empty() {
            // They may have waited for hours, by a rate.
            let now = inspect::now(&mut connector.pooled().await?).await?;
            for one in &mut moves {
                drop_deadline(&mut one.act.fields, now);
            }
        }
        let mut again = false;
        loop {
            let step = RepairStep {
                dead: &stand.dead,
                noted: stand.noted,
                fence: self.fence,
                before: stand.here.at,
                after,
                left: &left,
                moves: &moves,
            };
            let mut connection = connector.pooled().await?;
            let stepped = match stand.operator.step_repair(&mut connection, step).await {
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
