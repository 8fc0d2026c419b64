//! Has a worker's handlers run as its settings and the policies say.

use crate::coordination::policies::Documents;
use crate::handler::policy::Policy;
use crate::handler::router::{Registration, Router};
use crate::protocol::keys;
use crate::settings::{SettingError, Settings};

/// Puts the limits of the settings in the place of what the handlers' policies say.
pub(super) fn begin(
    handlers: &mut [Registration],
    settings: &Settings,
) -> Result<(), SettingError> {
    for (kind, limits) in settings.handler_limits()? {
        let Some(handler) = handlers.iter_mut().find(|one| one.kind == kind) else {
            // Workers with different handlers may share a file.
            tracing::warn!(r#type = kind, "limit: this worker has no handler for it");
            continue;
        };
        let mut policy = std::mem::take(&mut handler.policy);
        if let Some((failures, open_for)) = limits.circuit {
            policy = policy.circuit(failures, open_for);
        }
        if let Some(metered) = limits.rate {
            (policy.rate, policy.rate_per) = (Some(metered.rate), metered.per);
        }
        handler.policy = Policy {
            concurrency: limits.concurrency.or(policy.concurrency),
            total: limits.total.or(policy.total),
            timeout: limits.timeout.map(Some).or(policy.timeout),
            attempts: limits.attempts.or(policy.attempts),
            ..policy
        };
    }
    Ok(())
}

/// What each handler is limited by from now on; where no document names its type, that is its own policy.
pub(super) fn follow(router: &Router, held: &Documents) {
    for route in router.routes() {
        let domain = keys::domain_of(&route.kind);
        let asked = held.limits_of(&route.kind, domain);
        let is_counted = asked.rate.is_some() || asked.total.is_some();
        if route.ask(asked) && is_counted && route.lots.is_some() {
            tracing::warn!(
                r#type = route.kind,
                "a rate or a total is set for a type whose handler takes many events at once: it is not limited so"
            );
        }
    }
}
