//! Whose silence is it? One rule for all who say that an instance is gone, or that nobody renewed something.
//!
//! **Time in which the server did not answer, or in which its clock jumped, is nobody's silence.**
//!
//! An instance lives by its pulses: each makes it expire one ttl later, by the server's clock. What may
//! pass while no pulse arrives is not only the death of its process:
//!
//! | what happens | what the sweeper sees | whose fault |
//! |---|---|---|
//! | the process died, hangs, or lost its way to the server | its expiry passes while the server answers | its own |
//! | the server was stopped, restarted, paused, or nobody reached it | all expiries pass while nothing answers | nobody's |
//! | the server's clock jumped ahead | all expiries pass at once | nobody's |
//! | it jumped back | nobody expires any more, not even the dead | nobody's |
//! | the nodes of a cluster serve no slot (CLUSTERDOWN) | all expiries pass while none of them takes a pulse, though each tells its time | nobody's |
//! | it failed over to a replica that heard no pulse for a while | some expiries pass; another history | nobody's |
//! | the sweeper itself was stopped, or cut off | all expiries pass while *it* hears nothing | nobody's |
//!
//! So an expiry alone is no proof. Proof is that the server was there to be pulsed to, for as long as the
//! instance may be silent: **an instance is lost if it expired, and the sweeper has had answers of the
//! server without a gap for five sixths of that instance's ttl** ([`quiet`]): two pulses are due in that time, and each
//! is tried again four times a third. Each process that sweeps keeps an [`Answers`]
//! for that: when the server answered last, what its clock said, and *since when* there was no gap. A gap is
//!
//! - a third of the ttl without an answer (a pulse that is due in it arrives right after it: an instance has
//!   two thirds of a ttl to spare); one that took more than half of that does not count, as it does not say when
//!   the server read its clock,
//! - a clock that moved more than half of that against the local monotonic one, ahead or back,
//! - another history of the data: a restart or a failover,
//! - the time before the process began to look.
//!
//! After each the count starts again, so nobody is lost for five sixths of a ttl, and everybody who lives has
//! pulsed by then. Who died in the gap, or before, has not: it is lost before a ttl is over. That adds up:
//!
//! | part of a ttl | for what |
//! |---|---|
//! | 1/12 | until the sweeper is answered: while there is no answer it asks that often, each time on a new connection, so that it waits for nothing that was asked in the gap ([`Answers::again`]) |
//! | 5/6 | in which silence must count |
//! | 1/24 | until it sweeps: it does so when its count is full, whatever its turn is, but not all at once ([`SPREAD`]) |
//! | 1/24 | for the calls themselves: to connect, to be answered, to look and to declare |
//!
//! It holds where a pulse lasts for one ttl. Where neighbours ask each other whether they live (pattern *distributed* of
//! `system.heartbeat`) it lasts for three, and the dead are found by their neighbours, about two ttls after the gap, or by
//! their lease, three ttls after their last pulse.
//!
//! It holds where the sweeper's ttl is not longer than the instance's, one that can connect is left, and connecting
//! and these calls take no longer than a 24th of the ttl. Otherwise the dead are found later. The living are never
//! found where all have one ttl: what is a gap goes by the sweeper's own, so an instance with a much shorter one may
//! miss more pulses in what is no gap to its sweeper than it has to spare.
//!
//! *What is under way.* A call may be sent before a gap and run after it: a server that was stopped finds it
//! in its buffers and runs it first, before any pulse. So each such call carries between which times of the
//! server's clock it may be run ([`CallTime`]), and at any other time it changes nothing. So does the pulse of a process
//! ([`Answers::until`]): one that was sent before its process died, and is run after the gap, is no sign of life.
//!
//! *The living go on as who they were.* Until somebody declares it lost, the own pulse of a sealed instance
//! renews it although it expired: same incarnation, same tasks, same entries. That is safe, since whoever
//! declares it lost does so in one step with taking what it held, and the next pulse is told. It is no
//! resurrection: nothing was taken from it. An external instance has no process that we know; an event that
//! pulses for it after its expiry is refused, as ever. A *new* process under the id of one that expired or
//! lives takes the place of the old one by its own word: that needs no proof of silence, and it takes the
//! tasks from the old one by name.
//!
//! *Who follows it.*
//!
//! | who | what it judges | how |
//! |---|---|---|
//! | the sweeper (`lose.lua`) | expiries | by [`Answers::span`]: since when, from when, until when |
//! | observers (`update_gossip_health.lua`) | peers that are late | they say nothing of a peer within one of its ttls after a gap; the call carries the span |
//! | the keeper (`heartbeat.lua`) | itself | its pulse renews what nobody declared lost |
//! | registration (`register.lua`) | itself | the same process goes on as who it was |
//! | tasks | their holders | they have no time of their own: they move when their holder is declared lost, or says so |
//! | batches (`coordinate_batch.lua`) | the holder's lease | it runs out a lease after the last gap at the earliest |
//! | takeover of what nobody renewed (`take.lua`) | idle entries | no gap for the whole claim time, and the span |
//!
//! *What it costs.* Nothing where the duties of the keeper ask the server for its time anyway; else one
//! `TIME` an eighth of the ttl, at most one a second. And time: who died in a gap, or before it, is found
//! within a ttl after it.

