//! What it takes to start a command, and what the system may not have at the moment: descriptors,
//! processes, memory. That is no fault of the event. It is said once, and waited out.

use crate::mutex::locked;
use crate::protocol::error::HandlerError;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Descriptors that a command leaves for the worker itself: it must be able to connect and to pulse.
const SPARE: usize = 8;
/// How long a run waits in its place until its command can be started.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it is to come again later after that.
const LATER: Duration = Duration::from_secs(1);
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);
/// How long nothing must have been scarce before that is told, and can be told again.
const CALM: Duration = Duration::from_secs(10);

/// When something was scarce last; none after it was told that it is not any more.
static SCARCE: Mutex<Option<Instant>> = Mutex::new(None);

fn scarce() -> MutexGuard<'static, Option<Instant>> {
    locked(&SCARCE)
}

/// Whether that is an error of a system that is short of something.
pub(super) fn is_scarcity(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| {
        [Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::NOMEM].contains(&errno)
    })
}

/// Starts what needs descriptors, as soon as the system has them.
///
/// # Errors
/// A refusal, which spends no attempt, if it still has none after a while; `unavailable` for what does
/// not pass by itself.
pub(super) async fn start<T>(start: impl FnMut() -> io::Result<T>) -> Result<T, HandlerError> {
    start_within(PATIENCE, start).await
}

async fn start_within<T>(
    patience: Duration,
    mut start: impl FnMut() -> io::Result<T>,
) -> Result<T, HandlerError> {
    let began = Instant::now();
    loop {
        let started = spare().and_then(|_spare| start());
        let error = match started {
            Ok(started) => {
                calm();
                return Ok(started);
            }
            Err(error) => error,
        };
        let message = format!("the command cannot be started: {error}");
        if !is_scarcity(&error) {
            return Err(HandlerError::unavailable(message));
        }
        if scarce().replace(Instant::now()).is_none() {
            tracing::warn!(%error, "commands cannot be started now: their events wait, and no attempt is spent");
        }
        if began.elapsed() >= patience {
            return Err(HandlerError::later(LATER, message));
        }
        tokio::time::sleep(PAUSE.mul_f64(fastrand::f64() + 0.5)).await;
    }
}

/// Holds descriptors while something is started, so that they are left afterwards.
fn spare() -> io::Result<Vec<File>> {
    (0..SPARE).map(|_| File::open("/dev/null")).collect()
}

/// Something was started.
fn calm() {
    let mut scarce = scarce();
    if scarce.is_some_and(|last| last.elapsed() >= CALM) {
        *scarce = None;
        tracing::info!("commands are started again without waiting");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::error::Refusal;

    #[tokio::test]
    async fn what_is_scarce_is_waited_for_and_spends_no_attempt() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::NOMEM] {
            let mut tries = 0;
            let started = start(|| {
                tries += 1;
                match tries {
                    1 | 2 => Err(errno.into()),
                    tries => Ok(tries),
                }
            });
            assert_eq!(started.await, Ok(3));
            let refused = start_within(Duration::ZERO, || Err::<(), _>(errno.into()));
            let refused = refused.await.unwrap_err();
            assert_eq!(refused.refusal, Some(Refusal::Busy), "{refused}");
        }
        let missing = start(|| Err::<(), _>(Errno::NOENT.into()))
            .await
            .unwrap_err();
        assert_eq!((missing.refusal, missing.retryable), (None, true));
    }
}
