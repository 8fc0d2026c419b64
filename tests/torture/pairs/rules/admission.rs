//! What the parts of a policy say of when runs begin, and of how many.

use super::Counts;
use crate::outcomes::Problems;
use crate::pairs::parts::{CONCURRENCY, FAILURES, Numbered, PERIOD, Pair, Part, RATE, TIMEOUT};
use crate::pairs::seen::{How, Run, Seen};
use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

fn grouped<'a, K: Eq + Hash>(
    runs: &'a [Run],
    part: Part,
    key: impl Fn(&'a Run) -> K,
) -> HashMap<K, Vec<&'a Run>> {
    let mut groups: HashMap<K, Vec<&Run>> = HashMap::new();
    for run in runs.iter().filter(|run| run.event.pair().has(part)) {
        groups.entry(key(run)).or_default().push(run);
    }
    groups
}

/// The most of these runs that were under way at a time. What has no end goes on to the end of its process.
pub(super) fn most_at_once(runs: &[&Run]) -> usize {
    let mut ends: Vec<(u64, i32)> = Vec::new();
    for run in runs {
        ends.push((run.began, 1));
        ends.extend(run.end.map(|end| (end.ns, -1)));
    }
    ends.sort_unstable();
    let (mut now, mut most) = (0, 0);
    for (_, change) in ends {
        now += change;
        most = most.max(now);
    }
    most as usize
}

/// Within a process a subject's events run one at a time, and what was read new in order: retries among
/// it, which have a new place.
pub(super) fn subjects_have_their_order(seen: &Seen, _: &mut Counts, problems: &mut Problems) {
    let of_subject = |run: &'_ Run| (run.process.clone(), run.event.pair(), run.event.subject());
    for ((process, pair, subject), mut runs) in grouped(&seen.runs, Part::Ordered, of_subject) {
        let named = format!("{process}, {} of {subject}", pair.kind());
        let most = most_at_once(&runs);
        if most > 1 {
            problems.found(format!("{named}: {most} at a time"));
        }
        runs.retain(|run| run.deliveries == 1);
        runs.sort_unstable_by_key(|run| run.began);
        for [first, second] in runs.array_windows() {
            if first.entry > second.entry {
                problems.found(format!("{named}: out of order: {first:?}, {second:?}"));
            }
        }
    }
    for ((process, pair, subject), runs) in grouped(&seen.layers, Part::Ordered, of_subject) {
        let most = most_at_once(&runs);
        // What the cache answers waits for no turn.
        if most > 1 && !pair.has(Part::Cache) {
            problems.found(format!("{process}: {most} of {subject} in a layer"));
        }
    }
}

pub(super) fn runs_at_a_time_are_bounded(seen: &Seen, _: &mut Counts, problems: &mut Problems) {
    for passed in [&seen.runs, &seen.layers] {
        let of_process = |run: &'_ Run| (run.process.clone(), run.event.pair());
        for ((process, pair), runs) in grouped(passed, Part::Concurrency, of_process) {
            let most = most_at_once(&runs);
            let cached = pair.has(Part::Cache) && pair.has(Part::Layer);
            if most > CONCURRENCY && !cached {
                problems.found(format!("{process}: {most} runs of {}", pair.kind()));
            }
        }
    }
}

/// A run begins a moment after it was counted, and long after where its process stood still; those are not
/// looked at.
pub(super) fn rates_hold_over_all_replicas(
    seen: &Seen,
    counts: &mut Counts,
    problems: &mut Problems,
) {
    let of_source = |run: &'_ Run| (run.event.pair(), run.event.source());
    for ((pair, source), runs) in grouped(&seen.runs, Part::Rate, of_source) {
        let steady = runs.iter().filter(|run| {
            let life = &seen.lives[&run.process];
            life.stood_still(run.began.saturating_sub(SECOND), run.began) == 0
        });
        let mut began: Vec<u64> = steady.map(|run| run.began).collect();
        began.sort_unstable();
        for window in began.windows(RATE + 1) {
            let took = Duration::from_nanos(window[RATE] - window[0]);
            counts.closest = Some(counts.closest.map_or(took, |closest| closest.min(took)));
            // On a machine that does other things a run may begin long after it was counted.
            if took < PERIOD / 5 {
                problems.found(format!(
                    "{} of {source}: {RATE} and one in {took:?}",
                    pair.kind()
                ));
            }
        }
    }
}