use crate::connect::clock::whole_ms;
use crate::connect::epoch::Epoch;
use crate::mutex::locked;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// When the server answered, as one process saw it. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct Answers {
    /// The longest pause between two answers that is not a silence.
    gap: Duration,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    last: Option<Answer>,
    /// Since when there was no gap, by the server's clock.
    since: u64,
    /// Gaps so far.
    gaps: u64,
}

/// An answer that told the server's time.
#[derive(Clone, Copy, Debug)]
struct Answer {
    asked: Instant,
    answered: Instant,
    ms: u64,
    epoch: Epoch,
}

/// In which time of the server's clock a call belongs, in Unix ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallTime {
    /// Silence counts from here on.
    pub since: u64,
    /// The call may be run from here,
    pub from: u64,
    /// to here.
    pub until: u64,
}

impl CallTime {
    /// For calls that are right at any time.
    pub const ANY: CallTime = CallTime {
        since: 0,
        from: 0,
        until: 1 << 53,
    };
    /// For calls that are never made at the right time.
    pub const NEVER: CallTime = CallTime {
        since: 0,
        from: 1 << 53,
        until: 0,
    };
}

/// How long silence must count before an instance of that ttl is lost; `lose.lua` has the same.
pub fn quiet(ttl: Duration) -> Duration {
    ttl * 5 / 6
}

/// The part of a ttl in which processes sweep one after the other as soon as silence counts.
pub const SPREAD: u32 = 24;

impl Answers {
    /// For instances that pulse every third of that.
    pub fn new(ttl: Duration) -> Self {
        Self {
            gap: ttl / 3,
            seen: Arc::default(),
        }
    }

    /// How often the server must be asked at the least.
    pub fn pause(&self) -> Duration {
        (self.gap * 3 / 8).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }

    /// How often the server is asked while it does not answer.
    pub fn again(&self) -> Duration {
        (self.gap / 4).clamp(Duration::from_millis(1), Duration::from_secs(1))
    }

    /// How long an answer may take that counts: of one that took longer nobody knows when the server read its
    /// clock.
    pub fn patience(&self) -> Duration {
        self.gap / 2
    }

    /// When silence will have counted for so long, if nothing happens until then, or when it had: an answer
    /// that comes after that does not move it. `None` before the first answer.
    pub fn counted(&self, time: Duration) -> Option<Instant> {
        let seen = self.seen();
        let last = seen.last?;
        // Its clock may be a ms further.
        let full = seen.since + whole_ms(time) + 1;
        match full.checked_sub(last.ms) {
            Some(left) => Some(last.answered + Duration::from_millis(left)),
            None => last
                .answered
                .checked_sub(Duration::from_millis(last.ms - full)),
        }
    }

    /// How long ago the last answer came; `None` before the first.
    pub fn age(&self) -> Option<Duration> {
        self.seen().last.map(|last| last.answered.elapsed())
    }

