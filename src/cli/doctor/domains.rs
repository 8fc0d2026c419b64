//! Whether all who use a domain have the same idea of its partitions.

use super::super::Session;
use super::super::output::span;
use super::checks::names;
use super::{Finding, Status, held};
use convoke::connect::connector::Connector;
use convoke::connect::error::BusError;
use convoke::operator::inspect;
use convoke::protocol::domain::DomainOrder;
use convoke::protocol::entry::Entry;
use convoke::protocol::keys::{Keys, StreamKind, StreamName};
use convoke::streams::domains::Domains;
use convoke::streams::made;
use convoke::streams::own::{self, OwnKeys};
use redis::aio::ConnectionLike;
use std::time::Duration;

const CHECK: &str = "partitions";
/// Entries of a partition that are looked at: the last ones.
const LATEST: usize = 20;
/// Partitions whose entries are looked at.
const LOOKED_AT: usize = 200;
/// A new partition that is not begun with that many ms after the change waits for long: it does for 5 s at the least.
const LONG_MS: u64 = 60_000;

/// A lease that ended that many ms ago is taken by nobody.
const UNOWNED_MS: u64 = 5000;
/// How long a partition may be on its way from one owner to another.
const MOVES: Duration = Duration::from_secs(2);
/// Partitions without an owner that are named at the most.
const FEW: usize = 10;

/// Everything about the partitions of domains.
pub(super) async fn partitions(
    session: &Session,
    connection: &mut impl ConnectionLike,
    streams: &[StreamName],
) -> anyhow::Result<Vec<Finding>> {
    let keys = session.settings.keys()?;
    let findings = match keys.set_partitions() {
        None => plain(connection, &keys).await,
        Some(_) => tagged(session, &keys, streams).await,
    };
    let unknown = |error| {
        vec![Finding::unknown(
            CHECK,
            format!("the user may not look at the domains, or cannot: {error}"),
        )]
    };
    Ok(findings.unwrap_or_else(unknown))
}

/// A program with plain names sees nothing of a bus whose names have tags.
async fn plain(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
) -> Result<Vec<Finding>, BusError> {
    let hash = keys.domains();
    let there: bool = redis::cmd("EXISTS")
        .arg(&hash)
        .query_async(connection)
        .await?;
    Ok(vec![match there {
        false => Finding::fine(CHECK, "plain names, which have none"),
        true => Finding {
            check: CHECK,
            status: Status::Danger,
            what: format!(
                "plain names are used here, and {hash} is there: others use names with tags"
            ),
            why: "they are two buses on one server: what one publishes the other never sees",
            fix: format!(
                "set `partitions` where it is 0; or, if nobody uses tags any more: redis-cli DEL {hash}"
            ),
        },
    }])
}

fn of_the_settings(error: anyhow::Error) -> BusError {
    BusError::Unsupported(error.to_string())
}

async fn tagged(
    session: &Session,
    keys: &Keys,
    streams: &[StreamName],
) -> Result<Vec<Finding>, BusError> {
    let connector = session.connector().map_err(of_the_settings)?;
    let all = Domains::new(connector, keys.clone()).learn_all().await?;
    let unreadable: Vec<String> = all
        .iter()
        .filter(|name| keys.domain(name).is_none())
        .cloned()
        .collect();
    let mut findings = Vec::new();
    if let Some(first) = unreadable.first() {
        findings.push(Finding {
            check: CHECK,
            status: Status::Danger,
            what: format!("{} says nothing that can be read of {}", keys.domains(), names(&unreadable)),
            why: "each program takes its own setting for the number of their partitions: where they differ, events \
                  lie where nobody reads",
            fix: format!("see who writes there; then redis-cli HDEL {} {first}, and start a worker", keys.domains()),
        });
    }
    let ordered = |name: &&String| {
        let is = keys.domain(name);
        is.is_some_and(|is| is.order == DomainOrder::Subject)
    };
    let ordered: Vec<String> = all.iter().filter(ordered).cloned().collect();
    findings.extend(match owners(session, keys, &ordered).await {
        Ok(found) => found,
        Err(error) => vec![Finding::unknown(CHECK, error.to_string())],
    });
    if !ordered.is_empty() {
        findings.extend(match held::held(session, keys, &ordered).await {
            Ok(found) => found,
            Err(error) => vec![Finding::unknown("held", error.to_string())],
        });
    }
    findings.extend(match gone(session, keys, &all).await {
        Ok(found) => found,
        Err(error) => vec![Finding::unknown(CHECK, error.to_string())],
    });
    let of_events =
        |stream: &&StreamName| stream.kind == StreamKind::Events && keys.is_split(&stream.part);
    let of_events: Vec<&StreamName> = streams.iter().filter(of_events).collect();
    let beyond = |stream: &&&StreamName| {
        let is = keys.domain(&stream.part);
        is.is_some_and(|is| stream.partition >= is.partitions)
    };
    let unread: Vec<&StreamName> = of_events.iter().filter(beyond).copied().collect();
    if let Some(first) = unread.first() {
        let named: Vec<String> = unread.iter().map(|stream| stream.key.clone()).collect();
        let has = keys.partitions(&first.part);
        findings.push(Finding {
            check: CHECK,
            status: Status::Danger,
            what: format!("{} is read by nobody: {} has {has} partitions", names(&named), first.part),
            why: "somebody publishes who does not look how many there are, but counts with a number of its own",
            fix: format!(
                "have it look at {} first (convoke docs protocol); `convoke domain set {} --partitions` a multiple of \
                 {has} above {} has what is there read",
                keys.domains(),
                first.part,
                first.partition
            ),
        });
    }
    findings.extend(match waiting(session, keys, &all).await {
        Ok(waiting) => waiting,
        Err(error) => vec![Finding::unknown(CHECK, error.to_string())],
    });
    let astray = astray(session, keys, &of_events).await?;
    if !astray.is_empty() {
        findings.push(Finding {
            check: CHECK,
            status: Status::Danger,
            what: format!("events lie in another partition than their own: {}", names(&astray)),
            why: "they run, but have no order with others of their subject, and dedup knows nothing of them: whoever \
                  published them counts with a number of its own",
            fix: format!("have it look at {} first (convoke docs protocol)", keys.domains()),
        });
    }
    if findings.is_empty() {
        let what = "what lies in partitions belongs there, as far as was looked";
        findings.push(Finding::fine(CHECK, what));
    }
    Ok(findings)
}

