//! One instance: what it registers, what its pulses carry, and the bounds on both.

use crate::coordination::bounds::{check_id, check_map, invalid, named, within};
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::Seal;
use crate::coordination::instances::gossip::{self, Observed};
use crate::coordination::instances::orders::WorkerMode;
use crate::coordination::metrics::{Gauges, Report};
use crate::protocol::bounds::{MAX_CAPACITY, MAX_ROLES, TTL_MS};
use crate::protocol::keys;
use std::collections::{BTreeSet, HashMap};

/// Event types that one instance may have handlers for.
pub const MAX_CAPABILITIES: usize = 1024;
/// Bytes of metadata.
pub const MAX_METADATA: usize = 4 * 1024;
/// Peers of which one pulse tells.
pub const MAX_OBSERVED: usize = 64;
/// The highest load.
pub const MAX_LOAD: f64 = 1e9;

/// An empty MessagePack map.
pub(crate) const EMPTY_MAP: &[u8] = &[0x80];

/// What an instance registers.
#[derive(Clone, Debug, PartialEq)]
pub struct Registering {
    /// Its id.
    pub id: String,
    /// The roles that it holds; at most [`MAX_ROLES`].
    pub roles: Vec<String>,
    /// Tasks that it takes at a time; at most [`MAX_CAPACITY`].
    pub capacity: u32,
    /// Event types that it has handlers for; at most [`MAX_CAPABILITIES`].
    pub capabilities: Vec<String>,
    /// What else people should know of it: a MessagePack map of at most [`MAX_METADATA`] bytes.
    /// Empty means an empty map.
    pub metadata: Vec<u8>,
    /// How long it counts as alive after this and after each pulse, in ms, within [`TTL_MS`].
    pub ttl_ms: u64,
    /// The incarnation that is to be replaced, if an event names it; another one is refused.
    pub incarnation: Option<u64>,
    /// Whether it only announces itself: no waiting task is given to it in the same step.
    pub announces: bool,
}

impl Registering {
    /// An instance with the protocol's defaults: capacity 10, 30 s, no capabilities, no metadata.
    pub fn new<R: Into<String>>(
        id: impl Into<String>,
        roles: impl IntoIterator<Item = R>,
    ) -> Registering {
        Registering {
            id: id.into(),
            roles: roles.into_iter().map(Into::into).collect(),
            capacity: 10,
            capabilities: Vec::new(),
            metadata: Vec::new(),
            ttl_ms: 30_000,
            incarnation: None,
            announces: false,
        }
    }

    /// Checks every bound and puts the lists into the form that the scripts compare.
    pub(crate) fn check(&self) -> Result<Checked, CoordinationError> {
        check_id("id", &self.id)?;
        within("roles", self.roles.len(), MAX_ROLES)?;
        for (at, role) in self.roles.iter().enumerate() {
            named(&format!("roles[{at}]"), keys::check_name("role", role))?;
        }
        if self.capacity > MAX_CAPACITY {
            let capacity = self.capacity;
            return Err(invalid(format!(
                "capacity: {capacity} is not 0 to {MAX_CAPACITY}"
            )));
        }
        within("capabilities", self.capabilities.len(), MAX_CAPABILITIES)?;
        for (at, kind) in self.capabilities.iter().enumerate() {
            named(&format!("capabilities[{at}]"), keys::check_event_type(kind))?;
        }
        if !TTL_MS.contains(&self.ttl_ms) {
            let (least, most) = (TTL_MS.start(), TTL_MS.end());
            return Err(invalid(format!(
                "ttl_ms: {} is not {least} to {most}",
                self.ttl_ms
            )));
        }
        let metadata = match self.metadata.as_slice() {
            [] => EMPTY_MAP,
            metadata => metadata,
        };
        check_map("metadata", metadata, MAX_METADATA)?;
        Ok(Checked {
            roles: self.roles.iter().cloned().collect(),
            capabilities: self.capabilities.iter().cloned().collect(),
            metadata: metadata.to_vec(),
        })
    }
}

