//! What publishes: for services, handlers, the command line and tests.

#[doc(hidden)]
pub mod ask;
mod pipelines;
#[doc(hidden)]
pub mod publish;
#[doc(hidden)]
pub mod request;

pub use ask::Ask;
pub use publish::{Doubt, Outgoing, PublishError, Published};
pub use request::RequestError;

use crate::client::pipelines::Pipelines;
use crate::client::publish::{Answer, Confirm, Defaults, PUBLISH, Prepared, When};
use crate::client::request::{Replies, ReplyStreams};
use crate::connect::clock::{NEVER, local_now, whole_ms};
use crate::connect::connector::{Connector, reconnect_delay};
use crate::connect::link::{Lent, Link};
use crate::connect::loaded::{self, may_not_load};
use crate::protocol::event::Limits;
use crate::protocol::keys::{self, Keys, NameError};
use crate::protocol::reply::Reply;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisResult, Value};
use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// How long a published id is remembered, unless something else is set.
pub const DEDUP_WINDOW: Duration = Duration::from_secs(3600);
/// Entries that capped streams keep, about, unless something else is set.
pub const STREAM_HISTORY: u64 = 10_000;
/// How long a reply stream outlives its last reply, unless something else is set.
pub const REPLY_TTL: Duration = Duration::from_secs(3600);
/// The longest that a publish may wait for replicas.
pub const MAX_CONFIRM: Duration = Duration::from_secs(10);

/// The server's code where it lacks a script.
const NO_SCRIPT: &str = "NOSCRIPT";

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The client's name, unique among all that live: 1 to 128 of `A-Z a-z 0-9 . _ -`. It names the
    /// reply stream. None means one made up.
    pub name: Option<String>,
    /// The `source` of its events.
    pub source: Option<String>,
    /// Bounds on events and replies.
    pub limits: Limits,
    /// How long an id that was published with `dedup` is remembered.
    pub dedup_window: Duration,
    /// Entries that the reply stream keeps, about.
    pub stream_history: u64,
    /// How long the reply stream outlives a client that vanished.
    pub reply_ttl: Duration,
    /// For how long a publish with `dedup` is repeated that got no answer, and one that needs a script
    /// waits until somebody who may has loaded it. Zero: never.
    pub patience: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            name: None,
            source: None,
            limits: Limits::default(),
            dedup_window: DEDUP_WINDOW,
            stream_history: STREAM_HISTORY,
            reply_ttl: REPLY_TTL,
            patience: Duration::from_secs(10),
        }
    }
}

/// Publishes events and awaits replies. Cheap to clone; all clones share their connections.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

/// What is known of the script that publishes later, or once only.
struct ScriptState {
    /// The history of the server in which it was there, if it was seen.
    seen_in: AtomicU64,
    /// Whether it was refused to load it, so that others must.
    barred: AtomicBool,
}

/// It was seen in no history.
const NOWHERE: u64 = u64::MAX;

impl Default for ScriptState {
    fn default() -> Self {
        Self {
            seen_in: NOWHERE.into(),
            barred: false.into(),
        }
    }
}

struct Inner {
    keys: Keys,
    name: String,
    defaults: Defaults,
    patience: Duration,
    script: ScriptState,
    /// Publishes share it.
    link: Link,
    /// For many publishes at a time.
    pipelines: Pipelines,
    /// `WAIT` blocks its connection and counts what that one connection wrote.
    confirming: Link,
    turn: tokio::sync::Mutex<()>,
    replies: Replies,
}

impl Inner {
    fn history(&self) -> u64 {
        self.link.connector().history()
    }

    fn saw_script(&self) {
        let history = self.history();
        self.script.seen_in.store(history, Ordering::Relaxed);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.replies.close();
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.0.name)
    }
}

