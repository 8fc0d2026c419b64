//! What all did, added up from what each reports.

use crate::fleet::{Fleet, random_histories};
use convoke::coordination::instances::instance::Beat;
use convoke::coordination::metrics::{Gauges, HandlerSums, OldestRun, Report, Running, Sums};
use convoke::protocol::histogram::{Histogram, bucket_of};
use convoke::protocol::keys::Keys;
use convoke::protocol::progress::Progress;
use proptest::prelude::*;
use rmpv::Value;
use serde_json::json;

fn times(micros: &[u64]) -> Histogram {
    let mut latency = Histogram::default();
    for &micros in micros {
        *latency.counts.entry(bucket_of(micros)).or_default() += 1;
        latency.sum += micros;
    }
    latency
}

/// A process that so far handled events of one type.
fn report(process: &str, micros: &[u64]) -> Report {
    let calls = micros.len() as u64;
    let sums = HandlerSums {
        calls,
        errors: calls / 2,
        retries: calls / 4,
        rate_limited: 1,
        cache_hits: 2,
        latency: Some(times(micros)),
    };
    Report {
        process: process.into(),
        sums: Sums {
            events_processed: calls,
            events_failed: calls / 2,
            latency: times(micros),
            ..Sums::default()
        },
        handlers: [("image.resize".to_owned(), sums)].into(),
        gauges: Gauges::default(),
    }
}

impl Fleet {
    async fn report(&self, id: &str, report: &Report) -> bool {
        let beat = Beat {
            metrics: Some(report.clone()),
            ..Beat::new(id, None)
        };
        self.instances.heartbeat(&beat).await.unwrap().alive
    }

    async fn sums(&self) -> Sums {
        self.instances.metrics(false).await.unwrap().sums
    }

    async fn resize(&self) -> HandlerSums {
        let global = self.instances.metrics(true).await.unwrap();
        global.handlers["image.resize"].clone()
    }
}

#[tokio::test]
async fn nothing_reported_is_nothing_done() {
    let fleet = Fleet::start().await;
    let global = fleet.instances.metrics(true).await.unwrap();
    assert_eq!(global.sums, Sums::default());
    assert!(global.handlers.is_empty());
    assert_eq!((global.instances, global.load_balance), (0, 1.0));
}

#[tokio::test]
async fn a_report_counts_once_however_often_it_comes_and_a_lost_one_is_made_up_for() {
    let mut fleet = Fleet::start().await;
    fleet.register("w-1", &[]).await;
    fleet.register("w-2", &[]).await;
    let first = report("p-1", &[10, 200, 3000]);
    for _ in 0..3 {
        assert!(fleet.report("w-1", &first).await);
    }
    assert_eq!(fleet.sums().await, first.sums);
    assert_eq!(fleet.resize().await, first.handlers["image.resize"]);
    // The one in between got lost.
    let third = report("p-1", &[10, 200, 3000, 200, 7, 90_000_000]);
    fleet.report("w-1", &third).await;
    assert_eq!(fleet.sums().await, third.sums);
    assert_eq!(fleet.resize().await, third.handlers["image.resize"]);
    // Another instance's is added.
    fleet.report("w-2", &first).await;
    let both = times(&[10, 200, 3000, 200, 7, 90_000_000, 10, 200, 3000]);
    let sums = fleet.sums().await;
    assert_eq!((sums.events_processed, &sums.latency), (9, &both));
    assert_eq!(fleet.resize().await.latency, Some(both));
    assert!(fleet.ask::<i64>("PTTL cb:metrics:of:w-1:p-1").await > 3_000_000);
}

