//! The URL of a Redis server. It may carry a password, so it never prints itself whole.

use crate::connect::cluster_url::ClusterUrl;
use crate::connect::secret::SecretFile;
use crate::connect::secret_url::{SecretUrl, names_password};
use crate::connect::sentinel_url::{Login, SentinelUrl};
use redis::{ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What to do about a password that ends a URL early.
const ESCAPES: &str = "in a user or password of a URL, special characters are written with percent \
     signs: / as %2F, ? as %3F, # as %23, % as %25, @ as %40";

/// Who is named without a password is not logged in.
pub(crate) const NO_PASSWORD: &str =
    "a user without a password would be ignored: name both, or none";

/// A Redis URL. It may carry a password, so it never prints itself whole; one that stands in a file prints
/// that file's name.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct RedisUrl {
    text: SecretUrl,
    /// Whether it names a server, and that one said that it is a node of a cluster.
    of_a_node: bool,
}

impl RedisUrl {
    /// Wraps a URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            text: SecretUrl::from(url.into()),
            of_a_node: false,
        }
    }

    /// The same, which that file holds.
    #[cfg(feature = "config")]
    pub(crate) fn of_file(self, file: SecretFile) -> Self {
        Self {
            text: self.text.of_file(file),
            ..self
        }
    }

    /// The URL with its password: for opening connections, nothing else.
    pub fn expose(&self) -> &str {
        self.text.expose()
    }

    /// Whether it carries a password. In doubt it does: an unescaped password may end what a parser
    /// takes for the host.
    pub fn has_password(&self) -> bool {
        let parsed = redis::parse_redis_url(self.expose()).is_some_and(|url| {
            url.password().is_some() || url.query_pairs().any(|(name, _)| name == "pass")
        });
        let asks = |url: &str| match url.split_once('?') {
            Some((_, query)) => query.to_ascii_lowercase().contains("pass") || query.contains('%'),
            None => false,
        };
        let of_sentinels = self.sentinels().is_some() && asks(self.expose());
        parsed || of_sentinels || names_password(self.expose())
    }

    /// The Sentinels that it names; `None` if it names a server.
    ///
    /// # Errors
    /// What is wrong with it, without its secrets.
    pub fn sentinels(&self) -> Option<Result<SentinelUrl, String>> {
        SentinelUrl::parse(self.expose())
    }

    /// Whether it names a cluster, or a server that said that it is a node of one.
    pub fn is_cluster(&self) -> bool {
        self.of_a_node || ClusterUrl::is_one(self.expose())
    }

    /// The same as that of a cluster, of which the server that it names is a node.
    ///
    /// # Errors
    /// What it says that a cluster does not have.
    pub(crate) fn as_of_a_node(&self) -> Result<Self, String> {
        let url = Self {
            of_a_node: true,
            ..self.clone()
        };
        match url.cluster() {
            Some(Err(problem)) => Err(problem),
            _ => Ok(url),
        }
    }

    /// The cluster that it names.
    pub(crate) fn cluster(&self) -> Option<Result<ClusterUrl, String>> {
        match ClusterUrl::parse(self.expose()) {
            None if self.of_a_node => Some(ClusterUrl::of_a_node(self.expose())),
            parsed => parsed,
        }
    }

    /// Fails if it cannot be parsed, with the reason except for its secrets.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.sentinels() {
            Some(Ok(_)) => Ok(()),
            Some(Err(problem)) => Err(format!("{self}: {problem}")),
            None => self
                .check_server()
                .map_err(|problem| format!("{self}: {problem}")),
        }
    }

    fn check_server(&self) -> Result<(), String> {
        if let Some(parsed) = self.cluster() {
            return parsed.map(|_| ());
        }
        let parsed = redis::parse_redis_url(self.expose());
        let usable = redis::IntoConnectionInfo::into_connection_info(self.expose());
        let (Some(url), Ok(_)) = (parsed, usable) else {
            let form = "not a URL such as redis://host:6379/0, rediss://host (TLS), or \
                        redis+sentinel://host:26379,host:26379,host:26379/SERVICE, or \
                        redis+cluster://host:6379,host:6379";
            return Err(match is_unescaped(self.expose()) {
                true => format!("{form}; {ESCAPES}"),
                false => form.to_owned(),
            });
        };
        if url.fragment() == Some("insecure") && self.is_tls() {
            let problem = "a TLS connection without a check of the server's certificate is not \
                           supported: leave #insecure out, and name the authority in tls_ca";
            return Err(problem.into());
        }
        if url.fragment().is_some() {
            return Err(format!("what follows # would be ignored; {ESCAPES}"));
        }
        let is_socket = matches!(url.scheme(), "unix" | "redis+unix" | "valkey+unix");
        let known: &[&str] = match is_socket {
            true => &["db", "user", "pass", "protocol"],
            false => &["protocol"],
        };
        let asks = |asked: &str| url.query_pairs().any(|(name, _)| name == asked);
        if (!url.username().is_empty() && url.password().is_none())
            || (asks("user") && !asks("pass"))
        {
            return Err(NO_PASSWORD.into());
        }
        for (name, value) in url.query_pairs() {
            if !known.contains(&&*name) {
                // The name may be a part of a password.
                let known = known.join(", ");
                return Err(format!(
                    "what follows ? would be ignored: it may say {known} only; {ESCAPES}"
                ));
            }
            if name == "protocol" && !matches!(&*value, "2" | "resp2") {
                return Err(
                    "protocol: RESP2 is spoken here, which every server knows, and no \
                            other protocol: leave it out"
                        .into(),
                );
            }
        }
        Ok(())
    }

    /// How often who logs in has changed.
    pub(crate) fn changes(&self) -> u64 {
        self.text.file().map_or(0, SecretFile::changes)
    }

    /// Puts into that place who logs in there, as the file says it now; `None` if the URL stands in no file.
    pub(crate) fn renewed(&self, place: &ConnectionInfo) -> Option<ConnectionInfo> {
        let login = self.now()?.login()?;
        Some(place.clone().set_redis_settings(login))
    }

    /// The same for one of the Sentinels.
    pub(crate) fn renewed_sentinel(&self, place: &ConnectionInfo) -> Option<ConnectionInfo> {
        let url = self.now()?.sentinels()?.ok()?;
        Some(place.clone().set_redis_settings(settings(&url.own)))
    }

    /// What the file holds now.
    fn now(&self) -> Option<Self> {
        let file = self.text.file()?;
        let of = |text: String| Self {
            text: SecretUrl::from(text),
            of_a_node: self.of_a_node,
        };
        Some(of(file.read_again(|text| {
            let url = of(text.to_owned());
            // It has no file, so that an error would quote it.
            let checked = match url.sentinels() {
                Some(parsed) => parsed.map(|_| ()),
                None => url.check_server(),
            };
            checked.map_err(|_| "it holds no URL of a Redis server".to_owned())?;
            match self.leads_to() == url.leads_to() {
                true => Ok(()),
                false => Err("it names another place than before, and only who logs in may change while a process runs: restart it".into()),
            }
        })))
    }

    /// The place without who logs in there.
    fn leads_to(&self) -> Option<String> {
        if let Some(url) = self.sentinels() {
            let url = url.ok()?;
            return Some(format!(
                "{:?} {} {} {}",
                url.sentinels, url.service, url.db, url.tls
            ));
        }
        if let Some(url) = self.cluster() {
            let url = url.ok()?;
            return Some(format!("{:?} {}", url.nodes, url.tls));
        }
        let info = self.expose().into_connection_info().ok()?;
        Some(format!("{} {}", info.addr(), info.redis_settings().db()))
    }

    /// Who logs in at a server.
    fn login(&self) -> Option<RedisConnectionInfo> {
        if let Some(url) = self.sentinels() {
            let url = url.ok()?;
            return Some(settings(&url.nodes).set_db(url.db));
        }
        if let Some(url) = self.cluster() {
            return Some(settings(&url.ok()?.login));
        }
        let info = self.expose().into_connection_info().ok()?;
        Some(info.redis_settings().clone())
    }

    /// Whether the connection is one by TLS.
    pub(crate) fn is_tls(&self) -> bool {
        if let Some(sentinels) = self.sentinels() {
            return sentinels.is_ok_and(|url| url.tls);
        }
        if let Some(cluster) = self.cluster() {
            return cluster.is_ok_and(|url| url.tls);
        }
        let parsed = redis::IntoConnectionInfo::into_connection_info(self.expose());
        parsed.is_ok_and(|info| matches!(info.addr(), redis::ConnectionAddr::TcpTls { .. }))
    }
}

