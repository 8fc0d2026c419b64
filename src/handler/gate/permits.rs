//! How many runs go on at a time, by a number that may change meanwhile.

use crate::mutex::locked;
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;

/// Permits of which there are as many as runs may go on. Where there are fewer than before, those that are given come
/// back first.
#[derive(Debug)]
pub struct Permits {
    free: Semaphore,
    count: Mutex<Count>,
}

#[derive(Debug)]
struct Count {
    /// How many there are to be.
    wanted: usize,
    /// How many there are, given or free.
    made: usize,
}

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
            }),
        }
    }

    /// Has as many as that from now on.
    pub fn resize(&self, limit: Option<usize>) {
        let count = &mut *locked(&self.count);
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
        let count = &mut *locked(&self.count);
        match self.free.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(_) => count.made += 1,
        }
        Permit(self.clone())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let count = &mut *locked(&self.0.count);
        match count.made > count.wanted {
            true => count.made -= 1,
            false => self.0.free.add_permits(1),
        }
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

    type Waits = Pin<Box<dyn Future<Output = Permit>>>;

    proptest! {
        /// Whoever comes, goes, gives up and changes the number: nobody begins beyond it, and nobody waits below it.
        #[test]
        fn as_many_run_as_may(steps in proptest::collection::vec((0..6u8, 1..4usize), 1..120)) {
            let permits = Arc::new(Permits::new(Some(2)));
            let (mut limit, mut held, mut waits) = (2, VecDeque::new(), VecDeque::<Waits>::new());
            for (step, number) in steps {
                match step {
                    0 | 1 => {
                        let permits = permits.clone();
                        waits.push_back(Box::pin(async move { permits.acquire().await }));
                    }
                    2 => drop(held.pop_front()),
                    3 => drop(waits.pop_back()),
                    4 => held.push_back(permits.begin()),
                    _ => {
                        limit = number;
                        permits.resize(Some(number));
                    }
                }
                let before = held.len();
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
                prop_assert!(waits.is_empty() || held.len() >= limit, "{} wait", waits.len());
            }
        }
    }
}
