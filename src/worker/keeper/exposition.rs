//! Writes the metrics of the bus into a file, for a collector that reads such files.

use super::Chores;
use crate::builtin::exposition;
use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

/// The pause between two texts: as often as Prometheus looks, or so.
const PAUSE: Duration = Duration::from_secs(15);

/// Writes for ever, if there is a file to write.
pub(super) async fn run(chores: &Chores) {
    if chores.settings.metrics_file.is_empty() {
        return std::future::pending().await;
    }
    let file = PathBuf::from(&chores.settings.metrics_file);
    let mut failed = false;
    loop {
        let written = run_once(chores, file.clone()).await;
        match &written {
            Err(error) if !failed => {
                tracing::warn!(file = %file.display(), %error, "the metrics cannot be written; trying again");
            }
            Ok(()) if failed => {
                tracing::info!(file = %file.display(), "the metrics are written again");
            }
            _ => {}
        }
        failed = written.is_err();
        tokio::time::sleep(PAUSE).await;
    }
}

async fn run_once(chores: &Chores, file: PathBuf) -> Result<(), Box<dyn Error + Send + Sync>> {
    let text = exposition::tell(&chores.instances, &chores.tasks).await?;
    // A disk that hangs holds no pulse up.
    tokio::task::spawn_blocking(move || exposition::write(&file, &text)).await??;
    Ok(())
}
