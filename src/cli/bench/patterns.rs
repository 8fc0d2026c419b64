//! The patterns of system events, side by side: on the same load, at 10 to 1,000 instances, and when a worker
//! is killed in the middle.
//!
//! Instances are data here: registered, with an inbox that one task answers for all of them. One worker is real
//! and answers what is asked. Those that are killed are processes.

mod batch;
mod doing;
mod fleet;
mod heartbeat;
mod killed;
mod quorum;
mod register;

use super::figure::{Check, Figure, Samples, Spread};
use super::meter::{Mark, Sample};
use super::rig::Rig;
use anyhow::{Context as _, ensure};
use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use convoke::coordination::instances::Instances;
use convoke::coordination::patterns::PatternStore;
use convoke::protocol::pattern::{Pattern, Patterned};
use fleet::Fleet;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long the worker has to follow a choice.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(60);
/// The events whose answers are compared.
const ANSWERED: [Patterned; 3] = [Patterned::Health, Patterned::Metrics, Patterned::State];
/// The name of the worker that is asked.
const ASKED: &str = "bench-asked";
/// The name of the one beside it, where one is not enough.
const OTHER: &str = "bench-other";
/// Answers in a row that say that all follow a choice.
const FOLLOW: usize = 10;

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<()> {
    let sizes: &[usize] = match rig.plan.quick {
        true => &[10],
        false => &[10, 100, 1000],
    };
    let load = rig.load(1, None);
    let taken = Arc::new(register::Taken::default());
    let worker = register::worker(rig, ASKED, &load, &taken)?;
    let options = ClientOptions::from(&rig.settings);
    let client = Client::new(rig.control.clone(), rig.keys.clone(), options)?;
    let asker = Asker {
        rig,
        client,
        patterns: PatternStore::new(rig.control.clone(), rig.keys.clone(), Default::default()),
        ages: RefCell::default(),
    };
    asker.ask(Patterned::Health).await?;
    let mut fleet = Fleet::new(rig)?;
    for size in sizes {
        fleet.grow(*size).await?;
        own_part(rig, &fleet).await?;
        heartbeat::measure(rig, &fleet).await?;
        for event in ANSWERED {
            asker.compare(event, *size).await?;
        }
        // Of two workers one leads, and the other one may have what is to be done.
        let other = register::worker(rig, OTHER, &load, &taken)?;
        asker.wait_for(OTHER).await?;
        register::measure(&asker, &fleet, &load, &taken).await?;
        quorum::measure(&asker, &fleet).await?;
        batch::measure(&asker, &fleet).await?;
        other.stop().await?;
    }
    drop(fleet);
    worker.stop().await?;
    Box::pin(killed::measure(rig, &asker)).await
}

/// Asks the one worker.
struct Asker<'a> {
    rig: &'a Rig,
    client: Client,
    patterns: PatternStore,
    /// How old the answers were, in ms, by pattern.
    ages: RefCell<BTreeMap<&'static str, Vec<f64>>>,
}