    /// Notes that the server answered just now, in that history, that it was so late (Unix ms). It was
    /// asked then.
    pub fn heard(&self, asked: Instant, ms: u64, epoch: Epoch) {
        self.note(Answer {
            asked,
            answered: Instant::now(),
            ms,
            epoch,
        });
    }

    fn note(&self, new: Answer) {
        if new.answered.saturating_duration_since(new.asked) > self.patience() {
            return;
        }
        let mut seen = self.seen();
        let steady = match &seen.last {
            Some(last) if new.asked < last.asked => return,
            Some(last) => self.follows(last, &new),
            None => false,
        };
        if !steady {
            seen.since = new.ms;
            seen.gaps += 1;
        }
        seen.last = Some(new);
    }

    /// Whether there was no gap between the two.
    fn follows(&self, last: &Answer, new: &Answer) -> bool {
        let between =
            |from: Instant, to: Instant| to.saturating_duration_since(from).as_millis() as i128;
        let moved = i128::from(new.ms) - i128::from(last.ms);
        let slack = self.gap.as_millis() as i128 / 2;
        let least = between(last.answered, new.asked) - slack;
        let most = between(last.asked, new.answered) + slack;
        new.epoch == last.epoch
            && new.answered.saturating_duration_since(last.answered) <= self.gap
            && (least..=most).contains(&moved)
    }

    /// In which time a call that is sent now belongs; `None` within a gap, and before the first answer.
    pub fn span(&self) -> Option<CallTime> {
        self.span_at(Instant::now())
    }

    fn span_at(&self, now: Instant) -> Option<CallTime> {
        let seen = self.seen();
        let last = seen.last?;
        let age = now.saturating_duration_since(last.answered);
        let gap = whole_ms(self.gap);
        (age <= self.gap).then(|| {
            let now = last.ms + whole_ms(age);
            CallTime {
                since: seen.since,
                from: now.saturating_sub(gap),
                until: now + gap,
            }
        })
    }

    /// The same if there was no gap for so long.
    pub fn steady_for(&self, time: Duration) -> Option<CallTime> {
        let span = self.span()?;
        let gap = whole_ms(self.gap);
        (span.until - gap >= span.since + whole_ms(time)).then_some(span)
    }

    /// Until when, by the server's clock, a call that is sent now may be run, within a gap as well; `None` before the
    /// first answer.
    pub fn until(&self) -> Option<u64> {
        let last = self.seen().last?;
        Some(last.ms + whole_ms(last.answered.elapsed()) + whole_ms(self.gap))
    }

