//! Centralized: one manager, the leader, has all batches. Whoever has the event of one hands it to the leader over its
//! inbox, and waits for the answer; to the next leader, if another one was elected meanwhile. What the leader does with
//! it is what any holder does, so two leaders do no harm: a batch has one lease.

use super::{KIND, Process, Processed, leaving, taken};
use crate::Context;
use crate::builtin::Services;
use crate::builtin::system::encoded;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::asking::{Ask, Mailbox};
use crate::protocol::error::{Code, HandlerError};
use crate::protocol::event::{Entry, Limits};
use crate::protocol::reply::Reply;
use std::time::{Duration, Instant};

/// The shortest and the longest pause before an answer is looked for.
const PAUSES: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(250)];
/// How often somebody looks who leads.
const LOOK: Duration = Duration::from_millis(500);

/// An event that is handed on.
struct Handed<'a> {
    services: &'a Services,
    from: &'a str,
    id: String,
    data: Vec<u8>,
    mailbox: Mailbox,
    /// Whom it was handed to last, in which term.
    to: Option<(String, u64)>,
}

/// What comes of a look.
enum Look {
    Nothing,
    Answered(Box<Processed>),
    /// A batch that this worker is to have.
    Here,
}

/// What the leader answered; `None`: this worker leads, or the leader has no handler for the items, so whoever has one
/// is to have the batch.
pub(super) async fn by_leader(
    context: &Context,
    services: &Services,
    event: &Process,
    items: &[Vec<u8>],
) -> Result<Option<Processed>, HandlerError> {
    let mut handed = Handed {
        services,
        from: context.instance(),
        id: context.event().id(),
        data: payload(event, items),
        mailbox: services.instances.mailbox(),
        to: None,
    };
    let (draining, cancelled) = (context.draining(), context.cancellation());
    let (mut pause, mut looked) = (PAUSES[0], None);
    loop {
        let who = looked.is_none_or(|at: Instant| at.elapsed() >= LOOK);
        if who {
            looked = Some(Instant::now());
        }
        match handed.look(who).await {
            Ok(Look::Answered(processed)) => return Ok(Some(*processed)),
            Ok(Look::Here) => return Ok(None),
            Ok(Look::Nothing) => {}
            // The server may be away, or the answer says that it is to be asked for again.
            Err(error) if error.retryable => {
                tracing::debug!(batch = event.batch_id, %error, "the leader has not answered yet");
                looked = None;
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cancelled.cancelled() => return Err(taken(&event.batch_id)),
            () = draining.cancelled() => return Err(leaving(event)),
        }
        pause = (2 * pause).min(PAUSES[1]);
    }
}

impl Handed<'_> {
    /// Looks for the answer, and where it is time who leads, so that it is with the one who does.
    async fn look(&mut self, who: bool) -> Result<Look, HandlerError> {
        let instances = &self.services.instances;
        let failed = CoordinationError::into_handler_error;
        if self.to.is_some()
            && let Some(entry) = instances.answer_in(&self.mailbox).await.map_err(failed)?
        {
            instances.forget(&self.mailbox).await.map_err(failed)?;
            // What another one still answers is not waited for.
            self.mailbox = instances.mailbox();
            self.to = None;
            return answered(&entry);
        }
        if !who {
            return Ok(Look::Nothing);
        }
        let elected = instances.elected().await.map_err(failed)?;
        match &elected {
            Some((leader, _)) if leader == self.from => return Ok(Look::Here),
            Some((leader, _)) if elected != self.to => {
                let ask = Ask {
                    from: self.from,
                    kind: KIND,
                    id: &self.id,
                    data: &self.data,
                    deadline: None,
                };
                let asked = instances.ask_to(leader, ask, &self.mailbox).await;
                if asked.map_err(failed)? {
                    self.to = elected;
                }
            }
            _ => {}
        }
        Ok(Look::Nothing)
    }
}

fn answered(entry: &Entry) -> Result<Look, HandlerError> {
    let malformed = |problem: String| HandlerError::internal(format!("the leader: {problem}"));
    match Reply::parse(entry, &Limits::default()) {
        Ok(Ok(reply)) => {
            let processed = rmp_serde::from_slice(&reply.data);
            let processed = processed.map_err(|error| malformed(error.to_string()))?;
            Ok(Look::Answered(Box::new(processed)))
        }
        Ok(Err(error)) if error.code == Code::Unimplemented => Ok(Look::Here),
        // One that led before was overtaken, perhaps by this very event: who leads now says what comes of it.
        Ok(Err(error)) if error.code == Code::Aborted => Ok(Look::Nothing),
        Ok(Err(error)) => {
            let retryable = error.retryable;
            let error = HandlerError::new(error.code, error.message);
            Err(if retryable { error } else { error.permanent() })
        }
        Err(problem) => Err(malformed(problem.to_string())),
    }
}

/// The event's payload, of the items as they are encoded already.
fn payload(event: &Process, items: &[Vec<u8>]) -> Vec<u8> {
    let text = |text: &str| encoded(&text.into());
    // A map of five.
    let mut data = vec![0x85];
    data.extend(text("batch_id"));
    data.extend(text(&event.batch_id));
    data.extend(text("item_type"));
    data.extend(text(&event.item_type));
    data.extend(text("mode"));
    data.extend(text(event.mode.as_str()));
    data.extend(text("lease_ms"));
    data.extend(encoded(
        &event.lease_ms.map_or(rmpv::Value::Nil, rmpv::Value::from),
    ));
    data.extend(text("items"));
    data.push(0xdd);
    data.extend((items.len() as u32).to_be_bytes());
    data.extend(items.iter().flatten());
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordination::batches::batch::Mode;

    #[test]
    fn what_is_handed_on_is_what_was_asked() {
        for lease_ms in [None, Some(500)] {
            let event = Process {
                batch_id: "b-1".into(),
                item_type: "a.b".into(),
                items: Vec::new(),
                mode: Mode::FanOut,
                lease_ms,
            };
            let items = [vec![7], vec![0xa1, b'x'], vec![0xc0]];
            let handed: Process = rmp_serde::from_slice(&payload(&event, &items)).unwrap();
            assert_eq!(
                (handed.batch_id.as_str(), handed.item_type.as_str()),
                ("b-1", "a.b")
            );
            assert_eq!((handed.mode, handed.lease_ms), (Mode::FanOut, lease_ms));
            let handed: Vec<Vec<u8>> = handed.items.iter().map(encoded).collect();
            assert_eq!(handed, items);
        }
    }
}
