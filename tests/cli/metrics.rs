//! `convoke metrics`, and its text for Prometheus read back.

use super::worker::Worker;
use super::{File, convoke, end, run};
use crate::support::{self, Redis};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

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
        for format in ["prometheus", "openmetrics"] {
            let mut command = convoke(&redis, &command);
            end(command.args(["--format", format])).failed(2, &[format, "metrics only"]);
        }
    }
}

/// One line of exposition text: name, labels, value.
type Sample = (String, BTreeMap<String, String>, f64);

/// Reads exposition text by the grammar of its format: help and type before samples, a family at a time,
/// the names that each format wants, escaped labels, numbers; units and `# EOF` in OpenMetrics only.
fn read_back(text: &str, is_open: bool) -> (BTreeMap<String, String>, Vec<Sample>) {
    let mut types = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut samples: Vec<Sample> = Vec::new();
    let mut current = String::new();
    assert!(text.ends_with('\n'));
    assert_eq!(text.ends_with("\n# EOF\n"), is_open, "the end mark");
    for line in text.lines() {
        if line == "# EOF" {
            continue;
        }
        if let Some(comment) = line.strip_prefix("# ") {
            let words: Vec<&str> = comment.splitn(3, ' ').collect();
            match words[0] {
                "TYPE" => {
                    let twice = types.insert(words[1].to_owned(), words[2].to_owned());
                    assert_eq!(twice, None, "{line}");
                    words[1].clone_into(&mut current);
                }
                "HELP" => {
                    assert!(!words[2].is_empty(), "{line}");
                    helped.insert(words[1].to_owned());
                }
                "UNIT" => {
                    assert!(is_open && words[1] == current, "{line}");
                    assert!(words[1].ends_with(&format!("_{}", words[2])), "{line}");
                }
                other => panic!("{other}: {line}"),
            }
            continue;
        }
        let sample = sample(line);
        let suffix = sample.0.strip_prefix(current.as_str());
        let fits = match types[&current].as_str() {
            "counter" if is_open => suffix == Some("_total"),
            "counter" => suffix == Some("") && current.ends_with("_total"),
            "gauge" => suffix == Some(""),
            "histogram" => matches!(suffix, Some("_sum" | "_count" | "_bucket")),
            other => panic!("{other}"),
        };
        assert!(fits, "no type for {line}");
        samples.push(sample);
    }
    assert!(types.keys().all(|family| helped.contains(family)), "help");
    (types, samples)
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

/// Reads it with the parser of others, too.
fn read_by_others(text: &str, is_open: bool) {
    const READ: &str = "\
import sys
if sys.argv[1] == 'true':
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as families
else:
    from prometheus_client.parser import text_string_to_metric_families as families
found = {family.name: family for family in families(sys.stdin.read())}
untold = [name for name, f in found.items() if not f.documentation or f.type in ('unknown', 'untyped')]
assert not untold, untold
assert found['convoke_events_processed'].type == 'counter', found['convoke_events_processed']
if sys.argv[1] == 'true':
    assert found['convoke_memory_bytes'].unit == 'bytes', found['convoke_memory_bytes']
";
    piped(
        Command::new("/usr/bin/python3").args(["-c", READ, &is_open.to_string()]),
        text,
    );
    if Command::new("promtool").arg("--version").output().is_err() {
        eprintln!("not checked with promtool: it is not in PATH (scripts/install promtool)");
    } else if is_open {
        read_as_open_metrics(text);
    } else {
        piped(Command::new("promtool").args(["check", "metrics"]), text);
    }
}

/// Has Prometheus's own parser of OpenMetrics read it: promtool has it where it makes blocks of samples,
/// which must bear times.
fn read_as_open_metrics(text: &str) {
    let timed = text.lines().map(|line| match line.starts_with('#') {
        true => format!("{line}\n"),
        false => format!("{line} 1700000000\n"),
    });
    let file = File::new("open.metrics", &timed.collect::<String>());
    let blocks = format!("{}.blocks", file.path());
    let mut command = Command::new("promtool");
    command.args(["tsdb", "create-blocks-from", "openmetrics"]);
    let ended = command.args([file.path(), &blocks]).output().unwrap();
    let made = std::fs::read_dir(&blocks).map(|blocks| blocks.count());
    std::fs::remove_dir_all(&blocks).ok();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(made.ok(), Some(1), "{ended:?}");
}

/// Gives a program text, which it must take without a word.
fn piped(command: &mut Command, text: &str) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = [ended.stdout, ended.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(ended.status.success() && said.is_empty(), "{said}");
}

#[test]
fn the_text_of_each_format_is_valid_and_its_histograms_are_whole() {
    let redis = Redis::start();
    let _worker = with_work(&redis, 5);
    for (format, is_open) in [("prometheus", false), ("openmetrics", true)] {
        let told = run(&redis, &["metrics", "--format", format]).done();
        read_by_others(&told.out, is_open);
        let (types, samples) = read_back(&told.out, is_open);
        check(&types, &samples);
    }
}

/// What a file holds by now that is written again and again.
fn written(file: &File) -> String {
    let mut text = String::new();
    support::eventually("the file is written", || {
        text = std::fs::read_to_string(file.path()).unwrap_or_default();
        !text.is_empty()
    });
    text
}

#[test]
fn a_file_for_the_collector_is_whole_and_readable_whenever_it_is_read() {
    use std::os::unix::fs::PermissionsExt;
    let redis = Redis::start();
    let (own, watched) = (File::new("own.prom", ""), File::new("watched.prom", ""));
    let open = File::new("watched.om", "");
    let mut command = Command::new("sh");
    // As the unit has it; the collector is another user.
    command.args([
        "-c",
        "umask 077; exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_convoke"),
    ]);
    command.args([
        "worker",
        "--id=w-1",
        "--exec=demo.echo=cat",
        "--metrics-file",
    ]);
    command
        .arg(own.path())
        .env("CONVOKE_REDIS_URL", redis.url());
    let worker = Worker::start(&redis, "w-1", &mut command);
    let check_text = |text: &str, is_open: bool| {
        let (types, _) = read_back(text, is_open);
        let counter = if is_open {
            "convoke_events_processed"
        } else {
            "convoke_events_processed_total"
        };
        assert_eq!(types[counter], "counter");
    };
    check_text(&written(&own), false);
    let mode = std::fs::metadata(own.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    let watch = |file: &File, more: &[&str]| {
        let mut command = convoke(&redis, &["metrics", "--every=20ms", "--timeout=10s"]);
        command.args(more).arg("--watch").arg(file.path());
        command.stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut watching = watch(&watched, &[]);
    let mut also = watch(&open, &["--format=openmetrics"]);
    check_text(&written(&open), true);
    also.kill().unwrap();
    also.wait().unwrap();
    // No look finds a part of a text, and the collector none of the files beside it.
    let mut texts = BTreeSet::new();
    written(&watched);
    support::eventually("several texts were seen", || {
        let text = std::fs::read_to_string(watched.path()).unwrap();
        check_text(&text, false);
        texts.insert(text);
        texts.len() >= 5
    });
    // The worker writes its own again and again, too: the run of a request is in it.
    run(&redis, &["request", "demo.echo", "--data", "1"]).done();
    support::eventually("what the worker did since is in its own file", || {
        let text = std::fs::read_to_string(own.path()).unwrap();
        check_text(&text, false);
        text.contains("demo.echo")
    });
    // Nobody answers: what is there stays, and that is told once.
    worker.stop();
    let stays = |_: &()| {
        std::fs::metadata(watched.path())
            .unwrap()
            .modified()
            .unwrap()
    };
    let mut last = stays(&());
    support::eventually("it is not written any more", || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let before = std::mem::replace(&mut last, stays(&()));
        before == last
    });
    assert!(watching.try_wait().unwrap().is_none(), "it ended");
    check_text(&std::fs::read_to_string(watched.path()).unwrap(), false);
    watching.kill().unwrap();
    watching.wait().unwrap();
    let directory = std::path::Path::new(own.path()).parent().unwrap();
    let name = std::path::Path::new(own.path())
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    let beside = std::fs::read_dir(directory).unwrap().filter(|file| {
        let found = file
            .as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .into_owned();
        found.starts_with(&name) && found != name
    });
    assert_eq!(beside.count(), 0, "files are left beside it");
}

#[test]
fn a_file_that_cannot_be_written_is_told_at_once() {
    let redis = Redis::start();
    let _worker = with_work(&redis, 0);
    let watch = ["metrics", "--watch", "/nowhere/convoke.prom"];
    run(&redis, &watch).failed(1, &["/nowhere/convoke.prom", "cannot be written"]);
    let mut json = convoke(&redis, &watch);
    end(json.args(["--format", "json"])).failed(2, &["--watch", "json"]);
}

#[test]
fn the_alert_rules_and_the_dashboard_ask_for_what_is_told() {
    const RULES: &str = include_str!("../../deploy/prometheus/convoke.rules.yml");
    const BOARD: &str = include_str!("../../deploy/grafana/convoke.json");
    let redis = Redis::start();
    let _worker = with_work(&redis, 1);
    let told = run(&redis, &["metrics", "--format", "prometheus"]).done();
    let (_, samples) = read_back(&told.out, false);
    let told: BTreeSet<&str> = samples.iter().map(|sample| sample.0.as_str()).collect();
    let words = |text: &'static str| text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let asked: BTreeSet<&str> = [RULES, BOARD].into_iter().flat_map(words).collect();
    let asked = asked
        .into_iter()
        .filter(|word| word.starts_with("convoke_"));
    // It is told where a handler has a circuit only.
    let asked = asked.filter(|word| *word != "convoke_handler_circuit");
    let untold: Vec<&str> = asked.filter(|word| !told.contains(word)).collect();
    assert!(untold.is_empty(), "{untold:?}");
}

fn check(types: &BTreeMap<String, String>, samples: &[Sample]) {
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
    for (name, labels, count) in samples {
        if let Some(end) = labels.get("le") {
            let kind = labels.get("type").cloned().unwrap_or_default();
            let of = name.strip_suffix("_bucket").unwrap().to_owned();
            let end_value = end.parse().unwrap();
            series
                .entry((of, kind))
                .or_default()
                .push((end_value, *count));
            assert!(end.contains('.') || end == "+Inf", "{end}");
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
