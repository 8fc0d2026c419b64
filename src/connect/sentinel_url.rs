//! The URL of a primary that Sentinels watch:
//! `redis+sentinel://[user:password@]host:port,host:port,host:port/SERVICE[/DB]`.
//!
//! User and password are those of the Redis nodes. Sentinels that want their own get them by
//! `?sentinel_user=…&sentinel_password=…`. With `rediss+sentinel://` both are reached by TLS. What is
//! special in a URL is written `%40` and so on.

use crate::connect::url::NO_PASSWORD;
use crate::protocol::keys;

/// The port of a Sentinel that names none.
const PORT: u16 = 26379;
/// The form that every error shows.
const FORM: &str = "redis+sentinel://host:26379,host:26379,host:26379/SERVICE or …/SERVICE/DB";

/// Who logs in; an empty user means the default one.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub user: Option<String>,
    /// The password.
    pub password: Option<String>,
}

/// Where Sentinels are, and what to ask them for. It holds passwords, so it never prints itself.
#[derive(Clone, PartialEq, Eq)]
pub struct SentinelUrl {
    /// Host and port of each.
    pub sentinels: Vec<(String, u16)>,
    /// The name under which they watch the primary.
    pub service: String,
    /// The database of the primary.
    pub db: i64,
    /// Whether Sentinels and nodes are reached by TLS.
    pub tls: bool,
    /// For the nodes.
    pub nodes: Login,
    /// For the Sentinels.
    pub own: Login,
}

impl SentinelUrl {
    /// Parses a URL; `None` if it has another scheme.
    ///
    /// # Errors
    /// What is wrong with it, without its secrets.
    pub(crate) fn parse(url: &str) -> Option<Result<Self, String>> {
        let (tls, rest) = match url.split_once("://")? {
            ("redis+sentinel", rest) => (false, rest),
            ("rediss+sentinel", rest) => (true, rest),
            _ => return None,
        };
        Some(Self::of(tls, rest).map_err(|problem| format!("{problem}: write {FORM}")))
    }

    fn of(tls: bool, rest: &str) -> Result<Self, String> {
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (login, rest) = match rest.rsplit_once('@') {
            Some((login, rest)) => (login, rest),
            None => ("", rest),
        };
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (service, db) = path.split_once('/').unwrap_or((path, ""));
        if service.is_empty() {
            return Err("it names no service, under which the Sentinels watch the primary".into());
        }
        if !keys::is_name(service) {
            return Err("the service is not 1 to 128 of the characters A-Z a-z 0-9 . _ -".into());
        }
        let db = match db {
            "" => 0,
            db => db
                .parse()
                .ok()
                .filter(|db| *db >= 0)
                .ok_or("what follows the service is no database number")?,
        };
        let mut sentinels = Vec::new();
        for (index, host) in hosts.split(',').enumerate() {
            // Not told as it is: it may be a password that lost its @.
            let number = index + 1;
            let place =
                place(host, PORT).ok_or_else(|| format!("Sentinel {number} is no host:port"))?;
            // It would have two voices.
            if sentinels.contains(&place) {
                return Err(format!("Sentinel {number} is one of those before it"));
            }
            sentinels.push(place);
        }
        let mut own = Login::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sentinel_user", value)) => own.user = Some(plain(value)?),
                Some(("sentinel_password", value)) => own.password = Some(plain(value)?),
                _ => {
                    let known = "after ? it may say sentinel_user=… and sentinel_password=… only";
                    return Err(known.into());
                }
            }
        }
        let nodes = named(login)?;
        for login in [&nodes, &own] {
            if login.user.is_some() && login.password.is_none() {
                return Err(NO_PASSWORD.into());
            }
        }
        Ok(Self {
            sentinels,
            service: service.to_owned(),
            db,
            tls,
            nodes,
            own,
        })
    }
}

/// `host`, `host:port`, `[address]` or `[address]:port`.
pub(crate) fn place(text: &str, usual: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']')? {
            (host, "") => (host, None),
            (host, port) => (host, Some(port.strip_prefix(':')?)),
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = port.map_or(Some(usual), |port| port.parse().ok())?;
    (!host.is_empty() && port > 0).then(|| (host.to_owned(), port))
}

