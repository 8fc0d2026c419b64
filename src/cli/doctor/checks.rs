//! What may be wrong with a server, each judged from what it told.

mod access;
mod keeping;

pub(super) use access::names;

use super::super::output::{number, span};
use super::{Finding, Status};
use access::{default_user, encryption, own_rights, protected, scripts, transactions, users};
use convoke::operator::server::ServerReport;
use convoke::settings::Settings;
use keeping::{diskless, eviction, fsync, maxmemory, min_replicas, persistence, replica_buffer};

/// The oldest version that has what the bus needs.
const OLDEST: (u64, u64) = (7, 0);
/// Bulks that no event needs: from there on a single command may take the server's memory.
const LARGEST_BULK: u64 = 64 << 20;
/// How much larger than a payload what carries it may be: an event in the delay queue is one bulk.
const ROOM: u64 = 2;
/// A script that runs for so long is noticed too late, in ms.
const BUSY_MS: u64 = 1000;
/// Idle connections are closed by the server sooner than that, in seconds.
const TIMEOUT_S: u64 = 300;
/// By how much clocks may differ, in ms.
const SKEW_MS: u64 = 1000;
/// The difference between clocks that breaks deadlines, in ms.
const BAD_SKEW_MS: u64 = 60_000;

/// Everything about the server itself.
pub(super) fn server(server: &ServerReport, settings: &Settings) -> Vec<Finding> {
    vec![
        version(server),
        role(server),
        eviction(server),
        persistence(server),
        fsync(server),
        min_replicas(server),
        diskless(server),
        bulk(server, settings),
        protected(server),
        default_user(server),
        encryption(server),
        maxmemory(server),
        busy(server),
        replica_buffer(server),
        timeout(server),
        clock(server),
        own_rights(server),
        transactions(server),
        users(server),
        scripts(server),
    ]
}

fn set(name: &str, value: &str) -> String {
    format!(
        "redis-cli CONFIG SET {name} {value} && redis-cli CONFIG REWRITE; on a rented server, in its parameters"
    )
}

const MAY_NOT_CONFIG: &str = "the user may not run CONFIG GET, or the server lacks the setting";
const MAY_NOT_INFO: &str = "the user may not run INFO, or the server does not tell it there";
const NOT_TOLD: &str = "the server's INFO does not tell it";

fn version(server: &ServerReport) -> Finding {
    let check = "version";
    let Some(info) = &server.info else {
        return Finding::unknown(check, MAY_NOT_INFO);
    };
    let Some(found) = info.get("redis_version") else {
        return Finding::unknown(check, NOT_TOLD);
    };
    let mut parts = found.split('.').map(|part| part.parse().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version >= OLDEST {
        return Finding::fine(check, format!("redis {found}"));
    }
    Finding {
        check,
        status: Status::Danger,
        what: format!("redis {found} is older than 7.0"),
        why: "entries that were trimmed while they were pending are not reported by it, and \
              scripts behave differently: events can vanish unnoticed",
        fix: "install redis 7.0 or newer".into(),
    }
}

fn role(server: &ServerReport) -> Finding {
    let check = "role";
    let Some(info) = &server.info else {
        return Finding::unknown(check, MAY_NOT_INFO);
    };
    match info.get("role").map(String::as_str) {
        Some("slave") => Finding {
            check,
            status: Status::Danger,
            what: "this server is a replica".into(),
            why: "it takes no writes: nothing can be published or acknowledged through it",
            fix: format!(
                "use its primary: --redis-url redis://{}:{}",
                info.get("master_host").map_or("?", String::as_str),
                info.get("master_port").map_or("?", String::as_str)
            ),
        },
        Some(_) => Finding::fine(check, "a primary"),
        None => Finding::unknown(check, NOT_TOLD),
    }
}

fn bulk(server: &ServerReport, settings: &Settings) -> Finding {
    let check = "bulk-length";
    let Some(limit) = server.setting_number("proto-max-bulk-len") else {
        return Finding::unknown(check, MAY_NOT_CONFIG);
    };
    let needed = ROOM * settings.max_payload as u64;
    let good = (4 * settings.max_payload as u64).max(1 << 20);
    if limit < needed {
        return Finding {
            check,
            status: Status::Danger,
            what: format!(
                "proto-max-bulk-len is {}, max_payload {}",
                number(limit),
                number(settings.max_payload as u64)
            ),
            why: "an event with a large payload is more than redis reads: it cuts the connection of whoever sends it",
            fix: set("proto-max-bulk-len", &good.to_string()),
        };
    }
    if limit > LARGEST_BULK.max(needed) {
        return Finding {
            check,
            status: Status::Warning,
            what: format!("proto-max-bulk-len is {}", number(limit)),
            why: "whoever may publish can store entries that large; one read of a few of them takes the \
                  memory of a worker",
            fix: set("proto-max-bulk-len", &good.to_string()),
        };
    }
    Finding::fine(check, format!("proto-max-bulk-len {}", number(limit)))
}

fn busy(server: &ServerReport) -> Finding {
    let check = "busy-scripts";
    match server.setting_number("busy-reply-threshold") {
        None => Finding::unknown(check, MAY_NOT_CONFIG),
        Some(ms) if ms == 0 || ms > BUSY_MS => Finding {
            check,
            status: Status::Warning,
            what: match ms {
                0 => "busy-reply-threshold is 0: never".into(),
                ms => format!("busy-reply-threshold is {}", span(ms)),
            },
            why: "a script that hangs stops everything for that long before anyone is told, and may be stopped",
            fix: set("busy-reply-threshold", "500"),
        },
        Some(ms) => Finding::fine(check, format!("busy-reply-threshold {}", span(ms))),
    }
}

fn timeout(server: &ServerReport) -> Finding {
    let check = "timeout";
    match server.setting_number("timeout") {
        None => Finding::unknown(check, MAY_NOT_CONFIG),
        Some(seconds) if seconds > 0 && seconds < TIMEOUT_S => Finding {
            check,
            status: Status::Warning,
            what: format!("timeout is {seconds} s"),
            why: "redis closes idle connections under the workers' hands: each time a commit has to connect \
                  again, and goes the slow way",
            fix: set("timeout", "0"),
        },
        Some(0) => Finding::fine(check, "timeout 0"),
        Some(seconds) => Finding::fine(check, format!("timeout {seconds} s")),
    }
}

fn clock(server: &ServerReport) -> Finding {
    let check = "clock";
    let Some((skew, half)) = server.skew else {
        return Finding::unknown(check, "the user may not run TIME");
    };
    let off = skew.unsigned_abs().saturating_sub(half);
    if off <= SKEW_MS {
        return Finding::fine(
            check,
            format!("the server's clock is {off} ms from this machine's"),
        );
    }
    let direction = if skew > 0 { "ahead of" } else { "behind" };
    Finding {
        check,
        status: if off > BAD_SKEW_MS {
            Status::Danger
        } else {
            Status::Warning
        },
        what: format!(
            "the server's clock is {} {direction} this machine's",
            span(off)
        ),
        why: "deadlines are set by the clock of whoever asks and judged by the server's: requests are dropped \
              unrun, or run when nobody waits any more",
        fix: "synchronize both machines: timedatectl set-ntp true (or chronyc makestep)".into(),
    }
}
