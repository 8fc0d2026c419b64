//! The server's clock, by which times are compared, and the local one.

use super::error::BusError;
use super::wire::{Token, Wire};
use std::time::{Instant, SystemTime};

/// The server's clock, read once and carried on by the local monotonic one.
#[derive(Clone, Copy, Debug)]
pub struct ServerClock {
    at: Instant,
    ms: u64,
}

impl ServerClock {
    /// It is so late now, in Unix milliseconds.
    pub fn told(ms: u64) -> Self {
        let at = Instant::now();
        Self { at, ms }
    }

    /// Unix milliseconds on the server now.
    pub fn now(&self) -> u64 {
        self.ms + self.at.elapsed().as_millis() as u64
    }

    /// Asks the server.
    pub(super) async fn read(wire: &mut Wire) -> Result<Self, BusError> {
        let at = Instant::now();
        let mut time = wire.ask(&[b"TIME"]).await?;
        let (Token::Array(2), Token::Bulk(seconds), Token::Bulk(micros)) =
            (time.token()?, time.token()?, time.token()?)
        else {
            return Err(BusError::Reply { what: "TIME" });
        };
        let number = |text| std::str::from_utf8(text).ok()?.parse::<u64>().ok();
        let (Some(seconds), Some(micros)) = (number(seconds), number(micros)) else {
            return Err(BusError::Reply { what: "TIME" });
        };
        let ms = server_ms((seconds, micros));
        Ok(Self { at, ms })
    }
}

/// What `TIME` answers (seconds and microseconds), in Unix milliseconds.
pub fn server_ms((seconds, micros): (u64, u64)) -> u64 {
    seconds * 1000 + micros / 1000
}

/// Unix milliseconds by the local clock.
pub fn local_now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
