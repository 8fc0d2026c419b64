//! What each lane of a worker reads, and how many runs it has room for.

use super::handover::NUDGE;
use super::owned::Ownership;
use crate::builtin::system::batch_process::PLACES;
use crate::handler::context::Process;
use crate::handler::router::Router;
use crate::protocol::keys::{self, StreamKeys};
use crate::settings::Settings;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Entries of the inbox that may be waited for besides tasks.
const BESIDES: usize = 8;

/// A domain, and one of its partitions.
pub(super) type Place = (String, u16);

/// What a lane reads.
pub(super) struct Plan {
    pub(super) name: &'static str,
    pub(super) concurrency: usize,
    pub(super) routes: Vec<StreamKeys>,
    pub(super) places: Vec<(String, u16)>,
    pub(super) inbox: Option<usize>,
    /// Runs that there is room for beside the others.
    pub(super) beside: usize,
    /// What one type may hold of the slots, in percent.
    pub(super) share: u8,
    /// Where the partition is one that this worker owns.
    pub(super) owned: Option<Arc<Ownership>>,
}

/// The lanes of the control plane. The inbox has one of its own: tasks may run long, as many at a time as the capacity
/// says, and a `system` event must not wait for any of them.
pub(super) fn of_control(settings: &Settings, process: &Process) -> [Plan; 2] {
    let (keys, instance) = (&process.keys, process.instance.as_str());
    let domains = ["system", "task"];
    let control = Plan {
        name: "control",
        concurrency: settings.concurrency,
        routes: domains.map(|domain| keys.route(domain, 0)).to_vec(),
        places: domains.map(|domain| (domain.to_owned(), 0)).to_vec(),
        inbox: None,
        beside: PLACES,
        share: settings.type_share,
        owned: None,
    };
    let tasks = Plan {
        name: "tasks",
        concurrency: settings.capacity as usize,
        routes: vec![keys.inbox_route(instance)],
        places: vec![("task".to_owned(), 0)],
        inbox: Some(0),
        beside: BESIDES,
        // All of it is one type, and how much of it there may be the capacity says.
        share: 100,
        owned: None,
    };
    [control, tasks]
}

fn of_others(router: &Router) -> impl Iterator<Item = &str> {
    let kinds = router.routes().map(|route| route.kind.as_str());
    kinds.filter(|kind| *kind != NUDGE && !keys::is_control(keys::domain_of(kind)))
}

/// The domains whose events are read.
pub(super) fn domains(settings: &Settings, router: &Router) -> BTreeSet<String> {
    let ignored = settings.ignore.iter().map(String::as_str);
    let read = of_others(router).chain(ignored).map(keys::domain_of);
    read.map(str::to_owned).collect()
}

/// The first type of each domain that there is a handler for.
pub(super) fn handled(router: &Router) -> BTreeMap<String, String> {
    let mut first = BTreeMap::new();
    for kind in of_others(router) {
        let known = first.entry(keys::domain_of(kind).to_owned());
        let known: &mut String = known.or_insert_with(|| kind.to_owned());
        if kind < known.as_str() {
            *known = kind.to_owned();
        }
    }
    first
}

/// The lanes of the events of others that lie in these places.
///
/// On a cluster a lane's streams are in one slot: each partition of a domain has a lane of its own, and all of them
/// share the concurrency evenly.
pub(super) fn of_data(
    settings: &Settings,
    process: &Process,
    router: &Router,
    places: Vec<Place>,
) -> Vec<Plan> {
    let lanes: Vec<Vec<Place>> = match process.connector.is_cluster() {
        true => places.into_iter().map(|place| vec![place]).collect(),
        false if places.is_empty() => Vec::new(),
        false => vec![places],
    };
    let plans = lanes
        .into_iter()
        .map(|places| of(settings, process, router, places, None));
    plans.collect()
}

/// The lane of a partition that this worker owns.
pub(super) fn of_owned(
    settings: &Settings,
    process: &Process,
    router: &Router,
    place: Place,
    owned: Arc<Ownership>,
) -> Plan {
    of(settings, process, router, vec![place], Some(owned))
}

fn of(
    settings: &Settings,
    process: &Process,
    router: &Router,
    places: Vec<Place>,
    owned: Option<Arc<Ownership>>,
) -> Plan {
    let share = match of_others(router).count() {
        // One that has no neighbours starves none.
        1 => 100,
        _ => settings.type_share,
    };
    let routes = places
        .iter()
        .map(|(domain, partition)| process.keys.route(domain, *partition));
    Plan {
        name: "data",
        concurrency: settings.concurrency,
        routes: routes.collect(),
        places,
        inbox: None,
        beside: 0,
        share,
        owned,
    }
}
