//! A request whose answer is decoded.

use super::Client;
use super::publish::Outgoing;
use super::request::RequestError;
use crate::protocol::error::Code;
use crate::protocol::progress::Progress;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::time::Duration;

/// How long an answer is awaited, unless something else is said.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A request that is published, and its answer awaited, when it is awaited itself; see [`Client::ask`].
#[must_use = "it is published when it is awaited"]
pub struct Ask<'a, T> {
    client: &'a Client,
    event: Outgoing,
    patience: Duration,
    hear: Option<Box<dyn FnMut(Progress) + Send + 'a>>,
    answer: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Ask<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ask").field(&self.event).finish()
    }
}

impl<'a, T> Ask<'a, T> {
    /// How long the answer is awaited, and how long the event may still be begun: 30 s if nothing is
    /// said.
    pub fn within(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Who hears how far the handler is, as often as it tells: see [`Progress`].
    ///
    /// ```no_run
    /// # async fn example(client: convoke::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let asked = client.ask::<u64>("table.import", "orders.csv");
    /// let asked = asked.progress(|told| println!("{} rows", told.done));
    /// println!("{} rows in all", asked.await?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn progress(mut self, hear: impl FnMut(Progress) + Send + 'a) -> Self {
        self.hear = Some(Box::new(hear));
        self
    }
}

impl<'a, T: DeserializeOwned + 'a> IntoFuture for Ask<'a, T> {
    type Output = Result<T, RequestError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Self {
                client,
                event,
                patience,
                mut hear,
                ..
            } = self;
            let hear = hear.as_mut().map(|hear| &mut **hear as _);
            let reply = client.answer_to(event, patience, hear).await?;
            Ok(reply.decode()?)
        })
    }
}

impl Client {
    /// Asks for what the handler of that type answers to a payload.
    ///
    /// ```no_run
    /// use convoke::Client;
    /// use convoke::protocol::error::Code;
    /// use std::time::Duration;
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = Client::connect("redis://127.0.0.1").await?;
    /// let asked = client.ask::<String>("text.upper", "hello");
    /// match asked.within(Duration::from_secs(5)).await {
    ///     Ok(text) => println!("{text}"),
    ///     Err(error) if error.code() == Some(Code::NotFound) => println!("there is no such text"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`RequestError`]: what the handler said is [`RequestError::Remote`], an answer that is no `T`
    /// is [`RequestError::Malformed`].
    pub fn ask<T: DeserializeOwned>(
        &self,
        kind: impl Into<String>,
        payload: &(impl Serialize + ?Sized),
    ) -> Ask<'_, T> {
        self.ask_with(Outgoing::new(kind, payload))
    }

    /// The same with an event that has more than a type and a payload: a subject, an id, a deadline.
    ///
    /// # Errors
    /// As for [`ask`](Client::ask).
    pub fn ask_with<T: DeserializeOwned>(&self, event: Outgoing) -> Ask<'_, T> {
        Ask {
            client: self,
            event,
            patience: PATIENCE,
            hear: None,
            answer: PhantomData,
        }
    }
}

impl RequestError {
    /// The code with which the handler failed, if it did.
    pub fn code(&self) -> Option<Code> {
        match self {
            RequestError::Remote(error) => Some(error.code),
            _ => None,
        }
    }
}
