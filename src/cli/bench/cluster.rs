//! What a cluster costs beside one server: what stays in its slot, what is published into another one, and a worker
//! that has nothing to do.

use super::figure::{Check, Figure, Goal, Samples, Spread};
use super::idle;
use super::meter::{Mark, Sample, cpu_time, memory};
use super::rig::{Rig, Running, Start, Work};
use crate::bench::load::{Load, Race, SHORTEST};
use anyhow::{Context as _, ensure};
use convoke::operator::server::Usage;
use convoke::{Context, HandlerError, Policy};
use redis::aio::MultiplexedConnection;
use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The sides.
const SERVER: &str = "one server";
const CLUSTER: &str = "cluster";

/// Names of domains that are tried until each node has one.
const NAMES: usize = 10_000;
/// How many partitions an idle worker reads.
const PARTITIONS: [u16; 3] = [1, 16, 256];

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<()> {
    let cluster = rig.cluster()?.context("no cluster is named")?;
    cluster.connector.check_server().await?;
    let domains = spread(&cluster).await?;
    for count in [1, domains.len()] {
        let work = Stays(&domains[..count]);
        work.measure(rig, &cluster).await?;
    }
    if let [from, to, ..] = &domains[..] {
        publications(rig, &cluster, from, to).await?;
    }
    let few = if rig.plan.quick { 2 } else { PARTITIONS.len() };
    for &partitions in &PARTITIONS[..few] {
        waits(rig, &cluster, partitions).await?;
    }
    Ok(())
}

/// Names of domains of which each node has one.
async fn spread(cluster: &Rig) -> anyhow::Result<Vec<String>> {
    let nodes = cluster.connector.nodes().await?.len();
    let mut found = HashSet::new();
    let mut domains = Vec::new();
    for domain in (0..NAMES).map(|n| format!("bench{n}")) {
        let events = cluster.keys.events(&domain, 0);
        let place = cluster.connector.toward(&events).address().await?;
        if found.insert(place.addr().to_string()) {
            domains.push(domain);
        }
        if domains.len() == nodes {
            return Ok(domains);
        }
    }
    anyhow::bail!("not all nodes of the cluster have slots")
}

/// One partition of a domain.
fn load(rig: &Rig, domain: &str) -> Load {
    Load {
        routes: vec![rig.keys.route(domain, 0)],
        kinds: vec![format!("{domain}.work")],
        reply_to: rig.keys.reply(domain, 0, "bench"),
        group: rig.settings.group.clone(),
        history: rig.settings.stream_history,
        payload: SHORTEST,
    }
}

/// A drain of streams, their events asked and answered, one on each node.
struct Stays<'a>(&'a [String]);

impl Stays<'_> {
    async fn measure(&self, rig: &Rig, cluster: &Rig) -> anyhow::Result<()> {
        let events = rig.plan.events;
        let busiest = RefCell::new(Vec::new());
        let one = async |side, events| {
            let place = if side == CLUSTER { cluster } else { rig };
            let (sample, share) = self.one(place, events).await?;
            if side == CLUSTER {
                busiest.borrow_mut().push(share);
            }
            Ok(sample)
        };
        let [server, nodes] = rig.rounds([SERVER, CLUSTER], events, one).await?;
        let case = match self.0.len() {
            1 => "what stays in its slot, 1 partition".to_owned(),
            count => format!("what stays in its slot, {count} partitions, one on each node"),
        };
        let sides = [(SERVER, &server), (CLUSTER, &nodes)];
        let mut figure = Figure::new("cluster", case, "events/s", events, &sides).ratio(
            "server CPU, cluster / one server",
            &nodes,
            &server,
            |s| s.server_cpu,
            Some(Goal::AtMost(1.15)),
        );
        // Not that of the first round, which does not count.
        let busiest = busiest.into_inner().into_iter().skip(1);
        let share = Spread::of(busiest.filter(|share| share.is_finite()));
        let what = "server CPU, busiest node / all nodes";
        figure.checks.push(Check::new(what, share, None));
        rig.tell(figure)
    }

    /// What it took, and how much of the servers' time the busiest one's was.
    async fn one(&self, rig: &Rig, events: u64) -> anyhow::Result<(Sample, f64)> {
        let loads: Vec<Load> = self.0.iter().map(|domain| load(rig, domain)).collect();
        let each = events.div_ceil(loads.len() as u64);
        fill(rig, &loads, each, true).await?;
        let total = each * loads.len() as u64;
        let start = Start::default();
        let race = start.race(total);
        let (before, all_before) = rig.usage_of_each().await?;
        let worker = rig.worker("bench-0", &all(&loads), &race)?;
        while race.taken() < total {
            pause(&worker).await?;
        }
        until_settled(rig, &loads, &worker).await?;
        let end = Mark::now();
        let (after, all_after) = rig.usage_of_each().await?;
        worker.stop().await?;
        let sample = Sample::between([start.mark()?, end], [&before, &after], total);
        let used = all_after.iter().zip(&all_before);
        let most = used
            .map(|(after, before)| after - before)
            .fold(0.0, f64::max);
        Ok((sample, most / (after.cpu - before.cpu)))
    }
}