#[tokio::test]
async fn what_an_instance_did_is_kept_when_it_goes_and_is_not_counted_again_when_it_comes_back() {
    let mut fleet = Fleet::start().await;
    fleet.register("w-1", &[]).await;
    fleet.report("w-1", &report("p-1", &[10, 20])).await;
    fleet.expire("w-1").await;
    fleet.instances.sweep(16).await.unwrap();
    assert_eq!(fleet.sums().await.events_processed, 2);
    assert!(!fleet.report("w-1", &report("p-1", &[10, 20, 30])).await);
    assert_eq!(fleet.sums().await.events_processed, 2, "not alive");
    // The same process goes on counting under its new incarnation.
    fleet.register("w-1", &[]).await;
    fleet.report("w-1", &report("p-1", &[10, 20, 30])).await;
    assert_eq!(fleet.sums().await.events_processed, 3);
    // Another one began at zero, be it told or seen.
    fleet.report("w-1", &report("p-2", &[10, 20, 30])).await;
    assert_eq!(fleet.sums().await.events_processed, 6);
    fleet.report("w-1", &report("p-2", &[10])).await;
    assert_eq!(fleet.sums().await.events_processed, 7);
    assert_eq!(fleet.resize().await.calls, 7);
    // While one drains the other begins: each is counted on from where it was.
    fleet.report("w-1", &report("p-3", &[10, 20])).await;
    fleet.report("w-1", &report("p-2", &[10, 20])).await;
    fleet.report("w-1", &report("p-3", &[10, 20, 30])).await;
    fleet.report("w-1", &report("p-2", &[10, 20, 30])).await;
    assert_eq!(fleet.sums().await.events_processed, 12);
    assert_eq!(fleet.resize().await.calls, 12);
    // Nor does a stranger count, nor another incarnation.
    assert!(!fleet.report("w-9", &report("p-9", &[10])).await);
    let stale = Beat {
        metrics: Some(report("p-1", &[10])),
        ..Beat::new("w-1", Some(1))
    };
    assert!(!fleet.instances.heartbeat(&stale).await.unwrap().alive);
    assert_eq!(fleet.sums().await.events_processed, 12);
    assert_eq!(fleet.ask::<u32>("EXISTS cb:metrics:of:w-9").await, 0);
}

#[tokio::test]
async fn a_histogram_that_was_left_out_is_made_up_for_later() {
    let fleet = Fleet::start().await;
    fleet.register("w-1", &[]).await;
    fleet.report("w-1", &report("p-1", &[10, 20])).await;
    let mut without = report("p-1", &[10, 20, 30]);
    let sums = without.handlers.get_mut("image.resize").unwrap();
    sums.latency = None;
    fleet.report("w-1", &without).await;
    let so_far = fleet.resize().await;
    assert_eq!((so_far.calls, so_far.latency), (3, Some(times(&[10, 20]))));
    let whole = report("p-1", &[10, 20, 30, 40]);
    fleet.report("w-1", &whole).await;
    assert_eq!(fleet.resize().await, whole.handlers["image.resize"]);
}

#[tokio::test]
async fn what_does_not_fit_loses_the_histograms_of_the_least_used_first() {
    let mut fleet = Fleet::start().await;
    fleet.register("w-1", &[]).await;
    let mut large = Report {
        process: "p-1".into(),
        ..Report::default()
    };
    // 300 handlers with 200 buckets each: far beyond what one report may take.
    for number in 0..300_u64 {
        let sums = HandlerSums {
            calls: 1000 + number,
            latency: Some(Histogram {
                counts: (0..200).map(|bucket| (bucket, 1_000_000)).collect(),
                sum: 5,
            }),
            ..HandlerSums::default()
        };
        large.handlers.insert(format!("a.h{number:03}"), sums);
    }
    fleet.report("w-1", &large).await;
    let told = fleet.instances.metrics(true).await.unwrap().handlers;
    assert_eq!(told.len(), 256);
    let whole = |kind: &str| !told[kind].latency.as_ref().unwrap().counts.is_empty();
    assert!(whole("a.h299") && whole("a.h290"));
    assert!(!whole("a.h044"));
    assert_eq!(told["a.h044"].calls, 1044);
    assert!(!told.contains_key("a.h043"));
    let buckets: usize = told.keys().filter(|kind| whole(kind)).count() * 200;
    assert!((3800..=4096).contains(&buckets), "{buckets}");
    // Names without end do not fill the server.
    for round in 0..8 {
        let mut other = Report {
            process: format!("p-{round}"),
            ..Report::default()
        };
        for number in 0..256 {
            let sums = HandlerSums {
                calls: 1,
                ..HandlerSums::default()
            };
            other.handlers.insert(format!("b.r{round}n{number}"), sums);
        }
        fleet.report("w-1", &other).await;
    }
    let told = fleet.instances.metrics(true).await.unwrap().handlers;
    assert_eq!(told.len(), 1024);
    assert_eq!(fleet.ask::<u64>("HLEN cb:metrics").await, 1024 + 1);
}

