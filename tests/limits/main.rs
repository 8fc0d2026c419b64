//! Rates of runs per source, on a real server.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

use convoke::connect::connector::Connector;
use convoke::coordination::limits::{RateDecision, RateLimits};
use convoke::handler::assembly::Surroundings;
use convoke::handler::context::{Context, Process, States};
use convoke::handler::policy::{Policy, RetryPolicy};
use convoke::handler::router::{Registration, Router};
use convoke::protocol::error::{HandlerError, Refusal};
use convoke::protocol::event::{Entry, EntryId, Event, Limits};
use convoke::protocol::keys::Keys;
use convoke::protocol::rate::Rate;
use convoke::settings::RedisUrl;
use redis::Commands;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const KEY: &str = "cb:limit:image.resize:=w-1";
/// What is added to its period.
const MARGIN: Duration = Duration::from_millis(250);
/// Nothing comes back while a test goes on.
const SLOW: Rate = Rate {
    limit: 3,
    period: Duration::from_secs(1800),
};

/// The limits as one process sees them.
fn limits(redis: &support::Redis) -> RateLimits {
    let connector = Connector::new(&RedisUrl::new(redis.url()), 4).unwrap();
    RateLimits::new(connector, Keys::new("cb").unwrap())
}

async fn take(limits: &RateLimits, source: Option<&str>, rate: Rate) -> RateDecision {
    limits.take("image.resize", source, rate).await.unwrap()
}

async fn allowed(limits: &RateLimits, source: Option<&str>, rate: Rate) -> u32 {
    let mut count = 0;
    while take(limits, source, rate).await == RateDecision::Allowed {
        count += 1;
        assert!(count < 100, "no end of it");
    }
    count
}

/// Lets that much time go by for the bucket, by moving its times back.
fn age(redis: &support::Redis, by: Duration) {
    let mut connection = redis.connect();
    let kept: Vec<u8> = connection.get(KEY).unwrap();
    let mut runs: Vec<u64> = rmp_serde::from_slice(&kept).unwrap();
    for at in runs.iter_mut().step_by(2) {
        *at -= by.as_micros() as u64;
    }
    let _: () = redis::cmd("SET")
        .arg(KEY)
        .arg(rmp_serde::to_vec(&runs).unwrap())
        .arg("KEEPTTL")
        .query(&mut connection)
        .unwrap();
}

#[tokio::test]
async fn a_burst_of_the_limit_is_allowed_and_the_next_one_is_told_how_long_to_wait() {
    let redis = support::Redis::start();
    let limits = limits(&redis);
    assert_eq!(allowed(&limits, Some("w-1"), SLOW).await, 3);
    let kept: Vec<u8> = redis.connect().get(KEY).unwrap();
    let RateDecision::Refused(wait) = take(&limits, Some("w-1"), SLOW).await else {
        panic!("allowed");
    };
    assert!(wait <= SLOW.period + MARGIN, "{wait:?}");
    assert!(wait > SLOW.period - Duration::from_secs(60), "{wait:?}");
    let now: Vec<u8> = redis.connect().get(KEY).unwrap();
    assert_eq!(now, kept, "a refused run writes nothing");
}

#[tokio::test]
async fn no_period_wherever_it_begins_holds_more_runs_than_the_limit() {
    let redis = support::Redis::start();
    let limits = limits(&redis);
    let period = SLOW.period;
    for limit in [1, 3, 10, 100] {
        let _: () = redis.connect().del(KEY).unwrap();
        let rate = Rate { limit, period };
        // When each run was allowed, in a time that goes on by leaps.
        let mut allowed: Vec<Duration> = Vec::new();
        let (mut now, began) = (Duration::ZERO, Instant::now());
        for step in 0..if limit > 64 { 500 } else { 150_u32 } {
            let before = allowed.len();
            while take(&limits, Some("w-1"), rate).await == RateDecision::Allowed {
                allowed.push(now + began.elapsed());
                // Not all at once: a few here, the rest of the limit at some other time.
                if (allowed.len() - before) as u32 > (step * 7) % limit {
                    break;
                }
            }
            let leap = period * (1 + step * 13 % 29) / 61;
            now += leap;
            age(&redis, leap);
        }
        for pair in allowed.windows(limit as usize + 1) {
            let within = pair[limit as usize] - pair[0];
            assert!(
                within >= period,
                "{} runs of {limit} in {within:?}",
                limit + 1
            );
        }
        // And nobody waits for more than what it may cost.
        let rounds = (now.as_secs() / period.as_secs()) as usize;
        assert!(
            allowed.len() > rounds * limit as usize / 2,
            "{}",
            allowed.len()
        );
    }
}