impl Client {
    /// A client; connects when it is first used.
    ///
    /// # Errors
    /// Fails if the name is not one.
    pub fn new(
        connector: Connector,
        keys: Keys,
        options: ClientOptions,
    ) -> Result<Self, NameError> {
        let name = options
            .name
            .unwrap_or_else(|| format!("c-{}", Uuid::now_v7().simple()));
        keys::check_name("client", &name)?;
        let replies = Replies::new(
            connector.clone(),
            ReplyStreams {
                client: name.clone(),
                limits: options.limits,
                history: options.stream_history,
                ttl: options.reply_ttl,
            },
        );
        Ok(Self(Arc::new(Inner {
            keys,
            name,
            defaults: Defaults {
                source: options.source,
                limits: options.limits,
                dedup_window: options.dedup_window,
            },
            patience: options.patience,
            script: ScriptState::default(),
            link: Link::new(connector.clone(), Duration::ZERO),
            pipelines: Pipelines::new(connector.clone()),
            confirming: Link::new(connector, MAX_CONFIRM),
            turn: tokio::sync::Mutex::default(),
            replies,
        })))
    }

    /// Connects now, if it is not connected.
    ///
    /// # Errors
    /// The server cannot be reached: why.
    pub async fn reach(&self) -> Result<(), String> {
        self.0.link.get().await?;
        Ok(())
    }

    /// The client's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The key names.
    pub fn keys(&self) -> &Keys {
        &self.0.keys
    }

    /// Checks an event as publishing it does, without publishing it.
    ///
    /// # Errors
    /// [`PublishError::Rejected`]: it can never be stored as it is.
    pub fn check(&self, event: &Outgoing) -> Result<(), PublishError> {
        let partition = event.partition(&self.0.keys);
        event.prepare(&self.0.keys, partition, &self.0.defaults)?;
        Ok(())
    }

    /// Publishes an event.
    ///
    /// With `dedup`, a publish that got no answer is repeated for up to
    /// [`patience`](ClientOptions::patience). Giving the future up leaves the outcome unknown.
    ///
    /// # Errors
    /// [`PublishError::Rejected`]: certainly not stored. [`PublishError::Unknown`]: may be stored.
    pub async fn publish(&self, event: impl Borrow<Outgoing>) -> Result<Published, PublishError> {
        let event = event.borrow();
        let partition = event.partition(&self.0.keys);
        let prepared = event.prepare(&self.0.keys, partition, &self.0.defaults)?;
        self.publish_prepared(event, &prepared).await
    }

    async fn publish_prepared(
        &self,
        event: &Outgoing,
        prepared: &Prepared,
    ) -> Result<Published, PublishError> {
        let give_up = Instant::now() + self.0.patience.min(NEVER);
        let mut outcome = self.store(event, prepared).await;
        let mut failures = 0;
        while event.dedup && is_unanswered(&outcome) || lacks_script(&outcome) {
            if lacks_script(&outcome) {
                self.0.script.seen_in.store(NOWHERE, Ordering::Relaxed);
            }
            let pause = reconnect_delay(failures);
            failures += 1;
            if Instant::now() + pause > give_up {
                break;
            }
            tokio::time::sleep(pause).await;
            match self.store(event, prepared).await {
                // Rejected now says nothing of the try before, which may have been stored.
                Err(PublishError::Rejected { .. }) if is_unanswered(&outcome) => {}
                again => outcome = again,
            }
        }
        outcome
    }

    async fn store(
        &self,
        event: &Outgoing,
        prepared: &Prepared,
    ) -> Result<Published, PublishError> {
        if let Some(confirm) = event.confirm {
            return self.store_confirmed(event, prepared, confirm).await;
        }
        let link = &self.0.link;
        let mut lent = link.get().await.map_err(PublishError::unsent)?;
        let sending = link.sending(&lent);
        let mut reply = lent.connection.send_packed_command(&prepared.command).await;
        if is_no_script(&reply) {
            reply = match self.has_script(&mut lent.connection).await {
                Ok(true) => lent.connection.send_packed_command(&prepared.command).await,
                Ok(false) => reply,
                Err(error) => Err(error),
            };
        }
        sending.done(&reply);
        let reply = reply.map_err(|error| PublishError::after_sending(error, &event.id))?;
        let (published, _) = Answer::from(&reply).published(&event.id)?;
        if prepared.scripted {
            self.0.saw_script();
        }
        Ok(published)
    }

