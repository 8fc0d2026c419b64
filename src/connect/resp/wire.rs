//! RESP by hand, for the paths on which a general client costs more than the server does: reading a
//! group, committing, publishing in pipelines.
//!
//! A [`Wire`] is one connection. Commands are written into one buffer and sent in one go; answers are
//! walked where they arrived, without building values. Its holder sends, reads as many replies as
//! it sent commands, and drops the wire after the first error: what it carries is then unknown.

mod commands;
mod dial;
#[cfg(test)]
mod tests;
mod token;

pub use commands::Commands;
pub(crate) use token::number;
pub use token::{NoResp, Token, Tokens};

use crate::connect::epoch::Epoch;
use crate::connect::error::{BusError, is_crowded};
use crate::connect::locator::Generation;
use crate::connect::resp::sieve::{Shape, Sieve};
use crate::connect::socket::CONNECT;
use crate::connect::tls::Tls;
use dial::{Stream, connect};
use futures_util::FutureExt;
use redis::{ConnectionInfo, ErrorKind, RedisError, Value};
use std::time::Duration;
use std::{fmt, io};
use token::Extent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Bytes that one read from the socket asks for.
const CHUNK: usize = 64 * 1024;
/// Bytes that a buffer keeps when it is empty.
const KEPT: usize = 1024 * 1024;

/// One connection that speaks RESP.
pub struct Wire {
    stream: Box<dyn Stream>,
    input: Vec<u8>,
    /// Where in `input` the next reply begins.
    begin: usize,
    /// A reply that came through a sieve.
    sifted: Vec<u8>,
    answer: Duration,
    /// Where the primary can move: whether it is where it was.
    pub(crate) generation: Option<Generation>,
    /// The history of the data that the server named when it was connected, if it did.
    pub(crate) epoch: Option<Epoch>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl Wire {
    /// Connects and authenticates. Every answer must arrive within `answer`.
    ///
    /// # Errors
    /// `Redis`: no connection, or refused credentials.
    pub async fn open(
        info: &ConnectionInfo,
        tls: &Tls,
        answer: Duration,
    ) -> Result<Self, BusError> {
        let stream = timeout(CONNECT, connect(info.addr(), tls))
            .await
            .map_err(|_| timed_out())??;
        let mut wire = Self {
            stream,
            input: Vec::new(),
            begin: 0,
            sifted: Vec::new(),
            answer: answer.min(CONNECT),
            generation: None,
            epoch: None,
        };
        let settings = info.redis_settings();
        let mut commands = Commands::default();
        match (settings.username(), settings.password()) {
            (Some(user), Some(password)) => {
                commands.add(&[b"AUTH", user.as_bytes(), password.as_bytes()]);
            }
            (None, Some(password)) => commands.add(&[b"AUTH", password.as_bytes()]),
            (_, None) => {}
        }
        if settings.db() != 0 {
            let db = settings.db().to_string();
            commands.add(&[b"SELECT", db.as_bytes()]);
        }
        let accepted = commands.len();
        if accepted > 0 {
            wire.send(&mut commands).await?;
        }
        for _ in 0..accepted {
            if let Token::Error(text) = wire.reply().await?.token()? {
                return Err(refused(text));
            }
        }
        wire.answer = answer;
        Ok(wire)
    }

    /// Sends commands and empties their buffer. As many replies must be read.
    ///
    /// # Errors
    /// `Redis`: what arrived is unknown; drop the wire. `Moved`: nothing was sent; drop the wire.
    pub async fn send(&mut self, commands: &mut Commands) -> Result<(), BusError> {
        if let Some(generation) = &self.generation
            && let Err(moved) = generation.check()
        {
            commands.clear();
            return Err(moved);
        }
        let write = async {
            self.stream.write_all(&commands.bytes).await?;
            self.stream.flush().await
        };
        let written = timeout(self.answer, write)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        commands.clear();
        Ok(written.map_err(RedisError::from)?)
    }

    /// Whether nothing has arrived that nobody asked for, nor the end of the connection: whoever kept
    /// it idle may go on with it.
    pub fn is_quiet(&mut self) -> bool {
        let mut unasked = [0; 1];
        let read = self.stream.read(&mut unasked);
        self.begin == self.input.len() && read.now_or_never().is_none()
    }

    /// Sends one command; its reply.
    ///
    /// # Errors
    /// `Redis`: as [`Wire::send`] and [`Wire::reply`], or what the server refused.
    pub async fn ask(&mut self, words: &[&[u8]]) -> Result<Tokens<'_>, BusError> {
        let mut command = Commands::default();
        command.add(words);
        self.send(&mut command).await?;
        let reply = self.reply().await?;
        match reply.clone().token()? {
            Token::Error(text) => Err(server_error(text)),
            _ => Ok(reply),
        }
    }

