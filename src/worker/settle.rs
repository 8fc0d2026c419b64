//! From the end of a run to what is written: reply, retry, dead letter ([delivery](crate::docs::protocol#delivery)).

use crate::connect::clock::{NEVER, local_now, whole_ms};
use crate::connect::epoch::Epoch;
use crate::handler::function::{Encoded, encode};
use crate::handler::policy::RetryPolicy;
use crate::protocol::dead::{DeadLetter, POISON};
use crate::protocol::error::{Code, HandlerError, Refusal};
use crate::protocol::event::{Event, Malformed, in_kind, is_json};
use crate::protocol::msgpack::{self, PayloadLimits};
use crate::streams::commit::{Disposition, Note, Publication, Receipt, ReplyEntry, Settlement};
use crate::streams::first::{Firsts, Said};
use rmpv::Value;
use std::time::Duration;

/// Who settles, and what of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene<'a> {
    /// The delivery.
    pub receipt: Receipt,
    /// The stream it came from.
    pub stream: &'a str,
    /// The instance's id.
    pub instance: &'a str,
    /// Where events of the stream that take effect once are remembered; nowhere, for those of an inbox.
    pub firsts: Option<Firsts<'a>>,
}

impl Scene<'_> {
    /// What whoever asks again is told from now on, where the event takes effect once and somebody asked for it.
    fn said(self, event: &Event, status: &str, data: &[u8]) -> Option<Note> {
        let (firsts, name, id) = (self.firsts?, event.once()?, event.given_id()?);
        let said = Said::ended(event.reply_to()?, status, data);
        Some(firsts.ended(id, name, &said))
    }

    /// The same of an error.
    fn told(self, event: &Event, error: &HandlerError) -> Vec<Note> {
        match event.once() {
            None => Vec::new(),
            Some(_) => {
                let note = self.said(event, error.code.as_str(), &body(error));
                note.into_iter().collect()
            }
        }
    }

    /// A note that the event ended unrun: it is kept nowhere, so the next one of its id that asks may run.
    fn unrun(self, event: &Event, error: &HandlerError) -> Vec<Note> {
        let note = || {
            event.asks_once().then_some(())?;
            let (firsts, name, id) = (self.firsts?, event.once()?, event.given_id()?);
            Some(firsts.ended(id, name, &Said::unrun(error.code.as_str())))
        };
        note().into_iter().collect()
    }

    /// A note that the event took effect.
    fn took_effect(self, event: &Event) -> Option<Note> {
        let (firsts, name, id) = (self.firsts?, event.once()?, event.given_id()?);
        Some(firsts.took_effect(id, name))
    }
}

/// A run that succeeded.
pub(crate) fn success(
    scene: Scene<'_>,
    event: &Event,
    result: Encoded,
    publications: Vec<Publication>,
    silent: bool,
) -> Settlement {
    let took_effect = scene.took_effect(event).into_iter();
    let notes = took_effect
        .chain(scene.said(event, "ok", &result))
        .collect();
    let reply = match event.reply_to() {
        Some(_) => Some(reply_to(event, "ok", result)),
        None if silent => None,
        None => Some(ReplyEntry {
            to: None,
            correlation_id: event.id(),
            kind: result_of(event.kind()),
            status: "ok",
            data: result,
            content: None,
        }),
    };
    Settlement {
        receipt: scene.receipt,
        reply,
        publications,
        disposition: Disposition::Done,
        epoch: None,
        notes,
    }
}

/// A run that failed, or an event that was not run.
pub(crate) fn failure(
    scene: Scene<'_>,
    event: &Event,
    error: &HandlerError,
    retry: &RetryPolicy,
) -> Settlement {
    let requested = event.reply_to().is_some();
    let refused = refused(error);
    let is_refused = refused.is_some();
    let disposition = match refused {
        Some(_) if requested && error.refusal != Some(Refusal::Busy) => told(scene, event, error),
        Some(wait) => Disposition::Later {
            fields: event.same_attempt(),
            wait,
        },
        None if error.retryable => match retry.delay(event.attempt()) {
            Some(wait) => Disposition::Later {
                fields: event.next_attempt_after(&said(error), local_now()),
                wait: wait.max(error.retry_after.unwrap_or_default()),
            },
            None => told(scene, event, error),
        },
        None => told(scene, event, error),
    };
    let ends = !matches!(disposition, Disposition::Later { .. });
    let answered = requested && ends;
    let notes = match ends {
        true if is_refused => scene.unrun(event, error),
        true => scene.told(event, error),
        false => Vec::new(),
    };
    Settlement {
        receipt: scene.receipt,
        reply: answered.then(|| error_reply(event, error)),
        publications: Vec::new(),
        disposition,
        epoch: None,
        notes,
    }
}

