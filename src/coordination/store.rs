//! Where the shared rules run: key names, connections, and what to do when a connection was bad.

use crate::connect::clock::ServerTime;
use crate::connect::connector::{Connector, Pooled};
use crate::connect::epoch::Epoch;
use crate::connect::error::{BusError, Reaction};
use crate::protocol::keys::Keys;
use redis::{FromRedisValue, Pipeline, ScriptInvocation};
use std::collections::BTreeSet;

/// The keys of one namespace and the way to the server that has them. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Store {
    pub connector: Connector,
    pub keys: Keys,
    /// The only history of the server in which calls are made; `None`: in any.
    pub epoch: Option<Epoch>,
}

impl Store {
    pub(super) fn new(connector: Connector, keys: Keys) -> Self {
        Self {
            connector,
            keys,
            epoch: None,
        }
    }

    /// The same for calls that belong to what was written in that history: in another one they fail.
    pub(super) fn within(&self, epoch: Epoch) -> Self {
        Self {
            epoch: Some(epoch),
            ..self.clone()
        }
    }

    /// The same by another way to the same server.
    pub(super) fn by(&self, connector: Connector) -> Self {
        Self {
            connector,
            ..self.clone()
        }
    }

    async fn pooled(&self) -> Result<Pooled, BusError> {
        let connection = self.connector.pooled().await?;
        // After it was lent: it leads into a history that was seen.
        if let Some(epoch) = self.epoch {
            self.connector.check_epoch(epoch)?;
        }
        Ok(connection)
    }

    /// Runs a script on a pooled connection; once more on a fresh one if the connection was bad,
    /// so only for scripts that can be repeated.
    pub(super) async fn invoke<T: FromRedisValue>(
        &self,
        call: &ScriptInvocation<'_>,
    ) -> Result<T, BusError> {
        match self.invoke_once(call).await {
            Err(error) if error.reaction() == Reaction::Reconnect => {
                self.connector.forget_pooled();
                self.invoke_once(call).await
            }
            done => done,
        }
    }

    async fn invoke_once<T: FromRedisValue>(
        &self,
        call: &ScriptInvocation<'_>,
    ) -> Result<T, BusError> {
        let mut connection = self.pooled().await?;
        Ok(call.invoke_async(&mut connection).await?)
    }

    /// Runs commands on a pooled connection; once more on a fresh one if the connection was bad, so only
    /// reads, and writes that can be repeated.
    pub(super) async fn ask<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, BusError> {
        match self.ask_once(commands).await {
            Err(error) if error.reaction() == Reaction::Reconnect => {
                self.connector.forget_pooled();
                self.ask_once(commands).await
            }
            done => done,
        }
    }

    /// The server's time in Unix ms.
    pub(super) async fn now(&self) -> Result<u64, BusError> {
        let mut reads = redis::pipe();
        self.ask_time(&mut reads).await?;
        let (ServerTime(now),) = self.ask(&reads).await?;
        Ok(now)
    }

    /// The same of a server that serves the control plane: the node of a cluster tells its time to whoever asks, even
    /// where it answers nothing else (CLUSTERDOWN).
    pub(super) async fn now_if_served(&self) -> Result<u64, BusError> {
        if !self.connector.is_cluster() {
            return self.now().await;
        }
        let mut reads = redis::pipe();
        self.ask_time(&mut reads).await?;
        reads.exists(self.keys.broadcast());
        let (ServerTime(now), _): (_, u64) = self.ask(&reads).await?;
        Ok(now)
    }

    /// Adds the question for the server's time, which a [`ServerTime`] answers.
    pub(super) async fn ask_time(&self, reads: &mut Pipeline) -> Result<(), BusError> {
        let clock = self.connector.clock().await?;
        reads.add_command(clock.question(&self.keys.broadcast()));
        Ok(())
    }

    async fn ask_once<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, BusError> {
        let mut connection = self.pooled().await?;
        Ok(commands.query_async(&mut connection).await?)
    }
}

/// A set as scripts take it: words with one space between them, sorted.
pub(super) fn words(set: &BTreeSet<String>) -> String {
    let words: Vec<&str> = set.iter().map(String::as_str).collect();
    words.join(" ")
}
