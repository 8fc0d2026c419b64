//! What is paused does not begin: it is parked beside its stream, and a requester is told at once.
//!
//! It is looked up twice: when an event arrives, so that what is paused never stands in a queue, and when it is to
//! begin, since it may have been paused meanwhile. What is paused, and what may have to wait behind that, is weighed on
//! the server, in the order in which it comes: by one task for each lane, so that no two of a subject pass each other.
//! While it is weighed it holds its place in the line of its subject, and its lease is kept.

use super::finished::{Finished, Ran, Unjudged};
use super::{Lane, Waiting};
use crate::connect::backoff::Backoff;
use crate::connect::error::{BusError, Reaction};
use crate::handler::gate::Places;
use crate::protocol::error::HandlerError;
use crate::streams::park::{self, Candidate, How, WEIGHED, Weighed};
use crate::worker::pausing::{behind, refusal};
use crate::worker::shared::Shared;
use redis::aio::MultiplexedConnection;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Bytes of events that one call weighs, about.
const BYTES: usize = 512 * 1024;

/// Weighs what a lane gives it; begun when something is to be weighed first.
pub(super) struct Weigher {
    asked: mpsc::UnboundedSender<Weighing>,
    _task: AbortOnDropHandle<()>,
}

/// An event that is weighed.
pub(super) struct Weighing {
    pub(super) waiting: Waiting,
    how: How,
    /// As of when the answer holds.
    as_of: u32,
    /// Whether it was to begin; else it has arrived.
    pub(super) begins: bool,
}

impl Weighing {
    fn goes_with(&self, other: &Self) -> bool {
        let (a, b) = (&self.waiting, &other.waiting);
        a.receipt.stream == b.receipt.stream && a.route.index == b.route.index
    }
}

impl Lane {
    /// Gives an event back that may arrive, or begin, as far as pauses go. Another one was told, or is weighed.
    pub(super) fn unless_paused(&mut self, waiting: Waiting, begins: bool) -> Option<Waiting> {
        // What was sent to this instance alone cannot wait beside a stream that others read.
        if self.shared.inbox == Some(waiting.receipt.stream) {
            return Some(waiting);
        }
        let pausing = &self.shared.pausing;
        let (event, handler) = (waiting.context.event(), waiting.route.index);
        let subject = event.subject().filter(|subject| !subject.is_empty());
        let now = self.shared.claims.server_now();
        let how = match pausing.how(handler, subject, now) {
            Some((_, paused)) if event.reply_to().is_some() => {
                let error = refusal(&paused, now);
                self.refuse(waiting, error);
                return None;
            }
            // What is parked is kept by type: it would not come back in the order of its subject.
            Some(_) if self.line.is_some() && subject.is_some() => {
                self.pauses_in_place(waiting);
                return None;
            }
            Some((how, _)) => how,
            None => How::Not,
        };
        let behind = |subject| pausing.may_be_behind(handler, subject, waiting.weighed);
        let behind = begins && subject.is_some_and(behind);
        if how == How::Not && !behind {
            return Some(waiting);
        }
        // Nobody waits for hours for an answer.
        let how = match how {
            How::Not if event.reply_to().is_some() => How::Asked,
            how => how,
        };
        self.weigh(waiting, how, begins);
        None
    }

    fn refuse(&mut self, waiting: Waiting, error: HandlerError) {
        match waiting.first {
            true => self.ran(Ran::refused(waiting, error)),
            false => self.judge(Unjudged::Refused(waiting, error)),
        }
    }

    /// The same of one that is to begin.
    pub(super) fn unless_paused_now(&mut self, waiting: Waiting) -> Option<Waiting> {
        match waiting.waited && self.shared.inflight.is_lost(&waiting.receipt) {
            true => Some(waiting),
            false => self.unless_paused(waiting, true),
        }
    }

    fn weigh(&mut self, waiting: Waiting, how: How, begins: bool) {
        let (receipt, size, handler) = (waiting.receipt, waiting.size(), waiting.route.index);
        self.shared.inflight.waits(&receipt, handler);
        self.admission.weighs(receipt, size);
        let subject = waiting.context.event().subject();
        let is_paused = !matches!(how, How::Not | How::Asked);
        let as_of = self.shared.pausing.asks(handler, subject, is_paused);
        let weighing = Weighing {
            waiting,
            how,
            as_of,
            begins,
        };
        let (shared, finished) = (&self.shared, &self.finished);
        let weigher = self.weigher.get_or_insert_with(|| {
            let (asked, asks) = mpsc::unbounded_channel();
            let work = run(shared.clone(), asks, finished.clone());
            Weigher {
                asked,
                _task: AbortOnDropHandle::new(tokio::spawn(work)),
            }
        });
        weigher.asked.send(weighing).ok();
    }

