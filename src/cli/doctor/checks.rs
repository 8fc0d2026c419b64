//! What may be wrong with a server, each judged from what it told.

use super::super::output::{count, number, span};
use super::{Finding, Status};
use convoke::operator::server::Server;
use convoke::settings::Settings;

/// The oldest version that has what the bus needs.
const OLDEST: (u64, u64) = (7, 0);
/// Bulks that no event needs: from there on a single command may take the server's memory.
const LARGEST_BULK: u64 = 64 << 20;
/// How much larger than a payload what carries it may be: an event in the delay queue is one bulk.
const ROOM: u64 = 2;
/// A script that runs for so long is noticed too late, in ms.
const BUSY_MS: u64 = 1000;
/// Below this a replica that resynchronizes under load is cut off again and again, in bytes.
const REPLICA_BUFFER: u64 = 32 << 20;
/// Idle connections are closed by the server sooner than that, in seconds.
const TIMEOUT_S: u64 = 300;
/// Clocks may differ by so much, in ms.
const SKEW_MS: u64 = 1000;
/// Clocks that differ by so much break deadlines, in ms.
const BAD_SKEW_MS: u64 = 60_000;

/// Everything about the server itself.
pub(super) fn server(server: &Server, settings: &Settings) -> Vec<Finding> {
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
    format!("redis-cli CONFIG SET {name} {value} && redis-cli CONFIG REWRITE")
}

const MAY_NOT_CONFIG: &str = "the user may not run CONFIG GET, or the server lacks the setting";
const MAY_NOT_INFO: &str = "the user may not run INFO, or the server does not tell it there";
const NOT_TOLD: &str = "the server's INFO does not tell it";

fn version(server: &Server) -> Finding {
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

fn role(server: &Server) -> Finding {
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

fn eviction(server: &Server) -> Finding {
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
            why: "when memory is short redis deletes whole streams with their groups and all events in them",
            fix: set("maxmemory-policy", "noeviction"),
        },
    }
}

