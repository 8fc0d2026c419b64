//! The messages between a worker and a process: an event goes out, answers come in.

mod answer;

pub(super) use answer::{Answer, Says, answer};

use crate::handler::function::Encoded;
use crate::protocol::error::HandlerError;
use crate::protocol::event::Event;
use crate::protocol::json;
use crate::settings::PipeFormat;
use rmpv::Value as Packed;
use serde_json::{Map, Value};

/// Bytes of a length before a message.
const LENGTH: usize = 4;

/// The message that gives an event to a process.
pub(super) fn job(event: &Event, format: PipeFormat) -> Result<Vec<u8>, HandlerError> {
    match format {
        PipeFormat::Json => in_json(event),
        PipeFormat::Msgpack => Ok(in_msgpack(event)),
    }
}

fn in_json(event: &Event) -> Result<Vec<u8>, HandlerError> {
    let data = json::to_json(event.data())
        .map_err(|error| HandlerError::invalid_argument(error.to_string()))?;
    let mut fields = Map::new();
    let mut add = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    add("id", event.id().into());
    add("type", event.kind().into());
    add("attempt", event.attempt().into());
    if let Some(subject) = event.subject() {
        add("subject", subject.into());
    }
    if let Some(deadline) = event.deadline() {
        add("deadline_ms", deadline.into());
    }
    add("data", data);
    let mut line = Value::Object(fields).to_string().into_bytes();
    line.push(b'\n');
    Ok(line)
}

fn in_msgpack(event: &Event) -> Vec<u8> {
    let mut fields: Vec<(&str, Packed)> = vec![
        ("id", event.id().into()),
        ("type", event.kind().into()),
        ("attempt", event.attempt().into()),
    ];
    if let Some(subject) = event.subject() {
        fields.push(("subject", subject.into()));
    }
    if let Some(deadline) = event.deadline() {
        fields.push(("deadline_ms", deadline.into()));
    }
    let mut message = vec![0; LENGTH];
    // A map of fewer than 16 names. A vector takes every write.
    message.push(0x80 | (fields.len() as u8 + 1));
    let mut write = |value: &Packed| rmpv::encode::write_value(&mut message, value).ok();
    for (name, value) in &fields {
        write(&(*name).into());
        write(value);
    }
    write(&"data".into());
    message.extend_from_slice(event.data());
    let length = (message.len() - LENGTH) as u32;
    message[..LENGTH].copy_from_slice(&length.to_be_bytes());
    message
}

/// A message that is longer than may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong(usize);

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a message of more than {} bytes", self.0)
    }
}

/// What came from a process and is not read yet: never more than the longest message and what one read brings.
#[derive(Debug)]
pub(super) struct Incoming {
    format: PipeFormat,
    limit: usize,
    bytes: Vec<u8>,
    /// Where the next message begins.
    begin: usize,
    /// Up to where no line ends.
    searched: usize,
}

impl Incoming {
    pub(super) fn new(format: PipeFormat, limit: usize) -> Self {
        Self {
            format,
            limit,
            bytes: Vec::new(),
            begin: 0,
            searched: 0,
        }
    }

    /// Takes in what was read. All messages were taken out before.
    pub(super) fn add(&mut self, read: &[u8]) {
        self.bytes.drain(..self.begin);
        self.searched -= self.begin;
        self.begin = 0;
        self.bytes.extend_from_slice(read);
    }

