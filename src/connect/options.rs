//! How to reach a server, and what a connection by TLS trusts and shows.

use super::url::RedisUrl;

/// Where Redis is, and with which files it is reached by TLS.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Where it is: `redis://` or `rediss://` (TLS); or the Sentinels that watch it, see
    /// [`SentinelUrl`](super::sentinel_url::SentinelUrl); or nodes of a cluster:
    /// `redis+cluster://host:port,host:port`, `rediss+cluster://`.
    pub url: RedisUrl,
    /// The file (PEM) of the authorities that the server's certificate may be of; empty: those that the
    /// system trusts.
    pub tls_ca: String,
    /// The file (PEM) of the certificate, with its chain, that is shown to the server; empty: none.
    pub tls_cert: String,
    /// The file (PEM) of its private key.
    pub tls_key: String,
    /// The namespace whose control plane is meant where the place is a cluster.
    pub namespace: String,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            url: RedisUrl::default(),
            tls_ca: String::new(),
            tls_cert: String::new(),
            tls_key: String::new(),
            namespace: "cb".into(),
        }
    }
}

impl From<RedisUrl> for ConnectOptions {
    fn from(url: RedisUrl) -> Self {
        Self {
            url,
            ..Self::default()
        }
    }
}
