//! Says to workers that take their tasks by themselves that something waits for them.

use super::error::CoordinationError;
use super::instances::Instances;
use super::tasks::Tasks;

/// Nudges a few workers that have room and a handler for that kind.
///
/// # Errors
/// `Bus`.
pub async fn nudge(
    instances: &Instances,
    tasks: &Tasks,
    kind: &str,
) -> Result<(), CoordinationError> {
    let able = instances.capable(kind).await?;
    tasks.nudge(able.alive).await
}

/// The same for what waits by now.
///
/// # Errors
/// `Bus`.
pub async fn nudge_waiting(instances: &Instances, tasks: &Tasks) -> Result<(), CoordinationError> {
    for kind in tasks.kinds_that_wait().await? {
        nudge(instances, tasks, &kind).await?;
    }
    Ok(())
}
