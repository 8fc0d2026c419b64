//! What is dangerous on a node of a cluster.

use super::checks::names;
use super::{Finding, Status};
use crate::cli::output::{count, span};
use convoke::connect::error::BusError;
use convoke::operator::cluster::{ClusterView, OpenSlot};
use convoke::operator::server::ServerReport;
use redis::aio::ConnectionLike;
use std::time::Duration;

/// A primary that is away for longer than that is replaced too late, in ms.
const LATE_MS: u64 = 15_000;
/// A time-out below that takes a node for dead that only stands still for a moment, in ms.
const HASTY_MS: u64 = 1000;
/// How many slots a cluster has.
const SLOTS: u64 = 16_384;
/// A slot that is on its way is open for less.
const OPEN: Duration = Duration::from_secs(1);

/// Everything about a node that has slots.
pub(super) async fn node(
    connection: &mut impl ConnectionLike,
    server: &ServerReport,
) -> Result<Vec<Finding>, BusError> {
    let mut view = ClusterView::look(connection).await?;
    if let Some(open) = view.open.as_mut().filter(|open| !open.is_empty()) {
        tokio::time::sleep(OPEN).await;
        let later = ClusterView::look(connection).await?.open;
        open.retain(|slot| later.iter().flatten().any(|later| later == slot));
    }
    Ok(vec![
        slots(&view),
        open(&view),
        coverage(server),
        replicas(server),
        node_timeout(server),
    ])
}

const MAY_NOT_CONFIG: &str = "the user may not run CONFIG GET, or the service does not tell it";

/// A node that cannot be looked at.
pub(super) fn away(error: &str) -> Finding {
    Finding {
        check: "cluster-node",
        status: Status::Danger,
        what: format!("it has slots, and does not answer: {error}"),
        why: "what is in its slots stands still until it is back or a replica has its place",
        fix: "see why it is away (its log, its machine, the way to it); redis-cli --cluster check names who has which slots"
            .into(),
    }
}

/// What is in the slots cannot be looked at.
pub(super) fn unseen(error: &str) -> Finding {
    Finding {
        check: "streams",
        status: Status::Danger,
        what: format!("not all of them can be looked at: {error}"),
        why: "what is wrong with streams, groups, instances and partitions is not named here",
        fix: "mend what is said of the nodes, then look again".into(),
    }
}

fn slots(view: &ClusterView) -> Finding {
    let check = "cluster-slots";
    let (Some(info), Some(assigned)) = (&view.info, view.number("cluster_slots_assigned")) else {
        return Finding::unknown(
            check,
            "the user may not run CLUSTER INFO, or the service does not tell it",
        );
    };
    let number = |name: &str| view.number(name).unwrap_or(0);
    let failing = number("cluster_slots_fail") + number("cluster_slots_pfail");
    let nobodys = SLOTS.saturating_sub(assigned);
    let mut parts = Vec::new();
    if info.get("cluster_state").is_some_and(|state| state != "ok") {
        parts.push("it takes no commands (cluster_state fail)".to_owned());
    }
    if nobodys > 0 {
        let slots = count(nobodys, "slot is nobody's", "slots are nobody's");
        parts.push(slots);
    }
    if failing > 0 {
        let slots = count(failing, "slot is", "slots are");
        parts.push(format!("{slots} of nodes that do not answer it"));
    }
    if parts.is_empty() {
        return Finding::fine(check, "all slots have a node, and it takes commands");
    }
    Finding {
        check,
        status: Status::Danger,
        what: parts.join("; "),
        why: "domains and partitions in those slots stand still, and where the control plane's is among them all \
              coordination; a node that sees less than half of the others takes nothing at all",
        fix: "bring the missing nodes back; where they are gone for good: redis-cli --cluster fix"
            .into(),
    }
}

fn open(view: &ClusterView) -> Finding {
    let check = "cluster-open";
    let Some(open) = &view.open else {
        return Finding::unknown(
            check,
            "the user may not run CLUSTER NODES, or the service does not tell it",
        );
    };
    if open.is_empty() {
        return Finding::fine(check, "none of its slots is on its way");
    }
    let named = |slot: &OpenSlot| match slot.leaves {
        true => format!("{} to {}", slot.slot, slot.other),
        false => format!("{} from {}", slot.slot, slot.other),
    };
    let named: Vec<String> = open.iter().map(named).collect();
    Finding {
        check,
        status: Status::Warning,
        what: format!(
            "{} for longer than {}: {}",
            count(open.len() as u64, "slot is open", "slots are open"),
            span(OPEN.as_millis() as u64),
            names(&named)
        ),
        why: "a partition stands still while its slot is open; a slot whose move was given up stays so, and with a \
              failover its streams may seem to be gone",
        fix: "if no redis-cli --cluster reshard goes on: redis-cli --cluster fix".into(),
    }
}

fn coverage(server: &ServerReport) -> Finding {
    let check = "cluster-coverage";
    match server.setting("cluster-require-full-coverage") {
        None => Finding::unknown(check, MAY_NOT_CONFIG),
        Some("no") => Finding::fine(check, "slots go on while others are nobody's"),
        Some(_) => Finding {
            check,
            status: Status::Warning,
            what: "cluster-require-full-coverage is on".into(),
            why: "while any slot is nobody's, all nodes refuse all commands: a primary that dies stops every domain \
                  until its replica has taken its place",
            fix: "redis-cli CONFIG SET cluster-require-full-coverage no".into(),
        },
    }
}

fn replicas(server: &ServerReport) -> Finding {
    let check = "cluster-replicas";
    match server.info_number("connected_slaves") {
        None => Finding::unknown(check, "the user may not run INFO, or it does not tell"),
        Some(0) => Finding {
            check,
            status: Status::Warning,
            what: "it has no replica".into(),
            why: "when it dies, its slots are nobody's until it is back, and what it did not write to disk is lost",
            fix: "add a replica: redis-cli --cluster add-node NEW ANY --cluster-slave".into(),
        },
        Some(replicas) => Finding::fine(
            check,
            count(replicas, "replica follows it", "replicas follow it"),
        ),
    }
}

fn node_timeout(server: &ServerReport) -> Finding {
    let check = "cluster-node-timeout";
    let warns = |ms: u64, why, better| Finding {
        check,
        status: Status::Warning,
        what: format!("cluster-node-timeout is {ms} ms"),
        why,
        fix: format!("redis-cli CONFIG SET cluster-node-timeout {better}"),
    };
    match server.setting_number("cluster-node-timeout") {
        None => Finding::unknown(check, MAY_NOT_CONFIG),
        Some(ms) if ms > LATE_MS => warns(
            ms,
            "a primary that died is replaced only after that time, and its domains stand still until then",
            LATE_MS,
        ),
        Some(ms) if ms < HASTY_MS => warns(
            ms,
            "a node that stands still for a moment, as while a large stream moves, is taken for dead: its replica has \
             its place, and what it acknowledged last may be lost",
            5000,
        ),
        Some(ms) => Finding::fine(check, format!("a primary is away after {ms} ms")),
    }
}
