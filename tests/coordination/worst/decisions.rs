//! Ballots, batches and rates.

use super::meter::Meter;
use super::seed::{FAR, Seed};
use crate::batches::{asker, batches, failed};
use crate::fleet::Fleet;
use crate::seats::Worker;
use convoke::connect::connector::Connector;
use convoke::coordination::ballots::MAX_ELECTORATE;
use convoke::coordination::ballots::ballot::Vote;
use convoke::coordination::ballots::counting::Counter;
use convoke::coordination::batches::batch::{BatchPlan, MAX_FAILURES, MAX_ITEMS, Mode, TOGETHER};
use convoke::coordination::batches::{Acquired, Advanced, FinishedItem};
use convoke::coordination::instances::orders::{self, What, Whom};
use convoke::coordination::limits::RateLimits;
use convoke::coordination::repairs::{MAX_REPAIRS, Right};
use convoke::coordination::schedules::Missed;
use convoke::protocol::keys::Keys;
use convoke::protocol::pattern::{Pattern, Patterned};
use convoke::protocol::rate::Rate;
use convoke::settings::RedisUrl;
use convoke::streams::commit::MAX_PUBLICATIONS;
use convoke::streams::commit::Publication;
use convoke::streams::domains::Domains;
use std::time::Duration;

pub(super) async fn drive(fleet: &mut Fleet, meter: &mut Meter) {
    votes(fleet, meter).await;
    works(fleet, meter).await;
    let patterns = crate::patterns::patterns(fleet, Pattern::Centralized);
    meter
        .of(&fleet.redis, async {
            for pattern in [Pattern::Hybrid, Pattern::Distributed] {
                let by = "x".repeat(1000);
                let chosen = patterns.choose(Patterned::Health, Some(pattern), None, &by);
                chosen.await.unwrap();
            }
        })
        .await;
    let own = fleet.register("w-1", &["worker"]).await;
    assert!(own.new);
    meter
        .of(&fleet.redis, async {
            for what in [What::Drain, What::Quiet, What::Scale(7)] {
                let whom = Whom::Id("w-1".into());
                fleet.asked().order(&whom, what, "ann").await.unwrap();
            }
            let mode = orders::WorkerMode::default();
            fleet.instances.look_for_orders("w-1", &mode).await.unwrap();
        })
        .await;
    let policies = crate::policies::policies(fleet);
    let scope = crate::policies::scope(&format!("subject:mail:{}", "x".repeat(256)));
    meter
        .of(&fleet.redis, async {
            for reason in ["a", "b"] {
                let paused = crate::policies::paused(&reason.repeat(256));
                policies.set(&scope, &paused, None, "ann").await.unwrap();
            }
            policies.clear(&scope, &[], None, "ann").await.unwrap();
        })
        .await;
    let keys = Keys::tagged("cb", 1).unwrap();
    let url = RedisUrl::new(fleet.redis.url());
    let domains = Domains::new(Connector::new(&url, 2).unwrap(), keys);
    meter
        .of(&fleet.redis, async {
            // The number grows ten times at the most.
            for doubled in 0..=10 {
                let by = "x".repeat(256);
                let done = domains.set("image", 1 << doubled, None, &by).await;
                done.unwrap();
            }
            let mut lost = redis::cmd("DEL");
            lost.arg("{cb}:domains");
            lost.exec(&mut fleet.redis.connect()).unwrap();
            domains.keep(&["image"]).await.unwrap();
        })
        .await;
    let repairs = crate::repairs::repairs(fleet);
    for n in 1..MAX_REPAIRS {
        let draft = crate::repairs::draft(&format!("r-{n}"));
        repairs.start(&draft, "ann").await.unwrap();
    }
    repairs.cancel("r-9", "ann").await.unwrap();
    meter
        .of(&fleet.redis, async {
            for n in 0..2 {
                let mut draft = crate::repairs::draft(&format!("s-{n}"));
                draft.why = "x".repeat(256);
                repairs.start(&draft, "ann").await.unwrap();
            }
            let lease = Duration::from_secs(9);
            let held = repairs.take("s-0", "w-1", lease).await.unwrap();
            assert_eq!(held, Right::Held(1));
            let note = "x".repeat(256);
            repairs.keep("s-0", "w-1", 1, lease, &note).await.unwrap();
            repairs.finish("s-0", "w-1", 1).await.unwrap();
        })
        .await;
    let schedules = crate::schedules::schedules(fleet);
    let mut wanted = crate::schedules::each_second("s-1", Missed::Once);
    (wanted.payload, wanted.subject) = (Some(vec![0xc0; 1]), Some("x".repeat(256)));
    meter
        .of(&fleet.redis, async {
            schedules.put(&wanted, None, "ann").await.unwrap();
            wanted.when.every_ms = Some(2000);
            schedules.put(&wanted, None, "ann").await.unwrap();
        })
        .await;
    crate::schedules::miss(fleet, "s-1").await;
    meter
        .of(&fleet.redis, async {
            schedules.fire_due("w-1").await.unwrap();
            schedules.delete("s-1", "ann").await.unwrap();
        })
        .await;
    seats(fleet, meter).await;
    let connector = Connector::new(&RedisUrl::new(fleet.redis.url()), 4).unwrap();
    let limits = RateLimits::new(connector, fleet.keys.clone());
    let rate = Rate {
        limit: 1,
        period: Duration::from_secs(60),
    };
    meter
        .of(&fleet.redis, async {
            for _ in 0..2 {
                limits.take("a.b", Some("me"), rate).await.unwrap();
            }
        })
        .await;
}

