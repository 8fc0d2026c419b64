//! The services that a worker was configured with, besides Redis: whether they answer.

#[cfg(not(all(feature = "ledger-postgres", feature = "mcp")))]
mod absent;
#[cfg(feature = "mcp")]
mod mcp;

#[cfg(feature = "ledger-postgres")]
use crate::ledger::probe::Probe;
use crate::settings::Settings;
#[cfg(not(feature = "mcp"))]
use absent::Absent as Mcp;
#[cfg(not(feature = "ledger-postgres"))]
use absent::Absent as Probe;
#[cfg(feature = "mcp")]
use mcp::Mcp;
use std::time::Duration;

/// How long a service may take to answer before it counts as down.
const LIMIT: Duration = Duration::from_secs(2);

/// What a check came to: how long the answer took, or why there was none. `None`: not configured.
pub type CheckResult = Option<Result<Duration, String>>;

/// Checks the services. Nothing is connected or started before the first check.
#[derive(Debug)]
pub struct Configured {
    postgres: Option<Probe>,
    mcp: Option<Mcp>,
    limit: Duration,
}

impl Configured {
    /// The services of these settings.
    pub fn new(settings: &Settings) -> Self {
        Self {
            postgres: Probe::of(settings),
            mcp: Mcp::of(settings),
            // The answer must be out before the handler's time is over.
            limit: LIMIT.min(settings.handler_timeout / 2),
        }
    }

    /// Asks PostgreSQL. Returns within `limit`, and within 2 s.
    pub async fn postgres(&self, limit: Duration) -> CheckResult {
        let probe = self.postgres.as_ref()?;
        let answer = probe.ask(limit.min(self.limit)).await;
        Some(answer.map_err(|error| error.to_string()))
    }

    /// Asks the MCP server. Returns within `limit`, and within 2 s.
    pub async fn mcp(&self, limit: Duration) -> CheckResult {
        let mcp = self.mcp.as_ref()?;
        Some(mcp.ask(limit.min(self.limit)).await)
    }
}
