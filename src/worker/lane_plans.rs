//! What each lane of a worker reads, and how many runs it has room for.

use super::handover::NUDGE;
use crate::builtin::system::batch_process::PLACES;
use crate::handler::context::Process;
use crate::handler::router::Router;
use crate::protocol::keys::{self, StreamKeys};
use crate::settings::Settings;
use std::collections::BTreeSet;

/// Entries of the inbox that may be waited for besides tasks.
const BESIDES: usize = 8;

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

/// The lanes of the events of others that lie in these places.
///
/// On a cluster a lane's streams are in one slot: each partition of a domain has a lane of its own, and all of them
/// share the concurrency evenly.
pub(super) fn of_data(
    settings: &Settings,
    process: &Process,
    router: &Router,
    places: Vec<(String, u16)>,
) -> Vec<Plan> {
    let lanes: Vec<Vec<(String, u16)>> = match process.connector.is_cluster() {
        true => places.into_iter().map(|place| vec![place]).collect(),
        false if places.is_empty() => Vec::new(),
        false => vec![places],
    };
    let share = match of_others(router).count() {
        // One that has no neighbours starves none.
        1 => 100,
        _ => settings.type_share,
    };
    let keys = &process.keys;
    let data = lanes.into_iter().map(|places| Plan {
        name: "data",
        concurrency: settings.concurrency,
        routes: places
            .iter()
            .map(|(domain, partition)| keys.route(domain, *partition))
            .collect(),
        places,
        inbox: None,
        beside: 0,
        share,
    });
    data.collect()
}
