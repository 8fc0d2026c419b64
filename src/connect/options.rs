//! How to reach a server, and what a connection by TLS trusts and shows.

use super::url::RedisUrl;

/// Where Redis is, and with which files it is reached by TLS.
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    /// Where it is: `redis://` or `rediss://` (TLS); or the Sentinels that watch it, see
    /// [`SentinelUrl`](super::sentinel_url::SentinelUrl).
    pub url: RedisUrl,
    /// The file (PEM) of the authorities that the server's certificate may be of; empty: those that the
    /// system trusts.
    pub tls_ca: String,
    /// The file (PEM) of the certificate, with its chain, that is shown to the server; empty: none.
    pub tls_cert: String,
    /// The file (PEM) of its private key.
    pub tls_key: String,
}

impl From<RedisUrl> for ConnectOptions {
    fn from(url: RedisUrl) -> Self {
        Self {
            url,
            ..Self::default()
        }
    }
}
