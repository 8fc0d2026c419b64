//! A run of a batch handler in a lane: one slot, many events, an outcome for each.

use super::finished::{Finished, Ran};
use super::run::span_of;
use super::spread::Timed;
use super::{ALONE, Lane, Waiting};
use crate::handler::batch::Outcomes;
use crate::handler::fence::Fenced;
use std::sync::Arc;
use std::time::Instant;
use tracing::Instrument;

impl Lane {
    /// Runs some events of one batch handler, in a task.
    pub(super) fn go_many(&mut self, mut lot: Vec<Waiting>, now: Instant) -> Instant {
        if let Some(first) = lot.first()
            && self.shared.pausing.concerns(first.route.index)
        {
            let lot_before = std::mem::take(&mut lot).into_iter();
            lot = lot_before
                .filter_map(|waiting| self.unless_paused_now(waiting))
                .collect();
        }
        lot.retain(|waiting| {
            let receipt = waiting.receipt;
            if self.is_lost(&receipt, waiting.waited) {
                self.let_go(&[receipt]);
                return false;
            }
            !(waiting.waited && self.expires(receipt, waiting.context.event()))
        });
        let Some(held) = self.admission.began_lot(&lot) else {
            return now;
        };
        let route = lot[0].route.clone();
        let Some(lots) = route.lots.clone() else {
            return now;
        };
        if self.tries(&lot[0].receipt) >= ALONE {
            self.alone = Some(lot[0].receipt);
        }
        self.running += 1;
        self.batched += held.events - 1;
        let span = span_of(&lot[0].context);
        let contexts: Vec<_> = lot.iter().map(|one| one.context.clone()).collect();
        let of_each = lot.iter().map(|one| (one.receipt, one.context.clone()));
        let of_each: Vec<_> = of_each.collect();
        let (finished, kind) = (self.finished.clone(), Arc::clone(&route));
        let timeout = route.timeout();
        let task = tokio::spawn(async move {
            let began = Instant::now();
            let outcomes = Outcomes::default();
            let told = outcomes.clone();
            // Its payloads are decoded here, and not in the lane.
            let run = Fenced::start(|| Box::pin(async move { lots.start(contexts, told).await }));
            let run = run.within(&kind.kind, timeout);
            let run = Timed::new(run, kind.clone(), None);
            let result = run.instrument(span).await;
            let elapsed = began.elapsed();
            let behind = lot.first().and_then(|one| one.context.left_behind());
            let outcomes = outcomes.of(lot.len(), result);
            let ran = lot.into_iter().zip(outcomes).map(|(one, result)| Ran {
                receipt: one.receipt,
                context: one.context,
                route: one.route,
                result,
                elapsed,
                back: None,
                judged_in: one.judged_in,
                blocks: false,
            });
            let ran = ran.collect();
            match behind {
                None => finished.send(Finished::Lot(ran, Some(held))).ok(),
                Some(thread) => {
                    finished.send(Finished::Lot(ran, None)).ok();
                    thread.cancelled().await;
                    finished.send(Finished::Lot(Vec::new(), Some(held))).ok()
                }
            }
        });
        for (receipt, context) in of_each {
            let task = task.abort_handle();
            self.shared
                .inflight
                .runs(&receipt, route.index, context, task);
        }
        now
    }
}
