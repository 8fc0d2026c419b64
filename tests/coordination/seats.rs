//! Seats of a type, which all workers share.

use crate::fleet::Fleet;
use crate::support::until;
use convoke::connect::clock::local_now;
use convoke::connect::connector::Connector;
use convoke::coordination::seats::{Given, Needs, Seats, Taken, look};
use convoke::settings::RedisUrl;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

mod leases;

const LONG: Duration = Duration::from_secs(120);
const KIND: &str = "a.b";

/// One worker's process.
pub(crate) struct Worker {
    seats: Seats,
    call: AtomicU64,
}

impl Worker {
    pub(crate) fn new(fleet: &Fleet, id: &str, lease: Duration) -> Self {
        let connector = Connector::new(&RedisUrl::new(fleet.redis.url()), 2).unwrap();
        Self {
            seats: Seats::new(connector, fleet.keys.clone(), id, lease),
            call: AtomicU64::new(1),
        }
    }

    pub(crate) async fn take(&self, total: usize, has: usize, wants: usize) -> Given {
        let call = self.call.fetch_add(1, Ordering::Relaxed);
        self.take_as(call, total, has, wants).await.unwrap()
    }

    async fn take_as(&self, call: u64, total: usize, has: usize, wants: usize) -> Option<Given> {
        let needs = Needs {
            kind: KIND,
            call,
            total,
            has,
            wants,
        };
        self.seats.take(needs).await.ok()
    }

    async fn gets(&self, total: usize, has: usize, wants: usize) -> usize {
        self.take(total, has, wants).await.gets
    }
}

