//! What goes through streams: rates from two samples, and how it was before.

use convoke::operator::inspect::{Group, Stream};
use convoke::protocol::keys::StreamKind;
use std::collections::VecDeque;

/// Values that a sparkline has at the most.
pub(super) const HISTORY: usize = 120;

/// What went through a group, or into a stream without one.
#[derive(Clone, Debug, Default)]
pub(super) struct Throughput {
    added: Option<u64>,
    settled: Option<u64>,
    /// Entries added a second; `None`: not known.
    pub(crate) rate_in: Option<f64>,
    /// Entries settled a second; `None`: not known.
    pub(crate) rate_out: Option<f64>,
    /// The rates in, the latest last.
    pub(crate) arrivals: VecDeque<f64>,
    /// What waited, delivered or not, the latest last.
    pub(crate) waiting: VecDeque<f64>,
}

impl Throughput {
    /// What follows from the flow before and what was counted `elapsed_ms` later.
    pub(super) fn after(
        before: Option<Throughput>,
        added: Option<u64>,
        settled: Option<u64>,
        waiting: u64,
        elapsed_ms: Option<u64>,
    ) -> Throughput {
        let mut flow = before.unwrap_or_default();
        let since = |then: Option<u64>, now: Option<u64>| rate(then?, now?, elapsed_ms?);
        flow.rate_in = since(flow.added, added);
        flow.rate_out = since(flow.settled, settled);
        (flow.added, flow.settled) = (added, settled);
        if let Some(rate) = flow.rate_in {
            push(&mut flow.arrivals, rate);
        }
        push(&mut flow.waiting, waiting as f64);
        flow
    }
}

fn push(history: &mut VecDeque<f64>, value: f64) {
    if history.len() == HISTORY {
        history.pop_front();
    }
    history.push_back(value);
}

/// How much a second; `None` for a counter that began again.
pub(super) fn rate(then: u64, now: u64, ms: u64) -> Option<f64> {
    let more = now.checked_sub(then)?;
    (ms > 0).then(|| more as f64 * 1000.0 / ms as f64)
}

/// The name of a group's row.
pub(super) fn group_id(key: &str, group: &str) -> String {
    format!("{key} {group}")
}

/// The rows of a stream: its groups, or itself. Each with what was settled and what waits.
pub(super) fn measured(stream: &Stream) -> impl Iterator<Item = (String, Option<u64>, u64)> {
    let key = stream.name.key.as_str();
    // Of dead letters counts what is there, whoever reads them.
    let dead = stream.name.kind == StreamKind::Dead;
    let alone = (dead || stream.groups.is_empty()).then(|| (key.to_owned(), None, stream.length));
    let groups = stream.groups.iter().filter(move |_| !dead);
    let groups = groups.map(move |group| {
        // Before the first entry the server says of no group what it read.
        let nothing = Some(0).filter(|_| stream.added == Some(0));
        let settled = group.read.map(|read| read.saturating_sub(group.pending));
        let settled = settled.or(nothing);
        (group_id(key, &group.name), settled, waiting(group))
    });
    groups.chain(alone)
}

/// What was not settled yet, as far as the server can tell.
pub(super) fn waiting(group: &Group) -> u64 {
    group.pending + group.lag.unwrap_or(0)
}
