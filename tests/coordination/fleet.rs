//! A server with instances, and a look at the facts.

use crate::support::router::ANY_NAME;
use crate::support::{Redis, is_cluster, keys, users};
use convoke::connect::connector::Connector;
use convoke::coordination::ballots::Ballots;
use convoke::coordination::instances::instance::Registering;
use convoke::coordination::instances::{Instances, Registered};
use convoke::coordination::tasks::task::{NewTask, Task, TaskStatus};
use convoke::coordination::tasks::{Assignment, Created, Tasks};
use convoke::protocol::event::{Event, Limits};
use convoke::protocol::keys::Keys;
use convoke::settings::RedisUrl;
use convoke::streams::outbox;
use convoke::streams::read::entries_of;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};
use redis::aio::MultiplexedConnection;
use serde_json::Value;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) struct Fleet {
    pub(crate) redis: Redis,
    pub(crate) keys: Keys,
    pub(crate) instances: Instances,
    pub(crate) ballots: Ballots,
    pub(crate) tasks: Tasks,
    pub(crate) connection: MultiplexedConnection,
}

impl Fleet {
    pub(crate) async fn start() -> Self {
        Self::with(keys()).await
    }

    pub(crate) async fn with(keys: Keys) -> Self {
        Self::on(Redis::start(), keys).await
    }

    pub(crate) async fn on(redis: Redis, keys: Keys) -> Self {
        let connection = redis.connection().await;
        let instances = Self::seen_from(&redis, &keys);
        let connector = Connector::new(&RedisUrl::new(redis.url()), 4).unwrap();
        let ballots = Ballots::new(connector.clone(), keys.clone());
        let tasks = Tasks::new(connector, keys.clone());
        Self {
            redis,
            keys,
            instances,
            ballots,
            tasks,
            connection,
        }
    }

    /// The instances as another process sees them that speaks for its own.
    pub(crate) fn seen_from(redis: &Redis, keys: &Keys) -> Instances {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let process = format!("process-{}", SERIAL.fetch_add(1, Ordering::Relaxed));
        let connector = Connector::new(&RedisUrl::new(redis.url()), 4).unwrap();
        Instances::of_process(connector, keys.clone(), &process)
    }

    /// The instances as what events ask for changes them.
    pub(crate) fn asked(&self) -> Instances {
        let connector = Connector::new(&RedisUrl::new(self.redis.url()), 4).unwrap();
        Instances::new(connector, self.keys.clone())
    }

    pub(crate) async fn register(&self, id: &str, roles: &[&str]) -> Registered {
        let registering = Registering::new(id, roles.iter().copied());
        self.instances.register(&registering).await.unwrap()
    }

    /// Registers a worker for tasks of these kinds.
    pub(crate) async fn worker(&self, id: &str, capacity: u32, kinds: &[&str]) -> Registered {
        let mut registering = Registering::new(id, ["worker"]);
        // It lives while a slow machine makes all the tasks of a test.
        registering.ttl_ms = 600_000;
        registering.capacity = capacity;
        registering.capabilities = kinds.iter().map(|&kind| kind.to_owned()).collect();
        self.instances.register(&registering).await.unwrap()
    }

    /// What a process of that name says of its own instance.
    pub(crate) fn process(&self, name: &str) -> (Instances, Tasks) {
        let url = RedisUrl::new(self.redis.url());
        let connector = Connector::new(&url, 2).unwrap();
        let tasks = Tasks::new(connector.clone(), self.keys.clone()).of_process(name);
        let instances = Instances::of_process(connector, self.keys.clone(), name);
        (instances, tasks)
    }

    /// Creates a task of the kind `a.b`.
    pub(crate) async fn create(&self, id: &str) -> Created {
        self.tasks.create(&NewTask::new(id, "a.b")).await.unwrap()
    }

    pub(crate) async fn task(&self, id: &str) -> Task {
        let found = self.tasks.get(id).await.unwrap();
        found.unwrap_or_else(|| panic!("no task {id}")).task
    }

    /// A task's assignment as it is now.
    pub(crate) async fn assignment(&self, id: &str) -> Assignment {
        let task = self.task(id).await;
        Assignment {
            instance: task
                .instance
                .unwrap_or_else(|| panic!("{id} is with nobody")),
            fence: task.fence.unwrap(),
            task: task.id,
        }
    }

    pub(crate) async fn complete(&self, id: &str) {
        let assignment = self.assignment(id).await;
        let done = self.tasks.complete(&assignment, &[0xc0], &[]).await;
        done.unwrap();
    }

    pub(crate) async fn fail(&self, id: &str, error: &str, retryable: bool) -> TaskStatus {
        let assignment = self.assignment(id).await;
        let failed = self.tasks.fail(&assignment, error, retryable).await;
        failed.unwrap()
    }

