//! The effects of a committed transaction that failed by themselves: what is lost becomes a dead letter of its own.

use super::Committer;
use super::settlement::{Disposition, Publication, Receipt, Settlement, Worth};
use crate::protocol::dead::DeadLetter;
use crate::protocol::entry::Entry;

/// An effect of a committed settlement that could not be written.
pub(super) struct Unwritten {
    pub(super) receipt: Receipt,
    pub(super) stream: String,
    pub(super) fields: Vec<Vec<u8>>,
    pub(super) message: String,
}

impl Committer {
    /// Finds the effects of a committed transaction that failed by themselves (a key of the wrong
    /// type). Returns how many events became dead letters, since who asked could not be told.
    pub(super) async fn make_good(&self, batch: &[Settlement], failed: &[(usize, String)]) -> u64 {
        if failed.is_empty() {
            return 0;
        }
        let (mut lost, mut untold) = (Vec::new(), Vec::new());
        let mut next = 0;
        for settlement in batch {
            settlement.effects(self.place(&settlement.receipt), |effect| {
                if effect.worth == Worth::Instead {
                    return;
                }
                let failure = failed.iter().find(|(number, _)| *number == next);
                next += 1;
                let Some((_, message)) = failure else {
                    return;
                };
                match &settlement.disposition {
                    Disposition::Told(letter) if effect.worth != Worth::Needed => {
                        untold.push((settlement.receipt, letter));
                    }
                    // Nobody waits for it.
                    _ if effect.worth == Worth::There && message.is_empty() => {}
                    _ => lost.push(Unwritten {
                        receipt: settlement.receipt,
                        stream: effect.stream(),
                        fields: effect.fields(),
                        message: message.clone(),
                    }),
                }
            });
        }
        for (receipt, letter) in &untold {
            self.keep(receipt, letter).await;
        }
        self.bury(lost).await;
        untold.len() as u64
    }

    /// What could not be written becomes a dead letter of its own: the event is acknowledged already.
    pub(super) async fn bury(&self, lost: Vec<Unwritten>) {
        for Unwritten {
            receipt,
            stream,
            fields,
            message,
        } in lost
        {
            let route = &self.routes[receipt.stream];
            let letter = DeadLetter {
                entry: Entry::new(receipt.entry, fields),
                reason: "failed_precondition".into(),
                message,
                attempts: 0,
                deliveries: receipt.deliveries,
                stream,
                instance: self.consumer.clone(),
                time: self.claims.server_now(),
            };
            let stored = self.keep(&receipt, &letter).await;
            tracing::error!(
                stream = route.events,
                error = letter.message,
                dead_letter = stored,
                "a committed event's reply or publication could not be written"
            );
        }
    }

    /// Stores a dead letter by itself; whether that went well.
    async fn keep(&self, receipt: &Receipt, letter: &DeadLetter) -> bool {
        let burial = Publication {
            stream: self.routes[receipt.stream].dead.clone(),
            fields: letter.fields(),
        };
        match self.connector.pooled().await {
            Ok(mut connection) => burial.store(&mut connection).await.is_ok(),
            Err(_) => false,
        }
    }
}