#[tokio::test]
async fn no_bucket_outlives_the_period_of_its_last_run() {
    let redis = support::Redis::start();
    let limits = limits(&redis);
    for _ in 1..=4 {
        take(&limits, Some("w-1"), SLOW).await;
        let ttl: u64 = redis.connect().pttl(KEY).unwrap();
        let period = (SLOW.period + MARGIN).as_millis() as u64;
        assert!((period - 60_000..=period).contains(&ttl), "{ttl}");
    }
    // A period shorter than a millisecond.
    let short = Rate {
        limit: 3,
        period: Duration::from_micros(5),
    };
    take(&limits, Some("w-2"), short).await;
    let key = "cb:limit:image.resize:=w-2";
    support::eventually("the key goes away", || {
        !redis.connect().exists::<_, bool>(key).unwrap()
    });
}

#[tokio::test]
async fn two_processes_share_a_bucket() {
    let redis = support::Redis::start();
    let (one, other) = (limits(&redis), limits(&redis));
    let rate = Rate { limit: 20, ..SLOW };
    let asks = (0..60).map(|n| {
        let limits = if n % 2 == 0 { &one } else { &other };
        take(limits, Some("w-1"), rate)
    });
    let decisions = futures_util::future::join_all(asks).await;
    let allowed = decisions.iter().filter(|d| **d == RateDecision::Allowed);
    assert_eq!(allowed.count(), 20);
}

#[tokio::test]
async fn sources_have_buckets_of_their_own_and_those_without_share_one() {
    let redis = support::Redis::start();
    let limits = limits(&redis);
    assert_eq!(allowed(&limits, None, SLOW).await, 3);
    assert_eq!(allowed(&limits, Some(""), SLOW).await, 0);
    assert_eq!(allowed(&limits, Some("-"), SLOW).await, 3);
    assert_eq!(allowed(&limits, Some("w-1"), SLOW).await, 3);
    let decision = limits.take("image.crop", None, SLOW).await.unwrap();
    assert_eq!(decision, RateDecision::Allowed);
}

#[tokio::test]
async fn a_limit_that_does_not_divide_its_period_is_kept_exactly() {
    let redis = support::Redis::start();
    let limits = limits(&redis);
    for limit in [7, 9, 11, 13] {
        let rate = Rate { limit, ..SLOW };
        let source = format!("w-{limit}");
        assert_eq!(allowed(&limits, Some(&source), rate).await, limit);
    }
}

#[tokio::test]
async fn absurd_rates_are_bounded() {
    let redis = support::Redis::start();
    let limits = limits(&redis);
    let rate = |limit, period| Rate { limit, period };
    let year = Duration::from_secs(366 * 24 * 3600);
    let slowest = rate(1, Duration::MAX);
    assert_eq!(allowed(&limits, Some("w-1"), slowest).await, 1);
    let RateDecision::Refused(wait) = take(&limits, Some("w-1"), slowest).await else {
        panic!("allowed");
    };
    assert!(wait <= year + MARGIN, "{wait:?}");
    for (source, fast) in [
        ("w-2", rate(u32::MAX, Duration::ZERO)),
        ("w-3", rate(u32::MAX, Duration::MAX)),
        ("w-4", rate(10, Duration::from_micros(1))),
    ] {
        let decision = take(&limits, Some(source), fast).await;
        assert_eq!(decision, RateDecision::Allowed);
    }
    let none = rate(0, Duration::from_secs(1));
    let refused = RateDecision::Refused(none.period);
    assert_eq!(take(&limits, Some("w-5"), none).await, refused);
}

