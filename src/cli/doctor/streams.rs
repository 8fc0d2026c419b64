//! What may be wrong with the streams of the namespace.

use super::super::Session;
use super::super::output::{count, date, number, span};
use super::super::owners::Owners;
use super::checks::names;
use super::{Finding, Status};
use convoke::connect::clock::whole_ms;
use convoke::connect::error::{BusError, allowed};
use convoke::operator::inspect::{self, Consumer, Stream};
use convoke::protocol::event::EntryId;
use convoke::protocol::keys::{StreamKind, StreamName};
use convoke::streams::remade::{self, Remade};
use redis::aio::ConnectionLike;

/// Ids may be so far ahead of the server's clock, in ms.
const AHEAD_MS: u64 = 60_000;
/// A consumer that holds nothing and asked for nothing for this many claim times is left over.
const LEFT_OVER_AFTER: u64 = 10;
/// How many of them are no leak yet.
const LEFT_OVER: usize = 10;

/// A stream with the consumers of the workers' group.
struct Seen {
    stream: Stream,
    consumers: Vec<Consumer>,
}

/// Everything about the streams.
pub(super) async fn streams(
    session: &Session,
    connection: &mut impl ConnectionLike,
    names: Result<Vec<StreamName>, BusError>,
) -> anyhow::Result<Vec<Finding>> {
    const CHECKS: [&str; 6] = [
        "last-id",
        "groups",
        "remade",
        "consumers",
        "stuck",
        "workers",
    ];
    let seen = match look(session, connection, names).await {
        Ok(seen) => seen,
        Err(error) if error.code() == Some("NOPERM") => {
            let may_not = "the user may not run SCAN and XINFO";
            return Ok(CHECKS.map(|check| Finding::unknown(check, may_not)).into());
        }
        Err(error) => return Err(error.into()),
    };
    let group = &session.settings.group;
    let keys = session.settings.keys()?;
    let noted = allowed(remade::noted(connection, &keys, group).await)?;
    let remade = remade(&seen, noted, group, &keys.remade());
    let mut owners = session.owners()?;
    let mut alive = None;
    for one in &seen {
        let names = one.consumers.iter().map(|c| c.name.as_str());
        if owners.learn(names).await.is_err() {
            // Without ZMSCORE nobody can be said to live.
            let may_not = "the user may not look at the instances";
            return Ok(vec![
                last_id(&seen, allowed(inspect::now(connection).await)?),
                groups(&seen, group),
                remade,
                Finding::unknown("consumers", may_not),
                Finding::unknown("stuck", may_not),
                Finding::unknown("workers", may_not),
            ]);
        }
    }
    if let Ok(census) = session.instances()?.census().await {
        alive = Some(census.active);
    }
    let claim_idle = whole_ms(session.settings.claim_idle);
    Ok(vec![
        last_id(&seen, allowed(inspect::now(connection).await)?),
        groups(&seen, group),
        remade,
        consumers(&seen, &owners, session),
        stuck(&seen, &owners, claim_idle),
        workers(&seen, alive, group),
    ])
}

async fn look(
    session: &Session,
    connection: &mut impl ConnectionLike,
    names: Result<Vec<StreamName>, BusError>,
) -> Result<Vec<Seen>, BusError> {
    let mut seen = Vec::new();
    for name in names? {
        let Some(stream) = inspect::stream(connection, &name).await? else {
            continue;
        };
        let group = &session.settings.group;
        let consumers = match stream.groups.iter().any(|g| g.name == *group) {
            true => inspect::consumers(connection, &name.key, group).await?,
            false => Vec::new(),
        };
        seen.push(Seen { stream, consumers });
    }
    Ok(seen)
}