/// Who asked is told; else the event is a dead letter.
fn told(scene: Scene<'_>, event: &Event, error: &HandlerError) -> Disposition {
    let letter = Box::new(letter(scene, event, error));
    match event.reply_to() {
        Some(_) => Disposition::Told(letter),
        None => Disposition::Dead(letter),
    }
}

fn said(error: &HandlerError) -> String {
    format!("{}: {}", error.code.as_str(), error.bounded_message())
}

/// What a layer refused without running the handler waits for so long.
fn refused(error: &HandlerError) -> Option<Duration> {
    error.refusal.as_ref()?;
    let least = error
        .retry_after
        .unwrap_or(Duration::from_secs(1))
        .min(NEVER);
    let spread = whole_ms(least) / 2 + 100;
    Some(least + Duration::from_millis(fastrand::u64(0..spread)))
}

/// An event whose deadline passed: a requester is told, otherwise it is dropped.
pub(crate) fn expired(scene: Scene<'_>, event: &Event) -> Settlement {
    let error = HandlerError::new(
        Code::DeadlineExceeded,
        "the event's deadline passed before it was run",
    )
    .permanent();
    Settlement {
        receipt: scene.receipt,
        reply: event.reply_to().map(|_| error_reply(event, &error)),
        publications: Vec::new(),
        disposition: Disposition::Done,
        epoch: None,
        notes: scene.unrun(event, &error),
    }
}

/// An event of a type that nobody needs to handle.
pub(crate) fn ignored(scene: Scene<'_>) -> Settlement {
    Settlement {
        receipt: scene.receipt,
        reply: None,
        publications: Vec::new(),
        disposition: Disposition::Done,
        epoch: None,
        notes: Vec::new(),
    }
}

/// An event of an id of which another one came first, which is here: whoever asked is told what is known of that
/// one, unless its reply is still to be written to the same place. It holds only in that history of the server.
pub(super) fn repeat(
    scene: Scene<'_>,
    event: &Event,
    first: &str,
    said: Option<&Said>,
    epoch: Epoch,
) -> Settlement {
    let known = said.and_then(Said::reply);
    let reply = match (event.reply_to(), known) {
        (None, _) => None,
        (Some(_), Some((status, data))) => Some(reply_to(event, status, data.to_vec())),
        (Some(to), None) if said.is_some_and(|said| said.will_come(to)) => None,
        (Some(_), None) => {
            let added = format!("id: the event was added before, as {first}");
            Some(error_reply(event, &HandlerError::already_exists(added)))
        }
    };
    Settlement {
        reply,
        epoch: Some(epoch),
        ..ignored(scene)
    }
}

/// An event that is not to run yet: it waits in the delay queue, and no attempt is spent.
pub(crate) fn early(scene: Scene<'_>, event: &Event, wait: Duration) -> Settlement {
    Settlement {
        receipt: scene.receipt,
        reply: None,
        publications: Vec::new(),
        disposition: Disposition::Later {
            fields: event.same_attempt(),
            wait,
        },
        epoch: None,
        notes: Vec::new(),
    }
}

/// An event whose type does not run from its stream: whoever asked is told, and an operator is shown who
/// tried.
pub(crate) fn misplaced(scene: Scene<'_>, event: &Event) -> Settlement {
    let (kind, stream) = (event.kind(), scene.stream);
    let error = HandlerError::invalid_argument(format!(
        "type: {kind} runs from the stream of its own domain or from an inbox, not from {stream}"
    ));
    Settlement {
        receipt: scene.receipt,
        reply: event.reply_to().map(|_| error_reply(event, &error)),
        publications: Vec::new(),
        disposition: Disposition::Dead(Box::new(letter(scene, event, &error))),
        epoch: None,
        notes: scene.told(event, &error),
    }
}

