//! RESP by hand, for the paths on which a general client costs more than the server does: reading a
//! group, committing, publishing in pipelines.
//!
//! A [`Wire`] is one connection. Commands are written into one buffer and sent in one go; answers are
//! walked where they arrived, without building values. Its holder sends, reads as many replies as
//! it sent commands, and drops the wire after the first error: what it carries is then unknown.

use crate::connect::connector::CONNECT;
use crate::connect::error::{BusError, is_crowded};
use crate::connect::resp::sieve::{Shape, Sieve};
use crate::connect::sentinel::Generation;
use crate::connect::tls::Tls;
use crate::protocol::digits::Digits;
use futures_util::FutureExt;
use redis::io::tcp::socket2::SockRef;
use redis::{ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, Value};
use std::fmt;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

/// Bytes that one read from the socket asks for.
const CHUNK: usize = 64 * 1024;
/// Bytes that a buffer keeps when it is empty.
const KEPT: usize = 1024 * 1024;

/// A byte stream to a server.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for S {}

/// Bytes around a word at the most.
const AROUND: usize = 25;

/// Commands, ready to be sent.
#[derive(Default)]
pub struct Commands {
    bytes: Vec<u8>,
    count: usize,
}

impl Commands {
    /// Adds a whole command.
    pub fn add(&mut self, words: &[&[u8]]) {
        self.begin(words.len());
        for word in words {
            self.word(word);
        }
    }

    /// Begins a command of this many words; [`Commands::word`] gives them.
    pub fn begin(&mut self, words: usize) {
        self.count += 1;
        self.bytes.push(b'*');
        self.bytes
            .extend_from_slice(Digits::of(words as u64).as_ref());
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// The next word of the command that was begun.
    pub fn word(&mut self, word: &[u8]) {
        // One place is made for all of it: this is where publishing spends its time.
        self.bytes.reserve(word.len() + AROUND);
        match word.len() {
            length @ 0..10 => {
                self.bytes
                    .extend_from_slice(&[b'$', b'0' + length as u8, b'\r', b'\n'])
            }
            length @ 10..100 => self.bytes.extend_from_slice(&[
                b'$',
                b'0' + (length / 10) as u8,
                b'0' + (length % 10) as u8,
                b'\r',
                b'\n',
            ]),
            length => {
                self.bytes.push(b'$');
                self.bytes
                    .extend_from_slice(Digits::of(length as u64).as_ref());
                self.bytes.extend_from_slice(b"\r\n");
            }
        }
        self.bytes.extend_from_slice(word);
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// How many commands there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// They as they are sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
        self.count = 0;
    }
}

/// One value of a reply; an array is followed by its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// `+`
    Status(&'a [u8]),
    /// `-`
    Error(&'a [u8]),
    /// `:`
    Int(i64),
    /// `$`
    Bulk(&'a [u8]),
    /// `*`, with the number of values that follow.
    Array(usize),
    /// A bulk string or an array that is not there.
    Nil,
}

/// Bytes that are no RESP, or end early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoResp;

#[doc(hidden)]
impl From<NoResp> for BusError {
    fn from(_: NoResp) -> Self {
        BusError::Redis(RedisError::from((
            ErrorKind::Parse,
            "the server answered what is no RESP",
        )))
    }
}

/// The values of one reply, in order.
#[derive(Clone, Debug)]
pub struct Tokens<'a>(&'a [u8]);

impl<'a> Tokens<'a> {
    /// Those in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next one.
    ///
    /// # Errors
    /// The bytes end, or are no RESP.
    pub fn token(&mut self) -> Result<Token<'a>, NoResp> {
        let (head, rest) = line(self.0).ok_or(NoResp)?;
        let (&kind, text) = head.split_first().ok_or(NoResp)?;
        let token = match kind {
            b'+' => Token::Status(text),
            b'-' => Token::Error(text),
            b':' => Token::Int(number(text).ok_or(NoResp)?),
            b'*' | b'$' => match number(text).ok_or(NoResp)? {
                -1 => Token::Nil,
                length if kind == b'*' => {
                    Token::Array(usize::try_from(length).map_err(|_| NoResp)?)
                }
                length => {
                    let length = usize::try_from(length).map_err(|_| NoResp)?;
                    let bulk = rest.get(..length).ok_or(NoResp)?;
                    self.0 = rest.get(length + 2..).ok_or(NoResp)?;
                    return Ok(Token::Bulk(bulk));
                }
            },
            _ => return Err(NoResp),
        };
        self.0 = rest;
        Ok(token)
    }

    /// Passes over the next value, whatever it holds.
    ///
    /// # Errors
    /// As [`Tokens::token`].
    pub fn skip(&mut self) -> Result<(), NoResp> {
        let mut left = 1_usize;
        while left > 0 {
            left -= 1;
            if let Token::Array(length) = self.token()? {
                left = left.checked_add(length).ok_or(NoResp)?;
            }
        }
        Ok(())
    }

    /// What is left.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }
}

/// The bytes up to the first line's end, and those after it; `None` if there is no end.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&b| b == b'\r')?;
    match bytes.get(end + 1)? {
        b'\n' => Some((&bytes[..end], &bytes[end + 2..])),
        _ => None,
    }
}

