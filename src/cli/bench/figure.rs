//! One comparison: the sides, their ratios and the goals.

use super::meter::Sample;
use serde::Serialize;

/// The median of some rounds, with the least and the most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 if middle > 0 => f64::midpoint(at(middle - 1), at(middle)),
            _ => at(middle),
        };
        Self {
            median,
            min: at(0),
            max: at(values.len().saturating_sub(1)),
        }
    }
}

/// What a ratio or a value should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    pub(super) fn is_reached(self, value: f64) -> bool {
        match self {
            Goal::AtLeast(goal) => value >= goal,
            Goal::AtMost(goal) => value <= goal,
        }
    }
}

/// What one side did.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Side {
    pub(crate) side: &'static str,
    /// In the figure's unit.
    #[serde(flatten)]
    pub(crate) value: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99: Option<Spread>,
    /// CPU time of this process, in seconds per 100,000 events.
    pub(crate) client_cpu_s: f64,
    /// CPU time of the server, in seconds per 100,000 events.
    pub(crate) server_cpu_s: f64,
    /// Commands that the server ran, per event.
    pub(crate) commands: f64,
    /// What this process had resident at a round's end, in KiB.
    pub(crate) rss_kib: f64,
    /// By how much that grew in a round, in KiB.
    pub(crate) rss_growth_kib: f64,
    /// What the server's data took at a round's end, in KiB.
    pub(crate) server_kib: f64,
    /// By how much that grew in a round, in KiB.
    pub(crate) server_growth_kib: f64,
}

/// A ratio of two sides, or a value that has a goal of its own.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Check {
    pub(crate) what: String,
    #[serde(flatten)]
    pub(crate) value: Spread,
    pub(crate) goal: Option<Goal>,
    pub(crate) reached: Option<bool>,
}

impl Check {
    pub(super) fn new(what: impl Into<String>, value: Spread, goal: Option<Goal>) -> Self {
        Self {
            what: what.into(),
            value,
            goal,
            reached: goal.map(|goal| goal.is_reached(value.median)),
        }
    }
}

/// One comparison.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figure {
    pub(crate) record: &'static str,
    pub(crate) measurement: &'static str,
    pub(crate) case: String,
    pub(crate) unit: &'static str,
    /// Events of each side in a round.
    pub(crate) events: u64,
    /// Rounds that count.
    pub(crate) rounds: u32,
    pub(crate) sides: Vec<Side>,
    pub(crate) checks: Vec<Check>,
}

/// The samples of one side, by round.
pub(super) type Samples = Vec<Sample>;

impl Figure {
    pub(super) fn new(
        measurement: &'static str,
        case: impl Into<String>,
        unit: &'static str,
        events: u64,
        sides: &[(&'static str, &Samples)],
    ) -> Self {
        let median =
            |samples: &Samples, of: fn(&Sample) -> f64| Spread::of(samples.iter().map(of)).median;
        let rounds = sides.iter().map(|(_, samples)| samples.len()).max();
        let rounds = rounds.unwrap_or(1) as u32;
        let sides = sides.iter().map(|(side, samples)| {
            let p99: Option<Vec<f64>> = samples.iter().map(|sample| sample.p99).collect();
            Side {
                side,
                value: Spread::of(samples.iter().map(|sample| sample.value)),
                p99: p99.map(Spread::of),
                client_cpu_s: median(samples, |s| s.client_cpu),
                server_cpu_s: median(samples, |s| s.server_cpu),
                commands: median(samples, |s| s.commands),
                rss_kib: median(samples, |s| s.resident),
                rss_growth_kib: median(samples, |s| s.growth),
                server_kib: median(samples, |s| s.server_memory),
                server_growth_kib: median(samples, |s| s.server_growth),
            }
        });
        Self {
            record: "figure",
            measurement,
            case: case.into(),
            unit,
            events,
            rounds,
            sides: sides.collect(),
            checks: Vec::new(),
        }
    }

    /// With how many entries of streams one event took on each side, from one process to another: two where it is asked
    /// and answered.
    pub(super) fn hops(mut self, sides: &[(&'static str, &Samples)]) -> Self {
        for (side, samples) in sides {
            let hops = Spread::of(samples.iter().map(|sample| sample.hops));
            self.checks
                .push(Check::new(format!("hops, {side}"), hops, None));
        }
        self
    }

    /// With the ratio of two sides, round by round.
    pub(super) fn ratio(
        mut self,
        what: impl Into<String>,
        of: &Samples,
        to: &Samples,
        value: impl Fn(&Sample) -> f64,
        goal: Option<Goal>,
    ) -> Self {
        let ratios = of.iter().zip(to).map(|(of, to)| value(of) / value(to));
        let ratios = ratios.filter(|ratio| ratio.is_finite());
        let ratios: Vec<f64> = ratios.collect();
        // Too little work for the system's clocks has no ratio.
        if !ratios.is_empty() {
            self.checks.push(Check::new(what, Spread::of(ratios), goal));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_median_least_and_most() {
        let spread = Spread::of([3.0, 1.0, 2.0]);
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of([1.0, 2.0]).median, 1.5);
        assert!(Spread::of([]).median.is_nan());
    }

    #[test]
    fn ratios_are_taken_round_by_round_and_held_against_the_goal() {
        let samples = |values: &[f64]| -> Samples {
            let sample = |&value: &f64| Sample {
                value,
                ..Sample::default()
            };
            values.iter().map(sample).collect()
        };
        let (bare, worker) = (samples(&[100.0, 200.0]), samples(&[90.0, 190.0]));
        let figure = Figure::new("drain", "", "events/s", 1, &[])
            .ratio(
                "speed",
                &worker,
                &bare,
                |s| s.value,
                Some(Goal::AtLeast(0.95)),
            )
            .ratio("cpu", &worker, &bare, |s| s.client_cpu, None);
        let [check] = &figure.checks[..] else {
            panic!("{figure:?}")
        };
        assert_eq!((check.value.min, check.value.max), (0.9, 0.95));
        assert_eq!(check.reached, Some(false));
        assert!(Goal::AtMost(1.1).is_reached(1.1) && !Goal::AtMost(1.1).is_reached(1.11));
    }
}
