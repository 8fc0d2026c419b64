//! Choosing the pattern of a system event, and the parts of an answer that instances keep.

use crate::fleet::Fleet;
use convoke::connect::connector::Connector;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::instances::instance::Registering;
use convoke::coordination::patterns::PatternStore;
use convoke::coordination::view::View;
use convoke::protocol::pattern::{self, Pattern, Patterned};
use convoke::settings::RedisUrl;
use serde_json::json;
use std::time::Duration;

const HEALTH: Patterned = Patterned::Health;

pub(crate) fn patterns(fleet: &Fleet, setting: Pattern) -> PatternStore {
    let connector = Connector::new(&RedisUrl::new(fleet.redis.url()), 4).unwrap();
    let mut settings = pattern::Patterns::default();
    settings.set(HEALTH, setting);
    PatternStore::new(connector, fleet.keys.clone(), settings)
}

async fn version(fleet: &Fleet) -> u64 {
    let connector = Connector::new(&RedisUrl::new(fleet.redis.url()), 2).unwrap();
    let view = View::new(connector, fleet.keys.clone());
    view.version().await.unwrap()
}

#[tokio::test]
async fn a_choice_wins_over_every_setting_until_it_is_taken_back() {
    let mut fleet = Fleet::start().await;
    let one = patterns(&fleet, Pattern::Centralized);
    let other = patterns(&fleet, Pattern::Hybrid);
    other.refresh().await.unwrap();
    assert_eq!(one.of(HEALTH), Pattern::Centralized);
    assert_eq!(other.of(HEALTH), Pattern::Hybrid);
    let before = version(&fleet).await;
    let chosen = one
        .choose(HEALTH, Some(Pattern::Distributed), None, "ann")
        .await;
    assert_eq!(chosen.unwrap(), 1);
    let after = version(&fleet).await;
    assert!(after > before, "the state shows it");
    for patterns in [&one, &other] {
        patterns.refresh().await.unwrap();
        assert_eq!(patterns.of(HEALTH), Pattern::Distributed);
    }
    // The same again is no change.
    let again = one
        .choose(HEALTH, Some(Pattern::Distributed), None, "bob")
        .await;
    assert_eq!(again.unwrap(), 1);
    assert_eq!(version(&fleet).await, after);
    assert_eq!(one.choose(HEALTH, None, Some(1), "bob").await.unwrap(), 2);
    other.refresh().await.unwrap();
    assert_eq!(other.of(HEALTH), Pattern::Hybrid);
    let facts = fleet.facts().await;
    let fact = |pattern: &str, version: u64, by: &str, before: &str| {
        let data = json!({
            "event": "health", "pattern": pattern, "version": version, "by": by, "before": before,
        });
        ("pattern.changed".to_owned(), data)
    };
    let told = [
        fact("distributed", 1, "ann", ""),
        fact("", 2, "bob", "distributed"),
    ];
    assert_eq!(facts, told);
}

#[tokio::test]
async fn of_two_who_replace_the_same_version_one_is_refused() {
    let mut fleet = Fleet::start().await;
    let patterns = patterns(&fleet, Pattern::Centralized);
    for version in [Some(0), Some(1)] {
        let pattern = match version {
            Some(0) => Pattern::Hybrid,
            _ => Pattern::Distributed,
        };
        patterns
            .choose(HEALTH, Some(pattern), version, "ann")
            .await
            .unwrap();
    }
    let late = patterns
        .choose(HEALTH, Some(Pattern::Hybrid), Some(1), "bob")
        .await;
    assert!(
        matches!(late, Err(CoordinationError::Aborted(_))),
        "{late:?}"
    );
    patterns.refresh().await.unwrap();
    assert_eq!(patterns.of(HEALTH), Pattern::Distributed);
    assert_eq!(fleet.facts().await.len(), 2);
}

#[tokio::test]
async fn a_choice_that_nobody_knows_counts_as_no_choice() {
    let mut fleet = Fleet::start().await;
    let patterns = patterns(&fleet, Pattern::Hybrid);
    for unknown in ["anarchic", ""] {
        let choice = json!({"pattern": unknown, "version": 7, "by": "a later one", "at": 1});
        let bytes = rmp_serde::to_vec(&choice).unwrap();
        let mut set = redis::cmd("HSET");
        set.arg("cb:patterns").arg("health").arg(bytes);
        set.query_async::<()>(&mut fleet.connection).await.unwrap();
        let listed = patterns.list().await.unwrap();
        assert_eq!(listed[0].pattern, Pattern::Hybrid);
        assert_eq!(
            listed[0].choice.as_ref().map(|choice| choice.version),
            Some(7)
        );
    }
    fleet.run("HSET cb:patterns health nonsense").await;
    assert_eq!(patterns.list().await.unwrap()[0].choice, None);
    // Choosing puts it right.
    let chosen = patterns
        .choose(HEALTH, Some(Pattern::Distributed), None, "ann")
        .await;
    assert_eq!(chosen.unwrap(), 1);
    patterns.refresh().await.unwrap();
    assert_eq!(patterns.of(HEALTH), Pattern::Distributed);
}

#[tokio::test]
async fn only_what_living_workers_found_of_their_services_is_put_together() {
    let mut fleet = Fleet::start().await;
    let kept = Duration::from_secs(60);
    for id in ["w-1", "w-2", "w-3", "w-4"] {
        fleet.register(id, &["worker"]).await;
    }
    let external = Registering::new("x-1", ["worker"]);
    fleet.asked().register(&external).await.unwrap();
    for id in ["w-1", "w-2", "w-4", "x-1", "stranger"] {
        fleet
            .instances
            .keep_health(id, id.as_bytes(), kept)
            .await
            .unwrap();
    }
    fleet.expire("w-2").await;
    fleet.run("DEL cb:health:of:w-4").await;
    let (now, found) = fleet.instances.healths().await.unwrap();
    assert!(now > 1_000_000_000_000, "{now}");
    let found: Vec<_> = found.into_iter().collect();
    let there = ("w-1".to_owned(), Some(b"w-1".to_vec()));
    assert_eq!(
        found,
        [there, ("w-3".to_owned(), None), ("w-4".to_owned(), None)]
    );
    let left: i64 = fleet.ask("PTTL cb:health:of:w-1").await;
    assert!(0 < left && left <= 60_000, "{left}");
}
