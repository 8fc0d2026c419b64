//! The URL of a database. It may carry a password, so it never prints itself whole.

use super::drivers;
use crate::connect::secret_url::{SecretUrl, names_password};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// Which kind of database a URL leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DatabaseKind {
    /// A file.
    Sqlite(PathBuf),
    /// A server.
    Postgres,
}

/// A database's URL: empty, `sqlite:…` or `postgres://…`. It may carry a password, so it never
/// prints itself whole; one that stands in a file prints that file's name.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct DatabaseUrl(SecretUrl);

impl DatabaseUrl {
    /// Wraps a URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self(SecretUrl::from(url.into()))
    }

    /// The same, which that file holds.
    #[cfg(feature = "config")]
    pub(crate) fn of_file(self, file: crate::connect::secret::SecretFile) -> Self {
        Self(self.0.of_file(file))
    }

    /// As the file says it now; `None` if it stands in no file.
    #[cfg(feature = "ledger-postgres")]
    pub(crate) fn now(&self) -> Option<Self> {
        let text = self
            .0
            .file()?
            .read_again(|text| match Self::new(text).kind() {
                Ok(DatabaseKind::Postgres) => Ok(()),
                _ => Err("it holds no URL of a PostgreSQL server".to_owned()),
            });
        Some(Self(self.0.with(text)))
    }

    /// The SQLite file under the state directory.
    pub fn local() -> Self {
        Self::new("sqlite:")
    }

    /// The URL with its password: for opening connections, nothing else.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.expose().is_empty()
    }

    /// Whether it leads to a PostgreSQL server.
    pub fn is_postgres(&self) -> bool {
        self.expose().starts_with("postgres://") || self.expose().starts_with("postgresql://")
    }

    /// Whether it carries a password. In doubt it does.
    pub fn has_password(&self) -> bool {
        let asked = self.expose().split_once('?').map_or("", |(_, query)| query);
        !self.expose().starts_with("sqlite:")
            && (names_password(self.expose()) || asked.to_ascii_lowercase().contains("pass"))
    }

    /// Where it leads.
    ///
    /// # Errors
    /// What is wrong with it, without its secrets.
    pub fn kind(&self) -> Result<DatabaseKind, String> {
        if self.is_postgres() {
            return drivers::postgres(self);
        }
        let Some(rest) = self.expose().strip_prefix("sqlite:") else {
            return Err(format!(
                "{self} is neither postgres://user@host/name nor sqlite:PATH"
            ));
        };
        let path = rest.strip_prefix("//").unwrap_or(rest);
        // Every connection would have a memory of its own, and the ledger none that lasts.
        if path.contains(":memory:") || path.contains('?') {
            return Err(format!("{self} is not a file: write sqlite:PATH"));
        }
        drivers::sqlite(self, path)
    }

    /// Fails if it is neither empty nor a URL of a database that can be used.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.is_empty() {
            return Ok(());
        }
        self.kind().map(|_| ())
    }
}

impl From<String> for DatabaseUrl {
    fn from(url: String) -> Self {
        Self::new(url)
    }
}

impl From<DatabaseUrl> for String {
    fn from(url: DatabaseUrl) -> Self {
        url.0.into_text()
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(all(test, feature = "ledger-sqlite", feature = "ledger-postgres"))]
mod tests {
    use super::*;

    #[test]
    fn a_databases_url_never_prints_its_password() {
        for url in [
            "postgres://:s3cret@host/db",
            "postgres://user:s3cr/et@s3cret@host",
            "postgres://host/db?password=s3cret&user=u",
            "postgres://u:s3cret@host:port",
            "mysql://u:s3cret@host",
        ] {
            let url = DatabaseUrl::new(url);
            let problem = url.kind().err().unwrap_or_default();
            assert!(
                !format!("{url} {url:?} {problem}").contains("s3cr"),
                "{url}"
            );
            assert!(url.has_password(), "{url}");
        }
        assert!(!DatabaseUrl::new("postgres://u@host/db").has_password());
        assert!(!DatabaseUrl::new("sqlite:a@b:c").has_password());
    }

    #[test]
    fn a_databases_url_leads_to_a_file_or_a_server() {
        let kind = |url: &str| DatabaseUrl::new(url).kind();
        let file = |path: &str| Ok(DatabaseKind::Sqlite(path.into()));
        assert_eq!(kind("postgres://u@h/db"), Ok(DatabaseKind::Postgres));
        assert_eq!(kind("postgresql://h"), Ok(DatabaseKind::Postgres));
        assert_eq!(kind("sqlite:a.db"), file("a.db"));
        assert_eq!(kind("sqlite:///var/a.db"), file("/var/a.db"));
        let local = kind("sqlite:").unwrap();
        assert!(matches!(local, DatabaseKind::Sqlite(path) if path.ends_with("convoke/ledger.db")));
        for bad in [
            "",
            "sqlite::memory:",
            "sqlite:a?mode=memory",
            "a.db",
            "mysql://h",
        ] {
            assert!(kind(bad).is_err(), "{bad}");
        }
    }
}