    /// The next reply.
    ///
    /// # Errors
    /// `Redis`: it did not arrive in time, or the connection broke; drop the wire.
    pub async fn reply(&mut self) -> Result<Tokens<'_>, BusError> {
        let mut extent = Extent::START;
        let length = match extent.find(&self.input[self.begin..])? {
            Some(length) => length,
            None => timeout(self.answer, self.receive(extent))
                .await
                .map_err(|_| timed_out())??,
        };
        let begin = self.begin;
        self.begin += length;
        Ok(Tokens::new(&self.input[begin..self.begin]))
    }

    /// The next reply, to a read of entries. Of an entry whose fields are over `limit` bytes they are cut,
    /// and followed by a status: how many bytes they had. Each part of it must arrive in time.
    ///
    /// # Errors
    /// As [`Wire::reply`].
    pub async fn sifted(&mut self, shape: Shape, limit: usize) -> Result<Tokens<'_>, BusError> {
        let mut extent = Extent::START;
        loop {
            if let Some(length) = extent.find(&self.input[self.begin..])? {
                let begin = self.begin;
                self.begin += length;
                return Ok(Tokens::new(&self.input[begin..self.begin]));
            }
            // Within the bound as a whole, it has no entry over it.
            let known = extent.at.max(self.input.len() - self.begin);
            if known > limit {
                break;
            }
            self.receive_more(known).await?;
        }
        let mut sieve = Sieve::new(shape, limit);
        self.sifted.clear();
        self.sifted.shrink_to(KEPT);
        loop {
            let arrived = &self.input[self.begin..];
            self.begin += sieve.pass(arrived, &mut self.sifted)?;
            if sieve.is_done() {
                return Ok(Tokens::new(&self.sifted));
            }
            self.receive_more(0).await?;
        }
    }

    /// Receives what comes next of a reply of which this many bytes are known; it begins at the start of
    /// the input then.
    async fn receive_more(&mut self, known: usize) -> Result<(), BusError> {
        self.input.drain(..self.begin);
        self.begin = 0;
        if self.input.is_empty() {
            self.input.shrink_to(KEPT);
        }
        // What is missing of a long value, at once.
        let missing = known.saturating_sub(self.input.len());
        self.input.reserve(missing.clamp(CHUNK, 16 * CHUNK));
        let read = timeout(self.answer, self.stream.read_buf(&mut self.input)).await;
        let read = read.map_err(|_| timed_out())?;
        if read.map_err(RedisError::from)? == 0 {
            let closed = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(RedisError::from(closed).into());
        }
        Ok(())
    }

    /// Receives until a reply is whole; it begins at the start of the input then.
    async fn receive(&mut self, mut extent: Extent) -> Result<usize, BusError> {
        self.input.drain(..self.begin);
        self.begin = 0;
        if self.input.is_empty() {
            self.input.shrink_to(KEPT);
        }
        loop {
            // What is missing of a long value, at once.
            let missing = extent.at.saturating_sub(self.input.len());
            self.input.reserve(missing.clamp(CHUNK, 16 * CHUNK));
            let read = self.stream.read_buf(&mut self.input).await;
            if read.map_err(RedisError::from)? == 0 {
                let closed = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(RedisError::from(closed).into());
            }
            if let Some(length) = extent.find(&self.input)? {
                return Ok(length);
            }
        }
    }
}

/// What the server refused, with its code.
pub fn server_error(text: &[u8]) -> BusError {
    // The library's own parser, so that an error reads and is classified the same on every path.
    let line = [b"-", text, b"\r\n"].concat();
    match redis::parse_redis_value(&line) {
        Ok(Value::ServerError(error)) => RedisError::from(error).into(),
        Err(error) => error.into(),
        Ok(_) => NoResp.into(),
    }
}

/// Refused credentials, or a database that is not there: trying again helps nothing.
fn refused(text: &[u8]) -> BusError {
    let error = server_error(text);
    match error.code() {
        _ if matches!(&error, BusError::Redis(error) if is_crowded(error)) => error,
        Some("WRONGPASS" | "ERR") => BusError::Redis(RedisError::from((
            ErrorKind::AuthenticationFailed,
            "the server refused the credentials or the database",
            String::from_utf8_lossy(text).into_owned(),
        ))),
        _ => error,
    }
}

fn timed_out() -> BusError {
    RedisError::from(io::Error::from(io::ErrorKind::TimedOut)).into()
}
