//! State that would take the interface of the program too long to make.

use crate::fleet::Fleet;
use sha1_smol::Sha1;

/// Unix ms that lie far ahead: the time of an expiry that does not come.
pub(super) const FAR: u64 = 4_000_000_000_000;
/// Roles that one instance may hold.
pub(super) const ROLES: usize = 32;
/// Capabilities that one instance may have.
pub(super) const KINDS: usize = 1024;
/// What one command is given in a seed.
const PAGE: usize = 1000;

pub(super) fn role(number: usize) -> String {
    format!("role-{number}")
}

pub(super) fn kind(number: usize) -> String {
    format!("kind.number_{number}")
}

/// Collects commands, and sends them when there are many.
pub(super) struct Seed<'a> {
    fleet: &'a mut Fleet,
    commands: redis::Pipeline,
}

impl<'a> Seed<'a> {
    /// Begins with an empty server.
    pub(super) async fn afresh(fleet: &'a mut Fleet) -> Self {
        fleet.run("FLUSHALL").await;
        Self::more(fleet)
    }

    pub(super) fn more(fleet: &'a mut Fleet) -> Self {
        Self {
            fleet,
            commands: redis::pipe(),
        }
    }

    pub(super) async fn add(&mut self, command: redis::Cmd) {
        self.commands.add_command(command).ignore();
        if self.commands.len() >= PAGE {
            self.done().await;
        }
    }

    pub(super) async fn done(&mut self) {
        let commands = std::mem::replace(&mut self.commands, redis::pipe());
        if !commands.is_empty() {
            commands
                .exec_async(&mut self.fleet.connection)
                .await
                .unwrap();
        }
    }

    /// Members of a sorted set, all of one score.
    pub(super) async fn scored(
        &mut self,
        key: &str,
        score: u64,
        members: impl IntoIterator<Item = String>,
    ) {
        let members: Vec<String> = members.into_iter().collect();
        for page in members.chunks(PAGE) {
            let mut command = redis::cmd("ZADD");
            command.arg(key);
            for member in page {
                command.arg(score).arg(member);
            }
            self.add(command).await;
        }
    }

    pub(super) async fn in_set(&mut self, key: &str, members: impl IntoIterator<Item = String>) {
        let members: Vec<String> = members.into_iter().collect();
        for page in members.chunks(PAGE) {
            self.add(redis::cmd("SADD").arg(key).arg(page).to_owned())
                .await;
        }
    }

    /// The hash of an active instance, with what a registration leaves beside it.
    pub(super) async fn instance(&mut self, is: &Seeded<'_>) {
        let keys = self.fleet.keys.clone();
        let (roles, kinds) = (is.roles.join(" "), is.kinds.join(" "));
        let mut hash = redis::cmd("HSET");
        hash.arg(keys.instance(is.id))
            .arg(&["status", "active", "incarnation", "7", "capacity", "10"])
            .arg(&["ttl_ms", "30000", "last_seen", "1000", "metadata", "\u{80}"])
            .arg("roles")
            .arg(&roles)
            .arg("capabilities")
            .arg(&kinds);
        self.add(hash).await;
        self.scored(&keys.active(), is.expires, [is.id.to_owned()])
            .await;
        for role in is.roles {
            self.in_set(&keys.role(role), [is.id.to_owned()]).await;
        }
        let members = is.kinds.iter().map(|kind| format!("{kind} {}", is.id));
        self.scored(&keys.capabilities(), 0, members).await;
        let tasks = keys.tasks();
        let slot = format!("{} {} 0 0 0 {roles}", is.assigned, is.capacity);
        let mut slots = redis::cmd("HSET");
        slots.arg(&tasks.slots).arg(is.id).arg(slot);
        self.add(slots).await;
        if is.assigned < is.capacity {
            let load = u64::from(is.assigned) * 1_000_000_000_000 / u64::from(is.capacity);
            let members = is.roles.iter();
            let members = members.map(|role| format!("{role} {load:012}{:016} {}", 0, is.id));
            self.scored(&tasks.free, 0, members).await;
        }
    }