/// Partitions whose stream was made once, and is not there.
async fn gone(session: &Session, keys: &Keys, all: &[String]) -> Result<Vec<Finding>, BusError> {
    let connector = session.connector().map_err(of_the_settings)?;
    let places = all.iter().flat_map(|name| {
        let partitions = 0..keys.partitions(name);
        let made = partitions.filter(move |at| keys.is_made(name, *at));
        made.map(move |at| (name.as_str(), at))
    });
    let mut gone = Vec::new();
    let mut first = None;
    for (name, at) in places {
        let key = keys.events(name, at);
        if is_away(session, &key).await {
            continue;
        }
        let mut connection = connector.toward(&key).pooled().await?;
        if made::is_gone(&mut connection, keys, (name, at)).await? {
            first.get_or_insert((name, at));
            gone.push(key);
        }
    }
    let Some((name, at)) = first else {
        return Ok(Vec::new());
    };
    Ok(vec![Finding {
        check: CHECK,
        status: Status::Danger,
        what: format!("not there, though made once: {}", names(&gone)),
        why: "a failover while a slot is moved may lose the way to it: what is published there is refused, and nobody reads",
        fix: format!(
            "redis-cli --cluster fix; only if what was in it is lost for good: convoke domain remake {name} {at}"
        ),
    }])
}

/// Whether the node of a partition is away: the checks of the nodes say so.
async fn is_away(session: &Session, key: &str) -> bool {
    let Ok(within) = session.within() else {
        return false;
    };
    let reach = within.reach().await;
    reach.is_ok_and(|reach| reach.missing(key).is_some())
}

/// Partitions of domains with an order that nobody owns.
async fn owners(
    session: &Session,
    keys: &Keys,
    ordered: &[String],
) -> Result<Vec<Finding>, BusError> {
    let connector = session.connector().map_err(of_the_settings)?;
    let domains = Domains::new(connector.clone(), keys.clone());
    let group = &session.settings.group;
    let (mut without, mut unfenced, mut asked) = (Vec::new(), Vec::new(), 0);
    let mut findings = Vec::new();
    let places = ordered.iter().flat_map(|name| {
        let partitions = 0..keys.partitions(name);
        partitions.map(move |partition| (name, partition))
    });
    for (name, partition) in places {
        if asked == LOOKED_AT {
            let what = format!("of the owners of partitions {asked} were looked at, and no more");
            findings.push(Finding::unknown(CHECK, what));
            break;
        }
        if is_away(session, &keys.events(name, partition)).await {
            continue;
        }
        asked += 1;
        let own = OwnKeys::of(keys, name, partition, group);
        let connector = connector.toward(&own.owner);
        let mut state = owned(&connector, &own).await?;
        if matches!(state, Owned::Not(_)) {
            // What one is to own next it waits for before it takes it.
            if !domains.is_open(name, partition, group).await? {
                continue;
            }
            // It may be on its way from one to another.
            tokio::time::sleep(MOVES).await;
            state = owned(&connector, &own).await?;
        }
        match state {
            Owned::Is => {}
            Owned::Unfenced => unfenced.push(own.fence),
            Owned::Not(last) => {
                without.push(format!("{}{last}", keys.events(name, partition)));
                if without.len() == FEW {
                    break;
                }
            }
            Owned::Unread(error) => {
                let what = format!("{}: {error}", own.owner);
                findings.push(Finding::unknown(CHECK, what));
            }
        }
    }
    if !without.is_empty() {
        findings.push(Finding {
            check: CHECK,
            status: Status::Danger,
            what: format!("nobody owns {}", names(&without)),
            why: "their subjects have an order, so only an owner reads them: what is published there waits",
            fix: "start a worker with all handlers of the domain, of a version that knows the order (convoke instances); \
                  where one has just gone, look again a ttl later"
                .into(),
        });
    }
    if let Some(first) = unfenced.first() {
        findings.push(Finding {
            check: CHECK,
            status: Status::Warning,
            what: format!("the fence is gone: {}", names(&unfenced)),
            why: "somebody deleted it, or the server lost it: the owner commits nothing until it has taken the partition again",
            fix: format!("leave {first} alone; see what else the server lost"),
        });
    }
    Ok(findings)
}

