//! Events that are parked, since they are paused or behind such ones.

use super::{Gathering, PLACES, text};
use crate::cli::choose;
use crate::cli::trace::step::{Deed, Step};
use convoke::connect::error::allowed;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::policies::{Documents, Policies};
use convoke::operator::parked::{self, ParkedEvent, ParkedPages};
use convoke::protocol::keys::{self, StreamName};
use std::sync::Arc;

impl Gathering<'_> {
    /// Events that are parked, and by what they are paused.
    pub(in crate::cli::trace) async fn parked(&mut self) -> anyhow::Result<()> {
        let names = &self.flags.streams;
        let streams = choose::streams(&self.within, &self.keys, names, &PLACES).await?;
        let mut held = None;
        for stream in streams {
            let Some(route) = parked::beside(&self.keys, &stream) else {
                continue;
            };
            for kind in parked::kinds(&mut self.connection, &route).await? {
                let held = match &mut held {
                    Some(held) => held,
                    none => none.insert(self.policies().await?),
                };
                let mut pages = ParkedPages::of(&route, &kind.kind, self.sight.limit());
                while let Some(page) = pages.next(&mut self.connection).await? {
                    for one in page {
                        self.waits_parked(&stream, &kind.kind, &one, held);
                    }
                }
            }
        }
        Ok(())
    }

    /// What operators ask; nothing where the user may not look.
    async fn policies(&self) -> anyhow::Result<Arc<Documents>> {
        let policies = Policies::new(self.connector.clone(), self.keys.clone());
        match policies.refresh().await {
            Err(CoordinationError::Bus(error)) => drop(allowed(Err::<(), _>(error))?),
            read => drop(read?),
        }
        Ok(policies.held())
    }

    fn waits_parked(
        &mut self,
        stream: &StreamName,
        kind: &str,
        one: &ParkedEvent,
        held: &Documents,
    ) {
        let event = &one.event;
        let id = text(event, "id").unwrap_or_else(|| one.token.clone());
        if one.place < self.from
            || !self.flags.fit(event, &one.token) && !self.is_meant(event, &one.token)
            || !self.follow(&id, &stream.key, one.token.clone(), event)
        {
            return;
        }
        let domain = keys::domain_of(kind);
        let subject = text(event, "subject").unwrap_or_default();
        let paused = held
            .pause_of_type(kind, domain, self.now)
            .or_else(|| held.pause_of_subject(domain, &subject, self.now));
        let said = match paused {
            Some(paused) => format!("parked: {}", paused.reason()),
            None => "parked: it goes on in a moment, or behind others of its subject".to_owned(),
        };
        self.add(Step::new(Deed::Stands, self.now, &id, &stream.key, said));
    }
}
