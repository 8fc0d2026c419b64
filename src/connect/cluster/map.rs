//! Which node has which slots, as a node tells it.

use crate::connect::error::BusError;
use crate::connect::resp::wire::{Token, Tokens};
use crate::protocol::keys::SLOTS;
use std::ops::RangeInclusive;

/// Rows of an answer that are read at the most: each slot could be one.
const ROWS: usize = SLOTS as usize;
/// Bytes of a host's name.
const HOST: usize = 253;

const SHAPE: BusError = BusError::Reply {
    what: "CLUSTER SLOTS",
};

/// Where a node is.
pub(crate) type Address = (String, u16);

/// What a node said of the slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlotMap {
    /// Slots and their primary.
    pub rows: Vec<(RangeInclusive<u16>, Address)>,
    /// Rises with each failover and most moves.
    pub epoch: u64,
}

impl SlotMap {
    /// Reads the answer to `CLUSTER SLOTS`. A node without a name is at the host that was asked; by TLS a node's
    /// name goes before its number, which no certificate holds.
    pub(crate) fn parse(mut reply: Tokens<'_>, asked: &str, tls: bool) -> Result<Self, BusError> {
        let rows = length(&mut reply)?;
        let mut map = Self::default();
        for _ in 0..rows.min(ROWS) {
            let parts = length(&mut reply)?;
            let (from, to) = (slot(&mut reply)?, slot(&mut reply)?);
            if parts < 3 || from > to {
                return Err(SHAPE);
            }
            let primary = node(&mut reply, asked, tls)?;
            for _ in 3..parts {
                reply.skip()?;
            }
            map.rows.push((from..=to, primary));
        }
        Ok(map)
    }

    /// Reads the epoch in an answer to `CLUSTER INFO`; 0 where it is not told.
    pub(crate) fn epoch_in(info: &[u8]) -> u64 {
        let info = String::from_utf8_lossy(info);
        let epoch = crate::connect::greeting::field(&info, "cluster_current_epoch");
        epoch.and_then(|epoch| epoch.parse().ok()).unwrap_or(0)
    }
}

fn length(reply: &mut Tokens<'_>) -> Result<usize, BusError> {
    match reply.token()? {
        Token::Array(length) => Ok(length),
        _ => Err(SHAPE),
    }
}

fn slot(reply: &mut Tokens<'_>) -> Result<u16, BusError> {
    match reply.token()? {
        Token::Int(number) => u16::try_from(number).ok().filter(|slot| *slot < SLOTS),
        _ => None,
    }
    .ok_or(SHAPE)
}

fn node(reply: &mut Tokens<'_>, asked: &str, tls: bool) -> Result<Address, BusError> {
    let parts = length(reply)?;
    if parts < 2 {
        return Err(SHAPE);
    }
    let mut host = name(reply.token()?);
    let port = match reply.token()? {
        Token::Int(port) => u16::try_from(port).ok().filter(|port| *port > 0),
        _ => None,
    };
    for part in 2..parts {
        if part != 3 || !tls {
            reply.skip()?;
            continue;
        }
        let mut metadata = reply.clone();
        reply.skip()?;
        if let Ok(Token::Array(words)) = metadata.token() {
            for _ in 0..words / 2 {
                let (key, value) = (metadata.token()?, metadata.token()?);
                if key == Token::Bulk(b"hostname") {
                    host = name(value).or(host);
                }
            }
        }
    }
    let host = host.unwrap_or_else(|| asked.to_owned());
    Ok((host, port.ok_or(SHAPE)?))
}

fn name(token: Token<'_>) -> Option<String> {
    let Token::Bulk(host) = token else {
        return None;
    };
    let host = std::str::from_utf8(host).ok()?;
    (!host.is_empty() && host != "?" && host.len() <= HOST).then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(reply: &str, tls: bool) -> Result<SlotMap, BusError> {
        let reply = reply.replace(' ', "\r\n") + "\r\n";
        SlotMap::parse(Tokens::new(reply.as_bytes()), "asked", tls)
    }

    fn row(from: u16, to: u16, host: &str, port: u16) -> (RangeInclusive<u16>, Address) {
        (from..=to, (host.to_owned(), port))
    }

    #[test]
    fn each_row_names_its_primary_first() {
        let map = parsed(
            "*2 *4 :0 :99 *2 $1 a :1 *2 $1 x :9 *3 :100 :16383 *4 $1 b :2 $2 id *2 $8 hostname $1 h",
            false,
        );
        let rows = vec![row(0, 99, "a", 1), row(100, 16383, "b", 2)];
        assert_eq!(map.unwrap().rows, rows);
    }

    #[test]
    fn a_node_without_a_name_is_where_the_question_went() {
        for unnamed in ["$-1", "$1 ?", "$0 "] {
            let map = parsed(&format!("*1 *3 :0 :9 *2 {unnamed} :7"), false);
            assert_eq!(map.unwrap().rows, [row(0, 9, "asked", 7)], "{unnamed}");
        }
    }

    #[test]
    fn by_tls_a_node_has_its_name() {
        let reply = "*1 *3 :0 :9 *4 $8 10.0.0.1 :7 $2 id *2 $8 hostname $4 node";
        assert_eq!(parsed(reply, true).unwrap().rows, [row(0, 9, "node", 7)]);
        assert_eq!(
            parsed(reply, false).unwrap().rows,
            [row(0, 9, "10.0.0.1", 7)]
        );
    }

    #[test]
    fn what_is_no_map_is_refused() {
        for bad in [
            "$1 x",
            "*1 *3 :9 :0 *2 $1 a :1",
            "*1 *3 :0 :16384 *2 $1 a :1",
            "*1 *3 :-1 :5 *2 $1 a :1",
            "*1 *3 :0 :5 *2 $1 a :0",
            "*1 *3 :0 :5 *2 $1 a :70000",
            "*1 *2 :0 :5",
            "*99999999999",
            "*1 *3 :0 :5 *1 $1 a",
        ] {
            assert!(parsed(bad, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_epoch_is_in_the_info() {
        let info = b"cluster_state:ok\r\ncluster_current_epoch:6\r\ncluster_my_epoch:2\r\n";
        assert_eq!(SlotMap::epoch_in(info), 6);
        assert_eq!(SlotMap::epoch_in(b"nothing"), 0);
    }
}