/// The streams of several loads, for one worker.
fn all(loads: &[Load]) -> Load {
    let mut all = loads[0].clone();
    for load in &loads[1..] {
        all.routes.extend_from_slice(&load.routes);
        all.kinds.extend_from_slice(&load.kinds);
    }
    all
}

async fn fill(rig: &Rig, loads: &[Load], each: u64, request: bool) -> anyhow::Result<()> {
    for load in loads {
        let there = rig.connector.toward(&load.routes[0].events);
        load.remove(&there).await?;
        load.fill(&there, each, request, None).await?;
    }
    Ok(())
}

async fn pause(worker: &Running) -> anyhow::Result<()> {
    ensure!(!worker.is_over(), "a worker ended by itself");
    tokio::time::sleep(Duration::from_millis(1)).await;
    Ok(())
}

async fn until_settled(rig: &Rig, loads: &[Load], worker: &Running) -> anyhow::Result<()> {
    for load in loads {
        let there = rig.connector.toward(&load.routes[0].events);
        let mut connection = there.dedicated().await?;
        while load.pending(&mut connection).await? > 0 {
            pause(worker).await?;
        }
    }
    Ok(())
}

/// The same work, with and without an event that each run publishes into a domain of another node.
async fn publications(rig: &Rig, cluster: &Rig, from: &str, to: &str) -> anyhow::Result<()> {
    const PUBLISHES: [&str; 2] = ["one server, publishes", "cluster, publishes"];
    let events = rig.plan.events;
    let one = async |side: &'static str, events| {
        let is_cluster = side.starts_with(CLUSTER);
        let place = if is_cluster { cluster } else { rig };
        let to = PUBLISHES.contains(&side).then_some(to);
        publication(place, from, to, events).await
    };
    let sides = [SERVER, PUBLISHES[0], CLUSTER, PUBLISHES[1]];
    let samples = rig.rounds(sides, events, one).await?;
    let [server, server_publishes, nodes, nodes_publish] = &samples;
    let named: Vec<(&'static str, &Samples)> = sides.into_iter().zip(&samples).collect();
    let case = "each event publishes one into a slot of another node";
    let mut figure = Figure::new("cluster", case, "events/s", events, &named);
    for (what, with, without) in [
        (
            "server CPU of a publication, us, one server",
            server_publishes,
            server,
        ),
        (
            "server CPU of a publication, us, by the outbox",
            nodes_publish,
            nodes,
        ),
    ] {
        let rounds = with.iter().zip(without);
        let us = rounds.map(|(with, without)| (with.server_cpu - without.server_cpu) * 10.0);
        figure.checks.push(Check::new(what, Spread::of(us), None));
    }
    let figure = figure.ratio(
        "server CPU, cluster / one server, both publish",
        nodes_publish,
        server_publishes,
        |s| s.server_cpu,
        None,
    );
    rig.tell(figure)
}

