//! Tells OpenTelemetry what this worker counted, where somebody is to be told.

use super::Chores;
use crate::coordination::answered;
use crate::telemetry::measures::{Handled, Measures};
use crate::worker::report::Reporter;
use std::time::{Duration, SystemTime};

/// The pause between two.
const PAUSE: Duration = Duration::from_secs(15);

/// Tells for ever.
pub(super) async fn run(chores: &Chores) {
    let first = chores.lanes.first();
    let Some(telemetry) = first
        .as_ref()
        .and_then(|lane| lane.process.telemetry.as_ref())
    else {
        return std::future::pending().await;
    };
    loop {
        telemetry.measured(measures(&chores.reporter, chores.since));
        tokio::time::sleep(PAUSE).await;
    }
}

/// What it counted by now.
pub(in crate::worker) fn measures(reporter: &Reporter, since: SystemTime) -> Measures {
    let report = reporter.report();
    let handlers = report.handlers.into_iter();
    let handlers = handlers.filter(|(kind, _)| !answered::is_name(kind));
    Measures {
        since,
        at: SystemTime::now(),
        in_flight: report.gauges.in_flight,
        memory: report.gauges.memory_bytes,
        processed: report.sums.events_processed,
        handlers: handlers
            .map(|(kind, did)| Handled {
                kind,
                calls: did.calls,
                errors: did.errors,
                retries: did.retries,
                rate_limited: did.rate_limited,
                latency: did.latency.unwrap_or_default(),
            })
            .collect(),
        dropped: 0,
    }
}
