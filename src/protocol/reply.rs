//! A reply: the fields of its entry ⇄ what they mean ([protocol](crate::docs::protocol#a-reply)).

use crate::protocol::error::Code;
use crate::protocol::event::{Entry, Limits};
use crate::protocol::mismatch::mismatch;
use crate::protocol::msgpack;
use serde::de::DeserializeOwned;
use std::fmt;

/// The reply of a handler that succeeded.
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    /// The id of the event that it answers.
    pub correlation_id: String,
    /// The event's type followed by `.result`.
    pub kind: String,
    /// The instance that handled it.
    pub source: Option<String>,
    /// When, Unix ms.
    pub time: Option<u64>,
    /// The result: one well-formed MessagePack value.
    pub data: Vec<u8>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("correlation_id", &self.correlation_id)
            .field("type", &self.kind)
            .finish_non_exhaustive()
    }
}

/// The reply of a handler that failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{code}: {message}")]
#[non_exhaustive]
pub struct RemoteError {
    /// What kind of failure; one that this version does not know is `internal`.
    pub code: Code,
    /// What happened.
    pub message: String,
    /// Whether trying again may help.
    pub retryable: bool,
    /// More for a program to read.
    pub details: Option<rmpv::Value>,
    /// The instance that handled it.
    pub source_instance: Option<String>,
}

/// A reply or a result that does not follow the protocol; the message names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reply is malformed: {0}")]
pub struct MalformedReply(pub String);

/// What a failed handler's reply carries as data.
#[derive(Default)]
struct Failure {
    message: String,
    retryable: Option<bool>,
    details: Option<rmpv::Value>,
}

impl Failure {
    /// From bytes that have been scanned.
    fn decode(mut data: &[u8]) -> Result<Self, MalformedReply> {
        let refused = |what: &str| MalformedReply(format!("data: {what}"));
        let value = rmpv::decode::read_value(&mut data);
        let Ok(rmpv::Value::Map(pairs)) = value else {
            return Err(refused("not a map of code, message and retryable"));
        };
        let mut failure = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                Some("message") => {
                    let text = value.as_str().ok_or_else(|| refused("message: no text"))?;
                    failure.message = text.to_owned();
                }
                Some("retryable") => failure.retryable = value.as_bool(),
                Some("details") if !value.is_nil() => failure.details = Some(value),
                _ => {}
            }
        }
        Ok(failure)
    }
}

const NIL: &[u8] = &[0xc0];

impl Reply {
    /// Checks an entry of a reply or result stream, its payload included.
    ///
    /// # Errors
    /// The outer one if the entry is no reply; the inner one is what a failed handler said.
    pub fn parse(
        entry: &Entry,
        limits: &Limits,
    ) -> Result<Result<Reply, RemoteError>, MalformedReply> {
        let text = |name: &str| match entry.get(name) {
            None => Ok(None),
            Some(value) if value.len() > limits.value => Err(MalformedReply(format!(
                "{name}: {} bytes are over the limit of {}",
                value.len(),
                limits.value
            ))),
            Some(value) => match std::str::from_utf8(value) {
                Ok(value) => Ok(Some(value.to_owned())),
                Err(_) => Err(MalformedReply(format!("{name}: not UTF-8"))),
            },
        };
        let needed =
            |name: &str| text(name)?.ok_or_else(|| MalformedReply(format!("{name}: missing")));
        let data = entry.get("data").unwrap_or(NIL);
        msgpack::scan(data, &limits.payload).map_err(|error| MalformedReply(error.to_string()))?;
        let correlation_id = needed("correlationid")?;
        let status = needed("status")?;
        let source = text("source")?;
        if status == "ok" {
            return Ok(Ok(Reply {
                correlation_id,
                kind: needed("type")?,
                source,
                time: text("time")?.and_then(|time| time.parse().ok()),
                data: data.to_vec(),
            }));
        }
        let failure = Failure::decode(data)?;
        let (code, message) = match Code::from_name(&status) {
            Some(code) => (code, failure.message),
            None => (Code::Internal, format!("{status}: {}", failure.message)),
        };
        Ok(Err(RemoteError {
            code,
            message,
            retryable: failure.retryable.unwrap_or(code.retryable()),
            details: failure.details,
            source_instance: source,
        }))
    }

    /// The result as a value of that type.
    ///
    /// # Errors
    /// Fails if the result is not one; the message names the field where it can.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, MalformedReply> {
        rmp_serde::from_slice(&self.data).map_err(|_| MalformedReply(mismatch::<T>(&self.data)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::event::EntryId;
    use proptest::prelude::*;

    fn parse(fields: &[(&str, &[u8])]) -> Result<Result<Reply, RemoteError>, MalformedReply> {
        let fields = fields
            .iter()
            .flat_map(|(name, value)| [name.as_bytes(), value]);
        let id = EntryId::default();
        Reply::parse(&Entry::new(id, fields), &Limits::default())
    }

    fn failed(status: &str, data: &[u8]) -> RemoteError {
        let reply = parse(&[
            ("correlationid", b"1"),
            ("status", status.as_bytes()),
            ("data", data),
        ]);
        reply.unwrap().unwrap_err()
    }

    #[test]
    fn an_error_reply_keeps_code_and_details() {
        let data = rmp_serde::to_vec_named(&serde_json::json!({
            "code": "not_found", "message": "no such image", "retryable": true, "details": [7]
        }))
        .unwrap();
        let error = failed("not_found", &data);
        assert_eq!(error.code, Code::NotFound);
        assert_eq!(error.message, "no such image");
        assert!(error.retryable);
        assert_eq!(error.details, Some(rmpv::Value::Array(vec![7.into()])));
        let unknown = failed("data_loss", &data);
        assert_eq!(unknown.code, Code::Internal);
        assert!(unknown.message.starts_with("data_loss: "));
    }

    #[test]
    fn a_malformed_reply_names_the_field() {
        let bad = |fields: &[(&str, &[u8])]| parse(fields).unwrap_err().0;
        assert!(bad(&[("status", b"ok")]).starts_with("correlationid:"));
        assert!(bad(&[("correlationid", b"1")]).starts_with("status:"));
        let long = [b'x'; 257];
        assert!(bad(&[("correlationid", b"1"), ("status", &long)]).starts_with("status:"));
        let deep = [0x91; 1000];
        let deep = bad(&[("correlationid", b"1"), ("status", b"ok"), ("data", &deep)]);
        assert!(deep.starts_with("data:"), "{deep}");
        let failure = bad(&[("correlationid", b"1"), ("status", b"internal")]);
        assert!(failure.starts_with("data:"), "{failure}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(fields in proptest::collection::vec(
            (proptest::sample::select(&["correlationid", "status", "type", "source", "time", "data"][..]),
             prop_oneof![Just(b"ok".to_vec()), proptest::collection::vec(any::<u8>(), 0..40)]), 0..8)) {
            let fields: Vec<(&str, &[u8])> = fields.iter().map(|(n, v)| (*n, v.as_slice())).collect();
            if let Ok(Ok(reply)) = parse(&fields) {
                reply.decode::<rmpv::Value>().ok();
            }
        }
    }
}
