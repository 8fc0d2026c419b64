//! Parts of an answer that instances keep for whoever is asked. Each lapses where nobody renews it.

use super::Instances;
use crate::connect::clock::{ServerTime, whole_ms};
use crate::coordination::error::CoordinationError;
use redis::Value;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

/// Parts read in one round trip.
const PAGE: usize = 500;

impl Instances {
    /// The server's time in Unix ms, and how many instances are active.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn moment(&self) -> Result<(u64, u64), CoordinationError> {
        let mut reads = redis::pipe();
        self.store.ask_time(&mut reads).await?;
        reads.cmd("ZCARD").arg(self.store.keys.active());
        let (ServerTime(now), active) = self.store.ask(&reads).await?;
        Ok((now, active))
    }

    /// Keeps what an instance found of its services for that long.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn keep_health(
        &self,
        id: &str,
        report: &[u8],
        kept: Duration,
    ) -> Result<(), CoordinationError> {
        let key = self.store.keys.own_health(id);
        self.keep(&key, report, kept).await
    }

    /// Keeps what the leader made of these.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn keep_merged_health(
        &self,
        health: &[u8],
        kept: Duration,
    ) -> Result<(), CoordinationError> {
        let key = self.store.keys.merged_health();
        self.keep(&key, health, kept).await
    }

    /// Keeps what the leader made of the metrics of all.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn keep_merged_metrics(
        &self,
        detailed: bool,
        metrics: &[u8],
        kept: Duration,
    ) -> Result<(), CoordinationError> {
        let key = self.store.keys.merged_metrics(detailed);
        self.keep(&key, metrics, kept).await
    }

    /// Keeps the state as the leader saw it.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn keep_merged_state(
        &self,
        state: &[u8],
        kept: Duration,
    ) -> Result<(), CoordinationError> {
        self.keep(&self.store.keys.merged_state(), state, kept)
            .await
    }

    async fn keep(&self, key: &str, part: &[u8], kept: Duration) -> Result<(), CoordinationError> {
        let mut write = redis::pipe();
        write.cmd("SET").arg(key).arg(part);
        write.arg("PX").arg(whole_ms(kept));
        self.store.ask::<Value>(&write).await?;
        Ok(())
    }

    /// The server's time, and the living instances that registered themselves.
    ///
    /// # Errors
    /// `Bus`.
    pub(super) async fn living(&self) -> Result<(u64, Vec<String>), CoordinationError> {
        let keys = &self.store.keys;
        let mut reads = redis::pipe();
        self.store.ask_time(&mut reads).await?;
        reads.cmd("ZRANGE").arg(keys.active());
        reads.arg(&["0", "-1", "WITHSCORES"]);
        reads.cmd("ZRANGE").arg(keys.external()).arg(&["0", "-1"]);
        let (ServerTime(now), active, external): (_, Vec<(String, f64)>, HashSet<String>) =
            self.store.ask(&reads).await?;
        let alive = active
            .into_iter()
            .filter(|(_, expires)| *expires > now as f64);
        let living = alive.map(|(id, _)| id).filter(|id| !external.contains(id));
        Ok((now, living.collect()))
    }

    /// The server's time, and what each of these last found of its services.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn healths(
        &self,
    ) -> Result<(u64, BTreeMap<String, Option<Vec<u8>>>), CoordinationError> {
        let (now, living) = self.living().await?;
        let mut found = BTreeMap::new();
        for page in living.chunks(PAGE) {
            let mut read = redis::pipe();
            read.cmd("MGET");
            for id in page {
                read.arg(self.store.keys.own_health(id));
            }
            let (parts,): (Vec<Option<Vec<u8>>>,) = self.store.ask(&read).await?;
            found.extend(page.iter().cloned().zip(parts));
        }
        Ok((now, found))
    }

    /// The server's time, and what the leader last put together, if that has not lapsed.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn merged_health(&self) -> Result<(u64, Option<Vec<u8>>), CoordinationError> {
        self.kept(&self.store.keys.merged_health()).await
    }

    /// The same of the metrics of all.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn merged_metrics(
        &self,
        detailed: bool,
    ) -> Result<(u64, Option<Vec<u8>>), CoordinationError> {
        self.kept(&self.store.keys.merged_metrics(detailed)).await
    }

    /// The same of the state.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn merged_state(&self) -> Result<(u64, Option<Vec<u8>>), CoordinationError> {
        self.kept(&self.store.keys.merged_state()).await
    }

    async fn kept(&self, key: &str) -> Result<(u64, Option<Vec<u8>>), CoordinationError> {
        let mut reads = redis::pipe();
        self.store.ask_time(&mut reads).await?;
        reads.cmd("GET").arg(key);
        let (ServerTime(now), kept) = self.store.ask(&reads).await?;
        Ok((now, kept))
    }
}
