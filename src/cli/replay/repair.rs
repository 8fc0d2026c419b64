//! Repairs: replays that are handed to the workers, and looked at from any terminal.

use super::bar::bar;
use super::flags::{Act, Cancel, Follow, HandOver};
use super::source::Walk;
use super::what;
use crate::cli::output::{self, Cell, Column, FAINT, RED, Table, YELLOW, count, number, span};
use crate::cli::request::{ask, complain, result};
use crate::cli::{Exit, Session, who};
use convoke::client::publish::Outgoing;
use convoke::connect::clock::local_now;
use convoke::coordination::repairs::{RepairState, Repairs};
use convoke::operator::replay::repair::{Plan, Progress};
use convoke::operator::replay::{Operator, Source};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(250);
/// A terminal that has not the right to what it does for so long is gone: it takes it as soon as it has begun.
const GONE: Duration = Duration::from_secs(2);

/// What a worker is asked to start.
#[derive(serde::Serialize)]
struct Start<'a> {
    name: &'a str,
    plan: &'a Plan,
    why: &'a str,
    total: Option<u64>,
}

/// What a walk is about, as data.
pub(super) fn plan(walk: &Walk, act: &Act) -> anyhow::Result<Plan> {
    let choice = walk.choice();
    let is_dead = choice.from == Source::Dead;
    Ok(Plan {
        from: choice.from,
        group: (!is_dead).then(|| choice.group.clone()),
        stretches: walk.stretches(),
        wanted: choice.wanted.clone(),
        mends: act.mends()?,
        to_type: act.to_type.clone(),
        force: act.force,
        rate: act.rate,
        limit: act.limit,
        program: false,
        asked: None,
    })
}

/// Hands what a walk found to the workers.
pub(super) async fn hand_over(
    session: &Session,
    walk: &Walk,
    act: &Act,
    over: &HandOver,
    operator: &Operator,
    total: u64,
) -> anyhow::Result<Exit> {
    let mut plan = plan(walk, act)?;
    if plan.from == Source::Range {
        // What ran at the look may be finished by then: it was not agreed to.
        plan.limit = Some(plan.limit.map_or(total, |limit| limit.min(total)));
    }
    let name = operator.run();
    let start = Start {
        name,
        plan: &plan,
        why: &over.why,
        total: Some(total),
    };
    let request = Outgoing::new("system.repair.start", &start).source(who());
    if let Err(error) = ask(session, request, over.timeout).await? {
        complain(session, &error);
        return Ok(Exit::Failed);
    }
    if over.follow {
        return watch(session, name).await;
    }
    match session.output.is_json() {
        true => session
            .output
            .json(&json!({"repair": name, "total": total}))?,
        false => {
            let what = what(plan.from, total);
            let line = format!("{what} handed to the workers: convoke replay follow {name}");
            session.output.line(&line)?;
        }
    }
    Ok(Exit::Done)
}

pub(super) fn repairs(session: &Session) -> anyhow::Result<Repairs> {
    Ok(Repairs::new(session.connector()?, session.settings.keys()?))
}

/// `convoke replay follow`
pub(super) async fn follow(session: &Session, flags: &Follow) -> anyhow::Result<Exit> {
    let name = match &flags.name {
        Some(name) => name.clone(),
        None => {
            let repairs = repairs(session)?;
            let (all, now) = (repairs.list().await?, repairs.now().await?);
            // What a terminal began that is gone is nobody's.
            let goes_on =
                |state: &RepairState| state.runs() && (!state.terminal || state.is_held(now));
            let newest = all
                .iter()
                .max_by_key(|(_, state)| (goes_on(state), state.at));
            let Some((name, _)) = newest else {
                anyhow::bail!("no replay was handed to the workers (--detach)");
            };
            name.clone()
        }
    };
    watch(session, &name).await
}

/// Shows how far a repair is, until it has ended, or nobody goes on with it.
async fn watch(session: &Session, name: &str) -> anyhow::Result<Exit> {
    let repairs = repairs(session)?;
    let (plan, state) = repairs.read(name).await?;
    let shown = bar(state.total.unwrap_or(0), session.output.is_json());
    let mut before = None;
    let mut held = Instant::now();
    loop {
        // The state first: what it says has ended is counted whole.
        let (_, state) = repairs.read(name).await?;
        let done = repairs.progress(&state.noted(name), &plan).await?;
        let now = repairs.now().await?;
        if state.is_held(now) {
            held = Instant::now();
        }
        let is_over = state.note.is_some() || held.elapsed() > GONE;
        let is_left = state.terminal && !state.is_held(now) && is_over;
        if !state.runs() || is_left {
            shown.finish_and_clear();
            return end(session, name, &plan, &state, &done);
        }
        shown.set_position(done.replayed + done.gone + done.left);
        let note = state.note.clone();
        let seen = (done.replayed, done.left, note.clone(), state.holder.clone());
        if session.output.is_json() && before.as_ref() != Some(&seen) {
            session
                .output
                .json(&described(name, &state, &done, "running"))?;
        } else if let Some(note) = note.filter(|_| before.as_ref().is_none_or(|b| b.2 != seen.2)) {
            let note = output::printable(&note).into_owned();
            shown.suspend(|| output::complain_line(&format!("held up: {note}")));
        }
        before = Some(seen);
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            _ = tokio::signal::ctrl_c() => {
                shown.finish_and_clear();
                output::complain_line(&format!(
                    "{name} goes on without this terminal: convoke replay follow {name}"
                ));
                return Ok(Exit::Failed);
            }
        }
    }
}