/// Many workers that have seats of one type, or wait; more than one call takes away are gone, and the clock went back.
async fn seats(fleet: &mut Fleet, meter: &mut Meter) {
    let key = fleet.keys.seats("a.b");
    let mut seed = redis::pipe();
    let far = 4_000_000_000_000u64;
    for n in 0..300 {
        let till = if n % 3 == 0 { 1 } else { far };
        let one = format!("{till} 600000 1 1 1 1 {far} 1");
        seed.hset(&key, format!("w-{n}"), one).ignore();
    }
    let _: () = seed.query_async(&mut fleet.connection).await.unwrap();
    meter
        .of(&fleet.redis, async {
            let last = Worker::new(fleet, "w-last", Duration::from_secs(600));
            last.take(1000, 1, 1).await;
        })
        .await;
}

fn elector(number: usize) -> String {
    format!("{number}")
}

/// The largest electorate, of all instances and of a role; and the vote that ends it, when as many
/// have voted as one fact can name.
async fn votes(fleet: &mut Fleet, meter: &mut Meter) {
    let keys = fleet.keys.clone();
    let mut seed = Seed::afresh(fleet).await;
    let electors = || (0..MAX_ELECTORATE).map(elector);
    for number in 0..MAX_ELECTORATE {
        seed.scored(&keys.active(), FAR + number as u64, [elector(number)])
            .await;
    }
    seed.in_set(&keys.role("worker"), electors()).await;
    // Many that are over leave their share of the electors at the next opening.
    let over = (0..1000).map(|n| format!("1 over-{n}"));
    seed.scored(&keys.ballots_kept(), 1000, over).await;
    seed.scored(
        &keys.ballots_open(),
        1000,
        (0..1000).map(|n| format!("over-{n}")),
    )
    .await;
    seed.done().await;
    let vote = |decision: &str, number: usize, role: Option<&str>| Vote {
        role: role.map(str::to_owned),
        ..Vote::new(decision, elector(number), vec![1])
    };
    meter
        .of(&fleet.redis, async {
            for (decision, role) in [("all", None), ("some", Some("worker"))] {
                let voted = fleet.ballots.vote(&vote(decision, 0, role)).await.unwrap();
                assert_eq!(voted.electorate, MAX_ELECTORATE as u64);
            }
        })
        .await;
    // As if all but one of the quorum had voted.
    let quorum = MAX_ELECTORATE / 2 + 1;
    let mut seed = Seed::more(fleet);
    let mut said = 0;
    for number in 0..quorum - 1 {
        said += elector(number).len() + 1;
        let mut set = redis::cmd("HSET");
        set.arg(keys.votes("all")).arg(elector(number));
        seed.add(set.arg(&[1u8][..]).to_owned()).await;
    }
    let mut set = redis::cmd("HSET");
    let tally = set.arg(keys.tally("all")).arg(&[1u8][..]).arg(quorum - 1);
    seed.add(tally.to_owned()).await;
    let mut set = redis::cmd("HSET");
    set.arg(keys.ballot("all")).arg("said").arg(said);
    set.arg("leading").arg(quorum - 1);
    seed.add(set.to_owned()).await;
    seed.done().await;
    let last = vote("all", quorum, None);
    let ended = meter.of(&fleet.redis, fleet.ballots.vote(&last)).await;
    assert!(ended.unwrap().decision.is_some());
    // The same, where the script does not count.
    let mut seed = Seed::more(fleet);
    // Room among the electors, and as many that are over as before.
    seed.add(redis::cmd("SET").arg(keys.electors()).arg(1000).to_owned())
        .await;
    let over = (0..1000).map(|n| format!("1 gone-{n}"));
    seed.scored(&keys.ballots_kept(), 1000, over).await;
    seed.done().await;
    let everyone = Pattern::Distributed;
    let first = vote("told", 0, None);
    let opened = fleet.ballots.take(&first, everyone);
    let opened = meter.of(&fleet.redis, opened).await.unwrap();
    assert_eq!(opened.voted.electorate, MAX_ELECTORATE as u64);
    let mut seed = Seed::more(fleet);
    for number in 1..quorum - 1 {
        let mut set = redis::cmd("HSET");
        set.arg(keys.votes("told")).arg(elector(number));
        seed.add(set.arg(&[1u8][..]).to_owned()).await;
    }
    seed.done().await;
    let last = vote("told", quorum, None);
    let taken = fleet.ballots.take(&last, everyone);
    let taken = meter.of(&fleet.redis, taken).await.unwrap();
    assert_eq!(taken.counts, Some(everyone));
    let counted = fleet.ballots.count("told", Counter::Everyone);
    let counted = meter.of(&fleet.redis, counted).await.unwrap();
    assert!(counted.decision.is_some());
}

