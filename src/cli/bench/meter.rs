//! What a stretch of work used up, here and on the server.

use convoke::operator::server::Usage;
use std::fs;
use std::time::Instant;

/// Commands of the measuring itself.
const OWN: [&str; 2] = ["info", "xpending"];

/// Memory of a process, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory {
    /// All that is resident.
    pub(crate) resident: u64,
    /// What no file stands behind: heap and stacks.
    pub(crate) heap: u64,
}

/// A moment, and what this process had used up by then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub(crate) at: Instant,
    pub(crate) cpu: f64,
    pub(crate) memory: Memory,
}

impl Mark {
    pub(super) fn now() -> Self {
        Self {
            at: Instant::now(),
            cpu: cpu_time("self"),
            memory: memory("self"),
        }
    }
}

/// One side's part of a round.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// In the figure's unit.
    pub(crate) value: f64,
    /// The 99th percentile, where `value` is the 50th.
    pub(crate) p99: Option<f64>,
    /// CPU time of this process, in seconds per 100,000 events.
    pub(crate) client_cpu: f64,
    /// The same of the server.
    pub(crate) server_cpu: f64,
    /// Commands that the server ran, per event.
    pub(crate) commands: f64,
    /// Entries that were added to streams, per event: each goes from one process to another.
    pub(crate) hops: f64,
    /// What this process has resident in the end, in KiB.
    pub(crate) resident: f64,
    /// By how much that grew, in KiB.
    pub(crate) growth: f64,
    /// What the server's data takes in the end, in KiB.
    pub(crate) server_memory: f64,
    /// By how much that grew, in KiB.
    pub(crate) server_growth: f64,
}

impl Sample {
    /// What was used up between two marks and two looks at the server, for this many events.
    pub(super) fn between(marks: [Mark; 2], server: [&Usage; 2], events: u64) -> Self {
        let [begin, end] = marks;
        let [before, after] = server;
        let events = events.max(1) as f64;
        let kib = |usage: &Usage| usage.memory as f64 / 1024.0;
        let calls = |name: &str| {
            let of = |usage: &Usage| usage.calls.get(name).copied().unwrap_or(0);
            of(after).saturating_sub(of(before))
        };
        let names = after.calls.keys().map(String::as_str);
        let called: u64 = names.filter(|name| !OWN.contains(name)).map(calls).sum();
        Self {
            value: events / (end.at - begin.at).as_secs_f64().max(1e-9),
            p99: None,
            client_cpu: (end.cpu - begin.cpu) / events * 1e5,
            server_cpu: (after.cpu - before.cpu) / events * 1e5,
            commands: called as f64 / events,
            hops: calls("xadd") as f64 / events,
            resident: end.memory.resident as f64,
            growth: end.memory.resident as f64 - begin.memory.resident as f64,
            server_memory: kib(after),
            server_growth: kib(after) - kib(before),
        }
    }

    /// With these times, in seconds, as its value: p50 and p99 in microseconds.
    pub(super) fn with_times(mut self, mut seconds: Vec<f64>) -> Self {
        seconds.sort_unstable_by(f64::total_cmp);
        self.value = percentile(&seconds, 0.50) * 1e6;
        self.p99 = Some(percentile(&seconds, 0.99) * 1e6);
        self
    }
}

/// Of sorted values: the nearest rank.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

/// The cores that a process of this machine may run on.
pub(super) fn cores(pid: &str) -> Option<String> {
    Some(field(&status(pid), "Cpus_allowed_list:")?.to_owned())
}

/// The cores of a server, if the process of that id is one on this machine.
pub(super) fn server_cores(pid: &str) -> Option<String> {
    let pid = pid.parse::<u32>().ok()?.to_string();
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let known = ["redis", "valkey"];
    known
        .iter()
        .any(|server| name.contains(server))
        .then(|| cores(&pid))?
}

/// Memory of a process.
pub(super) fn memory(pid: &str) -> Memory {
    let status = status(pid);
    let kib = |name| {
        let value = field(&status, name)?;
        value.split(' ').next()?.parse().ok()
    };
    Memory {
        resident: kib("VmRSS:").unwrap_or(0),
        heap: kib("RssAnon:").unwrap_or(0),
    }
}

fn status(pid: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim())
}

/// CPU time of a process, in seconds.
pub(super) fn cpu_time(pid: &str) -> f64 {
    // Fields 14 and 15, in ticks of a hundredth of a second; the name before may hold spaces.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = rest.split_whitespace().skip(11).take(2);
    ticks
        .filter_map(|field| field.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.50), 50.0);
        assert_eq!(percentile(&hundred, 0.99), 99.0);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn this_process_is_measured() {
        let here = memory("self");
        assert!(here.resident >= here.heap && here.resident > 0);
        assert!(cores("self").is_some());
        assert!(cores("no such process").is_none());
        // A process of this machine, but no server.
        assert_eq!(server_cores(&std::process::id().to_string()), None);
    }

    #[test]
    fn own_commands_are_not_counted() {
        let usage = |xadd, info| Usage {
            cpu: 1.0,
            calls: [("xadd".to_owned(), xadd), ("info".to_owned(), info)].into(),
            ..Usage::default()
        };
        let mark = Mark::now();
        let sample = Sample::between([mark, mark], [&usage(5, 1), &usage(25, 9)], 10);
        assert_eq!((sample.commands, sample.hops), (2.0, 2.0));
    }
}
