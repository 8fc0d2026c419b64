//! Results of earlier runs for the same payload.

use crate::connect::clock::NEVER;
use crate::handler::context::Context;
use crate::handler::function::{Encoded, Run};
use crate::handler::layers::instrument::Stats;
use crate::handler::layers::{Always, always_ready};
use crate::handler::limits::LiveLimits;
use crate::mutex::locked;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;
use tower::{Layer, Service};

/// Results that one handler's cache holds at most.
const MAX_ENTRIES: usize = 1024;
/// Bytes of payloads and results that one handler's cache holds at most.
const MAX_BYTES: usize = 8 * 1024 * 1024;
/// A larger payload with its result is not kept: it would push out too many others.
const MAX_ENTRY: usize = MAX_BYTES / 8;

#[derive(Debug)]
struct Store {
    ttl: Duration,
    results: HashMap<Arc<[u8]>, Encoded>,
    // All live equally long, so the oldest is the next to expire.
    by_age: VecDeque<(Instant, Arc<[u8]>)>,
    bytes: usize,
}

impl Store {
    fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            results: HashMap::new(),
            by_age: VecDeque::new(),
            bytes: 0,
        }
    }

    fn get(&mut self, payload: &[u8], now: Instant) -> Option<Encoded> {
        self.expire(now);
        self.results.get(payload).cloned()
    }

    fn put(&mut self, payload: &[u8], result: &[u8], now: Instant) {
        self.expire(now);
        let size = payload.len() + result.len();
        if size > MAX_ENTRY || self.results.contains_key(payload) {
            return;
        }
        while self.results.len() >= MAX_ENTRIES || self.bytes + size > MAX_BYTES {
            self.drop_oldest();
        }
        let payload: Arc<[u8]> = payload.into();
        self.by_age
            .push_back((now + self.ttl.min(NEVER), payload.clone()));
        self.results.insert(payload, result.to_vec());
        self.bytes += size;
    }

    fn expire(&mut self, now: Instant) {
        while self.by_age.front().is_some_and(|(end, _)| *end <= now) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, payload)) = self.by_age.pop_front()
            && let Some(result) = self.results.remove(&payload)
        {
            self.bytes -= payload.len() + result.len();
        }
    }
}

/// The results that one handler's cache holds. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Results(Arc<Mutex<Store>>);

impl Results {
    /// Keeps each result for `ttl`.
    pub fn new(ttl: Duration) -> Self {
        Self(Arc::new(Mutex::new(Store::new(ttl))))
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        locked(&self.0)
    }

    /// The result for that payload.
    pub fn get(&self, payload: &[u8]) -> Option<Encoded> {
        self.lock().get(payload, Instant::now())
    }
}

/// Answers a payload that was answered well lately with the same result, without a run.
///
/// Payloads are compared whole, byte by byte. Failures are not kept, a run that took too long among them,
/// nor results of runs that published something, changed a database by `once` or may have written to the
/// server: an answer from the cache does none of that.
#[derive(Clone, Debug)]
pub struct CacheLayer {
    results: Results,
    limits: Arc<LiveLimits>,
    stats: Arc<Stats>,
}

impl CacheLayer {
    /// Answers with those results, and keeps new ones there of runs that took no longer than they may.
    pub fn new(results: Results, limits: Arc<LiveLimits>, stats: Arc<Stats>) -> Self {
        Self {
            results,
            limits,
            stats,
        }
    }
}

impl<S> Layer<S> for CacheLayer {
    type Service = Cache<S>;

    fn layer(&self, inner: S) -> Cache<S> {
        Cache {
            inner,
            layer: self.clone(),
        }
    }
}

/// See [`CacheLayer`].
#[derive(Clone, Debug)]
pub struct Cache<S> {
    inner: S,
    layer: CacheLayer,
}

impl<S: Always> Service<Context> for Cache<S> {
    always_ready!();

