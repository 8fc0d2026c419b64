//! Layers that know nothing of handlers: tower's own, and those of other crates.
//!
//! Their errors are boxed, so they can refuse with an error of theirs. A handler's error passes through them
//! boxed, and comes out as it was.

use super::Stack;
use crate::handler::context::Context;
use crate::handler::fence::Kept;
use crate::handler::function::Encoded;
use crate::protocol::error::{Code, HandlerError};
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Layer, Service, ServiceExt};

/// A handler with its layers around it, as layers see it that know nothing of handlers.
pub type OpenStack = BoxCloneSyncService<Context, Encoded, BoxError>;

/// A handler's error on its way through such a layer.
#[derive(Debug)]
struct Failed(HandlerError);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Failed {}

/// The handler's error, or that a layer refused: the event is tried again.
fn closed(error: BoxError) -> HandlerError {
    match error.downcast::<Failed>() {
        Ok(failed) => failed.0,
        Err(other) => {
            let said = HandlerError::from(other).message;
            HandlerError::new(Code::Unavailable, format!("a layer: {said}"))
        }
    }
}

impl super::Policy {
    /// The same as [`layer`](Self::layer) for layers that know nothing of handlers: tower's `timeout`, `load_shed`,
    /// `buffer`, `concurrency_limit` and `rate_limit` (within a `buffer`, since it cannot be cloned), one of them or a
    /// `ServiceBuilder` of several.
    ///
    /// A handler's error passes through as it is. An error of the layer itself is `unavailable`, and the event is tried
    /// again. What tower counts, it counts in this process; what the policy's own rules do about it, they do without
    /// spending an attempt.
    ///
    /// ```
    /// # use convoke::Policy;
    /// let policy = Policy::new().tower(tower::util::MapRequestLayer::new(|context: convoke::Context| context));
    /// ```
    #[must_use]
    pub fn tower<L>(mut self, layer: L) -> Self
    where
        L: Layer<OpenStack> + Send + Sync + 'static,
        L::Service: Service<Context, Response = Encoded> + Clone + Send + Sync + 'static,
        <L::Service as Service<Context>>::Error: Into<BoxError>,
        <L::Service as Service<Context>>::Future: Send + 'static,
    {
        let layer = Kept::new(layer);
        self.layers.push(Arc::new(move |inner: Stack| {
            let open = OpenStack::new(inner.map_err(|error| BoxError::from(Failed(error))));
            let layered = layer.layer(open);
            Stack::new(layered.map_err(|error| closed(error.into())))
        }));
        self
    }
}
