//! The `system.*` events ([protocol](crate::docs::protocol#system-events)).

mod batch_cancel;
pub mod batch_process;
mod cancel;
mod discover;
pub(crate) mod get_state;
pub(crate) mod health;
mod heartbeat;
pub(crate) mod quorum_vote;
mod register;
mod unregister;

use crate::builtin::encoded;
pub(crate) mod metrics;
mod pattern;
mod ping;
mod policy;
mod repair;
mod report;
mod schedule;
mod workers;

pub(super) use metrics::whole as whole_metrics;

use crate::coordination::instances::gossip::PING;
use crate::coordination::instances::pull::REPORT;
use crate::handler::policy::Policy;
use crate::handler::router::Registration;
use std::time::Duration;

/// Heartbeats that one source may send in a minute.
const HEARTBEATS_A_MINUTE: u32 = 1000;

/// The handlers of `system.*`.
pub fn registrations() -> Vec<Registration> {
    let minute = Duration::from_secs(60);
    vec![
        Registration::new(
            "system.register",
            register::register,
            Policy::new()
                .stateful()
                .describe("Makes an instance active, or replaces what a live one registered."),
        ),
        Registration::new(
            "system.unregister",
            unregister::unregister,
            Policy::new()
                .stateful()
                .describe("Takes an instance out of the active ones."),
        ),
        Registration::new(
            "system.heartbeat",
            heartbeat::heartbeat,
            Policy::new()
                .rate_limit(HEARTBEATS_A_MINUTE, minute)
                .silent()
                .describe("Keeps a live instance alive; never brings one back."),
        ),
        Registration::new(
            "system.health",
            health::health,
            Policy::new().describe("Looks at the services and the instances, live."),
        ),
        Registration::new(
            "system.metrics",
            metrics::metrics,
            Policy::new().describe("Adds up what all instances did and how they are, live."),
        ),
        Registration::new(
            PING,
            ping::ping,
            Policy::new()
                .silent()
                .describe("Answers. Peers ask it over the inbox when an instance's pulse is late."),
        ),
        Registration::new(
            REPORT,
            report::report,
            Policy::new().silent().describe(
                "Reports what it did, now. Who adds up all instances asks it over the inbox.",
            ),
        ),
        Registration::new(
            batch_process::KIND,
            batch_process::process,
            batch_process::policy(),
        ),
        Registration::new(
            "system.batch.cancel",
            batch_cancel::cancel,
            Policy::new()
                .stateful()
                .describe("Has nobody go on with a batch: what was finished stays."),
        ),
        Registration::new(
            "system.get_state",
            get_state::get_state,
            Policy::new().describe("Reads what instances, ballots and streams are there, live."),
        ),
        Registration::new(
            "system.quorum.vote",
            quorum_vote::quorum_vote,
            Policy::new()
                .stateful()
                .describe("Counts one instance's vote; the first one opens the ballot."),
        ),
        Registration::new(
            quorum_vote::counting::COUNT,
            quorum_vote::counting::count,
            Policy::new()
                .stateful()
                .silent()
                .describe("Counts the votes of a ballot. The leader is asked it over its inbox."),
        ),
        Registration::new(
            "system.pattern.set",
            pattern::set,
            Policy::new()
                .stateful()
                .describe("Chooses for all instances in which pattern a system event is answered."),
        ),
        Registration::new(
            "system.pattern.clear",
            pattern::clear,
            Policy::new()
                .stateful()
                .describe("Takes such a choice back: each instance's setting counts again."),
        ),
        Registration::new(
            "system.pattern.get",
            pattern::get,
            Policy::new().describe("Lists in which patterns system events are answered."),
        ),
        Registration::new(
            "system.policy.set",
            policy::set,
            Policy::new()
                .stateful()
                .describe("Pauses or limits the events of a type, a domain or a subject."),
        ),
        Registration::new(
            "system.policy.clear",
            policy::clear,
            Policy::new()
                .stateful()
                .describe("Takes that back: they go on, by their handler's own policy."),
        ),
        Registration::new(
            "system.policy.get",
            policy::get,
            Policy::new().describe("Lists what operators ask of types, domains and subjects."),
        ),
        Registration::new(
            "system.cancel",
            cancel::cancel,
            Policy::new().stateful().describe(
                "Cancels an event that waits, is delayed or runs; whoever asked for it is told.",
            ),
        ),
        Registration::new(
            "system.policy.history",
            policy::history,
            Policy::new().describe("Lists the last changes of that, with who and why."),
        ),
        Registration::new(
            "system.drain",
            workers::drain,
            Policy::new().stateful().describe(
                "Has workers finish what runs and leave; or stay, and read nothing more.",
            ),
        ),
        Registration::new(
            "system.scale",
            workers::scale,
            Policy::new()
                .stateful()
                .describe("Has a worker run another number of handlers at a time."),
        ),
        Registration::new(
            "system.repair.start",
            repair::start,
            Policy::new()
                .stateful()
                .describe("Has workers replay dead letters, and change them on their way."),
        ),
        Registration::new(
            "system.repair.cancel",
            repair::cancel,
            Policy::new()
                .stateful()
                .describe("Ends that: what is not replayed stays where it is."),
        ),
        Registration::new(
            "system.repair.list",
            repair::list,
            Policy::new().describe("Lists the repairs that run and the last ones, and how far each is."),
        ),
        Registration::new(
            "system.schedule.put",
            schedule::put,
            Policy::new().stateful().describe(
                "Puts a schedule, which publishes an event at times; or pauses one, or has it go on.",
            ),
        ),
        Registration::new(
            "system.schedule.delete",
            schedule::delete,
            Policy::new()
                .stateful()
                .describe("Deletes a schedule."),
        ),
        Registration::new(
            "system.schedule.list",
            schedule::list,
            Policy::new().describe("Lists schedules with their next times and their last event."),
        ),
        Registration::new(
            "system.schedule.run",
            schedule::run,
            Policy::new().describe("Publishes a schedule's event now, besides its ticks."),
        ),
        Registration::new(
            "system.discover",
            discover::discover,
            Policy::new().describe("Lists what the active instances can be asked for, and how."),
        ),
    ]
}
