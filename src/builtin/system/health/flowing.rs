//! What does not flow.

use super::Told;
use crate::builtin::Services;
use crate::connect::reach::Reach;
use crate::coordination::error::CoordinationError;
use crate::coordination::flow::of_instances;

/// Looks at what lies on nodes that answer.
pub(super) async fn look(
    services: &Services,
    reach: &Reach,
    twice: bool,
) -> Result<Vec<Told>, CoordinationError> {
    let instances = &services.instances;
    let flow = &services.flow;
    let mut names = services.view.flow_names().await?;
    names.retain(|name| reach.missing(&name.key).is_none());
    let (mut troubles, census, global) = tokio::try_join!(
        flow.look(&names, twice),
        instances.census(),
        instances.metrics(false)
    )?;
    troubles.extend(of_instances(&census, &global));
    Ok(troubles.into_iter().map(Told::from).collect())
}
