//! A database that takes nothing for a while delays the ledger and loses nothing.

use crate::rig::{BROADCAST, Rig, Store};
use crate::support::{self, Redis};
use convoke::ledger::history::Filter;
use std::collections::BTreeSet;

pub(crate) async fn complete(rig: &Rig, count: u64) {
    let facts = rig.history(&Filter::default()).await;
    let numbers: BTreeSet<u64> = facts
        .iter()
        .map(|f| f.data["n"].as_u64().unwrap())
        .collect();
    assert_eq!((facts.len() as u64, numbers), (count, (0..count).collect()));
}

/// Facts come while the database is `broken`, and are there when it is `mended`.
async fn survives(rig: &mut Rig, broken: &[&'static str], mended: &[&'static str]) {
    let running = rig.fill("w-1");
    rig.tell_many("task.completed", 0, 10).await;
    rig.until_written().await;
    for sql in broken {
        rig.store.run(sql).await;
    }
    rig.tell_many("task.completed", 10, 2000).await;
    running.until_in_vain(3).await;
    assert!(
        rig.backlog(BROADCAST).await > 0,
        "nothing is acknowledged that is not written"
    );
    for sql in mended {
        rig.store.run(sql).await;
    }
    rig.until_written().await;
    running.stop().await;
    complete(rig, 2010).await;
}

#[tokio::test]
async fn a_server_that_turned_read_only() {
    let mut rig = Rig::new(Store::server()).await;
    survives(
        &mut rig,
        &[
            "ALTER SYSTEM SET default_transaction_read_only = on",
            "SELECT pg_reload_conf()",
        ],
        &[
            "ALTER SYSTEM RESET default_transaction_read_only",
            "SELECT pg_reload_conf()",
        ],
    )
    .await;
}

