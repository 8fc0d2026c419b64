//! What holds for each event, delivery and run.

use super::Counts;
use crate::outcomes::Problems;
use crate::pairs::parts::{Numbered, Part};
use crate::pairs::seen::{How, Run, Seen};
use std::collections::HashMap;

/// How long a worker may take until it hears that it is to end, in ns.
const HEARS: u64 = 2_000_000_000;
/// Runs that may have been about to begin when a process stood still.
const FEW: usize = 4;

/// Acknowledged events have one answer, and one effect where they have any.
pub(super) fn has_one_outcome(seen: &Seen, counts: &mut Counts, problems: &mut Problems) {
    for (event, published) in &seen.published {
        let id = event.id();
        let answers = seen.answers.get(event).map_or(&[][..], Vec::as_slice);
        if published != "ok" {
            problems.found(format!("{id}: publishing it ended with {published}"));
        }
        counts.acknowledged += 1;
        if answers.is_empty() {
            counts.lost += 1;
            problems.found(format!("{id} is lost"));
        }
        for answer in answers.iter().filter(|answer| answer.status != "ok") {
            problems.found(format!("{id} was answered {answer:?}"));
        }
        let effects = seen.effects.get(&event.0).copied().unwrap_or(0);
        let wanted = u32::from(!event.pair().has(Part::Cache));
        if answers.len() > 1 || effects > wanted {
            counts.twice += 1;
            problems.found(format!(
                "{id} has {} answers, {effects} effects",
                answers.len()
            ));
        } else if effects < wanted {
            problems.found(format!("{id} has no effect"));
        }
    }
    for event in seen
        .answers
        .keys()
        .filter(|event| !seen.published.contains_key(event))
    {
        problems.found(format!("{} was answered and never published", event.id()));
    }
    for id in &seen.dead {
        problems.found(format!("{id} is dead"));
    }
}

/// At most as many runs as deliveries.
pub(super) fn delivery_is_run_once(seen: &Seen, counts: &mut Counts, problems: &mut Problems) {
    counts.runs = seen.runs.len() as u64;
    counts.taken_over = seen.runs.iter().filter(|run| run.deliveries > 1).count() as u64;
    let mut deliveries = HashMap::new();
    for run in &seen.runs {
        if let Some(other) = deliveries.insert((run.entry, run.deliveries), run) {
            problems.found(format!("one delivery was run twice: {other:?}, {run:?}"));
        }
    }
}

/// Nothing but a failure costs an attempt: no death, no drain, no waiting.
pub(super) fn try_follows_a_failed_one(seen: &Seen, counts: &mut Counts, problems: &mut Problems) {
    let mut failed: HashMap<(Numbered, u32), bool> = HashMap::new();
    for run in &seen.runs {
        *failed.entry((run.event, run.attempt)).or_default() |=
            run.end.is_some_and(|end| end.how == How::Failed);
    }
    for (event, attempt) in failed.keys().filter(|(_, attempt)| *attempt > 1) {
        counts.tried_again += 1;
        // A machine that is slow makes any run too long, or a layer ready too late.
        let timed = event.pair().has(Part::Timeout);
        if !timed && failed.get(&(*event, attempt - 1)) != Some(&true) {
            problems.found(format!(
                "{} has a try {attempt} and none failed before",
                event.id()
            ));
        }
    }
}

/// Who drains begins nothing, and who stood still begins nothing that another one has begun meanwhile.
pub(super) fn run_is_begun_by_who_may(seen: &Seen, _: &mut Counts, problems: &mut Problems) {
    let mut latest: HashMap<_, Vec<&Run>> = HashMap::new();
    for run in &seen.runs {
        latest.entry(run.entry).or_default().push(run);
        let told = seen.lives.get(&run.process).and_then(|life| life.told);
        if run.draining && told.is_some_and(|told| run.began > told + HEARS) {
            problems.found(format!("it began while its worker drained: {run:?}"));
        }
    }
    // What was under way in the very moment in which it stood still is begun after it: a few runs.
    let mut late: HashMap<(&str, u64), Vec<&Run>> = HashMap::new();
    for runs in latest.values() {
        for run in runs {
            let taken = runs
                .iter()
                .any(|other| other.deliveries > run.deliveries && other.began < run.began);
            if taken {
                let life = &seen.lives[&run.process];
                let stop = life.stops.iter().map(|stop| stop.0);
                let stop = stop.filter(|stop| *stop < run.began).max();
                late.entry((&run.process, stop.unwrap_or(0)))
                    .or_default()
                    .push(run);
            }
        }
    }
    for ((process, stop), runs) in late.iter().filter(|(_, runs)| runs.len() > FEW) {
        problems.found(format!(
            "{process} began what others had begun before, after it stood still at {stop}: {runs:?}"
        ));
    }
}
