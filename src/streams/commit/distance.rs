//! How far the server is, as the answers to commits tell.
//!
//! The first answer to a commit comes as soon as the server begins with it: what that takes is the way there and back,
//! and what the server does before. The least of some seconds is the way alone: a server that is far off idles now and
//! then.

use crate::mutex::locked;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long a measurement counts: so long, and up to twice as long.
const COUNTS: Duration = Duration::from_secs(15);
/// Below that a server is near: whoever waits for it waits for its work, not for the way.
const NEAR: Duration = Duration::from_micros(300);
/// Commits that are under way at a time at the most.
const MOST: usize = 4;

/// What the way to a server and back takes.
#[derive(Debug, Default)]
pub struct Distance(Mutex<Option<Least>>);

/// The least of this stretch of time, and of the one before.
#[derive(Clone, Copy, Debug)]
struct Least {
    began: Instant,
    now: Duration,
    before: Duration,
}

impl Distance {
    /// Notes how long an answer took that asked for no work.
    pub(crate) fn saw(&self, took: Duration) {
        self.saw_at(took, Instant::now());
    }

    fn saw_at(&self, took: Duration, at: Instant) {
        let mut least = locked(&self.0);
        *least = Some(match *least {
            Some(least) if at.saturating_duration_since(least.began) < COUNTS => Least {
                now: least.now.min(took),
                ..least
            },
            Some(least) => Least {
                began: at,
                now: took,
                before: least.now,
            },
            None => Least {
                began: at,
                now: took,
                before: took,
            },
        });
    }

    /// The way there and back where the server is far; nothing beside it, or while nobody knows.
    pub fn round_trip(&self) -> Duration {
        let least = locked(&self.0).map(|least| least.now.min(least.before));
        least.filter(|way| *way >= NEAR).unwrap_or_default()
    }

    /// How many commits it asks for at a time: one beside the server.
    pub fn commits(&self) -> usize {
        let ways = self.round_trip().as_micros() / NEAR.as_micros();
        MOST.min(1 + usize::try_from(ways).unwrap_or(MOST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_far_asks_for_more_than_one_commit_at_a_time() {
        let us = Duration::from_micros;
        let of = |way| {
            let distance = Distance::default();
            distance.saw(us(way));
            (distance.round_trip(), distance.commits())
        };
        assert_eq!(Distance::default().commits(), 1);
        assert_eq!(of(60), (Duration::ZERO, 1));
        assert_eq!(of(299), (Duration::ZERO, 1));
        assert_eq!(of(300), (us(300), 2));
        assert_eq!(of(1000), (us(1000), 4));
        assert_eq!(of(250_000), (us(250_000), 4));
    }

    #[test]
    fn a_server_that_is_busy_is_not_far_and_one_that_moved_is_found_out() {
        let ms = Duration::from_millis;
        let (distance, began) = (Distance::default(), Instant::now());
        distance.saw_at(ms(5), began);
        distance.saw_at(ms(1), began + ms(10));
        for busy in 1..14 {
            distance.saw_at(ms(9), began + ms(1000 * busy));
        }
        assert_eq!(distance.round_trip(), ms(1));
        // It counts for one stretch more, and no longer.
        distance.saw_at(ms(9), began + ms(15_010));
        assert_eq!(distance.round_trip(), ms(1));
        distance.saw_at(ms(9), began + ms(30_020));
        assert_eq!(distance.round_trip(), ms(9));
    }
}
