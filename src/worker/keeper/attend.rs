//! Sees when the server answers and what its clock does, for whoever judges silence by it.

use super::Chores;
use std::time::Instant;

/// Asks the server for its time where nobody else did for a while.
pub(super) async fn run(chores: &Chores) {
    let answers = &chores.answers;
    loop {
        let age = answers.age();
        let pause = age.map_or(answers.pause(), |age| answers.pause().saturating_sub(age));
        if pause.is_zero() || age.is_none() {
            let asked = Instant::now();
            let third = chores.settings.heartbeat_ttl / 3;
            match chores.within(third, chores.instances.server_time()).await {
                Ok(ms) => answers.heard(asked, ms, chores.connector.epoch()),
                Err(error) => {
                    tracing::debug!(%error, "the server does not tell its time");
                    tokio::time::sleep(answers.pause()).await;
                }
            }
        } else {
            tokio::time::sleep(pause).await;
        }
    }
}
