//! The power goes: what the server wrote and had not synced is gone.

use crate::history;
use crate::load::Load;
use crate::outcomes::{self, Except};
use crate::support::{Redis, torture};
use crate::world::{World, settings};
use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How much of the file that a server writes with `everysec` may be missing after the power went, by
/// what the server's documentation promises.
const SYNCED: Duration = Duration::from_secs(2);

/// The sizes of the append-only file over time.
struct Grows {
    path: PathBuf,
    sizes: Vec<(u64, u64)>,
}

impl Grows {
    fn of(redis: &Redis) -> Self {
        let path = redis.dir().join("appendonlydir/appendonly.aof.1.incr.aof");
        Self {
            path,
            sizes: Vec::new(),
        }
    }

    /// Notes its size for so long.
    async fn watch(&mut self, world: &World, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let now = world.history.now();
            let size = fs::metadata(&self.path).map_or(0, |file| file.len());
            self.sizes.push((now, size));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Cuts the file back to what it was that long before its end; when the last of what is left was written, or before
    /// that. While the disk is at an fsync the server puts off what it writes, though it acknowledges it.
    fn cut_back(&self, age: Duration) -> u64 {
        let age = age.as_nanos() as u64;
        let (last, _) = self.sizes[self.sizes.len() - 1];
        let old = self.sizes.iter().rev().find(|(at, _)| at + age <= last);
        let &(_, size) = old.unwrap_or(&self.sizes[0]);
        let file = fs::OpenOptions::new().write(true).open(&self.path).unwrap();
        file.set_len(size).unwrap();
        let shorter = self.sizes.iter().rev().find(|(_, was)| *was < size);
        shorter.map_or(0, |(at, _)| *at)
    }
}

/// The kernel keeps what a killed process wrote; a power cut does not. So the file is cut back to a
/// moment within what `everysec` may lose. Whatever was acknowledged before that moment is there, the
/// events behind it are lost as a whole or not at all, and the workers, who remember more than the
/// server does, commit nothing twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_loss_with_everysec_loses_only_what_was_not_synced() {
    let cuts = torture::size("TORTURE_POWER_LOSSES", 2, 100);
    let options = [
        "--save",
        "",
        "--appendonly",
        "yes",
        "--appendfsync",
        "everysec",
    ];
    let whole = ["--auto-aof-rewrite-percentage", "0"];
    let redis = Redis::with(&[&options[..], &whole[..]].concat());
    let mut world = World::begin("power", redis, 3, settings()).await;
    let (client, _wire) = world.client().await;
    let load = Load::start(client, world.history.clone(), 300);
    let mut dice = torture::dice("power");
    let mut grows = Grows::of(&world.redis);
    let mut gaps = Vec::new();
    for _ in 0..cuts {
        let up = SYNCED + Duration::from_millis(dice.u64(200..1500));
        grows.watch(&world, up).await;
        let age = SYNCED.mul_f64(dice.f64());
        world.redis.kill();
        let end = world.history.now();
        let begin = grows.cut_back(age);
        world.redis.restart();
        gaps.push((begin, end));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let events = load.stop().await;
    // Acknowledged while what was written went: nobody knows which.
    let records = history::all(&world.dir);
    let within: HashSet<&str> = records
        .iter()
        .filter(|record| record.op == "publish" && record.phase == "ok")
        .filter(|record| {
            let mut gaps = gaps.iter();
            gaps.any(|(begin, end)| (begin..=end).contains(&&record.ns))
        })
        .map(|record| record.id.as_str())
        .collect();
    let except = Except {
        lost: &|id| within.contains(id),
        ..Except::default()
    };
    let counts = outcomes::check_but(&world, &events, except).await;
    world.drain().await;
    torture::Report::default()
        .fault(cuts, "power losses (everysec)")
        .event(counts.acknowledged, "acknowledged across power losses")
        .event(counts.twice, "duplicate effects")
        .event(counts.lost, "lost, all of them not synced yet")
        .event(within.len() as u64, "not synced yet when the power went")
        .tell("power");
}
