//! What a worker costs that has nothing to do: a process of its own, watched from outside.

use super::figure::{Check, Figure, Goal, Spread};
use super::meter::{cpu_time, memory};
use super::rig::Rig;
use anyhow::Context as _;
use convoke::coordination::instances::Instances;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// How long it may take to start.
const STARTS_WITHIN: Duration = Duration::from_secs(30);
/// How long it settles.
const SETTLES: Duration = Duration::from_secs(2);

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<()> {
    // Processor time is counted in hundredths of a second.
    let seconds = if rig.plan.quick { 1 } else { 30 };
    let mut worker = start(rig, "bench-idle", &[]).await?;
    tokio::time::sleep(SETTLES).await;
    let pid = worker
        .id()
        .context("the worker ended by itself")?
        .to_string();
    let (before, cpu, began) = (rig.usage().await?, cpu_time(&pid), Instant::now());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let elapsed = began.elapsed().as_secs_f64();
    let used = cpu_time(&pid) - cpu;
    let after = rig.usage().await?;
    let memory = memory(&pid);
    worker.kill().await?;
    let mut figure = Figure::new("idle", format!("{seconds} s"), "", 0, &[]);
    let mut tell = |what: &str, value: f64, goal| {
        figure
            .checks
            .push(Check::new(what, Spread::of([value]), goal));
    };
    let mib = |kib: u64| kib as f64 / 1024.0;
    tell(
        "resident memory, MiB",
        mib(memory.resident),
        Some(Goal::AtMost(12.0)),
    );
    tell("heap and stacks, MiB", mib(memory.heap), None);
    tell(
        "CPU, % of a core",
        used / elapsed * 100.0,
        Some(Goal::AtMost(0.2)),
    );
    let server = (after.cpu - before.cpu) / elapsed * 100.0;
    tell("server CPU, % of a core", server, None);
    let calls = |usage: &convoke::operator::server::Usage| usage.calls.values().sum::<u64>() as f64;
    let commands = (calls(&after) - calls(&before)) / elapsed;
    tell("commands a second", commands, None);
    rig.tell(figure)
}

/// A worker as `convoke worker` is, with these words and every other default; killed when it is dropped.
pub(super) async fn start(rig: &Rig, id: &str, words: &[&str]) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CONVOKE_") {
            command.env_remove(name);
        }
    }
    command
        .args(["worker", "--id", id])
        .args(words)
        .env("CONVOKE_REDIS_URL", rig.settings.redis_url.expose())
        .env("CONVOKE_NAMESPACE", rig.keys.namespace())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut worker = command.spawn().context("a worker cannot be started")?;
    let instances = Instances::new(rig.control.clone(), rig.keys.clone());
    let began = Instant::now();
    while !instances
        .capable("system.health")
        .await?
        .alive
        .iter()
        .any(|alive| alive == id)
    {
        let ended = worker.try_wait()?;
        anyhow::ensure!(ended.is_none(), "the worker ended by itself");
        anyhow::ensure!(began.elapsed() < STARTS_WITHIN, "the worker did not start");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(worker)
}
