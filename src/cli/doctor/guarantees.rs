//! Which guarantees are weaker on this server, because it leaves out what others tell.

use super::{Finding, Status};
use convoke::operator::server::ServerReport;

/// Everything that depends on what the server tells; with what was found of it as a node of a cluster, if it is one.
pub(super) fn guarantees(server: &ServerReport, of_cluster: Option<Vec<Finding>>) -> Vec<Finding> {
    let cluster = of_cluster.unwrap_or_else(|| vec![no_cluster(server)]);
    let all = vec![
        primary(server),
        one_history(server),
        server_time(server),
        confirm(server),
    ];
    cluster.into_iter().chain(all).collect()
}

fn no_cluster(server: &ServerReport) -> Finding {
    let check = "cluster";
    let told = |name| server.info.as_ref().and_then(|info| info.get(name));
    // Valkey has another name for it.
    let mode = told("redis_mode").or_else(|| told("server_mode"));
    match mode.map(String::as_str) {
        Some("cluster") => Finding {
            check,
            status: Status::Danger,
            what: "the server runs in cluster mode, and redis_url says that Sentinels watch it"
                .into(),
            why: "keys have the names that a server has which is no node of a cluster: it refuses what touches \
                  several slots (CROSSSLOT)",
            fix: "write redis:// or redis+cluster:// with a node's host and port in redis_url"
                .into(),
        },
        Some(_) => Finding::fine(check, "the server is no node of a cluster"),
        None => Finding::unknown(
            check,
            "the user may not run INFO, or the server does not tell there whether it is one",
        ),
    }
}

fn primary(server: &ServerReport) -> Finding {
    let check = "primary-told";
    if !server.lacks.role {
        return Finding::fine(check, "the server tells whether it is a primary");
    }
    Finding {
        check,
        status: Status::Warning,
        what: "neither ROLE nor INFO tells this user whether this is a primary".into(),
        why: "a connection to a server that was demoted is noticed only when it refuses a write (READONLY): \
              until then reads may be old, and a failover takes longer to be followed",
        fix: "let the users run ROLE, or INFO; where the provider has neither: nothing, events are safe all the same".into(),
    }
}

fn one_history(server: &ServerReport) -> Finding {
    let check = "one-history";
    if !server.lacks.epoch {
        return Finding::fine(check, "a failover or a restart of the server is noticed");
    }
    Finding {
        check,
        status: Status::Warning,
        what: "INFO does not tell this user the server process (run_id) and its data (master_replid)".into(),
        why: "what a run wrote to redis itself (a batch's progress, a task, a vote, a registration) may be \
              answered as done although a failover or a restart lost it: elsewhere such a run is repeated",
        fix: "let the users run INFO; where the provider hides it: ask again after a failover (batch show, \
              task get, vote show) before you rely on the answer"
            .into(),
    }
}

fn server_time(server: &ServerReport) -> Finding {
    let check = "server-time";
    if !server.lacks.time {
        return Finding::fine(check, "the server tells the time");
    }
    Finding {
        check,
        status: Status::Warning,
        what: "the server has no TIME, or this user may not run it".into(),
        why: "times are read off a key that ends in 2100 (such as cb:clock): still the server's clock, but in \
              steps of a millisecond, and after FLUSHALL not before a worker wrote again; until then, and in \
              what people are shown, this machine's clock stands in for it",
        fix: "let the users run TIME; else keep the machines' clocks in step (chrony)".into(),
    }
}

fn confirm(server: &ServerReport) -> Finding {
    let check = "confirm";
    match server.waits {
        Some(true) => Finding::fine(check, "publishes can be confirmed by replicas"),
        None => Finding::unknown(check, "the user may not run WAIT"),
        Some(false) => Finding {
            check,
            status: Status::Warning,
            what: "the server has no WAIT".into(),
            why: "a publish that wants to be confirmed by replicas is stored, and its outcome is `unknown` each \
                  time: nothing published here is certain to survive a failover",
            fix: "publish without confirm, or use a server that has WAIT".into(),
        },
    }
}
