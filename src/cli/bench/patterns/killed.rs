//! Three workers, each a process; one is killed while somebody asks again and again, for answers and for work.

use super::doing::{self, BEFORE, Done, LATE, TASK};
use super::{ANSWERED, Asker, age};
use crate::bench::load::remove_namespace;
use crate::cli::bench::figure::{Check, Figure, Spread};
use crate::cli::bench::rig::Rig;
use anyhow::{Context as _, ensure};
use convoke::coordination::instances::Instances;
use convoke::protocol::pattern::{Pattern, Patterned};
use futures_util::future::try_join_all;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// How long a worker lives without a pulse.
const TTL: &str = "3s";
/// Until all have pulsed as they do from then on.
const PULSED: Duration = Duration::from_secs(3);
const WORKERS: usize = 3;
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);
/// How long all may take to be there, and answers to be right again.
const LIMIT: Duration = Duration::from_secs(60);
/// What is asked for, and is done or waits.
const DONE: [Patterned; 3] = [Patterned::Quorum, Patterned::Batch, Patterned::Register];

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Whom {
    Leader,
    Agent,
}

/// What was seen of one event after one kill.
type Seen = Vec<(&'static str, f64)>;
/// The same after all kills.
type AllSeen = BTreeMap<&'static str, Vec<f64>>;

pub(super) async fn measure(rig: &Rig, asker: &Asker<'_>) -> anyhow::Result<()> {
    let whom: &[Whom] = match rig.plan.quick {
        true => &[Whom::Leader],
        false => &[Whom::Leader, Whom::Agent],
    };
    let kills: u64 = if rig.plan.quick { 1 } else { 3 };
    let mut three = Three {
        rig,
        asker,
        instances: Instances::new(rig.control.clone(), rig.keys.clone()),
        children: BTreeMap::new(),
        started: 0,
    };
    // Those that were data are gone with what the rig removes; here they would count as alive.
    remove_namespace(&rig.connector, &rig.keys).await?;
    let mut all = BTreeMap::<(Patterned, Whom), BTreeMap<Pattern, AllSeen>>::new();
    // How soon a death is found depends on the pulses: so they are the same for all other events.
    let others = [&DONE[..], &ANSWERED].concat();
    let pulses = vec![Patterned::Heartbeat];
    let groups = match rig.plan.quick {
        true => vec![[others, pulses].concat()],
        false => vec![others, pulses],
    };
    for events in groups {
        for pattern in Pattern::ALL {
            let built = events.iter().copied();
            let built: Vec<Patterned> = built
                .filter(|event| event.built().contains(&pattern))
                .collect();
            three.choose(&built, pattern).await?;
            for hit in whom {
                for kill in 0..kills {
                    let name = format!("{pattern}-{hit:?}-{kill}");
                    let seen = Box::pin(three.kill(*hit, &built, &name)).await?;
                    for (event, seen) in built.iter().zip(seen) {
                        let sides = all.entry((*event, *hit)).or_default();
                        let side = sides.entry(pattern).or_default();
                        for (what, value) in seen {
                            side.entry(what).or_default().push(value);
                        }
                    }
                }
            }
            for event in built {
                asker.clear(event).await?;
            }
        }
    }
    for ((event, hit), sides) in &all {
        let hit = match hit {
            Whom::Leader => "the leader",
            Whom::Agent => "another one",
        };
        let case = format!("{}, {hit} of {WORKERS} killed, ttl {TTL}", event.kind());
        let mut figure = Figure::new("patterns", case, "", kills, &[]);
        for (side, seen) in sides {
            for (what, values) in seen {
                let spread = Spread::of(values.iter().copied());
                let check = Check::new(format!("{side}: {what}"), spread, None);
                figure.checks.push(check);
            }
        }
        rig.tell(figure)?;
    }
    three.end().await
}

/// The workers.
struct Three<'a> {
    rig: &'a Rig,
    asker: &'a Asker<'a>,
    instances: Instances,
    children: BTreeMap<String, Child>,
    started: u32,
}