    /// The next whole message.
    ///
    /// # Errors
    /// It is too long; the length alone tells that, before anything of it is kept.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, TooLong> {
        let found = match self.format {
            PipeFormat::Json => self.line()?,
            PipeFormat::Msgpack => self.framed()?,
        };
        let Some((from, to, next)) = found else {
            return Ok(None);
        };
        self.begin = next;
        self.searched = next;
        Ok(Some(&self.bytes[from..to]))
    }

    /// A line that is not blank.
    fn line(&mut self) -> Result<Option<(usize, usize, usize)>, TooLong> {
        loop {
            let rest = &self.bytes[self.searched..];
            let end = rest.iter().position(|byte| *byte == b'\n');
            let end = end.map(|end| end + self.searched);
            if end.unwrap_or(self.bytes.len()) - self.begin > self.limit {
                return Err(TooLong(self.limit));
            }
            let Some(end) = end else {
                self.searched = self.bytes.len();
                return Ok(None);
            };
            let from = self.begin;
            if !self.bytes[from..end].trim_ascii().is_empty() {
                return Ok(Some((from, end, end + 1)));
            }
            self.begin = end + 1;
            self.searched = end + 1;
        }
    }

    fn framed(&self) -> Result<Option<(usize, usize, usize)>, TooLong> {
        let rest = &self.bytes[self.begin..];
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > self.limit {
            return Err(TooLong(self.limit));
        }
        let from = self.begin + LENGTH;
        Ok((rest.len() >= length).then_some((from, from + length, from + length)))
    }
}

/// What a message that is absent means.
const NIL: u8 = 0xc0;

/// Nil.
fn nil() -> Encoded {
    vec![NIL]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::assembly::testing::context;

    fn taken(incoming: &mut Incoming) -> Result<Vec<Vec<u8>>, TooLong> {
        let mut all = Vec::new();
        while let Some(message) = incoming.next()? {
            all.push(message.to_vec());
        }
        Ok(all)
    }

    #[test]
    fn an_event_is_one_message_in_either_format() {
        let fields: [(&str, &[u8]); 4] = [
            ("id", b"e-1"),
            ("subject", b"s"),
            ("deadline", b"17"),
            ("data", &[0x81, 0xa1, b'a', 0xc4, 1, 0xff]),
        ];
        let context = context(&fields);
        let line = job(context.event(), PipeFormat::Json).unwrap();
        assert_eq!(
            String::from_utf8(line).unwrap(),
            "{\"id\":\"e-1\",\"type\":\"image.resize\",\"attempt\":1,\"subject\":\"s\",\"deadline_ms\":17,\
             \"data\":{\"a\":{\"$bin\":\"ff\"}}}\n"
        );
        let message = job(context.event(), PipeFormat::Msgpack).unwrap();
        let (length, packed) = message.split_first_chunk::<4>().unwrap();
        assert_eq!(u32::from_be_bytes(*length) as usize, packed.len());
        let value = json::to_json(packed).unwrap();
        assert_eq!(value["data"]["a"]["$bin"], "ff");
        assert_eq!(
            (&value["id"], &value["attempt"]),
            (&"e-1".into(), &1.into())
        );
    }

    #[test]
    fn messages_come_whole_however_they_are_cut() {
        let lines = b"{\"a\":1}\n\n {}\r\nrest";
        let framed = [0, 0, 0, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0, 1];
        for step in 1..lines.len() {
            let mut incoming = Incoming::new(PipeFormat::Json, 100);
            let mut all = Vec::new();
            for part in lines.chunks(step) {
                incoming.add(part);
                all.extend(taken(&mut incoming).unwrap());
            }
            assert_eq!(all, [&b"{\"a\":1}"[..], b" {}\r"]);
            let mut incoming = Incoming::new(PipeFormat::Msgpack, 100);
            let mut all = Vec::new();
            for part in framed.chunks(step) {
                incoming.add(part);
                all.extend(taken(&mut incoming).unwrap());
            }
            assert_eq!(all, [vec![1, 2], vec![]]);
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_before_it_is_there() {
        let mut lines = Incoming::new(PipeFormat::Json, 8);
        lines.add(b"12345678\n123456789");
        assert_eq!(lines.next(), Ok(Some(&b"12345678"[..])));
        assert_eq!(lines.next(), Err(TooLong(8)));
        let mut framed = Incoming::new(PipeFormat::Msgpack, 8);
        framed.add(&[0xff, 0xff, 0xff, 0xff]);
        assert_eq!(framed.next(), Err(TooLong(8)));
    }
}