/// `user:password`, `:password` or `user`.
pub(crate) fn named(login: &str) -> Result<Login, String> {
    let (user, password) = match login.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (login, None),
    };
    let some = |text: &str| (!text.is_empty()).then(|| plain(text)).transpose();
    Ok(Login {
        user: some(user)?,
        password: some(password.unwrap_or_default())?,
    })
}

/// Without its percent signs.
fn plain(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let code = rest
            .get(..2)
            .and_then(|code| std::str::from_utf8(code).ok());
        let code = code.filter(|code| code.bytes().all(|b| b.is_ascii_hexdigit()));
        let code = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        bytes.push(code.ok_or("a % in user or password is written %25")?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| "user or password is not UTF-8".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> SentinelUrl {
        match SentinelUrl::parse(url) {
            Some(Ok(parsed)) => parsed,
            Some(Err(problem)) => panic!("{url}: {problem}"),
            None => panic!("{url}: another scheme"),
        }
    }

    fn login(user: &str, password: &str) -> Login {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Login {
            user: some(user),
            password: some(password),
        }
    }

    #[test]
    fn a_sentinel_url_names_sentinels_service_database_and_both_logins() {
        let url = parsed("redis+sentinel://a:1,b,[::1]:3,[::2]/bus");
        let places = [("a", 1), ("b", PORT), ("::1", 3), ("::2", PORT)];
        assert_eq!(url.sentinels, places.map(|(h, p)| (h.to_owned(), p)));
        assert_eq!((&*url.service, url.db, url.tls), ("bus", 0, false));
        assert!(url.nodes == Login::default() && url.own == Login::default());
        let url = parsed(
            "rediss+sentinel://me:p%40s/w:d@a:1/bus/3?sentinel_user=s&sentinel_password=%26@x",
        );
        assert_eq!((&*url.service, url.db, url.tls), ("bus", 3, true));
        assert!(url.nodes == login("me", "p@s/w:d") && url.own == login("s", "&@x"));
        assert!(parsed("redis+sentinel://:pw@a/bus").nodes == login("", "pw"));
        assert!(parsed("redis+sentinel://me:pw@a/bus/").nodes == login("me", "pw"));
        for other in ["redis://a", "sentinel://a/bus", "redis+sentinel:a", ""] {
            assert!(SentinelUrl::parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_wrong_sentinel_url_is_told_without_its_secrets() {
        for (rest, problem) in [
            ("a:1", "names no service"),
            ("a:1/", "names no service"),
            ("u:s3cret@a:1", "names no service"),
            ("/bus", "no host:port"),
            ("a:1,,b:2/bus", "no host:port"),
            ("a:0/bus", "no host:port"),
            ("a:x/bus", "no host:port"),
            ("a:/bus", "no host:port"),
            ("[::1:1/bus", "no host:port"),
            ("[::1]1/bus", "no host:port"),
            ("u:s3cret,a/bus", "Sentinel 1 is no host:port"),
            ("a:1,a:1/bus", "Sentinel 2 is one of"),
            ("a:1/my bus", "the service is not"),
            ("a:1/bus/x", "no database number"),
            ("a:1/bus/-1", "no database number"),
            ("a:1/bus/1/2", "no database number"),
            ("u:s3cret%@a:1/bus", "%25"),
            ("u:s3cret%ff@a:1/bus", "UTF-8"),
            ("a:1/bus?sentinel_password=s3cret%4", "%25"),
            ("a:1/bus?password=s3cret", "sentinel_password=…"),
            ("u:s3cr?et@a:1/bus", "names no service"),
        ] {
            let url = format!("redis+sentinel://{rest}");
            let Some(Err(told)) = SentinelUrl::parse(&url) else {
                panic!("{url}");
            };
            assert!(told.contains(problem), "{url}: {told}");
            assert!(
                told.contains(FORM) && !told.contains("s3cr"),
                "{url}: {told}"
            );
        }
    }
}
