//! Whose lease has ended, as one process sees it.
//!
//! A lease ends by the owner's silence, and whose silence it is only who watched all the time can say (see
//! [`crate::connect::silence`]). So no clock is compared with another one: who looks notes when it saw a renewal, and
//! counts from its look before that one by its own clock. Where its looks had a gap, as the node was away or it stood still
//! itself, each lease counts from after the gap: the living renew theirs meanwhile.

use crate::connect::epoch::Epoch;
use crate::streams::own::Owner;
use std::time::{Duration, Instant};

/// One look at a partition that was answered.
#[derive(Clone, Copy, Debug)]
pub(in crate::worker) struct Look {
    pub asked: Instant,
    pub answered: Instant,
    /// Unix ms by the node's clock.
    pub now: u64,
    /// In which history of its data.
    pub epoch: Epoch,
}

/// What is known of the lease of one partition.
#[derive(Debug, Default)]
pub(in crate::worker) struct Lease {
    last: Option<Look>,
    owner: Option<(Owner, Instant)>,
}

/// How far two looks may be apart that saw all that was between them.
pub(in crate::worker) fn gap(ttl: Duration) -> Duration {
    ttl / 2
}

impl Lease {
    /// Notes what a look found; `ttl` is the watcher's own.
    pub(in crate::worker) fn seen(&mut self, look: Look, owner: Option<&Owner>, ttl: Duration) {
        let gap = gap(ttl.min(owner.map_or(ttl, |owner| owner.ttl)));
        let before = self.last.replace(look);
        // An answer that took long does not say when it was true.
        let steady = before
            .filter(|before| look.answered - before.asked <= gap && look.epoch == before.epoch);
        let Some(owner) = owner else {
            self.owner = None;
            return;
        };
        let known = self.owner.take();
        let ends = match (steady, known) {
            (Some(_), Some((known, ends))) if is_same(&known, owner) => ends,
            // Renewed, or taken, since the look before.
            (Some(before), _) if is_even(&before, &look, slack(ttl)) => {
                look.answered + (owner.left(look.now) + slack(ttl)).min(owner.ttl)
            }
            _ => look.answered + owner.ttl,
        };
        self.owner = Some((owner.clone(), ends));
    }

    /// Who owns it, as far as is known.
    pub(in crate::worker) fn owner(&self) -> Option<&Owner> {
        self.owner.as_ref().map(|(owner, _)| owner)
    }

    /// When the lease will have ended, if nobody renews it and all looks are answered until then.
    pub(in crate::worker) fn ends(&self) -> Option<Instant> {
        self.owner.as_ref().map(|(_, ends)| *ends)
    }

    /// Until when by the node's clock a call may be run that is made now.
    pub(in crate::worker) fn until(&self, now: Instant, ttl: Duration) -> Option<u64> {
        let last = self.last?;
        let age = now.saturating_duration_since(last.answered);
        let gap = gap(ttl);
        (age <= gap).then(|| last.now + (age + gap).as_millis() as u64)
    }

    /// Whether it was looked at of late.
    pub(in crate::worker) fn is_known(&self, now: Instant, ttl: Duration) -> bool {
        self.until(now, ttl).is_some()
    }
}

/// How far the node's clock may be off between two looks.
fn slack(ttl: Duration) -> Duration {
    ttl / 24
}

/// Whether the node's clock moved as the own one did.
fn is_even(before: &Look, look: &Look, slack: Duration) -> bool {
    let Some(moved) = look.now.checked_sub(before.now) else {
        return false;
    };
    let moved = Duration::from_millis(moved);
    let least = look.asked.saturating_duration_since(before.answered);
    let most = look.answered - before.asked;
    least <= moved + slack && moved <= most + slack
}

