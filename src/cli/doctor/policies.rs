//! What operators hold back: what is paused, and how much waits for that.

use super::super::Session;
use super::super::output::{count, span};
use super::{Finding, Status};
use convoke::connect::error::{BusError, allowed};
use convoke::coordination::error::CoordinationError;
use convoke::coordination::policies::{Document, Policies, Scope};
use convoke::coordination::seats::{self, Taken};
use convoke::operator::parked::{self, ParkedKind};
use convoke::protocol::keys::{self, StreamName};

/// What is named at the most.
const NAMED: usize = 20;

/// Everything that is held back.
pub(super) async fn policies(
    session: &Session,
    names: Result<&[StreamName], &BusError>,
) -> anyhow::Result<Vec<Finding>> {
    let look = async {
        let (connector, keys) = (session.connector()?, session.settings.keys()?);
        let held = Policies::new(connector.clone(), keys.clone());
        let (documents, now) = match held.list().await {
            Err(CoordinationError::Bus(error)) => match allowed(Err(error))? {
                Some(read) => read,
                None => return Ok(None),
            },
            read => read?,
        };
        let mut of_kinds: Vec<ParkedKind> = Vec::new();
        for name in names.unwrap_or_default() {
            if let Some(route) = parked::beside(&keys, name) {
                let mut connection = connector.toward(&route.events).pooled().await?;
                for one in parked::kinds(&mut connection, &route).await? {
                    add(&mut of_kinds, one);
                }
            }
        }
        let mut findings = parked_ones(&of_kinds, &documents, now);
        let totals = documents
            .iter()
            .filter_map(|(scope, document)| match scope {
                Scope::Type(kind) => Some((kind, document, document.limits.total?)),
                _ => None,
            });
        for (kind, document, total) in totals.take(NAMED) {
            if let Some(taken) = allowed(seats::look(&connector, &keys, kind).await)? {
                findings.push(of_total(kind, document, total, taken));
            }
        }
        Ok::<_, anyhow::Error>(Some(findings))
    };
    let mut findings = match look.await {
        Ok(Some(findings)) => findings,
        Ok(None) => {
            let may_not = "the user may not look at policies";
            vec![Finding::unknown("paused", may_not)]
        }
        // As with a replica.
        Err(error) => {
            let what = format!("the user may not look at policies: {error}");
            vec![Finding::unknown("paused", what)]
        }
    };
    findings.truncate(NAMED);
    Ok(findings)
}

fn add(all: &mut Vec<ParkedKind>, one: ParkedKind) {
    match all.iter_mut().find(|known| known.kind == one.kind) {
        None => all.push(one),
        Some(known) => {
            known.count += one.count;
            known.first_ms = known.first_ms.into_iter().chain(one.first_ms).min();
        }
    }
}

/// What is parked, by type, and by what it is paused.
fn parked_ones(kinds: &[ParkedKind], documents: &[(Scope, Document)], now: u64) -> Vec<Finding> {
    let check = "paused";
    let lasting: Vec<(&Scope, &Document)> = documents
        .iter()
        .filter(|(_, document)| {
            document
                .pause
                .as_ref()
                .is_some_and(|pause| pause.lasts(now))
        })
        .map(|(scope, document)| (scope, document))
        .collect();
    let mut findings = Vec::new();
    for one in kinds {
        let domain = keys::domain_of(&one.kind);
        let by = lasting.iter().find(|(scope, _)| match scope {
            Scope::Type(kind) => *kind == one.kind,
            scope => scope.domain() == domain,
        });
        let events = count(one.count, "event is parked", "events are parked");
        let since = one.first_ms.map_or_else(String::new, |first| {
            format!(", the first of {} ago", span(now.saturating_sub(first)))
        });
        let (by, why, fix) = match by {
            Some((scope, document)) => (
                paused(scope, document, now),
                "what is paused does not run, and who asks for it is refused",
                format!("convoke resume {}", resumed(scope)),
            ),
            None => (
                "nothing pauses them".to_owned(),
                "a worker that reads the domain has them go on; none does, or they wait behind others of their subject",
                format!("start a worker that handles a type of {domain}"),
            ),
        };
        findings.push(Finding {
            check,
            status: Status::Warning,
            what: format!("{}: {events}{since}; {by}", one.kind),
            why,
            fix,
        });
    }
    let idle = lasting.iter().filter(|(scope, _)| {
        let mut kinds = kinds.iter();
        !kinds.any(|one| keys::domain_of(&one.kind) == scope.domain())
    });
    findings.extend(idle.map(|(scope, document)| {
        let what = format!("{}; nothing is parked", paused(scope, document, now));
        Finding::fine(check, what)
    }));
    if findings.is_empty() {
        findings.push(Finding::fine(
            check,
            "nothing is paused, and nothing parked",
        ));
    }
    findings
}

/// What waits for the total of a type.
fn of_total(kind: &str, document: &Document, total: u32, taken: Taken) -> Finding {
    let by = match document.by.as_str() {
        "" => String::new(),
        by => format!(", which {by} set"),
    };
    let runs = count(taken.seats, "run goes on", "runs go on");
    let what = format!("{kind}: {runs} of the total of {total}{by}");
    if taken.waits == 0 {
        return Finding::fine("total", format!("{what}; none waits for it"));
    }
    let waits = count(taken.waits, "waits for it", "wait for it");
    let workers = count(taken.workers, "worker", "workers");
    let since = taken.waits_ms.map_or_else(String::new, |ms| {
        format!(", the next one since {}", span(ms))
    });
    Finding {
        check: "total",
        status: Status::Warning,
        what: format!("{what}; {waits} in {workers}{since}"),
        why: "what waits fills its stream, and holds up the other types of its domain",
        fix: format!("convoke limit {kind} --total MORE, or convoke limit {kind} --clear total"),
    }
}

fn paused(scope: &Scope, document: &Document, now: u64) -> String {
    let since = span(now.saturating_sub(document.at));
    let until = document.pause.as_ref().and_then(|pause| pause.until);
    let ends = match until {
        None => "until it is resumed".to_owned(),
        Some(at) => format!("for {} more", span(at.saturating_sub(now))),
    };
    let by = match document.by.as_str() {
        "" => String::new(),
        by => format!(" by {by}"),
    };
    let reason = match document.reason.as_str() {
        "" => String::new(),
        reason => format!(": {reason}"),
    };
    format!("{scope} is paused{by} since {since}, {ends}{reason}")
}

/// How the scope is named when it is to go on.
fn resumed(scope: &Scope) -> String {
    match scope {
        Scope::Type(kind) => kind.clone(),
        Scope::Domain(domain) => format!("--domain {domain}"),
        Scope::Subject { domain, subject } => format!("--subject '{domain}:{subject}'"),
    }
}
