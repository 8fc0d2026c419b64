//! The connections that are lent: how many, and those of a primary that may move.

use super::connector::ANSWER;
use super::socket::CONNECT;
use crate::connect::error::BusError;
use crate::connect::greeting::Known;
use crate::connect::pool::{Manager, Pool};
use crate::connect::url::RedisUrl;
use deadpool::Runtime;
use deadpool::managed::Timeouts;
use redis::{AsyncConnectionConfig, ConnectionInfo};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// How long a pooled connection may take to show that it is of use still.
pub(super) const RECYCLE: Duration = Duration::from_secs(1);

/// How many connections a pool lends, and how long each may be waited for and wait.
#[derive(Clone, Copy)]
pub(super) struct Lending {
    pub(super) size: usize,
    pub(super) answer: Duration,
}

impl Lending {
    pub(super) fn of(size: usize) -> Self {
        Self {
            size,
            answer: ANSWER,
        }
    }
}

/// Connections to the primary of one generation.
#[derive(Clone)]
pub(super) struct PrimaryPool {
    pub(super) generation: u64,
    pub(super) pool: Pool,
    /// One connection was of no use, so the others are not tried: each might take its time.
    pub(super) spoiled: Arc<AtomicBool>,
}

impl PrimaryPool {
    pub(super) fn new(
        url: &RedisUrl,
        info: ConnectionInfo,
        generation: u64,
        lending: Lending,
        known: Arc<Known>,
        tells: bool,
    ) -> Result<Self, BusError> {
        let spoiled = Arc::new(AtomicBool::new(false));
        let manager = Manager::new(url, info, answers_within(lending.answer), known)?;
        // A node of a cluster says by itself that it is no primary any more.
        let manager = match tells {
            true => manager,
            false => manager.of_a_primary(spoiled.clone()),
        };
        Ok(Self {
            generation,
            pool: pool_of(manager, lending)?,
            spoiled,
        })
    }
}

pub(super) fn pool_of(manager: Manager, lending: Lending) -> Result<Pool, BusError> {
    Pool::builder(manager)
        .max_size(lending.size)
        .timeouts(Timeouts {
            wait: Some(lending.answer),
            create: Some(CONNECT.min(lending.answer)),
            recycle: Some(RECYCLE.min(lending.answer)),
        })
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|error| BusError::Pool(error.to_string()))
}

pub(super) fn answers_within(answer: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT.min(answer)))
        .set_response_timeout(Some(answer))
}
