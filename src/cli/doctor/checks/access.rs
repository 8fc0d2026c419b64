//! Who may do what on the server, and who could listen.

use super::MAY_NOT_CONFIG;
use crate::cli::doctor::{Finding, Status};
use crate::cli::output::count;
use convoke::operator::server::ServerReport;

pub(super) fn protected(server: &ServerReport) -> Finding {
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

pub(super) fn default_user(server: &ServerReport) -> Finding {
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

pub(super) fn encryption(server: &ServerReport) -> Finding {
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

pub(super) fn own_rights(server: &ServerReport) -> Finding {
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

pub(super) fn transactions(server: &ServerReport) -> Finding {
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

pub(super) fn users(server: &ServerReport) -> Finding {
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

pub(super) fn scripts(server: &ServerReport) -> Finding {
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

/// Names, as many as fit, and how many more.
pub(in crate::cli::doctor) fn names(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{shown} and {}", count(more as u64, "other", "others")),
        _ => shown,
    }
}
