//! A server with instances, and a look at the facts.

use crate::support::Redis;
use convoke::bus::connect::Connector;
use convoke::bus::event::{Event, Limits};
use convoke::bus::keys::Keys;
use convoke::bus::read::entries_of;
use convoke::config::RedisUrl;
use convoke::coordination::ballots::Ballots;
use convoke::coordination::instance::Registering;
use convoke::coordination::instances::{Instances, Registered};
use redis::aio::MultiplexedConnection;
use serde_json::Value;

pub struct Fleet {
    pub redis: Redis,
    pub keys: Keys,
    pub instances: Instances,
    pub ballots: Ballots,
    pub connection: MultiplexedConnection,
}

impl Fleet {
    pub async fn start() -> Self {
        Self::with(Keys::new("cb").unwrap()).await
    }

    pub async fn with(keys: Keys) -> Self {
        let redis = Redis::start();
        let connection = redis.connection().await;
        let instances = Self::seen_from(&redis, &keys);
        let connector = Connector::new(&RedisUrl::new(redis.url()), 4).unwrap();
        let ballots = Ballots::new(connector, keys.clone());
        Self {
            redis,
            keys,
            instances,
            ballots,
            connection,
        }
    }

    /// The instances as another process sees them.
    pub fn seen_from(redis: &Redis, keys: &Keys) -> Instances {
        let connector = Connector::new(&RedisUrl::new(redis.url()), 4).unwrap();
        Instances::new(connector, keys.clone())
    }

    pub async fn register(&self, id: &str, roles: &[&str]) -> Registered {
        let registering = Registering::new(id, roles.iter().copied());
        self.instances.register(&registering).await.unwrap()
    }

    /// Runs a command given as words.
    pub async fn ask<T: redis::FromRedisValue>(&mut self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut cmd = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            cmd.arg(word);
        });
        cmd.query_async(&mut self.connection)
            .await
            .unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    pub async fn run(&mut self, command: &str) {
        self.ask::<redis::Value>(command).await;
    }

    /// Makes an instance's last pulse one that has run out.
    pub async fn expire(&mut self, id: &str) {
        let active = self.keys.active();
        self.run(&format!("ZADD {active} XX 1000 {id}")).await;
    }

    /// The facts so far: type and data of each, checked as events.
    pub async fn facts(&mut self) -> Vec<(String, Value)> {
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

    pub async fn fact_names(&mut self) -> Vec<String> {
        self.facts()
            .await
            .into_iter()
            .map(|(kind, _)| kind)
            .collect()
    }

    pub async fn members(&mut self, role: &str) -> Vec<String> {
        let role = self.keys.role(role);
        let mut members: Vec<String> = self.ask(&format!("SMEMBERS {role}")).await;
        members.sort();
        members
    }

    /// Every key on the server.
    pub async fn all_keys(&mut self) -> Vec<String> {
        let mut keys: Vec<String> = self.ask("KEYS *").await;
        keys.sort();
        keys
    }
}
