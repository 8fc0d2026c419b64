//! The keys of the control plane: who is there, what they decide, do and count together.

use super::{Keys, Layout};

/// Where tasks are. `tasks.lua` says what each holds and in which form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskKeys {
    /// The record of each task: a hash.
    pub tasks: String,
    /// Their payloads and results: a hash.
    pub data: String,
    /// The tasks that wait, by lane.
    pub waiting: String,
    /// The first one of each lane, by role.
    pub heads: String,
    /// The tasks that wait, by urgency.
    pub queue: String,
    /// The tasks that are assigned, by instance.
    pub held: String,
    /// Room and load of each instance: a hash.
    pub slots: String,
    /// The instances that have room, by role and load.
    pub free: String,
    /// The finished tasks by time.
    pub done: String,
    /// Serial numbers and totals: a hash.
    pub counts: String,
}

/// Where schedules are, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleKeys {
    /// What each is: a hash.
    pub schedules: String,
    /// Its event, except for what each one has of its own: a hash.
    pub events: String,
    /// How far it is: a hash.
    pub states: String,
    /// When it is to be looked at next: a sorted set.
    pub due: String,
}

/// Where repairs are, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairKeys {
    /// What each does: a hash.
    pub plans: String,
    /// Who does it, and whether it is done: a hash.
    pub states: String,
}

impl Keys {
    /// One registered instance.
    pub fn instance(&self, id: &str) -> String {
        self.control(format_args!("instance:{id}"))
    }

    /// The instance ids by expiry time.
    pub fn active(&self) -> String {
        self.control(format_args!("instances:active"))
    }

    /// The ids of the active instances that hold a role.
    pub fn role(&self, role: &str) -> String {
        self.control(format_args!("role:{role}"))
    }

    /// Who has a handler for what: a sorted set of `type id` members, all scores 0.
    pub fn capabilities(&self) -> String {
        self.control(format_args!("capabilities"))
    }

    /// The ids of the recently lost instances by the time of their loss.
    pub fn lost(&self) -> String {
        self.control(format_args!("instances:lost"))
    }

    /// The active instances that are external, by expiry time: an event registered them, not their own process.
    pub fn external(&self) -> String {
        self.control(format_args!("instances:external"))
    }

    /// The ids of the recently lost external instances by the time of their loss.
    pub fn lost_external(&self) -> String {
        self.control(format_args!("instances:external:lost"))
    }

    /// The current leader (`id`, `incarnation`), its `term` and `until` when it leads: a hash.
    pub fn leader(&self) -> String {
        self.control(format_args!("leader"))
    }

    /// One ballot: a hash.
    pub fn ballot(&self, decision: &str) -> String {
        self.control(format_args!("ballot:{decision}"))
    }

    /// The instances that may vote in a ballot: a sorted set, by what was their expiry.
    pub fn electorate(&self, decision: &str) -> String {
        self.control(format_args!("ballot:{decision}:electorate"))
    }

    /// Who voted what in a ballot: a hash.
    pub fn votes(&self, decision: &str) -> String {
        self.control(format_args!("ballot:{decision}:votes"))
    }

    /// How many votes each value of a ballot has: a hash.
    pub fn tally(&self, decision: &str) -> String {
        self.control(format_args!("ballot:{decision}:tally"))
    }

    /// The decisions of the latest ballots, by the time at which they were opened.
    pub fn ballots(&self) -> String {
        self.control(format_args!("ballots"))
    }

    /// The decisions of the open ballots by their expiry: a sorted set.
    pub fn ballots_open(&self) -> String {
        self.control(format_args!("ballots:open"))
    }

    /// The decisions of the ballots that an arbiter or everyone counts, and nobody did to their end, by their expiry: a
    /// sorted set.
    pub fn ballots_uncounted(&self) -> String {
        self.control(format_args!("ballots:uncounted"))
    }

    /// `electorate decision` of the ballots that are kept by the time until which they are: a sorted set.
    pub fn ballots_kept(&self) -> String {
        self.control(format_args!("ballots:kept"))
    }

    /// How many electors those have together.
    pub fn electors(&self) -> String {
        self.control(format_args!("ballots:electors"))
    }

    /// What a worker published of its handler of an event type.
    pub fn method(&self, kind: &str) -> String {
        self.control(format_args!("method:{kind}"))
    }

    /// The instances that read a type's stream in a group and have a handler for it, by the time until which
    /// that holds: a sorted set that lapses.
    pub fn readers(&self, group: &str, kind: &str) -> String {
        self.control(format_args!("readers:{group}:{kind}"))
    }

    /// The domains that workers read, by when one of them last said so.
    #[doc(hidden)]
    pub fn read_domains(&self) -> String {
        match self.layout {
            // As earlier versions call it: there are no partitions of which anything could be said.
            Layout::Plain => self.control(format_args!("domains")),
            Layout::Tagged { .. } => self.control(format_args!("domains:read")),
        }
    }

