//! Three workers, each a process; the leader is killed while one asks again and again.

use super::{ANSWERED, Asker, age};
use crate::bench::load::remove_namespace;
use crate::cli::bench::figure::{Check, Figure, Samples, Spread};
use crate::cli::bench::meter::Sample;
use crate::cli::bench::rig::Rig;
use anyhow::{Context as _, ensure};
use convoke::coordination::instances::Instances;
use convoke::protocol::pattern::Patterned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// How long a worker lives without a pulse.
const TTL: &str = "3s";
const WORKERS: usize = 3;
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);
/// How long all may take to be there, and answers to be right again.
const LIMIT: Duration = Duration::from_secs(60);

/// What was answered after a kill.
#[derive(Default)]
struct After {
    right_ms: Vec<f64>,
    wrong: Vec<f64>,
    missing: Vec<f64>,
    oldest_ms: Vec<f64>,
}

pub(super) async fn measure(rig: &Rig, asker: &Asker<'_>) -> anyhow::Result<()> {
    let instances = Instances::new(rig.connector.clone(), rig.keys.clone());
    let mut children: BTreeMap<String, Child> = BTreeMap::new();
    let mut started = 0;
    let kills = if rig.plan.quick { 1 } else { 5 };
    // Those that were data are gone with what the rig removes; here they would count as alive.
    remove_namespace(&rig.connector, &rig.keys).await?;
    for event in ANSWERED {
        let mut sides: Vec<(&'static str, After)> = Vec::new();
        for pattern in event.built() {
            let mut after = After::default();
            for _ in 0..kills {
                while children.len() < WORKERS {
                    started += 1;
                    let id = format!("bench-k{started}");
                    children.insert(id.clone(), start(rig, &id)?);
                }
                settle(asker, event).await?;
                asker.choose(event, *pattern).await?;
                settle(asker, event).await?;
                let leader = leader(&instances, &children).await?;
                let mut child = children
                    .remove(&leader)
                    .context("the leader is a stranger")?;
                child.start_kill()?;
                child.wait().await?;
                watch(asker, event, &mut after).await?;
            }
            sides.push((pattern.as_str(), after));
        }
        let samples: Vec<(&'static str, Samples)> = sides
            .iter()
            .map(|(side, after)| (*side, after.right_ms.iter().map(|ms| value(*ms)).collect()))
            .collect();
        let case = format!("system.{event}, the leader of {WORKERS} killed, ttl {TTL}");
        let mut figure = Figure::new("patterns", case, "", kills, &[]);
        for ((side, after), (_, samples)) in sides.iter().zip(&samples) {
            let mut tell = |what: &str, values: Vec<f64>| {
                let spread = Spread::of(values);
                figure
                    .checks
                    .push(Check::new(format!("{side}: {what}"), spread, None));
            };
            tell(
                "right again after, ms",
                samples.iter().map(|sample| sample.value).collect(),
            );
            tell(
                "answers until then that still count it",
                after.wrong.clone(),
            );
            tell("requests without an answer", after.missing.clone());
            tell("oldest answer, ms", after.oldest_ms.clone());
        }
        rig.tell(figure)?;
    }
    for (_, mut child) in children {
        child.kill().await?;
    }
    Ok(())
}

fn value(value: f64) -> Sample {
    Sample {
        value,
        ..Sample::default()
    }
}

/// How many of them an answer says are there.
fn alive(event: Patterned, answer: &Value) -> Option<u64> {
    match event {
        Patterned::Health => answer["instances"]["healthy"].as_u64(),
        _ => answer["instances"].as_u64(),
    }
}

/// Waits until answers say that all are there.
async fn settle(asker: &Asker<'_>, event: Patterned) -> anyhow::Result<()> {
    let began = Instant::now();
    while alive(event, &asker.ask(event).await?) != Some(WORKERS as u64) {
        ensure!(began.elapsed() < LIMIT, "the workers are not there");
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn leader(
    instances: &Instances,
    children: &BTreeMap<String, Child>,
) -> anyhow::Result<String> {
    let began = Instant::now();
    loop {
        match instances.leader().await? {
            Some(leader) if children.contains_key(&leader) => return Ok(leader),
            _ => {}
        }
        ensure!(began.elapsed() < LIMIT, "nobody leads");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks until answers are right again.
async fn watch(asker: &Asker<'_>, event: Patterned, after: &mut After) -> anyhow::Result<()> {
    let killed = Instant::now();
    let (mut wrong, mut missing, mut oldest) = (0.0, 0.0, 0.0_f64);
    loop {
        match tokio::time::timeout(Duration::from_secs(2), asker.ask(event)).await {
            Ok(answer) => {
                let answer = answer?;
                oldest = oldest.max(age(&answer));
                if alive(event, &answer) == Some(WORKERS as u64 - 1) {
                    break;
                }
                wrong += 1.0;
            }
            Err(_) => missing += 1.0,
        }
        ensure!(killed.elapsed() < LIMIT, "answers stay wrong");
        tokio::time::sleep(PAUSE).await;
    }
    after.right_ms.push(killed.elapsed().as_secs_f64() * 1000.0);
    after.wrong.push(wrong);
    after.missing.push(missing);
    after.oldest_ms.push(oldest);
    Ok(())
}

fn start(rig: &Rig, id: &str) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CONVOKE_") {
            command.env_remove(name);
        }
    }
    let settings = &rig.settings;
    Ok(command
        .args(["worker", "--id", id, "--heartbeat-ttl", TTL])
        .env("CONVOKE_REDIS_URL", settings.redis_url.expose())
        .env("CONVOKE_NAMESPACE", &settings.namespace)
        .env("CONVOKE_TLS_CA", &settings.tls_ca)
        .env("CONVOKE_TLS_CERT", &settings.tls_cert)
        .env("CONVOKE_TLS_KEY", &settings.tls_key)
        .env("CONVOKE_LOG", "off")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?)
}
