//! How many runs go on at a time, by a number that may change meanwhile.
//!
//! A run that enters no gate is counted by one atomic number. It takes permits only as long as there is a limit:
//! then whoever changes that number, or the limit, has as many of them be taken.

use crate::mutex::locked;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;

/// Permits of which there are as many as runs may go on. Where there are fewer than before, those that are given come
/// back first.
#[derive(Debug)]
pub struct Permits {
    free: Semaphore,
    count: Mutex<Count>,
    /// Whether there is a limit.
    is_limited: AtomicBool,
    /// How many runs go on that entered no gate.
    bare: AtomicUsize,
}

#[derive(Debug)]
struct Count {
    /// How many there are to be.
    wanted: usize,
    /// How many there are, given or free.
    made: usize,
    /// How many of them the runs that entered no gate have.
    bare: usize,
}

/// A run that entered no gate.
#[derive(Debug)]
pub struct Bare(Arc<Permits>);

/// The permit of one run.
#[derive(Debug)]
pub struct Permit(Arc<Permits>);

impl Permits {
    /// As many as that, or no end of them.
    pub fn new(limit: Option<usize>) -> Self {
        let wanted = most(limit);
        Self {
            free: Semaphore::new(wanted),
            count: Mutex::new(Count {
                wanted,
                made: wanted,
                bare: 0,
            }),
            is_limited: AtomicBool::new(limit.is_some()),
            bare: AtomicUsize::new(0),
        }
    }

    /// Has as many as that from now on.
    pub fn resize(&self, limit: Option<usize>) {
        // Before the runs are looked at: one that begins or ends meanwhile sees it, or is seen.
        self.is_limited.store(limit.is_some(), Ordering::SeqCst);
        let count = &mut *locked(&self.count);
        self.see_bare(count);
        count.wanted = most(limit);
        if count.wanted > count.made {
            self.free.add_permits(count.wanted - count.made);
            count.made = count.wanted;
        } else {
            count.made -= self.free.forget_permits(count.made - count.wanted);
        }
    }

    /// Waits for one; who asked first gets it first.
    pub async fn acquire(self: &Arc<Self>) -> Permit {
        loop {
            // Nothing closes it.
            if let Ok(permit) = self.free.acquire().await {
                permit.forget();
            }
            let count = &mut *locked(&self.count);
            if count.made <= count.wanted {
                return Permit(self.clone());
            }
            // Somebody gave it up while he waited for it, and there are to be fewer by now.
            count.made -= 1;
        }
    }

    /// The permit of a run that begins in any case: it counts, though there may be too many then.
    pub fn begin(self: &Arc<Self>) -> Permit {
        self.take(&mut locked(&self.count));
        Permit(self.clone())
    }

    /// Counts a run that goes on and entered no gate.
    pub fn bare(self: &Arc<Self>) -> Bare {
        self.bare.fetch_add(1, Ordering::SeqCst);
        self.bare_changed();
        Bare(self.clone())
    }

    fn bare_changed(&self) {
        if self.is_limited.load(Ordering::SeqCst) {
            self.see_bare(&mut locked(&self.count));
        }
    }

    /// Has the runs that entered no gate have as many permits as there are such runs.
    fn see_bare(&self, count: &mut Count) {
        let bare = self.bare.load(Ordering::SeqCst);
        for _ in count.bare..bare {
            self.take(count);
        }
        for _ in bare..count.bare {
            self.give(count);
        }
        count.bare = bare;
    }

    fn take(&self, count: &mut Count) {
        match self.free.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(_) => count.made += 1,
        }
    }

    fn give(&self, count: &mut Count) {
        match count.made > count.wanted {
            true => count.made -= 1,
            false => self.free.add_permits(1),
        }
    }
}

impl Permit {
    /// Whether more runs have one than there are to be.
    pub fn is_one_too_many(&self) -> bool {
        if !self.0.is_limited.load(Ordering::SeqCst) {
            return false;
        }
        let count = locked(&self.0.count);
        count.made > count.wanted
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.0.bare.fetch_sub(1, Ordering::SeqCst);
        self.0.bare_changed();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.give(&mut locked(&self.0.count));
    }
}

fn most(limit: Option<usize>) -> usize {
    limit.map_or(Semaphore::MAX_PERMITS, |limit| {
        limit.clamp(1, Semaphore::MAX_PERMITS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::future::Future;
    use std::pin::Pin;

    fn now(permits: &Arc<Permits>) -> Option<Permit> {
        permits.acquire().now_or_never()
    }

    #[test]
    fn fewer_permits_let_nobody_in_before_enough_came_back() {
        let permits = Arc::new(Permits::new(None));
        let mut held: VecDeque<_> = (0..5).map(|_| permits.begin()).collect();
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
        let first = permits.begin();
        let mut waits = Box::pin(permits.acquire());
        assert!(waits.as_mut().now_or_never().is_none());
        let over = permits.begin();
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
        assert!(one.as_ref().unwrap().is_one_too_many());
        drop(late);
        assert!(!one.as_ref().unwrap().is_one_too_many());
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
                    4 => held.push_back(permits.begin()),
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
}