impl Asker<'_> {
    async fn ask(&self, event: Patterned) -> anyhow::Result<Value> {
        let event = Outgoing::new(event.kind(), &json!({}));
        let reply = self.client.request(event, TIMEOUT).await?;
        Ok(reply.decode()?)
    }

    async fn request(&self, kind: &str, data: &Value) -> anyhow::Result<Value> {
        let event = Outgoing::new(kind, data);
        Ok(self.client.request(event, TIMEOUT).await?.decode()?)
    }

    /// Waits until that worker is there.
    async fn wait_for(&self, id: &str) -> anyhow::Result<()> {
        let instances = Instances::new(self.rig.control.clone(), self.rig.keys.clone());
        let began = Instant::now();
        while instances.active_among(&[id.to_owned()]).await?.is_empty() {
            ensure!(began.elapsed() < FOLLOWS_WITHIN, "{id} does not begin");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Takes a choice back.
    async fn clear(&self, event: Patterned) -> anyhow::Result<()> {
        self.patterns.choose(event, None, None, "bench").await?;
        Ok(())
    }

    /// Chooses a pattern, and waits until whoever answers follows.
    async fn follow(&self, event: Patterned, pattern: Pattern) -> anyhow::Result<()> {
        self.patterns
            .choose(event, Some(pattern), None, "bench")
            .await?;
        let (began, mut follow) = (Instant::now(), 0);
        while follow < FOLLOW {
            let state = self
                .request("system.get_state", &json!({"recent": 0}))
                .await?;
            follow = match state["patterns"][event.as_str()] == pattern.as_str() {
                true => follow + 1,
                false => 0,
            };
            ensure!(began.elapsed() < FOLLOWS_WITHIN, "nobody follows a choice");
        }
        Ok(())
    }

    /// Chooses a pattern, and waits until answers are made so.
    async fn choose(&self, event: Patterned, pattern: Pattern) -> anyhow::Result<()> {
        self.patterns
            .choose(event, Some(pattern), None, "bench")
            .await?;
        let began = Instant::now();
        let is_there = |answer: &Value| match (event, pattern) {
            (Patterned::Health, Pattern::Centralized) => answer.get("reports").is_none(),
            (Patterned::Health, Pattern::Distributed) => answer.get("reports").is_some(),
            // What the leader keeps was put together before: its part of it is older than the asking.
            (Patterned::Health, Pattern::Hybrid) => answer.get("reports").is_some(),
            (_, Pattern::Centralized) => {
                answer.get("missing").is_none() && answer.get("merged_ms").is_none()
            }
            (_, Pattern::Distributed) => answer.get("missing").is_some(),
            (_, Pattern::Hybrid) => answer.get("merged_ms").is_some(),
        };
        loop {
            let list = Outgoing::new("system.get_state", &json!({"recent": 0}));
            let state: Value = self.client.request(list, TIMEOUT).await?.decode()?;
            let follows = state["patterns"][event.as_str()] == pattern.as_str();
            if follows && is_there(&self.ask(event).await?) {
                return Ok(());
            }
            ensure!(began.elapsed() < FOLLOWS_WITHIN, "nobody follows a choice");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// All patterns of an event, on the same requests.
    async fn compare(&self, event: Patterned, size: usize) -> anyhow::Result<()> {
        // Where all are asked, an answer at 1,000 takes a while.
        let requests = (self.rig.plan.requests / 10 / (1 + size as u64 / 100)).max(5);
        self.ages.borrow_mut().clear();
        let one = async |side: &'static str, requests| self.sample(event, side, requests).await;
        let case = format!("{}, {size} instances", event.kind());
        let rig = self.rig;
        let mut sides: Vec<(&'static str, Samples)> = Vec::new();
        match event {
            Patterned::State => {
                let names = [Pattern::Centralized, Pattern::Hybrid].map(Pattern::as_str);
                sides.extend(
                    names
                        .into_iter()
                        .zip(rig.rounds(names, requests, one).await?),
                );
            }
            _ => {
                let names = Pattern::ALL.map(Pattern::as_str);
                sides.extend(
                    names
                        .into_iter()
                        .zip(rig.rounds(names, requests, one).await?),
                );
            }
        }
        let shown: Vec<_> = sides.iter().map(|(side, of)| (*side, of)).collect();
        let mut figure = Figure::new("patterns", case, "us", requests, &shown).hops(&shown);
        let (first, others) = shown.split_first().context("no pattern")?;
        for (side, samples) in others {
            figure = figure
                .ratio(
                    format!("p50, {side} / {}", first.0),
                    samples,
                    first.1,
                    |s| s.value,
                    None,
                )
                .ratio(
                    format!("server CPU, {side} / {}", first.0),
                    samples,
                    first.1,
                    |s| s.server_cpu,
                    None,
                );
        }
        for (side, ages) in self.ages.borrow().iter() {
            let what = format!("age of an answer, {side}, ms");
            figure
                .checks
                .push(Check::new(what, Spread::of(ages.iter().copied()), None));
        }
        // What is kept of the state has later choices late.
        self.clear(event).await?;
        rig.tell(figure)
    }

    async fn sample(
        &self,
        event: Patterned,
        side: &'static str,
        requests: u64,
    ) -> anyhow::Result<Sample> {
        let pattern = Pattern::named(side).context("no pattern")?;
        self.choose(event, pattern).await?;
        let (before, begin) = (self.rig.usage().await?, Mark::now());
        let (mut times, mut ages) = (Vec::new(), Vec::new());
        for _ in 0..requests {
            let asked = Instant::now();
            let answer = self.ask(event).await?;
            times.push(asked.elapsed().as_secs_f64());
            ages.push(age(&answer));
        }
        let (after, end) = (self.rig.usage().await?, Mark::now());
        self.ages.borrow_mut().entry(side).or_default().extend(ages);
        Ok(Sample::between([begin, end], [&before, &after], requests).with_times(times))
    }
}

/// How old the oldest part of an answer is, in ms.
fn age(answer: &Value) -> f64 {
    let age = answer
        .get("age_ms")
        .or_else(|| answer.get("oldest_report_ms"))
        .or_else(|| answer.get("merged_ms"));
    age.and_then(Value::as_f64).unwrap_or(0.0)
}

/// What the patterns that are not centralized cost without being asked: each instance's part of a round.
async fn own_part(rig: &Rig, fleet: &Fleet<'_>) -> anyhow::Result<()> {
    let parts = fleet.size() as u64;
    let one = async |_, _| {
        let (before, begin) = (rig.usage().await?, Mark::now());
        let mut times = Vec::new();
        for place in 0..fleet.size() {
            let began = Instant::now();
            fleet.keep_health(place).await?;
            times.push(began.elapsed().as_secs_f64());
        }
        let (after, end) = (rig.usage().await?, Mark::now());
        Ok(Sample::between([begin, end], [&before, &after], parts).with_times(times))
    };
    let [part] = rig.rounds(["one part"], parts, one).await?;
    let case = format!("what each of {parts} instances keeps of its health every third of its ttl");
    rig.tell(Figure::new(
        "patterns",
        case,
        "us",
        parts,
        &[("one part", &part)],
    ))
}
