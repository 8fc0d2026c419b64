//! What events mean to this process: handlers by event type, each with its policy.
//!
//! A handler is an `async fn` of a [`Context`], the payload and up to three [`State`]s. A [`Policy`] says how it is run:
//!
//! ```
//! use convoke::{Context, HandlerError, Policy, State};
//! use std::time::Duration;
//!
//! struct Postman;
//!
//! async fn send(ctx: Context, text: String, _: State<Postman>) -> Result<(), HandlerError> {
//!     if text.is_empty() {
//!         // For good. Any other error by `?` is tried again.
//!         return Err(HandlerError::invalid_argument("the text is empty"));
//!     }
//!     ctx.publish("mail.sent", &text)
//! }
//!
//! let policy = Policy::new().timeout(Duration::from_secs(5)).attempts(3).ordered();
//! let builder = convoke::Worker::builder().handler_with("mail.send", send, policy);
//! ```

#[doc(hidden)]
pub mod assembly;
#[doc(hidden)]
pub mod batch;
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
pub mod limits;
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
#[doc(hidden)]
pub mod threads;

pub use crate::connect::connector::Pooled;
pub use batch::{Batch, BatchHandler, Batches};
pub use context::Context;
pub use function::{Encoded, Endpoint, Handler, Run, Schemas};
pub use policy::{CircuitPolicy, Fallback, OpenStack, Policy, PolicyError, RetryPolicy, Stack};
pub use router::Registration;
pub use state::{State, StateType};
