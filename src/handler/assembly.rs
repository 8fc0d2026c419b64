//! Puts together what a policy asks for: the layers around a handler, and the gate before it.

use crate::coordination::limits::RateLimits;
use crate::handler::context::Process;
use crate::handler::fence::Kept;
use crate::handler::function::Endpoint;
use crate::handler::gate::Gate;
use crate::handler::gate::permits::Permits;
use crate::handler::layers::cache::{CacheLayer, Results};
use crate::handler::layers::circuit::{Circuit, CircuitChange};
use crate::handler::layers::instrument::Stats;
use crate::handler::layers::rate_limit::RateRule;
use crate::handler::limits::{Limits, LiveLimits};
use crate::handler::policy::{Policy, RetryPolicy, Stack};
use crate::protocol::rate::Metered;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tower::Layer;

/// What layers need besides the policy.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The process: key names, connections, instance id.
    pub process: Arc<Process>,
    /// The timeout of a handler whose policy names none.
    pub handler_timeout: Duration,
    /// Counts the rates, on connections that no handler takes.
    pub limits: RateLimits,
    /// Who is told when a circuit opens or closes.
    pub circuits: Option<UnboundedSender<CircuitChange>>,
}

/// What a policy asks for by itself.
pub fn limits_of(policy: &Policy, defaults: RetryPolicy, surroundings: &Surroundings) -> Limits {
    let timeout = policy.timeout.unwrap_or(Some(surroundings.handler_timeout));
    let per = policy.rate_per;
    Limits {
        timeout,
        retry: policy.retries(defaults),
        metered: policy.rate.map(|rate| Metered { rate, per }),
        concurrency: policy.concurrency,
        total: policy.total,
    }
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

/// The gate before a handler, with the layers around it that its policy asks for. It stands open where that asks for
/// nothing but a timeout.
pub fn gate(
    kind: &str,
    policy: &Policy,
    endpoint: Endpoint,
    stats: &Arc<Stats>,
    circuit: Option<&Arc<Circuit>>,
    limits: &Arc<LiveLimits>,
    surroundings: &Surroundings,
) -> Arc<Gate> {
    let is_plain = circuit.is_none()
        && policy.rate.is_none()
        && policy.concurrency.is_none()
        && policy.total.is_none()
        && policy.permits.is_none()
        && !policy.ordered
        && policy.cache.is_none()
        && policy.layers.is_empty();
    let mut service = Stack::new(endpoint);
    let permits = Permits::new(policy.concurrency);
    permits.share(policy.total);
    let cache = policy.cache.map(|ttl| (Results::new(ttl), Arc::default()));
    if let Some((results, _)) = &cache {
        let layer = CacheLayer::new(results.clone(), limits.clone(), stats.clone());
        service = Stack::new(layer.layer(service));
    }
    for layer in &policy.layers {
        service = layer(service);
    }
    Arc::new(Gate {
        kind: kind.into(),
        is_own: !is_plain,
        limits: limits.clone(),
        cache,
        subjects: policy.ordered.then(Arc::default),
        meter: RateRule::new(kind.into(), surroundings.limits.clone(), stats.clone()),
        over: Arc::default(),
        circuit: circuit.map(|circuit| (circuit.clone(), policy.fallback.clone())),
        permits: Arc::new(permits),
        lent: policy.permits.clone(),
        layered: !policy.layers.is_empty(),
        service: Kept::new(service),
    })
}

/// For tests that [`crate::testing`] does not fit: several runs behind one gate (a trial makes its own), parts of another
/// run, payloads as bytes.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::connect::connector::Connector;
    use crate::handler::context::Context;
    use crate::handler::context::States;
    use crate::handler::function::Encoded;
    use crate::protocol::error::HandlerError;
    use crate::protocol::event::{Entry, EntryId, Event, Limits};
    use crate::protocol::keys::Keys;
    use crate::settings::RedisUrl;

    /// The context of an event with these fields, of a process that is connected to nothing.
    pub(crate) fn context(fields: &[(&str, &[u8])]) -> Context {
        let keys = Keys::new("cb").unwrap();
        let mut all: Vec<Vec<u8>> = vec![b"type".to_vec(), b"image.resize".to_vec()];
        all.extend(
            fields
                .iter()
                .flat_map(|(n, v)| [n.as_bytes().to_vec(), v.to_vec()]),
        );
        let entry = Entry::new(EntryId { ms: 1, seq: 0 }, all);
        let event = Event::parse(entry, &Limits::default(), &keys, "cb:events:image").unwrap();
        Context::new(event, process())
    }

    /// A process that is connected to nothing.
    pub(crate) fn process() -> Arc<Process> {
        // Port 1: nobody listens there.
        let nowhere = RedisUrl::new("redis://127.0.0.1:1");
        Arc::new(Process {
            instance: "w-1".into(),
            keys: Keys::new("cb").unwrap(),
            connector: Connector::new(&nowhere, 1).unwrap(),
            payload: Default::default(),
            states: States::default(),
            router: Default::default(),
            draining: Default::default(),
            progress: Default::default(),
            telemetry: None,
        })
    }

    /// Limits that are counted nowhere.
    pub(crate) fn limits() -> RateLimits {
        let process = process();
        RateLimits::new(process.connector.clone(), process.keys.clone())
    }

    /// An endpoint of a function.
    pub(crate) fn endpoint<F, Fut>(run: F) -> Endpoint
    where
        F: Fn(Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Encoded, HandlerError>> + Send + 'static,
    {
        Endpoint::raw(move |context| Box::pin(run(context)))
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{context, endpoint, limits, process};
    use super::*;
    use crate::coordination::policies::RunLimits;
    use crate::handler::context::Context;
    use crate::handler::function::Encoded;
    use crate::handler::gate::{Manner, Places};
    use crate::handler::policy::RetryPolicy;
    use crate::handler::router::{Registration, Route, Router};
    use crate::protocol::error::{HandlerError, Refusal};
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::mpsc::unbounded_channel;

    /// The handler fails, or succeeds on payload 0.
    fn route(policy: Policy) -> (Arc<Route>, Arc<AtomicU32>) {
        let calls = Arc::new(AtomicU32::new(0));
        let counted = calls.clone();
        let mut registration =
            Registration::new("image.resize", async |_: Context, _: u8| Ok(0_u8), policy);
        registration.endpoint = endpoint(move |context: Context| {
            counted.fetch_add(1, Ordering::SeqCst);
            async move {
                match context.event().data() {
                    [0] => Ok(vec![7]),
                    _ => Err(HandlerError::internal("broken")),
                }
            }
        });
        let surroundings = Surroundings {
            process: process(),
            handler_timeout: Duration::from_secs(30),
            limits: limits(),
            circuits: None,
        };
        let router = Router::new(vec![registration], RetryPolicy::default(), &surroundings);
        let route = router.unwrap().find("image.resize").unwrap().clone();
        (route, calls)
    }

    async fn run(route: &Route, payload: u8) -> Result<Encoded, HandlerError> {
        route.start(context(&[("data", &[payload])])).await
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_cached_result_needs_no_circuit() {
        let policy = Policy::new().cache(MINUTE).circuit(1, MINUTE);
        let (handler, calls) = route(policy);
        assert_eq!(run(&handler, 0).await, Ok(vec![7]));
        assert!(run(&handler, 1).await.is_err());
        let circuit = handler.circuit.as_ref().unwrap();
        assert_eq!(circuit.state().as_str(), "open");
        assert_eq!(run(&handler, 0).await, Ok(vec![7]));
        let refused = run(&handler, 1).await.unwrap_err();
        assert_eq!(refused.refusal, Some(Refusal::CircuitOpen));
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        assert_eq!(handler.stats.cache_hits.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_fallback_answers_while_the_circuit_is_open() {
        let policy = Policy::new()
            .circuit(1, MINUTE)
            .fallback(|_, payload: u32| Ok(payload));
        let (handler, calls) = route(policy);
        assert!(run(&handler, 1).await.is_err());
        assert_eq!(run(&handler, 0).await, Ok(vec![0]));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn what_the_rate_limit_refuses_is_no_failure_of_the_handler() {
        let (handler, calls) = route(Policy::new().rate_limit(0, MINUTE).circuit(1, MINUTE));
        for _ in 0..3 {
            let refused = run(&handler, 1).await.unwrap_err();
            assert_eq!(refused.refusal, Some(Refusal::RateLimited));
        }
        assert_eq!(calls.load(Ordering::SeqCst), 0);
        assert_eq!(handler.circuit.as_ref().unwrap().state().as_str(), "closed");
        assert_eq!(handler.stats.rate_limited.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_is_a_failure_and_who_waits_for_its_turn_meets_the_open_circuit() {
        let policy = Policy::new()
            .ordered()
            .concurrency(4)
            .timeout(MINUTE)
            .circuit(1, 2 * MINUTE);
        let (sender, mut changes) = unbounded_channel();
        let surroundings = Surroundings {
            process: process(),
            handler_timeout: MINUTE,
            limits: limits(),
            circuits: Some(sender),
        };
        let circuit = circuit_of("image.resize", &policy, &surroundings);
        let hangs = endpoint(async |_| std::future::pending().await);
        let stats = Arc::default();
        let limits = limits_of(&policy, RetryPolicy::default(), &surroundings);
        let gate = gate(
            "image.resize",
            &policy,
            hangs,
            &stats,
            circuit.as_ref(),
            &Arc::new(LiveLimits::new(limits)),
            &surroundings,
        );
        let first = gate.start(context(&[("subject", b"s")]));
        let second = gate.start(context(&[("subject", b"s")]));
        let (first, second) = tokio::join!(first, second);
        let first = first.unwrap_err();
        assert_eq!(first.code, crate::protocol::error::Code::DeadlineExceeded);
        assert_eq!(first.refusal, None);
        assert_eq!(second.unwrap_err().refusal, Some(Refusal::CircuitOpen));
        assert!(changes.try_recv().unwrap().opened);
    }

    #[tokio::test]
    async fn a_run_that_began_without_a_limit_counts_when_one_comes() {
        let (route, _) = route(Policy::new());
        let began = route.counted();
        assert!(route.gate().is_none());
        let asked = RunLimits {
            worker: Some(1),
            ..RunLimits::default()
        };
        assert!(route.ask(asked));
        let gate = route.gate().unwrap();
        let enter = || gate.enter(context(&[]), Manner::Patient, Places::default(), None);
        let mut waits = enter();
        assert!(futures_util::poll!(&mut waits).is_pending());
        drop(began);
        let entered = waits.await.unwrap();
        assert!(futures_util::poll!(enter()).is_pending());
        drop(entered);
        assert!(futures_util::poll!(enter()).is_ready());
        assert!(route.ask(RunLimits::default()));
        assert!(route.gate().is_none());
    }

    #[test]
    fn each_part_of_a_policy_puts_a_gate_before_the_handler() {
        let surroundings = Surroundings {
            process: process(),
            handler_timeout: MINUTE,
            limits: limits(),
            circuits: None,
        };
        let layered = |policy: Policy| {
            let circuit = circuit_of("a.b", &policy, &surroundings);
            let inner = endpoint(async |_| Ok(Vec::new()));
            let stats = Arc::default();
            let limits = limits_of(&policy, RetryPolicy::default(), &surroundings);
            let gate = gate(
                "a.b",
                &policy,
                inner,
                &stats,
                circuit.as_ref(),
                &Arc::new(LiveLimits::new(limits)),
                &surroundings,
            );
            gate.stands()
        };
        assert!(!layered(Policy::new().timeout(MINUTE).silent()));
        assert!(layered(Policy::new().cache(MINUTE)));
        assert!(layered(Policy::new().rate_limit(1, MINUTE)));
        assert!(layered(Policy::new().circuit(1, MINUTE)));
        assert!(layered(Policy::new().concurrency(1)));
        assert!(layered(Policy::new().total(1)));
        assert!(layered(Policy::new().ordered()));
    }
}
