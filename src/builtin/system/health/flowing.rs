//! What does not flow.

use super::Told;
use crate::builtin::Services;
use crate::coordination::error::CoordinationError;
use crate::coordination::flow::of_instances;

pub(super) async fn look(services: &Services, twice: bool) -> Result<Vec<Told>, CoordinationError> {
    let instances = &services.instances;
    let flow = &services.flow;
    let names = services.view.stream_names().await?;
    let (mut troubles, census, global) = tokio::try_join!(
        flow.look(&names, twice),
        instances.census(),
        instances.metrics(false)
    )?;
    troubles.extend(of_instances(&census, &global));
    Ok(troubles.into_iter().map(Told::from).collect())
}
