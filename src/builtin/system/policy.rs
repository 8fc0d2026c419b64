//! `system.policy.*`: what operators ask of types, domains and subjects, while all goes on.

mod history;

pub(super) use history::history;

use crate::builtin::Services;
use crate::connect::clock::whole_ms;
use crate::connect::error::BusError;
use crate::coordination::error::CoordinationError;
use crate::coordination::policies::{
    Author, Document, Ends, PolicyPart, RunLimits, Scope, period_ms,
};
use crate::coordination::seats;
use crate::handler::state::State;
use crate::protocol::rate::Per;
use crate::streams::park;
use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Set {
    /// `type:TYPE`, `domain:DOMAIN` or `subject:DOMAIN:SUBJECT`.
    scope: String,
    /// What the scope names waits.
    pause: Option<Pause>,
    /// How many runs of a type begin in a period, over all workers.
    rate: Option<AskedRate>,
    /// How many runs of a type go on at a time.
    concurrency: Option<Concurrency>,
    /// How long a run of a type, or of any of a domain, may take.
    timeout_ms: Option<u64>,
    /// How often an event of a type, or of any of a domain, is tried, the first time included.
    max_attempts: Option<u32>,
    /// Why: for the record.
    reason: Option<String>,
    /// The version that this replaces; another one is refused. 0: there is no document.
    version: Option<u64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Pause {
    /// The Unix millisecond on the server at which it ends by itself.
    until: Option<u64>,
    /// Milliseconds from now after which it ends by itself.
    for_ms: Option<u64>,
    /// Why: requesters are told.
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AskedRate {
    /// Runs.
    limit: u32,
    /// The period in milliseconds.
    period_ms: u64,
    /// `source` or `subject`: each may have that rate; without it, all of the type together.
    per: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Concurrency {
    /// Runs in each worker.
    worker: Option<u32>,
    /// Runs in all workers together.
    total: Option<u32>,
    /// Refused: nobody counts the runs of each subject; a handler that is `ordered` has one of each in a worker.
    per_subject: Option<u32>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Clear {
    /// The scope.
    scope: String,
    /// Which parts, such as `pause` or `concurrency.total`; without them all.
    #[serde(default)]
    parts: Vec<String>,
    /// Why: for the record.
    #[serde(default)]
    reason: String,
    /// The version that this replaces; another one is refused.
    version: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Changed {
    scope: String,
    /// Rises with each change of any document; 0: there was no document.
    version: u64,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Get {
    /// The only scope that is wanted.
    scope: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct All {
    policies: Vec<One>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct One {
    scope: String,
    version: u64,
    /// Who changed it last.
    by: String,
    /// When, in Unix milliseconds on the server.
    at: u64,
    /// Why.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pause: Option<Paused>,
    /// How many events are parked, where one scope is asked for that is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    parked: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<SetRate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency: Option<SetConcurrency>,
    /// What goes on and waits, where one scope is asked for that has a total.
    #[serde(skip_serializing_if = "Option::is_none")]
    seats: Option<Seats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct SetRate {
    limit: u32,
    period_ms: u64,
    /// Whose runs count together: `source`, `subject` or `type`.
    per: String,
}

#[derive(Debug, Serialize, JsonSchema)]
struct SetConcurrency {
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u32>,
}

/// Who has the seats of a type with a total.
#[derive(Debug, Serialize, JsonSchema)]
struct Seats {
    /// Runs that have one, in all workers.
    taken: u64,
    /// Runs that wait for one.
    waits: u64,
    /// In how many workers they wait.
    workers: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Paused {
    /// When it ends by itself, in Unix milliseconds on the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    reason: String,
    /// Whether it lasts; else its time has passed.
    lasts: bool,
}

impl One {
    fn of(scope: &Scope, document: Document, now: u64) -> Self {
        let RunLimits {
            rate,
            worker,
            total,
            timeout,
            max_attempts,
        } = document.limits;
        Self {
            reason: document.reason,
            parked: None,
            rate: rate.map(|metered| SetRate {
                limit: metered.rate.limit,
                period_ms: period_ms(metered.rate),
                per: metered.per.to_string(),
            }),
            concurrency: worker.or(total).map(|_| SetConcurrency { worker, total }),
            seats: None,
            timeout_ms: timeout.map(whole_ms),
            max_attempts,
            scope: scope.to_string(),
            version: document.version,
            by: document.by,
            at: document.at,
            pause: document.pause.map(|pause| Paused {
                lasts: pause.lasts(now),
                until: pause.until,
                reason: pause.reason,
            }),
        }
    }
}

impl Set {
    /// The parts, and why they are set.
    fn parts(self) -> Result<(Vec<PolicyPart>, String), HandlerError> {
        let mut parts = Vec::new();
        let mut why = self.reason.unwrap_or_default();
        if let Some(pause) = self.pause {
            let ends = match (pause.until, pause.for_ms) {
                (None, None) => Ends::Never,
                (Some(at), None) => Ends::At(at),
                (None, Some(ms)) => Ends::In(ms),
                (Some(_), Some(_)) => {
                    return Err(HandlerError::invalid_argument(
                        "pause: until and for_ms say the same: give one of them",
                    ));
                }
            };
            if why.is_empty() {
                why.clone_from(&pause.reason);
            }
            let reason = pause.reason;
            parts.push(PolicyPart::Pause { ends, reason });
        }
        if let Some(rate) = self.rate {
            parts.push(rate.part()?);
        }
        if let Some(concurrency) = self.concurrency {
            parts.push(concurrency.part()?);
        }
        parts.extend(self.timeout_ms.map(PolicyPart::Timeout));
        parts.extend(self.max_attempts.map(PolicyPart::MaxAttempts));
        match parts.is_empty() {
            false => Ok((parts, why)),
            true => Err(HandlerError::invalid_argument(
                "pause, rate, concurrency, timeout_ms, max_attempts: all missing; a policy says something",
            )),
        }
    }
}

impl AskedRate {
    fn part(self) -> Result<PolicyPart, HandlerError> {
        let per = match self.per.as_deref() {
            None => Per::Type,
            Some(name) => Per::named(name).ok_or_else(|| {
                let name = name.escape_default();
                HandlerError::invalid_argument(format!(
                    "rate.per: \"{name}\" is not source, subject or type"
                ))
            })?,
        };
        Ok(PolicyPart::Rate {
            limit: self.limit,
            period_ms: self.period_ms,
            per,
        })
    }
}

impl Concurrency {
    fn part(self) -> Result<PolicyPart, HandlerError> {
        let (worker, total) = (self.worker, self.total);
        if self.per_subject.is_some() {
            return Err(HandlerError::invalid_argument(
                "concurrency.per_subject: workers cannot count that yet; set total, which is of all \
                 subjects, or worker, which is of each worker",
            ));
        }
        if worker.or(total).is_none() {
            return Err(HandlerError::invalid_argument(
                "concurrency: worker and total are missing; a limit says something",
            ));
        }
        Ok(PolicyPart::Concurrency { worker, total })
    }
}

fn scope(text: &str) -> Result<Scope, HandlerError> {
    Scope::parse(text).map_err(CoordinationError::into_handler_error)
}

pub(super) async fn set(
    context: Context,
    asked: Set,
    services: State<Services>,
) -> Result<Changed, HandlerError> {
    let scope = scope(&asked.scope)?;
    let version = asked.version;
    let (parts, why) = asked.parts()?;
    let author = Author {
        by: context.event().source().unwrap_or_default(),
        reason: &why,
    };
    let set = services.policies.set(&scope, &parts, version, author);
    Ok(Changed {
        version: set.await.map_err(CoordinationError::into_handler_error)?,
        scope: scope.to_string(),
    })
}

pub(super) async fn clear(
    context: Context,
    asked: Clear,
    services: State<Services>,
) -> Result<Changed, HandlerError> {
    let scope = scope(&asked.scope)?;
    let author = Author {
        by: context.event().source().unwrap_or_default(),
        reason: &asked.reason,
    };
    let policies = &services.policies;
    let cleared = policies.clear(&scope, &asked.parts, asked.version, author);
    Ok(Changed {
        version: cleared
            .await
            .map_err(CoordinationError::into_handler_error)?,
        scope: scope.to_string(),
    })
}

/// Who has the seats of a type.
async fn seats(context: &Context, kind: &str) -> Result<Seats, HandlerError> {
    let connector = &context.process().connector;
    let taken = seats::look(connector, context.keys(), kind).await;
    let taken = taken.map_err(|error| HandlerError::unavailable(error.to_string()))?;
    Ok(Seats {
        taken: taken.seats,
        waits: taken.waits,
        workers: taken.workers,
    })
}

/// How many events that a scope names are parked.
async fn parked(context: &Context, scope: &Scope) -> Result<u64, HandlerError> {
    let (keys, domain) = (context.keys(), scope.domain());
    let (kind, subject) = match scope {
        Scope::Type(kind) => (Some(kind.as_str()), None),
        Scope::Domain(_) => (None, None),
        Scope::Subject { subject, .. } => (None, Some(subject.as_str())),
    };
    let failed = |error: BusError| HandlerError::unavailable(error.to_string());
    let mut count = 0;
    for partition in 0..keys.partitions(domain) {
        let route = keys.route(domain, partition);
        let connector = context.process().connector.toward(&route.events);
        let mut connection = connector.pooled().await.map_err(failed)?;
        count += park::count(&mut connection, &route, kind, subject)
            .await
            .map_err(failed)?;
    }
    Ok(count)
}

pub(super) async fn get(
    context: Context,
    asked: Get,
    services: State<Services>,
) -> Result<All, HandlerError> {
    let only = asked.scope.as_deref().map(scope).transpose()?;
    let listed = services.policies.list().await;
    let (all, now) = listed.map_err(CoordinationError::into_handler_error)?;
    let all = all.into_iter();
    let those = all.filter(|(scope, _)| only.as_ref().is_none_or(|only| only == scope));
    let mut policies: Vec<One> = those
        .map(|(scope, document)| One::of(&scope, document, now))
        .collect();
    if let (Some(scope), [one]) = (&only, &mut policies[..]) {
        if one.pause.is_some() {
            one.parked = Some(parked(&context, scope).await?);
        }
        let has_total = one.concurrency.as_ref().and_then(|most| most.total);
        if let (Scope::Type(kind), Some(_)) = (scope, has_total) {
            one.seats = Some(seats(&context, kind).await?);
        }
    }
    Ok(All { policies })
}
