//! What a process says about an event that it holds.

use super::nil;
use crate::handler::function::Encoded;
use crate::protocol::error::{Code, HandlerError};
use crate::protocol::event::Limits;
use crate::protocol::json;
use crate::protocol::mismatch::mismatch;
use crate::protocol::msgpack::{self, PayloadLimits};
use crate::protocol::progress::Progress;
use crate::settings::PipeFormat;
use serde::Deserialize;
use std::borrow::Cow;

/// Bytes shown of a message that is no answer.
const SHOWN: usize = 60;

/// Nested values that a message has around its own.
const AROUND: usize = 64;

/// What a process says about one event.
#[derive(Debug, PartialEq)]
pub(in crate::builtin::pipe) struct Answer {
    /// The event's.
    pub(in crate::builtin::pipe) id: String,
    pub(in crate::builtin::pipe) says: Says,
}

#[derive(Debug, PartialEq)]
pub(in crate::builtin::pipe) enum Says {
    Ok(Encoded),
    /// A failure; also what is not clear.
    Error(HandlerError),
    Progress(Progress),
    /// To be published when the event is committed.
    Publish {
        kind: String,
        data: Encoded,
        subject: Option<String>,
    },
}

#[derive(Deserialize)]
struct Named {
    id: String,
}

#[derive(Deserialize)]
struct Failure {
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    retryable: Option<bool>,
}

/// Reads a message.
///
/// # Errors
/// It names no event: what is wrong with it.
pub(in crate::builtin::pipe) fn answer(
    message: &[u8],
    format: PipeFormat,
    limits: &PayloadLimits,
) -> Result<Answer, String> {
    let packed = match format {
        PipeFormat::Msgpack => Cow::Borrowed(message),
        PipeFormat::Json => match json::parse(message) {
            Ok(packed) => Cow::Owned(packed),
            // What cannot be said exactly may still say whose it is.
            Err(error) => {
                let Ok(Named { id }) = serde_json::from_slice(message) else {
                    return Err(nameless(message, &error.to_string()));
                };
                let says = unclear(error.to_string());
                return Ok(Answer { id, says });
            }
        },
    };
    // Whether it can be read at all. A result beyond the limits is its event's alone.
    let readable = PayloadLimits {
        bytes: usize::MAX,
        depth: limits.depth + AROUND,
        values: usize::MAX,
    };
    if let Err(error) = msgpack::scan(&packed, &readable) {
        return Err(nameless(message, &error.to_string()));
    }
    let fields = Fields::of(&packed, &readable).unwrap_or_default();
    let Some(id) = fields.text("id") else {
        return Err(nameless(message, "a map with an id is expected"));
    };
    Ok(Answer {
        id: id.to_owned(),
        says: said(&fields, limits, &readable),
    })
}

fn said(fields: &Fields<'_>, limits: &PayloadLimits, readable: &PayloadLimits) -> Says {
    let [ok, error, progress, publish] =
        ["ok", "error", "progress", "publish"].map(|name| fields.get(name));
    match (ok, error, progress, publish) {
        (Some(result), None, None, None) => match msgpack::scan(result, limits) {
            Ok(_) => Says::Ok(result.to_vec()),
            Err(error) => unclear(format!("ok: {error}")),
        },
        (None, Some(error), None, None) => Says::Error(failure(error)),
        (None, None, Some(progress), None) => match rmp_serde::from_slice(progress) {
            Ok(progress) => Says::Progress(progress),
            Err(_) => unclear(format!("progress: {}", mismatch::<Progress>(progress))),
        },
        (None, None, None, Some(event)) => publication(event, readable),
        _ => unclear("one of ok, error, progress and publish is expected".to_owned()),
    }
}

fn failure(error: &[u8]) -> HandlerError {
    let Ok(Failure {
        code,
        message,
        retryable,
    }) = rmp_serde::from_slice(error)
    else {
        let message = format!(
            "the program's answer: error: {}",
            mismatch::<Failure>(error)
        );
        return HandlerError::internal(message).permanent();
    };
    let mut failed = match Code::from_name(&code) {
        Some(code) => HandlerError::new(code, message),
        None => HandlerError::internal(format!("{message} (code {code:?})")),
    };
    failed.retryable = retryable.unwrap_or(failed.retryable);
    failed
}

fn publication(event: &[u8], readable: &PayloadLimits) -> Says {
    let fields = Fields::of(event, readable).unwrap_or_default();
    let Some(kind) = fields.text("type") else {
        return unclear("publish: a map with a type is expected".to_owned());
    };
    let subject = match fields.get("subject") {
        None => None,
        Some([super::NIL]) => None,
        Some(value) => match rmp_serde::from_slice::<&str>(value) {
            Ok(subject) if subject.len() <= Limits::default().value => Some(subject.to_owned()),
            _ => return unclear("publish: subject: a short text is expected".to_owned()),
        },
    };
    Says::Publish {
        kind: kind.to_owned(),
        data: fields.get("data").map_or_else(nil, <[u8]>::to_vec),
        subject,
    }
}

/// The same again would not mend it.
fn unclear(problem: String) -> Says {
    let message = format!("the program's answer: {problem}");
    Says::Error(HandlerError::internal(message).permanent())
}

fn nameless(message: &[u8], problem: &str) -> String {
    let begin = String::from_utf8_lossy(&message[..message.len().min(SHOWN)]);
    format!("{problem}; it begins with {begin:?}")
}

