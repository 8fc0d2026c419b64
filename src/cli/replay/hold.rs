//! A replay that stays with its terminal, since a program changes what it replays: a repair to which the terminal has the
//! right. Others follow it and cancel it, and another terminal goes on when this one is gone.

use super::flags::Act;
use super::repair::{plan, repairs};
use super::source::Walk;
use crate::cli::choose::Span;
use crate::cli::{Misuse, Session, output, who};
use convoke::coordination::error::CoordinationError;
use convoke::coordination::repairs::{LEASE, RepairDraft, Repairs, Right};
use convoke::operator::replay::planning::Candidate;
use convoke::operator::replay::repair::{Plan, Progress, RepairStep, Stepped, Way};
use convoke::operator::replay::{Operator, Step};
use convoke::protocol::event::EntryId;
use redis::aio::ConnectionLike;
use sha1_smol::Sha1;
use std::collections::HashMap;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What a replay by a program is to do, as data. Of the program and of what was named there is a digest: another program, or
/// other streams, are another replay.
pub(super) fn plan_of(walk: &Walk, act: &Act) -> anyhow::Result<Plan> {
    let program = act.edit_with.as_deref().unwrap_or_default();
    let asked = Sha1::from(format!("{program}\0{}", walk.asked()));
    Ok(Plan {
        program: true,
        asked: Some(asked.digest().to_string()),
        ..plan(walk, act)?
    })
}

/// What was begun under that name, if a terminal began it: the walk goes on where that one ended.
pub(super) async fn go_on(
    session: &Session,
    connection: &mut impl ConnectionLike,
    walk: &mut Walk,
    act: &mut Act,
    name: &str,
) -> anyhow::Result<Option<Plan>> {
    let repairs = repairs(session)?;
    let (kept, state) = match repairs.read(name).await {
        Err(CoordinationError::NotFound(_)) => return Ok(None),
        kept => kept?,
    };
    if !state.runs() {
        return Err(Misuse::error(format_args!(
            "{name} has ended ({}): take another name",
            state.state
        )));
    }
    if !state.terminal {
        return Err(Misuse::error(format_args!(
            "workers do {name}: convoke replay follow {name}"
        )));
    }
    let mut wanted = plan_of(walk, act)?;
    // How fast is its own affair.
    wanted.rate = kept.rate;
    // What was named is compared by the digest; where the streams ended is known since it was begun.
    wanted.stretches.clone_from(&kept.stretches);
    if wanted != kept {
        return Err(Misuse::error(format_args!(
            "{name} was begun with other conditions or another program: give the same, or take another name"
        )));
    }
    let keys = session.settings.keys()?;
    let noted = state.noted(name);
    let (mut spans, mut replayed) = (Vec::new(), 0);
    for stretch in &kept.stretches {
        let stream = kept.stream(&keys, &stretch.stream);
        let stream = stream.map_err(anyhow::Error::msg)?;
        let done = Progress::read(connection, &keys, &stream, &noted).await?;
        let id = |(ms, seq): (u64, u64)| EntryId { ms, seq };
        let from = done.at.map_or(id(stretch.from), |at| at.next());
        let to = done
            .end
            .map_or(id(stretch.to), |end| id(stretch.to).min(end));
        replayed += done.replayed;
        spans.push(Span { stream, from, to });
    }
    walk.look_at(spans);
    act.limit = act.limit.map(|limit| limit.saturating_sub(replayed));
    Ok(Some(kept))
}

/// The right to a replay, kept until it is dropped.
pub(super) struct Hold {
    repairs: Repairs,
    name: String,
    who: String,
    fence: u64,
    noted: String,
    /// How far it is in each stream.
    at: HashMap<String, Option<EntryId>>,
    lost: CancellationToken,
    keeping: JoinHandle<()>,
}

/// What became of a step.
pub(super) enum Held {
    Done(Step),
    /// Somebody cancelled it, or another terminal does it.
    Lost,
}

