//! The policies as tower layers, one a file.
//!
//! From the outside in: the user's own, cache, rate limit, circuit, concurrency, order, timeout. So a
//! cached result costs no share of the rate, a refused run does not count as the handler's failure,
//! and the time in which a run waits for its turn is not held against it.

pub mod breaker;
pub mod cache;
pub mod circuit;
pub mod concurrency;
pub mod instrument;
pub mod order;
pub mod timeout;

use self::circuit::{Circuit, CircuitChange};
use super::context::{Context, Process};
use super::handler::{Encoded, Endpoint, Run};
use super::policy::{Policy, Stack};
use crate::error::HandlerError;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tower::{Layer, Service};

/// What layers need besides the policy.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The process: key names, connections, instance id.
    pub process: Arc<Process>,
    /// The timeout of a handler whose policy names none.
    pub handler_timeout: Duration,
    /// Who is told when a circuit opens or closes.
    pub circuits: Option<UnboundedSender<CircuitChange>>,
}

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
        type Response = $crate::registry::handler::Encoded;
        type Error = $crate::error::HandlerError;
        type Future = $crate::registry::handler::Run;

        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), $crate::error::HandlerError>> {
            std::task::Poll::Ready(Ok(()))
        }
    };
}
pub(crate) use always_ready;

/// The timeout of a policy's handler, if it has one.
pub fn timeout_of(policy: &Policy, surroundings: &Surroundings) -> Option<Duration> {
    policy.timeout.unwrap_or(Some(surroundings.handler_timeout))
}

/// The circuit of a policy's handler, if it has one.
pub fn circuit_of(
    kind: &str,
    policy: &Policy,
    surroundings: &Surroundings,
) -> Option<Arc<Circuit>> {
    let circuit = Circuit::new(kind, policy.circuit?, surroundings.circuits.clone());
    Some(Arc::new(circuit))
}

/// Puts the layers that the policy asks for around a handler; `None` if it asks for none, or for a
/// timeout only, which the worker gives a run that is not ready at once.
pub fn stack(
    kind: &str,
    policy: &Policy,
    endpoint: Endpoint,
    stats: &Arc<instrument::Stats>,
    circuit: Option<&Arc<Circuit>>,
    surroundings: &Surroundings,
) -> Option<Stack> {
    let plain = circuit.is_none()
        && policy.concurrency.is_none()
        && !policy.ordered
        && policy.cache.is_none()
        && policy.layers.is_empty();
    if plain {
        return None;
    }
    let mut stack = match timeout_of(policy, surroundings) {
        Some(limit) => Stack::new(timeout::TimeoutLayer::new(kind.into(), limit).layer(endpoint)),
        None => Stack::new(endpoint),
    };
    if policy.ordered {
        stack = Stack::new(order::OrderLayer::default().layer(stack));
    }
    if let Some(limit) = policy.concurrency {
        stack = Stack::new(concurrency::ConcurrencyLayer::new(limit).layer(stack));
    }
    if let Some(circuit) = circuit {
        let layer = circuit::CircuitLayer::new(circuit.clone(), policy.fallback.clone());
        stack = Stack::new(layer.layer(stack));
    }
    if let Some(ttl) = policy.cache {
        stack = Stack::new(cache::CacheLayer::new(ttl, stats.clone()).layer(stack));
    }
    for layer in &policy.layers {
        stack = layer(stack);
    }
    Some(stack)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::bus::connect::Connector;
    use crate::bus::event::{Entry, EntryId, Event, Limits};
    use crate::bus::keys::Keys;
    use crate::config::RedisUrl;
    use crate::registry::context::States;

    /// The context of an event with these fields, of a process that is connected to nothing.
    pub fn context(fields: &[(&str, &[u8])]) -> Context {
        let keys = Keys::new("cb").unwrap();
        let mut all: Vec<Vec<u8>> = vec![b"type".to_vec(), b"image.resize".to_vec()];
        all.extend(
            fields
                .iter()
                .flat_map(|(n, v)| [n.as_bytes().to_vec(), v.to_vec()]),
        );
        let entry = Entry {
            id: EntryId { ms: 1, seq: 0 },
            fields: all,
        };
        let event = Event::parse(entry, &Limits::default(), &keys, "cb:events:image").unwrap();
        let process = Process {
            instance: "w-1".into(),
            keys,
            connector: Connector::new(&RedisUrl::default(), 1).unwrap(),
            states: States::default(),
        };
        Context::new(event, Arc::new(process))
    }

    /// An endpoint of a function.
    pub fn endpoint<F, Fut>(run: F) -> Endpoint
    where
        F: Fn(Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Encoded, HandlerError>> + Send + 'static,
    {
        Endpoint::raw(move |context| Box::pin(run(context)))
    }
}
