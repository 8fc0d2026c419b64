//! Whether the server keeps what it was given: eviction, persistence, replicas, memory.

use super::{MAY_NOT_CONFIG, MAY_NOT_INFO, NOT_TOLD, set};
use crate::cli::doctor::{Finding, Status};
use crate::cli::output::number;
use convoke::operator::server::ServerReport;

/// Below this a replica that resynchronizes under load is cut off again and again, in bytes.
const REPLICA_BUFFER: u64 = 32 << 20;

pub(super) fn eviction(server: &ServerReport) -> Finding {
    let check = "eviction";
    let Some(info) = &server.info else {
        return Finding::unknown(check, MAY_NOT_INFO);
    };
    match info.get("maxmemory_policy").map(String::as_str) {
        None => Finding::unknown(check, NOT_TOLD),
        Some("noeviction") => Finding::fine(check, "maxmemory-policy noeviction"),
        Some(other) => Finding {
            check,
            status: Status::Danger,
            what: format!("maxmemory-policy is {other}"),
            why: match other.starts_with("volatile") {
                false => "when memory is short redis deletes whole streams with their groups and all events in them",
                true => "when memory is short redis deletes what has a time to live: marks against doubles, fences and \
                         leases of those who live, batches and votes that go on",
            },
            fix: match server.config {
                Some(_) => set("maxmemory-policy", "noeviction"),
                None => "choose noeviction among the parameters of the service; where nobody can change it: never let \
                         its memory run short (watch what `convoke doctor --all` says of it), or use another service"
                    .into(),
            },
        },
    }
}

pub(super) fn persistence(server: &ServerReport) -> Finding {
    let check = "persistence";
    match server.info_number("aof_enabled") {
        None => Finding::unknown(check, MAY_NOT_INFO),
        Some(1) => Finding::fine(check, "appendonly yes"),
        Some(_) => Finding {
            check,
            status: Status::Danger,
            what: "the append-only file is off".into(),
            why: "events, pending entries and waiting retries live in redis only: a restart loses all since \
                  the last snapshot, or everything",
            fix: set("appendonly", "yes"),
        },
    }
}

pub(super) fn fsync(server: &ServerReport) -> Finding {
    let check = "fsync";
    match server.setting("appendfsync") {
        None => Finding::unknown(check, MAY_NOT_CONFIG),
        Some("no") => Finding {
            check,
            status: Status::Warning,
            what: "appendfsync is no".into(),
            why: "the kernel decides when acknowledged events reach the disk: a power cut takes about the last 30 s",
            fix: set("appendfsync", "everysec"),
        },
        Some("everysec") => {
            Finding::fine(check, "appendfsync everysec: a power cut takes 1 to 2 s")
        }
        Some(other) => Finding::fine(check, format!("appendfsync {other}")),
    }
}

pub(super) fn min_replicas(server: &ServerReport) -> Finding {
    let check = "min-replicas";
    let Some(replicas) = server.info_number("connected_slaves") else {
        return Finding::unknown(check, MAY_NOT_INFO);
    };
    if replicas == 0 {
        return Finding::fine(check, "no replicas");
    }
    match server.setting_number("min-replicas-to-write") {
        None => Finding::unknown(check, MAY_NOT_CONFIG),
        Some(0) => Finding {
            check,
            status: Status::Danger,
            what: format!(
                "there {} and min-replicas-to-write is 0",
                match replicas {
                    1 => "is 1 replica".to_owned(),
                    n => format!("are {n} replicas"),
                }
            ),
            why: "a primary that is cut off from its replicas goes on taking writes, and all of them \
                  are lost when another one is promoted",
            fix: "redis-cli CONFIG SET min-replicas-to-write 1 min-replicas-max-lag 2 && redis-cli CONFIG REWRITE".into(),
        },
        Some(n) => Finding::fine(check, format!("min-replicas-to-write {n}")),
    }
}

pub(super) fn diskless(server: &ServerReport) -> Finding {
    let check = "empty-primary";
    let (Some(replicas), Some(aof)) = (
        server.info_number("connected_slaves"),
        server.info_number("aof_enabled"),
    ) else {
        return Finding::unknown(check, MAY_NOT_INFO);
    };
    let (Some(save), Some(diskless)) =
        (server.setting("save"), server.setting("repl-diskless-sync"))
    else {
        return Finding::unknown(check, MAY_NOT_CONFIG);
    };
    if replicas > 0 && aof == 0 && save.is_empty() && diskless == "yes" {
        return Finding {
            check,
            status: Status::Danger,
            what: "the primary keeps nothing on disk and synchronizes its replicas without one"
                .into(),
            why: "when it restarts it is empty, and its replicas copy that: all events are gone everywhere",
            fix: set("appendonly", "yes"),
        };
    }
    Finding::fine(check, "a restart does not empty the replicas")
}

pub(super) fn maxmemory(server: &ServerReport) -> Finding {
    let check = "maxmemory";
    match server.info_number("maxmemory") {
        None => Finding::unknown(check, MAY_NOT_INFO),
        Some(0) => Finding {
            check,
            status: Status::Warning,
            what: "maxmemory is 0: no limit".into(),
            why: "a flood of events takes all memory of the machine, and the kernel kills redis; at a limit \
                  publishes are refused, and workers go on",
            fix: set("maxmemory", "1gb"),
        },
        Some(bytes) => Finding::fine(check, format!("maxmemory {}", number(bytes))),
    }
}

pub(super) fn replica_buffer(server: &ServerReport) -> Finding {
    let check = "replica-buffer";
    let Some(limits) = server.setting("client-output-buffer-limit") else {
        return Finding::unknown(check, MAY_NOT_CONFIG);
    };
    let words: Vec<&str> = limits.split(' ').collect();
    let class = words
        .iter()
        .position(|word| matches!(*word, "slave" | "replica"));
    let hard = class.and_then(|at| words.get(at + 1)?.parse::<u64>().ok());
    let fix = "redis-cli CONFIG SET client-output-buffer-limit \"replica 256mb 64mb 60\" && redis-cli CONFIG REWRITE";
    match hard {
        None => Finding::unknown(check, "its client-output-buffer-limit cannot be read"),
        Some(0) => Finding {
            check,
            status: Status::Warning,
            what: "client-output-buffer-limit for replicas is 0: no limit".into(),
            why: "a replica that hangs makes the primary keep everything for it until its memory is full",
            fix: fix.into(),
        },
        Some(bytes) if bytes < REPLICA_BUFFER => Finding {
            check,
            status: Status::Warning,
            what: format!(
                "client-output-buffer-limit for replicas is {}",
                number(bytes)
            ),
            why: "a replica that synchronizes while events flow is cut off again and again, and never ready",
            fix: fix.into(),
        },
        Some(bytes) => Finding::fine(check, format!("{} for replicas", number(bytes))),
    }
}
