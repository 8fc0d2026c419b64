//! Which nodes of a cluster answer: what the others have is left out, and they are named.

use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use futures_util::future::join_all;
use std::time::Duration;
use tokio::time::timeout;

/// A node that could not be asked, and what was wrong.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Away {
    /// Where it is.
    pub node: String,
    /// What was wrong.
    pub error: String,
}

/// The nodes of a cluster that answered when they were asked, and those that did not. A server that is no cluster is
/// not asked: whatever it is asked next tells.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct Reach {
    connector: Connector,
    nodes: Vec<Connector>,
    /// By their numbers.
    away: Vec<(u64, Away)>,
}

impl Reach {
    /// Asks all nodes that have slots, at once. One that needs longer than that is away.
    ///
    /// # Errors
    /// No node tells which there are, or none answers.
    pub async fn look(connector: &Connector, patience: Duration) -> Result<Self, BusError> {
        let mut reach = Self {
            connector: connector.clone(),
            nodes: connector.nodes().await?,
            away: Vec::new(),
        };
        let Some(nobodys) = connector.nobodys() else {
            return Ok(reach);
        };
        let asked = reach.nodes.drain(..).map(async |node| {
            // Before: after a failover it is another one.
            let number = node.generation();
            let answer = timeout(patience, answers(&node)).await;
            let late = || BusError::Pool(format!("no answer within {} ms", patience.as_millis()));
            (answer.unwrap_or_else(|_| Err(late())), number, node)
        });
        let (mut nodes, mut first) = (Vec::new(), None);
        for (answer, number, node) in join_all(asked).await {
            let Err(error) = answer else {
                nodes.push(node);
                continue;
            };
            let address = address_of(&node).await;
            let away = Away {
                error: without(&address, &error.to_string()),
                node: address,
            };
            reach.away.push((number, away));
            first.get_or_insert(error);
        }
        if let (true, Some(error)) = (nodes.is_empty(), first) {
            return Err(error);
        }
        if nobodys > 0 {
            let away = Away {
                node: "no node".into(),
                error: format!("{nobodys} slots are nobody's"),
            };
            reach.away.push((0, away));
        }
        reach.nodes = nodes;
        Ok(reach)
    }

    /// The ways to the nodes that answered.
    pub fn nodes(&self) -> &[Connector] {
        &self.nodes
    }

    /// The nodes that did not answer.
    pub fn away(&self) -> impl Iterator<Item = &Away> {
        self.away.iter().map(|(_, away)| away)
    }

    /// Whether all answered.
    pub fn is_whole(&self) -> bool {
        self.away.is_empty()
    }

    /// The node of the key, if it did not answer.
    pub fn missing(&self, key: &str) -> Option<&Away> {
        let number = self.connector.node_of(key)?;
        let away = self.away.iter().find(|(of, _)| *of == number);
        away.map(|(_, away)| away)
    }
}

/// Where a node is, for people.
pub async fn address_of(node: &Connector) -> String {
    let address = node.address().await;
    address.map_or_else(|_| "?".to_owned(), |info| info.addr().to_string())
}

/// Whether it answers; that it may not be asked is an answer.
async fn answers(node: &Connector) -> Result<(), BusError> {
    match node.ping().await {
        Err(BusError::Redis(error)) if error.code() == Some("NOPERM") => Ok(()),
        answer => answer.map(drop),
    }
}

/// What was wrong, without where: that is said beside it.
fn without(address: &str, error: &str) -> String {
    let said = error.replace(&format!(" at {address}"), "");
    said.replace(&format!("{address}: "), "")
}

#[cfg(test)]
mod tests {
    use super::without;

    #[test]
    fn an_address_is_said_once() {
        let at = "127.0.0.1:7001";
        let pooled = format!("no connection to redis: {at}: refused");
        assert_eq!(without(at, &pooled), "no connection to redis: refused");
        let opened = format!("cannot connect to redis at {at}: refused");
        assert_eq!(without(at, &opened), "cannot connect to redis: refused");
    }
}
