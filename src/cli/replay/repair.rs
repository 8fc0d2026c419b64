//! Repairs: replays that are handed to the workers, and looked at from any terminal.

use super::bar::bar;
use super::flags::{Act, Cancel, Follow, HandOver};
use super::source::{From, Walk};
use crate::cli::output::{self, Cell, Column, FAINT, RED, Table, YELLOW, count, number, span};
use crate::cli::request::{ask, complain, result};
use crate::cli::{Exit, Misuse, Session, who};
use convoke::client::publish::Outgoing;
use convoke::connect::clock::local_now;
use convoke::coordination::repairs::{RepairState, Repairs};
use convoke::operator::replay::Operator;
use convoke::operator::replay::repair::{Plan, Progress, Stretch};
use convoke::operator::replay::wanted::Wanted;
use convoke::protocol::event::EntryId;
use serde_json::{Value, json};
use std::time::Duration;

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// What a worker is asked to start.
#[derive(serde::Serialize)]
struct Start<'a> {
    name: &'a str,
    plan: &'a Plan,
    why: &'a str,
    total: Option<u64>,
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
    let From::Dead(which) = walk.from() else {
        return Err(Misuse::error("--detach is for dead letters"));
    };
    let pair = |id: EntryId| (id.ms, id.seq);
    let ids = which.filters.ids.iter().flat_map(|ids| ids.0.iter());
    let what = &which.filters.what;
    let plan = Plan {
        stretches: walk
            .spans()
            .iter()
            .map(|span| Stretch {
                stream: span.stream.key.clone(),
                from: pair(span.from),
                to: pair(span.to),
            })
            .collect(),
        wanted: Wanted {
            entries: ids.map(|id| pair(*id)).collect(),
            kind: what.kind.clone(),
            fields: what.payload.iter().map(|one| one.what().clone()).collect(),
            reason: which.reason.clone(),
            instance: which.instance.clone(),
        },
        mends: act.mends()?,
        to_type: act.to_type.clone(),
        force: act.force,
        rate: act.rate,
        limit: act.limit,
    };
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
            let what = count(total, "dead letter", "dead letters");
            let line = format!("{what} handed to the workers: convoke replay follow {name}");
            session.output.line(&line)?;
        }
    }
    Ok(Exit::Done)
}

fn repairs(session: &Session) -> anyhow::Result<Repairs> {
    Ok(Repairs::new(session.connector()?, session.settings.keys()?))
}

/// `convoke replay follow`
pub(super) async fn follow(session: &Session, flags: &Follow) -> anyhow::Result<Exit> {
    let name = match &flags.name {
        Some(name) => name.clone(),
        None => {
            let all = repairs(session)?.list().await?;
            let newest = all.iter().max_by_key(|(_, state)| (state.runs(), state.at));
            let Some((name, _)) = newest else {
                anyhow::bail!("no replay was handed to the workers (--detach)");
            };
            name.clone()
        }
    };
    watch(session, &name).await
}

/// Shows how far a repair is, until it has ended.
async fn watch(session: &Session, name: &str) -> anyhow::Result<Exit> {
    let repairs = repairs(session)?;
    let (plan, state) = repairs.read(name).await?;
    let shown = bar(state.total.unwrap_or(0), session.output.is_json());
    let mut before = None;
    loop {
        // The state first: what it says has ended is counted whole.
        let (_, state) = repairs.read(name).await?;
        let done = repairs.progress(&state.noted(name), &plan).await?;
        if !state.runs() {
            shown.finish_and_clear();
            return end(session, name, &state, &done);
        }
        shown.set_position(done.replayed + done.gone + done.left);
        let note = state.note.clone();
        let seen = (done.replayed, done.left, note.clone(), state.holder.clone());
        if session.output.is_json() && before.as_ref() != Some(&seen) {
            session.output.json(&described(name, &state, &done))?;
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

fn end(
    session: &Session,
    name: &str,
    state: &RepairState,
    done: &Progress,
) -> anyhow::Result<Exit> {
    let failed = state.state != "finished" || done.left > 0;
    let exit = if failed { Exit::Failed } else { Exit::Done };
    if session.output.is_json() {
        session.output.json(&described(name, state, done))?;
        return Ok(exit);
    }
    let what = count(done.replayed, "dead letter", "dead letters");
    let took = state.ended.unwrap_or(state.at).saturating_sub(state.at);
    let took = span(took);
    session
        .output
        .line(&format!("replayed {what} in {took} (run {name})"))?;
    if done.gone > 0 {
        output::complain_line(&format!("{} were gone meanwhile", number(done.gone)));
    }
    for (why, n) in &done.why {
        let why = output::printable(why);
        output::complain_line(&format!("{} left alone: {why}", number(*n)));
    }
    if state.state != "finished" {
        let by = output::printable(state.ended_by.as_deref().unwrap_or("-")).into_owned();
        output::complain_line(&format!("{} by {by}", state.state));
    }
    Ok(exit)
}

fn described(name: &str, state: &RepairState, done: &Progress) -> Value {
    json!({
        "repair": name,
        "state": state.state,
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
    for (name, state) in all {
        let done = match repairs.read(&name).await {
            Ok((plan, _)) => repairs.progress(&state.noted(&name), &plan).await?,
            // What only a later version can read is listed all the same.
            Err(_) => Progress::default(),
        };
        if session.output.is_json() {
            session.output.json(&described(&name, &state, &done))?;
            continue;
        }
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let shown = match state.state.as_str() {
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
    let what = count(replayed, "dead letter is", "dead letters are");
    let line = format!(
        "{}: cancelled; {what} replayed, the others stay",
        flags.name
    );
    session.output.line(&output::printable(&line))?;
    Ok(Exit::Done)
}