#[tokio::test]
async fn gauges_are_those_of_the_living() {
    let mut fleet = Fleet::start().await;
    for (number, (id, circuit)) in [
        ("w-1", "closed"),
        ("w-2", "open"),
        ("w-3", "half-open"),
        ("w-4", "open"),
    ]
    .into_iter()
    .enumerate()
    {
        fleet.register(id, &[]).await;
        let running = Running {
            runs: 2,
            oldest_ms: 1_000_000 * (number as u64 + 1),
            full: u64::from(id == "w-3"),
        };
        let gauges = Gauges {
            memory_bytes: 1 << number,
            in_flight: 10 << number,
            window_events: 100,
            window_ms: 10_000 << number,
            circuits: [("image.resize".to_owned(), circuit)].into(),
            running: [("image.resize".to_owned(), running)].into(),
            runs: vec![OldestRun {
                kind: "image.resize".into(),
                stream: "cb:events:image".into(),
                age_ms: running.oldest_ms,
                progress: (id == "w-3").then(|| Progress::new(7).of(9).note("é".repeat(200))),
                ..OldestRun::default()
            }],
        };
        let metrics = Report {
            gauges,
            ..Report::default()
        };
        let beat = Beat {
            load: Some(5.0),
            metrics: Some(metrics),
            ..Beat::new(id, None)
        };
        fleet.instances.heartbeat(&beat).await.unwrap();
    }
    let global = fleet.instances.metrics(true).await.unwrap();
    assert_eq!((global.instances, global.memory_bytes), (4, 15));
    assert_eq!((global.in_flight, global.throughput), (150, 18.75));
    assert_eq!(
        (global.circuits["image.resize"], global.load_balance),
        ("open", 1.0)
    );
    assert!(global.oldest_ms < 60_000);
    // What ran at the report goes on.
    let running = global.running["image.resize"];
    assert_eq!((running.runs, running.full), (8, 1));
    assert!((4_000_000..4_060_000).contains(&running.oldest_ms));
    let who: Vec<&str> = global
        .runs
        .iter()
        .map(|run| run.instance.as_str())
        .collect();
    assert_eq!(who, ["w-4", "w-3", "w-2", "w-1"]);
    // How far it is, where it tells; of what it notes only the beginning.
    let far: Vec<Option<Progress>> = global.runs.into_iter().map(|run| run.progress).collect();
    let told = Progress::new(7).of(9).note("é".repeat(40));
    assert_eq!(far, [None, Some(told), None, None]);
    fleet.expire("w-2").await;
    fleet.instances.unregister("w-4", None).await.unwrap();
    fleet.run("HSET cb:instance:w-3 load 0").await;
    let global = fleet.instances.metrics(false).await.unwrap();
    assert_eq!((global.instances, global.memory_bytes), (2, 5));
    assert_eq!(global.circuits["image.resize"], "half-open");
    assert_eq!(global.load_balance, 0.5);
}

#[tokio::test]
async fn absurd_counters_and_full_memory_break_nothing() {
    let mut fleet = Fleet::with(Keys::tagged("cb", 4).unwrap()).await;
    fleet.register("w-1", &[]).await;
    fleet.run("CONFIG SET maxmemory 1").await;
    let mut absurd = report("p-0", &[1]);
    absurd.sums.events_processed = u64::MAX;
    absurd.sums.latency.counts.insert(7, u64::MAX);
    absurd.gauges.memory_bytes = u64::MAX;
    assert!(fleet.report("w-1", &absurd).await);
    assert_eq!(fleet.sums().await.events_processed, 1 << 52);
    // Beyond what can be counted exactly, the counter stays where it is.
    for process in 1..5 {
        absurd.process = format!("p-{process}");
        assert!(fleet.report("w-1", &absurd).await);
    }
    let sums = fleet.sums().await;
    assert_eq!(sums.events_processed, 1 << 53);
    assert_eq!(sums.latency.counts[&7], 1 << 53);
    let keys = fleet.all_names().await;
    assert!(keys.iter().all(|key| key.starts_with("{cb}:")), "{keys:?}");
}

