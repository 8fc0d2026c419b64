//! Programs that stay alive and answer over a pipe, beside one that is started for each event, and beside the raw loop.
//! They are in Python, and do nothing but answer. What they use of the machine is not in the figures' CPU and memory.

use super::figure::{Check, Figure, Goal, Spread};
use super::meter::{Mark, Sample};
use super::rig::{BARE, RAW, Rig, Running, Start};
use crate::bench::bare::{self, OUTSTANDING, Requester};
use crate::bench::load::Load;
use crate::bench::raw;
use anyhow::{Context as _, ensure};
use convoke::builtin::exec;
use convoke::settings::{Pipe, PipeFormat, Settings};
use convoke::worker::builder::Builder;
use redis::Value;
use redis::aio::MultiplexedConnection;
use serde_json::json;
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

const EXEC: &str = "--exec";
const LINES: &str = "--pipe, JSON";
const PACKED: &str = "--pipe, msgpack";
/// How many events fewer, and requests, a program gets that is started for each.
const FEWER: u64 = 500;

/// One line of JSON for each event.
const IN_LINES: &str = r#"
import json, sys
for line in sys.stdin:
    event = json.loads(line)
    print(json.dumps({"id": event["id"], "ok": None}), flush=True)
"#;

/// Its id is a short string, and its other fields need not be unpacked.
const IN_MSGPACK: &str = r#"
import sys
events, answers = sys.stdin.buffer, sys.stdout.buffer
while length := events.read(4):
    event = events.read(int.from_bytes(length, "big"))
    at = event.index(b"\xa2id") + 3
    end = at + 1 + (event[at] & 31) if event[at] != 0xd9 else at + 2 + event[at + 1]
    answer = b"\x82\xa2id" + event[at:end] + b"\xa2ok\xc0"
    answers.write(len(answer).to_bytes(4, "big") + answer)
    answers.flush()
"#;

/// One event, and its end.
const AT_ONCE: &str = r#"
import json, sys
json.load(sys.stdin)
print("null")
"#;

/// The programs, in files; dropped, they are removed.
struct Programs(PathBuf);

