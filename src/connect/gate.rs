//! One try at a time to connect.

use crate::connect::backoff::reconnect_delay;
use crate::connect::error::BusError;
use crate::connect::socket::CONNECT;
use tokio::time::Instant;

/// Lets one caller at a time try to connect. After a failure it waits before the next try, and all
/// who waited for the same try share its failure.
#[derive(Default)]
pub(crate) struct Gate(tokio::sync::Mutex<Tries>);

#[derive(Default)]
struct Tries {
    failures: u32,
    failed: Option<(Instant, String)>,
}

impl Gate {
    /// What `find` finds, which is asked again when it is the caller's turn, or else what `open` makes.
    ///
    /// Cancel safe.
    pub(crate) async fn pass<T>(
        &self,
        find: impl Fn() -> Option<T>,
        open: impl Future<Output = Result<T, BusError>>,
    ) -> Result<T, String> {
        if let Some(found) = find() {
            return Ok(found);
        }
        let asked = Instant::now();
        let mut tries = self.0.lock().await;
        if let Some(found) = find() {
            return Ok(found);
        }
        if let Some((at, reason)) = &tries.failed {
            if *at >= asked {
                return Err(reason.clone());
            }
            let pause = reconnect_delay(tries.failures - 1);
            tokio::time::sleep_until(*at + pause).await;
        }
        // The library's limit does not cover every step of making a connection.
        let reason = match tokio::time::timeout(2 * CONNECT, open).await {
            Ok(Ok(made)) => {
                *tries = Tries::default();
                return Ok(made);
            }
            // It says so itself.
            Ok(Err(error @ BusError::Unreachable { .. })) => error.to_string(),
            Ok(Err(error)) => format!("cannot connect: {error}"),
            Err(_) => "cannot connect: no answer in time".to_owned(),
        };
        tries.failures += 1;
        tries.failed = Some((Instant::now(), reason.clone()));
        Err(reason)
    }
}