pub(crate) fn number(text: &[u8]) -> Option<i64> {
    // Most are lengths of one to three digits.
    if (1..=9).contains(&text.len()) && text.iter().all(u8::is_ascii_digit) {
        return Some(
            text.iter()
                .fold(0, |number, digit| number * 10 + i64::from(digit - b'0')),
        );
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Finds the end of a reply in bytes that arrive bit by bit, looking at each byte once.
#[derive(Clone, Copy, Debug)]
struct Extent {
    at: usize,
    left: u64,
}

impl Extent {
    const START: Extent = Extent { at: 0, left: 1 };

    /// The end, if it is within `bytes`.
    fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, NoResp> {
        while self.left > 0 {
            let Some(rest) = bytes.get(self.at..) else {
                return Ok(None);
            };
            let Some(end) = rest.iter().position(|&b| b == b'\n') else {
                return Ok(None);
            };
            let head = rest[..end].strip_suffix(b"\r").ok_or(NoResp)?;
            let (&kind, text) = head.split_first().ok_or(NoResp)?;
            self.at += end + 1;
            self.left -= 1;
            match kind {
                b'+' | b'-' | b':' => {}
                b'*' | b'$' => {
                    let length = number(text).filter(|n| *n >= -1).ok_or(NoResp)?;
                    match u64::try_from(length) {
                        Ok(length) if kind == b'*' => {
                            self.left = self.left.checked_add(length).ok_or(NoResp)?;
                        }
                        Ok(length) => {
                            let length = usize::try_from(length).map_err(|_| NoResp)?;
                            self.at = self.at.checked_add(length + 2).ok_or(NoResp)?;
                        }
                        Err(_) => {}
                    }
                }
                _ => return Err(NoResp),
            }
        }
        Ok((self.at <= bytes.len()).then_some(self.at))
    }
}

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

async fn connect(address: &ConnectionAddr, tls: &Tls) -> Result<Box<dyn Stream>, BusError> {
    Ok(match address {
        ConnectionAddr::Tcp(host, port) => Box::new(tcp(host, *port).await?),
        ConnectionAddr::TcpTls {
            host,
            port,
            insecure: false,
            ..
        } => {
            let name = ServerName::try_from(host.clone())
                .map_err(|_| misconfigured(format!("{host:?} cannot be the name of a server")))?;
            let connector = TlsConnector::from(tls.config()?);
            let stream = connector.connect(name, tcp(host, *port).await?).await;
            Box::new(stream.map_err(RedisError::from)?)
        }
        ConnectionAddr::Unix(path) => {
            Box::new(UnixStream::connect(path).await.map_err(RedisError::from)?)
        }
        _ => {
            return Err(misconfigured(
                "TLS without a check of the server's certificate is not supported".into(),
            ));
        }
    })
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream, BusError> {
    let stream = TcpStream::connect((host, port)).await;
    let stream = stream.map_err(RedisError::from)?;
    let socket = SockRef::from(&stream);
    crate::connect::connector::tune(&socket).map_err(RedisError::from)?;
    Ok(stream)
}

fn misconfigured(what: String) -> BusError {
    BusError::Redis(RedisError::from((
        ErrorKind::InvalidClientConfig,
        "the connection cannot be made",
        what,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_refused_credentials_are_final() {
        use crate::connect::error::Reaction;
        let reaction = |text: &[u8]| refused(text).reaction();
        assert_eq!(reaction(b"WRONGPASS invalid"), Reaction::GiveUp);
        assert_eq!(reaction(b"ERR DB index is out of range"), Reaction::GiveUp);
        // What is read where the answer to AUTH should be.
        let crowded = b"ERR max number of clients reached";
        assert_eq!(reaction(crowded), Reaction::Reconnect);
    }

    fn found(bytes: &[u8]) -> Result<Option<usize>, NoResp> {
        let mut extent = Extent::START;
        extent.find(bytes)
    }

    #[test]
    fn a_reply_ends_where_it_ends() {
        let replies: [&[u8]; 9] = [
            b"+OK\r\n",
            b"-ERR no\r\n",
            b":-7\r\n",
            b"$-1\r\n",
            b"$0\r\n\r\n",
            b"$4\r\na\r\nb\r\n",
            b"*-1\r\n",
            b"*0\r\n",
            b"*2\r\n*1\r\n$1\r\nx\r\n:1\r\n",
        ];
        for reply in replies {
            let more = [reply, b"+NEXT\r\n"].concat();
            assert_eq!(found(&more), Ok(Some(reply.len())), "{reply:?}");
            for cut in 0..reply.len() {
                assert_eq!(found(&reply[..cut]), Ok(None), "{reply:?} cut at {cut}");
            }
            let mut tokens = Tokens::new(reply);
            assert_eq!(tokens.skip(), Ok(()));
            assert!(tokens.rest().is_empty());
        }
    }

    #[test]
    fn what_is_no_resp_is_refused() {
        for bad in [
            &b"hello\r\n"[..],
            b"$x\r\n",
            b"$-2\r\n",
            b"*-2\r\n",
            b"\r\n",
            b"+OK\n",
            b"*9223372036854775807\r\n*9223372036854775807\r\n*9\r\n",
            b"$9223372036854775807\r\n",
        ] {
            let found = found(bad);
            assert!(matches!(found, Err(NoResp) | Ok(None)), "{found:?}");
        }
        assert_eq!(found(b"hello\r\n"), Err(NoResp));
    }

    #[test]
    fn an_error_is_the_librarys() {
        let error = server_error(b"NOGROUP No such key");
        assert_eq!(error.code(), Some("NOGROUP"));
        let error = server_error(b"READONLY You can't write");
        assert_eq!(error.code(), Some("READONLY"));
    }

    fn reply() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            "[A-Z ]{0,8}".prop_map(|text| format!("+{text}\r\n").into_bytes()),
            any::<i64>().prop_map(|number| format!(":{number}\r\n").into_bytes()),
            proptest::collection::vec(any::<u8>(), 0..30).prop_map(|bulk| {
                let mut bytes = format!("${}\r\n", bulk.len()).into_bytes();
                bytes.extend(bulk);
                bytes.extend(b"\r\n");
                bytes
            }),
            Just(b"$-1\r\n".to_vec()),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            proptest::collection::vec(inner, 0..6).prop_map(|parts| {
                let mut bytes = format!("*{}\r\n", parts.len()).into_bytes();
                bytes.extend(parts.concat());
                bytes
            })
        })
    }

    proptest! {
        #[test]
        fn a_reply_that_arrives_bit_by_bit_is_found_once_whole(reply in reply(), step in 1usize..9) {
            let mut extent = Extent::START;
            for end in (0..reply.len()).step_by(step) {
                prop_assert_eq!(extent.find(&reply[..end]), Ok(None));
            }
            prop_assert_eq!(extent.find(&reply), Ok(Some(reply.len())));
            let mut tokens = Tokens::new(&reply);
            prop_assert_eq!(tokens.skip(), Ok(()));
            prop_assert!(tokens.rest().is_empty());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            found(&bytes).ok();
            Tokens::new(&bytes).skip().ok();
        }

        #[test]
        fn commands_are_resp(words in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..20), 1..6)) {
            let mut commands = Commands::default();
            let borrowed: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            commands.add(&borrowed);
            let mut tokens = Tokens::new(&commands.bytes);
            prop_assert_eq!(tokens.token(), Ok(Token::Array(words.len())));
            for word in &borrowed {
                prop_assert_eq!(tokens.token(), Ok(Token::Bulk(word)));
            }
        }
    }
}
