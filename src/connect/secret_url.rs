//! A URL that may carry a password, and may stand in a file of its own: it never prints itself whole.

use crate::connect::secret::SecretFile;
use std::borrow::Cow;
use std::fmt;

/// Any URL with its password.
#[derive(Clone, Default)]
pub(crate) struct SecretUrl {
    text: String,
    /// Where it stands; who connects looks there again.
    file: Option<SecretFile>,
}

impl SecretUrl {
    /// The URL with its password: for opening connections, nothing else.
    pub(crate) fn expose(&self) -> &str {
        &self.text
    }

    /// Where it stands, if it stands in a file.
    pub(crate) fn file(&self) -> Option<&SecretFile> {
        self.file.as_ref()
    }

    /// The same, which that file holds.
    #[cfg(feature = "config")]
    pub(crate) fn of_file(self, file: SecretFile) -> Self {
        let file = Some(file);
        Self { file, ..self }
    }

    /// The same with what the file holds now.
    #[cfg(feature = "ledger-postgres")]
    pub(crate) fn with(&self, text: String) -> Self {
        let file = self.file.clone();
        Self { text, file }
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }
}

impl From<String> for SecretUrl {
    fn from(text: String) -> Self {
        Self { text, file: None }
    }
}

impl PartialEq for SecretUrl {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SecretUrl {}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => file.path().display().fmt(f),
            None => without_secrets(&self.text, f),
        }
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether there is a password before the host. In doubt there is: an unescaped one may end what a
/// parser takes for the host.
pub(crate) fn names_password(url: &str) -> bool {
    let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    let before_host = after_scheme.rsplit_once('@').map_or("", |(info, _)| info);
    before_host.contains(':')
}

/// Writes any URL without what may be a secret in it.
fn without_secrets(url: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    let plain = |s: &&str| s.bytes().all(|b| b.is_ascii_alphabetic() || b == b'+');
    let scheme = scheme.filter(plain);
    // Whether a ? before an @ is of the password, or the @ of the query, nobody can tell.
    if url
        .find('?')
        .is_some_and(|asked| url.rfind('@') > Some(asked))
    {
        return write!(f, "{}://***", scheme.unwrap_or("***"));
    }
    // A password may hold any character, so everything before the last @ goes, and the query,
    // which may name one for a socket.
    let (shown, asked) = match url.rsplit_once('@') {
        Some((_, host)) => host
            .split_once('?')
            .map_or((host, false), |(h, _)| (h, true)),
        None => match url.split_once('?') {
            Some((shown, _)) => (shown, true),
            None => (url, false),
        },
    };
    if url.contains('@') {
        if let Some(scheme) = scheme {
            write!(f, "{scheme}://")?;
        }
        f.write_str("***@")?;
    }
    let shown = without_odd_port(shown, url.contains('@'));
    f.write_str(&shown)?;
    f.write_str(if asked { "?***" } else { "" })
}

/// A host whose port is not a number: what stands there may be the password of a URL without its `@`.
fn without_odd_port(shown: &str, is_host: bool) -> Cow<'_, str> {
    let begin = match shown.find("://") {
        Some(scheme) => scheme + 3,
        None if is_host => 0,
        None => return shown.into(),
    };
    let end = shown[begin..]
        .find('/')
        .map_or(shown.len(), |at| begin + at);
    match shown[begin..end].rsplit_once(':') {
        Some((host, port)) if !port.bytes().all(|b| b.is_ascii_digit()) && !port.ends_with(']') => {
            format!("{}{host}:***{}", &shown[..begin], &shown[end..]).into()
        }
        _ => shown.into(),
    }
}