#[tokio::test]
async fn conflicts_with_other_transactions() {
    let mut rig = Rig::new(Store::server()).await;
    survives(
        &mut rig,
        &["CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001'; END $$;
         CREATE TRIGGER conflict BEFORE INSERT ON convoke_facts EXECUTE FUNCTION conflict()"],
        &["DROP TRIGGER conflict ON convoke_facts"],
    )
    .await;
}

#[tokio::test]
async fn a_server_that_takes_five_seconds_for_each_write() {
    let rig = Rig::new(Store::server()).await;
    let running = rig.fill("w-1");
    rig.tell_many("task.completed", 0, 10).await;
    rig.until_written().await;
    rig.store
        .run(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(5); RETURN NULL; END $$;
             CREATE TRIGGER slow BEFORE INSERT ON convoke_facts EXECUTE FUNCTION slow()",
        )
        .await;
    rig.tell_many("task.completed", 10, 100).await;
    let Store::Server(postgres) = &rig.store else {
        unreachable!()
    };
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    support::until("it writes slowly", || async {
        postgres.sql(sleeping) == "1"
    })
    .await;
    assert!(
        rig.backlog(BROADCAST).await > 0,
        "nothing is acknowledged that is not written"
    );
    // No need for it to get faster.
    rig.until_written().await;
    running.stop().await;
    complete(&rig, 110).await;
}

#[tokio::test]
async fn a_file_that_another_process_has_locked() {
    use convoke::sqlx::{self, Connection};
    let rig = Rig::new(Store::file()).await;
    let Store::File(path) = &rig.store else {
        unreachable!()
    };
    let running = rig.fill("w-1");
    rig.tell_many("task.completed", 0, 10).await;
    rig.until_written().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut other = sqlx::SqliteConnection::connect_with(&options)
        .await
        .unwrap();
    sqlx::raw_sql("BEGIN EXCLUSIVE")
        .execute(&mut other)
        .await
        .unwrap();
    rig.tell_many("task.completed", 10, 100).await;
    running.until_in_vain(1).await;
    assert!(rig.backlog(BROADCAST).await > 0);
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    rig.until_written().await;
    running.stop().await;
    complete(&rig, 110).await;
}

#[tokio::test]
async fn a_file_that_was_deleted_is_made_again() {
    let rig = Rig::new(Store::file()).await;
    let Store::File(path) = &rig.store else {
        unreachable!()
    };
    let running = rig.fill("w-1");
    rig.tell_many("task.completed", 7, 5).await;
    rig.until_written().await;
    // Somebody who asks now and then, and keeps connections.
    let asking = rig.store.database();
    let all = Filter::default();
    assert_eq!(asking.history(&all, 100).await.unwrap().len(), 5);
    for suffix in ["", "-wal", "-shm"] {
        std::fs::remove_file(format!("{}{suffix}", path.display())).ok();
    }
    rig.tell_many("task.completed", 0, 6).await;
    rig.until_written().await;
    running.stop().await;
    complete(&rig, 6).await;
    assert_eq!(asking.history(&all, 100).await.unwrap().len(), 6);
}

#[tokio::test]
async fn a_file_that_can_not_be_opened() {
    let rig = Rig::new(Store::file()).await;
    let Store::File(path) = &rig.store else {
        unreachable!()
    };
    // A directory stands in its place.
    std::fs::create_dir_all(path).unwrap();
    let running = rig.fill("w-1");
    rig.tell_many("task.completed", 0, 10).await;
    running.until_in_vain(3).await;
    assert_eq!(rig.backlog(BROADCAST).await, 10);
    std::fs::remove_dir(path).unwrap();
    rig.until_written().await;
    running.stop().await;
    complete(&rig, 10).await;
}

#[tokio::test]
async fn a_server_that_freezes_and_one_that_is_killed() {
    let mut rig = Rig::new(Store::server()).await;
    let running = rig.fill("w-1");
    rig.tell_many("task.completed", 0, 100).await;
    rig.until_written().await;
    let Store::Server(postgres) = &mut rig.store else {
        unreachable!()
    };
    postgres.freeze(true);
    rig.tell_many("task.completed", 100, 100).await;
    running.until_in_vain(1).await;
    assert!(rig.backlog(BROADCAST).await > 0);
    let Store::Server(postgres) = &mut rig.store else {
        unreachable!()
    };
    postgres.freeze(false);
    rig.until_written().await;
    let Store::Server(postgres) = &mut rig.store else {
        unreachable!()
    };
    postgres.kill();
    rig.tell_many("task.completed", 200, 100).await;
    running.until_in_vain(3).await;
    assert!(rig.backlog(BROADCAST).await > 0);
    let Store::Server(postgres) = &mut rig.store else {
        unreachable!()
    };
    postgres.restart();
    rig.until_written().await;
    running.stop().await;
    complete(&rig, 300).await;
}

#[tokio::test]
async fn a_redis_that_is_killed() {
    for store in Store::both() {
        let mut rig = Rig::new(store).await;
        rig.redis = Redis::durable();
        rig.connection = rig.redis.connection().await;
        let running = rig.fill("w-1");
        rig.tell_many("task.completed", 0, 3000).await;
        rig.redis.restart();
        rig.connection = rig.redis.connection().await;
        rig.tell_many("task.completed", 3000, 100).await;
        rig.until_written().await;
        running.stop().await;
        complete(&rig, 3100).await;
    }
}

#[tokio::test]
async fn what_a_consumer_held_that_died_while_the_database_was_away_is_not_lost() {
    let mut rig = Rig::new(Store::server()).await;
    let first = rig.fill("w-1");
    rig.tell_many("task.completed", 0, 10).await;
    rig.until_written().await;
    let Store::Server(postgres) = &mut rig.store else {
        unreachable!()
    };
    postgres.kill();
    rig.tell_many("task.completed", 10, 10).await;
    let mut connection = rig.connection.clone();
    first.until_in_vain(1).await;
    drop(first);
    let length: u64 = redis::cmd("XLEN")
        .arg(BROADCAST)
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(length, 20);
    let Store::Server(postgres) = &mut rig.store else {
        unreachable!()
    };
    postgres.restart();
    let second = rig.fill("w-2");
    rig.until_written().await;
    second.stop().await;
    complete(&rig, 20).await;
}