/// Whether somebody owns a partition.
enum Owned {
    Is,
    /// Somebody does, and nothing keeps others out.
    Unfenced,
    /// Nobody does; and what is known of the last one.
    Not(String),
    Unread(String),
}

async fn owned(connector: &Connector, own: &OwnKeys) -> Result<Owned, BusError> {
    let source = connector.clock().await?;
    let mut connection = connector.pooled().await?;
    let looked = own::look(&mut connection, source, std::slice::from_ref(own)).await?;
    let mut exists = redis::cmd("EXISTS");
    let fenced: bool = exists.arg(&own.fence).query_async(&mut connection).await?;
    Ok(match looked.owners.into_iter().next().unwrap_or(Ok(None)) {
        Err(error) => Owned::Unread(error),
        Ok(None) => Owned::Not(String::new()),
        Ok(Some(owner)) => {
            let till: u64 = owner.till.parse().unwrap_or(0);
            let over = looked.now.saturating_sub(till);
            match (over > UNOWNED_MS, fenced) {
                (true, _) => Owned::Not(format!(
                    " ({} let it lapse {} ago)",
                    owner.instance,
                    span(over)
                )),
                (false, false) => Owned::Unfenced,
                (false, true) => Owned::Is,
            }
        }
    })
}

/// New partitions that are not begun with for long: each with what it waits for, and since when.
async fn waiting(session: &Session, keys: &Keys, all: &[String]) -> Result<Vec<Finding>, BusError> {
    let connector = session.connector().map_err(of_the_settings)?;
    let domains = Domains::new(connector.clone(), keys.clone());
    let now = inspect::now(&mut connector.pooled().await?).await?;
    let group = &session.settings.group;
    let (mut waiting, mut findings, mut asked) = (Vec::new(), Vec::new(), 0);
    'all: for name in all {
        let Some(is) = keys.domain(name) else {
            continue;
        };
        for partition in 0..is.partitions {
            let Some((_, until)) = is.came_from(partition) else {
                continue;
            };
            if now < until.saturating_add(LONG_MS) {
                continue;
            }
            if asked == LOOKED_AT {
                let what = format!("of the new partitions {asked} were looked at, and no more");
                findings.push(Finding::unknown(CHECK, what));
                break 'all;
            }
            if is_away(session, &keys.events(name, partition)).await {
                continue;
            }
            asked += 1;
            // It may be one that the one before it waits for.
            let Some(from) = domains.waits_for(name, partition, group).await? else {
                continue;
            };
            let old = keys.events(name, from);
            let mut connection = connector.toward(&old).pooled().await?;
            let stream = match keys.stream_name(&old) {
                Some(stream) => inspect::stream(&mut connection, &stream).await?,
                None => None,
            };
            let groups = stream.iter().flat_map(|it| &it.groups);
            let own = groups.into_iter().find(|one| one.name == *group);
            let left = own.map_or_else(
                || format!("the group {group} is not there, so nobody reads it"),
                |own| {
                    let unread = own
                        .lag
                        .map_or_else(|| "an unknown number".to_owned(), |lag| lag.to_string());
                    format!(
                        "{} are read and not settled, {unread} are not read",
                        own.pending
                    )
                },
            );
            waiting.push(format!(
                "{} has waited for {} for what was in {old} before: of all that is there, {left}",
                keys.events(name, partition),
                span(now.saturating_sub(until)),
            ));
        }
    }
    if !waiting.is_empty() {
        findings.push(Finding {
            check: CHECK,
            status: Status::Warning,
            what: names(&waiting),
            why: "a new partition is begun with when what its subjects had before it is run: until then what is published \
                  into it waits",
            fix: "have a worker run what is in the old one, and end what hangs there (convoke pending)"
                .into(),
        });
    }
    Ok(findings)
}

/// Streams with events among the last ones that belong elsewhere.
async fn astray(
    session: &Session,
    keys: &Keys,
    of_events: &[&StreamName],
) -> Result<Vec<String>, BusError> {
    let sight = session.sight().map_err(of_the_settings)?;
    let mut found = Vec::new();
    for stream in of_events.iter().take(LOOKED_AT) {
        let latest = sight.latest(&stream.key, LATEST).await?;
        let strays = |entry: &Entry| {
            let again = entry.get("attempt").or(entry.get("replays")).is_some();
            let id = || entry.get("id").filter(|_| !again);
            let key = entry.get("subject").or_else(id);
            let key = key.and_then(|key| std::str::from_utf8(key).ok());
            key.is_some_and(|key| !keys.holds(&stream.part, key, stream.partition))
        };
        if latest.iter().any(strays) {
            found.push(stream.key.clone());
        }
    }
    Ok(found)
}
