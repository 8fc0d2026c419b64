//! The rows of each panel, as text that no terminal takes for commands.

use super::flow::group_id;
use super::model::Model;
use super::panel::Panel;
use super::row::{Cell, Row, Tone, latency, rate};
use super::sample::Sample;
use crate::cli::output::{date, span};
use crate::cli::{choose, instances, vote};
use convoke::coordination::ballots::ballot::BallotStatus;
use convoke::coordination::batches::batch::BatchStatus;
use convoke::coordination::instances::roster::Condition;
use convoke::coordination::tasks::task::TaskStatus;
use convoke::operator::inspect::{Group, Stream};
use convoke::protocol::keys::StreamKind;
use std::collections::VecDeque;

/// What waits longer is worth a look, and what waits longer than the second is wrong, in ms.
const SLOW_MS: [u64; 2] = [10_000, 60_000];

impl Model {
    /// The rows of a panel that pass its filter, in its order.
    pub(super) fn rows(&self, panel: Panel) -> Vec<Row> {
        let view = &self.views[panel as usize];
        let mut rows = rows(self, panel);
        if !view.filter.is_empty() {
            let wanted = view.filter.to_lowercase();
            rows.retain(|row| row.contains(&wanted));
        }
        if let Some(column) = view.sort {
            rows.sort_by(|a, b| a.rank(column).compare(b.rank(column)));
        }
        if view.reversed {
            rows.reverse();
        }
        rows
    }
}

/// The rows of a panel, in their own order.
pub(super) fn rows(model: &Model, panel: Panel) -> Vec<Row> {
    match panel {
        Panel::Streams => streams(model),
        Panel::Instances => of_instances(model),
        Panel::Handlers => handlers(model),
        Panel::Tasks => tasks(model),
        Panel::Batches => batches(model),
        Panel::Ballots => ballots(model),
        Panel::Dead => dead(model),
    }
}

fn streams(model: &Model) -> Vec<Row> {
    let Some(sample) = model.sample() else {
        return Vec::new();
    };
    let alive = sample.streams.iter();
    let alive = alive.filter(|stream| stream.name.kind != StreamKind::Dead);
    let mut rows = Vec::new();
    for stream in alive {
        if stream.groups.is_empty() {
            rows.push(stream_row(model, sample, stream, None));
        }
        for group in &stream.groups {
            rows.push(stream_row(model, sample, stream, Some(group)));
        }
    }
    rows
}

fn stream_row(model: &Model, sample: &Sample, stream: &Stream, group: Option<&Group>) -> Row {
    let (now, sizes) = (sample.at, &sample.sizes);
    let key = &stream.name.key;
    let id = group.map_or_else(|| key.clone(), |group| group_id(key, &group.name));
    let flow = model.flow(&id).cloned().unwrap_or_default();
    // Without a group everything in it waits, for a worker with a handler.
    let unread = group.is_none() && stream.name.kind == StreamKind::Events;
    let lag = match group {
        Some(group) => group.lag,
        None => Some(stream.length).filter(|_| unread),
    };
    let lag = match lag {
        Some(lag) => Cell::number(lag).warn_if(lag > 0, Tone::Warn),
        None => Cell::unknown(),
    };
    let name = match (group, unread) {
        (Some(group), _) => Cell::text(&group.name),
        (None, true) => Cell::text("none").tone(Tone::Warn),
        (None, false) => Cell::unknown(),
    };
    let oldest = match group {
        Some(group) => group.oldest,
        None => stream.first.filter(|_| unread),
    };
    let graph = |values: &VecDeque<f64>| Cell::spark(values.iter().copied().collect());
    let waits = match group.is_some() || unread {
        true => graph(&flow.waiting),
        false => Cell::spark(Vec::new()),
    };
    Row::new(
        &id,
        [
            Cell::text(&choose::short(&stream.name)),
            name,
            Cell::number(stream.length),
            Cell::bytes(sizes.get(key).copied()),
            Cell::rate(flow.rate_in),
            match group {
                Some(_) => Cell::rate(flow.rate_out),
                None => Cell::unknown(),
            },
            lag,
            group.map_or_else(Cell::unknown, |group| Cell::number(group.pending)),
            oldest.map_or_else(Cell::unknown, |id| {
                let age = now.saturating_sub(id.ms);
                Cell::age(id.ms, now)
                    .warn_if(age >= SLOW_MS[0], Tone::Warn)
                    .warn_if(age >= SLOW_MS[1], Tone::Bad)
            }),
            waits,
            graph(&flow.arrivals),
        ],
    )
    .more("key", key)
    .more("last entry", stream.last.to_string())
    .more(
        "oldest entry",
        oldest.map_or_else(|| "-".to_owned(), |id| id.to_string()),
    )
    .more(
        "consumers",
        group.map_or(0, |group| group.consumers).to_string(),
    )
}

