//! Metrics as text: for Prometheus (text format 0.0.4), and as OpenMetrics 1.0.
//!
//! They look alike, and neither reads the other's as it is meant. A counter's family is called
//! `…_total` by Prometheus, and without it by OpenMetrics, whose samples bear the suffix; a unit has a line
//! of its own in OpenMetrics only, which also wants an end mark and quotes escaped in help texts.

use crate::builtin::system;
use crate::coordination::instances::Instances;
use crate::coordination::tasks::Tasks;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

/// The answer of `system.metrics` with histograms, as far as it is told on.
#[derive(Debug, Deserialize)]
struct Metrics {
    events_processed: u64,
    events_failed: u64,
    /// A worker from before it was counted says nothing.
    #[serde(default)]
    events_cancelled: u64,
    #[serde(default)]
    events_misplaced: u64,
    tasks_completed: u64,
    throughput: f64,
    memory_bytes: u64,
    instances: u64,
    oldest_report_ms: u64,
    latency: Buckets,
    handlers: BTreeMap<String, Handler>,
    queue: Queue,
    scaling: Scaling,
}

#[derive(Debug, Deserialize)]
struct Handler {
    calls: u64,
    errors: u64,
    retries: u64,
    rate_limited: u64,
    cache_hits: u64,
    circuit: Option<String>,
    latency: Buckets,
}

#[derive(Debug, Deserialize)]
struct Buckets {
    sum_ms: f64,
    below_us: Vec<(u64, u64)>,
}

#[derive(Debug, Deserialize)]
struct Queue {
    in_flight: u64,
}

#[derive(Debug, Deserialize)]
struct Scaling {
    load_balance: f64,
}

/// What all instances did, for Prometheus.
pub(crate) async fn tell(
    instances: &Instances,
    tasks: &Tasks,
) -> Result<String, Box<dyn Error + Send + Sync>> {
    let metrics = system::whole_metrics(instances, tasks).await?;
    Ok(of(serde_json::to_value(&metrics)?, Dialect::Prometheus)?)
}

/// Writes the file as a whole: who reads it at any moment finds the old text or the new one. Everybody may
/// read it, whatever this process's mask: the collector is another user.
///
/// # Errors
/// It cannot be written; the old one is left then.
pub fn write(file: &Path, text: &str) -> io::Result<()> {
    const MODE: u32 = 0o644;
    let mut beside = file.as_os_str().to_owned();
    // A collector reads what ends in .prom.
    beside.push(format!(".{:016x}", fastrand::u64(..)));
    let beside = PathBuf::from(beside);
    let written = || {
        let mut options = OpenOptions::new();
        let mut made = options
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(&beside)?;
        made.set_permissions(Permissions::from_mode(MODE))?;
        made.write_all(text.as_bytes())?;
        fs::rename(&beside, file)
    };
    written().inspect_err(|_| {
        fs::remove_file(&beside).ok();
    })
}

/// What `system.metrics` answered, as exposition text.
///
/// # Errors
/// The answer lacks something: its worker is older.
pub fn of(metrics: Value, dialect: Dialect) -> Result<String, serde_json::Error> {
    let metrics: Metrics = serde_json::from_value(metrics)?;
    let mut text = Text {
        dialect,
        out: String::new(),
    };
    metrics.write(&mut text);
    if dialect == Dialect::OpenMetrics {
        text.out.push_str("# EOF\n");
    }
    Ok(text.out)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A family of samples; its name ends in its unit if it has one.
#[derive(Clone, Copy, Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<&'static str>,
    kind: Kind,
}

/// The text so far.
struct Text {
    dialect: Dialect,
    out: String,
}

impl Text {
    /// Begins a family.
    fn family(&mut self, family: Family) {
        let Family {
            name,
            help,
            unit,
            kind,
        } = family;
        let is_open = self.dialect == Dialect::OpenMetrics;
        let suffix = if kind == Kind::Counter && !is_open {
            "_total"
        } else {
            ""
        };
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = escaped(help, is_open);
        self.line(&format!("# HELP {name}{suffix} {help}"));
        self.line(&format!("# TYPE {name}{suffix} {kind}"));
        if let Some(unit) = unit.filter(|_| is_open) {
            self.line(&format!("# UNIT {name} {unit}"));
        }
    }