#[test]
fn a_map_of_others_is_read_as_far_as_it_is_as_documented() {
    let map = |value: serde_json::Value| -> Value {
        let bytes = convoke::protocol::json::from_json(&value);
        rmpv::decode::read_value(&mut bytes.as_slice()).unwrap()
    };
    let mut whole = map(json!({
        "process": "p-1", "events_processed": 7, "events_failed": 1, "memory_bytes": 9,
        "window": {"events": 30, "ms": 10_000}, "cpu": 0.5,
        "handlers": {
            "image.resize": {"calls": 7, "circuit": "open"},
            "no type": {"calls": 1},
            "image.crop": "x"
        }
    }));
    // JSON has no numbers as keys.
    let Value::Map(pairs) = &mut whole else {
        panic!()
    };
    let buckets = [
        (3.into(), 5.into()),
        (240.into(), 5.into()),
        ("x".into(), 5.into()),
    ];
    let latency = vec![
        ("sum_us".into(), 15.into()),
        ("buckets".into(), Value::Map(buckets.into())),
    ];
    pairs.push(("latency".into(), Value::Map(latency)));
    let report = Report::from_map(&whole);
    assert_eq!(report.sums.events_processed, 7);
    assert_eq!(
        (report.sums.latency.count(), report.sums.latency.sum),
        (5, 15)
    );
    assert_eq!(
        report.handlers.keys().collect::<Vec<_>>(),
        ["image.crop", "image.resize"]
    );
    assert_eq!(report.gauges.throughput(), 3.0);
    assert_eq!(report.gauges.circuits["image.resize"], "open");
    for odd in [
        json!({"events_processed": -1, "latency": 5, "handlers": [1], "window": "x", "process": 1}),
        json!({"events_processed": 1.5, "latency": {"buckets": []}}),
        json!([1]),
        json!(null),
    ] {
        assert_eq!(Report::from_map(&map(odd)), Report::default());
    }
}

/// Any samples, however they come in from whichever processes.
#[test]
fn the_totals_equal_the_histogram_of_all_samples() {
    // Each step: which instance, what it did since, and whether the report arrives, twice, or its
    // process is another one then.
    let step = (
        0..3usize,
        prop::collection::vec(0..5_000_000_u64, 0..8),
        0..4u8,
    );
    random_histories(prop::collection::vec(step, 1..30), async |fleet, steps| {
        let mut all = Vec::new();
        let mut did: Vec<(u32, Vec<u64>)> = vec![(0, Vec::new()); 3];
        for who in 0..3 {
            fleet.register(&format!("w-{who}"), &[]).await;
        }
        for (who, micros, fate) in steps {
            all.extend(&micros);
            did[who].1.extend(micros);
            let now = report(&format!("p-{}", did[who].0), &did[who].1);
            let times = [0, 1, 2, 1][usize::from(fate)];
            for _ in 0..times {
                fleet.report(&format!("w-{who}"), &now).await;
            }
            if fate == 3 {
                did[who] = (did[who].0 + 1, Vec::new());
            }
        }
        for (who, (process, micros)) in did.iter().enumerate() {
            let now = report(&format!("p-{process}"), micros);
            fleet.report(&format!("w-{who}"), &now).await;
        }
        let sums = fleet.sums().await;
        assert_eq!(sums.events_processed, all.len() as u64);
        assert_eq!(sums.latency, times(&all));
        assert_eq!(fleet.resize().await.latency, Some(times(&all)));
    });
}
