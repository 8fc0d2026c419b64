//! Which scripts workers and operators load for those who may not load any.

use crate::client::publish::PUBLISH;
use crate::coordination::instances::roster::CENSUS;
use crate::coordination::tasks::list::LIST;
use redis::Script;

/// What publishers call to publish later or once only, and what everyone calls who looks at instances
/// and tasks.
pub fn called_by_others() -> Vec<&'static Script> {
    vec![&PUBLISH, &CENSUS, &LIST]
}
