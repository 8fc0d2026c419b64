//! What many instances cost the server. It prints tables and takes minutes, so it runs when asked:
//!
//!     cargo nextest run --test torture_scale --run-ignored all --no-capture

#[path = "../support/mod.rs"]
mod support;

use convoke::Worker;
use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::gossip::{Observed, Opinion, PING};
use convoke::coordination::instances::instance::{Beat, Registering};
use convoke::coordination::metrics::{Gauges, HandlerSums, Report};
use convoke::protocol::histogram::{Histogram, bucket_of};
use convoke::protocol::keys::Keys;
use convoke::settings::RedisUrl;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::Redis;
use tokio_util::sync::CancellationToken;

/// Event types that each instance has a handler for.
const HANDLERS: usize = 20;
/// Those that have run since the last pulse.
const RAN: usize = 5;

fn kind(handler: usize) -> String {
    format!("shop.handler_{handler:02}")
}

fn id(number: usize) -> String {
    format!("w-{number:04}")
}

/// An instance that works: it has counters and histograms that go on.
struct Working {
    id: String,
    incarnation: u64,
    report: Report,
    /// The handlers that ran since the last pulse.
    news: std::collections::BTreeSet<String>,
    pulses: usize,
}

impl Working {
    async fn register(instances: &Instances, number: usize) -> Self {
        let mut registering = Registering::new(id(number), ["worker"]);
        registering.capabilities = (0..HANDLERS).map(kind).collect();
        registering.capabilities.push(PING.into());
        let registered = instances.register(&registering).await.unwrap();
        let mut report = Report {
            process: format!("process-{number}"),
            ..Report::default()
        };
        for handler in 0..HANDLERS {
            let sums = HandlerSums {
                latency: Some(Histogram::default()),
                ..HandlerSums::default()
            };
            report.handlers.insert(kind(handler), sums);
        }
        let mut working = Self {
            id: registering.id,
            incarnation: registered.incarnation,
            report,
            news: Default::default(),
            pulses: 0,
        };
        for _ in 0..20 {
            working.works();
        }
        working
    }

    fn works(&mut self) {
        self.pulses += 1;
        for step in 0..RAN {
            let handler = (self.pulses * RAN + step) % HANDLERS;
            self.news.insert(kind(handler));
            let sums = self.report.handlers.get_mut(&kind(handler)).unwrap();
            for _ in 0..50 {
                // About log-normal, as latencies are: 95 % within a factor of 2.7 of the median.
                let normal: f64 = (0..12).map(|_| fastrand::f64()).sum::<f64>() - 6.0;
                let micros = (2000.0 * (normal / 2.0).exp()) as u64;
                sums.calls += 1;
                for latency in [
                    sums.latency.as_mut().unwrap(),
                    &mut self.report.sums.latency,
                ] {
                    *latency.counts.entry(bucket_of(micros)).or_default() += 1;
                    latency.sum += micros;
                }
            }
            sums.errors += 1;
            self.report.sums.events_processed += 50;
            self.report.sums.events_failed += 1;
        }
        self.report.gauges = Gauges {
            memory_bytes: 20 << 20,
            in_flight: fastrand::u64(0..10),
            window_events: 250,
            window_ms: 10_000,
            ..Gauges::default()
        };
    }

    /// What a worker's keeper does for each pulse.
    async fn pulses(&mut self, instances: &Instances) {
        self.works();
        let mut news = self.report.clone();
        news.handlers.retain(|kind, _| self.news.contains(kind));
        self.news.clear();
        let beat = Beat {
            load: Some(news.gauges.in_flight as f64),
            metrics: Some(news),
            ..Beat::new(&self.id, Some(self.incarnation))
        };
        let pulse = instances.heartbeat(&beat).await.unwrap();
        assert!(pulse.alive);
        if pulse.leader.is_none_or(|leader| leader == self.id) {
            instances.contend(&self.id, self.incarnation).await.unwrap();
        }
        // More than a keeper says of peers that are in time: each third pulse names all.
        if self.pulses.is_multiple_of(3) {
            let peers = pulse.watch.into_iter();
            let observed: Observed = peers.map(|peer| (peer.id, Opinion::Healthy)).collect();
            instances
                .observe(&self.id, Some(self.incarnation), &observed)
                .await
                .unwrap();
        }
    }
}

