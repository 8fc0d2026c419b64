//! `convoke metrics`, and its text for Prometheus read back.

use super::worker::Worker;
use super::{convoke, end, run};
use crate::support::Redis;
use std::collections::{BTreeMap, BTreeSet};

fn with_work(redis: &Redis, events: usize) -> Worker {
    let mut command = convoke(redis, &["worker", "--id=w-1", "--exec=demo.echo=cat"]);
    let worker = Worker::start(redis, "w-1", &mut command);
    for _ in 0..events {
        run(redis, &["request", "demo.echo", "--data", "1"]).done();
    }
    worker
}

#[test]
fn metrics_are_told_to_people_and_to_programs() {
    let redis = Redis::start();
    let _worker = with_work(&redis, 3);
    let text = run(&redis, &["metrics"]).done().out;
    assert!(text.contains("instances         1\n"), "{text}");
    assert!(text.contains("latency, p99"), "{text}");
    assert!(!text.contains("demo.echo"), "{text}");
    let text = run(&redis, &["metrics", "--detailed"]).done().out;
    let row = text.lines().find(|line| line.starts_with("demo.echo"));
    let row: Vec<&str> = row
        .unwrap_or_else(|| panic!("{text}"))
        .split_whitespace()
        .collect();
    assert_eq!((row[1], row[2]), ("3", "0"), "{text}");
    let told = run(&redis, &["metrics", "--detailed", "--format", "json"]).done();
    assert_eq!(told.out.lines().count(), 1);
    let told = told.json();
    assert_eq!(told["handlers"]["demo.echo"]["calls"], 3);
    assert!(told["events_processed"].as_u64().unwrap() >= 3);
}

#[test]
fn nobody_there_is_a_failure_and_prometheus_is_for_metrics_only() {
    let redis = Redis::start();
    run(&redis, &["metrics", "--timeout", "200ms"]).failed(1, &["convoke: "]);
    for command in [["health"], ["instances"]] {
        let mut command = convoke(&redis, &command);
        end(command.args(["--format", "prometheus"])).failed(2, &["metrics only"]);
    }
}

/// One line of exposition text: name, labels, value.
type Sample = (String, BTreeMap<String, String>, f64);

/// Reads exposition text by its grammar: types before samples, known suffixes, escaped labels,
/// numbers, and `# EOF` at the end.
fn read_back(text: &str) -> (BTreeMap<String, String>, Vec<Sample>) {
    let mut types = BTreeMap::new();
    let mut samples: Vec<Sample> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "# EOF" {
            assert_eq!(lines.next(), None, "text after the end");
            return (types, samples);
        }
        if let Some(comment) = line.strip_prefix("# ") {
            let words: Vec<&str> = comment.splitn(3, ' ').collect();
            match words[0] {
                "TYPE" => {
                    let twice = types.insert(words[1].to_owned(), words[2].to_owned());
                    assert_eq!(twice, None, "{line}");
                }
                "HELP" => assert!(!words[2].is_empty(), "{line}"),
                "UNIT" => assert!(words[1].ends_with(words[2]), "{line}"),
                other => panic!("{other}: {line}"),
            }
            continue;
        }
        let sample = sample(line);
        let family = types.iter().rfind(|(family, kind)| {
            let suffix = sample.0.strip_prefix(family.as_str());
            match kind.as_str() {
                "counter" => suffix == Some("_total"),
                "gauge" => suffix == Some(""),
                "histogram" => matches!(suffix, Some("_sum" | "_count" | "_bucket")),
                other => panic!("{other}"),
            }
        });
        assert!(family.is_some(), "no type for {line}");
        samples.push(sample);
    }
    panic!("no end");
}

fn sample(line: &str) -> Sample {
    let name_end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(name_end);
    assert!(
        name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'),
        "{line}"
    );
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"").unwrap();
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next().unwrap() {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match chars.next().unwrap().1 {
                        'n' => '\n',
                        c @ ('"' | '\\') => c,
                        c => panic!("\\{c} in {line}"),
                    }),
                    (_, c) => value.push(c),
                }
            };
            assert_eq!(labels.insert(label.to_owned(), value), None, "{line}");
            rest = after[end + 1..]
                .strip_prefix(',')
                .unwrap_or(&after[end + 1..]);
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').unwrap();
    (name.to_owned(), labels, value.parse().unwrap())
}

#[test]
fn the_text_for_prometheus_is_valid_and_its_histograms_are_whole() {
    let redis = Redis::start();
    let _worker = with_work(&redis, 5);
    let told = run(&redis, &["metrics", "--format", "prometheus"]).done();
    let (types, samples) = read_back(&told.out);
    let value = |name: &str, labels: &[(&str, &str)]| -> f64 {
        let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        let labels: BTreeMap<String, String> = labels.collect();
        let found: Vec<f64> = samples
            .iter()
            .filter(|sample| sample.0 == name && sample.1 == labels)
            .map(|sample| sample.2)
            .collect();
        assert_eq!(found.len(), 1, "{name} {labels:?}");
        found[0]
    };
    assert_eq!(value("convoke_instances", &[]), 1.0);
    assert!(value("convoke_events_processed_total", &[]) >= 5.0);
    assert!(value("convoke_memory_bytes", &[]) > 1e6);
    let echo = [("type", "demo.echo")];
    assert_eq!(value("convoke_handler_calls_total", &echo), 5.0);
    assert_eq!(types["convoke_handler_duration_seconds"], "histogram");
    // Every series of every histogram: ends that rise to infinity, counts that never fall.
    let mut series: BTreeMap<(String, String), Vec<(f64, f64)>> = BTreeMap::new();
    let mut ends: BTreeSet<String> = BTreeSet::new();
    for (name, labels, count) in &samples {
        if let Some(end) = labels.get("le") {
            let kind = labels.get("type").cloned().unwrap_or_default();
            let of = name.strip_suffix("_bucket").unwrap().to_owned();
            let end_value = end.parse().unwrap();
            series
                .entry((of, kind))
                .or_default()
                .push((end_value, *count));
            ends.insert(end.clone());
        }
    }
    assert!(series.len() >= 2, "{series:?}");
    for ((name, kind), buckets) in &series {
        assert!(
            buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1),
            "{buckets:?}"
        );
        let (end, all) = *buckets.last().unwrap();
        assert_eq!(end, f64::INFINITY);
        let labels: Vec<(&str, &str)> = [("type", kind.as_str())].into();
        let labels = if kind.is_empty() { &[][..] } else { &labels };
        assert_eq!(value(&format!("{name}_count"), labels), all);
        assert!(value(&format!("{name}_sum"), labels) > 0.0);
        assert_eq!(buckets.len(), ends.len(), "the same ends for all");
    }
    let durations = series[&(
        "convoke_handler_duration_seconds".to_owned(),
        "demo.echo".to_owned(),
    )]
        .last();
    assert_eq!(durations, Some(&(f64::INFINITY, 5.0)));
}
