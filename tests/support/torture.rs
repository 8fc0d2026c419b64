//! How much a torture test does, from what seed, and what it tells in the end.

#![allow(dead_code)] // Each test binary uses a part.

use std::io::Write;
use std::sync::OnceLock;

/// How often: as the environment says under that name, else the full size if `TORTURE_FULL` is set,
/// else the gate's.
pub(crate) fn size(name: &str, gate: u64, full: u64) -> u64 {
    let set = std::env::var(name).ok();
    match set.and_then(|text| text.parse().ok()) {
        Some(size) => size,
        None if is_full() => full,
        None => gate,
    }
}

/// Whether the full sizes are asked for.
pub(crate) fn is_full() -> bool {
    std::env::var_os("TORTURE_FULL").is_some()
}

/// What every schedule is drawn from: `TORTURE_SEED`, else a new one.
pub(crate) fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let set = std::env::var("TORTURE_SEED").ok();
        let set = set.and_then(|text| text.parse().ok());
        set.unwrap_or_else(|| u64::from(fastrand::u32(..)))
    })
}

/// Numbers for one part of a schedule: the same for the same seed and name.
pub(crate) fn dice(name: &str) -> fastrand::Rng {
    let mut mixed = seed() ^ 0xcbf2_9ce4_8422_2325;
    for byte in name.bytes() {
        mixed = (mixed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    fastrand::Rng::with_seed(mixed)
}

/// What a test counted.
#[derive(Default)]
pub(crate) struct Report(Vec<(&'static str, String, Option<u64>)>);

impl Report {
    /// Faults made.
    pub(crate) fn fault(mut self, count: u64, what: &str) -> Self {
        self.0.push(("faults", what.into(), Some(count)));
        self
    }

    /// Events, or whatever the faults were to hit, and what became of them.
    pub(crate) fn event(mut self, count: u64, what: &str) -> Self {
        self.0.push(("events", what.into(), Some(count)));
        self
    }

    /// A figure that cannot be added to another test's.
    pub(crate) fn note(mut self, text: impl Into<String>) -> Self {
        self.0.push(("notes", text.into(), None));
        self
    }

    /// Prints the line, and adds it to the file that `TORTURE_REPORT` names.
    pub(crate) fn tell(self, scenario: &str) {
        let mut line = scenario.to_owned();
        let mut lines = String::new();
        for (group, what, count) in &self.0 {
            match count {
                Some(count) => {
                    line += &format!("; {count} {what}");
                    lines += &format!("{group}\t{what}\t{count}\n");
                }
                None => {
                    line += &format!("; {what}");
                    lines += &format!("{group}\t{what}\t\n");
                }
            }
        }
        println!("{line}; seed {}", seed());
        if let Some(path) = std::env::var_os("TORTURE_REPORT") {
            let mut file = std::fs::OpenOptions::new();
            let mut file = file.create(true).append(true).open(path).unwrap();
            file.write_all(lines.as_bytes()).unwrap();
        }
    }
}