    /// Takes the answer.
    pub(super) fn weighed(&mut self, weighing: Weighing, weighed: Option<Weighed>) {
        let Weighing {
            mut waiting,
            as_of,
            begins,
            ..
        } = weighing;
        let receipt = waiting.receipt;
        // It may have been given up in the meantime.
        if !self.admission.entered(&receipt) {
            return;
        }
        match weighed {
            // It stays pending, in nobody's hands, until somebody takes it again.
            None => {
                drop(waiting);
                self.leave_unbegun(receipt);
            }
            Some(Weighed::Gone) if self.line.is_some() => {
                drop(waiting);
                self.let_go(&[receipt]);
            }
            Some(Weighed::Gone | Weighed::Parked) => {
                self.shared.counts.parked.fetch_add(1, Ordering::Relaxed);
                // Its place in line first: who is behind it is weighed behind it.
                drop(waiting);
                self.release(&[receipt]);
            }
            Some(Weighed::Behind) => self.refuse(waiting, behind()),
            Some(Weighed::May) => {
                waiting.weighed = Some(as_of);
                match begins {
                    true => self.admission.wait(waiting),
                    false => {
                        self.enter(waiting, Places::default(), None, Instant::now());
                    }
                }
            }
        }
    }

    /// Where the documents have changed: what waits is looked up again.
    pub(super) fn look_at_pauses(&mut self) {
        let changes = self.shared.pausing.changes();
        if std::mem::replace(&mut self.changes, changes) == changes {
            return;
        }
        let pausing = self.shared.pausing.clone();
        let now = self.shared.claims.server_now();
        let paused = self.admission.take_those(|waiting| {
            let subject = waiting.context.event().subject();
            pausing.how(waiting.route.index, subject, now).is_some()
        });
        for waiting in paused {
            if let Some(waiting) = self.unless_paused(waiting, true) {
                self.admission.wait(waiting);
            }
        }
    }
}

async fn run(
    shared: Arc<Shared>,
    mut asked: mpsc::UnboundedReceiver<Weighing>,
    finished: mpsc::UnboundedSender<Finished>,
) {
    let mut link = None;
    let mut batch = Vec::new();
    while asked.recv_many(&mut batch, WEIGHED).await > 0 {
        while let Some(first) = batch.first() {
            let mut bytes = 0;
            let those = batch.iter().take_while(|one| {
                let fits = bytes == 0 || bytes + one.waiting.size() <= BYTES;
                bytes += one.waiting.size();
                fits && one.goes_with(first)
            });
            let count = those.count();
            let answers = weighed(&shared, &mut link, &batch[..count]).await;
            for (at, one) in batch.drain(..count).enumerate() {
                let answer = answers.as_ref().and_then(|all| all.get(at).copied());
                let (route, event) = (&one.waiting.route, one.waiting.context.event());
                let subject = event.subject();
                shared.pausing.answered(route.index, subject, answer);
                finished.send(Finished::Weighed(Box::new(one), answer)).ok();
            }
        }
    }
}

/// Asks until there is an answer; `None` where the server refuses it, so that nothing else waits behind these. What is
/// held meanwhile is renewed like anything else that waits.
async fn weighed(
    shared: &Shared,
    link: &mut Option<Link>,
    batch: &[Weighing],
) -> Option<Vec<Weighed>> {
    let mut backoff = Backoff::default();
    loop {
        match ask(shared, link, batch).await {
            Ok(answers) => return Some(answers),
            Err(error) => {
                if shared.fence.as_ref().is_some_and(|it| it.hears(&error)) {
                    return None;
                }
                match error.reaction() {
                    Reaction::Reconnect => *link = None,
                    Reaction::Wait => {}
                    // Without the group nothing is pending any more: it will be delivered again.
                    Reaction::RepairGroup => return Some(vec![Weighed::Gone; batch.len()]),
                    Reaction::GiveUp => {
                        let kind = batch.first().map(|one| one.waiting.route.kind.as_str());
                        tracing::warn!(lane = shared.name, r#type = kind, entries = batch.len(), %error, "what may be paused cannot be weighed: it stays pending, and is tried again later");
                        return None;
                    }
                }
                tracing::debug!(lane = shared.name, %error, "asking again what of the paused may begin");
            }
        }
        tokio::time::sleep(backoff.failed()).await;
    }
}

/// A connection of its own: handlers may hold all that are pooled.
struct Link {
    generation: u64,
    connection: MultiplexedConnection,
}

async fn ask(
    shared: &Shared,
    link: &mut Option<Link>,
    batch: &[Weighing],
) -> Result<Vec<Weighed>, BusError> {
    let stands = |link: &Link| shared.connector.check(link.generation).is_ok();
    if !link.as_ref().is_some_and(stands) {
        let generation = shared.connector.generation();
        let connection = shared.connector.dedicated().await?;
        *link = Some(Link {
            generation,
            connection,
        });
    }
    let Some(Link { connection, .. }) = link else {
        return Ok(Vec::new());
    };
    let pending: Vec<Candidate<'_>> = batch
        .iter()
        .map(|one| Candidate::of(one.waiting.context.event(), &one.waiting.receipt, one.how))
        .collect();
    let Some(first) = batch.first() else {
        return Ok(Vec::new());
    };
    let route = &shared.routes[first.waiting.receipt.stream];
    let kind = &first.waiting.route.kind;
    let consumer = shared.instance();
    let (group, fence) = (&shared.group, shared.fence.as_deref());
    park::weigh_owned(connection, route, group, consumer, kind, &pending, fence).await
}
