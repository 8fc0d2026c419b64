//! What this process would report now.

use super::metrics::Report;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::Instances;
use crate::coordination::instances::instance::Beat;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// What this process would report now, for whoever answers for all. Cheap to clone.
#[derive(Clone, Default)]
pub struct OwnReport(Arc<OnceLock<Source>>);

struct Source {
    id: String,
    pub(super) instances: Instances,
    reporting: Box<Reporting>,
}

type Reporting = dyn Fn() -> Option<Report> + Send + Sync;

impl OwnReport {
    /// Says where the report of that instance comes from, and who reports. Only the first time counts.
    pub fn comes_from(
        &self,
        id: &str,
        instances: Instances,
        reporting: impl Fn() -> Option<Report> + Send + Sync + 'static,
    ) {
        let source = Source {
            id: id.to_owned(),
            instances,
            reporting: Box::new(reporting),
        };
        self.0.set(source).ok();
    }

    /// Reports as it is at this moment; nothing in a process that reports nothing.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn tell(&self) -> Result<(), CoordinationError> {
        let Some(source) = self.0.get() else {
            return Ok(());
        };
        if let Some(report) = (source.reporting)() {
            let beat = Beat {
                metrics: Some(report),
                ..Beat::new(&source.id, None)
            };
            source.instances.heartbeat(&beat).await?;
        }
        Ok(())
    }
}

impl fmt::Debug for OwnReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnReport")
    }
}
