//! Millions of events through one worker, to see that nothing grows.

use super::figure::{Check, Figure, Goal, Spread};
use super::meter::Mark;
use super::rig::{Rig, Start};
use crate::cli::output::number;
use anyhow::ensure;
use serde_json::json;
use std::time::Duration;

/// Events that are published at a time.
const CHUNK: u64 = 50_000;
/// Entries that the stream keeps, about: more than can be waiting.
const CAP: u64 = 4 * CHUNK;
/// At how many points memory is looked at.
const POINTS: u64 = 10;
/// What an allocator may keep more or less of, in KiB.
const SLACK: f64 = 1024.0;

pub(super) async fn measure(rig: &Rig, events: u64) -> anyhow::Result<()> {
    let load = rig.load(1, None);
    let race = Start::default().race(u64::MAX);
    let worker = rig.worker("bench-0", &load, &race)?;
    let mut connection = rig.connector.dedicated().await?;
    let mut heap = Vec::new();
    let mut published = 0;
    for point in 1..=POINTS {
        let until = events * point / POINTS;
        let began = Mark::now();
        let from = published;
        while published < until {
            let now = CHUNK.min(until - published);
            load.fill(&rig.connector, now, true, Some(CAP)).await?;
            published += now;
            while race.taken() + CHUNK < published {
                ensure!(!worker.is_over(), "the worker ended by itself");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        while race.taken() < published || load.pending(&mut connection).await? > 0 {
            ensure!(!worker.is_over(), "the worker ended by itself");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mark = Mark::now();
        let server = rig.usage().await?.memory / 1024;
        let rate = (published - from) as f64 / (mark.at - began.at).as_secs_f64().max(1e-9);
        let memory = mark.memory;
        heap.push(memory.heap as f64);
        match rig.output.is_json() {
            true => rig.output.json(&json!({
                "record": "point",
                "measurement": "soak",
                "events": published,
                "rss_kib": memory.resident,
                "heap_kib": memory.heap,
                "server_kib": server,
                "events_per_s": rate,
            }))?,
            false => rig.output.line(&format!(
                "{:>14} events  {:>9} KiB resident  {:>9} KiB heap and stacks  {:>9} KiB server",
                number(published),
                number(memory.resident),
                number(memory.heap),
                number(server),
            ))?,
        }
    }
    worker.stop().await?;
    // The first tenth fills the buffers.
    let grown = heap.last().unwrap_or(&0.0) - heap.first().unwrap_or(&0.0);
    let mut figure = Figure::new("soak", "memory of the whole process", "", events, &[]);
    let grown = Spread::of([grown]);
    figure.checks = vec![Check::new(
        "heap growth after the first tenth, KiB",
        grown,
        Some(Goal::AtMost(SLACK)),
    )];
    rig.tell(figure)
}