fn is_same(a: &Owner, b: &Owner) -> bool {
    a.process == b.process && a.till == b.till
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TTL: Duration = Duration::from_secs(12);

    fn owner(process: &str, till: u64) -> Owner {
        Owner {
            instance: process.to_owned(),
            process: process.to_owned(),
            till: till.to_string(),
            ttl: TTL,
            since: 1,
        }
    }

    /// When was looked, by the own clock and by the node's, and who owned it until when.
    type Looked<'a> = (u64, u64, Option<(&'a str, u64)>);

    /// Looks at these times (s), each answered 10 ms later, at which the node's clock said that number of s: whose it was, and
    /// until when.
    fn after(began: Instant, looks: &[Looked<'_>]) -> Lease {
        let mut lease = Lease::default();
        for (at, clock, is) in looks {
            let asked = began + Duration::from_secs(*at);
            let look = Look {
                asked,
                answered: asked + Duration::from_millis(10),
                now: clock * 1000,
                epoch: Epoch(1),
            };
            let is = is.map(|(process, till)| owner(process, till * 1000));
            lease.seen(look, is.as_ref(), TTL);
        }
        lease
    }

    fn ends(looks: &[Looked<'_>]) -> Option<u64> {
        let began = Instant::now();
        let ends = after(began, looks).ends();
        ends.map(|ends| (ends - began).as_secs())
    }

    #[test]
    fn a_lease_ends_a_ttl_after_the_renewal_that_was_seen() {
        assert_eq!(ends(&[(0, 0, None), (3, 3, None)]), None);
        // At 2 s it was renewed.
        let seen = [(0, 0, Some(("a", 8))), (3, 3, Some(("a", 14)))];
        assert_eq!(ends(&seen), Some(14));
        let later = [seen[0], seen[1], (7, 7, Some(("a", 14)))];
        assert_eq!(ends(&later), Some(14));
        assert_eq!(ends(&[(0, 0, None), seen[1]]), Some(14));
        assert_eq!(ends(&[(0, 0, Some(("b", 11))), seen[1]]), Some(14));
    }

    #[test]
    fn who_did_not_look_for_long_gives_it_a_whole_ttl() {
        assert_eq!(ends(&[(5, 5, Some(("a", 6)))]), Some(17));
        assert_eq!(ends(&[(0, 0, None), (30, 30, Some(("a", 31)))]), Some(42));
        let seen = [(0, 0, Some(("a", 8))), (3, 3, Some(("a", 14)))];
        assert_eq!(
            ends(&[seen[0], seen[1], (30, 30, Some(("a", 14)))]),
            Some(42)
        );
    }

    #[test]
    fn a_clock_that_jumps_ends_no_lease() {
        let before = (0, 0, Some(("a", 8)));
        // Ahead, after it was renewed: what is left by that clock is nothing.
        assert_eq!(ends(&[before, (3, 9000, Some(("a", 14)))]), Some(15));
        // Back: nobody's lease lasts longer than it can.
        assert_eq!(
            ends(&[(0, 9000, None), (3, 3, Some(("a", 9014)))]),
            Some(15)
        );
        assert_eq!(
            ends(&[(0, 9000, None), (3, 9003, Some(("a", 99_999)))]),
            Some(15)
        );
    }

    #[test]
    fn a_call_is_made_only_right_after_a_look() {
        let began = Instant::now();
        let lease = after(began, &[(0, 0, None), (3, 3, None)]);
        let at = |s: u64| lease.until(began + Duration::from_secs(s), TTL);
        assert_eq!(at(4), Some(3000 + 990 + 6000));
        assert_eq!(at(10), None);
        assert_eq!(Lease::default().until(began, TTL), None);
    }

    proptest! {
        /// Whatever the node's clock says: an owner that renews within its ttl is never robbed by one who watches.
        #[test]
        fn who_renews_in_time_is_never_seen_to_end(
            renewals in prop::collection::vec(1..11_000u64, 1..30),
            looks in prop::collection::vec(1..8_000u64, 1..60),
            jumps in prop::collection::vec(-90_000..90_000i64, 60),
        ) {
            let began = Instant::now();
            let mut times = vec![0];
            for pause in renewals {
                times.push(times[times.len() - 1] + pause);
            }
            let over = times[times.len() - 1] + 12_000;
            // Halfway between two looks the node's clock may jump.
            let mut jumped = Vec::new();
            let mut at = 0;
            for (pause, jump) in looks.iter().zip(jumps) {
                if jump % 3 == 0 {
                    jumped.push((at + pause / 2, jump));
                }
                at += pause;
            }
            let clock = |at: u64| {
                let before = jumped.iter().filter(|(when, _)| *when <= at);
                (10_000_000 + at as i64 + before.map(|(_, jump)| jump).sum::<i64>()) as u64
            };
            let (mut at, mut lease) = (0, Lease::default());
            for pause in looks {
                at += pause;
                if at >= over {
                    break;
                }
                let renewed = times.iter().rfind(|renewal| **renewal <= at).unwrap();
                let till = clock(*renewed) + 12_000;
                let asked = began + Duration::from_millis(at);
                let look = Look { asked, answered: asked, now: clock(at), epoch: Epoch(1) };
                lease.seen(look, Some(&owner("a", till)), TTL);
                prop_assert!(lease.ends().unwrap() > asked);
            }
        }
    }
}
