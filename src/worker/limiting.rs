//! Has a worker's handlers run as the policies say.

use crate::coordination::policies::Documents;
use crate::handler::router::Router;
use crate::protocol::keys;

/// What each handler is limited by from now on; where no document names its type, that is its own policy.
pub(super) fn follow(router: &Router, held: &Documents) {
    for route in router.routes() {
        let domain = keys::domain_of(&route.kind);
        let asked = held.limits_of(&route.kind, domain);
        if route.ask(asked) && asked.rate.is_some() && route.lots.is_some() {
            tracing::warn!(
                r#type = route.kind,
                "a rate is set for a type whose handler takes many events at once: it is not limited"
            );
        }
    }
}
