//! Distributed: each instance looks at its own services by a clock of its own; the answer merges what they
//! reported, and says how old that is.

use super::own::Findings;
use super::{Aged, Health, Probed, Reports, Service, ServiceStatus, assess};
use crate::builtin::Services;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::roster::Census;
use std::cmp::Reverse;

/// Instances that are named with the age of their report.
const NAMED: usize = 10;

/// The answer; `None` where nobody has reported.
pub(super) async fn answer(services: &Services) -> Result<Option<Health>, CoordinationError> {
    let instances = &services.instances;
    let (census, (now, kept)) = tokio::try_join!(instances.census(), instances.healths())?;
    let reports = kept.into_iter().map(|(id, report)| {
        let report = report.and_then(|report| Findings::decoded(&report));
        (id, report)
    });
    Ok(merged(now, reports.collect(), census))
}

fn merged(now: u64, kept: Vec<(String, Option<Findings>)>, census: Census) -> Option<Health> {
    let all = kept.len() as u64;
    let mut given: Vec<(String, Findings)> = kept
        .into_iter()
        .filter_map(|(id, report)| Some((id, report?)))
        .collect();
    if given.is_empty() {
        return None;
    }
    given.sort_by(|(a, one), (b, other)| (one.at, a).cmp(&(other.at, b)));
    let age = |at: u64| now.saturating_sub(at);
    let worst = |pick: fn(&Probed) -> &Service| {
        let all = given.iter().map(|(_, report)| pick(&report.services));
        all.max_by(|one, other| rank(one).total_cmp(&rank(other)))
            .cloned()
    };
    let probed = Probed {
        redis: worst(|probed| &probed.redis)?,
        postgres: worst(|probed| &probed.postgres)?,
        mcp: worst(|probed| &probed.mcp)?,
    };
    let mut health = assess(probed, census);
    health.age_ms = age(given.first()?.1.at);
    health.reports = Some(Reports {
        given: given.len() as u64,
        missing: all.saturating_sub(given.len() as u64),
        oldest: given
            .iter()
            .take(NAMED)
            .map(|(id, report)| Aged {
                instance: id.clone(),
                age_ms: age(report.at),
            })
            .collect(),
    });
    given.sort_by_key(|(_, report)| Reverse(report.at));
    health.flow = given.into_iter().find_map(|(_, report)| report.flow);
    Some(health)
}

/// The higher, the worse: down before up before disabled, slow before quick.
fn rank(service: &Service) -> f64 {
    match service.status {
        ServiceStatus::Down => f64::INFINITY,
        // A part of it is.
        ServiceStatus::Up if !service.away.is_empty() => f64::MAX,
        ServiceStatus::Up => service.latency_ms.unwrap_or(0.0).max(0.0),
        ServiceStatus::Disabled => -1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::system::health::Status;
    use std::time::Duration;

    fn report(at: u64, postgres: Service) -> Option<Findings> {
        let services = Probed {
            redis: Service::probed(Ok(Duration::from_millis(at))),
            postgres,
            mcp: Service::DISABLED,
        };
        Some(Findings {
            at,
            services,
            flow: None,
        })
    }

    fn kept(reports: Vec<Option<Findings>>) -> Vec<(String, Option<Findings>)> {
        let names = (0..).map(|number| format!("w-{number}"));
        names.zip(reports).collect()
    }

    fn census() -> Census {
        Census {
            at: 100,
            active: 3,
            ..Census::default()
        }
    }

    #[test]
    fn one_that_cannot_reach_a_service_is_heard_among_many_that_can() {
        let down = Service::probed(Err("refused".to_owned()));
        let reports = vec![
            report(40, Service::probed(Ok(Duration::ZERO))),
            report(10, down.clone()),
            None,
        ];
        let health = merged(100, kept(reports), census()).expect("two reports");
        assert_eq!(health.services.postgres, down);
        assert_eq!(health.services.redis.latency_ms, Some(40.0));
        assert_eq!((health.status, health.age_ms), (Status::Degraded, 90));
        let reports = health.reports.expect("what it was made of");
        assert_eq!((reports.given, reports.missing), (2, 1));
        let oldest: Vec<_> = reports.oldest.iter().map(|aged| aged.age_ms).collect();
        assert_eq!(oldest, [90, 60]);
    }

    #[test]
    fn nothing_is_made_of_no_report() {
        assert_eq!(merged(100, kept(vec![None, None]), census()), None);
        assert_eq!(merged(100, Vec::new(), census()), None);
    }
}
