//! The table at `Policy`, and what holds for every event, as rules on what was seen.

mod admission;
mod each;
mod results;

use super::seen::Seen;
use crate::outcomes::Problems;
use crate::support::torture::Report;
use std::collections::BTreeMap;
use std::time::Duration;

/// What was counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(crate) acknowledged: u64,
    pub(crate) lost: u64,
    pub(crate) twice: u64,
    pub(crate) runs: u64,
    pub(crate) taken_over: u64,
    pub(crate) tried_again: u64,
    pub(crate) timed_out: u64,
    pub(crate) cached: u64,
    pub(crate) opened: u64,
    pub(crate) layered: u64,
    /// The shortest time in which one run more than a rate allows began.
    pub(crate) closest: Option<Duration>,
}

/// Checks every rule.
#[track_caller]
pub(super) fn check(seen: &Seen) -> Counts {
    let (counts, problems) = judge(seen);
    let mut kinds: BTreeMap<String, u32> = BTreeMap::new();
    for told in problems.told() {
        let words = told.split([' ', ':', ',']);
        let words = words.filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
        *kinds
            .entry(words.take(5).collect::<Vec<_>>().join(" "))
            .or_default() += 1;
    }
    for (kind, count) in kinds {
        eprintln!("{count} times: {kind}");
    }
    problems.none();
    counts
}

fn judge(seen: &Seen) -> (Counts, Problems) {
    let (mut counts, mut problems) = (Counts::default(), Problems::default());
    let all = [
        each::has_one_outcome,
        each::delivery_is_run_once,
        each::try_follows_a_failed_one,
        each::run_is_begun_by_who_may,
        results::are_of_the_runs_that_made_them,
        results::are_kept_while_they_live,
        admission::subjects_have_their_order,
        admission::runs_at_a_time_are_bounded,
        admission::rates_hold_over_all_replicas,
        admission::time_outs_end_runs,
        admission::circuits_open_and_close_for_a_reason,
        admission::layers_are_called_once_and_ready,
    ];
    for rule in all {
        rule(seen, &mut counts, &mut problems);
    }
    (counts, problems)
}

impl Counts {
    pub(super) fn tell(&self, report: Report) -> Report {
        let report = report
            .event(self.acknowledged, "acknowledged")
            .event(self.lost, "lost")
            .event(self.twice, "duplicate effects")
            .event(self.runs, "runs under 22 policies")
            .event(self.taken_over, "of them taken over")
            .event(self.tried_again, "tried again")
            .event(self.timed_out, "timed out")
            .event(self.cached, "answered from a cache")
            .event(self.layered, "through a layer")
            .event(self.opened, "openings of circuits");
        match self.closest {
            None => report,
            Some(closest) => report.note(format!(
                "one run more than the rate of a second began in {:.2} s at the least",
                closest.as_secs_f64()
            )),
        }
    }
}

#[cfg(test)]
mod tests;
