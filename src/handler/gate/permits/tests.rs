//! Tests of permits.

use super::*;
use futures_util::FutureExt;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

fn now(permits: &Arc<Permits>) -> Option<Permit> {
    permits.acquire().now_or_never()
}

#[test]
fn fewer_permits_let_nobody_in_before_enough_came_back() {
    let permits = Arc::new(Permits::new(None));
    let mut held: VecDeque<_> = (0..5).map(|_| permits.enter()).collect();
    permits.resize(Some(2));
    for left in (1..5).rev() {
        assert!(now(&permits).is_none(), "{left} and one");
        held.pop_front();
    }
    // One goes on, and one may begin.
    let one = now(&permits);
    assert!(one.is_some() && now(&permits).is_none());
    permits.resize(Some(4));
    let more: Vec<_> = (0..4).map_while(|_| now(&permits)).collect();
    assert_eq!(more.len(), 2);
    permits.resize(None);
    assert!(now(&permits).is_some());
}

#[test]
fn a_permit_that_was_promised_and_given_up_is_not_there_twice() {
    let permits = Arc::new(Permits::new(Some(1)));
    let first = permits.enter();
    let mut waits = Box::pin(permits.acquire());
    assert!(waits.as_mut().now_or_never().is_none());
    let over = permits.enter();
    // It is promised to who waits, who goes away.
    drop(over);
    drop(first);
    drop(waits);
    let one = now(&permits);
    assert!(one.is_some() && now(&permits).is_none());
}

#[test]
fn a_run_that_enters_no_gate_takes_no_lock_as_long_as_nothing_limits_it_and_counts_once_something_does()
 {
    let permits = Arc::new(Permits::new(None));
    let counting = locked(&permits.count);
    let mut held: VecDeque<_> = (0..3).map(|_| permits.bare()).collect();
    held.pop_front();
    drop(counting);
    permits.resize(Some(2));
    assert!(now(&permits).is_none(), "two go on");
    held.pop_front();
    let one = now(&permits);
    assert!(one.is_some() && now(&permits).is_none());
    // It began before it heard of the limit.
    let late = permits.bare();
    let mut one = one.unwrap();
    assert!(!one.begin());
    drop(late);
    assert!(one.begin());
    // While nothing limits them they come and go unseen.
    permits.resize(None);
    held.clear();
    held.extend((0..5).map(|_| permits.bare()));
    drop(one);
    permits.resize(Some(6));
    let one = now(&permits);
    assert!(one.is_some() && now(&permits).is_none());
    held.clear();
    let more: Vec<_> = (0..6).map_while(|_| now(&permits)).collect();
    assert_eq!(more.len(), 5);
}

/// Gives it seats for an hour.
fn seated(permits: &Permits, count: usize) {
    of_total(permits, count, 1);
}

/// The same, of as many in all workers.
fn of_total(permits: &Permits, count: usize, total: usize) {
    permits.seat(Seats {
        count,
        total,
        until: Instant::now() + Duration::from_secs(3600),
    });
}

#[tokio::test(start_paused = true)]
async fn where_all_share_what_may_go_on_as_many_begin_as_there_are_seats_and_until_their_lease_ends()
 {
    let permits = Arc::new(Permits::new(Some(5)));
    let mut before = permits.enter();
    assert!(before.begin());
    permits.share(Some(20));
    assert!(now(&permits).is_none(), "there is no seat yet");
    assert_eq!(permits.keep(5), Some(1), "what began before counts");
    seated(&permits, 3);
    let mut held: Vec<_> = (0..5).map_while(|_| now(&permits)).collect();
    assert_eq!(held.len(), 2, "what began before counts");
    assert!(held[0].begin());
    let look = permits.look().unwrap();
    assert_eq!((look.runs, look.entered, look.waits), (2, 1, 0));
    assert_eq!(look.limit, 5);
    let mut waits = Box::pin(permits.acquire());
    assert!(waits.as_mut().now_or_never().is_none());
    assert_eq!(permits.look().unwrap().waits, 1);
    // Its limit in this process is another one, and goes before many seats.
    permits.resize(Some(4));
    seated(&permits, 9);
    held.push(waits.await);
    assert!(now(&permits).is_none());
    let look = permits.look().unwrap();
    assert_eq!((look.runs, look.entered, look.waits), (2, 2, 0));
    tokio::time::advance(Duration::from_secs(3601)).await;
    assert!(
        held.iter_mut()
            .map(Permit::begin)
            .filter(|may| *may)
            .count()
            == 1,
        "none but what has begun"
    );
    assert_eq!(permits.keep(4), Some(2), "others may have the rest");
    drop((before, held));
    assert!(now(&permits).is_none(), "the lease is over");
    assert_eq!(permits.keep(4), Some(0));
    permits.share(None);
    let all: Vec<_> = (0..9).map_while(|_| now(&permits)).collect();
    assert_eq!(all.len(), 4);
    assert_eq!(permits.look(), None);
    // Who learns later that they share it changes nothing any more.
    seated(&permits, 1);
    assert_eq!(permits.keep(1), None);
    drop(all);
    assert_eq!(
        (0..9)
            .map_while(|_| now(&permits))
            .collect::<Vec<_>>()
            .len(),
        4
    );
}