    /// Adds a sample; `label` is a name and a value.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Into<Number>) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value, true)))
            .collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        let Number(value) = value.into();
        self.line(&format!("{name}{labels} {value}"));
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], buckets: &Buckets) {
        let (sum, count, ends) = buckets.series();
        for (end, below) in ends {
            let Number(end) = end.into();
            let with_end = [labels, &[("le", &*end)]].concat();
            self.sample(&format!("{name}_bucket"), &with_end, below);
        }
        self.sample(&format!("{name}_sum"), labels, sum);
        self.sample(&format!("{name}_count"), labels, count);
    }

    fn line(&mut self, line: &str) {
        self.out.push_str(line);
        self.out.push('\n');
    }
}

/// A number as both formats write it.
struct Number(String);

impl From<u64> for Number {
    fn from(number: u64) -> Self {
        Self(number.to_string())
    }
}

impl From<f64> for Number {
    /// With a point in it, as OpenMetrics wants the ends of buckets.
    fn from(number: f64) -> Self {
        Self(match number {
            f64::INFINITY => "+Inf".to_owned(),
            number if number.fract() == 0.0 => format!("{number:.1}"),
            number => number.to_string(),
        })
    }
}

/// What a line may hold; a terminal could be told something by the rest, which a type's name never has.
fn escaped(text: &str, quotes: bool) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_ascii() && !c.is_control() {
            true => printable.push(c),
            false => printable.extend(c.escape_default()),
        }
    }
    let mut escaped = printable.replace('\\', "\\\\");
    if quotes {
        escaped = escaped.replace('"', "\\\"");
    }
    escaped
}

type Pick = fn(&Handler) -> u64;

impl Metrics {
    fn write(&self, text: &mut Text) {
        let counters = [
            (
                "convoke_events_processed",
                "Events whose outcome was committed.",
                self.events_processed,
            ),
            (
                "convoke_events_failed",
                "Runs of handlers that failed.",
                self.events_failed,
            ),
            (
                "convoke_events_cancelled",
                "Events that were cancelled in the hands of a worker.",
                self.events_cancelled,
            ),
            (
                "convoke_events_misplaced",
                "Events that lay in another partition than that of their subject or id.",
                self.events_misplaced,
            ),
            (
                "convoke_tasks_completed",
                "Tasks that were completed.",
                self.tasks_completed,
            ),
        ];
        for (name, help, value) in counters {
            text.family(Family {
                name,
                help,
                unit: None,
                kind: Kind::Counter,
            });
            text.sample(&format!("{name}_total"), &[], value);
        }
        let seconds = self.oldest_report_ms as f64 / 1000.0;
        let gauges = [
            (
                "convoke_instances",
                "Instances that are alive.",
                None,
                self.instances as f64,
            ),
            (
                "convoke_throughput",
                "Events processed a second, in the last ten seconds or so.",
                None,
                self.throughput,
            ),
            (
                "convoke_memory_bytes",
                "Resident memory of all instances.",
                Some("bytes"),
                self.memory_bytes as f64,
            ),
            (
                "convoke_in_flight",
                "Events read and not settled.",
                None,
                self.queue.in_flight as f64,
            ),
            (
                "convoke_load_balance",
                "How evenly the load is spread: 1 is evenly.",
                None,
                self.scaling.load_balance,
            ),
            (
                "convoke_oldest_report_seconds",
                "The age of the oldest report that this was made of.",
                Some("seconds"),
                seconds,
            ),
        ];
        for (name, help, unit, value) in gauges {
            text.family(Family {
                name,
                help,
                unit,
                kind: Kind::Gauge,
            });
            text.sample(name, &[], value);
        }
        let durations = Family {
            name: "convoke_run_duration_seconds",
            help: "How long runs of all handlers took.",
            unit: Some("seconds"),
            kind: Kind::Histogram,
        };
        text.family(durations);
        text.histogram(durations.name, &[], &self.latency);
        if !self.handlers.is_empty() {
            self.write_handlers(text);
        }
    }

