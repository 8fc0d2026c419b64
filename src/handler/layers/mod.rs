//! What a policy asks for, one rule a file; [`crate::handler::assembly`] puts them together.
//!
//! From the outside in: the user's own layers, the cache, the time-out, the handler. Before them stand
//! order, rate, circuit and concurrency, which decide when a run begins. A result that is in the cache
//! waits for none of these.

pub mod breaker;
pub mod cache;
pub mod circuit;
pub mod instrument;
pub mod rate_limit;
pub mod timeout;

use crate::handler::context::Context;
use crate::handler::function::{Encoded, Run};
use crate::protocol::error::HandlerError;
use tower::Service;

/// What a layer here goes around: a service that takes every call at once and boxes its runs.
pub trait Always:
    Service<Context, Response = Encoded, Error = HandlerError, Future = Run>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Always for S where
    S: Service<Context, Response = Encoded, Error = HandlerError, Future = Run>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// The parts of a `Service<Context>` that are the same for every layer here.
macro_rules! always_ready {
    () => {
        type Response = $crate::handler::function::Encoded;
        type Error = $crate::protocol::error::HandlerError;
        type Future = $crate::handler::function::Run;

        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), $crate::protocol::error::HandlerError>> {
            std::task::Poll::Ready(Ok(()))
        }
    };
}
pub(crate) use always_ready;