fn of_instances(model: &Model) -> Vec<Row> {
    let Some(sample) = model.sample() else {
        return Vec::new();
    };
    let now = sample.at;
    let row = |(condition, instance): &(Condition, _)| {
        let instance: &convoke::coordination::instances::instance::Instance = instance;
        let tone = match condition {
            Condition::Healthy => Tone::Good,
            Condition::Suspect => Tone::Warn,
            Condition::Lost => Tone::Bad,
        };
        let mut roles = instance.roles.join(",");
        if sample.leader.as_ref() == Some(&instance.id) {
            roles.push_str(" (leads)");
        }
        let share = instances::share(instance);
        let capacity = f64::from(instance.capacity.max(1));
        let silent = now.saturating_sub(instance.last_seen) > instance.ttl_ms;
        Row::new(
            &instance.id,
            [
                Cell::text(&instance.id),
                Cell::text(&instances::standing(*condition, instance)).tone(tone),
                Cell::text(&roles),
                Cell::said(rate(instance.load), instance.load).warn_if(share > 1.0, Tone::Warn),
                Cell::number(u64::from(instance.capacity)),
                Cell::bar((share * capacity) as u64, capacity as u64),
                Cell::age(instance.last_seen, now).warn_if(silent, Tone::Bad),
                Cell::age(instance.started_at, now),
                Cell::number(instance.restarts).warn_if(instance.restarts > 0, Tone::Warn),
            ],
        )
        .more("pulse at", date(instance.last_seen))
        .more("registered at", date(instance.registered_at))
        .more("incarnation", instance.incarnation.to_string())
        .more("ttl", span(instance.ttl_ms))
        .more("patterns", instances::patterns(instance))
    };
    sample.instances.iter().map(row).collect()
}

fn handlers(model: &Model) -> Vec<Row> {
    let Some(sample) = model.sample() else {
        return Vec::new();
    };
    let circuits = &sample.global.circuits;
    let counted = sample.global.handlers.keys();
    let running = &sample.global.running;
    let known = counted.chain(circuits.keys()).chain(running.keys());
    let mut kinds: Vec<&String> = known.collect();
    kinds.sort();
    kinds.dedup();
    let row = |kind: &String| {
        let sums = sample
            .global
            .handlers
            .get(kind)
            .cloned()
            .unwrap_or_default();
        let lately = model.lately(kind);
        let runs = running.get(kind).copied().unwrap_or_default();
        let all = sums.latency.as_ref().filter(|all| all.count() > 0);
        let quantile = |part: f64| match (&lately.latency, all) {
            (Some(lately), _) => {
                Cell::said(latency(lately.quantile_ms(part)), lately.quantile_ms(part))
            }
            (None, Some(all)) => {
                Cell::said(latency(all.quantile_ms(part)), all.quantile_ms(part)).tone(Tone::Faint)
            }
            (None, None) => Cell::unknown(),
        };
        let circuit = match circuits.get(kind).copied() {
            None => Cell::unknown(),
            Some("closed") => Cell::text("closed").tone(Tone::Good),
            Some("open") => Cell::text("open").tone(Tone::Bad),
            Some(model) => Cell::text(model).tone(Tone::Warn),
        };
        let failing = lately.errors.is_some_and(|errors| errors > 0.0);
        Row::new(
            kind,
            [
                Cell::text(kind),
                Cell::rate(lately.calls),
                quantile(0.5),
                quantile(0.99),
                Cell::number(runs.runs).warn_if(runs.full > 0, Tone::Bad),
                match runs.runs {
                    0 => Cell::unknown(),
                    _ => Cell::said(span(runs.oldest_ms), runs.oldest_ms as f64)
                        .warn_if(runs.oldest_ms >= SLOW_MS[0], Tone::Warn)
                        .warn_if(runs.oldest_ms >= SLOW_MS[1], Tone::Bad),
                },
                Cell::rate(lately.errors).warn_if(failing, Tone::Bad),
                circuit,
                Cell::number(sums.calls),
                Cell::number(sums.errors),
                Cell::number(sums.retries),
                Cell::number(sums.rate_limited),
                Cell::number(sums.cache_hits),
            ],
        )
        .more(
            "mean of all",
            all.map_or("-".into(), |all| latency(all.mean_ms())),
        )
        .more(
            "p50 of all",
            all.map_or("-".into(), |all| latency(all.quantile_ms(0.5))),
        )
        .more(
            "p99 of all",
            all.map_or("-".into(), |all| latency(all.quantile_ms(0.99))),
        )
    };
    kinds.into_iter().map(row).collect()
}

