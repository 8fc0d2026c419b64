//! What is timed on the server, when its clock steps by an hour and by a day: the rows of the README's
//! table that the workers' own tests do not show.

use crate::batches::{asker, batches};
use crate::fleet::Fleet;
use crate::support::{Redis, keys, users};
use convoke::client::publish::{Outgoing, Published};
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::connect::epoch::Epoch;
use convoke::connect::silence::Answers;
use convoke::coordination::ballots::ballot::{BallotStatus, Vote};
use convoke::coordination::batches::Acquired;
use convoke::coordination::batches::batch::{BatchPlan, Mode};
use convoke::coordination::limits::{RateDecision, RateLimits};
use convoke::protocol::rate::Rate;
use convoke::settings::RedisUrl;
use std::time::{Duration, Instant};

/// In seconds; a little more than a dedup window.
const HOUR: i64 = 3660;
const DAY: i64 = 24 * HOUR;
const STEPS: [i64; 4] = [HOUR, -HOUR, DAY, -DAY];
const LEASE: Duration = Duration::from_secs(1);

async fn fleet() -> Fleet {
    Fleet::on(Redis::with_a_clock(), keys()).await
}

#[tokio::test]
async fn a_rate_lets_one_burst_more_through_and_nobody_waits_longer() {
    for step in STEPS {
        let fleet = fleet().await;
        let connector = Connector::new(&RedisUrl::new(fleet.redis.url()), 2).unwrap();
        let limits = RateLimits::new(connector, fleet.keys.clone());
        let rate = Rate {
            limit: 3,
            period: Duration::from_secs(600),
        };
        let burst = async || {
            let mut allowed = 0;
            loop {
                match limits.take("a.b", None, rate).await.unwrap() {
                    RateDecision::Allowed => allowed += 1,
                    RateDecision::Refused(wait) => return (allowed, wait),
                }
            }
        };
        assert_eq!(burst().await.0, 3, "{step} s");
        fleet.redis.step_clock(step).await;
        let (allowed, wait) = burst().await;
        assert_eq!(allowed, if step > 0 { 3 } else { 0 }, "{step} s");
        // The period is counted a little longer.
        let most = rate.period + Duration::from_millis(250);
        assert!(wait <= most, "{step} s: {wait:?}");
    }
}

#[tokio::test]
async fn a_ballot_may_expire_early_and_is_forgotten_early() {
    for step in STEPS {
        let fleet = fleet().await;
        for id in ["w-1", "w-2", "w-3"] {
            fleet.register(id, &[]).await;
        }
        let vote = async |id: &str| {
            let vote = Vote::new("d", id, vec![1]);
            fleet.ballots.vote(&vote).await
        };
        assert_eq!(
            vote("w-1").await.unwrap().status,
            BallotStatus::Open,
            "{step} s"
        );
        fleet.redis.step_clock(step).await;
        // By the clock ahead its instance is expired, and only one that is alive opens a ballot.
        if step == DAY {
            vote("w-2").await.unwrap_err();
            fleet.register("w-2", &[]).await;
        }
        let voted = vote("w-2").await.unwrap();
        let is = (voted.status, voted.voted, voted.electorate);
        match step {
            // Longer than it is kept: another ballot.
            DAY => assert_eq!(is, (BallotStatus::Decided, true, 1), "{step} s"),
            HOUR => assert_eq!(is, (BallotStatus::Expired, false, 3), "{step} s"),
            _ => assert_eq!(is, (BallotStatus::Decided, true, 3), "{step} s"),
        }
    }
}

#[tokio::test]
async fn a_dedup_window_ends_with_a_step_that_is_longer() {
    for step in STEPS {
        let fleet = fleet().await;
        let connector =
            Connector::new(&RedisUrl::new(fleet.redis.url_for(users::PUBLISHER)), 2).unwrap();
        let options = ClientOptions::default();
        let window = options.dedup_window.as_secs() as i64;
        let client = Client::new(connector, fleet.keys.clone(), options).unwrap();
        let event = Outgoing::new("a.b", &1).id("order-7").dedup(true);
        let publish = async || match client.publish(&event).await.unwrap() {
            Published::Stored { duplicate, .. } => duplicate,
            other => panic!("{other:?}"),
        };
        assert!(!publish().await && publish().await, "{step} s");
        fleet.redis.step_clock(step).await;
        assert_eq!(publish().await, step < window, "{step} s");
    }
}

#[tokio::test]
async fn a_holder_has_a_whole_lease_after_a_step() {
    for step in STEPS {
        let fleet = fleet().await;
        let answers = Answers::new(3 * LEASE);
        let hear = async || {
            let asked = Instant::now();
            let ms = fleet.instances.server_time().await.unwrap();
            answers.heard(asked, ms, Epoch::default());
        };
        let batches = batches(&fleet).judging_by(answers.clone());
        let items = [vec![1], vec![2]];
        let wanted = BatchPlan::new(
            "b-1",
            "a.b",
            Mode::Exclusive,
            &items,
            LEASE.as_millis() as u64,
        );
        let wanted = wanted.unwrap();
        hear().await;
        let held = batches.acquire(&wanted, asker("w-1", "r-1")).await.unwrap();
        let Acquired::Held(first, _) = held else {
            panic!("{step} s: {held:?}");
        };
        fleet.redis.step_clock(step).await;
        hear().await;
        let other = async || batches.acquire(&wanted, asker("w-2", "r-2")).await.unwrap();
        let busy = other().await;
        assert!(matches!(busy, Acquired::Busy { .. }), "{step} s: {busy:?}");
        // It renews in time, and keeps it; it renews no more, and loses it.
        let renewed = Instant::now();
        assert!(batches.renew("b-1", first.fence, LEASE).await.unwrap());
        let next = loop {
            hear().await;
            match other().await {
                Acquired::Held(next, _) => break next,
                busy => assert!(matches!(busy, Acquired::Busy { .. }), "{step} s: {busy:?}"),
            }
            assert!(renewed.elapsed() < 20 * LEASE, "{step} s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(next.fence > first.fence, "{step} s");
        // Valkey reads the clock once a turn of its loop, so a renewal may count from a moment before it.
        let lasted = renewed.elapsed() + Duration::from_millis(5);
        assert!(lasted >= LEASE, "{step} s: {lasted:?}");
    }
}