    /// A task that waits; the first of its lane if that is said.
    pub(super) async fn waits(&mut self, task: &Waiting<'_>) {
        let keys = self.fleet.keys.tasks();
        let order = format!("{:03}{:014}", 50, task.number);
        self.record(task, "pending", &order, None).await;
        let lane = format!("{} {} {}", task.role, task.kind, task.requires.join(" "));
        let lane = Sha1::from(lane).digest().to_string();
        let (id, kind, role) = (task.id(), task.kind, task.role);
        self.scored(&keys.queue, 0, [format!("{order} {id}")]).await;
        self.scored(&keys.waiting, 0, [format!("{lane} {order} {id}")])
            .await;
        if let Some(mark) = task.heads {
            self.scored(
                &keys.heads,
                0,
                [format!("{mark}{role} {kind} {order} {id}")],
            )
            .await;
        }
    }

    /// A task that an instance holds.
    pub(super) async fn held(&mut self, task: &Waiting<'_>, holder: &str, attempt: u32) {
        let keys = self.fleet.keys.tasks();
        let order = format!("{:03}{:014}", 50, task.number);
        self.record(task, "assigned", &order, Some((holder, attempt)))
            .await;
        self.scored(&keys.held, 0, [format!("{holder} {}", task.id())])
            .await;
    }

    async fn record(
        &mut self,
        task: &Waiting<'_>,
        status: &str,
        order: &str,
        holder: Option<(&str, u32)>,
    ) {
        let mut record = serde_json::json!({
            "kind": task.kind, "role": task.role, "requires": task.requires.join(" "),
            "priority": 50, "max_attempts": 100, "attempt": 0, "created_at": 1, "changed_at": 1,
            "bytes": 1, "order": order, "status": status, "error": "e".repeat(task.error),
        });
        if let Some((holder, attempt)) = holder {
            record["holder"] = holder.into();
            record["fence"] = 7.into();
            record["attempt"] = attempt.into();
            let failures = (0..task.failures).map(|n| (n + 10, "i".repeat(128), "pending"));
            record["failures"] = serde_json::to_value(failures.collect::<Vec<_>>()).unwrap();
        }
        let record = rmp_serde::to_vec_named(&record).unwrap();
        let keys = self.fleet.keys.tasks();
        let id = task.id();
        let mut set = redis::cmd("HSET");
        self.add(set.arg(&keys.tasks).arg(&id).arg(record).to_owned())
            .await;
        let mut set = redis::cmd("HSET");
        self.add(set.arg(&keys.data).arg(id).arg(&[7u8][..]).to_owned())
            .await;
    }

    /// Finished tasks that are over the bounds: long ago.
    pub(super) async fn finished(&mut self, count: usize, failures: usize, error: usize) {
        let keys = self.fleet.keys.tasks();
        for number in 0..count {
            let task = Waiting {
                failures,
                error,
                ..Waiting::new(1_000_000 + number, "a.b", "worker")
            };
            let order = format!("{:03}{:014}", 50, task.number);
            self.record(&task, "failed", &order, Some(("w-0", 100)))
                .await;
            self.scored(&keys.done, 1000 + number as u64, [task.id()])
                .await;
        }
    }
}

pub(super) struct Seeded<'a> {
    pub(crate) id: &'a str,
    pub(crate) roles: &'a [String],
    pub(crate) kinds: &'a [String],
    pub(crate) expires: u64,
    pub(crate) assigned: u32,
    pub(crate) capacity: u32,
}

pub(super) struct Waiting<'a> {
    pub(crate) number: usize,
    pub(crate) kind: &'a str,
    pub(crate) role: &'a str,
    pub(crate) requires: &'a [String],
    /// How it is marked as the first of its lane, if it is that.
    pub(crate) heads: Option<&'static str>,
    pub(crate) failures: usize,
    pub(crate) error: usize,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(number: usize, kind: &'a str, role: &'a str) -> Self {
        Self {
            number,
            kind,
            role,
            requires: &[],
            heads: None,
            failures: 0,
            error: 0,
        }
    }

    pub(super) fn id(&self) -> String {
        format!("t-{}", self.number)
    }
}
