//! What results say: by which run each was made, and for how long a cache keeps it.

use super::Counts;
use crate::outcomes::Problems;
use crate::pairs::parts::{KEPT, Part, TIMEOUT};
use crate::pairs::seen::{How, Run, Seen};
use std::collections::HashMap;
use std::time::Duration;

/// How long an event that a cache answers may wait for a slot and its commit. A stop in between is added.
const ON_THE_WAY: u64 = 60_000_000_000;
/// What a machine may be late by, in ns.
const SLACK: u64 = 100_000_000;

fn in_time(run: &Run) -> bool {
    let took = run.end.map_or(Duration::MAX, |end| end.took);
    !run.event.pair().has(Part::Timeout) || took <= TIMEOUT
}

/// A result is of a run of that event that went well and was in time, or of one with the same payload
/// where a cache is.
pub(super) fn are_of_the_runs_that_made_them(
    seen: &Seen,
    counts: &mut Counts,
    problems: &mut Problems,
) {
    let runs: HashMap<(&str, u64), &Run> = seen
        .runs
        .iter()
        .map(|run| ((run.process.as_str(), run.number), run))
        .collect();
    for (event, answers) in &seen.answers {
        for answer in answers {
            let (process, number) = &answer.made_by;
            let mut wrong = |what: &str| {
                problems.found(format!("{}: {what}: {answer:?}", event.id()));
            };
            let Some(run) = runs.get(&(process.as_str(), *number)) else {
                wrong("no run made its result");
                continue;
            };
            let Some(end) = run.end.filter(|end| end.how == How::Ok) else {
                wrong("the run of its result did not end well");
                continue;
            };
            if !in_time(run) {
                wrong("the run of its result took too long");
            }
            if run.event == *event {
                continue;
            }
            counts.cached += 1;
            let pair = event.pair();
            if !pair.has(Part::Cache) || run.event.pair() != pair {
                wrong("its result is another event's");
            }
            if run.event.payload() != event.payload() {
                wrong("its result is of another payload");
            }
            let stopped = seen.lives[process].stood_still(end.ns, answer.ns);
            if answer.ns > end.ns + KEPT.as_nanos() as u64 + ON_THE_WAY + stopped {
                wrong("its result is too old");
            }
        }
    }
}

/// As long as a result is kept, an equal event is not run in that process.
pub(super) fn are_kept_while_they_live(seen: &Seen, _: &mut Counts, problems: &mut Problems) {
    let mut equal: HashMap<_, Vec<&Run>> = HashMap::new();
    for run in seen
        .runs
        .iter()
        .filter(|run| run.event.pair().has(Part::Cache))
    {
        let key = (&run.process, run.event.pair(), run.event.payload());
        equal.entry(key).or_default().push(run);
    }
    for ((process, ..), runs) in &equal {
        let good = runs.iter().filter(|run| in_time(run));
        for kept in good.filter_map(|run| run.end.filter(|end| end.how == How::Ok)) {
            let life = kept.ns + SLACK..kept.ns + KEPT.as_nanos() as u64 - SLACK;
            for again in runs.iter().filter(|run| life.contains(&run.began)) {
                // Who stood still may have looked before.
                if seen.lives[*process].stood_still(kept.ns.saturating_sub(SLACK), again.began) == 0
                {
                    problems.found(format!("its result was kept since {}: {again:?}", kept.ns));
                }
            }
        }
    }
}