fn last_id(seen: &[Seen], now: Option<u64>) -> Finding {
    let check = "last-id";
    let Some(now) = now else {
        return Finding::unknown(check, "the user may not run TIME");
    };
    let ahead = seen
        .iter()
        .filter(|one| one.stream.last.ms > now + AHEAD_MS);
    let ahead: Vec<&Stream> = ahead.map(|one| &one.stream).collect();
    let Some(first) = ahead.first() else {
        return Finding::fine(check, "no stream is ahead of its time");
    };
    let keys: Vec<String> = ahead.iter().map(|stream| stream.name.key.clone()).collect();
    let (key, last) = (&first.name.key, first.last);
    Finding {
        check,
        status: Status::Danger,
        what: format!(
            "the last id of {} is {} ahead of the server's time",
            names(&keys),
            span(last.ms - now)
        ),
        why: "somebody published with an id of its own, or the clock was set back: entries get ids from the \
              future, ages are wrong, and at the highest id nothing can be published any more",
        fix: format!(
            "redis-cli XDEL {key} {last} && redis-cli XSETID {key} <the id of the last good entry>"
        ),
    }
}

fn groups(seen: &[Seen], group: &str) -> Finding {
    let check = "groups";
    let lacks = |one: &&Seen| {
        one.stream.name.kind == StreamKind::Events
            && one.stream.length > 0
            && one.stream.groups.iter().all(|g| g.name != group)
    };
    let without: Vec<String> = seen
        .iter()
        .filter(lacks)
        .map(|one| one.stream.name.key.clone())
        .collect();
    let Some(key) = without.first() else {
        return Finding::fine(
            check,
            format!("every stream of events has the group {group}"),
        );
    };
    Finding {
        check,
        status: Status::Warning,
        what: format!("no group {group} on {}", names(&without)),
        why: "nobody reads these events: no worker has a handler for their domain, or the group was destroyed",
        fix: format!(
            "start a worker with a handler for it, which makes the group; or redis-cli XGROUP CREATE {key} {group} 0"
        ),
    }
}

/// Groups that were destroyed and made again. A worker that made one notes it; one that was made or set by
/// hand does not know how much it was given.
fn remade(seen: &[Seen], noted: Option<Vec<Remade>>, group: &str, key: &str) -> Finding {
    let check = "remade";
    let of_events = || {
        seen.iter()
            .filter(|one| one.stream.name.kind == StreamKind::Events && one.stream.length > 0)
    };
    let of = |one: &Seen| one.stream.groups.iter().find(|g| g.name == group).cloned();
    if let Some(last) = noted.iter().flatten().next() {
        let going_on = of_events().any(|one| {
            one.stream.name.key == last.stream
                && of(one).is_some_and(|is| is.delivered.ms < last.at)
        });
        let keys: Vec<String> = noted
            .iter()
            .flatten()
            .map(|one| one.stream.clone())
            .collect();
        let (stream, entries) = (&last.stream, count(last.entries, "event", "events"));
        return Finding {
            check,
            status: Status::Warning,
            what: format!(
                "the group {group} was gone and was made again on {}, last at {}: {} on {stream} {}",
                names(&keys),
                date(last.at),
                entries,
                if going_on {
                    "run again, and still do"
                } else {
                    "ran again"
                },
            ),
            why: "somebody destroyed the group, or deleted what it was in: a group that is made again has read \
                  nothing, so every event that is still in the stream runs once more, also what was done before",
            fix: match going_on {
                true => format!(
                    "to pass over what is left of it: redis-cli XGROUP SETID {stream} {group} <the id of the last event that was done>"
                ),
                false => format!(
                    "see who may run XGROUP and DEL; then, so that this is not told any more: redis-cli DEL {key}"
                ),
            },
        };
    }
    let unknown = of_events().filter_map(|one| {
        let is = of(one)?;
        // A server that counts none knows nothing of any group; a group that has read nothing of a new
        // stream is not made again.
        let trimmed = one.stream.added? > one.stream.length;
        let known = is.read.is_some() || (is.delivered == EntryId::default() && !trimmed);
        (!known).then(|| (one.stream.name.key.clone(), is.delivered))
    });
    let unknown: Vec<(String, EntryId)> = unknown.collect();
    if let Some((key, delivered)) = unknown.first() {
        let keys: Vec<String> = unknown.iter().map(|(key, _)| key.clone()).collect();
        return Finding {
            check,
            status: Status::Warning,
            what: format!(
                "nobody knows how much the group {group} was given on {}: it was made again or set by hand, at {delivered}",
                names(&keys)
            ),
            why: "what is stored up to that id counts as done, whether it was run or not; what is stored after it \
                  runs, also what was done before; how far the group is behind is not known",
            fix: format!(
                "if it should be elsewhere: redis-cli XGROUP SETID {key} {group} <the id of the last event that was done>"
            ),
        };
    }
    match noted {
        Some(_) => Finding::fine(check, "no group was made again lately"),
        None => Finding::unknown(check, "the user may not run HGETALL"),
    }
}

