//! What a node says of its cluster: whether it works, and which of its slots are on their way.

use crate::connect::error::{BusError, allowed};
use crate::connect::memory::pairs;
use redis::aio::ConnectionLike;
use std::collections::HashMap;

/// Open slots that are looked at.
const OPEN: usize = 1000;

/// A cluster, as one of its nodes sees it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ClusterView {
    /// `CLUSTER INFO`; `None` if the user may not ask.
    pub info: Option<HashMap<String, String>>,
    /// The node's open slots; `None` if the user may not ask.
    pub open: Option<Vec<OpenSlot>>,
}

/// A slot that is on its way from one node to another.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenSlot {
    /// Which.
    pub slot: u16,
    /// Whether it leaves the node that tells it.
    pub leaves: bool,
    /// The other node: its address, or its id where that is not known.
    pub other: String,
}

impl ClusterView {
    /// Asks the node.
    ///
    /// # Errors
    /// Only if it cannot be reached.
    pub async fn look(connection: &mut impl ConnectionLike) -> Result<Self, BusError> {
        let info = redis::cmd("CLUSTER")
            .arg("INFO")
            .query_async(connection)
            .await;
        let info: Option<String> = allowed(info.map_err(BusError::from))?;
        let nodes = redis::cmd("CLUSTER")
            .arg("NODES")
            .query_async(connection)
            .await;
        let nodes: Option<String> = allowed(nodes.map_err(BusError::from))?;
        Ok(Self {
            info: info.map(|info| pairs(&info)),
            open: nodes.map(|nodes| open_in(&nodes)),
        })
    }

    /// A number in `CLUSTER INFO`.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.info.as_ref()?.get(name)?.parse().ok()
    }
}

/// The open slots of the node whose lines these are: `[93->-ID]` leaves it, `[77-<-ID]` comes.
fn open_in(nodes: &str) -> Vec<OpenSlot> {
    let lines = || nodes.lines().map(|line| line.split(' '));
    let address = |id: &str| {
        let mut of_id = lines().find(|words| words.clone().next() == Some(id))?;
        let place = of_id.nth(1)?.split(['@', ',']).next()?;
        Some(place.to_owned())
    };
    let own = lines().find(|words| {
        let flags = words.clone().nth(2).unwrap_or_default();
        flags.split(',').any(|flag| flag == "myself")
    });
    let open = |word: &str| {
        let inside = word.strip_prefix('[')?.strip_suffix(']')?;
        let (slot, leaves, id) = match (inside.split_once("->-"), inside.split_once("-<-")) {
            (Some((slot, id)), _) => (slot, true, id),
            (None, Some((slot, id))) => (slot, false, id),
            (None, None) => return None,
        };
        Some(OpenSlot {
            slot: slot.parse().ok()?,
            leaves,
            other: address(id).unwrap_or_else(|| id.to_owned()),
        })
    };
    let words = own.into_iter().flatten().skip(8);
    words.filter_map(open).take(OPEN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_slots_are_those_of_the_node_itself_with_the_other_nodes_address() {
        let nodes = "aa 10.0.0.1:7000@17000,a.example master - 0 1 2 connected 0-99 [5->-cc]\n\
                     bb 10.0.0.2:7001@17001 myself,master - 0 1 3 connected 100-200 [70->-aa] [93-<-zz]\n";
        let open = |slot, leaves, other: &str| OpenSlot {
            slot,
            leaves,
            other: other.to_owned(),
        };
        let expected = [open(70, true, "10.0.0.1:7000"), open(93, false, "zz")];
        assert_eq!(open_in(nodes), expected);
    }

    #[test]
    fn what_is_no_open_slot_is_passed_over() {
        for odd in [
            "",
            "aa",
            "aa b myself - 0 1 2 up [x->-b] [7-b] [] [99999->-b] 7",
        ] {
            assert!(open_in(odd).is_empty(), "{odd}");
        }
    }
}
