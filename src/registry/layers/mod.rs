//! The policies as tower layers, one a file.

pub mod instrument;

use super::context::Process;
use super::handler::Endpoint;
use super::policy::{Policy, Stack};
use std::sync::Arc;
use std::time::Duration;

/// What layers need besides the policy.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The process: key names, connections, instance id.
    pub process: Arc<Process>,
    /// The timeout of a handler whose policy names none.
    pub handler_timeout: Duration,
}

/// Puts the layers that the policy asks for around a handler; `None` if it asks for none.
pub fn stack(
    _kind: &str,
    _policy: &Policy,
    _endpoint: Endpoint,
    _stats: &Arc<instrument::Stats>,
    _surroundings: &Surroundings,
) -> Option<Stack> {
    None
}
