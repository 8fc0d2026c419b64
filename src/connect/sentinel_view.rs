//! What Sentinels say of the primary, and whom of them to believe.

use crate::connect::error::BusError;
use crate::connect::resp::wire::{Token, Tokens};
use std::collections::HashMap;

/// What a Sentinel says about the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentinelView {
    /// The primary's host.
    pub host: String,
    /// The primary's port.
    pub port: u16,
    /// Rises with each failover.
    pub epoch: u64,
    /// Sentinels that it knows of, itself included.
    pub sentinels: u64,
    /// How many of them must find the primary down.
    pub quorum: u64,
    /// Replicas that it knows of.
    pub replicas: u64,
    /// How long the primary may be silent, in ms.
    pub down_after_ms: u64,
    /// Such as `master` or `master,s_down`.
    pub flags: String,
}

impl SentinelView {
    /// Reads the answer to `SENTINEL MASTER`: names and values in turn.
    pub(super) fn parse(mut reply: Tokens<'_>) -> Result<Self, BusError> {
        const SHAPE: BusError = BusError::Reply {
            what: "SENTINEL MASTER",
        };
        let Token::Array(words) = reply.token()? else {
            return Err(SHAPE);
        };
        let mut told = HashMap::new();
        for _ in 0..words / 2 {
            let (Token::Bulk(name), Token::Bulk(value)) = (reply.token()?, reply.token()?) else {
                return Err(SHAPE);
            };
            told.insert(name, String::from_utf8_lossy(value).into_owned());
        }
        let number = |name: &str| {
            told.get(name.as_bytes())
                .and_then(|n| n.parse::<u64>().ok())
        };
        let port = number("port").and_then(|port| u16::try_from(port).ok());
        let host = told.get(&b"ip"[..]).filter(|host| !host.is_empty());
        Ok(Self {
            host: host.ok_or(SHAPE)?.clone(),
            port: port.filter(|port| *port > 0).ok_or(SHAPE)?,
            epoch: number("config-epoch").unwrap_or(0),
            sentinels: number("num-other-sentinels").unwrap_or(0) + 1,
            quorum: number("quorum").unwrap_or(0),
            replicas: number("num-slaves").unwrap_or(0),
            down_after_ms: number("down-after-milliseconds").unwrap_or(0),
            flags: told.get(&b"flags"[..]).cloned().unwrap_or_default(),
        })
    }

    /// Where the primary is.
    pub fn address(&self) -> String {
        address(&self.host, self.port)
    }
}

pub(super) fn address(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// One Sentinel of those that were asked, and what it said.
#[derive(Clone, Debug)]
pub struct Voice {
    /// Its address.
    pub sentinel: String,
    /// Its view, or why it did not answer.
    pub view: Result<SentinelView, String>,
}

fn same_place(a: &SentinelView, b: &SentinelView) -> bool {
    (&a.host, a.port) == (&b.host, b.port)
}

/// Whether two of them name the same address.
pub(super) fn agree(views: &[&SentinelView]) -> bool {
    let mut pairs = views.iter().enumerate();
    pairs.any(|(at, a)| views[..at].iter().any(|b| same_place(a, b)))
}

/// The newest view that two confirm, or that one has of the address that is known already. Its epoch is
/// the highest that both reach; of what is known, one alone raises none.
pub(super) fn confirmed(
    views: &[&SentinelView],
    known: Option<&SentinelView>,
) -> Option<SentinelView> {
    let supported = |view: &SentinelView| {
        let mut epochs: Vec<u64> = views
            .iter()
            .filter(|other| same_place(view, other))
            .map(|other| other.epoch)
            .collect();
        epochs.sort_unstable_by(|a, b| b.cmp(a));
        let known = known.filter(|known| same_place(known, view));
        let alone = known.map(|known| known.epoch.min(view.epoch));
        let epoch = epochs.get(1).copied().or(alone)?;
        Some(SentinelView {
            epoch,
            ..view.clone()
        })
    };
    let supported = views.iter().filter_map(|view| supported(view));
    supported.max_by_key(|view| view.epoch)
}
