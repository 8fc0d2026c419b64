//! What events mean to this process: handlers by event type, each with its policy.

#[doc(hidden)]
pub mod assembly;
#[doc(hidden)]
pub mod context;
#[doc(hidden)]
pub mod dispatch;
#[doc(hidden)]
pub mod fence;
#[doc(hidden)]
pub mod function;
#[doc(hidden)]
pub mod gate;
#[doc(hidden)]
pub mod layers;
#[doc(hidden)]
pub mod pace;
#[doc(hidden)]
pub mod policy;
#[doc(hidden)]
pub mod progress;
#[doc(hidden)]
pub mod router;
#[doc(hidden)]
pub mod state;
pub(crate) mod telling;

pub use crate::connect::connector::Pooled;
pub use context::Context;
pub use function::{Encoded, Endpoint, Handler, Run, Schemas};
pub use policy::{CircuitPolicy, Fallback, OpenStack, Policy, PolicyError, RetryPolicy, Stack};
pub use router::Registration;
pub use state::{State, StateType};
