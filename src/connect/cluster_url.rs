//! The URL of a cluster: `redis+cluster://[user:password@]host:port,host:port,…`.
//!
//! Each host is a node that may be asked where the slots are; one is enough. With `rediss+cluster://` all nodes
//! are reached by TLS. User and password are those of every node.

use crate::connect::sentinel_url::{Login, named, place};
use crate::connect::url::NO_PASSWORD;
use redis::{ConnectionAddr, IntoConnectionInfo};

/// The port of a node that names none.
const PORT: u16 = 6379;
/// The form that every error shows.
const FORM: &str = "redis+cluster://host:6379 or redis+cluster://host:6379,host:6379,host:6379";

/// Where nodes of a cluster are. It holds a password, so it never prints itself.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ClusterUrl {
    /// Host and port of each.
    pub nodes: Vec<(String, u16)>,
    /// Whether nodes are reached by TLS.
    pub tls: bool,
    /// For each of them.
    pub login: Login,
}

impl ClusterUrl {
    /// Whether a URL has the scheme of one.
    pub(crate) fn is_one(url: &str) -> bool {
        matches!(
            url.split_once("://"),
            Some(("redis+cluster" | "rediss+cluster", _))
        )
    }

    /// Parses a URL; `None` if it has another scheme.
    ///
    /// # Errors
    /// What is wrong with it, without its secrets.
    pub(crate) fn parse(url: &str) -> Option<Result<Self, String>> {
        let (tls, rest) = match url.split_once("://")? {
            ("redis+cluster", rest) => (false, rest),
            ("rediss+cluster", rest) => (true, rest),
            _ => return None,
        };
        Some(Self::of(tls, rest).map_err(|problem| format!("{problem}: write {FORM}")))
    }

    /// The cluster that a server is a node of which a plain URL names.
    ///
    /// # Errors
    /// What it says that a cluster does not have, without its secrets.
    pub(crate) fn of_a_node(url: &str) -> Result<Self, String> {
        let told = |problem: &str| format!("the server is a node of a cluster: {problem}");
        let info = url.into_connection_info();
        let info = info.map_err(|_| told(&format!("write {FORM}")))?;
        let (node, tls) = match info.addr() {
            ConnectionAddr::Tcp(host, port) => ((host.clone(), *port), false),
            ConnectionAddr::TcpTls { host, port, .. } => ((host.clone(), *port), true),
            _ => {
                let problem = format!("its other nodes are not reached by a socket: write {FORM}");
                return Err(told(&problem));
            }
        };
        let settings = info.redis_settings();
        match settings.db() {
            0 => {}
            db => {
                let problem = format!("that has one database, 0, and redis_url names {db}");
                return Err(told(&problem));
            }
        }
        let login = Login {
            user: settings.username().map(str::to_owned),
            password: settings.password().map(str::to_owned),
        };
        Ok(Self {
            nodes: vec![node],
            tls,
            login,
        })
    }

    fn of(tls: bool, rest: &str) -> Result<Self, String> {
        let (login, hosts) = match rest.rsplit_once('@') {
            Some((login, hosts)) => (login, hosts),
            None => ("", rest),
        };
        let hosts = match hosts.split_once('/') {
            Some((hosts, "" | "0")) => hosts,
            Some(_) => return Err("a cluster has one database, 0".into()),
            None => hosts,
        };
        if hosts.contains(['?', '#']) {
            return Err("what follows ? or # would be ignored".into());
        }
        let mut nodes = Vec::new();
        for (index, host) in hosts.split(',').enumerate() {
            // Not told as it is: it may be a password that lost its @.
            let number = index + 1;
            let place =
                place(host, PORT).ok_or_else(|| format!("node {number} is no host:port"))?;
            if !nodes.contains(&place) {
                nodes.push(place);
            }
        }
        let login = named(login)?;
        if login.user.is_some() && login.password.is_none() {
            return Err(NO_PASSWORD.into());
        }
        Ok(Self { nodes, tls, login })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_url_names_nodes_and_who_logs_in() {
        let url = ClusterUrl::parse("rediss+cluster://me:p%40@a:1,b,[::1]:3,a:1/0");
        let url = url.unwrap().unwrap_or_else(|problem| panic!("{problem}"));
        let places = [("a", 1), ("b", PORT), ("::1", 3)];
        assert_eq!(
            url.nodes,
            places.map(|(host, port)| (host.to_owned(), port))
        );
        assert!(url.tls);
        assert_eq!(url.login.user.as_deref(), Some("me"));
        assert_eq!(url.login.password.as_deref(), Some("p@"));
        for other in ["redis://a", "redis+sentinel://a/bus", "redis+cluster:a"] {
            assert!(ClusterUrl::parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_plain_url_of_a_node_names_a_cluster_of_one_node_that_is_known() {
        let of = |url: &str| ClusterUrl::of_a_node(url);
        let url = of("rediss://me:p%40@[::1]:7/0").unwrap_or_else(|problem| panic!("{problem}"));
        assert_eq!(url.nodes, [("::1".to_owned(), 7)]);
        assert!(url.tls);
        assert_eq!(url.login.user.as_deref(), Some("me"));
        assert_eq!(url.login.password.as_deref(), Some("p@"));
        let url = of("redis://:p@a?protocol=2").unwrap_or_else(|problem| panic!("{problem}"));
        assert_eq!(url.nodes, [("a".to_owned(), PORT)]);
        assert!(!url.tls && url.login.user.is_none());
        for (url, problem) in [
            (
                "redis://u:s3cret@a/1",
                "one database, 0, and redis_url names 1",
            ),
            ("unix:///run/redis.sock?pass=s3cret", "a socket"),
        ] {
            let Err(told) = of(url) else {
                panic!("{url}");
            };
            assert!(told.contains(problem) && !told.contains("s3cr"), "{told}");
        }
    }

    #[test]
    fn a_wrong_cluster_url_is_told_without_its_secrets() {
        for (rest, problem) in [
            ("", "no host:port"),
            ("a:1,,b", "node 2 is no host:port"),
            ("u:s3cret,a", "no host:port"),
            ("me@a", "without a password"),
            ("a:1/3", "one database"),
            ("a:1?s3cret=1", "ignored"),
        ] {
            let told = ClusterUrl::parse(&format!("redis+cluster://{rest}"));
            let Some(Err(told)) = told else {
                panic!("{rest}");
            };
            assert!(told.contains(problem), "{rest}: {told}");
            assert!(
                told.contains(FORM) && !told.contains("s3cr"),
                "{rest}: {told}"
            );
        }
    }
}
