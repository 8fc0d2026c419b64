//! A client from settings, or from a URL and the defaults of all others.

use super::{RedisUrl, SettingError, Settings};
use crate::client::{Client, ClientOptions};
use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::protocol::keys::NameError;
use crate::streams::cancel::CancellerOptions;

/// Pooled connections of a client: it publishes and reads replies on connections of its own.
const POOL: usize = 1;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A setting that is out of range; the message names it, its value and what would do.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A name that the protocol does not allow.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A certificate or key that cannot be used.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The server cannot be reached.
    #[error("{0}")]
    Unreachable(String),
}

impl From<&Settings> for CancellerOptions {
    fn from(settings: &Settings) -> Self {
        Self {
            group: settings.group.clone(),
            limits: settings.limits(),
            dedup_window: settings.dedup_window,
            reply_ttl: settings.reply_ttl,
            reply_history: settings.stream_history,
        }
    }
}

impl Settings {
    /// The same, once the server was asked whether it is a node of a cluster: if it is, [`redis_url`](Self::redis_url)
    /// counts as that of a cluster from then on. Where the URL says so itself, nobody is asked.
    ///
    /// [`Client::connect`] does so by itself, and so does a worker when it begins to run.
    ///
    /// # Errors
    /// A setting that is out of range; a server that cannot be reached.
    pub async fn found(self) -> Result<Self, ConnectError> {
        self.check()?;
        let connector = Connector::of(&self, POOL)?;
        Ok(match connector.find_cluster().await? {
            Some(redis_url) => Self { redis_url, ..self },
            None => self,
        })
    }
}

impl Client {
    /// A client of the server at that URL, with the default of every other setting, that is connected.
    ///
    /// ```no_run
    /// use convoke::{Client, Event};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = Client::connect("redis://127.0.0.1").await?;
    /// let event = Event::new("image.resize", &80).subject("cat").id("order-7").dedup(true);
    /// client.publish(event).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(url: impl Into<String>) -> Result<Self, ConnectError> {
        let settings = Settings {
            redis_url: RedisUrl::new(url),
            ..Settings::default()
        };
        let client = Self::of(&settings)?;
        let reached = client.reach().await;
        let client = match client.connector().found_cluster()? {
            None => {
                reached.map_err(ConnectError::Unreachable)?;
                client
            }
            Some(redis_url) => {
                let client = Self::of(&Settings {
                    redis_url,
                    ..settings
                })?;
                client.reach().await.map_err(ConnectError::Unreachable)?;
                client
            }
        };
        Ok(client)
    }

    /// A client by these settings; connects when it is first used. Where a plain URL may lead to a cluster, the
    /// settings go through [`Settings::found`] before.
    ///
    /// # Errors
    /// See [`ConnectError`]; the server is not asked.
    pub fn of(settings: &Settings) -> Result<Self, ConnectError> {
        settings.check()?;
        let connector = Connector::of(settings, POOL)?;
        let options = ClientOptions::from(settings);
        Ok(Self::new(connector, settings.keys()?, options)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_says_what_it_cannot_be_made_of() {
        let error = Client::connect("http://h")
            .await
            .expect_err("no such server");
        assert!(matches!(error, ConnectError::Setting(_)), "{error}");
        assert!(error.to_string().contains("redis_url"), "{error}");
        let error = Client::connect("redis://127.0.0.1:1").await;
        let error = error.expect_err("nobody listens there");
        assert!(matches!(error, ConnectError::Unreachable(_)), "{error}");
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    }

    #[tokio::test]
    async fn a_client_has_the_names_of_its_settings() {
        let settings = Settings {
            namespace: "shop".into(),
            ..Settings::default()
        };
        let client = Client::of(&settings).expect("a client");
        assert_eq!(client.keys().namespace(), "shop");
    }
}