/// Of one that still runs, that its terminal is gone.
fn end(
    session: &Session,
    name: &str,
    plan: &Plan,
    state: &RepairState,
    done: &Progress,
) -> anyhow::Result<Exit> {
    let failed = state.state != "finished" || done.left > 0;
    let exit = if failed { Exit::Failed } else { Exit::Done };
    if session.output.is_json() {
        let stands = if state.runs() {
            "stopped"
        } else {
            &state.state
        };
        session.output.json(&described(name, state, done, stands))?;
        return Ok(exit);
    }
    let what = what(plan.from, done.replayed);
    let took = match state.ended {
        Some(ended) => span(ended.saturating_sub(state.at)),
        None => state.total.map_or("?".into(), number),
    };
    let how = if state.runs() { "of" } else { "in" };
    session
        .output
        .line(&format!("replayed {what} {how} {took} (run {name})"))?;
    if done.gone > 0 {
        output::complain_line(&format!("{} were gone meanwhile", number(done.gone)));
    }
    for (why, n) in &done.why {
        let why = output::printable(why);
        output::complain_line(&format!("{} left alone: {why}", number(*n)));
    }
    if state.runs() {
        let why = state.note.as_deref().unwrap_or("its terminal is gone");
        let by = output::printable(&state.by);
        output::complain_line(&format!("stopped: {} ({by})", output::printable(why)));
        output::complain_line(&format!(
            "to go on: the same command, with --run {name}; nothing is replayed twice"
        ));
    } else if state.state != "finished" {
        let by = output::printable(state.ended_by.as_deref().unwrap_or("-")).into_owned();
        output::complain_line(&format!("{} by {by}", state.state));
    }
    Ok(exit)
}

fn described(name: &str, state: &RepairState, done: &Progress, stands: &str) -> Value {
    json!({
        "repair": name,
        "state": stands,
        "by": state.by,
        "why": state.why,
        "at": state.at,
        "total": state.total,
        "replayed": done.replayed,
        "gone": done.gone,
        "left": done.left,
        "left_why": done.why,
        "holder": state.holder,
        "ended": state.ended,
        "ended_by": state.ended_by,
        "note": state.note,
        "terminal": state.terminal,
    })
}

/// `convoke replay list`
pub(super) async fn list(session: &Session) -> anyhow::Result<Exit> {
    let repairs = repairs(session)?;
    let mut all: Vec<_> = repairs.list().await?.into_iter().collect();
    all.sort_by_key(|(_, state)| std::cmp::Reverse(state.at));
    let columns = vec![
        Column::new("NAME"),
        Column::new("STATE"),
        Column::number("REPLAYED"),
        Column::number("LEFT"),
        Column::number("OF"),
        Column::new("BY").shrinks(8),
        Column::new("WHEN"),
        Column::new("WHY").shrinks(8),
        Column::new("WORKER").optional(),
        Column::new("HELD UP BY").optional(),
    ];
    let mut table = Table::new(&session.output, columns);
    let now = local_now();
    let server_now = repairs.now().await?;
    for (name, state) in all {
        let done = match repairs.read(&name).await {
            Ok((plan, _)) => repairs.progress(&state.noted(&name), &plan).await?,
            // What only a later version can read is listed all the same.
            Err(_) => Progress::default(),
        };
        let is_stopped = state.runs() && state.terminal && !state.is_held(server_now);
        if session.output.is_json() {
            let stands = if is_stopped { "stopped" } else { &state.state };
            let described = described(&name, &state, &done, stands);
            session.output.json(&described)?;
            continue;
        }
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let shown = match state.state.as_str() {
            "running" if is_stopped => Cell::styled("stopped", YELLOW),
            "running" if state.note.is_some() => Cell::styled("held up", RED),
            "running" if state.holder.is_none() => Cell::styled("waiting", YELLOW),
            "finished" => Cell::styled("finished", FAINT),
            other => Cell::from(other.to_owned()),
        };
        table.row(vec![
            name.into(),
            shown,
            number(done.replayed).into(),
            number(done.left).into(),
            state.total.map_or("-".into(), number).into(),
            state.by.clone().into(),
            session.output.moment(state.at, now).into(),
            state.why.clone().into(),
            text(&state.holder).into(),
            text(&state.note).into(),
        ])?;
    }
    if !session.output.is_json() {
        table.finish()?;
    }
    Ok(Exit::Done)
}

/// `convoke replay cancel`
pub(super) async fn cancel(session: &Session, flags: &Cancel) -> anyhow::Result<Exit> {
    let asked = json!({"name": flags.name});
    let request = Outgoing::new("system.repair.cancel", &asked).source(who());
    let said = match ask(session, request, flags.timeout).await? {
        Ok(reply) => result(&reply)?,
        Err(error) => {
            complain(session, &error);
            return Ok(Exit::Failed);
        }
    };
    if session.output.is_json() {
        session.output.json(&said)?;
        return Ok(Exit::Done);
    }
    let replayed = said["replayed"].as_u64().unwrap_or_default();
    let what = count(replayed, "entry is", "entries are");
    let line = format!(
        "{}: cancelled; {what} replayed, the others stay",
        flags.name
    );
    session.output.line(&output::printable(&line))?;
    Ok(Exit::Done)
}