struct Server {
    redis: Redis,
    instances: Instances,
}

impl Server {
    fn start() -> Self {
        let redis = Redis::start();
        let connector = Connector::new(&RedisUrl::new(redis.url()), 8).unwrap();
        let instances = Instances::of_process(connector, Keys::new("cb").unwrap(), "test");
        Self { redis, instances }
    }

    fn info(&self, section: &str, field: &str) -> f64 {
        let mut connection = self.redis.connect();
        let info: String = redis::cmd("INFO")
            .arg(section)
            .query(&mut connection)
            .unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix(field));
        let value = line.unwrap_or_else(|| panic!("{field} in {info}"));
        let digits = value.split(',').next().unwrap();
        digits.trim().parse().unwrap()
    }

    /// CPU seconds that the server used.
    fn cpu(&self) -> f64 {
        self.info("cpu", "used_cpu_user:") + self.info("cpu", "used_cpu_sys:")
    }

    /// µs of the server's CPU for each call.
    async fn cost<F: Future<Output = ()>>(
        &self,
        calls: usize,
        mut run: impl FnMut(usize) -> F,
    ) -> f64 {
        let before = self.cpu();
        for call in 0..calls {
            run(call).await;
        }
        (self.cpu() - before) * 1e6 / calls as f64
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints a table"]
async fn the_cost_of_each_script_as_instances_grow() {
    println!("µs of the server's CPU a call; instances: 10, 100, 1000");
    let mut table: Vec<(&str, Vec<f64>)> = Vec::new();
    let mut add = |name: &'static str, cost: f64| match table.iter_mut().find(|row| row.0 == name) {
        Some(row) => row.1.push(cost),
        None => table.push((name, vec![cost])),
    };
    for count in [10, 100, 1000] {
        let server = Server::start();
        let instances = &server.instances;
        let mut all = Vec::new();
        for number in 0..count {
            let mut working = Working::register(instances, number).await;
            working.pulses(instances).await;
            all.push(working);
        }
        let calls = 300;
        let who = |call: usize| &all[call * 7 % count];
        let bare = |call: usize| {
            let beat = Beat::new(&who(call).id, Some(who(call).incarnation));
            async move { _ = instances.heartbeat(&beat).await.unwrap() }
        };
        add("heartbeat", server.cost(calls, bare).await);
        let healthy = |call: usize| {
            let peers = (1..4).map(|step| (id((call * 7 + step) % count), Opinion::Healthy));
            let observed: Observed = peers.collect();
            async move {
                _ = instances
                    .observe(&who(call).id, None, &observed)
                    .await
                    .unwrap()
            }
        };
        add(
            "update_gossip_health, 3 healthy",
            server.cost(calls, healthy).await,
        );
        let contend = |call: usize| async move {
            _ = instances
                .contend(&who(call).id, who(call).incarnation)
                .await
                .unwrap()
        };
        add("lead", server.cost(calls, contend).await);
        let sweep = |_| async move { _ = instances.sweep(16).await.unwrap() };
        add("census", server.cost(calls, sweep).await);
        let look = |_| async move { _ = instances.watch_partition().await.unwrap() };
        add("partition", server.cost(calls, look).await);
        let mut reports: Vec<(String, Report)> = Vec::new();
        for call in 0..calls {
            let working = &mut all[call * 7 % count];
            working.works();
            reports.push((working.id.clone(), working.report.clone()));
        }
        let reports = &reports;
        let report = |call: usize| async move {
            let (id, report) = &reports[call];
            let beat = Beat {
                metrics: Some(report.clone()),
                ..Beat::new(id, None)
            };
            assert!(instances.heartbeat(&beat).await.unwrap().alive);
        };
        add(
            "heartbeat with a report: 20 handlers, 5 ran",
            server.cost(calls, report).await,
        );
        let again = |call: usize| async move {
            let (id, report) = &reports[calls - 1 - call % count.min(calls)];
            let beat = Beat {
                metrics: Some(report.clone()),
                ..Beat::new(id, None)
            };
            assert!(instances.heartbeat(&beat).await.unwrap().alive);
        };
        add("the same, nothing new", server.cost(calls, again).await);
        // Suspicions of one peer by more and more, all of whom are counted.
        let suspect = |call: usize| async move {
            let opinion = if call.is_multiple_of(2) {
                Opinion::Suspect
            } else {
                Opinion::Healthy
            };
            let observed: Observed = [(id(0), opinion)].into();
            let observer = id(1 + call % (count - 1).min(8));
            _ = instances.observe(&observer, None, &observed).await.unwrap();
        };
        add(
            "update_gossip_health, disputed",
            server.cost(64, suspect).await,
        );
    }
    for (name, costs) in table {
        let costs: Vec<String> = costs.iter().map(|cost| format!("{cost:8.1}")).collect();
        println!("{name:46}{}", costs.join(""));
    }
}