#[test]
fn of_those_that_entered_before_there_was_a_total_as_many_begin_as_there_are_seats() {
    let permits = Arc::new(Permits::new(None));
    let mut held: VecDeque<_> = (0..60).map(|_| permits.enter()).collect();
    let mut running: VecDeque<_> = held.drain(..6).collect();
    assert!(running.iter_mut().all(Permit::begin));
    permits.share(Some(1));
    // The others know of what goes on; what has only entered is nobody's seat.
    assert_eq!(permits.keep(9), Some(6));
    seated(&permits, 1);
    while running.pop_front().is_some() {
        let may = running.is_empty();
        assert_eq!(held.back_mut().unwrap().begin(), may, "{}", running.len());
    }
    let begun = held.pop_back().unwrap();
    assert!(!held.iter_mut().any(Permit::begin), "one goes on");
    drop(begun);
    // Whoever was refused enters again, and is one of those that wait.
    assert!(now(&permits).is_none());
    assert!(held.pop_front().unwrap().begin());
}

#[test]
fn a_total_that_is_lowered_holds_at_once_for_what_has_entered() {
    let permits = Arc::new(Permits::new(None));
    permits.share(Some(6));
    seated(&permits, 6);
    let mut held: VecDeque<_> = (0..6).map_while(|_| now(&permits)).collect();
    assert_eq!(held.len(), 6);
    assert!(held[0].begin() && held[1].begin());
    permits.share(Some(3));
    assert!(
        !held[2].begin(),
        "nobody said yet how many of those are its own"
    );
    permits.share(Some(2));
    held.pop_front();
    // What was given of the old ones does not hold any more.
    of_total(&permits, 6, 6);
    assert!(!held[1].begin());
    of_total(&permits, 2, 2);
    assert!(held[1].begin() && !held[2].begin());
}

#[test]
fn a_seat_that_is_to_be_given_back_is_nobodys_after_its_run() {
    let permits = Arc::new(Permits::new(None));
    permits.share(Some(9));
    seated(&permits, 3);
    let mut held: Vec<_> = (0..3).map_while(|_| now(&permits)).collect();
    assert!(held.iter_mut().all(Permit::begin));
    seated(&permits, 1);
    held.pop();
    assert!(now(&permits).is_none());
    assert_eq!(permits.keep(1), Some(2));
    held.pop();
    assert_eq!(permits.keep(1), Some(1));
    assert!(now(&permits).is_none());
    // Nobody confirms them any more: what has entered waits again.
    held.clear();
    let mut entered = now(&permits).unwrap();
    seated(&permits, 0);
    assert!(!entered.begin());
    drop(entered);
    assert!(now(&permits).is_none());
}

#[tokio::test]
async fn whoever_keeps_the_seats_is_told_who_waits_who_ended_and_who_went_away() {
    let permits = Arc::new(Permits::new(Some(1)));
    let told = || permits.changed().now_or_never().is_some();
    let held = permits.enter();
    let mut waits = Box::pin(permits.acquire());
    assert!(waits.as_mut().now_or_never().is_none());
    assert!(!told(), "nobody shares anything");
    permits.share(Some(1));
    assert!(told());
    assert_eq!(permits.look().unwrap().waits, 1, "who waits already");
    let mut second = Box::pin(permits.acquire());
    assert!(second.as_mut().now_or_never().is_none());
    assert!(told());
    drop(second);
    assert!(told());
    drop(held);
    assert!(told());
    assert_eq!(permits.look().unwrap().waits, 1);
    // One that entered no gate, and was seen late.
    let late = permits.bare();
    assert!(told());
    assert_eq!(permits.look().unwrap().runs, 1);
    drop(late);
    assert!(told());
}

#[test]
fn what_has_come_for_one_that_waits_is_not_counted_twice() {
    let permits = Arc::new(Permits::new(None));
    permits.share(Some(1));
    let mut waits = Box::pin(permits.acquire());
    assert!(waits.as_mut().now_or_never().is_none());
    seated(&permits, 1);
    let of = |look: Look| (look.runs, look.entered, look.waits);
    assert_eq!(of(permits.look().unwrap()), (0, 0, 1));
    let one = waits.as_mut().now_or_never().unwrap();
    assert_eq!(of(permits.look().unwrap()), (0, 1, 0));
    drop(one);
    assert_eq!(of(permits.look().unwrap()), (0, 0, 0));
}

type Waits = Pin<Box<dyn Future<Output = Permit>>>;

proptest! {
    /// Whoever comes, goes, gives up and changes the number: nobody begins beyond it, and nobody waits below it.
    #[test]
    fn as_many_run_as_may(steps in proptest::collection::vec((0..8u8, 1..4usize), 1..120)) {
        let permits = Arc::new(Permits::new(Some(2)));
        let (mut limit, mut held, mut waits) = (2, VecDeque::new(), VecDeque::<Waits>::new());
        let mut bare = VecDeque::new();
        for (step, number) in steps {
            match step {
                0 | 1 => {
                    let permits = permits.clone();
                    waits.push_back(Box::pin(async move { permits.acquire().await }));
                }
                2 => drop(held.pop_front()),
                3 => drop(waits.pop_back()),
                4 => held.push_back(permits.enter()),
                5 => bare.push_back(permits.bare()),
                6 => drop(bare.pop_front()),
                _ if number == 3 => {
                    // What comes and goes meanwhile counts afterwards.
                    permits.resize(None);
                    bare.push_back(permits.bare());
                    permits.resize(Some(limit));
                }
                _ => {
                    limit = number;
                    permits.resize(Some(number));
                }
            }
            let before = held.len() + bare.len();
            let mut came = 0;
            waits.retain_mut(|one| match one.as_mut().now_or_never() {
                Some(permit) => {
                    held.push_back(permit);
                    came += 1;
                    false
                }
                None => true,
            });
            prop_assert!(came == 0 || before + came <= limit, "{before} and {came} over {limit}");
            prop_assert!(waits.is_empty() || held.len() + bare.len() >= limit, "{} wait", waits.len());
        }
    }
}