    /// How many gaps there were, the first answer among them.
    pub fn gaps(&self) -> u64 {
        self.seen().gaps
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        locked(&self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TTL: Duration = Duration::from_secs(3);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Answers at these local times (ms): when asked, when answered, and what the server's clock said.
    fn heard(answers: &Answers, began: Instant, all: &[(u64, u64, u64)]) {
        for &(asked, answered, said) in all {
            answers.note(Answer {
                asked: began + ms(asked),
                answered: began + ms(answered),
                ms: said,
                epoch: Epoch(1),
            });
        }
    }

    #[test]
    fn without_a_gap_silence_counts_from_the_first_answer() {
        let (answers, began) = (Answers::new(TTL), Instant::now());
        assert_eq!(answers.span_at(began), None);
        heard(
            &answers,
            began,
            &[(0, 1, 5000), (900, 905, 5903), (1800, 1802, 6801)],
        );
        let span = answers.span_at(began + ms(2302)).unwrap();
        assert_eq!((span.since, span.from, span.until), (5000, 6301, 8301));
        assert_eq!(
            answers.span_at(began + ms(2803)),
            None,
            "a gap may be under way"
        );
        assert_eq!(answers.gaps(), 1);
    }

    #[test]
    fn a_pause_a_jump_and_another_history_are_gaps() {
        for (what, asked, said, epoch) in [
            ("a pause", 1100, 6100, 1),
            ("a jump ahead", 500, 6100, 1),
            ("an hour ahead", 500, 3_605_500, 1),
            ("a jump back", 800, 5200, 1),
            ("a day back", 500, 0, 1),
            ("another history", 500, 5500, 2),
        ] {
            let (answers, began) = (Answers::new(TTL), Instant::now());
            heard(&answers, began, &[(0, 1, 5000)]);
            answers.note(Answer {
                asked: began + ms(asked),
                answered: began + ms(asked + 2),
                ms: said,
                epoch: Epoch(epoch),
            });
            let span = answers.span_at(began + ms(asked + 2)).unwrap();
            assert_eq!((span.since, answers.gaps()), (said, 2), "{what}");
        }
    }

    #[test]
    fn silence_has_counted_when_the_servers_clock_says_so() {
        let (answers, began) = (Answers::new(TTL), Instant::now());
        assert_eq!(answers.counted(quiet(TTL)), None);
        // The server is 4 s ahead of what is local here; then it is away, and then it goes on.
        heard(&answers, began, &[(0, 2, 4001), (900, 910, 4905)]);
        assert_eq!(
            answers.counted(quiet(TTL)),
            Some(began + ms(910 + 2500 - 903))
        );
        heard(&answers, began, &[(5000, 5020, 9010)]);
        assert_eq!(answers.counted(quiet(TTL)), Some(began + ms(5020 + 2501)));
        heard(&answers, began, &[(5900, 5901, 9900), (6800, 6804, 10_800)]);
        let counted = answers.counted(quiet(TTL));
        assert_eq!(counted, Some(began + ms(6804 + 2501 - 1790)));
        let span = answers.span_at(began + ms(6804)).unwrap();
        assert_eq!(span.since, 9010);
        let had = Some(began + ms(6804 + 101 - 1790));
        assert_eq!(answers.counted(ms(100)), had, "it had");
        heard(
            &answers,
            began,
            &[(7300, 7304, 11_300), (8000, 8004, 12_000)],
        );
        assert_eq!(answers.counted(ms(100)), had, "and answers do not move it");
    }

    #[test]
    fn who_died_in_a_gap_is_found_within_a_ttl_after_it() {
        for millis in [100, 300, 2000, 30_000, 3_600_000] {
            let ttl = ms(millis);
            let parts = Answers::new(ttl).again() + quiet(ttl) + ttl / SPREAD;
            assert!(parts <= ttl - ttl / 25, "{ttl:?}: {parts:?}");
        }
    }

    #[test]
    fn an_answer_that_was_asked_for_earlier_changes_nothing() {
        let (answers, began) = (Answers::new(TTL), Instant::now());
        heard(
            &answers,
            began,
            &[(0, 1, 5000), (500, 510, 5505), (490, 520, 5491)],
        );
        let span = answers.span_at(began + ms(510)).unwrap();
        assert_eq!((span.since, span.until), (5000, 6505));
    }

    proptest! {
        /// However late answers come, a server that answers in time with an even clock has no gap; and
        /// wherever its clock jumps or it does not answer in time, what counts begins behind it.
        #[test]
        fn silence_never_counts_across_a_gap(
            steps in prop::collection::vec((1..900u64, 0..90u64, prop::option::weighted(0.1, 1501..90_000u64), prop::bool::ANY), 1..60)
        ) {
            let (answers, began) = (Answers::new(TTL), Instant::now());
            let (mut local, mut clock, mut since) = (0, 10_000_000, None);
            for (pause, took, jump, outage) in steps {
                let (asked, mut away, late) = (local + pause, pause + took, jump.is_some() && outage);
                match jump {
                    Some(jump) if outage => away += jump,
                    Some(jump) => {
                        clock += jump;
                        since = None;
                    }
                    None => {}
                }
                local += away;
                clock += away;
                heard(&answers, began, &[(asked, local, clock - took / 2)]);
                if late {
                    since = None;
                    prop_assert_eq!(answers.span_at(began + ms(local)), None);
                    continue;
                }
                since = since.or(Some(clock - took / 2));
                let span = answers.span_at(began + ms(local)).unwrap();
                prop_assert_eq!(Some(span.since), since);
            }
        }
    }
}