    /// What arrived in an instance's inbox: the data of each event.
    pub(crate) async fn inbox(&mut self, id: &str) -> Vec<Value> {
        let inbox = self.keys.inbox(id);
        let reply: redis::Value = self.ask(&format!("XRANGE {inbox} - +")).await;
        let entries = entries_of(reply).unwrap().into_iter();
        entries
            .map(|entry| {
                let event = Event::parse(entry, &Limits::default(), &self.keys, &inbox).unwrap();
                assert_eq!(event.kind(), "task.assigned");
                rmp_serde::from_slice(event.data()).unwrap()
            })
            .collect()
    }

    /// How loaded the scripts think an instance is: tasks and capacity.
    pub(crate) async fn slot(&mut self, id: &str) -> (u32, u32) {
        let slots = self.keys.tasks().slots;
        let text: Option<String> = self.ask(&format!("HGET {slots} {id}")).await;
        let text = text.unwrap_or_default();
        let mut words = text.split(' ').map(|word| word.parse().unwrap_or(0));
        (words.next().unwrap_or(0), words.next().unwrap_or(0))
    }

    /// Runs a command given as words.
    pub(crate) async fn ask<T: redis::FromRedisValue>(&mut self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut cmd = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            cmd.arg(word);
        });
        cmd.query_async(&mut self.connection)
            .await
            .unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    pub(crate) async fn run(&mut self, command: &str) {
        self.ask::<redis::Value>(command).await;
        if command == "FLUSHALL" && users::lack("TIME") {
            for tag in ["cb", "{cb}"] {
                let clock = users::make_clock(tag);
                clock.exec_async(&mut self.connection).await.unwrap();
            }
        }
    }

    /// Does what a worker does with what a step of the control plane published, where its streams are in other slots.
    pub(crate) async fn move_published(&self) {
        if !is_cluster() {
            return;
        }
        let outbox = self.keys.outbox("system", 0);
        let connector = Connector::new(&RedisUrl::new(self.redis.url()), 1).unwrap();
        let mut connection = connector.toward(&outbox).pooled().await.unwrap();
        let mut way = outbox::Way::default();
        loop {
            let moved = outbox::empty(&mut connection, &self.keys, &outbox, &mut way);
            moved.await.unwrap();
            if way.is_at_start() {
                return;
            }
        }
    }

    /// Makes an instance's last pulse one that has run out.
    pub(crate) async fn expire(&mut self, id: &str) {
        let active = self.keys.active();
        self.run(&format!("ZADD {active} XX 1000 {id}")).await;
    }

    /// The facts so far: type and data of each, checked as events.
    pub(crate) async fn facts(&mut self) -> Vec<(String, Value)> {
        let broadcast = self.keys.broadcast();
        let reply: redis::Value = self.ask(&format!("XRANGE {broadcast} - +")).await;
        let mut facts = Vec::new();
        for entry in entries_of(reply).unwrap() {
            let event = Event::parse(entry, &Limits::default(), &self.keys, &broadcast).unwrap();
            event.time().unwrap().parse::<u64>().unwrap();
            let data = rmp_serde::from_slice(event.data()).unwrap();
            facts.push((event.kind().to_owned(), data));
        }
        facts
    }

    pub(crate) async fn fact_names(&mut self) -> Vec<String> {
        self.facts()
            .await
            .into_iter()
            .map(|(kind, _)| kind)
            .collect()
    }

    pub(crate) async fn members(&mut self, role: &str) -> Vec<String> {
        let role = self.keys.role(role);
        let mut members: Vec<String> = self.ask(&format!("SMEMBERS {role}")).await;
        members.sort();
        members
    }

    /// Every key on the server, but those that tell the time where there is no `TIME`.
    pub(crate) async fn all_keys(&mut self) -> Vec<String> {
        self.keys_like("*").await
    }

    /// The same by their own names, tags and all.
    pub(crate) async fn all_names(&mut self) -> Vec<String> {
        self.keys_like(ANY_NAME).await
    }

    async fn keys_like(&mut self, pattern: &str) -> Vec<String> {
        let mut keys: Vec<String> = self.ask(&format!("KEYS {pattern}")).await;
        keys.retain(|key| !users::is_clock(key));
        keys.sort();
        keys
    }
}

/// Runs random histories on one server, each from an empty one.
pub(crate) fn random_histories<S: Strategy>(steps: S, history: impl AsyncFn(&mut Fleet, S::Value)) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fleet = RefCell::new(runtime.block_on(Fleet::start()));
    let config = Config {
        cases: 48,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&steps, |steps| {
            let mut fleet = fleet.borrow_mut();
            runtime.block_on(async {
                fleet.run("FLUSHALL").await;
                history(&mut fleet, steps).await;
            });
            Ok(())
        })
        .unwrap();
}
