//! A primary with two replicas and three Sentinels: failovers under load, and what goes wrong with
//! connections around them.

mod batches;
mod doctor;
mod failover;
mod fences;
mod stale;
#[path = "../support/mod.rs"]
mod support;

use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::protocol::keys::Keys;
use convoke::settings::RedisUrl;
use std::time::Duration;
use support::sentinel::Deployment;
use support::{fleet, users};

#[test]
fn a_worker_process() {
    fleet::worker_process(|worker| worker.handler("load.work", fleet::work));
}

fn connector(url: &str) -> Connector {
    Connector::new(&RedisUrl::new(url), 4).unwrap()
}

fn client(deployment: &Deployment) -> Client {
    let options = ClientOptions {
        patience: Duration::ZERO,
        ..ClientOptions::default()
    };
    let connector = connector(&deployment.url_for(users::PUBLISHER));
    Client::new(connector, Keys::new("cb").unwrap(), options).unwrap()
}

fn times(name: &str, default: u32) -> u32 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}
