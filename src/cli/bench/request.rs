//! Requests are answered, with more and more of them in flight.

use super::figure::{Figure, Goal};
use super::meter::{Mark, Sample};
use super::rig::{BARE, Rig, Start, WORKER};
use crate::bench::bare::{self, Requester};
use crate::bench::load::{Load, payload};
use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use futures_util::future::try_join_all;
use std::time::{Duration, Instant};
use tokio_util::task::AbortOnDropHandle;

/// The worker, asked by the client library of the bus.
const BOTH: &str = "client and worker";
/// How long a request may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<()> {
    let load = rig.load(1, None);
    for in_flight in [1, 16, 256_usize] {
        let requests = rig.plan.requests.max(in_flight as u64);
        let one = async |side, requests| ask(rig, &load, side, requests, in_flight).await;
        let [bare, worker, both] = rig.rounds([BARE, WORKER, BOTH], requests, one).await?;
        let sides = [(BARE, &bare), (WORKER, &worker), (BOTH, &both)];
        let case = format!("{in_flight} in flight");
        let goal = (in_flight == 1).then_some(Goal::AtMost(1.10));
        rig.tell(
            Figure::new("request", case, "us", requests, &sides)
                .ratio("p50, worker / bare", &worker, &bare, |s| s.value, goal)
                .ratio(
                    "p99, worker / bare",
                    &worker,
                    &bare,
                    |s| s.p99.unwrap_or(f64::NAN),
                    None,
                )
                .ratio(
                    "p50, client and worker / bare",
                    &both,
                    &bare,
                    |s| s.value,
                    None,
                ),
        )?;
    }
    Ok(())
}

async fn ask(
    rig: &Rig,
    load: &Load,
    side: &str,
    requests: u64,
    in_flight: usize,
) -> anyhow::Result<Sample> {
    load.remove(&rig.connector).await?;
    load.ensure_groups(&rig.connector).await?;
    let answering;
    let mut worker = None;
    match side {
        BARE => {
            let (load, connector) = (load.clone(), rig.connector.clone());
            let answers = async move { bare::answer_all(&load, &connector).await };
            answering = Some(AbortOnDropHandle::new(tokio::spawn(answers)));
        }
        _ => {
            answering = None;
            let race = Start::default().race(u64::MAX);
            worker = Some(rig.worker("bench-0", load, &race)?);
        }
    }
    // The first one is answered when there is somebody who answers.
    let (before, begin, times) = match side {
        BOTH => {
            let options = ClientOptions::from(&rig.settings);
            let client = Client::new(rig.control.clone(), rig.keys.clone(), options)?;
            call(&client, load, 1, 1).await?;
            let (before, begin) = (rig.usage().await?, Mark::now());
            let times = call(&client, load, requests, in_flight).await?;
            (before, begin, times)
        }
        _ => {
            let mut requester = Requester::new(load, &rig.connector).await?;
            requester.ask(1, 1).await?;
            let (before, begin) = (rig.usage().await?, Mark::now());
            let times = requester.ask(requests as usize, in_flight).await?;
            let times = times.iter().map(Duration::as_secs_f64);
            (before, begin, times.collect())
        }
    };
    let end = Mark::now();
    let after = rig.usage().await?;
    drop(answering);
    if let Some(worker) = worker {
        worker.stop().await?;
    }
    Ok(Sample::between([begin, end], [&before, &after], requests).with_times(times))
}

/// Makes requests by the client library, this many at a time; how long each took, in seconds.
async fn call(
    client: &Client,
    load: &Load,
    requests: u64,
    in_flight: usize,
) -> anyhow::Result<Vec<f64>> {
    let left = std::cell::Cell::new(requests);
    let callers = (0..in_flight).map(async |_| {
        let mut times = Vec::new();
        while let Some(rest) = left.get().checked_sub(1) {
            left.set(rest);
            let event = Outgoing::encoded(&load.kinds[0], payload(rest, load.payload));
            let began = Instant::now();
            client.request(event, TIMEOUT).await?;
            times.push(began.elapsed().as_secs_f64());
        }
        anyhow::Ok(times)
    });
    Ok(try_join_all(callers).await?.concat())
}