    fn call(&mut self, context: Context) -> Run {
        let found = context.answer();
        let found = found.or_else(|| self.layer.results.get(context.event().data()));
        if let Some(result) = found {
            self.layer.stats.cache_hits.fetch_add(1, Ordering::Relaxed);
            return Box::pin(std::future::ready(Ok(result)));
        }
        let layer = self.layer.clone();
        let began = Instant::now();
        let run = self.inner.call(context.clone());
        Box::pin(async move {
            let result = run.await?;
            // It may have held its thread: then it ended well, and too late.
            let timeout = layer.limits.now().timeout;
            let late = timeout.is_some_and(|limit| began.elapsed() > limit);
            let effect = context.effect().load(Ordering::Acquire);
            if !late && !context.has_published() && !context.wrote() && !effect {
                layer
                    .results
                    .lock()
                    .put(context.event().data(), &result, Instant::now());
            }
            Ok(result)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::assembly::testing::{context, endpoint};
    use crate::handler::limits::Limits;
    use crate::handler::policy::RetryPolicy;
    use crate::protocol::error::HandlerError;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU8;

    const TTL: Duration = Duration::from_secs(10);
    const LIMIT: Duration = Duration::from_secs(1);

    /// Answers how often it was called; fails on payload 0xc2, publishes on 0xc3, writes on 0x7f,
    /// has an effect on 0x7e, takes too long on 0x7d.
    fn counting() -> (Cache<crate::handler::function::Endpoint>, Arc<Stats>) {
        let stats = Arc::new(Stats::default());
        let limits = Arc::new(LiveLimits::new(Limits {
            timeout: Some(LIMIT),
            retry: RetryPolicy::default(),
            metered: None,
            concurrency: None,
            total: None,
        }));
        let calls = Arc::new(AtomicU8::new(0));
        let inner = endpoint(move |context: Context| {
            let call = calls.fetch_add(1, Ordering::SeqCst);
            async move {
                match context.event().data() {
                    [0xc2] => return Err(HandlerError::not_found("nothing")),
                    [0xc3] => context.publish("a.c", &1)?,
                    [0x7f] => context.writes(),
                    [0x7e] => context.effect().store(true, Ordering::Release),
                    [0x7d] => tokio::time::advance(2 * LIMIT).await,
                    _ => {}
                }
                Ok(vec![call])
            }
        });
        (
            CacheLayer::new(Results::new(TTL), limits, stats.clone()).layer(inner),
            stats,
        )
    }

    async fn ask(
        service: &mut Cache<crate::handler::function::Endpoint>,
        data: &[u8],
    ) -> Result<Encoded, HandlerError> {
        service.call(context(&[("data", data)])).await
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_payload_gets_the_same_result_until_it_expires() {
        let (mut service, stats) = counting();
        assert_eq!(ask(&mut service, &[1]).await, Ok(vec![0]));
        assert_eq!(ask(&mut service, &[2]).await, Ok(vec![1]));
        tokio::time::advance(TTL - Duration::from_millis(1)).await;
        assert_eq!(ask(&mut service, &[1]).await, Ok(vec![0]));
        assert_eq!(stats.cache_hits.load(Ordering::Relaxed), 1);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(ask(&mut service, &[1]).await, Ok(vec![2]));
        assert_eq!(stats.cache_hits.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_and_runs_that_publish_or_write_or_are_late_are_not_kept() {
        let (mut service, stats) = counting();
        for _ in 0..2 {
            assert!(ask(&mut service, &[0xc2]).await.is_err());
            let publishing = context(&[("data", &[0xc3])]);
            assert!(service.call(publishing.clone()).await.is_ok());
            assert_eq!(publishing.take_outbox().len(), 1);
            assert!(ask(&mut service, &[0x7f]).await.is_ok());
            assert!(ask(&mut service, &[0x7e]).await.is_ok());
            assert!(ask(&mut service, &[0x7d]).await.is_ok());
        }
        assert_eq!(stats.cache_hits.load(Ordering::Relaxed), 0);
    }

    proptest! {
        // Few cases, each long enough to reach a bound: of the entries or of the bytes.
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn the_store_stays_within_its_bounds_and_never_mixes_payloads_up(
            largest in prop_oneof![Just(64usize), Just(MAX_ENTRY / 16)],
            puts in proptest::collection::vec((0u32..5000, any::<u16>(), 0u64..10), 1..2000)
        ) {
            let mut store = Store::new(TTL);
            let mut now = Instant::now();
            for (key, size, wait) in puts {
                now += Duration::from_millis(wait);
                let mut result = key.to_be_bytes().to_vec();
                result.resize(4 + usize::from(size) % largest, 0);
                store.put(&key.to_be_bytes(), &result, now);
                prop_assert!(store.results.len() <= MAX_ENTRIES);
                prop_assert!(store.bytes <= MAX_BYTES);
                prop_assert_eq!(store.results.len(), store.by_age.len());
                if let Some(found) = store.get(&key.to_be_bytes(), now) {
                    prop_assert_eq!(&found[..4], &key.to_be_bytes());
                }
            }
            store.expire(now + TTL);
            prop_assert_eq!(store.bytes, 0);
        }
    }

    #[test]
    fn a_result_that_is_too_large_is_not_kept() {
        let mut store = Store::new(TTL);
        let now = Instant::now();
        store.put(&[1], &vec![0; MAX_ENTRY], now);
        assert_eq!(store.get(&[1], now), None);
    }
}
