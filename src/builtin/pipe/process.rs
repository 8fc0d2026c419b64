//! One seat of a pipe: a process is started, spoken to, and started again when it ended.

use super::frames::{Incoming, answer};
use super::pool::Pool;
use super::stderr::{self, Last};
use crate::builtin::process::shell;
use crate::builtin::scarce;
use crate::builtin::warden::{self, Watched};
use crate::connect::backoff::Backoff;
use crate::protocol::error::HandlerError;
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::{Instant, timeout, timeout_at};

/// How long what a process has written is read on after it ended, if what it left behind holds its output open.
const MOMENT: Duration = Duration::from_millis(200);
/// How long a process may take to end by itself once its input is closed.
const PARTING: Duration = Duration::from_secs(5);
/// Bytes that one read brings at the most.
const CHUNK: usize = 64 * 1024;

/// Keeps a process in that seat until the pipe is closed.
pub(super) async fn keep(pool: Arc<Pool>, seat: usize) {
    let mut backoff = Backoff::default();
    let kind = pool.kind.as_str();
    while !pool.closing.is_cancelled() {
        let answers = AtomicBool::new(false);
        let why = match live(&pool, seat, &answers).await {
            Ok(()) => return,
            Err(why) => why,
        };
        if answers.into_inner() {
            backoff.worked();
        }
        let held = pool.holds(seat).map_or(0, |(_, held)| held);
        let message = format!("the process that ran it is gone: {why}");
        pool.gone(seat, &HandlerError::internal(message));
        let pause = backoff.failed();
        tracing::warn!(
            kind,
            held,
            why,
            ?pause,
            "a piped process is gone; it is started again"
        );
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = pool.closing.cancelled() => {}
        }
    }
}

/// The life of one process: why it is gone, unless it ended as it was told to.
async fn live(pool: &Pool, seat: usize, answers: &AtomicBool) -> Result<(), String> {
    let started = scarce::start(|| spawn(pool)).await;
    let (mut child, watched) = started.map_err(|error| error.message.into_owned())?;
    let (Some(mut stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err("it has no pipes".to_owned());
    };
    stdin.write_all(warden::BEGIN).await.ok();
    let end = pool.begun(seat);
    let last = Last::default();
    let mut write = std::pin::pin!(write(stdin, pool, seat));
    let mut read = std::pin::pin!(read(stdout, pool, seat, answers));
    let mut errors = std::pin::pin!(stderr::log(stderr, pool, seat, &last));
    let (mut closed, mut logged) = (false, false);
    let parting = tokio::time::sleep(PARTING);
    let mut parting = std::pin::pin!(parting);
    let why = loop {
        tokio::select! {
            biased;
            () = end.cancelled() => break "a run that it held was given up".to_owned(),
            // Before the answer: what it said of an event before that is still known as the event's.
            () = &mut errors, if !logged => logged = true,
            problem = &mut read => {
                // It closed its output: nothing more can come of it. Told to end, it may still clear up.
                let until = match closed {
                    true => parting.deadline(),
                    false => Instant::now() + MOMENT,
                };
                let ended = async {
                    let mut ended = std::pin::pin!(child.wait());
                    loop {
                        tokio::select! {
                            status = &mut ended => return status,
                            () = &mut errors, if !logged => logged = true,
                        }
                    }
                };
                let status = timeout_at(until, ended).await;
                break match (problem, status) {
                    (Some(problem), _) => problem,
                    (None, Ok(Ok(status))) => status.to_string(),
                    (None, _) => "it closed its output".to_owned(),
                };
            }
            status = child.wait() => {
                let problem = timeout(MOMENT, &mut read).await.ok().flatten();
                break match (problem, status) {
                    (Some(problem), _) => problem,
                    (None, Ok(status)) => status.to_string(),
                    (None, Err(error)) => error.to_string(),
                };
            }
            () = &mut write, if !closed => {
                closed = true;
                parting.as_mut().reset(Instant::now() + PARTING);
            }
            () = &mut parting, if closed => break "it did not end when its input was closed".to_owned(),
        }
    };
    if closed && pool.holds(seat).is_none() && matches!(child.try_wait(), Ok(Some(_))) {
        watched.ended();
        return Ok(());
    }
    if !logged {
        timeout(MOMENT, errors).await.ok();
    }
    // With all its children: they would go on beside the next runs of what it held.
    drop(watched);
    child.start_kill().ok();
    let said = last.text();
    match said.is_empty() {
        true => Err(why),
        false => Err(format!("{why}: {said}")),
    }
}

fn spawn(pool: &Pool) -> io::Result<(Child, Watched)> {
    let mut run = shell(&format!("{}{}", warden::WAIT, pool.command.expose()));
    run.stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mark = warden::mark(&mut run);
    let child = run.spawn()?;
    // A child that was just started was not waited for.
    let leader = child.id().unwrap_or_default();
    let watched = Watched::new(leader, mark)?;
    Ok((child, watched))
}

/// Writes what there is until no more is to come, and closes the input. One that cannot be written to is about to
/// end: whoever waits for that sees it.
async fn write(mut stdin: ChildStdin, pool: &Pool, seat: usize) {
    while let Some(bytes) = pool.outgoing(seat) {
        if bytes.is_empty() {
            pool.news(seat).await;
        } else if stdin.write_all(&bytes).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Reads until the output ends, or what comes is no answer: what is wrong with it.
async fn read(
    mut stdout: ChildStdout,
    pool: &Pool,
    seat: usize,
    answers: &AtomicBool,
) -> Option<String> {
    let mut incoming = Incoming::new(pool.format, pool.longest);
    let mut chunk = vec![0; CHUNK];
    while let Ok(count @ 1..) = stdout.read(&mut chunk).await {
        // What it said on its standard error before that is heard first.
        tokio::task::yield_now().await;
        incoming.add(&chunk[..count]);
        loop {
            let message = match incoming.next() {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => return Some(format!("it wrote {error}")),
            };
            match answer(message, pool.format, &pool.limits) {
                Ok(answer) => {
                    if pool.heard(seat, answer) {
                        answers.store(true, Ordering::Relaxed);
                    }
                }
                Err(problem) => return Some(format!("what it wrote is no answer: {problem}")),
            }
        }
    }
    None
}
