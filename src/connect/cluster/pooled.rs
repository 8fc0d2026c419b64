//! A pooled connection to a cluster: each command goes to the node of its key.
//!
//! What a node refuses since the slot is elsewhere or on its way was not run, and is sent again: where the slot is now,
//! or a little later. Nothing else is repeated.

use super::routing::{is_of_scripts, slot_of_command, slot_of_pipeline};
use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::connect::pool::Lent;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, Value};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// Connections to other slots that one borrower holds at a time.
const HELD: usize = 8;
/// For how long what is refused since its slot moves is sent again.
const PATIENCE: Duration = Duration::from_secs(2);
/// The first pause before that, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// The connections of one borrower.
pub(crate) struct Routed {
    connector: Connector,
    home: u16,
    /// Where the last command with a key went: a script that is missing is missing there.
    last: u16,
    /// By slot, or by node where they share connections.
    lent: HashMap<u64, Lent>,
}

/// What the word of an error says of the slot: nothing was run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// Another node has it.
    Moved,
    /// The slot is on its way.
    Open,
}

fn refusal(code: Option<&str>) -> Option<Refusal> {
    match code? {
        "MOVED" => Some(Refusal::Moved),
        "ASK" | "TRYAGAIN" => Some(Refusal::Open),
        _ => None,
    }
}

fn refused(value: &Value) -> Option<Refusal> {
    match value {
        Value::ServerError(error) => refusal(Some(error.code())),
        _ => None,
    }
}

/// Whether an answer says that the slot is elsewhere, or on its way.
#[cfg(feature = "worker")]
pub(crate) fn is_elsewhere(value: &Value) -> bool {
    refused(value).is_some()
}

/// The pauses between tries.
struct Pauses {
    next: Duration,
    until: Instant,
}

impl Pauses {
    fn new() -> Self {
        Self {
            next: PAUSES.0,
            until: Instant::now() + PATIENCE,
        }
    }

    /// Waits; false once it was waited long enough.
    async fn wait(&mut self) -> bool {
        if Instant::now() + self.next > self.until {
            return false;
        }
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(PAUSES.1);
        true
    }
}

impl Routed {
    pub(crate) fn new(connector: Connector, home: u16, lent: Lent) -> Self {
        Self {
            lent: HashMap::from([(connector.place_of(home), lent)]),
            connector,
            home,
            last: home,
        }
    }

    async fn lent(&mut self, slot: u16) -> RedisResult<&mut Lent> {
        let mut place = self.connector.place_of(slot);
        if !self.lent.contains_key(&place) {
            if self.lent.len() >= HELD {
                self.lent.clear();
            }
            let lent = self.connector.lent_for(slot).await.map_err(unreachable)?;
            // Which node has it may be known only now.
            place = self.connector.place_of(slot);
            self.lent.insert(place, lent);
        }
        let lent = self.lent.get_mut(&place);
        lent.ok_or_else(|| (ErrorKind::Io, "no connection").into())
    }

    /// What was learned from a refusal, or from a connection that broke.
    fn learn(&mut self, slot: u16, refusal: Option<Refusal>, broken: bool) {
        if broken || refusal == Some(Refusal::Moved) {
            self.lent.remove(&self.connector.place_of(slot));
            self.connector.forget_slot(slot);
        }
    }

    /// Sends a command.
    pub(crate) async fn command(&mut self, command: &Cmd) -> RedisResult<Value> {
        let slot = match slot_of_command(command) {
            Some(slot) => slot,
            None if is_of_scripts(command) => self.last,
            None => self.home,
        };
        self.last = slot;
        let mut pauses = Pauses::new();
        loop {
            let outcome = self.lent(slot).await?.command(command).await;
            let (refusal, broken) = match &outcome {
                Ok(value) => (refused(value), false),
                Err(error) => (refusal(error.code()), error.code().is_none()),
            };
            self.learn(slot, refusal, broken);
            if refusal.is_none() || !pauses.wait().await {
                return outcome;
            }
        }
    }

    /// Sends a pipeline: a transaction to where its first key is, others in parts, one for each slot, or node.
    pub(crate) async fn commands(
        &mut self,
        commands: &Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        if commands.is_transaction() {
            let slot = slot_of_pipeline(commands).unwrap_or(self.home);
            return self.transaction(slot, commands, offset, count).await;
        }
        let mut parts: Vec<(u16, Vec<usize>, Pipeline)> = Vec::new();
        for (at, command) in commands.cmd_iter().enumerate() {
            let slot = slot_of_command(command).unwrap_or(self.home);
            let place = self.connector.place_of(slot);
            let is_there = |(of, _, _): &(u16, _, _)| self.connector.place_of(*of) == place;
            let part = match parts.iter().position(is_there) {
                Some(part) => part,
                None => {
                    parts.push((slot, Vec::new(), Pipeline::new()));
                    parts.len() - 1
                }
            };
            parts[part].1.push(at);
            parts[part].2.add_command(command.clone());
        }
        let mut all = vec![Value::Nil; commands.len()];
        for (slot, places, part) in parts {
            let sent = self
                .lent(slot)
                .await?
                .commands(&part, 0, places.len())
                .await;
            let values = match sent {
                Ok(values) => values,
                Err(error) => {
                    self.learn(slot, refusal(error.code()), error.code().is_none());
                    return Err(error);
                }
            };
            for ((at, value), command) in places.into_iter().zip(values).zip(part.cmd_iter()) {
                let refusal = refused(&value);
                self.learn(slot_of_command(command).unwrap_or(slot), refusal, false);
                all[at] = match refusal {
                    Some(_) => self.command(command).await?,
                    None => value,
                };
            }
        }
        Ok(all.into_iter().skip(offset).take(count).collect())
    }

    async fn transaction(
        &mut self,
        slot: u16,
        commands: &Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        let mut pauses = Pauses::new();
        loop {
            let lent = self.lent(slot).await?;
            let outcome = lent.commands(commands, offset, count).await;
            let (refusal, broken) = match &outcome {
                Ok(values) => (values.first().and_then(refused), false),
                Err(error) => {
                    let first = BusError::from(error.clone());
                    (refusal(first.code()), first.code().is_none())
                }
            };
            self.learn(slot, refusal, broken);
            if refusal.is_none() || !pauses.wait().await {
                return outcome;
            }
        }
    }
}

fn unreachable(error: BusError) -> RedisError {
    match error {
        BusError::Redis(error) | BusError::Unreachable { error, .. } => error,
        other => (ErrorKind::Io, "no connection", other.to_string()).into(),
    }
}
