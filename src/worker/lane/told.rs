//! A lane reports its runs, where telemetry is wanted: each run as it ends; what became of its event, and the events that
//! it published, once they are committed.

use super::Lane;
use crate::handler::context::Context;
use crate::handler::function::Encoded;
use crate::handler::telling::{error_of, sent};
use crate::protocol::error::HandlerError;
use crate::protocol::trace::TraceContext;
use crate::streams::commit::{Disposition, Receipt, Settlement, Tally};
use crate::telemetry::{Message, Settling, Span, Telemetry, Work, lasted};
use std::time::{Duration, Instant};

/// A run that was reported, and whose outcome is not committed yet.
pub(super) struct Followed {
    own: TraceContext,
    message: Message,
}

/// What is reported about one outcome once it is committed.
pub(super) struct Ended {
    receipt: Receipt,
    settle: Span,
    sent: Vec<Span>,
}

/// The same of a batch.
#[derive(Default)]
pub(super) struct ToTell(Option<(Telemetry, Vec<Ended>, Instant)>);

impl Lane {
    /// Reports a run that has ended.
    pub(super) fn tell_run(
        &mut self,
        receipt: Receipt,
        context: &Context,
        result: &Result<Encoded, HandlerError>,
        elapsed: Duration,
    ) {
        let Some((telemetry, own)) = context.told_by() else {
            return;
        };
        let stream = &self.shared.routes[receipt.stream].events;
        let message = Message::of(context.event(), stream, receipt.deliveries);
        telemetry.tell(Span {
            own,
            parent: context.trace_parent(),
            work: Work::Run,
            message: message.clone(),
            times: lasted(elapsed),
            error: result.as_ref().err().map(error_of),
        });
        self.followed.insert(receipt, Followed { own, message });
    }

    /// What is to be reported about these outcomes once they are committed.
    pub(super) fn what_to_tell(&mut self, batch: &[Settlement]) -> ToTell {
        if self.followed.is_empty() {
            return ToTell::default();
        }
        let Some(telemetry) = self.shared.process.telemetry.clone() else {
            return ToTell::default();
        };
        let followed = batch.iter().filter_map(|settlement| {
            let Followed { own, message } = self.followed.remove(&settlement.receipt)?;
            Some(settling(own, message, settlement))
        });
        let followed = followed.collect();
        ToTell(Some((telemetry, followed, Instant::now())))
    }
}

fn settling(own: TraceContext, message: Message, settlement: &Settlement) -> Ended {
    let how = match settlement.disposition {
        Disposition::Done | Disposition::Told(_) => Settling::Ack,
        Disposition::Later { .. } => Settling::Retry,
        Disposition::Dead(_) => Settling::Dead,
    };
    let published = settlement.publications.iter();
    Ended {
        receipt: settlement.receipt,
        settle: Span {
            own: own.child(),
            parent: Some(own),
            work: Work::Settle(how),
            message,
            times: (0, 0),
            error: None,
        },
        sent: published.filter_map(|one| sent(own, one)).collect(),
    }
}

impl ToTell {
    /// Reports how it ended.
    pub(super) fn tell(self, tally: &Tally) {
        let Some((telemetry, all, began)) = self.0 else {
            return;
        };
        let times = lasted(began.elapsed());
        for one in all {
            let error = tally.unwritten.contains(&one.receipt).then(|| {
                let why = "not committed: the entry is another worker's by now, or runs again";
                ("not_committed", why.to_owned())
            });
            if error.is_none() {
                for span in one.sent {
                    telemetry.tell(Span { times, ..span });
                }
            }
            telemetry.tell(Span {
                times,
                error,
                ..one.settle
            });
        }
    }
}
