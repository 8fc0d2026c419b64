//! What this worker publishes of its handlers, and of what it reads.

use super::Chores;
use crate::connect::clock::whole_ms;
use crate::coordination::catalog::{self, Method, RateLimit};
use crate::handler::router::Route;
use crate::protocol::rate::Metered;
use std::time::Duration;

/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(60);

/// What there is to say of a handler; the time-out is the worker's where the handler has no other.
pub(crate) fn method(route: &Route, handler_timeout: Duration) -> Method {
    let policy = &route.policy;
    let timeout = policy.timeout.unwrap_or(Some(handler_timeout));
    let per = policy.rate_per;
    let metered = policy.rate.map(|rate| Metered { rate, per });
    Method {
        description: policy.description.clone().unwrap_or_default(),
        input_schema: route.schemas.input.clone().into(),
        output_schema: route.schemas.output.clone().into(),
        rate_limit: metered.map(RateLimit::from),
        timeout_ms: timeout.map(whole_ms),
    }
}

/// Publishes it again and again, long before it lapses.
pub(super) async fn run(chores: &Chores) {
    // The first time may have failed.
    let mut pause = PAUSE;
    loop {
        tokio::time::sleep(pause.mul_f64(fastrand::f64() / 2.0 + 0.75)).await;
        pause = match chores.publish().await {
            Ok(()) => catalog::KEPT / 3,
            Err(error) => {
                tracing::debug!(%error, "what the handlers are could not be published; trying again");
                PAUSE
            }
        };
    }
}