impl Default for RedisUrl {
    fn default() -> Self {
        Self::new("redis://127.0.0.1:6379")
    }
}

impl From<String> for RedisUrl {
    fn from(url: String) -> Self {
        Self::new(url)
    }
}

impl From<RedisUrl> for String {
    fn from(url: RedisUrl) -> Self {
        url.text.into_text()
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.text, f)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who logs in, as a connection has it.
pub(crate) fn settings(login: &Login) -> RedisConnectionInfo {
    let mut settings = RedisConnectionInfo::default();
    if let Some(user) = &login.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &login.password {
        settings = settings.set_password(password);
    }
    settings
}

/// Whether a character that ends the host stands before an `@`: it is of a password, most likely.
fn is_unescaped(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let end = rest.find(['/', '?', '#']);
    end.is_some_and(|end| rest[end..].contains('@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_never_prints_its_password() {
        for url in [
            "redis://:s3cret@host:6379/0",
            "rediss://user:s3cret@host/0",
            "redis://user:s3cr/et@s3cret@host",
            "redis:s3cret@host",
            ":s3cret@host",
            "redis:///:s3cret@host",
            "redis://host:s3cr?et@host",
            "unix:///run/redis.sock?pass=s3cret",
            "unix:///run/redis.sock?db=1&p%61ss=s3cret",
            "unix:///run/at@redis.sock?db=1&pass=s3cret",
            "unix:///run/redis.sock?pass=x@s3cret",
            "redis+sentinel://u:s3cret@a:1,b:2/bus",
            "redis+sentinel://:s3cret@a:1,b:2/bus",
            "redis+sentinel://u@a:1/bus?sentinel_password=s3cret",
            "redis+sentinel://a:1/bus?sentinel_p%61ssword=s3cret",
            "rediss+sentinel://a:1/bus?sentinel_user=u&sentinel_password=x@s3cret",
        ] {
            let url = RedisUrl::new(url);
            assert!(!format!("{url} {url:?}").contains("s3cr"), "{url}");
            assert!(url.has_password(), "{url}");
        }
        for (url, shown) in [
            ("rediss://user:s3cret@host:7/0", "rediss://***@host:7/0"),
            ("redis://:s3cret@host:s3cret/0", "redis://***@host:***/0"),
            ("redis://host:s3cret", "redis://host:***"),
            (
                "redis+sentinel://u:s3cret@a:1,b:2/bus/3?sentinel_user=u",
                "redis+sentinel://***@a:1,b:2/bus/3?***",
            ),
            ("redis://[::1]:7/0", "redis://[::1]:7/0"),
            ("redis://[::1]/0", "redis://[::1]/0"),
            ("unix:///run/a:b.sock", "unix:///run/a:b.sock"),
        ] {
            assert_eq!(RedisUrl::new(url).to_string(), shown);
        }
        assert!(RedisUrl::new("redis://u:p@h").has_password());
        assert!(!RedisUrl::new("redis://u@h").has_password());
        assert!(!RedisUrl::default().has_password());
        assert!(!RedisUrl::new("redis+sentinel://u@a/bus?sentinel_user=u").has_password());
    }

    #[cfg(feature = "config")]
    #[test]
    fn what_the_file_says_of_who_logs_in_holds_for_nodes_and_sentinels() {
        let path = std::env::temp_dir().join(format!("convoke-url-{}", std::process::id()));
        let say = |url: &str| std::fs::write(&path, url).unwrap();
        let seat = "redis://seat".into_connection_info().unwrap();
        let watched = "a:1,b:1/bus/3?sentinel_user=s&sentinel_password=";
        say(&format!("redis+sentinel://u:one@{watched}one"));
        let file = SecretFile::open(&path).unwrap();
        let text = file.read_again(|_| Ok(()));
        let url = RedisUrl::new(text).of_file(file);
        let held = |password: &str| {
            let node = url.renewed(&seat).unwrap();
            let own = url.renewed_sentinel(&seat).unwrap();
            assert_eq!(node.addr(), seat.addr());
            let (node, own) = (node.redis_settings(), own.redis_settings());
            assert_eq!((node.username(), node.db()), (Some("u"), 3));
            assert_eq!(node.password(), Some(password));
            assert_eq!(
                (own.username(), own.password()),
                (Some("s"), Some(password))
            );
        };
        held("one");
        say(&format!("redis+sentinel://u:two@{watched}two"));
        held("two");
        for other in ["redis+sentinel://u:three@c:1/bus/3", "redis://a", "three"] {
            say(other);
            held("two");
        }
        assert_eq!(url.changes(), 1);
        assert_eq!(url.to_string(), path.display().to_string());
        assert!(RedisUrl::default().renewed(&seat).is_none());
        std::fs::remove_file(&path).unwrap();
    }

    #[cfg(feature = "config")]
    #[test]
    fn who_logs_in_may_change_in_the_file_of_a_plain_url_that_led_to_a_cluster() {
        let path = std::env::temp_dir().join(format!("convoke-node-{}", std::process::id()));
        let say = |url: &str| std::fs::write(&path, url).unwrap();
        say("redis://u:one@a:7/0");
        let file = SecretFile::open(&path).unwrap();
        let text = file.read_again(|_| Ok(()));
        let url = RedisUrl::new(text).of_file(file);
        assert!(!url.is_cluster());
        let url = url.as_of_a_node().unwrap();
        assert!(url.is_cluster());
        let node = "redis://b:8".into_connection_info().unwrap();
        let held = |password: &str| {
            let node = url.renewed(&node).unwrap();
            let login = node.redis_settings();
            assert_eq!(
                (login.username(), login.password()),
                (Some("u"), Some(password))
            );
        };
        held("one");
        say("redis://u:two@a:7");
        held("two");
        for other in ["redis://u:three@b:7", "redis://u:three@a:7/1", "three"] {
            say(other);
            held("two");
        }
        // The same place, by its other name.
        say("redis+cluster://u:three@a:7");
        held("three");
        assert_eq!(url.to_string(), path.display().to_string());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn nothing_in_a_url_is_ignored() {
        for url in [
            "redis://h",
            "redis://h:7/3",
            "redis://:p@h",
            "redis://u:p%2F%40@h/0?protocol=resp2",
            "redis://u:a@b:c@h",
            "rediss://u:p@[::1]:7/0",
            "valkey://h?protocol=2",
            "unix:///run/redis.sock",
            "unix:///run/redis.sock?db=1&user=u&pass=p",
            "redis+sentinel://u:p@a,b/bus/1?sentinel_user=u&sentinel_password=p",
        ] {
            assert_eq!(RedisUrl::new(url).check(), Ok(()), "{url}");
        }
        for (url, told) in [
            ("redis://h?protocol=resp3", "RESP2"),
            ("redis://h/0?protocol=3", "RESP2"),
            ("unix:///run/redis.sock?protocol=resp3", "RESP2"),
            ("redis://h?timeout=3", "protocol only"),
            (
                "unix:///run/redis.sock?password=s3cret",
                "db, user, pass, protocol",
            ),
            ("redis://h#x", "#"),
            ("rediss://h/#insecure", "tls_ca"),
            ("redis://u@h", "without a password"),
            ("unix:///run/redis.sock?user=u", "without a password"),
            ("redis+sentinel://u@a/bus", "without a password"),
            (
                "redis+sentinel://a/bus?sentinel_user=u",
                "without a password",
            ),
            ("redis+sentinel://a/bus?protocol=resp3", "sentinel_user"),
        ] {
            let problem = RedisUrl::new(url).check().unwrap_err();
            assert!(problem.contains(told), "{url}: {problem}");
            assert!(!problem.contains("s3cret"), "{url}: {problem}");
        }
    }

    #[test]
    fn a_password_that_ends_the_url_early_is_told_how_it_is_written() {
        for url in [
            "redis://:s3/cret@h",
            "redis://u:s3#cret@h",
            "redis://u:s3?cret@h",
            "redis://u:3/s3cret@h",
            "redis://u:3#s3cret@h",
            "redis://u:3?s3cret@h",
            "rediss://u:s3/cret@h:7/0",
        ] {
            let problem = RedisUrl::new(url).check().unwrap_err();
            assert!(problem.contains("%2F"), "{url}: {problem}");
            assert!(!problem.contains("cret"), "{url}: {problem}");
        }
        let other = RedisUrl::new("http://h").check().unwrap_err();
        assert!(!other.contains("%2F"), "{other}");
    }
}
