//! What may be wrong with the Sentinels, each judged from what they say.

use super::super::output::{count, span};
use super::checks::names;
use super::{Finding, Status};
use convoke::connect::clock::whole_ms;
use convoke::connect::sentinel_view::{SentinelView, Voice};
use convoke::settings::Settings;

/// Until another primary serves after the old one was found down, in ms: a rough guess.
const ELECTION_MS: u64 = 3000;
/// A primary that is silent for so long is down for all users anyway, in ms.
const SLOW_MS: u64 = 15_000;

/// Everything about the Sentinels.
pub(super) fn sentinels(voices: &[Voice], settings: &Settings) -> Vec<Finding> {
    let views: Vec<&SentinelView> = voices
        .iter()
        .filter_map(|voice| voice.view.as_ref().ok())
        .collect();
    let url = settings.redis_url.sentinels().and_then(Result::ok);
    let service = url.map_or_else(|| "SERVICE".to_owned(), |url| url.service);
    let mut findings = vec![reachable(voices, views.len())];
    if let Some(newest) = views.iter().max_by_key(|view| view.epoch) {
        findings.extend([
            agreed(voices, newest),
            listed(voices.len(), newest),
            quorum(newest, &service),
            replicas(newest),
            patience(newest, settings, &service),
        ]);
    }
    findings
}

fn set(service: &str, name: &str, value: u64) -> String {
    format!("redis-cli -p 26379 SENTINEL SET {service} {name} {value}   (on each Sentinel)")
}

fn reachable(voices: &[Voice], answered: usize) -> Finding {
    let check = "sentinels";
    let total = voices.len();
    if answered == total {
        return Finding::fine(
            check,
            format!("{} answer", count(total as u64, "Sentinel", "Sentinels")),
        );
    }
    let silent = voices.iter().filter_map(|voice| {
        let error = voice.view.as_ref().err()?;
        Some(format!("{} ({error})", voice.sentinel))
    });
    let silent: Vec<String> = silent.collect();
    let majority = answered > total / 2;
    Finding {
        check,
        status: if majority {
            Status::Warning
        } else {
            Status::Danger
        },
        what: format!(
            "{answered} of {total} Sentinels answer; not {}",
            names(&silent)
        ),
        why: if majority {
            "the primary is found through the others; with one more of them gone it may not be, and \
             no failover happens without a majority"
        } else {
            "without a majority of the Sentinels no failover happens, and what the others say may be \
             old news"
        },
        fix: "start those Sentinels, or correct redis_url: addresses, the service's name, \
              sentinel_user and sentinel_password"
            .into(),
    }
}

fn agreed(voices: &[Voice], newest: &SentinelView) -> Finding {
    let check = "primary";
    let others = voices.iter().filter_map(|voice| {
        let view = voice.view.as_ref().ok()?;
        (view.address() != newest.address())
            .then(|| format!("{} names {}", voice.sentinel, view.address()))
    });
    let others: Vec<String> = others.collect();
    let down = newest.flags.contains("_down");
    if others.is_empty() && !down {
        return Finding::fine(check, format!("the Sentinels name {}", newest.address()));
    }
    if others.is_empty() {
        return Finding {
            check,
            status: Status::Danger,
            what: format!("the Sentinels find their primary {} down", newest.address()),
            why: "nothing can be published or acknowledged until it is back or another one took its place",
            fix: format!(
                "look at {}; if no failover happens by itself, see why in the Sentinels' logs",
                newest.address()
            ),
        };
    }
    Finding {
        check,
        status: Status::Danger,
        what: format!(
            "the newest word is {}, but {}",
            newest.address(),
            names(&others)
        ),
        why: "during a failover this passes within seconds; if it lasts, clients of others write to a \
              primary whose writes will be lost",
        fix: "see whether those Sentinels reach the others and the primary".into(),
    }
}

fn listed(listed: usize, newest: &SentinelView) -> Finding {
    let check = "sentinels-listed";
    let known = newest.sentinels;
    if listed as u64 >= known {
        return Finding::fine(check, format!("redis_url names all {known}"));
    }
    Finding {
        check,
        status: Status::Warning,
        what: format!(
            "redis_url names {}, they know of {known}",
            count(listed as u64, "Sentinel", "Sentinels")
        ),
        why: "when those that are named are gone the primary cannot be found, though it is there",
        fix: "name all of them in redis_url".into(),
    }
}

fn quorum(newest: &SentinelView, service: &str) -> Finding {
    let check = "quorum";
    let (known, quorum) = (newest.sentinels, newest.quorum);
    if quorum > known {
        return Finding {
            check,
            status: Status::Danger,
            what: format!("the quorum is {quorum}, and there are {known} Sentinels"),
            why: "this many will never agree that the primary is down: no failover ever happens",
            fix: set(service, "quorum", known / 2 + 1),
        };
    }
    if known < 3 {
        return Finding {
            check,
            status: Status::Danger,
            what: format!(
                "there {} only",
                match known {
                    1 => "is 1 Sentinel".to_owned(),
                    n => format!("are {n} Sentinels"),
                }
            ),
            why: "a failover takes a majority of all Sentinels: when the machine of one of them dies, \
                  perhaps with the primary, none happens",
            fix: "run at least three, each on a machine of its own".into(),
        };
    }
    Finding::fine(check, format!("{quorum} of {known}"))
}

fn replicas(newest: &SentinelView) -> Finding {
    let check = "replicas";
    match newest.replicas {
        0 => Finding {
            check,
            status: Status::Danger,
            what: "the Sentinels know of no replica".into(),
            why: "there is nothing to fail over to",
            fix: "start replicas of the primary, at least two: one must be left to confirm writes after a failover".into(),
        },
        1 => Finding {
            check,
            status: Status::Warning,
            what: "there is 1 replica".into(),
            why: "after a failover no replica is left: confirmed publishes stay unknown, and with \
                  min-replicas-to-write nothing is written until the old primary is back",
            fix: "start a second replica".into(),
        },
        n => Finding::fine(check, format!("{n} replicas")),
    }
}

fn patience(newest: &SentinelView, settings: &Settings, service: &str) -> Finding {
    let check = "failover-time";
    let down = newest.down_after_ms;
    let ttl = whole_ms(settings.heartbeat_ttl);
    if ttl < down + ELECTION_MS {
        return Finding {
            check,
            status: Status::Warning,
            what: format!(
                "down-after-milliseconds is {down}, heartbeat_ttl {}",
                span(ttl)
            ),
            why: "a failover outlasts the heartbeats: all workers are declared lost at once, and their \
                  tasks move though they live",
            fix: format!(
                "set heartbeat_ttl to {} or more",
                span(3 * (down + ELECTION_MS))
            ),
        };
    }
    if down > SLOW_MS {
        return Finding {
            check,
            status: Status::Warning,
            what: format!("down-after-milliseconds is {down}"),
            why: "for so long nothing works after the primary died, before a failover even begins",
            fix: set(service, "down-after-milliseconds", 5000),
        };
    }
    Finding::fine(check, format!("down-after-milliseconds {down}"))
}
