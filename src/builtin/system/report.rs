use crate::builtin::Services;
use crate::coordination::error::CoordinationError;
use crate::handler::state::State;
use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct ReportNow {}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Reported {}

pub(super) async fn report(
    _: Context,
    _: ReportNow,
    services: State<Services>,
) -> Result<Reported, HandlerError> {
    let told = services.own_report.tell().await;
    told.map_err(CoordinationError::into_handler_error)?;
    Ok(Reported {})
}