/// The names and values of a map.
#[derive(Default)]
struct Fields<'a>(Vec<(&'a str, &'a [u8])>);

impl<'a> Fields<'a> {
    /// Of a value that was scanned; `None` if it is no map. Names that are no text are left out.
    fn of(packed: &'a [u8], limits: &PayloadLimits) -> Option<Self> {
        let (count, mut at) = match *packed.first()? {
            marker @ 0x80..=0x8f => (u32::from(marker & 0x0f), 1),
            0xde => (
                u32::from(u16::from_be_bytes(packed.get(1..3)?.try_into().ok()?)),
                3,
            ),
            0xdf => (u32::from_be_bytes(packed.get(1..5)?.try_into().ok()?), 5),
            _ => return None,
        };
        let mut next = || {
            let end = at + msgpack::first(packed.get(at..)?, limits).ok()?;
            let value = packed.get(at..end)?;
            at = end;
            Some(value)
        };
        let mut found = Vec::new();
        for _ in 0..count {
            let (name, value) = (next()?, next()?);
            if let Ok(name) = rmp_serde::from_slice(name) {
                found.push((name, value));
            }
        }
        Some(Self(found))
    }

    fn get(&self, name: &str) -> Option<&'a [u8]> {
        let (_, value) = self.0.iter().find(|(known, _)| *known == name)?;
        Some(value)
    }

    fn text(&self, name: &str) -> Option<&'a str> {
        rmp_serde::from_slice(self.get(name)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::json::from_json;
    use proptest::prelude::*;

    fn both(value: serde_json::Value) -> Result<Answer, String> {
        let limits = PayloadLimits::default();
        let line = value.to_string();
        let of_line = answer(line.as_bytes(), PipeFormat::Json, &limits);
        let of_frame = answer(&from_json(&value), PipeFormat::Msgpack, &limits);
        assert_eq!(of_line.as_ref().ok(), of_frame.as_ref().ok());
        of_line
    }

    fn said(value: serde_json::Value) -> Says {
        both(value).unwrap().says
    }

    fn error(value: serde_json::Value) -> (Code, bool, String) {
        match said(value) {
            Says::Error(error) => (error.code, error.retryable, error.message.into_owned()),
            says => panic!("{says:?}"),
        }
    }

    #[test]
    fn each_answer_is_read_in_either_format() {
        let ok = said(serde_json::json!({"id": "e", "ok": {"a": 1}, "more": 1}));
        assert_eq!(ok, Says::Ok(from_json(&serde_json::json!({"a": 1}))));
        assert_eq!(
            said(serde_json::json!({"id": "e", "ok": null})),
            Says::Ok(nil())
        );
        let progress = said(serde_json::json!({"id": "e", "progress": {"done": 1, "total": 2}}));
        assert_eq!(progress, Says::Progress(Progress::new(1).of(2)));
        let publish = serde_json::json!({"id": "e", "publish": {"type": "a.b", "subject": "s"}});
        let (kind, subject) = ("a.b".to_owned(), Some("s".to_owned()));
        assert_eq!(
            said(publish),
            Says::Publish {
                kind,
                data: nil(),
                subject
            }
        );
        let failed = serde_json::json!({"id": "e", "error": {"code": "not_found", "message": "m"}});
        assert_eq!(error(failed), (Code::NotFound, false, "m".to_owned()));
        let again =
            serde_json::json!({"id": "e", "error": {"code": "not_found", "retryable": true}});
        assert!(error(again).1);
        let odd = serde_json::json!({"id": "e", "error": {"code": "E7", "message": "m"}});
        assert_eq!(
            error(odd),
            (Code::Internal, true, "m (code \"E7\")".to_owned())
        );
    }

    #[test]
    fn what_is_not_clear_fails_its_event_and_what_names_none_is_told() {
        for (value, about) in [
            (serde_json::json!({"id": "e"}), "one of ok"),
            (
                serde_json::json!({"id": "e", "ok": 1, "error": {}}),
                "one of ok",
            ),
            (serde_json::json!({"id": "e", "error": "bad"}), "error: "),
            (
                serde_json::json!({"id": "e", "progress": {"done": "x"}}),
                "progress: done",
            ),
            (
                serde_json::json!({"id": "e", "publish": {"data": 1}}),
                "publish: ",
            ),
            (
                serde_json::json!({"id": "e", "publish": {"type": "a.b", "subject": "s".repeat(300)}}),
                "subject",
            ),
        ] {
            let (code, retryable, message) = error(value);
            assert_eq!((code, retryable), (Code::Internal, false));
            assert!(message.contains(about), "{message}");
        }
        for value in [
            serde_json::json!(7),
            serde_json::json!({"ok": 1}),
            serde_json::json!({"id": 7}),
        ] {
            assert!(both(value).unwrap_err().contains("an id is expected"));
        }
        let limits = PayloadLimits::default();
        let noise = answer(b"Processing", PipeFormat::Json, &limits).unwrap_err();
        assert!(noise.contains("begins with \"Processing\""), "{noise}");
        let large = br#"{"id": "e", "ok": 18446744073709551616}"#;
        let large = answer(large, PipeFormat::Json, &limits).unwrap();
        assert!(
            matches!(large.says, Says::Error(error) if error.message.contains("beyond 64 bits"))
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let limits = PayloadLimits::default();
            answer(&data, PipeFormat::Json, &limits).ok();
            answer(&data, PipeFormat::Msgpack, &limits).ok();
        }
    }
}