fn tasks(model: &Model) -> Vec<Row> {
    let Some(sample) = model.sample() else {
        return Vec::new();
    };
    let row = |task: &convoke::coordination::tasks::task::Task| {
        let tone = match task.status {
            TaskStatus::Failed => Tone::Bad,
            TaskStatus::Completed => Tone::Good,
            TaskStatus::Pending => Tone::Warn,
            TaskStatus::Assigned | TaskStatus::Cancelled => Tone::Plain,
        };
        let fence = task.fence.map_or("-".into(), |fence| fence.to_string());
        Row::new(
            &task.id,
            [
                Cell::text(&task.id),
                Cell::text(task.status.as_str()).tone(tone),
                Cell::text(&task.kind),
                Cell::number(u64::from(task.priority)),
                Cell::said(
                    format!("{}/{}", task.attempt, task.max_attempts),
                    f64::from(task.attempt),
                ),
                Cell::text(task.instance.as_deref().unwrap_or_default()),
                Cell::age(task.changed_at, sample.at),
                Cell::text(task.error.as_deref().unwrap_or_default()),
            ],
        )
        .more("role", &task.role)
        .more("requires", task.requires.join(", "))
        .more("fence", fence)
        .more("created at", date(task.created_at))
    };
    sample.listed_tasks.iter().map(row).collect()
}

fn batches(model: &Model) -> Vec<Row> {
    let Some(sample) = model.sample() else {
        return Vec::new();
    };
    let row = |batch: &convoke::coordination::batches::batch::Batch| {
        let running = batch.status == BatchStatus::Running;
        // Whoever held it does not any more, and nobody took it up.
        let left = running && batch.expires_at < sample.at;
        let tone = match (running, batch.failed) {
            (true, _) if left => Tone::Warn,
            (true, _) => Tone::Plain,
            (false, 0) => Tone::Good,
            (false, _) => Tone::Bad,
        };
        Row::new(
            &batch.id,
            [
                Cell::text(&batch.id),
                Cell::text(batch.status.as_str()).tone(tone),
                Cell::text(&batch.item_type),
                Cell::bar(batch.processed + batch.failed, batch.total),
                Cell::number(batch.processed),
                Cell::number(batch.failed).warn_if(batch.failed > 0, Tone::Bad),
                Cell::number(batch.total),
                Cell::text(&batch.processor_id),
                Cell::age(batch.updated_at, sample.at),
            ],
        )
        .more("mode", batch.mode.as_str())
        .more("fence", batch.fence.to_string())
        .more("started at", date(batch.started_at))
        .more("lease until", date(batch.expires_at))
    };
    sample.batches.iter().map(row).collect()
}

fn ballots(model: &Model) -> Vec<Row> {
    let Some(sample) = model.sample() else {
        return Vec::new();
    };
    let row = |ballot: &convoke::coordination::ballots::ballot::Ballot| {
        let (tone, left) = match ballot.status {
            BallotStatus::Open => (Tone::Warn, ballot.expires_at.checked_sub(sample.at)),
            BallotStatus::Decided => (Tone::Good, None),
            BallotStatus::Deadlocked | BallotStatus::Expired => (Tone::Bad, None),
        };
        Row::new(
            &ballot.decision,
            [
                Cell::text(&ballot.decision),
                Cell::text(&vote::result(ballot)).tone(tone),
                Cell::bar(ballot.vote_count, ballot.electorate),
                Cell::number(ballot.vote_count),
                Cell::number(ballot.electorate),
                Cell::number(ballot.leading),
                Cell::number(ballot.quorum),
                Cell::age(ballot.opened_at, sample.at),
                left.map_or_else(Cell::unknown, |ms| {
                    Cell::said(format!("in {}", span(ms)), ms as f64)
                }),
            ],
        )
        .more(
            "who votes",
            ballot.role.as_deref().unwrap_or("all instances"),
        )
        .more("opened at", date(ballot.opened_at))
        .more("expires at", date(ballot.expires_at))
        .more("pattern", ballot.pattern.as_str())
    };
    sample.ballots.iter().map(row).collect()
}

fn dead(model: &Model) -> Vec<Row> {
    let Some(sample) = model.sample() else {
        return Vec::new();
    };
    let dead = sample.streams.iter();
    let dead = dead.filter(|stream| stream.name.kind == StreamKind::Dead);
    let row = |stream: &Stream| {
        let key = &stream.name.key;
        let flow = model.flow(key).cloned().unwrap_or_default();
        let coming = flow.rate_in.is_some_and(|rate| rate > 0.0);
        let there = stream.length > 0;
        let newest = match there {
            true => Cell::age(stream.last.ms, sample.at),
            false => Cell::unknown(),
        };
        let oldest = stream.first.filter(|_| there);
        Row::new(
            key,
            [
                Cell::text(&choose::short(&stream.name)),
                Cell::number(stream.length).warn_if(there, Tone::Bad),
                Cell::bytes(sample.sizes.get(key).copied()),
                Cell::rate(flow.rate_in).warn_if(coming, Tone::Bad),
                oldest.map_or_else(Cell::unknown, |id| Cell::age(id.ms, sample.at)),
                newest,
                Cell::spark(flow.waiting.iter().copied().collect()),
            ],
        )
        .more("key", key)
    };
    dead.map(row).collect()
}