    /// How many partitions each domain has: a hash. Plain names have none.
    pub fn domains(&self) -> String {
        format!("{{{}}}:domains", self.namespace)
    }

    /// Which partitions of a domain had their streams made: a bit of each, that stays. Plain names have none.
    #[doc(hidden)]
    pub fn made(&self, domain: &str) -> String {
        format!("{{{}}}:made:{domain}", self.namespace)
    }

    /// Where tasks are.
    #[doc(hidden)]
    pub fn tasks(&self) -> TaskKeys {
        let part = |part: &str| self.control(format_args!("tasks:{part}"));
        TaskKeys {
            tasks: self.control(format_args!("tasks")),
            data: part("data"),
            waiting: part("waiting"),
            heads: part("heads"),
            queue: part("queue"),
            held: part("held"),
            slots: part("slots"),
            free: part("free"),
            done: part("done"),
            counts: part("counts"),
        }
    }

    /// Where schedules are.
    #[doc(hidden)]
    pub fn schedules(&self) -> ScheduleKeys {
        let part = |part: &str| self.control(format_args!("schedules:{part}"));
        ScheduleKeys {
            schedules: self.control(format_args!("schedules")),
            events: part("events"),
            states: part("states"),
            due: part("due"),
        }
    }

    /// Where repairs are. How far each is stands beside the streams of dead letters.
    #[doc(hidden)]
    pub fn repairs(&self) -> RepairKeys {
        RepairKeys {
            plans: self.control(format_args!("repairs")),
            states: self.control(format_args!("repairs:states")),
        }
    }

    /// The pulses that wait for whoever collects them: a stream.
    pub fn pulses(&self) -> String {
        self.control(format_args!("pulses"))
    }

    /// In which pattern system events are answered, by event: a hash.
    pub fn chosen_patterns(&self) -> String {
        self.control(format_args!("patterns"))
    }

    /// What operators ask of types, domains and subjects, by scope: a hash.
    pub fn policies(&self) -> String {
        self.control(format_args!("policies"))
    }

    /// The last changes of these: a stream.
    #[doc(hidden)]
    pub fn policy_changes(&self) -> String {
        self.control(format_args!("policies:changes"))
    }

    /// What an instance last found of its own services.
    pub fn own_health(&self, id: &str) -> String {
        self.control(format_args!("health:of:{id}"))
    }

    /// What the leader last put together of these.
    pub fn merged_health(&self) -> String {
        self.control(format_args!("health:merged"))
    }

    /// The suspect instances by the time until which the suspicion stands: a sorted set.
    pub fn suspects(&self) -> String {
        self.control(format_args!("instances:suspect"))
    }

    /// What observers last said of an instance: a hash by observer. It lapses with the reports.
    pub fn reports(&self, id: &str) -> String {
        self.control(format_args!("reports:{id}"))
    }

    /// The partition that was detected and has not healed: a hash.
    pub fn partition(&self) -> String {
        self.control(format_args!("partition"))
    }

    /// What all instances did so far, by event type: a hash.
    pub fn metrics(&self) -> String {
        self.control(format_args!("metrics"))
    }

    /// What the leader last put together of the metrics of all: short, and in detail.
    #[doc(hidden)]
    pub fn merged_metrics(&self, detailed: bool) -> String {
        let which = if detailed { "detailed" } else { "short" };
        self.control(format_args!("metrics:merged:{which}"))
    }

    /// The state as the leader last saw it.
    #[doc(hidden)]
    pub fn merged_state(&self) -> String {
        self.control(format_args!("state:merged"))
    }

    /// What one process of an instance last reported of what it did: a hash that lapses without reports.
    pub fn reported(&self, id: &str, process: &str) -> String {
        self.control(format_args!("metrics:of:{id}:{process}"))
    }

    /// The rate-limit state of one bucket.
    pub fn limit(&self, kind: &str, source: &str) -> String {
        self.control(format_args!("limit:{kind}:{source}"))
    }

    /// The seats of a type, which all workers share: a hash by worker, which lapses.
    #[doc(hidden)]
    pub fn seats(&self, kind: &str) -> String {
        self.control(format_args!("seats:{kind}"))
    }

    /// One batch: a hash.
    pub fn batch(&self, id: &str) -> String {
        self.control(format_args!("batch:{id}"))
    }

    /// The version of the state that is told, and what of it lapsed: a hash.
    pub fn state(&self) -> String {
        self.control(format_args!("state"))
    }

    /// The groups that were gone and were made again: a hash that lapses.
    pub fn remade(&self) -> String {
        self.control(format_args!("remade"))
    }

    /// Which items of a batch are finished: a bitmap.
    pub fn batch_finished(&self, id: &str) -> String {
        self.control(format_args!("batch:{id}:finished"))
    }

    /// The ids of running and recent batches by their last change.
    pub fn batches(&self) -> String {
        self.control(format_args!("batches"))
    }
}
