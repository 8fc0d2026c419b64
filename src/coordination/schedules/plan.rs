//! What is to be done for a schedule whose tick is due. Pure: the time is given.

use super::timing::{Timing, due};
use serde::{Deserialize, Serialize};

/// How long after it was due a tick is still stored where missed ones are skipped, in ms.
pub(super) const LATE: u64 = 60_000;
/// Missed ticks that are made up for at the most where all are.
pub(super) const MADE_UP: u64 = 100;
/// Missed ticks of a cron expression that are counted at the most.
const COUNTED: u64 = 1000;

/// What becomes of ticks that nobody stored in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missed {
    /// Leaves them out, the last one too if it is over a minute late.
    Skip,
    /// Stores the last of all that are due.
    #[default]
    Once,
    /// Stores each, the oldest first; of more than a hundred the last hundred.
    All,
}

impl Missed {
    /// The name on the bus.
    pub const fn as_str(self) -> &'static str {
        match self {
            Missed::Skip => "skip",
            Missed::Once => "once",
            Missed::All => "all",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        let all = [Missed::Skip, Missed::Once, Missed::All];
        all.into_iter().find(|missed| missed.as_str() == name)
    }
}

/// A tick, and when its event is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tick {
    pub at: u64,
    pub due: u64,
}

/// Ticks that no event is stored for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub count: u64,
    /// Whether there are more than were counted.
    pub is_more: bool,
    pub first: u64,
    pub last: u64,
}

/// One step of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub left_out: Option<LeftOut>,
    pub fire: Option<Tick>,
    pub next: Option<Tick>,
}

/// How a schedule is stepped.
#[derive(Debug)]
pub(super) struct Clockwork<'a> {
    pub name: &'a str,
    pub timing: &'a Timing,
    pub missed: Missed,
    pub jitter: u64,
}

impl Clockwork<'_> {
    pub(super) fn tick(&self, at: u64) -> Tick {
        Tick {
            at,
            due: due(self.timing, self.name, self.jitter, at),
        }
    }

    /// The first tick after that time.
    pub(super) fn after(&self, time: u64) -> Option<Tick> {
        self.timing.next_after(time).map(|at| self.tick(at))
    }

    /// What is to be done at `now` where `pending` is the tick that comes next; `None` while it is not due.
    pub(super) fn plan(&self, pending: u64, now: u64) -> Option<Plan> {
        if self.tick(pending).due > now {
            return None;
        }
        let mut last = self.tick(self.timing.last_until(pending, now));
        if last.due > now {
            // The one before it is due: an event is always stored before the next tick.
            last = self.tick(self.timing.last_until(pending, last.at - 1));
        }
        let fire = match self.missed {
            Missed::Once => Some(last),
            Missed::Skip => Some(last).filter(|last| now - last.due <= LATE),
            Missed::All => Some(self.tick(self.oldest_made_up(pending, last.at))),
        };
        let left_out = match fire {
            Some(fire) => (pending < fire.at).then(|| self.left_out(pending, fire.at - 1)),
            None => Some(self.left_out(pending, last.at)),
        };
        Some(Plan {
            left_out,
            fire,
            next: self.after(fire.map_or(last.at, |fire| fire.at)),
        })
    }

    /// The tick from which on all are stored: there are no more than [`MADE_UP`] until the last one.
    fn oldest_made_up(&self, pending: u64, last: u64) -> u64 {
        let is_over = |from: u64| self.count(from, last, MADE_UP).1;
        if !is_over(pending) {
            return pending;
        }
        // The fewer, the later it begins.
        let (mut low, mut high) = (pending, last);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let first = self.timing.next_after(middle).unwrap_or(last);
            match is_over(first) {
                true => low = middle,
                false => high = middle,
            }
        }
        self.timing.next_after(high.min(last - 1)).unwrap_or(last)
    }

    fn left_out(&self, first: u64, until: u64) -> LeftOut {
        let last = self.timing.last_until(first, until);
        let (count, is_more) = match self.timing {
            Timing::Every(every) => ((last - first) / every + 1, false),
            _ => self.count(first, last, COUNTED),
        };
        LeftOut {
            count,
            is_more,
            first,
            last,
        }
    }

    /// How many ticks there are from `first` to `last`, both included, and whether they are more than `most`.
    fn count(&self, first: u64, last: u64, most: u64) -> (u64, bool) {
        let ticks = std::iter::successors(Some(first), |tick| self.timing.next_after(*tick));
        let ticks = ticks.take_while(|tick| *tick <= last);
        let count = ticks
            .take(usize::try_from(most).unwrap_or_default() + 1)
            .count() as u64;
        (count.min(most), count > most)
    }
}
