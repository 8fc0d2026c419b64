//! Many publishes at a time: commands are written straight into a wire's buffer, answers are read
//! where they arrived.
//!
//! Each caller borrows a [`Wire`] of its own, so its events stay in order and callers do not wait for
//! each other. A wire is given back only when all that was asked on it is answered.

use crate::client::is_of_slots;
use crate::client::publish::{Answer, Defaults, Outgoing, PublishError, Published, Streams};
use crate::connect::connector::Connector;
use crate::connect::error::{BusError, Reaction};
use crate::connect::gate::Gate;
use crate::connect::resp::wire::{Commands, Wire};
use crate::mutex::locked;
use crate::protocol::keys::Keys;
use redis::ErrorKind;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Events in one pipeline, and about how many bytes of payload.
const PIPELINE: (usize, usize) = (512, 4 << 20);
/// Pipelines of one caller that are not answered yet.
const AHEAD: usize = 2;
/// Wires that are lent at a time, and that are kept while they idle.
const WIRES: (usize, usize) = (16, 4);

/// What became of an event; none if it is to be published by itself: it wants a confirmation, or the
/// server lacks the script.
pub(crate) type Sent = Option<Result<Published, PublishError>>;

/// Publishes in pipelines.
pub(crate) struct Pipelines {
    connector: Connector,
    idle: Mutex<Vec<Line>>,
    lent: Semaphore,
    gate: Gate,
}

/// A wire with its buffer.
struct Line {
    wire: Wire,
    commands: Commands,
}

/// A line that a caller holds.
struct Lent<'a> {
    line: Line,
    _one_of: SemaphorePermit<'a>,
}

/// Events that were sent in one go: which of the caller's. Those that have an outcome already or want a
/// confirmation were not sent.
type Chunk = Range<usize>;

impl Pipelines {
    pub(super) fn new(connector: Connector) -> Self {
        Self {
            connector,
            idle: Mutex::default(),
            lent: Semaphore::new(WIRES.0),
            gate: Gate::default(),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Line>> {
        locked(&self.idle)
    }

    async fn borrow(&self) -> Result<Lent<'_>, String> {
        let one_of = self.lent.acquire().await;
        let one_of = one_of.map_err(|closed| closed.to_string())?;
        let find = || {
            let mut idle = self.idle();
            std::iter::from_fn(|| idle.pop())
                .find_map(|mut line| line.wire.is_quiet().then_some(line))
        };
        let open = async {
            Ok(Line {
                wire: self.connector.wire().await?,
                commands: Commands::default(),
            })
        };
        Ok(Lent {
            line: self.gate.pass(find, open).await?,
            _one_of: one_of,
        })
    }

    fn give_back(&self, lent: Lent<'_>) {
        let mut idle = self.idle();
        if idle.len() < WIRES.1 {
            idle.push(lent.line);
        }
    }

    /// Publishes events in order, except for those that are to be published by themselves.
    pub(super) async fn publish(
        &self,
        events: &[&Outgoing],
        keys: &Keys,
        partition: Option<u16>,
        defaults: &Defaults,
    ) -> Vec<Sent> {
        let mut call = Call::new(events, keys, defaults);
        call.partition = partition;
        while !call.is_over() {
            match self.borrow().await {
                Ok(mut lent) => match call.go_on(&mut lent.line).await {
                    Ok(true) => self.give_back(lent),
                    Ok(false) => {}
                    Err(error) => call.no_answer(error),
                },
                Err(reason) => call.skip(&reason),
            }
        }
        call.outcomes
    }
}

/// One caller's events and how far they are.
struct Call<'a> {
    events: &'a [&'a Outgoing],
    /// Of all of them, where that was chosen.
    partition: Option<u16>,
    outcomes: Vec<Sent>,
    streams: Streams<'a>,
    defaults: &'a Defaults,
    /// The first that was not looked at yet.
    next: usize,
    sent: VecDeque<Chunk>,
}

