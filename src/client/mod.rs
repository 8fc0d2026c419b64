//! What publishes and asks: for services, handlers, the command line and tests.
//!
//! ```no_run
//! use convoke::client::{PublishError, RequestError};
//! use convoke::{Client, Event};
//! use std::time::Duration;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("redis://127.0.0.1").await?;
//! let event = Event::new("mail.send", &"Hello").subject("ada").id("order-4711").dedup(true);
//! match client.publish(event).await {
//!     Ok(published) => println!("{published:?}"),
//!     // With an id and `dedup` it may be published again, and takes effect once.
//!     Err(PublishError::Unknown { .. }) => println!("perhaps stored: publish it again"),
//!     Err(error) => return Err(error.into()),
//! }
//! let asked = client.ask::<u32>("image.resize", &640).within(Duration::from_secs(5));
//! match asked.await {
//!     Ok(pixels) => println!("{pixels}"),
//!     Err(RequestError::Remote(error)) => println!("{}: {}", error.code, error.message),
//!     Err(error) => return Err(error.into()),
//! }
//! # Ok(())
//! # }
//! ```

#[doc(hidden)]
pub mod ask;
mod confirming;
mod looking;
mod options;
mod pipelines;
#[doc(hidden)]
pub mod publish;
#[doc(hidden)]
pub mod request;
mod scripted;
mod ways;

pub use ask::Ask;
pub use confirming::MAX_CONFIRM;
pub use options::{ClientOptions, DEDUP_WINDOW, REPLY_TTL, STREAM_HISTORY};
pub use publish::{Doubt, Outgoing, PublishError, Published};
pub use request::RequestError;

use crate::client::publish::{Answer, Defaults, Prepared, When};
use crate::client::request::{Hear, Replies, ReplyStreams};
use crate::connect::backoff::Backoff;
use crate::connect::clock::{NEVER, local_now, whole_ms};
use crate::connect::connector::Connector;
use crate::protocol::keys::{self, Keys, NameError};
use crate::protocol::progress::Progress;
use crate::protocol::reply::Reply;
use looking::Looked;
use scripted::{NOWHERE, is_no_script, lacks_script};
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;
use ways::{Way, Ways};

