//! The connections that are lent: how many, and those of a primary that may move.

use super::connector::{ANSWER, Connector, Destination};
use super::socket::CONNECT;
use crate::connect::cluster::pooled::Routed;
use crate::connect::error::{BusError, told};
use crate::connect::greeting::Known;
use crate::connect::pool::{Lent, Manager, Pool, Pooled};
use crate::connect::url::RedisUrl;
use crate::mutex::locked;
use deadpool::Runtime;
use deadpool::managed::{PoolError, Timeouts};
use redis::{AsyncConnectionConfig, ConnectionInfo};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a pooled connection may take to show that it is of use still.
pub(super) const RECYCLE: Duration = Duration::from_secs(1);

/// How many connections a pool lends, and how long each may be waited for and wait.
#[derive(Clone, Copy)]
pub(super) struct Lending {
    pub(super) size: usize,
    pub(super) answer: Duration,
    /// On a cluster one pool for each node, in the place of one for each slot.
    pub(super) by_node: bool,
}

impl Lending {
    pub(super) fn of(size: usize) -> Self {
        Self {
            size,
            answer: ANSWER,
            by_node: false,
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

impl Connector {
    /// A connection from the pool, for a few commands that do not block. On a cluster each goes to the node of its
    /// key.
    pub async fn pooled(&self) -> Result<Pooled, BusError> {
        let lent = self.lent().await?;
        Ok(match self.slot() {
            Some(slot) => Pooled::routed(Routed::new(self.clone(), slot, lent)),
            None => Pooled::of(lent),
        })
    }

    /// A connection from the pool to this connector's node alone: on a cluster it answers `MOVED` for what others have.
    #[doc(hidden)]
    pub async fn at_its_node(&self) -> Result<Pooled, BusError> {
        Ok(Pooled::of(self.lent().await?))
    }

    pub(super) async fn lent(&self) -> Result<Lent, BusError> {
        let pool = match &self.place {
            Destination::Server { pool, .. } => pool.clone(),
            Destination::Moving { .. } => self.primary_pool().await?.pool,
        };
        // Apart: all that is done with what is lent would be as large.
        let lent = Box::pin(pool.get()).await.inspect_err(|_| {
            if let Destination::Moving { .. } = &self.place {
                // The next one asks the Sentinels again.
                self.forget_pooled();
            }
        });
        let lent = lent.map(Lent::of).map_err(|error| {
            BusError::Pool(match error {
                PoolError::Backend(error) => {
                    match BusError::from(error).at(pool.manager().addr()) {
                        BusError::Unreachable { address, error } => {
                            format!("{address}: {error}{}", told(&error))
                        }
                        other => other.to_string(),
                    }
                }
                other => other.to_string(),
            })
        });
        let mut lent = lent?;
        if self.is_by_node() && !self.known.is_greeted() {
            // It was made for another slot of the node.
            lent.greet(&self.known).await?;
        }
        Ok(lent)
    }

    /// The pool of the primary as it is known now.
    async fn primary_pool(&self) -> Result<PrimaryPool, BusError> {
        let Destination::Moving {
            locator,
            pool,
            lending,
            family,
        } = &self.place
        else {
            return Err(BusError::Moved);
        };
        let by_node = self.is_by_node();
        let current = |generation| {
            let usable = |pool: &PrimaryPool| !pool.spoiled.load(Ordering::Acquire);
            if by_node {
                return family.of_node(generation).filter(usable);
            }
            let pool = locked(pool);
            let usable = |pool: &&PrimaryPool| {
                pool.generation == generation && !pool.spoiled.load(Ordering::Acquire)
            };
            pool.as_ref().filter(usable).cloned()
        };
        if let Some(current) = current(locator.generation()) {
            return Ok(current);
        }
        // Who has no time does not wait for nodes that are asked who the primary is, either.
        let primary = tokio::time::timeout(lending.answer, Box::pin(locator.primary())).await;
        let primary = primary.unwrap_or_else(|_| {
            let ms = lending.answer.as_millis();
            Err(BusError::Pool(format!(
                "no primary was found within {ms} ms"
            )))
        })?;
        // Another one may have made it meanwhile.
        if let Some(current) = current(primary.generation) {
            return Ok(current);
        }
        let made = PrimaryPool::new(
            &self.url,
            self.tls.apply(primary.info)?,
            primary.generation,
            *lending,
            self.known.clone(),
            self.slot().is_some(),
        )?;
        let old = match by_node {
            true => family.keep(&made),
            false => locked(pool).replace(made.clone()),
        };
        if let Some(old) = old {
            old.pool.close();
        }
        Ok(made)
    }

    /// Gives up all pooled connections, those that are lent now as well: after a failover they lead to a replica,
    /// and wires that died silently would be waited for one after the other.
    #[doc(hidden)]
    pub fn forget_pooled(&self) {
        match &self.place {
            Destination::Server { pool, .. } => {
                pool.manager().forget();
                pool.retain(|_, _| false);
            }
            Destination::Moving {
                pool,
                family,
                locator,
                ..
            } => {
                let old = match self.is_by_node() {
                    true => family.give_up(locator.generation()),
                    false => locked(pool).take(),
                };
                if let Some(old) = old {
                    old.pool.close();
                }
            }
        }
    }
}