/// How long a worker takes to answer a client.
async fn answers(server: &Server) {
    let worker = Worker::builder().redis(server.redis.url()).build().unwrap();
    let drain = CancellationToken::new();
    let running = tokio::spawn({
        let drain = drain.clone();
        async move { worker.run_until(drain).await }
    });
    let connector = Connector::new(&RedisUrl::new(server.redis.url()), 2).unwrap();
    let keys = Keys::new("cb").unwrap();
    let client = Client::new(connector, keys, ClientOptions::default()).unwrap();
    for kind in ["system.health", "system.get_state", "system.metrics"] {
        let mut times = Vec::new();
        for _ in 0..50 {
            let event = Outgoing::new(kind, &serde_json::json!({}));
            let began = Instant::now();
            client
                .request(event, Duration::from_secs(10))
                .await
                .unwrap();
            times.push(began.elapsed().as_secs_f64() * 1000.0);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        print_times(kind, times);
    }
    drain.cancel();
    running.await.unwrap().unwrap();
}

fn print_times(name: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    println!(
        "{name:20} p50 {:6.2} ms, longest {:6.2} ms",
        times[times.len() / 2],
        times[times.len() - 1]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute and a half and prints a table"]
async fn a_thousand_instances_that_pulse_every_ten_seconds() {
    let (count, pause, measured) = (1000, Duration::from_secs(10), Duration::from_secs(60));
    let server = Arc::new(Server::start());
    let mut all = Vec::new();
    for number in 0..count {
        all.push(Working::register(&server.instances, number).await);
    }
    let until = Instant::now() + pause + measured + Duration::from_secs(20);
    let mut tasks = Vec::new();
    for (number, mut working) in all.into_iter().enumerate() {
        let server = server.clone();
        let first = pause.mul_f64(number as f64 / count as f64);
        tasks.push(tokio::spawn(async move {
            tokio::time::sleep(first).await;
            while Instant::now() < until {
                let next = tokio::time::Instant::now() + pause;
                working.pulses(&server.instances).await;
                tokio::time::sleep_until(next).await;
            }
        }));
    }
    // As many sweeps as a thousand keepers make.
    let sweeper = server.clone();
    tasks.push(tokio::spawn(async move {
        while Instant::now() < until {
            sweeper.instances.sweep(16).await.unwrap();
            tokio::time::sleep(Duration::from_millis(27)).await;
        }
    }));
    tokio::time::sleep(pause).await;
    let (began, cpu) = (Instant::now(), server.cpu());
    tokio::time::sleep(measured).await;
    let used = (server.cpu() - cpu) / began.elapsed().as_secs_f64();
    println!(
        "1000 instances: {:.2} % of a core of the server",
        used * 100.0
    );
    let mut reads: Vec<(&str, Vec<f64>)> = ["census", "metrics", "metrics, detailed", "list"]
        .map(|name| (name, Vec::new()))
        .into();
    for _ in 0..30 {
        for (name, times) in &mut reads {
            let began = Instant::now();
            match *name {
                "census" => _ = server.instances.census().await.unwrap(),
                "metrics" => _ = server.instances.metrics(false).await.unwrap(),
                "list" => assert_eq!(server.instances.list().await.unwrap().len(), count),
                _ => _ = server.instances.metrics(true).await.unwrap(),
            }
            times.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (name, times) in reads {
        print_times(name, times);
    }
    answers(&server).await;
    for task in tasks {
        task.await.unwrap();
    }
    let memory = server.info("memory", "used_memory:") / 1e6;
    println!("memory of the server: {memory:.1} MB");
}
