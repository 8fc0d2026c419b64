//! An event that this worker cannot run is handed to an active instance that can, and that reads its
//! stream in the same group; a few times at most. One that is paused waits like any other that is.
//! An event that one certain instance is to have is handed to it in the same way.

use super::pausing::refusal;
use super::settle;
use super::shared::Shared;
use super::unbegun;
use crate::connect::backoff::Backoff;
use crate::connect::error::{BusError, Reaction};
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::roster::Reader;
use crate::handler::policy::RetryPolicy;
use crate::protocol::error::{Code, Elsewhere, HandlerError};
use crate::protocol::event::Event;
use crate::streams::claim::{self, Given, Handing};
use crate::streams::commit::{Publication, Receipt, Settlement};
use crate::streams::park::{self, Candidate, How, Weighed};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// An event that is left for an active instance that can run it.
pub(super) struct Left {
    /// The delivery.
    pub receipt: Receipt,
    /// What happens to it if nobody can have it.
    pub error: HandlerError,
    /// When it would be tried again then.
    pub retry: RetryPolicy,
    /// Whether it then stays pending instead: this worker shuts down, and another one may come.
    pub may_stay: bool,
}

impl Left {
    /// An event without a handler here.
    pub(super) fn without_handler(shared: &Shared, receipt: Receipt, kind: &str) -> Self {
        let group = &shared.group;
        Self {
            receipt,
            error: HandlerError::new(
                Code::Unimplemented,
                format!("no active worker in group {group} has a handler for {kind}"),
            ),
            retry: shared.retry,
            may_stay: false,
        }
    }

    /// Hands it to an instance of the group that has a handler for its type, and for another one where
    /// that is needed too, or to the one that is named; what happens to it where nobody has it.
    pub(super) async fn end(
        self,
        shared: &Shared,
        event: &Event,
        whom: Option<&Elsewhere>,
    ) -> Option<Settlement> {
        if whom.is_none()
            && let Some(end) = self.unless_paused(shared, event).await
        {
            return end;
        }
        let needed = besides(whom).unwrap_or(event.kind());
        let error = match hand_over(shared, self.receipt, event, whom).await {
            Ok(Handed::Over) => return None,
            _ if self.may_stay => {
                // Its run said at once that it is another one's.
                unbegun::undeliver(shared, &[self.receipt]).await;
                return None;
            }
            _ if matches!(whom, Some(Elsewhere::Instance(_))) => self.error,
            Ok(Handed::Late) => HandlerError::later(
                LATE,
                format!("those that have a handler for {needed} missed their pulses"),
            ),
            Ok(Handed::Nobody) if whom.is_none() && shared.ignores(event) => {
                shared.counts.ignored.fetch_add(1, Ordering::Relaxed);
                return Some(settle::ignored(shared.scene(self.receipt)));
            }
            Ok(Handed::Nobody) => self.error,
            Ok(Handed::TooOften) => HandlerError::new(
                Code::Unimplemented,
                format!(
                    "it was handed over {} times to instances that said to have a handler for {needed}, \
                     and none of them ran it: see whether they still read group {}",
                    claim::HANDOVERS,
                    shared.group
                ),
            ),
            Err(error) => error,
        };
        let scene = shared.scene(self.receipt);
        Some(settle::failure(scene, event, &error, &self.retry))
    }
}

impl Left {
    /// How it is settled where nobody else reads the partition.
    pub(super) fn end_here(&self, shared: &Shared, event: &Event, any: bool) -> Settlement {
        let scene = shared.scene(self.receipt);
        if any && shared.ignores(event) {
            shared.counts.ignored.fetch_add(1, Ordering::Relaxed);
            return settle::ignored(scene);
        }
        settle::failure(scene, event, &self.error, &self.retry)
    }