impl Three<'_> {
    /// Starts those that are missing, and waits until answers say that all are there.
    async fn complete(&mut self) -> anyhow::Result<()> {
        while self.children.len() < WORKERS {
            self.started += 1;
            let id = format!("bench-k{}", self.started);
            let child = start(self.rig, &id)?;
            self.children.insert(id, child);
        }
        let began = Instant::now();
        for event in ANSWERED {
            while alive(event, &self.asker.ask(event).await?) != Some(WORKERS as u64) {
                ensure!(began.elapsed() < LIMIT, "the workers are not there");
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    async fn choose(&mut self, events: &[Patterned], pattern: Pattern) -> anyhow::Result<()> {
        self.complete().await?;
        for event in events {
            match ANSWERED.contains(event) {
                true => self.asker.choose(*event, pattern).await?,
                false => self.asker.follow(*event, pattern).await?,
            }
        }
        Ok(())
    }

    /// Kills one of them while all that is asked; what was seen of each event.
    async fn kill(
        &mut self,
        hit: Whom,
        events: &[Patterned],
        name: &str,
    ) -> anyhow::Result<Vec<Seen>> {
        self.complete().await?;
        if events.contains(&Patterned::Heartbeat) {
            tokio::time::sleep(PULSED).await;
        }
        let leader = self.leader().await?;
        let hit = match hit {
            Whom::Leader => Some(leader),
            Whom::Agent => self.children.keys().find(|id| **id != leader).cloned(),
        };
        let child = hit.and_then(|id| self.children.remove(&id));
        let mut child = child.context("nobody to kill")?;
        let living: Vec<String> = self.children.keys().cloned().collect();
        let (asker, killed) = (self.asker, Instant::now() + BEFORE);
        let kill = async {
            tokio::time::sleep_until(killed.into()).await;
            child.start_kill()?;
            child.wait().await?;
            anyhow::Ok(())
        };
        let seen = try_join_all(events.iter().map(async |event| {
            if DONE.contains(event) {
                let done = doing::all(asker, *event, name, &living).await?;
                return anyhow::Ok(late(&done, killed));
            }
            watch(asker, *event, killed).await
        }));
        let ((), seen) = tokio::try_join!(kill, seen)?;
        Ok(seen)
    }

    async fn leader(&self) -> anyhow::Result<String> {
        let began = Instant::now();
        loop {
            match self.instances.leader().await? {
                Some(leader) if self.children.contains_key(&leader) => return Ok(leader),
                _ => {}
            }
            ensure!(began.elapsed() < LIMIT, "nobody leads");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn end(self) -> anyhow::Result<()> {
        for (_, mut child) in self.children {
            child.kill().await?;
        }
        Ok(())
    }
}

/// How many of them an answer says are there.
fn alive(event: Patterned, answer: &Value) -> Option<u64> {
    match event {
        Patterned::Health => answer["instances"]["healthy"].as_u64(),
        Patterned::State => {
            let all = answer["instances"].as_array()?.iter();
            Some(all.filter(|one| one["status"] == "healthy").count() as u64)
        }
        _ => answer["instances"].as_u64(),
    }
}

/// Asks until answers are right again; for pulses, those of health.
async fn watch(asker: &Asker<'_>, event: Patterned, killed: Instant) -> anyhow::Result<Seen> {
    let event = match event {
        Patterned::Heartbeat => Patterned::Health,
        event => event,
    };
    tokio::time::sleep_until(killed.into()).await;
    let (mut wrong, mut missing, mut oldest) = (0.0, 0.0, 0.0_f64);
    loop {
        match tokio::time::timeout(Duration::from_secs(2), asker.ask(event)).await {
            Ok(Ok(answer)) => {
                oldest = oldest.max(age(&answer));
                if alive(event, &answer) == Some(WORKERS as u64 - 1) {
                    break;
                }
                wrong += 1.0;
            }
            _ => missing += 1.0,
        }
        ensure!(killed.elapsed() < LIMIT, "answers stay wrong");
        tokio::time::sleep(PAUSE).await;
    }
    Ok(vec![
        ("right again after, ms", ms(killed.elapsed())),
        ("answers until then that still count it", wrong),
        ("requests without an answer", missing),
        ("oldest answer, ms", oldest),
    ])
}

/// How late what was asked for was done.
fn late(done: &[Done], killed: Instant) -> Seen {
    let late = done.iter().filter(|one| one.took > LATE);
    let ended = late.clone().map(|one| one.at);
    let again = ended.map(|at| at.saturating_duration_since(killed)).max();
    let slowest = done.iter().map(|one| one.took).max();
    let results = |right: Option<bool>| done.iter().filter(|one| one.right == right).count() as f64;
    vec![
        ("in time again after, ms", ms(again.unwrap_or_default())),
        ("slowest, ms", ms(slowest.unwrap_or_default())),
        ("took over 1.5 s", late.count() as f64),
        ("wrong or refused", results(Some(false))),
        ("never done", results(None)),
    ]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
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
        .args(["--exec", &format!("{TASK}=true")])
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
