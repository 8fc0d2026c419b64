//! `system.health`, in three patterns ([`pattern`](crate::protocol::pattern)).

mod centralized;
mod distributed;
mod flowing;
mod hybrid;
mod own;

use crate::builtin::Services;
use crate::connect::reach::Reach;
use crate::coordination::flow::Trouble;
use crate::coordination::instances::roster::Census;
use crate::handler::state::State;
use crate::protocol::pattern::{Pattern, Patterned};
use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::time::{Duration, Instant};

pub(crate) use hybrid::put_together;
pub(crate) use own::report;

/// How long each node of a cluster has to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Nodes that are named of those that do not answer.
const AWAY: usize = 16;

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Nothing {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Status {
    Healthy,
    Degraded,
    Unhealthy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ServiceStatus {
    Up,
    Down,
    Disabled,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Service {
    status: ServiceStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Nodes of a cluster that do not answer, while others do; at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    away: Vec<AwayNode>,
}

/// A node that does not answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct AwayNode {
    node: String,
    error: String,
}

impl Service {
    const DISABLED: Service = Service {
        status: ServiceStatus::Disabled,
        latency_ms: None,
        error: None,
        away: Vec::new(),
    };

    /// The same with the nodes that do not answer.
    fn without(self, reach: Option<&Reach>) -> Self {
        let away = reach.into_iter().flat_map(Reach::away).take(AWAY);
        let away = away.map(|away| AwayNode {
            node: away.node.clone(),
            error: away.error.clone(),
        });
        Self {
            away: away.collect(),
            ..self
        }
    }

    fn probed(answer: Result<Duration, String>) -> Self {
        match answer {
            Ok(latency) => Self {
                status: ServiceStatus::Up,
                latency_ms: Some(latency.as_secs_f64() * 1000.0),
                error: None,
                away: Vec::new(),
            },
            Err(error) => Self {
                status: ServiceStatus::Down,
                latency_ms: None,
                error: Some(error),
                away: Vec::new(),
            },
        }
    }

    fn is_down(&self) -> bool {
        self.status == ServiceStatus::Down
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Probed {
    redis: Service,
    postgres: Service,
    mcp: Service,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
struct Counted {
    healthy: u64,
    suspect: u64,
    lost: u64,
    /// Instances that an event registered and that are alive. They are in none of the others: anyone may make
    /// some up.
    external: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Health {
    status: Status,
    services: Probed,
    instances: Counted,
    /// Whether fewer than half of the known instances are healthy, or were and no more than 70 % are
    /// again.
    partition: bool,
    /// When, in Unix milliseconds on the server.
    at: u64,
    /// What does not flow: what waits though nobody takes it, who is missing, what hangs. It does not change
    /// the status; nil: it could not be looked at.
    flow: Option<Vec<Told>>,
    /// How old the oldest part of the answer is, in ms; 0: all of it was looked at now.
    age_ms: u64,
    /// What it was put together from, where others looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    reports: Option<Reports>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
struct Told {
    /// `stalled`, `no-consumer`, `no-handler`, `unread`, `ledger`, `delayed`, `runs`, `lost` or `partition`.
    check: Cow<'static, str>,
    /// Whether events stand still by it, or may be lost.
    severe: bool,
    what: String,
    why: Cow<'static, str>,
    mend: String,
}

impl From<Trouble> for Told {
    fn from(trouble: Trouble) -> Self {
        Self {
            check: trouble.check.into(),
            severe: trouble.severe,
            what: trouble.what,
            why: trouble.why.into(),
            mend: trouble.mend,
        }
    }
}

/// How many instances' reports an answer was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
struct Reports {
    /// Living workers that had reported.
    given: u64,
    /// Living workers that had not, or not within their time to live.
    missing: u64,
    /// The oldest reports, the oldest first; at most 10.
    oldest: Vec<Aged>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
struct Aged {
    instance: String,
    age_ms: u64,
}

pub(super) async fn health(
    context: Context,
    _: Nothing,
    services: State<Services>,
) -> Result<Health, HandlerError> {
    let began = Instant::now();
    let pattern = services.patterns.of(Patterned::Health);
    let answer = match pattern {
        Pattern::Centralized => None,
        Pattern::Distributed => Box::pin(distributed::answer(&services))
            .await
            .ok()
            .flatten(),
        Pattern::Hybrid => hybrid::answer(&services).await.ok().flatten(),
    };
    let answer = Ok(match answer {
        Some(health) => health,
        // Where there is nothing to put together, whoever is asked looks.
        None => Box::pin(centralized::answer(&context, &services)).await,
    });
    let of = (Patterned::Health, pattern);
    services.patterns.answered(of, began, &answer, |health| {
        Some(Duration::from_millis(health.age_ms))
    });
    answer
}

/// An instance is suspect if a peer says so, or if it expired and was not declared lost yet.
fn assess(services: Probed, census: Census) -> Health {
    let instances = Counted {
        healthy: census.healthy(),
        suspect: census.suspect + census.expired,
        lost: census.recently_lost,
        external: census.external,
    };
    // A suspect may be up; one whose lease has ended is down.
    let down = census.expired + instances.lost;
    let status = if services.redis.is_down() || 2 * down > census.known() {
        Status::Unhealthy
    } else if services.postgres.is_down()
        || services.mcp.is_down()
        || !services.redis.away.is_empty()
        || instances.suspect > 0
    {
        Status::Degraded
    } else {
        Status::Healthy
    };
    Health {
        status,
        services,
        instances,
        partition: census.is_partitioned(),
        at: census.at,
        flow: None,
        age_ms: 0,
        reports: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(
        redis: Service,
        postgres: Service,
        active: u64,
        expired: u64,
        recently_lost: u64,
    ) -> Health {
        let census = Census {
            at: 1,
            active,
            expired,
            recently_lost,
            ..Census::default()
        };
        of(redis, postgres, census)
    }

    fn of(redis: Service, postgres: Service, census: Census) -> Health {
        let services = Probed {
            redis,
            postgres,
            mcp: Service::DISABLED,
        };
        assess(services, census)
    }

    fn up() -> Service {
        Service::probed(Ok(Duration::from_millis(1)))
    }

    fn down() -> Service {
        Service::probed(Err("connection refused".into()))
    }

    #[test]
    fn unhealthy_is_redis_down_or_a_majority_of_instances_down() {
        assert_eq!(
            with(up(), Service::DISABLED, 3, 0, 0).status,
            Status::Healthy
        );
        assert_eq!(
            with(down(), Service::DISABLED, 3, 0, 0).status,
            Status::Unhealthy
        );
        assert_eq!(
            with(up(), Service::DISABLED, 2, 0, 2).status,
            Status::Healthy
        );
        assert_eq!(
            with(up(), Service::DISABLED, 2, 0, 3).status,
            Status::Unhealthy
        );
        assert_eq!(
            with(up(), Service::DISABLED, 2, 1, 2).status,
            Status::Unhealthy
        );
    }

    #[test]
    fn degraded_is_a_service_down_that_is_configured_or_an_instance_suspect() {
        assert_eq!(with(up(), down(), 3, 0, 0).status, Status::Degraded);
        assert_eq!(with(up(), up(), 3, 1, 0).status, Status::Degraded);
        let suspected = |suspect| {
            let census = Census {
                active: 3,
                suspect,
                ..Census::default()
            };
            of(up(), Service::DISABLED, census)
        };
        let one = suspected(1);
        assert_eq!(one.status, Status::Degraded);
        assert_eq!((one.instances.healthy, one.instances.suspect), (2, 1));
        // They are suspected, not down.
        let most = suspected(2);
        assert_eq!((most.status, most.partition), (Status::Degraded, true));
    }

    #[test]
    fn a_partition_is_healed_above_seventy_percent() {
        let noted = |active| {
            let census = Census {
                active,
                recently_lost: 10 - active,
                partition: true,
                ..Census::default()
            };
            of(up(), Service::DISABLED, census).partition
        };
        assert!(noted(4) && noted(5) && noted(7));
        assert!(!noted(8));
    }

    #[test]
    fn a_partition_is_fewer_than_half_of_the_known_instances_healthy() {
        assert!(!with(up(), up(), 2, 1, 1).partition);
        assert!(with(up(), up(), 2, 1, 2).partition);
        assert!(!with(up(), up(), 0, 0, 0).partition);
    }
}
