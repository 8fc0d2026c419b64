//! What the runs said, in the order in which they said it.

use std::collections::{HashMap, HashSet};
use std::path::Path;

/// A line of the history.
pub(crate) struct Said {
    /// When, in µs.
    pub(crate) at: u64,
    pub(crate) worker: String,
    pub(crate) what: String,
    pub(crate) subject: u64,
    pub(crate) number: u64,
}

pub(crate) fn read(history: &Path) -> Vec<Said> {
    let text = std::fs::read_to_string(history).unwrap();
    let said = text.lines().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let [at, worker, what, subject, number] = words[..] else {
            panic!("{line}");
        };
        Said {
            at: at.parse().unwrap(),
            worker: worker.into(),
            what: what.into(),
            subject: subject.parse().unwrap(),
            number: number.parse().unwrap(),
        }
    });
    said.collect()
}

/// What happened to workers: from where on what they say may be late.
#[derive(Default)]
pub(crate) struct Fates {
    pub(crate) killed: HashSet<String>,
    /// Lines of the history when it was stopped first.
    pub(crate) stopped: HashMap<String, usize>,
}

impl Fates {
    pub(crate) fn is_late(&self, worker: &str, line: usize) -> bool {
        self.stopped.get(worker).is_some_and(|from| line >= *from)
    }

    pub(crate) fn may_have_left(&self, worker: &str) -> bool {
        self.killed.contains(worker) || self.stopped.contains_key(worker)
    }
}

/// No run begins before all earlier ones of its subject have ended well, or beside another one of its subject whose worker
/// was neither killed nor stopped. How many runs were looked at.
pub(crate) fn assert_one_at_a_time(said: &[Said], fates: &Fates, left_out: &HashSet<u64>) -> usize {
    let mut ended: HashMap<u64, u64> = HashMap::new();
    let mut runs: HashMap<u64, &str> = HashMap::new();
    let mut began = 0;
    for (line, said) in said.iter().enumerate() {
        let Said {
            worker,
            subject,
            number,
            ..
        } = said;
        if left_out.contains(subject) {
            continue;
        }
        let of = || format!("{worker} began {subject} {number} in line {line}");
        let ended = ended.entry(*subject).or_default();
        match said.what.as_str() {
            "began" if fates.is_late(worker, line) => {}
            "began" => {
                began += 1;
                assert!(number <= ended, "{}, and {ended} was next", of());
                // What ended without its outcome being committed runs again.
                assert!(number + 1 >= *ended, "{}, and {ended} was next", of());
                if let Some(beside) = runs.insert(*subject, worker) {
                    let may = fates.may_have_left(beside);
                    assert!(may, "{}, beside a run of {beside}", of());
                }
            }
            what => {
                if runs.get(subject).is_some_and(|it| it == worker) {
                    runs.remove(subject);
                }
                if what == "ended" {
                    *ended = (*ended).max(number + 1);
                }
            }
        }
    }
    began
}
