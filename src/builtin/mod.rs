//! The built-in handlers, thin: decode, call coordination, answer. They are registered through the
//! same public face as a user's own.

pub(crate) mod children;
pub mod exec;
#[doc(hidden)]
pub mod exposition;
pub(crate) mod pipe;
mod process;
mod scarce;
pub mod services;
pub mod system;
pub mod task;
mod warden;

use crate::coordination::ballots::Ballots;
use crate::coordination::batches::Batches;
use crate::coordination::catalog::Catalog;
use crate::coordination::flow::Flow;
use crate::coordination::instances::Instances;
use crate::coordination::own_report::OwnReport;
use crate::coordination::patterns::PatternStore;
use crate::coordination::policies::Policies;
use crate::coordination::repairs::Repairs;
use crate::coordination::schedules::Schedules;
use crate::coordination::tasks::Tasks;
use crate::coordination::view::View;
use crate::handler::router::Registration;
use crate::streams::cancel::Canceller;
use rmpv::Value;
use services::Configured;
use system::batch_process::Runner;
use tokio::sync::{Notify, Semaphore};

/// What the built-in handlers call. They take it as any handler takes its state.
pub(crate) struct Services {
    /// Speaks for events: what one asks for is not this worker's own word.
    pub(crate) instances: Instances,
    pub(crate) tasks: Tasks,
    pub(crate) batches: Batches,
    pub(crate) runner: Runner,
    pub(crate) ballots: Ballots,
    pub(crate) view: View,
    pub(crate) flow: Flow,
    pub(crate) catalog: Catalog,
    pub(crate) own_report: OwnReport,
    pub(crate) patterns: PatternStore,
    pub(crate) policies: Policies,
    pub(crate) schedules: Schedules,
    pub(crate) repairs: Repairs,
    pub(crate) canceller: Canceller,
    /// Places of votes that wait for an arbiter.
    pub(crate) arbitration: Semaphore,
    /// Something may wait for this worker, or it has room again.
    pub(crate) nudged: Notify,
    pub(crate) configured: Configured,
}

/// All built-in handlers.
pub fn registrations() -> Vec<Registration> {
    let mut all = system::registrations();
    all.extend(task::registrations());
    all
}

/// A MessagePack value as it travels on; its bounds are checked where it is stored.
fn encoded(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A vector takes every write.
    rmpv::encode::write_value(&mut bytes, value).ok();
    bytes
}