/// An event that was delivered too often without ever being committed: whoever asked is told, and an
/// operator is shown what kills workers.
pub(crate) fn poison(scene: Scene<'_>, event: &Event) -> Settlement {
    let error = HandlerError::internal(format!(
        "delivered {} times and never committed: it kills its worker",
        scene.receipt.deliveries - 1
    ))
    .permanent();
    let letter = DeadLetter {
        reason: POISON.to_owned(),
        ..letter(scene, event, &error)
    };
    Settlement {
        receipt: scene.receipt,
        reply: event.reply_to().map(|_| error_reply(event, &error)),
        publications: Vec::new(),
        disposition: Disposition::Dead(Box::new(letter)),
        epoch: None,
        notes: scene.told(event, &error),
    }
}

/// An entry that is no event.
pub(crate) fn malformed(scene: Scene<'_>, bad: Malformed) -> Settlement {
    let error = HandlerError::invalid_argument(bad.message.clone());
    let (data, content) = in_kind(body(&error), is_json(&bad.entry));
    let reply = bad.reply_to.clone().map(|to| ReplyEntry {
        to: Some(to),
        correlation_id: bad.correlation_id(),
        kind: result_of(bad.kind.as_deref().unwrap_or("unknown")),
        status: error.code.as_str(),
        data,
        content,
    });
    let letter = DeadLetter {
        entry: bad.entry,
        reason: error.code.as_str().to_owned(),
        message: error.bounded_message().to_owned(),
        attempts: 0,
        deliveries: scene.receipt.deliveries,
        stream: scene.stream.to_owned(),
        instance: scene.instance.to_owned(),
        time: local_now(),
    };
    let letter = Box::new(letter);
    let disposition = match &reply {
        Some(_) => Disposition::Told(letter),
        None => Disposition::Dead(letter),
    };
    Settlement {
        receipt: scene.receipt,
        reply,
        publications: Vec::new(),
        disposition,
        epoch: None,
        notes: Vec::new(),
    }
}

fn letter(scene: Scene<'_>, event: &Event, error: &HandlerError) -> DeadLetter {
    DeadLetter {
        entry: event.entry().clone(),
        reason: error.code.as_str().to_owned(),
        message: error.bounded_message().to_owned(),
        attempts: event.attempt(),
        deliveries: scene.receipt.deliveries,
        stream: scene.stream.to_owned(),
        instance: scene.instance.to_owned(),
        time: local_now(),
    }
}

fn error_reply(event: &Event, error: &HandlerError) -> ReplyEntry {
    reply_to(event, error.code.as_str(), body(error))
}

/// A reply to whoever asked, in kind.
fn reply_to(event: &Event, status: &'static str, data: Encoded) -> ReplyEntry {
    let (data, content) = in_kind(data, event.is_json());
    ReplyEntry {
        to: event.reply_to().map(str::to_owned),
        correlation_id: event.id(),
        kind: result_of(event.kind()),
        status,
        data,
        content,
    }
}

/// The type of the reply to an event of that type.
fn result_of(kind: &str) -> String {
    [kind, ".result"].concat()
}

/// The body of an error reply: `{code, message, retryable, details?}`.
fn body(error: &HandlerError) -> Encoded {
    let mut map: Vec<(Value, Value)> = vec![
        ("code".into(), error.code.as_str().into()),
        ("message".into(), error.bounded_message().into()),
        ("retryable".into(), error.retryable.into()),
    ];
    if let Some(details) = &error.details {
        map.push(("details".into(), details.clone()));
    }
    let encoded = |map: &[(Value, Value)]| encode(&Value::Map(map.to_vec()));
    let whole = encoded(&map).ok();
    let fits = |data: &Encoded| msgpack::scan(data, &PayloadLimits::default()).is_ok();
    // Details that nobody could read are left out.
    let body = whole.filter(fits).or_else(|| encoded(&map[..3]).ok());
    body.unwrap_or_else(|| vec![0xc0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use std::time::Instant;

    #[test]
    fn a_repeat_is_one_only_in_the_history_in_which_it_was_judged() {
        let context = testing::event(&()).context();
        let scene = Scene {
            receipt: Receipt {
                stream: 0,
                entry: context.event().entry_id(),
                deliveries: 1,
                claims: 0,
                since: Instant::now(),
            },
            stream: "cb:events:a",
            instance: "w-1",
            firsts: None,
        };
        let repeat = repeat(scene, context.event(), "7-1", None, Epoch(3));
        assert_eq!(repeat.epoch, Some(Epoch(3)));
        assert!(matches!(repeat.disposition, Disposition::Done));
        assert!(repeat.publications.is_empty() && repeat.notes.is_empty());
    }
}
