//! State that a handler takes as an argument, so that a worker cannot be built without it.

use std::any::{TypeId, type_name};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A value that the worker was built with, as an argument of a handler after its payload.
///
/// A worker that was not given a value of that type with [`state`](crate::worker::builder::Builder::state)
/// cannot be built. [`Context::state`](crate::Context::state) finds the same value, in the middle of a run.
///
/// ```
/// use convoke::{Context, HandlerError, State, Worker};
///
/// struct Prices { cents: u64 }
///
/// async fn charge(_: Context, pieces: u64, prices: State<Prices>) -> Result<u64, HandlerError> {
///     Ok(pieces * prices.cents)
/// }
///
/// let worker = Worker::builder().handler("account.charge", charge);
/// assert!(worker.build().unwrap_err().to_string().contains("Prices"));
///
/// let worker = Worker::builder().handler("account.charge", charge).state(Prices { cents: 7 });
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// assert!(worker.build().is_ok());
/// # });
/// ```
pub struct State<S>(Arc<S>);

impl<S> From<Arc<S>> for State<S> {
    fn from(value: Arc<S>) -> Self {
        Self(value)
    }
}

impl<S> Deref for State<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.0
    }
}

impl<S> Clone for State<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> fmt::Debug for State<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "State<{}>", type_name::<S>())
    }
}

/// A type of state that a handler takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateType {
    id: TypeId,
    name: &'static str,
}

impl StateType {
    /// The type as it is wanted.
    pub fn of<S: 'static>() -> Self {
        Self {
            id: TypeId::of::<S>(),
            name: type_name::<S>(),
        }
    }

    /// Which one.
    pub(crate) fn id(&self) -> TypeId {
        self.id
    }

    /// Its name, for people.
    pub fn name(&self) -> &'static str {
        self.name
    }
}
