//! How long seats count: leases, late calls, clocks.

use super::{KIND, LONG, Worker, taken};
use crate::fleet::Fleet;
use crate::support::{Redis, keys, until};
use std::time::Duration;

#[tokio::test]
async fn a_call_that_comes_after_its_worker_gave_all_back_takes_nothing() {
    let fleet = Fleet::start().await;
    let [gone, other] = ["w-1", "w-2"].map(|id| Worker::new(&fleet, id, LONG));
    assert_eq!(gone.take_as(9, 1, 0, 0).await.unwrap().gets, 0);
    assert_eq!(gone.take_as(8, 1, 0, 1).await, None);
    assert_eq!(other.gets(1, 0, 1).await, 1);
}

#[tokio::test]
async fn a_worker_that_comes_back_after_its_lease_begins_nothing_as_long_as_others_have_its_seats()
{
    let fleet = Fleet::start().await;
    // On a machine that stands still its lease ends again.
    until("it comes back, and its runs end", async || {
        let back = Worker::new(&fleet, "w-1", Duration::from_secs(1));
        let other = Worker::new(&fleet, "w-2", LONG);
        until("it has both", async || back.gets(2, 0, 2).await == 2).await;
        until("its seats are another one's", async || {
            other.gets(2, 0, 2).await == 2
        })
        .await;
        // Both of its runs go on, and more of them wait.
        let returned = back.take(2, 2, 1).await;
        assert_eq!((returned.gets, returned.keep), (0, 0));
        let both = other.take(2, 2, 0).await.keep;
        assert_eq!(back.gets(2, 1, 1).await, 0);
        let more = other.take(2, 2, 0).await.keep;
        assert_eq!(back.gets(2, 0, 1).await, 0);
        other.take(2, 0, 0).await;
        back.take(2, 0, 0).await;
        (both, more) == (0, 0)
    })
    .await;
}

#[tokio::test]
async fn the_seats_of_a_dead_worker_come_back_when_its_lease_ends_and_nothing_is_left_of_it() {
    let fleet = Fleet::start().await;
    let short = Duration::from_secs(1);
    let next = Worker::new(&fleet, "w-1", short);
    until(
        "the next process of its id says nothing of its runs",
        async || {
            let dead = Worker::new(&fleet, "w-1", short);
            let got = dead.gets(2, 0, 2).await;
            assert_eq!(next.gets(2, 0, 0).await, 0);
            got == 2 && taken(&fleet).await.seats == 2
        },
    )
    .await;
    until("its seats come back", async || {
        next.gets(2, 0, 2).await == 2
    })
    .await;
    let key = fleet.keys.seats(KIND);
    until("the hash lapses", async || {
        let mut connection = fleet.redis.connection().await;
        let mut exists = redis::cmd("EXISTS");
        exists.arg(&key);
        exists.query_async(&mut connection).await == Ok(0u64)
    })
    .await;
}

#[tokio::test]
async fn a_clock_that_is_set_back_keeps_no_seat_for_longer_than_a_lease() {
    let fleet = Fleet::on(Redis::with_a_clock(), keys()).await;
    let lease = Duration::from_secs(4);
    let dead = Worker::new(&fleet, "w-1", lease);
    assert_eq!(dead.gets(1, 0, 1).await, 1);
    fleet.redis.step_clock(-3660).await;
    let other = Worker::new(&fleet, "w-2", lease);
    assert_eq!(other.gets(1, 0, 1).await, 0);
    until("its seat comes back", async || {
        other.gets(1, 0, 1).await == 1
    })
    .await;
}

#[tokio::test]
async fn what_goes_on_counts_again_after_a_clock_that_stepped_ahead_as_soon_as_its_worker_says_so()
{
    let fleet = Fleet::on(Redis::with_a_clock(), keys()).await;
    let [one, two] = ["w-1", "w-2"].map(|id| Worker::new(&fleet, id, LONG));
    assert_eq!(one.gets(1, 0, 1).await, 1);
    fleet.redis.step_clock(3660).await;
    assert_eq!(two.gets(1, 0, 1).await, 1);
    assert_eq!(one.take(1, 1, 1).await.keep, 0);
    assert_eq!(two.take(1, 1, 0).await.keep, 0);
    one.take(1, 0, 0).await;
    assert_eq!(two.take(1, 1, 0).await.keep, 1);
}
