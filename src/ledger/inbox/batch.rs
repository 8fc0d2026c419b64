//! The same for a batch: one transaction, with the identity of every event in it.

use super::{Effect, TAKEN, identity, unavailable};
use crate::handler::batch::Batch;
use crate::handler::context::Context;
use crate::ledger::dialect::{Dialect, Identity, NOTHING};
use crate::protocol::error::HandlerError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Pool;
use std::collections::BTreeMap;

impl Batch {
    /// Runs `effect` in one transaction, once for each event: it is given the places of the events that no earlier run
    /// has committed, and returns an outcome for each of those. The outcomes of all events come back, those of earlier
    /// runs among them.
    ///
    /// An event whose outcome is an error has had no effect by that: what `effect` wrote for it is its own business
    /// (it writes nothing for those, or takes it back to a savepoint). If `effect` itself fails, all is rolled back.
    /// The rest is as with [`Context::once`](crate::Context::once).
    ///
    /// # Errors
    /// What `effect` returns. `internal` for a wrong number of outcomes. Otherwise see
    /// [`Context::once`](crate::Context::once); what concerns one event only is that one's outcome.
    pub async fn once<DB, R, F>(
        &self,
        pool: &Pool<DB>,
        effect: F,
    ) -> Result<Vec<Result<R, HandlerError>>, HandlerError>
    where
        DB: Dialect,
        R: Serialize + DeserializeOwned,
        F: AsyncFnOnce(
            &mut DB::Connection,
            Vec<usize>,
        ) -> Result<Vec<Result<R, HandlerError>>, HandlerError>,
    {
        let of_each = self.events().iter().map(Context::effect);
        let begun: Option<Vec<Effect<'_>>> = of_each.map(Effect::begin).collect();
        let Some(once) = begun else {
            let message = "once: called a second time in one run: put all effects into one";
            return Err(HandlerError::internal(message).permanent());
        };
        let mut lot = Identities::of(self);
        let begun = pool.begin_with(DB::BEGIN).await;
        let mut transaction = begun.map_err(|error| match error {
            sqlx::Error::PoolTimedOut => HandlerError::later(TAKEN, error.to_string()),
            error => unavailable(error),
        })?;
        let done = async {
            let all = lot.all();
            let firsts = DB::receive_all(&mut transaction, &all).await;
            for (identity, first) in all.iter().zip(firsts.map_err(unavailable)?) {
                if !first {
                    let earlier = DB::received(&mut transaction, identity).await;
                    lot.ran(identity, earlier.map_err(unavailable)?.unwrap_or_default());
                }
            }
            let new = lot.unknown();
            if new.is_empty() {
                return Ok(());
            }
            let outcomes = effect(&mut transaction, new.clone()).await?;
            if outcomes.len() != new.len() {
                let (given, events) = (outcomes.len(), new.len());
                let message = format!("once: {given} outcomes for {events} events that are new");
                return Err(HandlerError::internal(message));
            }
            let mut kept = Vec::with_capacity(new.len());
            for (at, outcome) in new.into_iter().zip(outcomes) {
                let Some(identity) = lot.identity(at) else {
                    continue;
                };
                match outcome.and_then(|result| encoded(&result)) {
                    Ok(result) => {
                        lot.ran(&identity, result.clone());
                        if result != NOTHING {
                            kept.push((identity, result));
                        }
                    }
                    Err(error) => {
                        let forgot = DB::forget(&mut transaction, &identity).await;
                        forgot.map_err(unavailable)?;
                        lot.failed(&identity, error);
                    }
                }
            }
            DB::keep_all(&mut transaction, kept)
                .await
                .map_err(unavailable)
        }
        .await;
        let ended = DB::end(transaction, done.is_ok()).await;
        done?;
        // Without an answer it may have been committed: the next run finds out.
        ended.map_err(unavailable)?;
        once.into_iter().for_each(Effect::took);
        Ok(lot.outcomes())
    }
}

fn encoded<R: Serialize>(result: &R) -> Result<Vec<u8>, HandlerError> {
    rmp_serde::to_vec_named(result).map_err(|error| {
        let message = format!("the result cannot be encoded: {error}");
        HandlerError::internal(message).permanent()
    })
}

/// Source and id: type and bus are the same for all of a batch.
type Name = (String, String);

/// The events of a batch, and what is known of each.
struct Identities {
    /// Of each event, or why it has none.
    names: Vec<Result<Name, HandlerError>>,
    /// By name, so that batches that share events take them in one order.
    known: BTreeMap<Name, Known>,
    namespace: String,
    kind: String,
}

struct Known {
    /// The place of the first of that name: who comes twice in a batch is run once.
    place: usize,
    outcome: Option<Result<Vec<u8>, HandlerError>>,
}

impl Identities {
    fn of(batch: &Batch) -> Self {
        let (mut known, mut of_all) = (BTreeMap::new(), None);
        let mut names = Vec::with_capacity(batch.events().len());
        for (place, context) in batch.events().iter().enumerate() {
            let name = identity(context.event(), context.keys()).map(|identity| {
                of_all = Some((identity.namespace, identity.kind));
                (identity.source, identity.event)
            });
            if let Ok(name) = &name {
                let outcome = None;
                known
                    .entry(name.clone())
                    .or_insert(Known { place, outcome });
            }
            names.push(name);
        }
        let (namespace, kind) = of_all.unwrap_or_default();
        Self {
            names,
            known,
            namespace,
            kind,
        }
    }

    fn of_name(&self, (source, event): &Name) -> Identity {
        Identity {
            namespace: self.namespace.clone(),
            kind: self.kind.clone(),
            source: source.clone(),
            event: event.clone(),
        }
    }

    /// Each once, in order.
    fn all(&self) -> Vec<Identity> {
        self.known.keys().map(|name| self.of_name(name)).collect()
    }

    /// The places of those of which nothing is known, in the order of the batch.
    fn unknown(&self) -> Vec<usize> {
        let new = self.known.values().filter(|known| known.outcome.is_none());
        let mut places: Vec<usize> = new.map(|known| known.place).collect();
        places.sort_unstable();
        places
    }

    fn identity(&self, place: usize) -> Option<Identity> {
        let name = self.names.get(place)?.as_ref().ok()?;
        Some(self.of_name(name))
    }

    fn set(&mut self, identity: &Identity, outcome: Result<Vec<u8>, HandlerError>) {
        let name = (identity.source.clone(), identity.event.clone());
        if let Some(known) = self.known.get_mut(&name) {
            known.outcome = Some(outcome);
        }
    }

    fn ran(&mut self, identity: &Identity, result: Vec<u8>) {
        self.set(identity, Ok(result));
    }

    fn failed(&mut self, identity: &Identity, error: HandlerError) {
        self.set(identity, Err(error));
    }

    /// The outcome of each event.
    fn outcomes<R: DeserializeOwned>(self) -> Vec<Result<R, HandlerError>> {
        let Self { names, known, .. } = self;
        let unknown = || HandlerError::internal("once: an event without an outcome");
        let outcome = |name: Result<Name, HandlerError>| {
            let known = known.get(&name?).and_then(|known| known.outcome.as_ref());
            let result = known.ok_or_else(unknown)?.as_ref().map_err(Clone::clone)?;
            rmp_serde::from_slice(result).map_err(|error| {
                let message =
                    format!("the result of the event's earlier run cannot be read: {error}");
                HandlerError::internal(message).permanent()
            })
        };
        names.into_iter().map(outcome).collect()
    }
}