/// The largest batch, with all that one step may finish, at its end, with failures to be told.
async fn works(fleet: &mut Fleet, meter: &mut Meter) {
    fleet.run("FLUSHALL").await;
    let batches = batches(fleet);
    let items = vec![vec![7]; MAX_ITEMS];
    let wanted = BatchPlan::new("b-1", "number.add", Mode::Exclusive, &items, 30_000).unwrap();
    let publications: Vec<Publication> = (0..MAX_PUBLICATIONS)
        .map(|n| Publication {
            stream: format!("cb:events:domain_{n}"),
            fields: ["type", "a.b", "n", "1"].map(|word| word.into()).to_vec(),
        })
        .collect();
    let finish = |from: usize, count: usize| -> Vec<FinishedItem> {
        (from..from + count)
            .map(|index| failed(index, &"m".repeat(256)))
            .collect()
    };
    let hold = async |name: &str| {
        let mut who = asker("w-0", name);
        (who.entry, who.event) = ("1-1", "1-1");
        who.deliveries = name.len() as u32;
        match batches.acquire(&wanted, who).await.unwrap() {
            Acquired::Held(progress, _) => progress.fence,
            other => panic!("{other:?}"),
        }
    };
    let fence = hold("a").await;
    let skipped = MAX_ITEMS - 2 * TOGETHER;
    let (early, rest) = (0..MAX_FAILURES / TOGETHER, TOGETHER);
    for step in early {
        let done = finish(step * rest, rest);
        batches.progress(&wanted, fence, &done, &[]).await.unwrap();
    }
    // As if most of it had been done.
    let key = fleet.keys.batch("b-1");
    fleet
        .run(&format!("HSET {key} processed {}", skipped - 3 * TOGETHER))
        .await;
    meter
        .of(&fleet.redis, async {
            let fence = hold("ab").await;
            let renewed = batches.renew("b-1", fence, Duration::from_secs(30)).await;
            assert!(renewed.unwrap());
            for from in [skipped, skipped + TOGETHER] {
                let done = finish(from, TOGETHER);
                let advanced = batches.progress(&wanted, fence, &done, &publications);
                let advanced = advanced.await.unwrap();
                let ended = from > skipped;
                assert_eq!(
                    matches!(advanced, Advanced::Completed(_)),
                    ended,
                    "{advanced:?}"
                );
            }
            batches.give_back("b-1", fence).await.unwrap();
        })
        .await;
    let other = BatchPlan::new("b-2", "number.add", Mode::Exclusive, &items, 30_000).unwrap();
    let who = asker("w-0", "z");
    let held = batches.acquire(&other, who).await.unwrap();
    assert!(matches!(held, Acquired::Held(..)));
    let reason = "r".repeat(256);
    let cancelled = batches.cancel("b-2", &reason, &reason);
    meter.of(&fleet.redis, cancelled).await.unwrap();
}
