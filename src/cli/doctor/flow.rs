//! Whether events flow.

use super::super::Session;
use super::{Finding, Status};
use convoke::connect::error::BusError;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::flow::{CHECKS, Flow, Trouble, of_instances};
use convoke::ledger::fill::GROUP;
use convoke::protocol::keys::StreamName;

/// What the checks of the streams themselves say already.
const TOLD: &str = "unread";

/// Everything about the flow.
pub(super) async fn flow(
    session: &Session,
    names: Result<&[StreamName], &BusError>,
) -> anyhow::Result<Vec<Finding>> {
    let checks = CHECKS.into_iter().filter(|check| *check != TOLD);
    let keys = session.settings.keys()?;
    let flow = Flow::new(
        session.connector()?,
        keys.clone(),
        session.settings.group.as_str(),
        GROUP,
    );
    let instances = session.instances()?;
    let names = match names {
        Ok(names) => names,
        Err(error) => {
            let what = format!("the user may not look at streams: {error}");
            return Ok(checks.map(|check| Finding::unknown(check, &what)).collect());
        }
    };
    let look = async {
        let mut troubles = flow.look(names, true).await?;
        let census = instances.census().await?;
        let global = instances.metrics(true).await?;
        troubles.extend(of_instances(&census, &global));
        Ok::<Vec<Trouble>, CoordinationError>(troubles)
    };
    let troubles = match look.await {
        Ok(troubles) => troubles,
        Err(error) => {
            let what = format!("the user may not look at streams and instances: {error}");
            return Ok(checks.map(|check| Finding::unknown(check, &what)).collect());
        }
    };
    let mut findings = Vec::new();
    for check in checks {
        let of_check = troubles.iter().filter(|trouble| trouble.check == check);
        let found = of_check.map(|trouble| Finding {
            check,
            status: match trouble.severe {
                true => Status::Danger,
                false => Status::Warning,
            },
            what: trouble.what.clone(),
            why: trouble.why,
            fix: trouble.mend.clone(),
        });
        let before = findings.len();
        findings.extend(found);
        if findings.len() == before {
            findings.push(Finding::fine(check, fine(check)));
        }
    }
    Ok(findings)
}

fn fine(check: &str) -> &'static str {
    match check {
        "stalled" => "what waits is taken",
        "no-consumer" => "no group with something to read is without a consumer",
        "no-handler" => "what waits has handlers",
        "ledger" => "the ledger, if there is one, is not behind",
        "delayed" => "nothing is overdue in a delay queue",
        "runs" => "no run goes on for long",
        "lost" => "few instances, if any, were lost lately",
        _ => "most of the known instances are healthy",
    }
}
