//! Writes how far runs are to those who wait for their replies.
//!
//! Here, since a handler that blocks its thread is just the one whose progress is of interest. A run's entries are
//! apart in time; what is newest goes, and what a run leaves at its end goes at once, since its reply waits for that. An
//! entry that cannot be written is dropped and counted: it is worth no second try, and no run waits for one.

use super::Chores;
use crate::connect::clock::whole_ms;
use crate::connect::link::Link;
use crate::handler::context::Context;
use crate::handler::function::encode;
use crate::handler::progress::Tell;
use crate::protocol::event::in_kind;
use crate::protocol::progress::Progress;
use crate::streams::commit::settlement::is_inbox;
use redis::aio::ConnectionLike;
use redis::{Pipeline, Value};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The least time between two entries of one run, except for its last.
const APART: Duration = Duration::from_millis(200);

/// A run that has something to tell, and from when on it may.
struct Waiting {
    run: Context,
    due: Instant,
    /// Who waits for it, once the run has ended.
    last: Option<oneshot::Sender<()>>,
}

/// Writes what runs tell.
pub(super) async fn run(chores: &Chores) {
    let mut told = chores.told.lock().await;
    let link = Link::new(chores.connector.clone(), Duration::ZERO);
    let mut waiting: Vec<Waiting> = Vec::new();
    loop {
        let due = waiting.iter().map(|one| one.due).min();
        let next = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into());
        tokio::select! {
            tell = told.recv() => match tell {
                Some(tell) => take(&mut waiting, tell),
                // Nobody has anything to tell any more.
                None => std::future::pending().await,
            },
            () = next, if due.is_some() => {}
        }
        while let Ok(tell) = told.try_recv() {
            take(&mut waiting, tell);
        }
        let now = Instant::now();
        let due: Vec<Waiting> = waiting.extract_if(.., |one| one.due <= now).collect();
        if due.is_empty() {
            continue;
        }
        write(chores, &link, &due).await;
        for one in due {
            // Whoever waits goes on.
            drop(one.last);
            if one.run.progress_is_written() {
                waiting.push(Waiting {
                    run: one.run,
                    due: Instant::now() + APART,
                    last: None,
                });
            }
        }
    }
}

fn take(waiting: &mut Vec<Waiting>, tell: Tell) {
    let now = Instant::now();
    let one = match tell {
        Tell::News(run) => Waiting {
            due: run.written_last().map_or(now, |at| at + APART),
            run,
            last: None,
        },
        Tell::Last(run, last) => {
            waiting.retain(|one| !one.run.is(&run));
            Waiting {
                run,
                due: now,
                last: Some(last),
            }
        }
    };
    waiting.push(one);
}

/// Writes what is newest of each of them. Nothing of a run that was cancelled: others may run the event by now, and
/// nothing that its reply does not wait for any more.
async fn write(chores: &Chores, link: &Link, due: &[Waiting]) {
    let mut pipeline = redis::pipe();
    let mut entries = 0;
    for one in due {
        let Some(progress) = one.run.take_progress() else {
            continue;
        };
        let late = one.last.as_ref().is_some_and(oneshot::Sender::is_closed);
        match one.run.cancellation().is_cancelled() {
            true => {}
            false if late => one.run.process().progress.drops(1),
            false => entries += u64::from(add(&mut pipeline, chores, &one.run, &progress)),
        }
    }
    if entries == 0 {
        return;
    }
    let dropped = match send(chores, link, &pipeline).await {
        Ok(0) => return,
        Ok(refused) => refused,
        Err(error) => {
            tracing::debug!(error, entries, "progress was not written");
            entries
        }
    };
    if let Some(one) = due.first() {
        one.run.process().progress.drops(dropped);
    }
}

/// Adds the entry of a run, if there is somebody to read it.
fn add(pipeline: &mut Pipeline, chores: &Chores, run: &Context, progress: &Progress) -> bool {
    let event = run.event();
    let (Some(to), Ok(data)) = (event.reply_to(), encode(progress)) else {
        return false;
    };
    let (data, content) = in_kind(data, event.is_json());
    let now = chores.lanes.first().map(|lane| lane.claims.server_now());
    let command = pipeline.cmd("XADD").arg(to);
    // As with replies: an inbox that this would make is nobody's, and a reply stream has an end.
    match is_inbox(to) {
        true => command.arg("NOMKSTREAM"),
        false => command
            .arg(&["MAXLEN", "~"])
            .arg(chores.settings.stream_history),
    };
    command.arg("*").arg("correlationid").arg(event.id());
    command.arg("type").arg(Progress::kind_of(event.kind()));
    command.arg("source").arg(run.instance());
    command.arg("time").arg(now.unwrap_or_default());
    if let Some(content) = content {
        command.arg("datacontenttype").arg(content);
    }
    command.arg("data").arg(data);
    if !is_inbox(to) {
        let ttl = whole_ms(chores.settings.reply_ttl);
        pipeline.cmd("PEXPIRE").arg(to).arg(ttl).arg("NX");
    }
    true
}

/// Sends it: how many of its entries the server refused.
async fn send(chores: &Chores, link: &Link, pipeline: &Pipeline) -> Result<u64, String> {
    let answers = match chores.connector.is_cluster() {
        // Each to its own slot.
        true => {
            let connection = chores.connector.pooled().await;
            let mut connection = connection.map_err(|error| error.to_string())?;
            let sent = connection.req_packed_commands(pipeline, 0, pipeline.len());
            sent.await
        }
        false => {
            let mut lent = link.get().await?;
            link.send_all(&mut lent, pipeline).await
        }
    };
    let answers = answers.map_err(|error| error.to_string())?;
    let refused = answers.iter().filter_map(|answer| match answer {
        Value::ServerError(error) => Some(error),
        _ => None,
    });
    if let Some(error) = refused.clone().next() {
        tracing::debug!(%error, "progress was refused");
    }
    Ok(refused.count() as u64)
}