    /// Has the server know the script that publishes later, or once only; false: it does not, and this
    /// user may not load it.
    async fn has_script(&self, connection: &mut MultiplexedConnection) -> RedisResult<bool> {
        match loaded::known(connection, &[&PUBLISH]).await {
            Ok(known) if known.first() == Some(&true) => return Ok(true),
            Err(error) if error.code().is_none() => return Err(error),
            _ => {}
        }
        if self.0.script.barred.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match PUBLISH.load_async(connection).await {
            Ok(_) => Ok(true),
            Err(error) if may_not_load(&error) => {
                self.0.script.barred.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The same for what is sent in a pipeline, in which nobody loads a script; asks only once in each
    /// history of the server.
    async fn has_script_for(&self, link: &Link, lent: &mut Lent) -> RedisResult<bool> {
        if self.0.script.seen_in.load(Ordering::Relaxed) == self.0.history() {
            return Ok(true);
        }
        let sending = link.sending(lent);
        let there = self.has_script(&mut lent.connection).await;
        sending.done(&there.clone().map(Value::Boolean));
        if matches!(there, Ok(true)) {
            self.0.saw_script();
        }
        there
    }

    /// The same before many are published; it waits for others to load it.
    async fn awaits_script(&self) -> bool {
        let give_up = Instant::now() + self.0.patience;
        let mut failures = 0;
        loop {
            let Ok(mut lent) = self.0.link.get().await else {
                // Publishing finds out why.
                return true;
            };
            let there = self.has_script_for(&self.0.link, &mut lent).await;
            let pause = reconnect_delay(failures);
            failures += 1;
            if !matches!(there, Ok(false)) {
                return true;
            }
            if Instant::now() + pause > give_up {
                return false;
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn store_confirmed(
        &self,
        event: &Outgoing,
        prepared: &Prepared,
        confirm: Confirm,
    ) -> Result<Published, PublishError> {
        if confirm.within > MAX_CONFIRM {
            return Err(PublishError::rejected(format_args!(
                "confirm: waits for {} s at most",
                MAX_CONFIRM.as_secs()
            )));
        }
        let _turn = self.0.turn.lock().await;
        let link = &self.0.confirming;
        let mut lent = link.get().await.map_err(PublishError::unsent)?;
        if prepared.scripted {
            let asked = self.has_script_for(link, &mut lent).await;
            asked.map_err(PublishError::unsent)?;
        }
        let mut pipeline = Pipeline::new();
        pipeline.add_command(prepared.command.clone());
        pipeline.cmd("WAIT").arg(confirm.replicas);
        pipeline.arg(confirm.within.as_millis().max(1) as u64);
        let replies = send_all(link, &mut lent, &pipeline).await;
        let replies = replies.map_err(|error| PublishError::after_sending(error, &event.id))?;
        let stored = replies.first().unwrap_or(&Value::Nil);
        let (published, covered) = Answer::from(stored).published(&event.id)?;
        let confirmed = match replies.get(1) {
            Some(Value::Int(replicas)) if covered => u32::try_from(*replicas).unwrap_or(0),
            _ => 0,
        };
        let wanted = confirm.replicas;
        if confirmed >= wanted {
            return Ok(published);
        }
        let source = match replies.get(1) {
            Some(Value::ServerError(error)) => Doubt::NoConfirmation {
                published,
                reason: error.to_string(),
            },
            _ => Doubt::Unconfirmed {
                published,
                confirmed,
                wanted,
            },
        };
        Err(PublishError::Unknown {
            id: event.id.clone(),
            source,
        })
    }

    /// Publishes many events, in order and in few round trips. The results stand in the order of
    /// the events; each is what [`publish`](Client::publish) would say, but nothing is repeated.
    /// Events that want to be confirmed are published one by one, after the others, and so are those
    /// whose script the server forgot meanwhile.
    pub async fn publish_many(&self, events: &[Outgoing]) -> Vec<Result<Published, PublishError>> {
        let Inner {
            keys,
            defaults,
            pipelines,
            ..
        } = &*self.0;
        let scripted = |event: &Outgoing| event.confirm.is_none() && event.is_scripted();
        let mut lacks = events.iter().any(scripted) && !self.awaits_script().await;
        let results = pipelines.publish(events, keys, defaults).await;
        let mut done = Vec::with_capacity(events.len());
        for (event, result) in events.iter().zip(results) {
            done.push(match result {
                Some(result) => result,
                // It was waited for once.
                None if lacks && event.is_scripted() => Err(PublishError::no_script()),
                None => {
                    let result = self.publish(event).await;
                    lacks |= lacks_script(&result);
                    result
                }
            });
        }
        done
    }

    /// Publishes an event and awaits the reply.
    ///
    /// The event gets an id if it has none, and a deadline of now + `timeout` by the **local** clock
    /// if it has none, so that nobody works for a requester that has gone: where clocks differ by
    /// about `timeout`, set the deadline oneself. If it is unknown whether the event was stored, the
    /// reply is awaited all the same.
    ///
    /// # Errors
    /// See [`RequestError`]; an error reply is [`RequestError::Remote`].
    pub async fn request(
        &self,
        mut event: Outgoing,
        timeout: Duration,
    ) -> Result<Reply, RequestError> {
        let until = Instant::now() + timeout.min(NEVER);
        if event.when != When::Now {
            let refused = PublishError::rejected("delay, at: a request runs at once");
            return Err(refused.into());
        }
        let id = event
            .id
            .get_or_insert_with(|| Uuid::now_v7().to_string())
            .clone();
        let deadline = local_now().saturating_add(whole_ms(timeout));
        event.deadline.get_or_insert(deadline);
        let keys = &self.0.keys;
        let partition = event.partition(keys);
        let stream = keys.reply(keys::domain_of(event.kind()), partition, &self.0.name);
        event.reply_to = Some(stream.clone());
        // Before it opens a stream for what is refused anyway.
        let prepared = event.prepare(keys, partition, &self.0.defaults)?;
        let mut waiting = self.0.replies.wait_for(&id)?;
        let mut doubt = None;
        let answer = async {
            self.0.replies.open(&stream).await?;
            tokio::select! {
                biased;
                answer = waiting.answer() => return answer,
                outcome = self.publish_prepared(&event, &prepared) => match outcome {
                    Ok(_) => {}
                    Err(refused @ PublishError::Rejected { .. }) => return Err(refused.into()),
                    Err(unknown) => doubt = Some(unknown),
                },
            }
            waiting.answer().await
        };
        match tokio::time::timeout_at(until, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(match doubt {
                Some(unknown) => unknown.into(),
                None => RequestError::TimedOut {
                    kind: event.kind().to_owned(),
                    id,
                    stream: keys.events(keys::domain_of(event.kind()), partition),
                    within: timeout,
                },
            }),
        }
    }

    /// Stops waiting for replies and removes the reply streams. Requests fail from then on, those
    /// in flight included; publishing still works. Dropping the last clone does the same a little
    /// later, and if the process ends first, the streams expire.
    pub async fn close(&self) {
        let streams = self.0.replies.close();
        if streams.is_empty() {
            return;
        }
        if let Ok(mut lent) = self.0.link.get().await {
            let mut command = redis::cmd("UNLINK");
            command.arg(&streams);
            let sending = self.0.link.sending(&lent);
            let reply = lent.connection.send_packed_command(&command).await;
            sending.done(&reply);
        }
    }
}

/// The replies to a pipeline. It fails only without an answer.
async fn send_all(link: &Link, lent: &mut Lent, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
    let sending = link.sending(lent);
    let sent = lent
        .connection
        .send_packed_commands(pipeline, 0, pipeline.len());
    let replies = sent.await;
    match &replies {
        Ok(replies) => {
            let refused = replies.iter().find(|r| matches!(r, Value::ServerError(_)));
            sending.done(&Ok(refused.cloned().unwrap_or(Value::Nil)));
        }
        Err(error) => sending.done(&Err(error.clone())),
    }
    replies
}

fn is_unanswered(outcome: &Result<Published, PublishError>) -> bool {
    matches!(
        outcome,
        Err(PublishError::Unknown {
            source: Doubt::NoAnswer(_),
            ..
        })
    )
}

fn is_no_script(reply: &RedisResult<Value>) -> bool {
    matches!(reply, Ok(Value::ServerError(error)) if error.code() == NO_SCRIPT)
}

/// It was not stored, for want of a script that this user may not load: others may load it soon.
fn lacks_script(outcome: &Result<Published, PublishError>) -> bool {
    matches!(outcome, Err(PublishError::Rejected { code: Some(code), .. }) if code == NO_SCRIPT)
}
