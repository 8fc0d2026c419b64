//! Hybrid: the leader puts together what all last reported, and the answer reads that. What nobody renews lapses, and
//! whoever is asked then puts it together.

use super::{Answering, Ask, Handler, Metrics, whole};
use crate::builtin::Services;
use crate::coordination::error::CoordinationError;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What the leader keeps.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// When it was put together, in Unix milliseconds on the server.
    at: u64,
    metrics: Metrics,
}

/// The answer; `None` where no leader keeps one.
pub(super) async fn answer(
    services: &Services,
    ask: &Ask,
) -> Result<Option<Metrics>, CoordinationError> {
    let (now, kept) = services.instances.merged_metrics(ask.detailed).await?;
    let kept: Option<Kept> = kept.and_then(|kept| rmp_serde::from_slice(&kept).ok());
    Ok(kept.map(|kept| {
        let age = now.saturating_sub(kept.at);
        let mut metrics = kept.metrics;
        if !ask.histograms {
            metrics.drop_histograms();
        }
        Metrics {
            oldest_report_ms: metrics.oldest_report_ms.saturating_add(age),
            merged_ms: Some(age),
            ..metrics
        }
    }))
}

/// Puts together what all last reported, and keeps it for that long, short and in detail, if it leads then: who was
/// stopped meanwhile would put an older one in the place of a newer. The answer says how old it is.
pub(crate) async fn put_together(
    services: &Services,
    kept: Duration,
    leads: impl Fn() -> bool,
) -> Result<(), CoordinationError> {
    let instances = &services.instances;
    let (at, _) = instances.moment().await?;
    let metrics = whole(instances, &services.tasks).await?;
    let mut merged = Kept { at, metrics };
    // The short answer is the detailed one without its details: all is read once.
    for detailed in [true, false] {
        if !detailed {
            merged.metrics.drop_details();
        }
        // What is made of strings and numbers is always encoded.
        let bytes = rmp_serde::to_vec_named(&merged).unwrap_or_default();
        if leads() {
            instances
                .keep_merged_metrics(detailed, &bytes, kept)
                .await?;
        }
    }
    Ok(())
}

impl Metrics {
    fn drop_details(&mut self) {
        (self.handlers, self.patterns) = (None, None);
        (self.queue, self.scaling) = (None, None);
    }

    fn drop_histograms(&mut self) {
        self.latency = None;
        let handlers = self.handlers.iter_mut().flat_map(|all| all.values_mut());
        handlers.for_each(Handler::drop_histograms);
        let events = self.patterns.iter_mut().flat_map(|all| all.values_mut());
        let answers = events.flat_map(|event| event.values_mut());
        answers.for_each(Answering::drop_histograms);
    }
}

impl Handler {
    fn drop_histograms(&mut self) {
        self.latency = None;
    }
}

impl Answering {
    fn drop_histograms(&mut self) {
        (self.latency, self.age) = (None, None);
    }
}