/// Runs events of one domain, each of which publishes one into the other, if there is one; until all of it has arrived.
async fn publication(
    rig: &Rig,
    from: &str,
    to: Option<&str>,
    events: u64,
) -> anyhow::Result<Sample> {
    let loads = [load(rig, from)];
    fill(rig, &loads, events, false).await?;
    let target = to.map(|to| load(rig, to));
    if let Some(target) = &target {
        let there = rig.connector.toward(&target.routes[0].events);
        target.remove(&there).await?;
        target.ensure_groups(&there).await?;
    }
    let start = Start::default();
    let race = start.race(events);
    let (before, _) = rig.usage_of_each().await?;
    let kind = target.as_ref().map(|target| target.kinds[0].clone());
    let worker = rig.start("bench-0", &loads[0], &race, |builder, own| {
        let kind = kind.clone();
        let handler = move |context: Context, _: Work| {
            let kind = kind.clone();
            async move {
                context.state::<Arc<Race>>()?.take(1);
                if let Some(kind) = &kind {
                    context.publish(kind, &0_u8)?;
                }
                Ok::<(), HandlerError>(())
            }
        };
        builder.handler_with(own, handler, Policy::new().silent())
    })?;
    while race.taken() < events {
        pause(&worker).await?;
    }
    until_settled(rig, &loads, &worker).await?;
    if let Some(target) = &target {
        let stream = &target.routes[0].events;
        let mut connection = rig.connector.toward(stream).dedicated().await?;
        while arrived(&mut connection, stream).await? < events {
            pause(&worker).await?;
        }
    }
    let end = Mark::now();
    let (after, _) = rig.usage_of_each().await?;
    worker.stop().await?;
    let sample = Sample::between([start.mark()?, end], [&before, &after], events);
    Ok(sample)
}

async fn arrived(connection: &mut MultiplexedConnection, stream: &str) -> anyhow::Result<u64> {
    let mut length = redis::cmd("XLEN");
    Ok(length.arg(stream).query_async(connection).await?)
}

/// What a worker costs that reads a domain of that many partitions, and has nothing to do.
async fn waits(rig: &Rig, cluster: &Rig, partitions: u16) -> anyhow::Result<()> {
    // How long is looked, and how long the number of connections must stay the same until all are there.
    let (seconds, steady) = if rig.plan.quick { (1, 1) } else { (30, 3) };
    // What nobody uses is let go after a while.
    let settles = Duration::from_secs(if rig.plan.quick { 0 } else { 25 });
    let steady = Duration::from_secs(steady);
    let mut nodes = Vec::new();
    for node in cluster.connector.nodes().await? {
        nodes.push(node.dedicated().await?);
    }
    let kind = format!("idle{partitions}.work=true");
    let number = partitions.to_string();
    let id = format!("bench-idle-{partitions}");
    let words = ["--partitions", &number, "--exec", &kind];
    let mut worker = idle::start(cluster, &id, &words).await?;
    let pid = worker
        .id()
        .context("the worker ended by itself")?
        .to_string();
    tokio::time::sleep(settles).await;
    let with_it = until_steady(&mut nodes, steady).await?;
    let (before, _) = cluster.usage_of_each().await?;
    let (cpu, began) = (cpu_time(&pid), Instant::now());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let elapsed = began.elapsed().as_secs_f64();
    let used = cpu_time(&pid) - cpu;
    let (after, _) = cluster.usage_of_each().await?;
    let resident = memory(&pid).resident as f64 / 1024.0;
    worker.kill().await?;
    let without_it = until_steady(&mut nodes, steady).await?;
    let case = match partitions {
        1 => "a worker with nothing to do, 1 partition".to_owned(),
        _ => format!("a worker with nothing to do, {partitions} partitions"),
    };
    let mut figure = Figure::new("cluster", case, "", 0, &[]);
    let calls = |usage: &Usage| usage.calls.values().sum::<u64>() as f64;
    for (what, value) in [
        ("connections", with_it.saturating_sub(without_it) as f64),
        ("CPU, % of a core", used / elapsed * 100.0),
        (
            "server CPU, all nodes, % of a core",
            (after.cpu - before.cpu) / elapsed * 100.0,
        ),
        (
            "commands a second",
            (calls(&after) - calls(&before)) / elapsed,
        ),
        ("resident memory, MiB", resident),
    ] {
        figure
            .checks
            .push(Check::new(what, Spread::of([value]), None));
    }
    rig.tell(figure)
}

/// How many clients all nodes have, once that number stays the same.
async fn until_steady(
    nodes: &mut [MultiplexedConnection],
    steady: Duration,
) -> anyhow::Result<u64> {
    let (mut count, mut since) = (0, Instant::now());
    while since.elapsed() < steady {
        let mut now = 0;
        for node in nodes.iter_mut() {
            let mut info = redis::cmd("INFO");
            let told: String = info.arg("clients").query_async(node).await?;
            let line = told
                .lines()
                .find_map(|line| line.strip_prefix("connected_clients:"));
            now += line
                .and_then(|line| line.trim().parse::<u64>().ok())
                .unwrap_or(0);
        }
        if now != count {
            (count, since) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(count)
}