impl<'a> Call<'a> {
    fn new(events: &'a [&'a Outgoing], keys: &'a Keys, defaults: &'a Defaults) -> Self {
        let mut outcomes = Vec::new();
        outcomes.resize_with(events.len(), || None);
        Self {
            events,
            partition: None,
            outcomes,
            streams: Streams::of(keys),
            defaults,
            next: 0,
            sent: VecDeque::with_capacity(AHEAD),
        }
    }

    fn is_over(&self) -> bool {
        self.next == self.events.len() && self.sent.is_empty()
    }

    /// Publishes what is left, or ends early if the wire leads to a server that is of no use: false.
    async fn go_on(&mut self, line: &mut Line) -> Result<bool, BusError> {
        let mut usable = true;
        loop {
            if usable && self.next < self.events.len() && self.sent.len() < AHEAD {
                let chunk = self.pack(&mut line.commands);
                if !line.commands.is_empty() {
                    match line.wire.send(&mut line.commands).await {
                        Err(error @ BusError::Moved) => {
                            self.reject(chunk, &error.to_string());
                            return Err(error);
                        }
                        sent => {
                            self.sent.push_back(chunk);
                            sent?;
                        }
                    }
                }
            } else if !self.sent.is_empty() {
                usable &= self.answers(&mut line.wire).await?;
                self.sent.pop_front();
            } else {
                return Ok(usable);
            }
        }
    }

    /// Writes the commands of the next events.
    fn pack(&mut self, commands: &mut Commands) -> Chunk {
        let begin = self.next;
        let mut bytes = 0;
        while let Some(event) = self.events.get(self.next)
            && commands.len() < PIPELINE.0
            && bytes < PIPELINE.1
        {
            let at = self.next;
            self.next += 1;
            if event.confirm.is_some() {
                continue;
            }
            let chosen = self.partition;
            let partition = chosen.unwrap_or_else(|| event.partition(self.streams.keys()));
            match event.write(commands, &mut self.streams, partition, self.defaults) {
                Ok(_) => bytes += event.size(),
                Err(error) => self.outcomes[at] = Some(Err(error)),
            }
        }
        begin..self.next
    }

    /// Reads the answers to the oldest chunk; whether the server is of use still.
    async fn answers(&mut self, wire: &mut Wire) -> Result<bool, BusError> {
        let mut usable = true;
        let Some(chunk) = self.sent.front() else {
            return Ok(usable);
        };
        for at in chunk.clone() {
            let event = &self.events[at];
            if event.confirm.is_some() || self.outcomes[at].is_some() {
                continue;
            }
            let answer = Answer::from(wire.reply().await?);
            if let Answer::Refused(error) = &answer {
                // To be published by itself, when the script is there.
                if error.code() == Some("NOSCRIPT") {
                    continue;
                }
                // The same, to where its slot is.
                if error.code().is_some_and(is_of_slots) {
                    usable = false;
                    continue;
                }
                usable &= BusError::from(error.clone()).reaction() != Reaction::Reconnect;
            }
            let published = answer.published(&event.id);
            self.outcomes[at] = Some(published.map(|(published, _)| published));
        }
        Ok(usable)
    }

    /// What was sent and not answered is unknown.
    fn no_answer(&mut self, error: BusError) {
        let error = match error {
            BusError::Redis(error) => error,
            other => (ErrorKind::Io, "the connection failed", other.to_string()).into(),
        };
        for chunk in self.sent.drain(..) {
            for at in chunk {
                let event = &self.events[at];
                if event.confirm.is_none() && self.outcomes[at].is_none() {
                    let unknown = PublishError::no_answer(error.clone().into(), &event.id);
                    self.outcomes[at] = Some(Err(unknown));
                }
            }
        }
    }

    /// The next events cannot be sent.
    fn skip(&mut self, reason: &str) {
        let end = self.events.len().min(self.next + PIPELINE.0);
        self.reject(self.next..end, reason);
        self.next = end;
    }

    /// Notes that these events were certainly not sent.
    fn reject(&mut self, events: Range<usize>, reason: &str) {
        for at in events {
            if self.events[at].confirm.is_none() && self.outcomes[at].is_none() {
                self.outcomes[at] = Some(Err(PublishError::unsent(reason)));
            }
        }
    }
}
