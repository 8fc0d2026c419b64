//! What is dangerous on a node of a cluster.

use super::{Finding, Status};
use convoke::operator::server::ServerReport;

/// A primary that is away for that long is replaced too late, in ms.
const NODE_TIMEOUT_MS: u64 = 15_000;

/// Everything about a node that has slots.
pub(super) fn node(server: &ServerReport) -> Vec<Finding> {
    vec![coverage(server), replicas(server), node_timeout(server)]
}

const MAY_NOT_CONFIG: &str = "the user may not run CONFIG GET, or the service does not tell it";

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
            fix: "redis-cli CONFIG SET cluster-require-full-coverage no, on each node".into(),
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
        Some(count) => Finding::fine(check, format!("{count} replicas follow it")),
    }
}

fn node_timeout(server: &ServerReport) -> Finding {
    let check = "cluster-node-timeout";
    match server.setting_number("cluster-node-timeout") {
        None => Finding::unknown(check, MAY_NOT_CONFIG),
        Some(ms) if ms > NODE_TIMEOUT_MS => Finding {
            check,
            status: Status::Warning,
            what: format!("cluster-node-timeout is {ms} ms"),
            why: "a primary that died is replaced only after that time, and its domains stand still until then",
            fix: "redis-cli CONFIG SET cluster-node-timeout 15000, on each node".into(),
        },
        Some(ms) => Finding::fine(check, format!("a primary is away after {ms} ms")),
    }
}