    /// What becomes of it where it is paused: whoever runs its type may have stopped for just that.
    async fn unless_paused(&self, shared: &Shared, event: &Event) -> Option<Option<Settlement>> {
        let receipt = self.receipt;
        if shared.inbox == Some(receipt.stream) {
            return None;
        }
        let now = shared.claims.server_now();
        let subject = event.subject().filter(|subject| !subject.is_empty());
        let (how, paused) = shared.pausing.how_of(event.kind(), subject, now)?;
        if event.reply_to().is_some() {
            let (scene, error) = (shared.scene(receipt), refusal(&paused, now));
            return Some(Some(settle::failure(scene, event, &error, &self.retry)));
        }
        match park(shared, receipt, event, how).await {
            // Without the group nothing is pending any more: it will be delivered again.
            Err(error) if error.reaction() != Reaction::RepairGroup => {
                let stream = &shared.routes[receipt.stream].events;
                tracing::warn!(stream, entry = %receipt.entry, r#type = event.kind(), %error, "it is paused and cannot be parked: it stays pending, and is tried again later");
                unbegun::undeliver(shared, &[receipt]).await;
            }
            Ok(weighed) if weighed.contains(&Weighed::Parked) => {
                shared.counts.parked.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        Some(None)
    }
}

/// How often it is tried at once to park an event, or to tell that one was handed over.
const TRIES: u32 = 3;

async fn park(
    shared: &Shared,
    receipt: Receipt,
    event: &Event,
    how: How,
) -> Result<Vec<Weighed>, BusError> {
    let pending = [Candidate::of(event, &receipt, how)];
    let (route, group) = (&shared.routes[receipt.stream], &shared.group);
    let mut backoff = Backoff::default();
    let mut tries = 1;
    loop {
        let parked = async {
            let mut connection = shared.connector.pooled().await?;
            let (me, kind) = (shared.instance(), event.kind());
            park::weigh(&mut connection, route, group, me, kind, &pending).await
        };
        match parked.await {
            Err(error)
                if tries < TRIES
                    && matches!(error.reaction(), Reaction::Reconnect | Reaction::Wait) =>
            {
                tries += 1;
            }
            answer => return answer,
        }
        tokio::time::sleep(backoff.failed()).await;
    }
}

/// The type that whoever is to have it must have a handler for, besides its own.
fn besides(whom: Option<&Elsewhere>) -> Option<&str> {
    match whom {
        Some(Elsewhere::Handles(kind)) => Some(kind),
        _ => None,
    }
}

/// What became of an event that another instance is to have.
enum Handed {
    Over,
    /// Instances that could have it missed their pulses, and were not declared lost yet.
    Late,
    Nobody,
    TooOften,
}

/// How long it is remembered that an event was handed to the one that was named. It may be every event of a type; and
/// where it was forgotten too early an event is handed on once more.
const NAMED: Duration = Duration::from_secs(300);

/// How long an event waits for instances that are late.
const LATE: Duration = Duration::from_secs(1);

async fn hand_over(
    shared: &Shared,
    receipt: Receipt,
    event: &Event,
    whom: Option<&Elsewhere>,
) -> Result<Handed, HandlerError> {
    if shared.inbox == Some(receipt.stream) {
        return Ok(Handed::Nobody);
    }
    let me = shared.instance();
    let to = match whom {
        Some(Elsewhere::Instance(id)) => id.to_string(),
        _ => {
            let (group, kind) = (&shared.group, event.kind());
            let reader = shared
                .instances
                .reader(group, kind, besides(whom), me)
                .await;
            match reader.map_err(CoordinationError::into_handler_error)? {
                Reader::Found(to) => to,
                Reader::Late => return Ok(Handed::Late),
                Reader::Nobody => return Ok(Handed::Nobody),
            }
        }
    };
    let stream = &shared.routes[receipt.stream].events;
    let (domain, partition) = &shared.places[receipt.stream];
    let keys = &shared.process.keys;
    let handing = Handing {
        from: me,
        to: &to,
        entry: receipt.entry,
        deliveries: receipt.deliveries,
        handed: &keys.handed(domain, *partition, &receipt.entry.to_string()),
    };
    let mut connection = shared.process.connector.pooled().await?;
    let remembered = match whom {
        Some(Elsewhere::Instance(_)) => NAMED,
        _ => claim::CLAIMS_TTL,
    };
    let group = &shared.group;
    let given = claim::give_for(&mut connection, stream, group, handing, remembered).await?;
    if given == Given::TooOften {
        return Ok(Handed::TooOften);
    }
    let nudge = Publication {
        stream: keys.inbox(&to),
        fields: vec![b"type".to_vec(), NUDGE.into()],
    };
    drop(connection);
    tell(shared, &nudge).await;
    Ok(Handed::Over)
}

/// Tells whoever has an entry now. It is theirs, told or not: else they see it when they are told that they have another
/// one, or others do when nobody renewed it for long enough.
async fn tell(shared: &Shared, nudge: &Publication) {
    let mut backoff = Backoff::default();
    for tries in 1..=TRIES {
        let told = async {
            let mut connection = shared.process.connector.pooled().await?;
            nudge.store(&mut connection).await
        };
        let Err(error) = told.await else {
            return;
        };
        let again = matches!(error.reaction(), Reaction::Reconnect | Reaction::Wait);
        if !again || tries == TRIES {
            tracing::warn!(inbox = nudge.stream, %error, "an event was handed over, and the one who has it could not be told: it waits for claim_idle at the most");
            return;
        }
        tokio::time::sleep(backoff.failed()).await;
    }
}

/// Tells an instance, through its inbox, that an entry was handed to it.
pub(super) const NUDGE: &str = "worker.nudge";
