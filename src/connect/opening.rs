//! What is learned from tries to connect: a server that refused the credentials is not asked for them
//! again at once, and one that closed the connection without a word is asked why.
//!
//! A server without room for another client says so and closes, often before it read what was sent; the
//! system then throws away what it said. So such a failure is looked into: by a connection that sends
//! nothing, on which the words arrive.

use crate::connect::error::{BusError, is_crowded};
use crate::connect::resp::wire::server_error;
use crate::mutex::locked;
use redis::{ConnectionAddr, ErrorKind, RedisError};
use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout};

/// The pause after the first refusal of the credentials; doubled for each further one.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(15);
/// How long a server has to say why it closes.
const WORDS: Duration = Duration::from_millis(300);

/// What all connections to one place learned.
#[derive(Debug, Default)]
pub(crate) struct Opening(Mutex<Option<Refusal>>);

/// The last refusal of the credentials, since which none was accepted.
struct Refusal {
    error: RedisError,
    until: Instant,
    times: u32,
    /// Which credentials were refused.
    login: u64,
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusal").finish_non_exhaustive()
    }
}

/// An error that may be one of the client library.
pub(crate) trait Failure: From<RedisError> {
    fn redis(&self) -> Option<&RedisError>;
}

impl Failure for RedisError {
    fn redis(&self) -> Option<&RedisError> {
        Some(self)
    }
}

impl Failure for BusError {
    fn redis(&self) -> Option<&RedisError> {
        match self {
            BusError::Redis(error) => Some(error),
            _ => None,
        }
    }
}

impl Opening {
    /// Opens a connection to that address. Within the pause after a refusal of the same credentials, counted
    /// by `login`, it is refused here.
    pub(crate) async fn open<T, E: Failure>(
        &self,
        login: u64,
        address: &ConnectionAddr,
        open: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        if let Some(refusal) = &*self.last()
            && Instant::now() < refusal.until
            && login == refusal.login
        {
            return Err(refusal.error.clone().into());
        }
        let failure = match open.await {
            Ok(made) => {
                *self.last() = None;
                return Ok(made);
            }
            Err(failure) => failure,
        };
        match failure.redis() {
            Some(error) if error.kind() == ErrorKind::AuthenticationFailed => {
                self.note(error, login)
            }
            Some(error) if error.is_connection_dropped() => {
                if let Some(said) = last_words(address).await {
                    return Err(said.into());
                }
            }
            _ => {}
        }
        Err(failure)
    }

    fn note(&self, error: &RedisError, login: u64) {
        let mut last = self.last();
        let same = last.as_ref().filter(|refusal| refusal.login == login);
        let times = same.map_or(0, |refusal| refusal.times);
        *last = Some(Refusal {
            error: error.clone(),
            until: Instant::now() + pause(times),
            times: times.saturating_add(1),
            login,
        });
    }

    fn last(&self) -> MutexGuard<'_, Option<Refusal>> {
        locked(&self.0)
    }
}

fn pause(refusals: u32) -> Duration {
    (FIRST * (1 << refusals.min(8))).min(LONGEST)
}

/// What a server says to a connection that it closes at once. By TLS it says nothing.
async fn last_words(address: &ConnectionAddr) -> Option<RedisError> {
    let listen = async {
        match address {
            ConnectionAddr::Tcp(host, port) => {
                said(TcpStream::connect((host.as_str(), *port)).await.ok()?).await
            }
            ConnectionAddr::Unix(path) => said(UnixStream::connect(path).await.ok()?).await,
            _ => None,
        }
    };
    timeout(WORDS, listen).await.ok().flatten()
}

async fn said(stream: impl AsyncRead + Unpin) -> Option<RedisError> {
    let mut words = Vec::new();
    stream.take(1000).read_to_end(&mut words).await.ok()?;
    let text = words.strip_prefix(b"-")?.strip_suffix(b"\r\n")?;
    match server_error(text) {
        BusError::Redis(error) => Some(error).filter(is_crowded),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn refused_credentials_are_not_tried_again_at_once() {
        let (opening, tries) = (Opening::default(), Cell::new(0));
        let nowhere = ConnectionAddr::Unix("/nowhere".into());
        let attempt_as = |login: u64, accepted: bool| {
            let tries = &tries;
            opening.open(login, &nowhere, async move {
                tries.set(tries.get() + 1);
                match accepted {
                    true => Ok(()),
                    false => Err(RedisError::from((
                        ErrorKind::AuthenticationFailed,
                        "refused",
                    ))),
                }
            })
        };
        let attempt = |accepted| attempt_as(0, accepted);
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(60) {
            assert!(attempt(false).await.is_err());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // After 0, 1, 3, 7, 15, 30 and 45 s, or a little later.
        assert_eq!(tries.get(), 7);
        // The pause is waited out, and then all is forgotten.
        tokio::time::sleep(LONGEST).await;
        assert!(attempt(true).await.is_ok());
        assert!(attempt(false).await.is_err());
        tokio::time::sleep(FIRST).await;
        assert!(attempt(true).await.is_ok());
        assert_eq!(tries.get(), 10);
        // Others are tried at once.
        assert!(attempt(false).await.is_err());
        assert!(attempt_as(1, true).await.is_ok());
        assert_eq!(tries.get(), 12);
    }
}
