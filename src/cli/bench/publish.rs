//! Events are published: one at a time, and in pipelines.

use super::figure::{Figure, Goal};
use super::meter::{Mark, Sample};
use super::rig::{BARE, RAW, Rig};
use crate::bench::load::{Load, payload};
use crate::bench::{bare, raw};
use convoke::client::publish::{Outgoing, PublishError};
use convoke::client::{Client, ClientOptions};
use futures_util::future::try_join_all;
use std::time::Instant;

/// The client library of the bus.
const CLIENT: &str = "client";
/// Callers of `publish_many`: as many as the loops have pipelines outstanding.
const CALLERS: u64 = 3;
/// Events that one call publishes.
const AT_A_TIME: u64 = 512;

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<()> {
    let load = rig.load(1, None);
    let requests = rig.plan.requests;
    let one = async |side, events| single(rig, &load, side, events).await;
    let [bare, client] = rig.rounds([BARE, CLIENT], requests, one).await?;
    let sides = [(BARE, &bare), (CLIENT, &client)];
    rig.tell(
        Figure::new("publish", "one at a time", "us", requests, &sides)
            .ratio("p50, client / bare", &client, &bare, |s| s.value, None)
            .ratio(
                "client CPU, client / bare",
                &client,
                &bare,
                |s| s.client_cpu,
                None,
            ),
    )?;
    let events = rig.plan.events;
    let one = async |side, events| pipelined(rig, &load, side, events).await;
    let [raw, bare, client] = rig.rounds([RAW, BARE, CLIENT], events, one).await?;
    let sides = [(RAW, &raw), (BARE, &bare), (CLIENT, &client)];
    rig.tell(
        Figure::new("publish", "pipelined", "events/s", events, &sides)
            .ratio("speed, client / bare", &client, &bare, |s| s.value, None)
            .ratio(
                "speed, client / raw",
                &client,
                &raw,
                |s| s.value,
                Some(Goal::AtLeast(0.90)),
            )
            .ratio(
                "client CPU, client / bare",
                &client,
                &bare,
                |s| s.client_cpu,
                None,
            ),
    )?;
    Ok(load.remove(&rig.connector).await?)
}

async fn single(rig: &Rig, load: &Load, side: &str, events: u64) -> anyhow::Result<Sample> {
    load.remove(&rig.connector).await?;
    // On a cluster a client makes no stream that was made before.
    load.ensure_groups(&rig.connector).await?;
    let client = client(rig).await?;
    let before = rig.usage().await?;
    let begin = Mark::now();
    let times = match side {
        BARE => bare::publish_one_by_one(load, &rig.connector, events)
            .await?
            .iter()
            .map(std::time::Duration::as_secs_f64)
            .collect(),
        _ => {
            let mut times = Vec::with_capacity(events as usize);
            for n in 0..events {
                let began = Instant::now();
                client.publish(&event(load, n)).await?;
                times.push(began.elapsed().as_secs_f64());
            }
            times
        }
    };
    let end = Mark::now();
    let after = rig.usage().await?;
    Ok(Sample::between([begin, end], [&before, &after], events).with_times(times))
}

async fn pipelined(rig: &Rig, load: &Load, side: &str, events: u64) -> anyhow::Result<Sample> {
    load.remove(&rig.connector).await?;
    // On a cluster a client makes no stream that was made before.
    load.ensure_groups(&rig.connector).await?;
    let client = client(rig).await?;
    let before = rig.usage().await?;
    let begin = Mark::now();
    match side {
        RAW => raw::publish(load, &rig.connector, events).await?,
        BARE => bare::publish(load, &rig.connector, events).await?,
        _ => {
            let share = |caller| (events + caller) / CALLERS;
            let callers = (0..CALLERS).map(|caller| many(&client, load, share(caller)));
            try_join_all(callers).await?;
        }
    }
    let end = Mark::now();
    let after = rig.usage().await?;
    Ok(Sample::between([begin, end], [&before, &after], events))
}

async fn many(client: &Client, load: &Load, events: u64) -> Result<(), PublishError> {
    let mut done = 0;
    while done < events {
        let now = (events - done).min(AT_A_TIME);
        let chunk: Vec<Outgoing> = (done..done + now).map(|n| event(load, n)).collect();
        for published in client.publish_many(&chunk).await {
            published?;
        }
        done += now;
    }
    Ok(())
}

fn event(load: &Load, n: u64) -> Outgoing {
    Outgoing::encoded(&load.kinds[0], payload(n, load.payload))
}

async fn client(rig: &Rig) -> anyhow::Result<Client> {
    let options = ClientOptions::from(&rig.settings);
    let client = Client::new(rig.control.clone(), rig.keys.clone(), options)?;
    client.reach().await.map_err(anyhow::Error::msg)?;
    Ok(client)
}