/// What is stored of a [`Registering`]: sorted, without repetitions.
pub(crate) struct Checked {
    pub roles: BTreeSet<String>,
    pub capabilities: BTreeSet<String>,
    pub metadata: Vec<u8>,
}

/// One pulse of an instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Beat {
    /// Its id.
    pub id: String,
    /// The incarnation that it believes to be; without it any will do.
    pub incarnation: Option<u64>,
    /// How busy it is: 0 to [`MAX_LOAD`], in whatever unit its capacity has.
    pub load: Option<f64>,
    /// What it thinks of at most [`MAX_OBSERVED`] peers.
    pub observed: Option<Observed>,
    /// What it measured. What does not fit into [`MAX_REPORT`](crate::coordination::metrics::MAX_REPORT) bytes is left out, the histograms of
    /// the least used handlers first.
    pub metrics: Option<Report>,
    /// What its own process registered, to be compared with what is there.
    pub seal: Option<Seal>,
    /// Whether its peers ask it meanwhile whether it lives, so that its process's own pulse lasts for
    /// [`LASTS`](crate::coordination::instances::neighbours::LASTS) ttls.
    pub lasting: bool,
}

impl Beat {
    /// A bare pulse.
    pub fn new(id: impl Into<String>, incarnation: Option<u64>) -> Beat {
        Beat {
            id: id.into(),
            incarnation,
            ..Beat::default()
        }
    }

    pub(crate) fn check(&self) -> Result<(), CoordinationError> {
        check_id("instance_id", &self.id)?;
        if let Some(load) = self.load
            && !(0.0..=MAX_LOAD).contains(&load)
        {
            return Err(invalid(format!("load: {load} is not 0 to {MAX_LOAD}")));
        }
        self.observed.as_ref().map_or(Ok(()), gossip::check)
    }
}

/// A registered instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Instance {
    /// Its id.
    pub id: String,
    /// The roles that it holds, sorted.
    pub roles: Vec<String>,
    /// Tasks that it takes at a time.
    pub capacity: u32,
    /// Event types that it has handlers for, sorted.
    pub capabilities: Vec<String>,
    /// A MessagePack map.
    pub metadata: Vec<u8>,
    /// Rises with each registration of the id that did not find it alive.
    pub incarnation: u64,
    /// How long it counts as alive after a pulse, in ms.
    pub ttl_ms: u64,
    /// When this incarnation registered, in Unix ms.
    pub registered_at: u64,
    /// When its process registered first, in Unix ms.
    pub started_at: u64,
    /// How many other processes had the id before this one, one after the other.
    pub restarts: u64,
    /// Whether its own process registered it. If not, an event did: it is external.
    pub sealed: bool,
    /// Its last pulse, in Unix ms.
    pub last_seen: u64,
    /// How busy it said to be.
    pub load: f64,
    /// How it last said to be.
    pub gauges: Option<Gauges>,
    /// Whether a peer suspects it.
    pub suspect: bool,
    /// How it says to be.
    pub mode: WorkerMode,
}

impl Instance {
    /// Reads the hash; `None` if it is gone or no longer that of an active instance.
    pub fn from_hash(hash: HashMap<String, Vec<u8>>) -> Option<Instance> {
        let active = hash.get("status").is_some_and(|status| status == b"active");
        active.then(|| Instance::read(hash))
    }