#[tokio::test]
async fn a_clock_that_went_back_or_a_rate_that_was_lowered_locks_nobody_out() {
    let redis = support::Redis::start();
    let limits = limits(&redis);
    let long = Rate {
        limit: 9,
        period: Duration::from_secs(180_000),
    };
    assert_eq!(allowed(&limits, Some("w-1"), long).await, 9);
    // Runs of the future, by a clock that went back by a day.
    let kept: Vec<u8> = redis.connect().get(KEY).unwrap();
    let mut runs: Vec<u64> = rmp_serde::from_slice(&kept).unwrap();
    runs.iter_mut()
        .step_by(2)
        .for_each(|at| *at += 86_400_000_000);
    let _: () = redis
        .connect()
        .set(KEY, rmp_serde::to_vec(&runs).unwrap())
        .unwrap();
    let RateDecision::Refused(wait) = take(&limits, Some("w-1"), SLOW).await else {
        panic!("allowed");
    };
    assert!(wait <= SLOW.period + MARGIN, "{wait:?}");
    for junk in [
        &b"not a number"[..],
        b"\x92\xa1a\xa1b",
        b"\x93\x01\x01\x01",
        b"\x81\x01\x01",
    ] {
        let _: () = redis.connect().set(KEY, junk).unwrap();
        assert_eq!(
            take(&limits, Some("w-1"), SLOW).await,
            RateDecision::Allowed
        );
        assert!(redis.connect().pttl::<_, i64>(KEY).unwrap() > 0);
    }
}

#[tokio::test]
async fn the_limit_holds_when_memory_is_full() {
    let redis = support::Redis::start();
    let limits = limits(&redis);
    let _: () = redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory", "1"])
        .query(&mut redis.connect())
        .unwrap();
    assert_eq!(allowed(&limits, Some("w-1"), SLOW).await, 3);
}

#[tokio::test]
async fn a_restart_of_the_server_costs_no_answer() {
    let mut redis = support::Redis::start();
    let limits = limits(&redis);
    assert_eq!(
        take(&limits, Some("w-1"), SLOW).await,
        RateDecision::Allowed
    );
    redis.restart();
    assert_eq!(
        take(&limits, Some("w-1"), SLOW).await,
        RateDecision::Allowed
    );
}

#[tokio::test]
async fn a_limited_handler_runs_its_share_and_what_the_cache_answers_costs_none() {
    let redis = support::Redis::start();
    let keys = Keys::new("cb").unwrap();
    let process = Arc::new(Process {
        instance: "w-1".into(),
        keys: keys.clone(),
        connector: Connector::new(&RedisUrl::new(redis.url()), 4).unwrap(),
        payload: Default::default(),
        states: States::default(),
        router: Default::default(),
        draining: Default::default(),
        progress: Default::default(),
        telemetry: None,
    });
    let policy = Policy::new()
        .cache(SLOW.period)
        .rate_limit(SLOW.limit, SLOW.period);
    let handler = async |_: Context, width: u8| Ok::<_, HandlerError>(width);
    let surroundings = Surroundings {
        process: process.clone(),
        handler_timeout: Duration::from_secs(30),
        limits: limits(&redis),
        circuits: None,
    };
    let registration = Registration::new("image.resize", handler, policy);
    let router = Router::new(vec![registration], RetryPolicy::default(), &surroundings).unwrap();
    let route = router.find("image.resize").unwrap();
    let run = |width: u8| {
        let fields: [&[u8]; 6] = [
            b"type",
            b"image.resize",
            b"source",
            b"w-1",
            b"data",
            &[width],
        ];
        let entry = Entry::new(EntryId { ms: 1, seq: 0 }, fields);
        let event = Event::parse(entry, &Limits::default(), &keys, "cb:events:image").unwrap();
        route.start(Context::new(event, process.clone()))
    };
    for width in [1, 1, 1, 2, 2, 3, 1, 2, 3] {
        assert_eq!(run(width).await, Ok(vec![width]));
    }
    let refused = run(4).await.unwrap_err();
    assert_eq!(refused.refusal, Some(Refusal::RateLimited));
    assert!(refused.retry_after.unwrap() > Duration::from_secs(1500));
    assert_eq!(run(1).await, Ok(vec![1]));
    assert_eq!(route.stats.rate_limited.load(Ordering::Relaxed), 1);
    assert!(redis.connect().exists::<_, bool>(KEY).unwrap());
}
