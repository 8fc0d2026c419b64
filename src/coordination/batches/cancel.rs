//! Batches that somebody cancels: whoever holds one commits nothing more.

use super::batch::{BatchStatus, MAX_REASON, check_id};
use super::{BatchProgress, Batches, KEPT, not_there};
use crate::connect::clock::whole_ms;
use crate::connect::error::BusError;
use crate::connect::script::script_with;
use crate::coordination::answer::answer;
use crate::coordination::error::CoordinationError;
use crate::coordination::scripts::VERSION;
use redis::Script;
use std::sync::LazyLock;

static CANCEL: LazyLock<Script> =
    LazyLock::new(|| script_with(&[VERSION], include_str!("cancel_batch.lua")));

/// A batch that somebody asked to cancel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelledBatch {
    /// Cancelled, now or before; or completed.
    pub status: BatchStatus,
    /// How far it was.
    pub progress: BatchProgress,
    /// Who cancelled it.
    pub by: String,
    /// Why.
    pub reason: String,
}

answer! {
    /// What `cancel_batch.lua` answers.
    struct Cancelling {
        state: String,
        processor_id: String,
        processed: u64,
        failed: u64,
        total: u64,
        by: String,
        reason: String,
    }
}

impl Batches {
    /// Cancels a batch that runs: whoever holds it commits nothing more. The same call again changes nothing.
    ///
    /// # Errors
    /// `Invalid` if it is no id; `NotFound` if no batch has it; `Bus`.
    pub async fn cancel(
        &self,
        id: &str,
        by: &str,
        reason: &str,
    ) -> Result<CancelledBatch, CoordinationError> {
        check_id(id)?;
        let keys = &self.store.keys;
        let mut call = CANCEL.prepare_invoke();
        call.key(keys.batch(id))
            .key(keys.batch_finished(id))
            .key(keys.batches())
            .key(keys.broadcast())
            .key(keys.state())
            .arg(id)
            .arg(&by[..by.floor_char_boundary(MAX_REASON)])
            .arg(&reason[..reason.floor_char_boundary(MAX_REASON)])
            .arg(whole_ms(KEPT));
        let answer: Cancelling = self.store.invoke(&call).await?;
        let status = match answer.state.as_str() {
            "cancelled" => BatchStatus::Cancelled,
            "completed" => BatchStatus::Completed,
            "unknown" => return Err(not_there(id)),
            _ => {
                return Err(CoordinationError::Bus(BusError::Reply {
                    what: "cancel_batch.lua",
                }));
            }
        };
        Ok(CancelledBatch {
            status,
            progress: BatchProgress {
                fence: 0,
                processor_id: answer.processor_id,
                processed: answer.processed,
                failed: answer.failed,
                total: answer.total,
            },
            by: answer.by,
            reason: answer.reason,
        })
    }
}