fn consumers(seen: &[Seen], owners: &Owners, session: &Session) -> Finding {
    let group = &session.settings.group;
    let left_over = LEFT_OVER_AFTER * whole_ms(session.settings.claim_idle);
    let check = "consumers";
    let mut left = Vec::new();
    let mut one_name = String::new();
    let mut total = 0;
    for one in seen {
        let idle = one.consumers.iter().filter(|c| {
            c.pending == 0 && c.idle_ms > left_over && owners.lives(&c.name) == Some(false)
        });
        let mut over = 0;
        for consumer in idle {
            over += 1;
            if one_name.is_empty() {
                one_name.clone_from(&consumer.name);
            }
        }
        if over > 0 {
            total += over;
            left.push(one.stream.name.key.clone());
        }
    }
    if total <= LEFT_OVER {
        return Finding::fine(check, "no consumers are left over");
    }
    let key = left.first().map_or("", String::as_str);
    Finding {
        check,
        status: Status::Warning,
        what: format!(
            "{} consumers of instances that are gone are left on {}",
            number(total as u64),
            names(&left)
        ),
        why: "each costs memory for ever, and every look at the group takes longer",
        fix: format!(
            "for each that has nothing pending: redis-cli XGROUP DELCONSUMER {key} {group} {one_name}"
        ),
    }
}

fn stuck(seen: &[Seen], owners: &Owners, claim_idle: u64) -> Finding {
    let check = "stuck";
    let mut held = 0;
    let mut by: Vec<String> = Vec::new();
    for one in seen {
        for consumer in &one.consumers {
            let gone = owners.lives(&consumer.name) == Some(false);
            if gone && consumer.pending > 0 && consumer.idle_ms > 2 * claim_idle {
                held += consumer.pending;
                by.push(format!("{} ({})", consumer.name, one.stream.name.key));
            }
        }
    }
    if held == 0 {
        return Finding::fine(check, "nothing is held by an instance that is gone");
    }
    Finding {
        check,
        status: Status::Warning,
        what: format!(
            "{} held by instances that are gone: {}",
            count(held, "entry is", "entries are"),
            names(&by)
        ),
        why: "a living worker with handlers for these streams would have taken them over: no such worker lives, or it can't",
        fix: "start a worker for them; or convoke replay pending --dry-run".into(),
    }
}

fn workers(seen: &[Seen], alive: Option<u64>, group: &str) -> Finding {
    let check = "workers";
    let Some(alive) = alive else {
        return Finding::unknown(check, "the user may not look at the instances");
    };
    let waits = |one: &&Seen| {
        one.stream.name.kind == StreamKind::Events
            && one
                .stream
                .groups
                .iter()
                .any(|g| g.name == group && (g.pending > 0 || g.delivered < one.stream.last))
    };
    let waiting: Vec<String> = seen
        .iter()
        .filter(waits)
        .map(|one| one.stream.name.key.clone())
        .collect();
    if alive > 0 || waiting.is_empty() {
        return Finding::fine(
            check,
            count(alive, "instance is alive", "instances are alive"),
        );
    }
    Finding {
        check,
        status: Status::Danger,
        what: format!(
            "no instance is alive, and events wait on {}",
            names(&waiting)
        ),
        why: "nothing is being done",
        fix: "start a worker: systemctl start convoke".into(),
    }
}
