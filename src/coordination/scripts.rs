//! What scripts share, and which ones workers and operators load for those who may not load any.

use crate::client::publish::PUBLISH;
use crate::coordination::instances::roster::CENSUS;
use crate::coordination::tasks::list::LIST;
use crate::streams::delay::LOOK;
use redis::Script;

/// What raises the version of the state: put before the scripts that change any of it.
pub(super) const VERSION: &str = include_str!("version.lua");

/// What counts suspects: put before the scripts that need the number.
pub(super) const SUSPECTS: &str = include_str!("instances/suspects.lua");

/// What publishers call to publish later or once only, and what everyone calls who looks at instances,
/// tasks and delay queues.
pub fn called_by_others() -> Vec<&'static Script> {
    vec![&PUBLISH, &CENSUS, &LIST, &LOOK]
}
