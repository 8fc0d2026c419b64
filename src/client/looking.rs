//! Looks how many partitions domains have, before what is published is given to one of them.

use super::Client;
use super::publish::{Outgoing, PublishError};
use crate::connect::backoff::Backoff;
use crate::connect::clock::NEVER;
use crate::connect::error::{BusError, Reaction};
use crate::mutex::locked;
use crate::protocol::keys;
use crate::streams::domains::{self, Use};
use redis::Value;
use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// How old what is known may be. After a change, workers wait for several times as long before they read what is new.
const FRESH: Duration = Duration::from_secs(1);
/// How long a look may take where something is known: what is published goes on without it.
const PATIENCE: Duration = Duration::from_millis(500);

/// When one looked last.
#[derive(Default)]
pub(super) struct Looked {
    at: Mutex<HashMap<String, Instant>>,
    turn: tokio::sync::Mutex<()>,
}

impl Looked {
    /// The domains that were not looked at of late.
    fn stale_of<'a>(&self, domains: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
        let at = locked(&self.at);
        let is_fresh = |domain: &str| at.get(domain).is_some_and(|at| at.elapsed() < FRESH);
        let all = domains.into_iter();
        all.filter(|domain| !is_fresh(domain)).collect()
    }

    fn now(&self, domains: &[&str]) {
        let (mut at, now) = (locked(&self.at), Instant::now());
        for domain in domains {
            match at.get_mut(*domain) {
                Some(at) => *at = now,
                None => _ = at.insert((*domain).to_owned(), now),
            }
        }
    }
}

impl Client {
    /// Knows, of late, how many partitions the domains of these events have.
    pub(super) async fn look(&self, events: &[&Outgoing]) -> Result<(), PublishError> {
        let (keys, looked) = (&self.0.keys, &self.0.looked);
        if keys.set_partitions().is_none() {
            return Ok(());
        }
        let all = events.iter().map(|event| keys::domain_of(event.kind()));
        let all: BTreeSet<&str> = all.filter(|domain| keys.is_split(domain)).collect();
        let stale = looked.stale_of(all);
        if stale.is_empty() {
            return Ok(());
        }
        // Apart: it is rare, and large.
        Box::pin(self.look_for(stale)).await
    }

    async fn look_for(&self, stale: Vec<&str>) -> Result<(), PublishError> {
        let (keys, looked) = (&self.0.keys, &self.0.looked);
        let known = stale.iter().all(|domain| keys.domain(domain).is_some());
        let _turn = match looked.turn.try_lock() {
            Ok(turn) => turn,
            // Somebody looks now.
            Err(_) if known => return Ok(()),
            Err(_) => looked.turn.lock().await,
        };
        let stale = looked.stale_of(stale);
        let found = match known {
            true => tokio::time::timeout(PATIENCE, self.look_now(&stale)).await,
            false => Ok(self.look_until_known(&stale).await),
        };
        match found {
            Ok(Ok(())) => {}
            Ok(Err(error)) if !known => return Err(PublishError::unsent(error)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "how many partitions there are now is not known")
            }
            Err(_) => tracing::debug!("how many partitions there are now was not said in time"),
        }
        looked.now(&stale);
        Ok(())
    }

    /// Without it nothing can be published: again, for as long as the client is patient.
    async fn look_until_known(&self, domains: &[&str]) -> Result<(), BusError> {
        let give_up = Instant::now() + self.0.patience.min(NEVER);
        let mut backoff = Backoff::default();
        loop {
            let found = self.look_now(domains).await;
            let passes = |error: &BusError| error.reaction() != Reaction::GiveUp;
            let pause = backoff.failed();
            if !found.as_ref().is_err_and(passes) || Instant::now() + pause > give_up {
                return found;
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn look_now(&self, domains: &[&str]) -> Result<(), BusError> {
        let link = &self.0.ways.home.link;
        let mut lent = link.get().await.map_err(BusError::Pool)?;
        let sending = link.sending(&lent);
        let found = domains::learn(&mut lent.connection, &self.0.keys, domains, Use::Works).await;
        let outcome = match &found {
            Err(BusError::Redis(error)) => Err(error.clone()),
            _ => Ok(Value::Nil),
        };
        sending.done(&outcome);
        found
    }
}