impl Programs {
    fn write() -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("convoke-bench-{:08x}", fastrand::u32(..)));
        fs::create_dir(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
        let programs = Self(dir);
        for (side, text) in [(LINES, IN_LINES), (PACKED, IN_MSGPACK), (EXEC, AT_ONCE)] {
            let file = programs.file(side);
            fs::write(&file, text).with_context(|| format!("{} is not written", file.display()))?;
        }
        Ok(programs)
    }

    fn file(&self, side: &str) -> PathBuf {
        self.0.join(match side {
            LINES => "lines.py",
            PACKED => "packed.py",
            _ => "once.py",
        })
    }

    fn command(&self, side: &str) -> String {
        format!("exec python3 '{}'", self.file(side).display())
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<()> {
    let asked = Command::new("python3").arg("--version").output();
    if !asked.is_ok_and(|asked| asked.status.success()) {
        let why = "python3 is not here, in which its programs are";
        match rig.output.is_json() {
            true => rig
                .output
                .json(&json!({"record": "skipped", "measurement": "pipe", "why": why}))?,
            false => rig.output.line(&format!("\npipe: {why}: not measured"))?,
        }
        return Ok(());
    }
    let programs = Programs::write()?;
    let load = rig.load(1, None);
    speed(rig, &load, &programs).await?;
    latency(rig, &load, &programs).await
}

async fn speed(rig: &Rig, load: &Load, programs: &Programs) -> anyhow::Result<()> {
    let events = rig.plan.events.min(100_000);
    let one = async |side, events: u64| match side {
        RAW => by_hand(rig, load, events).await,
        EXEC => drained(rig, load, programs, side, events.div_ceil(FEWER)).await,
        _ => drained(rig, load, programs, side, events).await,
    };
    let [raw, exec, lines, packed] = rig.rounds([RAW, EXEC, LINES, PACKED], events, one).await?;
    let sides = [
        (RAW, &raw),
        (EXEC, &exec),
        (LINES, &lines),
        (PACKED, &packed),
    ];
    let case = "a program that answers at once, 1 process";
    let mut figure = Figure::new("pipe", case, "events/s", events, &sides);
    for (side, samples) in &sides[2..] {
        let of = |to: &str| format!("speed, {side} / {to}");
        figure = figure
            .ratio(of(EXEC), samples, &exec, |s| s.value, None)
            .ratio(of(RAW), samples, &raw, |s| s.value, None);
    }
    let goal = Some(Goal::AtLeast(20_000.0));
    let values = lines.iter().map(|sample| sample.value);
    figure.checks.push(Check::new(
        "--pipe, JSON, events/s",
        Spread::of(values),
        goal,
    ));
    rig.tell(figure)
}

async fn by_hand(rig: &Rig, load: &Load, events: u64) -> anyhow::Result<Sample> {
    load.remove(&rig.connector).await?;
    load.fill(&rig.connector, events, false, None).await?;
    let start = Start::default();
    let race = start.race(events);
    let before = rig.usage().await?;
    raw::consume(load, &rig.way, &race, "bench", true, OUTSTANDING).await?;
    let end = Mark {
        at: race.ended().context("not all was acknowledged")?,
        ..Mark::now()
    };
    let after = rig.usage().await?;
    Ok(Sample::between(
        [start.mark()?, end],
        [&before, &after],
        events,
    ))
}

/// A worker whose handler is that program, and the rig it runs in.
fn worker(rig: &Rig, load: &Load, programs: &Programs, side: &str) -> anyhow::Result<Running> {
    let (kind, command) = (&load.kinds[0], programs.command(side));
    let mut settings: Settings = rig.settings.clone();
    // Nobody counts what the program takes.
    let race = Start::default().race(u64::MAX);
    if side == EXEC {
        let most = settings.max_payload;
        return rig.start("bench", load, &race, |builder: Builder, kind| {
            builder.register(exec::registration(kind, &command, most))
        });
    }
    let mut pipe = Pipe::new(command);
    pipe.format = match side {
        PACKED => PipeFormat::Msgpack,
        _ => PipeFormat::Json,
    };
    settings.pipe.insert(kind.clone(), pipe);
    rig.with(settings)?
        .start("bench", load, &race, |builder, _| builder)
}

/// A full stream, consumed by a program. Counted from the first result that is seen.
async fn drained(
    rig: &Rig,
    load: &Load,
    programs: &Programs,
    side: &str,
    events: u64,
) -> anyhow::Result<Sample> {
    load.remove(&rig.connector).await?;
    load.fill(&rig.connector, events, false, None).await?;
    let mut connection = rig.connector.dedicated().await?;
    let before = rig.usage().await?;
    let mut begin = (Mark::now(), 0);
    let worker = worker(rig, load, programs, side)?;
    loop {
        ensure!(!worker.is_over(), "a worker ended by itself");
        let done = results(&mut connection, load).await?;
        if done >= events {
            break;
        }
        if begin.1 == 0 && done > 0 {
            begin = (Mark::now(), done);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let end = Mark::now();
    let after = rig.usage().await?;
    worker.stop().await?;
    let (begin, counted) = begin;
    Ok(Sample::between(
        [begin, end],
        [&before, &after],
        events - counted,
    ))
}

/// How many results were ever written.
async fn results(connection: &mut MultiplexedConnection, load: &Load) -> anyhow::Result<u64> {
    let mut command = redis::cmd("XINFO");
    command.arg("STREAM").arg(&load.routes[0].results);
    let told: Result<HashMap<String, Value>, _> = command.query_async(connection).await;
    match told {
        Ok(told) => match told.get("entries-added") {
            Some(Value::Int(added)) => Ok(*added as u64),
            _ => anyhow::bail!("the server does not say how many entries a stream ever had"),
        },
        // Nothing was written yet.
        Err(error) if error.code() == Some("ERR") => Ok(0),
        Err(error) => Err(error.into()),
    }
}

async fn latency(rig: &Rig, load: &Load, programs: &Programs) -> anyhow::Result<()> {
    let requests = rig.plan.requests;
    let one = async |side, requests: u64| match side {
        EXEC => asked(rig, load, programs, side, requests.div_ceil(FEWER)).await,
        _ => asked(rig, load, programs, side, requests).await,
    };
    let [bare, exec, lines, packed] = rig
        .rounds([BARE, EXEC, LINES, PACKED], requests, one)
        .await?;
    let sides = [
        (BARE, &bare),
        (EXEC, &exec),
        (LINES, &lines),
        (PACKED, &packed),
    ];
    let mut figure = Figure::new("pipe", "one request at a time", "us", requests, &sides);
    for (side, samples) in &sides[2..] {
        let of = |to: &str| format!("p50, {side} / {to}");
        figure = figure
            .ratio(of(EXEC), samples, &exec, |s| s.value, None)
            .ratio(of(BARE), samples, &bare, |s| s.value, None);
    }
    rig.tell(figure)
}

async fn asked(
    rig: &Rig,
    load: &Load,
    programs: &Programs,
    side: &str,
    requests: u64,
) -> anyhow::Result<Sample> {
    load.remove(&rig.connector).await?;
    load.ensure_groups(&rig.connector).await?;
    let (mut answering, mut running) = (None, None);
    match side {
        BARE => {
            let (load, connector) = (load.clone(), rig.connector.clone());
            let answers = async move { bare::answer_all(&load, &connector).await };
            answering = Some(AbortOnDropHandle::new(tokio::spawn(answers)));
        }
        _ => running = Some(worker(rig, load, programs, side)?),
    }
    let mut requester = Requester::new(load, &rig.connector).await?;
    // The first one is answered when there is somebody who answers.
    requester.ask(1, 1).await?;
    let (before, begin) = (rig.usage().await?, Mark::now());
    let times = requester.ask(requests as usize, 1).await?;
    let (end, after) = (Mark::now(), rig.usage().await?);
    drop(answering);
    if let Some(running) = running {
        running.stop().await?;
    }
    let times = times.iter().map(Duration::as_secs_f64).collect();
    Ok(Sample::between([begin, end], [&before, &after], requests).with_times(times))
}