/// Publishes events and awaits replies. Cheap to clone; all clones share their connections.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    keys: Keys,
    name: String,
    defaults: Defaults,
    patience: Duration,
    ways: Ways,
    looked: Looked,
    replies: Replies,
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
            ways: Ways::new(connector),
            looked: Looked::default(),
            replies,
        })))
    }

    /// Connects now, if it is not connected.
    ///
    /// # Errors
    /// The server cannot be reached: why.
    pub async fn reach(&self) -> Result<(), String> {
        self.0.ways.home.link.get().await?;
        Ok(())
    }

    /// What makes its connections.
    pub(crate) fn connector(&self) -> &Connector {
        self.0.ways.home.link.connector()
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
        self.look(&[event]).await?;
        let partition = event.partition(&self.0.keys);
        let prepared = event.prepare(&self.0.keys, partition, &self.0.defaults)?;
        let way = self.way(event, partition);
        self.publish_prepared(event, &prepared, &way).await
    }

    /// The way to where an event of that partition goes.
    fn way(&self, event: &Outgoing, partition: u16) -> Arc<Way> {
        let domain = keys::domain_of(event.kind());
        match self.0.ways.are_many() {
            true => self.0.ways.to(&self.0.keys.events(domain, partition)),
            false => self.0.ways.home.clone(),
        }
    }

    async fn publish_prepared(
        &self,
        event: &Outgoing,
        prepared: &Prepared,
        way: &Way,
    ) -> Result<Published, PublishError> {
        let give_up = Instant::now() + self.0.patience.min(NEVER);
        let mut outcome = self.store(event, prepared, way).await;
        let mut backoff = Backoff::default();
        while event.dedup && is_unanswered(&outcome)
            || lacks_script(&outcome)
            || is_elsewhere(&outcome)
        {
            if lacks_script(&outcome) {
                way.script.seen_in.store(NOWHERE, Ordering::Relaxed);
            }
            let pause = backoff.failed();
            if Instant::now() + pause > give_up {
                break;
            }
            tokio::time::sleep(pause).await;
            match self.store(event, prepared, way).await {
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
        way: &Way,
    ) -> Result<Published, PublishError> {
        if let Some(confirm) = event.confirm {
            return way.store_confirmed(event, prepared, confirm).await;
        }
        let link = &way.link;
        let mut lent = link.get().await.map_err(PublishError::unsent)?;
        let sending = link.sending(&lent);
        let mut reply = lent.connection.send_packed_command(&prepared.command).await;
        if is_no_script(&reply) {
            reply = match way.has_script(&mut lent.connection).await {
                Ok(true) => lent.connection.send_packed_command(&prepared.command).await,
                Ok(false) => reply,
                Err(error) => Err(error),
            };
        }
        sending.done(&reply);
        let reply = reply.map_err(|error| PublishError::after_sending(error, &event.id))?;
        let (published, _) = Answer::from(&reply).published(&event.id)?;
        if prepared.scripted {
            way.saw_script();
        }
        Ok(published)
    }

    /// Publishes many events, in order and in few round trips. The results stand in the order of
    /// the events; each is what [`publish`](Client::publish) would say, but nothing is repeated.
    /// Events that want to be confirmed are published one by one, after the others, and so are those
    /// whose script the server forgot meanwhile.
    pub async fn publish_many(&self, events: &[Outgoing]) -> Vec<Result<Published, PublishError>> {
        let all: Vec<&Outgoing> = events.iter().collect();
        if let Err(error) = self.look(&all).await {
            let reason = error.to_string();
            let unsent = || Err(PublishError::unsent(&reason));
            return events.iter().map(|_| unsent()).collect();
        }
        if !self.0.ways.are_many() {
            return self
                .publish_in_pipelines(&all, &self.0.ways.home, None)
                .await;
        }
        let mut places: BTreeMap<(&str, u16), Vec<usize>> = BTreeMap::new();
        for (at, event) in events.iter().enumerate() {
            let place = (keys::domain_of(event.kind()), event.partition(&self.0.keys));
            places.entry(place).or_default().push(at);
        }
        let sent = places.into_iter().map(|((_, partition), at)| async move {
            let some: Vec<&Outgoing> = at.iter().map(|at| &events[*at]).collect();
            let way = self.way(some[0], partition);
            let results = self.publish_in_pipelines(&some, &way, Some(partition));
            at.into_iter().zip(results.await)
        });
        let sent = futures_util::future::join_all(sent).await;
        let mut sent: Vec<_> = sent.into_iter().flatten().collect();
        sent.sort_unstable_by_key(|(at, _)| *at);
        sent.into_iter().map(|(_, result)| result).collect()
    }

    /// The same for events that go one way.
    async fn publish_in_pipelines(
        &self,
        events: &[&Outgoing],
        way: &Way,
        partition: Option<u16>,
    ) -> Vec<Result<Published, PublishError>> {
        let Inner { keys, defaults, .. } = &*self.0;
        let scripted = |event: &&&Outgoing| event.confirm.is_none() && event.is_scripted();
        let scripted = events.iter().find(scripted).is_some();
        let mut lacks = scripted && !way.awaits_script(self.0.patience).await;
        let results = way
            .pipelines
            .publish(events, keys, partition, defaults)
            .await;
        let mut done = Vec::with_capacity(events.len());
        for (event, result) in events.iter().zip(results) {
            done.push(match result {
                Some(result) => result,
                // It was waited for once.
                None if lacks && event.is_scripted() => Err(PublishError::no_script()),
                None => {
                    let result = self.publish(*event).await;
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
    pub async fn request(&self, event: Outgoing, timeout: Duration) -> Result<Reply, RequestError> {
        self.answer_to(event, timeout, None).await
    }

    /// The same; `hear` is called with what the handler reports of its progress meanwhile. One that is called slowly, or
    /// takes its time, misses some.
    ///
    /// # Errors
    /// As for [`request`](Client::request).
    pub async fn request_with_progress(
        &self,
        event: Outgoing,
        timeout: Duration,
        mut hear: impl FnMut(Progress) + Send,
    ) -> Result<Reply, RequestError> {
        self.answer_to(event, timeout, Some(&mut hear)).await
    }

    async fn answer_to(
        &self,
        mut event: Outgoing,
        timeout: Duration,
        mut hear: Hear<'_>,
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
        match tokio::time::timeout_at(until, self.look(&[&event])).await {
            Ok(looked) => looked?,
            Err(_) => {
                let unsent = "how many partitions the domain has was not said in time";
                return Err(PublishError::unsent(unsent).into());
            }
        }
        let keys = &self.0.keys;
        let partition = event.partition(keys);
        let stream = keys.reply(keys::domain_of(event.kind()), partition, &self.0.name);
        event.reply_to = Some(stream.clone());
        // Before it opens a stream for what is refused anyway.
        let prepared = event.prepare(keys, partition, &self.0.defaults)?;
        let way = self.way(&event, partition);
        let mut waiting = self.0.replies.wait_for(&id, hear.is_some())?;
        let mut doubt = None;
        let answer = async {
            self.0.replies.open(&stream).await?;
            tokio::select! {
                biased;
                answer = waiting.answer(&mut hear) => return answer,
                outcome = self.publish_prepared(&event, &prepared, &way) => match outcome {
                    Ok(_) => {}
                    Err(refused @ PublishError::Rejected { .. }) => return Err(refused.into()),
                    Err(unknown) => doubt = Some(unknown),
                },
            }
            waiting.answer(&mut hear).await
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
        for stream in self.0.replies.close() {
            let way = self.0.ways.to(&stream);
            let Ok(mut lent) = way.link.get().await else {
                // Its node is away: it expires.
                continue;
            };
            let mut command = redis::cmd("UNLINK");
            command.arg(&stream);
            let sending = way.link.sending(&lent);
            let reply = lent.connection.send_packed_command(&command).await;
            sending.done(&reply);
        }
    }
}

/// Whether an event was not stored since its slot is on another node, or on its way there.
fn is_elsewhere(outcome: &Result<Published, PublishError>) -> bool {
    matches!(outcome, Err(PublishError::Rejected { code: Some(code), .. }) if is_of_slots(code))
}

/// Whether that is what a node of a cluster refuses a command with whose slot it does not have, or not wholly.
fn is_of_slots(code: &str) -> bool {
    matches!(code, "MOVED" | "ASK" | "TRYAGAIN")
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