    /// Reads what is there of the hash.
    pub(crate) fn read(mut hash: HashMap<String, Vec<u8>>) -> Instance {
        let gauges = hash.remove("metrics");
        let gauges = gauges.and_then(|packed| Gauges::unpacked(&packed));
        let metadata = hash.remove("metadata").unwrap_or_default();
        let mode = hash.remove("mode");
        let mode = mode.and_then(|packed| rmp_serde::from_slice(&packed).ok());
        let text = |name: &str| {
            hash.get(name)
                .and_then(|value| std::str::from_utf8(value).ok())
                .unwrap_or_default()
        };
        let words = |name: &str| text(name).split_whitespace().map(str::to_owned).collect();
        let number = |name: &str| text(name).parse().unwrap_or_default();
        let registered_at = number("registered_at");
        Instance {
            id: text("id").to_owned(),
            roles: words("roles"),
            capacity: text("capacity").parse().unwrap_or_default(),
            capabilities: words("capabilities"),
            incarnation: number("incarnation"),
            ttl_ms: number("ttl_ms"),
            registered_at,
            started_at: number("started_at").max(registered_at),
            restarts: number("restarts"),
            sealed: text("sealed") == "1",
            last_seen: number("last_seen"),
            load: text("load").parse().unwrap_or_default(),
            metadata,
            gauges,
            suspect: false,
            mode: mode.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Registering)) -> String {
        let mut registering = Registering::new("w-1", ["worker"]);
        change(&mut registering);
        match registering.check() {
            Err(CoordinationError::Invalid(message)) => message,
            _ => panic!("{registering:?} was not refused"),
        }
    }

    #[test]
    fn what_an_instance_registers_is_bounded_and_the_message_names_the_field() {
        assert!(Registering::new("w-1", ["worker"]).check().is_ok());
        assert!(refused(|r| r.id.clear()).starts_with("id: "));
        assert!(refused(|r| r.id = "x".repeat(129)).starts_with("id: "));
        assert!(refused(|r| r.roles.push("a b".into())).starts_with("roles[1]: "));
        assert!(refused(|r| r.roles = vec!["a".into(); 33]).starts_with("roles: "));
        assert!(refused(|r| r.capacity = 1_000_001).starts_with("capacity: "));
        assert!(refused(|r| r.capabilities = vec!["a".into()]).starts_with("capabilities[0]: "));
        assert!(
            refused(|r| r.capabilities = vec!["a.b".into(); 1025]).starts_with("capabilities: ")
        );
        for ttl_ms in [0, 99, 3_600_001, 1_000_000_000_000] {
            assert!(refused(|r| r.ttl_ms = ttl_ms).starts_with("ttl_ms: "));
        }
        assert!(refused(|r| r.metadata = vec![0x90]).starts_with("metadata: "));
        assert!(refused(|r| r.metadata = vec![0x81, 0xa1]).starts_with("metadata: "));
        let mut long = vec![0x81, 0xa1, b'x', 0xc5, 0x10, 0x00];
        long.resize(6 + 4096, 0);
        assert!(refused(|r| r.metadata = long).starts_with("metadata: "));
    }

    #[test]
    fn what_a_pulse_carries_is_bounded_and_the_message_names_the_field() {
        let refused = |beat: Beat| match beat.check() {
            Err(CoordinationError::Invalid(message)) => message,
            _ => panic!("{beat:?} was not refused"),
        };
        let beat = Beat::new("w-1", None);
        assert!(beat.check().is_ok());
        assert!(refused(Beat::new("", None)).starts_with("instance_id: "));
        for load in [-1.0, f64::NAN, f64::INFINITY, 1e10] {
            let load = Some(load);
            assert!(
                refused(Beat {
                    load,
                    ..beat.clone()
                })
                .starts_with("load: ")
            );
        }
        let peers = |names: &mut dyn Iterator<Item = String>| {
            let healthy = names.map(|name| (name, gossip::Opinion::Healthy));
            Some(healthy.collect())
        };
        for observed in [
            peers(&mut ["a b".to_owned()].into_iter()),
            peers(&mut (0..65).map(|n| format!("w-{n}"))),
        ] {
            let beat = Beat {
                observed,
                ..beat.clone()
            };
            assert!(refused(beat).starts_with("observed: "));
        }
    }
}
