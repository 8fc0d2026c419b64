//! How a worker joins the bus and the registry, as often as it takes.

use super::keeper::Pulsed;
use super::lanes::Lanes;
use super::limiting;
use super::making::Running;
use super::supervisor::Supervisor;
use super::{Ending, RunError, Worker};
use crate::connect::backoff::Backoff;
use crate::connect::error::{BusError, Reaction};
use crate::coordination::catalog::Method;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::Registered;
use crate::coordination::instances::instance::Registering;
use crate::protocol::pattern::{Pattern, Patterned};
use crate::streams::park;
use std::collections::HashSet;
use std::time::Instant;

/// What a worker began.
pub(super) struct Begin {
    pub(super) registered: Registered,
    /// When it pulsed so far.
    pub(super) pulsed: Pulsed,
    pub(super) running: Running,
    pub(super) supervisor: Supervisor,
}

impl RunError {
    /// Whether it may come right by itself: the same again, later.
    fn passes(&self) -> bool {
        match self {
            RunError::Bus(error) | RunError::Registration(CoordinationError::Bus(error)) => {
                error.reaction() != Reaction::GiveUp
            }
            RunError::Registration(error) => matches!(error, CoordinationError::Contended { .. }),
            _ => false,
        }
    }
}

impl Worker {
    /// The same, once it is known whether its URL leads to a cluster; `None` if the worker is to end before that.
    pub(super) async fn found(self, ending: &Ending) -> Result<Option<Self>, RunError> {
        let mut backoff = Backoff::default();
        loop {
            match self.process.connector.find_cluster().await {
                Ok(None) => return Ok(Some(self)),
                Ok(Some(url)) => {
                    tracing::info!(redis = %url, "the server is a node of a cluster: its other nodes are asked for");
                    return Ok(Some(self.toward(url)?));
                }
                Err(error) => {
                    let error = RunError::from(error);
                    if !error.passes() {
                        return Err(error);
                    }
                    if !self.waits(&error, &mut backoff, ending).await {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Waits before the next try to join; false if the worker is to end before that.
    async fn waits(&self, error: &RunError, backoff: &mut Backoff, ending: &Ending) -> bool {
        if !backoff.is_failing() {
            tracing::warn!(redis = %self.settings.redis_url, %error, "the bus cannot be joined yet; trying again");
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.failed()) => true,
            () = ending.drain.cancelled() => false,
        }
    }

    /// Joins registry and bus and starts the lanes, as soon as the bus can be joined; `None` if the
    /// worker is to end before that.
    pub(super) async fn join(
        &self,
        lanes: &mut Lanes,
        registering: &Registering,
        methods: &[(String, Method)],
        ending: &Ending,
    ) -> Result<Option<Begin>, RunError> {
        let supervisor = Supervisor::new(self.id(), ending);
        let pulsed = Pulsed::default();
        let begun = async {
            let mut backoff = Backoff::default();
            loop {
                let begun = self.begin(lanes, registering, methods, &supervisor, &pulsed);
                match begun.await {
                    Ok(begun) => break Ok(Some(begun)),
                    Err(error) if !error.passes() => break Err(error),
                    Err(error) if self.waits(&error, &mut backoff, ending).await => {}
                    Err(_) => break Ok(None),
                }
            }
        };
        // What is asked between registration and work may hang, and the keeper is not there yet.
        let begun = tokio::select! {
            begun = begun => begun,
            never = pulsed.keep(self) => match never {},
        };
        match begun {
            Ok(Some((registered, running))) => Ok(Some(Begin {
                registered,
                pulsed,
                running,
                supervisor,
            })),
            given_up => {
                if let Some(incarnation) = pulsed.incarnation() {
                    self.unregister(incarnation).await;
                }
                given_up.map(|_| None)
            }
        }
    }

    /// Joins registry and bus, and notes as which incarnation as soon as it is registered; can be
    /// repeated.
    async fn begin(
        &self,
        lanes: &mut Lanes,
        registering: &Registering,
        methods: &[(String, Method)],
        supervisor: &Supervisor,
        pulsed: &Pulsed,
    ) -> Result<(Registered, Running), RunError> {
        self.process.connector.check_server().await?;
        // Before it is registered: whoever sees that it has a handler also sees what that one is.
        match self.catalog.publish(methods).await {
            Err(CoordinationError::Bus(error)) if error.reaction() != Reaction::GiveUp => {
                return Err(error.into());
            }
            Err(error) => {
                tracing::warn!(%error, "what the handlers are could not be published; trying again later");
            }
            Ok(()) => {}
        }
        lanes.split().await?;
        let (group, kinds) = (&self.settings.group, &registering.capabilities);
        let reads = self.instances.reads(group, self.id(), kinds).await;
        reads.map_err(RunError::Registration)?;
        // What an older process of this id was at when it died would run here again, and kill this
        // one too if that was why.
        let left = self.tasks.release(self.id()).await;
        if left.map_err(RunError::Registration)? > 0 {
            tracing::warn!(
                instance = self.id(),
                "an older process of this id left tasks behind: they were assigned again"
            );
        }
        let asked = Instant::now();
        let registered = self.instances.register(registering).await;
        let registered = registered.map_err(RunError::Registration)?;
        pulsed.note(registered.incarnation, asked);
        if let Err(error) = self.patterns.refresh().await {
            tracing::debug!(%error, "which patterns were chosen is not known yet");
        }
        self.know_what_waits(lanes).await?;
        if !registered.new {
            tracing::warn!(
                instance = self.id(),
                "an instance of this id was alive already: this one takes its place"
            );
        }
        let gone = lanes.begin_with_the_gone(&self.process, &self.instances);
        match gone.await.map_err(RunError::Registration) {
            Err(error) if error.passes() => return Err(error),
            // The watcher looks for them again.
            Err(error) => tracing::debug!(%error, "who is gone and holds entries is not known"),
            Ok(()) => {}
        }
        Ok((registered, lanes.start(supervisor).await?))
    }

    /// Learns what is paused, which is not to begin, and of which types something waits: nothing else is weighed, so
    /// that the first events begin in their order.
    async fn know_what_waits(&self, lanes: &Lanes) -> Result<(), RunError> {
        match self.policies.refresh().await {
            Err(CoordinationError::Bus(error)) if error.reaction() != Reaction::GiveUp => {
                return Err(error.into());
            }
            Err(error) => tracing::warn!(%error, "what is paused is not known yet"),
            Ok(_) => {}
        }
        let Some(pausing) = lanes.shared().first().map(|lane| lane.pausing.clone()) else {
            return Ok(());
        };
        pausing.changed();
        limiting::follow(lanes.router(), &pausing.held());
        let before = pausing.before_a_look();
        let found = async {
            let mut waits = HashSet::new();
            for lane in lanes.list().now().iter().filter(|lane| lane.name == "data") {
                let routes: Vec<_> = lane.routes.iter().collect();
                let mut connection = lane.connector.pooled().await?;
                let found = park::kinds(&mut connection, &routes).await?;
                waits.extend(found.into_iter().flatten());
            }
            Ok::<_, BusError>(waits)
        };
        match found.await {
            Ok(waits) => pausing.looked(&before, &waits),
            // The keeper looks again; until then they are weighed.
            Err(error) => tracing::debug!(%error, "whether anything is parked is not known"),
        }
        Ok(())
    }

    pub(super) fn registering(&self, lanes: &Lanes) -> Registering {
        let settings = &self.settings;
        Registering {
            id: settings.id.clone(),
            roles: settings.role.clone(),
            capacity: settings.capacity,
            capabilities: lanes.capabilities(),
            metadata: Vec::new(),
            ttl_ms: settings.heartbeat_ttl.as_millis() as u64,
            incarnation: None,
            announces: self.patterns.of(Patterned::Register) != Pattern::Centralized,
        }
    }
}