impl Hold {
    /// Begins a replay, or goes on with it. `None` where this user may not: then it cannot be followed.
    pub(super) async fn begin(
        session: &Session,
        connection: &mut impl ConnectionLike,
        operator: &Operator,
        plan: Plan,
        total: u64,
    ) -> anyhow::Result<Option<Self>> {
        let name = operator.run();
        let repairs = repairs(session)?;
        let draft = RepairDraft {
            name: name.to_owned(),
            plan,
            why: String::new(),
            total: Some(total),
        };
        match repairs.start(&draft, &who()).await {
            Ok(()) => {}
            Err(error) if is_serious(&error) => return Err(error.into()),
            Err(error) => {
                let why = error.to_string();
                let why = output::printable(&why);
                output::complain_line(&format!("no other terminal can follow it: {why}"));
                return Ok(None);
            }
        }
        let who = format!("{}:{}", who(), std::process::id());
        let fence = match repairs.take(name, &who, LEASE).await? {
            Right::Held(fence) => fence,
            Right::Others => {
                anyhow::bail!("another terminal does {name}: convoke replay follow {name}")
            }
            Right::Over => anyhow::bail!("{name} has ended"),
        };
        // What held it up before does not now.
        repairs.keep(name, &who, fence, LEASE, "").await?;
        let (_, state) = repairs.read(name).await?;
        let lost = CancellationToken::new();
        let keeping = keep(repairs.clone(), name.to_owned(), who.clone(), fence, &lost);
        let noted = state.noted(name);
        let keys = session.settings.keys()?;
        let mut at = HashMap::new();
        // From here on a terminal that had it before moves nothing more, in any of the streams.
        for stretch in &draft.plan.stretches {
            let stream = draft.plan.stream(&keys, &stretch.stream);
            let stream = stream.map_err(anyhow::Error::msg)?;
            let place = (draft.plan.from, &stream);
            let taken = operator.take_repair(connection, place, &noted, fence);
            let Stepped::Done(done) = taken.await? else {
                anyhow::bail!("another terminal does {name}: convoke replay follow {name}");
            };
            at.insert(stream.key, done.at);
        }
        Ok(Some(Self {
            noted,
            name: name.to_owned(),
            at,
            repairs,
            who,
            fence,
            lost,
            keeping: tokio::spawn(keeping),
        }))
    }

    /// Is cancelled when somebody else has the right.
    pub(super) fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// One atomic step, behind which the replay stands at the last of those entries.
    pub(super) async fn step(
        &mut self,
        connection: &mut impl ConnectionLike,
        operator: &Operator,
        way: Way<'_>,
        left: &[Candidate],
        moves: &[Candidate],
    ) -> anyhow::Result<Held> {
        let last = |all: &[Candidate]| all.last().map(|one| one.act.entry);
        let first = moves.first().or(left.first());
        let (Some(first), Some(after)) = (first, last(moves).max(last(left))) else {
            return Ok(Held::Done(Step::default()));
        };
        let stream = &first.stream;
        let before = self.at.get(&stream.key).copied().flatten();
        let step = RepairStep {
            way,
            stream,
            noted: &self.noted,
            fence: self.fence,
            before,
            after,
            left,
            moves,
        };
        let (stepped, moved) = operator.step_repair(connection, step).await?;
        let stopped = match stepped {
            Stepped::Done(done) => {
                self.at.insert(stream.key.clone(), done.at);
                None
            }
            Stepped::Refused(why, _) => Some(why),
            _ => return Ok(Held::Lost),
        };
        Ok(Held::Done(Step::of(moved, stopped)))
    }

    /// Says that all of it is done.
    pub(super) async fn finish(&self) -> anyhow::Result<()> {
        self.keeping.abort();
        let finished = self.repairs.finish(&self.name, &self.who, self.fence);
        Ok(finished.await?)
    }

    /// Gives the right back, so that whoever follows is told why at once.
    pub(super) async fn give_back(self, why: &str) {
        self.keeping.abort();
        let (name, who) = (&self.name, &self.who);
        // Where it cannot be given back it lapses.
        self.repairs
            .keep(name, who, self.fence, Duration::ZERO, why)
            .await
            .ok();
    }

    /// Why somebody else has the right.
    pub(super) async fn why_lost(&self) -> String {
        match self.repairs.read(&self.name).await {
            Ok((_, state)) if !state.runs() => {
                let by = state.ended_by.unwrap_or_default();
                format!("{} by {by}", state.state)
            }
            Ok((_, state)) => {
                let holder = state.holder.unwrap_or_else(|| "another terminal".into());
                format!("{holder} goes on with it")
            }
            Err(error) => format!("somebody else has the right to it: {error}"),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

/// Whether a replay that could not be begun must not go on without being followed.
fn is_serious(error: &CoordinationError) -> bool {
    match error {
        CoordinationError::Bus(error) => {
            let text = error.to_string();
            error.code() != Some("NOPERM") && !text.contains("ACL failure")
        }
        CoordinationError::AlreadyExists(_) | CoordinationError::FailedPrecondition(_) => true,
        _ => false,
    }
}

/// Keeps the right, however long the program takes.
fn keep(
    repairs: Repairs,
    name: String,
    who: String,
    fence: u64,
    lost: &CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let lost = lost.clone();
    async move {
        loop {
            tokio::time::sleep(LEASE / 3).await;
            let kept = repairs.keep(&name, &who, fence, LEASE, "").await;
            if matches!(kept, Ok(Right::Others | Right::Over)) {
                lost.cancel();
                return;
            }
        }
    }
}