/// Has each ask once, and give back what it is not to keep. What they got.
async fn round(workers: &[Worker], has: &mut [usize], total: usize, wants: usize) -> Vec<usize> {
    let mut all = Vec::new();
    for (worker, has) in workers.iter().zip(has) {
        let given = worker.take(total, *has, wants).await;
        *has = (*has + given.gets).min(given.keep);
        all.push(given.gets);
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
    all
}

async fn taken(fleet: &Fleet) -> Taken {
    let connector = Connector::new(&RedisUrl::new(fleet.redis.url()), 2).unwrap();
    look(&connector, &fleet.keys, KIND).await.unwrap()
}

#[tokio::test]
async fn no_more_seats_are_given_than_there_are() {
    let fleet = Fleet::start().await;
    let (one, two) = (
        Worker::new(&fleet, "w-1", LONG),
        Worker::new(&fleet, "w-2", LONG),
    );
    assert_eq!(one.gets(3, 0, 2).await, 2);
    let given = two.take(3, 0, 2).await;
    assert_eq!((given.gets, given.others_wait), (1, false));
    until("it is seen that one waits", async || {
        assert_eq!(two.gets(3, 1, 1).await, 0);
        let seen = taken(&fleet).await;
        (seen.seats, seen.waits, seen.workers) == (3, 1, 1)
    })
    .await;
    // What goes on counts, whether or not there was a seat for it.
    let more = Worker::new(&fleet, "w-3", LONG);
    assert_eq!(more.gets(3, 2, 1).await, 0);
    assert_eq!(two.gets(4, 1, 1).await, 0);
    assert_eq!(more.gets(3, 0, 0).await, 0);
    assert_eq!(two.gets(4, 1, 1).await, 1);
}

#[tokio::test]
async fn a_call_that_is_repeated_gets_the_same_and_an_older_one_changes_nothing() {
    let fleet = Fleet::start().await;
    let (one, two) = (
        Worker::new(&fleet, "w-1", LONG),
        Worker::new(&fleet, "w-2", LONG),
    );
    // The answer was lost: it is asked again as it was.
    for _ in 0..3 {
        assert_eq!(one.take_as(5, 2, 0, 1).await.unwrap().gets, 1);
    }
    assert_eq!(one.take_as(6, 2, 1, 0).await.unwrap().gets, 0);
    assert_eq!(one.take_as(4, 2, 0, 2).await, None);
    assert_eq!(two.gets(2, 0, 2).await, 1);
    assert_eq!(two.gets(2, 1, 1).await, 0);
    // The same though another one waits by now.
    assert_eq!(one.take_as(6, 2, 1, 0).await.unwrap().gets, 0);
    assert_eq!(one.take_as(7, 3, 1, 1).await.unwrap().gets, 1);
    assert_eq!(two.gets(3, 1, 1).await, 0);
    assert_eq!(one.take_as(7, 3, 1, 1).await.unwrap().gets, 1);
}

#[tokio::test]
async fn nothing_begins_in_any_worker_while_more_go_on_than_may() {
    let fleet = Fleet::start().await;
    let [one, two] = ["w-1", "w-2"].map(|id| Worker::new(&fleet, id, LONG));
    assert_eq!((one.gets(6, 0, 3).await, two.gets(6, 0, 3).await), (3, 3));
    // Lowered.
    assert_eq!(one.take(2, 3, 1).await.keep, 0);
    assert_eq!(two.take(2, 3, 1).await.keep, 0);
    // All that ran in the one has ended; three go on in the other.
    assert_eq!(one.gets(2, 0, 1).await, 0);
    assert_eq!(two.take(2, 3, 0).await.keep, 0);
    two.take(2, 2, 0).await;
    assert_eq!(one.gets(2, 0, 1).await, 0);
    assert_eq!(two.take(2, 1, 0).await.keep, 1);
    assert_eq!(one.gets(2, 0, 1).await, 1);
}

/// Asks for one of one seat until it has waited for so long.
async fn waits_for(fleet: &Fleet, worker: &Worker, ms: u64) {
    until("it has waited", async || {
        assert_eq!(worker.gets(1, 0, 1).await, 0);
        taken(fleet).await.waits_ms > Some(ms)
    })
    .await;
}

#[tokio::test]
async fn a_seat_is_kept_for_who_waits_for_the_longest_which_asks_soonest() {
    let fleet = Fleet::start().await;
    // On a machine that stands still both have waited for long.
    until(
        "the first is before the second, and the busy one behind both",
        async || {
            let [busy, first, second] =
                ["w-1", "w-3", "w-2"].map(|id| Worker::new(&fleet, id, LONG));
            assert_eq!(busy.gets(1, 0, 1).await, 1);
            waits_for(&fleet, &first, 1100).await;
            let (late, soon) = (second.take(1, 0, 1).await, first.take(1, 0, 1).await);
            assert_eq!((late.gets, soon.gets), (0, 0));
            let gave_back = busy.gets(1, 0, 1).await;
            let (late, next) = (second.take(1, 0, 1).await, first.take(1, 0, 1).await);
            for one in [&busy, &first, &second] {
                one.take(1, 0, 0).await;
            }
            soon.again < late.again && (gave_back, late.gets, next.gets) == (0, 0, 1)
        },
    )
    .await;
}

#[tokio::test]
async fn no_seat_is_kept_for_a_worker_that_does_not_ask_any_more() {
    let fleet = Fleet::start().await;
    // On a machine that stands still nobody waits any more when the other one asks.
    until("it is kept at first", async || {
        let [busy, gone] = ["w-1", "w-2"].map(|id| Worker::new(&fleet, id, LONG));
        assert_eq!(busy.gets(1, 0, 1).await, 1);
        waits_for(&fleet, &gone, 600).await;
        let at_first = busy.gets(1, 0, 1).await;
        if at_first == 0 {
            until("it gets its seat again", async || {
                busy.gets(1, 0, 1).await == 1
            })
            .await;
        }
        gone.take(1, 0, 0).await;
        busy.take(1, 0, 0).await;
        at_first == 0
    })
    .await;
}

#[tokio::test]
async fn who_has_more_than_its_share_gives_back_what_others_need() {
    let fleet = Fleet::start().await;
    // On a machine that stands still nobody waits any more when the other one asks.
    until("each has its share", async || {
        let [one, two] = ["w-1", "w-2"].map(|id| Worker::new(&fleet, id, LONG));
        let alone = one.take(5, 0, 9).await;
        assert_eq!((alone.gets, alone.keep), (5, 5));
        assert_eq!(two.gets(5, 0, 1).await, 0);
        // One is enough for the other.
        let asked = one.take(5, 5, 4).await;
        assert_eq!(asked.gets, 0);
        let kept = one.take(5, 4, 5).await.keep;
        let first = two.take(5, 0, 9).await;
        // It needs more by now: its half, and the one that is left stays where it is.
        let half = one.take(5, 4, 5).await.keep;
        let none = one.gets(5, 3, 6).await;
        let second = two.take(5, 1, 8).await;
        one.take(5, 0, 0).await;
        two.take(5, 0, 0).await;
        let asked = (asked.keep, asked.others_wait, kept);
        let got = (first.gets, first.keep, half, none);
        let at_last = (second.gets, second.keep, second.others_wait);
        (asked, got, at_last) == ((4, true, 4), (1, 1, 3, 0), (1, 2, true))
    })
    .await;
}

#[tokio::test]
async fn the_more_wait_the_more_seldom_each_of_them_asks() {
    let mut fleet = Fleet::start().await;
    let key = fleet.keys.seats(KIND);
    let late = local_now() + 3_600_000;
    let mut seed = redis::pipe();
    for n in 0..200 {
        let one = format!("{late} 7200000 1 0 1 1 {late} 1");
        seed.hset(&key, format!("w-{n}"), one).ignore();
    }
    let _: () = seed.query_async(&mut fleet.connection).await.unwrap();
    let last = Worker::new(&fleet, "w-last", Duration::from_secs(2));
    let given = last.take(1, 0, 1).await;
    assert_eq!(given.gets, 0);
    assert!(given.again >= Duration::from_secs(4), "{given:?}");
    // It waits for longer than its lease is, and is known until it asks again.
    let all: HashMap<String, String> = fleet.ask(&format!("HGETALL {key}")).await;
    let own = all.iter().find(|(name, _)| name.starts_with("w-last"));
    let stays: u64 = own.unwrap().1.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(stays > 4000, "{stays}");
}

#[tokio::test]
async fn where_there_are_fewer_seats_than_workers_each_has_its_turn() {
    let fleet = Fleet::start().await;
    let workers: Vec<Worker> = (0..3)
        .map(|n| Worker::new(&fleet, &format!("w-{n}"), LONG))
        .collect();
    let (mut has, mut turns) = (vec![0; 3], [0; 3]);
    let began = Instant::now();
    while turns.iter().any(|turns| *turns < 2) {
        for (n, gets) in round(&workers, &mut has, 1, 1).await.iter().enumerate() {
            turns[n] += gets;
        }
        assert!(has.iter().sum::<usize>() <= 1, "{has:?}");
        assert!(began.elapsed() < LONG, "{turns:?}");
    }
}

#[tokio::test]
async fn a_lower_total_is_kept_to_as_soon_as_enough_runs_ended_however_many_workers_there_are() {
    let fleet = Fleet::start().await;
    let workers: Vec<Worker> = (0..3)
        .map(|n| Worker::new(&fleet, &format!("w-{n}"), LONG))
        .collect();
    let mut has = vec![0; 3];
    for (n, worker) in workers.iter().enumerate() {
        has[n] = worker.gets(9, 0, 3).await;
    }
    assert_eq!(has, [3, 3, 3]);
    for total in [4, 1] {
        let began = Instant::now();
        while has.iter().sum::<usize>() != total {
            round(&workers, &mut has, total, 1).await;
            assert!(began.elapsed() < LONG, "{has:?}");
        }
        for (n, worker) in workers.iter().enumerate() {
            assert_eq!(worker.gets(total, has[n], 1).await, 0);
        }
    }
}

#[tokio::test]
async fn what_others_wrote_there_is_taken_away() {
    let mut fleet = Fleet::start().await;
    let key = fleet.keys.seats(KIND);
    let late = "9".repeat(15);
    let huge = "9".repeat(30);
    for (n, odd) in [
        "x".to_owned(),
        "1_2_3".to_owned(),
        format!("{late}_5_1_-1_0_0_0_0"),
        format!("{late}_5_1_{huge}_0_0_0_0"),
        format!("{late}_{late}_1_1_0_0_0_0"),
        format!("{late}_5_1_1_0_0_0_0{}", "0".repeat(1000)),
    ]
    .iter()
    .enumerate()
    {
        let mut set = redis::cmd("HSET");
        set.arg(&key).arg(n).arg(odd.replace('_', " "));
        let _: u64 = set.query_async(&mut fleet.connection).await.unwrap();
    }
    let worker = Worker::new(&fleet, "w-1", LONG);
    assert_eq!(taken(&fleet).await.seats, 0);
    assert_eq!(worker.gets(1, 0, 1).await, 1);
    assert_eq!(fleet.ask::<u64>(&format!("HLEN {key}")).await, 1);
    let _: String = fleet.ask(&format!("SET {key} x")).await;
    assert_eq!(worker.gets(1, 0, 1).await, 1);
    assert!(fleet.ask::<i64>(&format!("PTTL {key}")).await > 0);
}

/// Whoever comes, goes, dies and asks twice: no more seats are had than there are, and none is free while somebody waits.
#[tokio::test]
async fn as_many_seats_are_had_as_there_are() {
    let fleet = Fleet::start().await;
    let workers: Vec<Worker> = (0..5)
        .map(|n| Worker::new(&fleet, &format!("w-{n}"), LONG))
        .collect();
    let mut has = vec![0; 5];
    let mut dice = fastrand::Rng::with_seed(7);
    let total = 7;
    for _ in 0..600 {
        let n = dice.usize(..5);
        // Some end, others come.
        has[n] -= dice.usize(..=has[n]).min(2);
        let wants = dice.usize(..5);
        let given = workers[n].take(total, has[n], wants).await;
        assert!(given.gets <= wants);
        has[n] += given.gets;
        assert!(has.iter().sum::<usize>() <= total, "{has:?}");
        has[n] = has[n].min(given.keep);
    }
    let began = Instant::now();
    while has.iter().sum::<usize>() < total || has.contains(&0) {
        round(&workers, &mut has, total, 9).await;
        assert!(began.elapsed() < LONG, "{has:?}");
    }
}
