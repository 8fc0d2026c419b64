//! The schema comes with the program, and goes both ways.

use crate::rig::{BROADCAST, Rig, Store};
use convoke::ledger::LedgerError;
use convoke::ledger::history::Filter;
use convoke::ledger::schema::VERSION;
use serde_json::json;

#[tokio::test]
async fn migrations_run_once_and_can_be_taken_back() {
    for store in Store::both() {
        let database = store.database();
        assert_eq!(database.version().await.unwrap(), 0);
        assert!(matches!(
            database.check().await,
            Err(LedgerError::Behind { found: 0, .. })
        ));
        assert_eq!(database.migrate().await.unwrap(), 0);
        assert_eq!(database.migrate().await.unwrap(), VERSION);
        database.check().await.unwrap();
        for version in (0..VERSION).rev() {
            database.revert(version).await.unwrap();
            assert_eq!(database.version().await.unwrap(), version);
        }
        assert_eq!(database.migrate().await.unwrap(), 0);
        database.check().await.unwrap();
    }
}

#[tokio::test]
async fn a_schema_of_a_later_version_delays_the_ledger_and_loses_nothing() {
    for store in Store::both() {
        let rig = Rig::new(store).await;
        rig.store.database().migrate().await.unwrap();
        rig.store
            .run("INSERT INTO convoke_migrations (version, description, success, checksum, execution_time) SELECT 6, 'later', success, checksum, 0 FROM convoke_migrations WHERE version = 1")
            .await;
        let error = rig.store.database().migrate().await.unwrap_err();
        assert!(
            matches!(
                error,
                LedgerError::Ahead {
                    found: 6,
                    known: VERSION
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains("upgrade convoke"));
        rig.tell("task.completed", &json!({"task_id": "t"})).await;
        let running = rig.fill("w-1");
        running.until_in_vain(2).await;
        assert_eq!(rig.backlog(BROADCAST).await, 1, "not acknowledged");
        rig.store
            .run("DELETE FROM convoke_migrations WHERE version = 6")
            .await;
        rig.until_written().await;
        running.stop().await;
        assert_eq!(rig.history(&Filter::default()).await.len(), 1);
    }
}
