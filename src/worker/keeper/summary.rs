//! Says now and then what went wrong since: one line, however much it was.

use super::Chores;
use crate::worker::activity::{self, Activity};
use std::collections::BTreeSet;
use std::time::Duration;

/// How often failures are summed up in the log.
const PAUSE: Duration = Duration::from_secs(10);
/// How long a run takes that is said to hang.
const HANGS: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Default, PartialEq)]
struct Failures {
    dead: u64,
    retried: u64,
    expired: u64,
}

/// Sums up what is new.
pub(super) async fn run(chores: &Chores) {
    let mut before = Failures::default();
    let mut hanging = BTreeSet::new();
    loop {
        tokio::time::sleep(PAUSE).await;
        before = run_once(chores, before);
        hanging = hangs(activity::of(&chores.lanes.now()), &hanging);
    }
}

/// Which types hang by now; says so of those that did not `before`.
fn hangs(activity: Vec<(String, Activity)>, before: &BTreeSet<String>) -> BTreeSet<String> {
    let mut hanging = BTreeSet::new();
    for (
        kind,
        Activity {
            running,
            waiting,
            oldest,
        },
    ) in activity
    {
        let oldest = oldest.map_or(Duration::ZERO, |since| since.elapsed());
        if oldest < HANGS {
            continue;
        }
        if !before.contains(&kind) {
            let oldest = humantime::format_duration(Duration::from_secs(oldest.as_secs()));
            tracing::warn!(r#type = kind, running, waiting, %oldest, "runs take very long: does the handler hang?");
        }
        hanging.insert(kind);
    }
    hanging
}

fn run_once(chores: &Chores, before: Failures) -> Failures {
    let lanes = &chores.lanes;
    let now = Failures {
        dead: lanes.count(|counts| &counts.dead),
        retried: lanes.count(|counts| &counts.retried),
        expired: lanes.count(|counts| &counts.expired),
    };
    if now != before {
        tracing::warn!(
            dead_letters = now.dead - before.dead,
            retries = now.retried - before.retried,
            past_deadline = now.expired - before.expired,
            seconds = PAUSE.as_secs(),
            "events failed"
        );
    }
    now
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_type_hangs_by_its_oldest_run() {
        let Some(long_ago) = Instant::now().checked_sub(2 * HANGS) else {
            return;
        };
        let one = |kind: &str, oldest| {
            let activity = Activity {
                running: 1,
                oldest,
                ..Activity::default()
            };
            (kind.to_owned(), activity)
        };
        let activity = || {
            vec![
                one("a.hangs", Some(long_ago)),
                one("a.runs", Some(Instant::now())),
            ]
        };
        let hanging = hangs(activity(), &BTreeSet::new());
        assert_eq!(hanging, BTreeSet::from(["a.hangs".to_owned()]));
        assert_eq!(hangs(activity(), &hanging), hanging);
        assert!(hangs(Vec::new(), &hanging).is_empty());
    }
}
