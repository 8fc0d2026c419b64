//! The server's clock, by which times are compared, and the local one.

use crate::connect::error::BusError;
use crate::connect::resp::wire::{Token, Wire};
use redis::{Cmd, FromRedisValue, ParsingError, Value};
use std::time::{Duration, Instant, SystemTime};

/// The longest time that is counted with, a hundred years: what is longer never ends, and would
/// overflow a clock.
pub const NEVER: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// A length of time in whole ms, [`NEVER`] at the most.
pub fn whole_ms(length: Duration) -> u64 {
    length.min(NEVER).as_millis() as u64
}

/// When the key ends that tells the time where the server has no `TIME` (see `server_time.lua`), in Unix
/// milliseconds: 2100-01-01.
const ENDS: u64 = 4_102_444_800_000;

/// How the server is asked for its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockSource {
    /// By `TIME`.
    Time,
    /// By what is left of the key that ends at a fixed moment.
    Key,
}

impl ClockSource {
    /// The command that asks, which a [`ServerTime`] answers; the key lies in the slot of `beside`.
    pub fn question(self, beside: &str) -> Cmd {
        let mut command = Cmd::new();
        for word in self.words(beside) {
            command.arg(word);
        }
        command
    }

    fn words(self, beside: &str) -> Vec<String> {
        match self {
            ClockSource::Time => vec!["TIME".to_owned()],
            ClockSource::Key => vec!["PTTL".to_owned(), key_beside(beside)],
        }
    }
}

/// The key that tells the time, in the slot of another one.
fn key_beside(key: &str) -> String {
    debug_assert!(
        !key.is_empty(),
        "it would be of no namespace, nor of a known slot"
    );
    let tag = key.strip_prefix('{').and_then(|rest| rest.split_once('}'));
    match tag {
        Some((tag, _)) => format!("{{{tag}}}:clock"),
        None => format!("{}:clock", key.split(':').next().unwrap_or_default()),
    }
}

/// Makes the key that tells the time in the slot of another one.
pub(crate) async fn make(wire: &mut Wire, beside: &str) -> Result<(), BusError> {
    let (key, ends) = (key_beside(beside), ENDS.to_string());
    let words: [&[u8]; 5] = [b"SET", key.as_bytes(), b"", b"PXAT", ends.as_bytes()];
    wire.ask(&words).await?;
    Ok(())
}

/// The server's time, in Unix milliseconds. Where the key that tells it is not there yet, which a worker
/// or the first script that writes makes: this machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerTime(pub u64);

impl ServerTime {
    /// From what is left of the key.
    fn of_rest(rest: i64) -> Self {
        Self(u64::try_from(rest).map_or_else(|_| local_now(), |rest| ENDS.saturating_sub(rest)))
    }
}

impl FromRedisValue for ServerTime {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        match value {
            Value::Int(rest) => Ok(Self::of_rest(rest)),
            told => <(u64, u64)>::from_redis_value(told).map(|told| Self(server_ms(told))),
        }
    }
}

/// The server's clock, read once and carried on by the local monotonic one.
#[derive(Clone, Copy, Debug)]
pub struct ServerClock {
    at: Instant,
    ms: u64,
}

impl ServerClock {
    /// The time that the server told, in Unix milliseconds.
    pub fn told(ms: u64) -> Self {
        let at = Instant::now();
        Self { at, ms }
    }

    /// Unix milliseconds on the server now.
    pub fn now(&self) -> u64 {
        self.ms + self.at.elapsed().as_millis() as u64
    }

    /// Asks the server.
    pub(crate) async fn read(
        wire: &mut Wire,
        source: ClockSource,
        beside: &str,
    ) -> Result<Self, BusError> {
        const SHAPE: BusError = BusError::Reply { what: "TIME" };
        let at = Instant::now();
        let words = source.words(beside);
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let mut time = wire.ask(&words).await?;
        let number = |text| std::str::from_utf8(text).ok()?.parse::<u64>().ok();
        let ms = match time.token()? {
            Token::Int(rest) => ServerTime::of_rest(rest).0,
            Token::Array(2) => {
                let (Token::Bulk(seconds), Token::Bulk(micros)) = (time.token()?, time.token()?)
                else {
                    return Err(SHAPE);
                };
                let told = number(seconds).zip(number(micros)).ok_or(SHAPE)?;
                server_ms(told)
            }
            _ => return Err(SHAPE),
        };
        Ok(Self { at, ms })
    }
}

/// What `TIME` answers (seconds and microseconds), in Unix milliseconds.
fn server_ms((seconds, micros): (u64, u64)) -> u64 {
    seconds * 1000 + micros / 1000
}

/// Unix milliseconds by the local clock.
pub fn local_now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_that_tells_the_time_lies_in_the_slot_of_the_other() {
        for (key, clock) in [
            ("cb:events:image", "cb:clock"),
            ("{cb}:instance:w-1", "{cb}:clock"),
            ("{cb:image:3}:events", "{cb:image:3}:clock"),
        ] {
            assert_eq!(key_beside(key), clock);
        }
        let script = include_str!("server_time.lua");
        assert!(script.contains(&ENDS.to_string()));
        assert_eq!(ServerTime::of_rest(1000).0, ENDS - 1000);
    }
}
