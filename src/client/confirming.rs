//! Publishes that count only when replicas have them.

use super::publish::{Doubt, Outgoing, PublishError, Published};
use super::ways::Way;
use crate::client::publish::{Answer, Confirm, Prepared};
use redis::{Pipeline, Value};
use std::time::Duration;

/// The longest that a publish may wait for replicas.
pub const MAX_CONFIRM: Duration = Duration::from_secs(10);

impl Way {
    pub(super) async fn store_confirmed(
        &self,
        event: &Outgoing,
        prepared: &Prepared,
        confirm: Confirm,
    ) -> Result<Published, PublishError> {
        if confirm.within > MAX_CONFIRM {
            return Err(PublishError::rejected(format_args!(
                "confirm: waits for {} s at most",
                MAX_CONFIRM.as_secs()
            )));
        }
        let _turn = self.turn.lock().await;
        let link = &self.confirming;
        let mut lent = link.get().await.map_err(PublishError::unsent)?;
        if prepared.scripted {
            let asked = self.has_script_for(link, &mut lent).await;
            asked.map_err(PublishError::unsent)?;
        }
        let mut pipeline = Pipeline::new();
        pipeline.add_command(prepared.command.clone());
        pipeline.cmd("WAIT").arg(confirm.replicas);
        pipeline.arg(confirm.within.as_millis().max(1) as u64);
        let replies = link.send_all(&mut lent, &pipeline).await;
        let replies = replies.map_err(|error| PublishError::after_sending(error, &event.id))?;
        let stored = replies.first().map_or(Answer::Unclear, Answer::from);
        let (published, covered) = stored.published(&event.id)?;
        let confirmed = match replies.get(1) {
            Some(Value::Int(replicas)) if covered => u32::try_from(*replicas).unwrap_or(0),
            _ => 0,
        };
        let wanted = confirm.replicas;
        if confirmed >= wanted {
            return Ok(published);
        }
        let source = match replies.get(1) {
            Some(Value::ServerError(error)) => Doubt::NoConfirmation {
                published,
                reason: error.to_string(),
            },
            _ => Doubt::Unconfirmed {
                published,
                confirmed,
                wanted,
            },
        };
        Err(PublishError::Unknown {
            id: event.id.clone(),
            source,
        })
    }
}