    fn write_handlers(&self, text: &mut Text) {
        let counters: [(&str, &str, Pick); 5] = [
            ("convoke_handler_calls", "Runs of a handler.", |h| h.calls),
            ("convoke_handler_errors", "Runs that failed.", |h| h.errors),
            (
                "convoke_handler_retries",
                "Failures that were tried again.",
                |h| h.retries,
            ),
            (
                "convoke_handler_rate_limited",
                "Runs that the rate limit refused.",
                |h| h.rate_limited,
            ),
            (
                "convoke_handler_cache_hits",
                "Results that came from the cache.",
                |h| h.cache_hits,
            ),
        ];
        for (name, help, pick) in counters {
            text.family(Family {
                name,
                help,
                unit: None,
                kind: Kind::Counter,
            });
            for (kind, handler) in &self.handlers {
                text.sample(&format!("{name}_total"), &[("type", kind)], pick(handler));
            }
        }
        self.write_circuits(text);
        let durations = Family {
            name: "convoke_handler_duration_seconds",
            help: "How long runs of a handler took.",
            unit: Some("seconds"),
            kind: Kind::Histogram,
        };
        text.family(durations);
        for (kind, handler) in &self.handlers {
            text.histogram(durations.name, &[("type", kind)], &handler.latency);
        }
    }

    fn write_circuits(&self, text: &mut Text) {
        let states: Vec<(&String, u64)> = self
            .handlers
            .iter()
            .filter_map(|(kind, handler)| {
                let state = match handler.circuit.as_deref()? {
                    "closed" => 0,
                    "half-open" => 1,
                    _ => 2,
                };
                Some((kind, state))
            })
            .collect();
        if states.is_empty() {
            return;
        }
        let circuits = Family {
            name: "convoke_handler_circuit",
            help: "The worst circuit of any instance: 0 closed, 1 half-open, 2 open.",
            unit: None,
            kind: Kind::Gauge,
        };
        text.family(circuits);
        for (kind, state) in states {
            text.sample(circuits.name, &[("type", kind)], state);
        }
    }
}

impl Buckets {
    /// The sum in seconds, the count, and for each end in seconds the count below it; the last end is
    /// infinite.
    fn series(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let last = self.below_us.len().saturating_sub(1);
        let mut below = 0;
        let buckets = self.below_us.iter().enumerate().map(|(at, (end, count))| {
            below += count;
            // Longer times than the last end are counted in the last bucket.
            let end = if at == last {
                f64::INFINITY
            } else {
                *end as f64 / 1e6
            };
            (end, below)
        });
        let buckets: Vec<(f64, u64)> = buckets.collect();
        (self.sum_ms / 1000.0, below, buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn who_has_opened_the_old_text_reads_all_of_it_and_whoever_comes_later_the_new_one() {
        let place = std::env::temp_dir().join(format!("convoke-prom-{:x}", fastrand::u64(..)));
        fs::create_dir(&place).unwrap();
        let file = place.join("convoke.prom");
        write(&file, "old\n").unwrap();
        let mut reads = fs::File::open(&file).unwrap();
        write(&file, "newer\n").unwrap();
        let mut text = String::new();
        reads.read_to_string(&mut text).unwrap();
        assert_eq!(text, "old\n");
        assert_eq!(fs::read_to_string(&file).unwrap(), "newer\n");
        // What cannot be put in the place leaves nothing beside it.
        let taken = place.join("taken.prom");
        fs::create_dir(&taken).unwrap();
        assert!(write(&taken, "text\n").is_err());
        let names = fs::read_dir(&place).unwrap();
        let mut names: Vec<_> = names.map(|file| file.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["convoke.prom", "taken.prom"]);
        fs::remove_dir_all(place).unwrap();
    }
}
