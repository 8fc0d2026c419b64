//! The parts of a policy, their pairs, and which event of the load does what.

use convoke::Policy;
use convoke::handler::policy::CircuitPolicy;
use std::time::Duration;

/// A part of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Ordered,
    Concurrency,
    Rate,
    Circuit,
    Cache,
    Timeout,
    Layer,
}

pub(super) const PARTS: [Part; 7] = [
    Part::Ordered,
    Part::Concurrency,
    Part::Rate,
    Part::Circuit,
    Part::Cache,
    Part::Timeout,
    Part::Layer,
];

/// Runs at a time in a process.
pub(super) const CONCURRENCY: usize = 2;
/// Runs of a source in a period.
pub(super) const RATE: usize = 20;
pub(super) const PERIOD: Duration = Duration::from_secs(1);
/// How long a result is kept.
pub(super) const KEPT: Duration = Duration::from_secs(3);
pub(super) const TIMEOUT: Duration = Duration::from_millis(300);
/// Failures in a row that open a circuit.
pub(super) const FAILURES: u32 = 3;
const OPEN: Duration = Duration::from_millis(50);
/// What takes too long takes so long.
pub(super) const TOO_LONG: Duration = Duration::from_secs(20);

/// Parts that one handler's policy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pair(usize);

/// All pairs, and all parts together.
pub(super) const PAIRS: usize = PARTS.len() * (PARTS.len() - 1) / 2 + 1;

impl Pair {
    pub(super) fn all() -> impl Iterator<Item = Pair> {
        (0..PAIRS).map(Pair)
    }

    /// Its parts.
    pub(super) fn parts(self) -> Vec<Part> {
        let first =
            (0..PARTS.len()).flat_map(|one| (one + 1..PARTS.len()).map(move |two| [one, two]));
        match first.clone().nth(self.0) {
            Some(two) => two.map(|at| PARTS[at]).to_vec(),
            None => PARTS.to_vec(),
        }
    }

    pub(super) fn has(self, part: Part) -> bool {
        self.parts().contains(&part)
    }

    /// The event type.
    pub(super) fn kind(self) -> String {
        let parts = self.parts();
        let name = match parts.len() {
            2 => format!("{:?}_{:?}", parts[0], parts[1]),
            _ => "all".to_owned(),
        };
        format!("pair.{}", name.to_lowercase())
    }

    /// Its policy, except for layers.
    pub(super) fn policy(self) -> Policy {
        let parts = self.parts().into_iter();
        parts.fold(Policy::new(), |policy, part| match part {
            Part::Ordered => policy.ordered(),
            Part::Concurrency => policy.concurrency(CONCURRENCY),
            Part::Rate => policy.rate_limit(RATE as u32, PERIOD),
            Part::Circuit => policy.circuit_policy(CircuitPolicy {
                failures: FAILURES,
                open_for: OPEN,
                open_cap: 4 * OPEN,
                ..CircuitPolicy::default()
            }),
            Part::Cache => policy.cache(KEPT),
            Part::Timeout => policy.timeout(TIMEOUT),
            Part::Layer => policy,
        })
    }
}

/// An event of the load: what it is and does follows from its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Numbered(pub u64);

/// Events of one type that come one after the other.
const BURST: u64 = 48;

/// What becomes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Done, after this many ms; 0 is at once.
    Done(u64),
    /// The first try fails.
    Fails,
    /// The first try waits for too long.
    Waits,
    /// The first try holds its thread for a little too long, then says that all is well.
    Blocks,
}

impl Numbered {
    pub(super) fn of_id(id: &str) -> Option<Self> {
        Some(Self(id.strip_prefix("p-")?.parse().ok()?))
    }

    pub(super) fn id(self) -> String {
        format!("p-{}", self.0)
    }

    pub(super) fn pair(self) -> Pair {
        Pair((self.0 / BURST) as usize % PAIRS)
    }

    fn place(self) -> u64 {
        self.0 % BURST
    }

    fn round(self) -> u64 {
        self.0 / BURST / PAIRS as u64
    }

    pub(super) fn subject(self) -> String {
        format!("s-{}", self.0 % 5)
    }

    pub(super) fn source(self) -> String {
        format!("source-{}", self.0 % 2)
    }

    /// Few are equal, and none where no cache is.
    pub(super) fn payload(self) -> u64 {
        match self.pair().has(Part::Cache) {
            true => self.place() % 12,
            false => self.0,
        }
    }

    /// Whether somebody waits for its answer. Where a refusal would be one, nobody does.
    pub(super) fn is_asked(self) -> bool {
        let pair = self.pair();
        self.0.is_multiple_of(5) && !pair.has(Part::Rate) && !pair.has(Part::Circuit)
    }

    pub(super) fn fate(self, attempt: u32) -> Fate {
        let done = Fate::Done(self.0 % 6);
        if attempt > 1 {
            return done;
        }
        match self.place() {
            20..30 if self.round().is_multiple_of(2) => Fate::Fails,
            place if self.pair().has(Part::Timeout) => match place {
                5 | 35 => Fate::Waits,
                41 if self.round() % 4 == 1 => Fate::Blocks,
                _ => done,
            },
            _ => done,
        }
    }
}

#[test]
fn pairs_are_all_there_once() {
    let kinds: std::collections::HashSet<String> = Pair::all().map(Pair::kind).collect();
    assert_eq!(kinds.len(), 22);
    for one in PARTS {
        for other in PARTS {
            assert!(Pair::all().any(|pair| pair.has(one) && pair.has(other)));
        }
    }
}
