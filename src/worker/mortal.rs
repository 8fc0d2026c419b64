//! Deaths on demand, for tests: with the feature `failpoints` a test can have any part of a worker of its
//! own process panic, end or hang. Without it, as in every program that is shipped, this is nothing.

#[cfg(feature = "failpoints")]
pub use on_demand::{Death, kill, parts};

/// The work of a part; `None` if it died on demand.
#[cfg(not(feature = "failpoints"))]
pub(super) async fn mortal<T>(_: &str, _: &str, work: impl Future<Output = T>) -> Option<T> {
    Some(work.await)
}

#[cfg(feature = "failpoints")]
pub(super) use on_demand::mortal;

#[cfg(feature = "failpoints")]
mod on_demand {
    use crate::mutex::locked;
    use std::collections::BTreeMap;
    use std::pin::pin;
    use std::sync::{Mutex, MutexGuard};
    use std::task::{Poll, Waker};

    /// How a part dies.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Death {
        /// By a panic.
        Panic,
        /// The part ends by itself.
        Return,
        /// The part holds its thread for ever.
        Hang,
    }

    #[derive(Default)]
    struct Mortal {
        death: Option<Death>,
        waker: Option<Waker>,
    }

    static PARTS: Mutex<BTreeMap<(String, String), Mortal>> = Mutex::new(BTreeMap::new());

    fn all() -> MutexGuard<'static, BTreeMap<(String, String), Mortal>> {
        locked(&PARTS)
    }

    /// The parts of an instance that live.
    pub fn parts(instance: &str) -> Vec<String> {
        let own = all();
        let own = own.keys().filter(|(of, _)| of == instance);
        own.map(|(_, part)| part.clone()).collect()
    }

    /// Has a part die; false if it does not live.
    pub fn kill(instance: &str, part: &str, death: Death) -> bool {
        let waker = match all().get_mut(&(instance.to_owned(), part.to_owned())) {
            Some(mortal) => {
                mortal.death = Some(death);
                mortal.waker.take()
            }
            None => return false,
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    struct Alive((String, String));

    impl Drop for Alive {
        fn drop(&mut self) {
            all().remove(&self.0);
        }
    }

    pub(crate) async fn mortal<T>(
        instance: &str,
        part: &str,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let name = (instance.to_owned(), part.to_owned());
        all().insert(name.clone(), Mortal::default());
        let alive = Alive(name);
        let mut work = pin!(work);
        std::future::poll_fn(|cx| {
            let death = match all().get_mut(&alive.0) {
                Some(mortal) => {
                    mortal.waker = Some(cx.waker().clone());
                    mortal.death.take()
                }
                None => None,
            };
            match death {
                None => work.as_mut().poll(cx).map(Some),
                Some(Death::Return) => Poll::Ready(None),
                Some(Death::Panic) => panic!("a death on demand"),
                Some(Death::Hang) => loop {
                    std::thread::park();
                },
            }
        })
        .await
    }
}