fn persistence(server: &Server) -> Finding {
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

fn fsync(server: &Server) -> Finding {
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

fn min_replicas(server: &Server) -> Finding {
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

fn diskless(server: &Server) -> Finding {
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

fn bulk(server: &Server, settings: &Settings) -> Finding {
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

fn protected(server: &Server) -> Finding {
    let check = "protected-mode";
    let Some(mode) = server.setting("protected-mode") else {
        return Finding::unknown(check, MAY_NOT_CONFIG);
    };
    match (mode, server.anonymous) {
        ("no", Some(true)) => Finding {
            check,
            status: Status::Danger,
            what: "protected-mode is off, and no password is needed".into(),
            why: "everyone who reaches the port can read, forge and delete every event, and run code \
                  through the server",
            fix: "load users with passwords (deploy/users.acl), then redis-cli CONFIG SET protected-mode yes".into(),
        },
        ("no", None) => Finding::unknown(check, "whether a password is needed could not be tried"),
        _ => Finding::fine(check, "on, or a password is needed"),
    }
}

fn default_user(server: &Server) -> Finding {
    let check = "default-user";
    let password = server.setting("requirepass");
    let (what, why) = match (server.anonymous, password) {
        (Some(true), _) => (
            "the default user is on and needs no password",
            "whoever reaches the server may do everything, and mistakes of one service hit all",
        ),
        (Some(false), Some(password)) if !password.is_empty() => (
            "the default user is on, with a password that all share",
            "whoever knows it may do everything, and it can't be taken from one service alone",
        ),
        (None, _) => {
            return Finding::unknown(check, "a connection without login could not be tried");
        }
        (Some(false), None) => {
            return Finding::unknown(check, MAY_NOT_CONFIG);
        }
        (Some(false), Some(_)) => {
            return Finding::fine(check, "nobody gets in without a login");
        }
    };
    Finding {
        check,
        status: Status::Warning,
        what: what.into(),
        why,
        fix: "give each service a user of its own (deploy/users.acl), then redis-cli ACL SETUSER default off".into(),
    }
}

fn encryption(server: &Server) -> Finding {
    let check = "encryption";
    if !server.in_the_clear {
        return Finding::fine(check, "TLS, or the server is on this machine");
    }
    Finding {
        check,
        status: Status::Danger,
        what: "the way to the server leaves this machine without TLS".into(),
        why: "passwords and payloads can be read, and commands be forged, by everyone on the way",
        fix: "give redis a tls-port and certificates, and use rediss:// in redis_url".into(),
    }
}

fn maxmemory(server: &Server) -> Finding {
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

fn busy(server: &Server) -> Finding {
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

fn replica_buffer(server: &Server) -> Finding {
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

fn timeout(server: &Server) -> Finding {
    let check = "timeout";
    match server.setting_number("timeout") {
        None => Finding::unknown(check, MAY_NOT_CONFIG),
        Some(seconds) if seconds > 0 && seconds < TIMEOUT_S => Finding {
            check,
            status: Status::Warning,
            what: format!("timeout is {seconds} s"),
            why: "redis closes idle connections under the workers' hands: each time a commit has to connect \
                  anew, and goes the slow way",
            fix: set("timeout", "0"),
        },
        Some(0) => Finding::fine(check, "timeout 0"),
        Some(seconds) => Finding::fine(check, format!("timeout {seconds} s")),
    }
}

fn clock(server: &Server) -> Finding {
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

fn own_rights(server: &Server) -> Finding {
    let check = "own-rights";
    match (server.may_flush, &server.user) {
        (Some(true), user) => Finding {
            check,
            status: Status::Warning,
            what: format!(
                "the user {} may run FLUSHALL",
                user.as_deref().unwrap_or("in use")
            ),
            why: "a slip of the hand, or a stolen password, deletes every event",
            fix: "use a user of deploy/users.acl".into(),
        },
        (Some(false), _) => Finding::fine(check, "it may not delete everything"),
        (None, Some(_)) => Finding::unknown(check, "the user may not run ACL DRYRUN"),
        (None, None) => Finding::unknown(check, "the user may not run ACL WHOAMI"),
    }
}

fn transactions(server: &Server) -> Finding {
    let check = "transactions";
    let Some(users) = &server.unfenced else {
        return Finding::unknown(check, "the user may not run ACL USERS and ACL DRYRUN");
    };
    let Some(first) = users.first() else {
        return Finding::fine(check, "whoever settles events may do it in a transaction");
    };
    Finding {
        check,
        status: Status::Danger,
        what: format!(
            "{} may read and write events, but not all of MULTI, EXEC and WATCH",
            names(users)
        ),
        why: "what a worker commits would be written command by command, without the fence that keeps one \
              that was declared dead from doing it a second time: workers refuse to start so",
        fix: format!("redis-cli ACL SETUSER {first} +multi +exec +watch && redis-cli ACL SAVE"),
    }
}

fn users(server: &Server) -> Finding {
    let check = "users";
    let Some(excess) = &server.excess else {
        return Finding::unknown(check, "the user may not run ACL USERS and ACL DRYRUN");
    };
    if excess.is_empty() {
        let what =
            "none of the users of deploy/users.acl may do more than it needs, as far as was asked";
        return Finding::fine(check, what);
    }
    let each = excess
        .iter()
        .map(|excess| format!("{} may {}", excess.user, names(&excess.calls)));
    let each: Vec<String> = each.collect();
    Finding {
        check,
        status: Status::Warning,
        what: each.join("; "),
        why: "a slip or a stolen password of one that only publishes or looks can destroy or forge what \
              belongs to others, or hang the server",
        fix: "give them the lines of deploy/users.acl, whose table in deploy/README.md says what each needs; \
              then redis-cli ACL LOAD"
            .into(),
    }
}

fn scripts(server: &Server) -> Finding {
    let check = "scripts";
    match server.has_scripts {
        None => Finding::unknown(check, "the user may not run SCRIPT EXISTS"),
        Some(true) => Finding::fine(check, "the server has what others call"),
        Some(false) => Finding {
            check,
            status: Status::Warning,
            what: "the server has not all scripts that are called by users who may not load them"
                .into(),
            why: "since it was started no worker connected: events cannot be published later or with dedup, \
                  and who only looks cannot see the instances",
            fix: "start a worker, or run convoke health as an operator: both load them".into(),
        },
    }
}

/// This many names, and how many more.
pub(super) fn names(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{shown} and {}", count(more as u64, "other", "others")),
        _ => shown,
    }
}