/// No run lasts longer than it may; a machine may be late, and a process may stand still.
pub(super) fn time_outs_end_runs(seen: &Seen, counts: &mut Counts, problems: &mut Problems) {
    for run in seen
        .runs
        .iter()
        .filter(|run| run.event.pair().has(Part::Timeout))
    {
        let life = &seen.lives[&run.process];
        let end = match run.end {
            Some(end) => {
                counts.timed_out += u64::from(end.how == How::Dropped);
                end.ns
            }
            None => life.ended.unwrap_or(run.began),
        };
        let took = end.saturating_sub(run.began) - life.stood_still(run.began, end);
        if took > TIMEOUT.as_nanos() as u64 + 2 * SECOND {
            problems.found(format!(
                "it ran for {:?}: {run:?}",
                Duration::from_nanos(took)
            ));
        }
    }
}

/// For each opening of a circuit in a process there were failures enough, for each closing a success. A change
/// is told a while after it happened, and not at all where the server does not answer.
pub(super) fn circuits_open_and_close_for_a_reason(
    seen: &Seen,
    counts: &mut Counts,
    problems: &mut Problems,
) {
    let kinds: HashMap<String, Pair> = Pair::all().map(|pair| (pair.kind(), pair)).collect();
    let mut so_far: HashMap<(&str, &str), (u32, u32)> = HashMap::new();
    let ends = ends_of(seen);
    for change in &seen.changes {
        let pair = kinds[&change.kind];
        let of = (change.process.as_str(), change.kind.as_str());
        let (opened, closed) = so_far.entry(of).or_default();
        *(if change.opened {
            &mut *opened
        } else {
            &mut *closed
        }) += 1;
        let ended = ends.get(&(change.process.as_str(), pair));
        let ended = ended.map_or(&[][..], Vec::as_slice).iter();
        let ended = ended.filter(|(ns, _)| *ns <= change.ns + MS);
        let (mut good, mut bad) = (0, 0);
        for (_, failed) in ended {
            *(if *failed { &mut bad } else { &mut good }) += 1;
        }
        let lawful = pair.has(Part::Circuit) && bad >= FAILURES * *opened && good >= *closed;
        counts.opened += u64::from(change.opened);
        if !lawful {
            problems.found(format!(
                "{opened} times open, {closed} closed, {good} good and {bad} bad runs: {change:?}"
            ));
        }
    }
}

/// When the runs of each process and pair ended, and whether badly.
fn ends_of(seen: &Seen) -> HashMap<(&str, Pair), Vec<(u64, bool)>> {
    let mut ends: HashMap<(&str, Pair), Vec<(u64, bool)>> = HashMap::new();
    for run in &seen.runs {
        let Some(end) = run.end else { continue };
        // Who ends it may be late.
        let late = run.event.pair().has(Part::Timeout) && end.took > TIMEOUT / 10;
        let key = (run.process.as_str(), run.event.pair());
        let all = ends.entry(key).or_default();
        all.push((end.ns, end.how != How::Ok || late));
    }
    ends
}

/// A layer is called once for each delivery, when it is ready, and around the run.
pub(super) fn layers_are_called_once_and_ready(
    seen: &Seen,
    counts: &mut Counts,
    problems: &mut Problems,
) {
    for told in &seen.unready {
        problems.found(format!("a layer was called that was not ready: {told}"));
    }
    counts.layered = seen.layers.len() as u64;
    let mut calls: HashMap<(&str, Numbered, _, u32), &Run> = HashMap::new();
    for call in &seen.layers {
        let key = (
            call.process.as_str(),
            call.event,
            call.entry,
            call.deliveries,
        );
        if calls.insert(key, call).is_some() {
            problems.found(format!("a layer was called twice: {call:?}"));
        }
    }
    for run in seen
        .runs
        .iter()
        .filter(|run| run.event.pair().has(Part::Layer))
    {
        let key = (run.process.as_str(), run.event, run.entry, run.deliveries);
        let around = calls.get(&key).is_some_and(|call| call.began <= run.began);
        if !around {
            problems.found(format!("it ran without its layer: {run:?}"));
        }
    }
}
