//! `system.batch.cancel`: has nobody go on with a batch.

use crate::builtin::Services;
use crate::coordination::batches::batch::BatchStatus;
use crate::coordination::error::CoordinationError;
use crate::handler::state::State;
use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct CancelBatch {
    batch_id: String,
    /// Why; 256 bytes of it are kept.
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct CancelledBatch {
    batch_id: String,
    /// Cancelled, now or before; or completed: then nothing was changed.
    status: BatchStatus,
    /// Items that succeeded; that stays.
    items_processed: u64,
    /// Items that failed for good.
    items_failed: u64,
    total: u64,
    /// Who cancelled it first, if it is cancelled.
    by: String,
    reason: String,
}

/// Cancels it.
///
/// # Errors
/// `invalid_argument` if it is no id; `not_found`.
pub(super) async fn cancel(
    context: Context,
    asked: CancelBatch,
    services: State<Services>,
) -> Result<CancelledBatch, HandlerError> {
    let by = context.event().source().unwrap_or_default();
    let batches = &services.batches;
    let told = batches.cancel(&asked.batch_id, by, &asked.reason).await;
    let told = told.map_err(CoordinationError::into_handler_error)?;
    Ok(CancelledBatch {
        batch_id: asked.batch_id,
        status: told.status,
        items_processed: told.progress.processed,
        items_failed: told.progress.failed,
        total: told.progress.total,
        by: told.by,
        reason: told.reason,
    })
}
