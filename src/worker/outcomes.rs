//! Outcomes of events, on their way to the ledger. A lane notes them once they are committed, and waits for nobody: what
//! the database cannot take in time is lost, and counted.

use crate::connect::clock::local_now;
use crate::handler::context::Context;
use crate::handler::function::Encoded;
use crate::protocol::error::HandlerError;
use crate::protocol::outcome::EventOutcome;
use crate::settings::Settings;
use crate::settings::outcomes::OutcomesKept;
use crate::streams::commit::{Disposition, Receipt, Settlement, Tally};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// Outcomes that wait for the database, at the most.
pub(super) const WAITING: usize = 10_000;
/// Bytes of what a run failed with.
const MAX_MESSAGE: usize = 256;

/// Where outcomes go.
#[derive(Clone, Debug)]
pub(super) struct Outcomes {
    kept: Arc<OutcomesKept>,
    to: mpsc::Sender<EventOutcome>,
    lost: Arc<AtomicU64>,
}

/// The other end. A build without a database reads nothing of it.
#[derive(Debug)]
#[cfg_attr(
    not(any(feature = "ledger-sqlite", feature = "ledger-postgres")),
    expect(dead_code)
)]
pub(super) struct OutcomesReceiver {
    pub(super) from: mpsc::Receiver<EventOutcome>,
    /// How many were lost and are not told yet.
    pub(super) lost: Arc<AtomicU64>,
}

impl Outcomes {
    /// Both ends, if any are kept.
    pub(super) fn of(settings: &Settings) -> Option<(Self, OutcomesReceiver)> {
        // Settings were checked.
        let kept = OutcomesKept::parse(&settings.ledger_outcomes).ok()?;
        if settings.database_url.is_empty() || kept.is_nothing() {
            return None;
        }
        let (to, from) = mpsc::channel(WAITING);
        let lost = Arc::<AtomicU64>::default();
        let receiver = OutcomesReceiver {
            from,
            lost: lost.clone(),
        };
        let kept = Arc::new(kept);
        Some((Self { kept, to, lost }, receiver))
    }

    fn send(&self, outcome: EventOutcome) {
        if self.to.try_send(outcome).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The outcomes of a lane's runs that are not committed yet.
#[derive(Debug, Default)]
pub(super) struct Noted {
    outcomes: Option<Outcomes>,
    runs: HashMap<Receipt, EventOutcome>,
}

/// What is to be kept of a batch.
#[derive(Default)]
pub(super) struct ToNote(Option<(Outcomes, Vec<(Receipt, EventOutcome)>)>);

impl Noted {
    pub(super) fn new(outcomes: Option<Outcomes>) -> Self {
        Self {
            outcomes,
            runs: HashMap::new(),
        }
    }

    /// Notes a run that has ended, if its outcome is kept.
    pub(super) fn ran(
        &mut self,
        receipt: Receipt,
        stream: &str,
        context: &Context,
        result: &Result<Encoded, HandlerError>,
        elapsed: Duration,
    ) {
        let Some(outcomes) = &self.outcomes else {
            return;
        };
        let (event, id) = (context.event(), context.event().id());
        if !outcomes.kept.keeps(event.domain(), &id) {
            return;
        }
        let text = |text: Option<&str>| text.map(str::to_owned);
        let error = result.as_ref().err();
        let message = error.map(|error| {
            let message = error.bounded_message();
            message[..message.floor_char_boundary(MAX_MESSAGE)].to_owned()
        });
        let outcome = EventOutcome {
            stream: stream.to_owned(),
            entry: receipt.entry,
            attempt: event.attempt(),
            kind: event.kind().to_owned(),
            event: id,
            subject: text(event.subject()),
            source: text(event.source()),
            cause: text(event.cause()),
            instance: context.instance().to_owned(),
            deliveries: receipt.deliveries,
            ended: 0,
            took_us: i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX),
            outcome: String::new(),
            code: error.map(|error| error.code.as_str().to_owned()),
            message,
        };
        self.runs.insert(receipt, outcome);
    }

    /// What is to be kept of these settlements once they are committed.
    pub(super) fn of(&mut self, settled: &[Settlement]) -> ToNote {
        if self.runs.is_empty() {
            return ToNote::default();
        }
        let Some(outcomes) = self.outcomes.clone() else {
            return ToNote::default();
        };
        let noted = settled.iter().filter_map(|settlement| {
            let mut outcome = self.runs.remove(&settlement.receipt)?;
            outcome.outcome = match settlement.disposition {
                Disposition::Done => "done",
                Disposition::Told(_) => "failed",
                Disposition::Later { .. } => "retried",
                Disposition::Dead(_) => "dead",
            }
            .to_owned();
            Some((settlement.receipt, outcome))
        });
        let noted = noted.collect();
        ToNote(Some((outcomes, noted)))
    }
}

impl ToNote {
    /// Keeps those that were committed.
    pub(super) fn keep(self, tally: &Tally) {
        let Some((outcomes, noted)) = self.0 else {
            return;
        };
        let now = local_now().cast_signed();
        for (receipt, outcome) in noted {
            if !tally.unwritten.contains(&receipt) {
                outcomes.send(EventOutcome {
                    ended: now,
                    ..outcome
                });
            }
        }
    }
}
