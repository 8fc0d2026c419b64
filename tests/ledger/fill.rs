//! What happened is in the database, once.

use crate::rig::{BROADCAST, DEAD, Rig, Store};
use crate::support;
use convoke::ledger::fill::GROUP;
use convoke::ledger::history::Filter;
use convoke::streams::trim::Trimmer;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

#[tokio::test]
async fn every_entry_is_one_row_with_what_it_tells() {
    for store in Store::both() {
        let rig = Rig::new(store).await;
        // Before the group is there: nothing is missed.
        let first = rig
            .tell(
                "instance.registered",
                &json!({"id": "w-1", "incarnation": 3}),
            )
            .await;
        let running = rig.fill("w-1");
        rig.tell("anything.new", &json!({"x": [1, "\u{0}", u64::MAX]}))
            .await;
        rig.add(
            BROADCAST,
            &[("type", b"odd.one"), ("data", b"\xc1"), ("time", b"soon")],
        )
        .await;
        rig.add(BROADCAST, &[("no", b"type")]).await;
        rig.add(
            DEAD,
            &[
                ("type", b"image.resize"),
                ("id", b"e-1"),
                ("data", b"\x07"),
                ("deadreason", b"internal"),
                ("deadmessage", b"it broke"),
                ("deadinstance", b"w-1"),
            ],
        )
        .await;
        rig.until_written().await;
        running.stop().await;
        let facts = rig
            .history(&Filter {
                oldest_first: true,
                ..Filter::default()
            })
            .await;
        assert_eq!(facts.len(), 5);
        assert_eq!(format!("{}-{}", facts[0].at, facts[0].seq), first);
        assert_eq!(facts[0].data, json!({"id": "w-1", "incarnation": 3}));
        assert_eq!(facts[0].subject.as_deref(), Some("w-1"));
        let find = |kind: &str| facts.iter().find(|fact| fact.kind == kind).unwrap();
        assert_eq!(
            find("anything.new").data,
            json!({"x": [1, "\u{fffd}", u64::MAX]})
        );
        assert!(find("odd.one").data["$left_out"].is_string());
        assert_eq!(find("").fields["no"], "type");
        let dead = find("image.resize");
        assert_eq!(
            (dead.reason.as_deref(), dead.subject.as_deref()),
            (Some("internal"), Some("e-1"))
        );
        assert_eq!(
            (&dead.data, &dead.fields["deadmessage"]),
            (&json!(7), &json!("it broke"))
        );
    }
}

#[tokio::test]
async fn entries_with_ids_beyond_any_time_are_the_newest_and_stay() {
    for store in Store::both() {
        let rig = Rig::new(store).await;
        rig.tell("task.created", &json!({"task_id": "t"})).await;
        let ids = [
            "9223372036854775807-3",
            "9223372036854775808-0",
            "9223372036854775808-1",
            "9223372036854775809-0",
            "18446744073709551615-7",
        ];
        for id in ids {
            let () = redis::cmd("XADD")
                .arg(&[BROADCAST, id, "type", "odd.id"])
                .query_async(&mut rig.connection.clone())
                .await
                .unwrap();
        }
        let running = rig.fill("w-1");
        rig.until_written().await;
        running.stop().await;
        let database = rig.store.database();
        database
            .forget("cb", Duration::from_secs(3600))
            .await
            .unwrap();
        let facts = rig
            .history(&Filter {
                oldest_first: true,
                ..Filter::default()
            })
            .await;
        assert!(facts.iter().all(|fact| fact.at > 0), "{facts:?}");
        assert_eq!(facts[0].kind, "task.created");
        let entries: Vec<_> = facts[2..]
            .iter()
            .map(|fact| &fact.fields["$entry"])
            .collect();
        assert_eq!(entries, ids[1..]);
    }
}

#[tokio::test]
async fn what_a_dead_consumer_held_is_written_by_another_and_a_fact_that_comes_again_changes_nothing()
 {
    for store in Store::both() {
        let rig = Rig::new(store).await;
        rig.tell_many("task.completed", 0, 40).await;
        // A consumer that took entries, wrote half of them and died before it acknowledged any.
        let written = rig.fill("w-1");
        rig.until_written().await;
        written.stop().await;
        rig.tell_many("task.completed", 40, 40).await;
        let mut connection = rig.connection.clone();
        redis::cmd("XGROUP")
            .arg(&["SETID", BROADCAST, GROUP, "0"])
            .exec_async(&mut connection)
            .await
            .unwrap();
        redis::cmd("XREADGROUP")
            .arg(&[
                "GROUP", GROUP, "ghost", "COUNT", "60", "STREAMS", BROADCAST, ">",
            ])
            .exec_async(&mut connection)
            .await
            .unwrap();
        let running = rig.fill("w-2");
        rig.until_written().await;
        running.stop().await;
        let facts = rig.history(&Filter::default()).await;
        let numbers: BTreeSet<u64> = facts
            .iter()
            .map(|f| f.data["n"].as_u64().unwrap())
            .collect();
        assert_eq!((facts.len(), numbers), (80, (0..80).collect()));
    }
}

#[tokio::test]
async fn a_dead_letter_that_a_dead_consumer_held_is_written_by_another() {
    let rig = Rig::new(Store::file()).await;
    rig.add(
        DEAD,
        &[
            ("type", b"image.make"),
            ("id", b"e-1"),
            ("deadreason", b"internal"),
        ],
    )
    .await;
    for words in [
        &["XGROUP", "CREATE", DEAD, GROUP, "0"][..],
        &["XREADGROUP", "GROUP", GROUP, "gone", "STREAMS", DEAD, ">"],
    ] {
        let mut command = redis::cmd(words[0]);
        let command = command.arg(&words[1..]);
        let connection = &mut rig.connection.clone();
        command.exec_async(connection).await.unwrap();
    }
    let running = rig.fill("w-1");
    rig.until_written().await;
    running.stop().await;
    let of_the_event = Filter {
        event: Some("e-1".into()),
        ..Filter::default()
    };
    assert_eq!(rig.history(&of_the_event).await.len(), 1);
}

#[tokio::test]
async fn several_consumers_share_the_work_and_trimming_waits_for_them() {
    for store in Store::both() {
        let rig = Rig::new(store).await;
        let mut connection = rig.connection.clone();
        // The group is there, and nobody reads.
        let idle = rig.fill("w-0");
        support::until("the group is there", || async {
            rig.backlog(BROADCAST).await == 0
        })
        .await;
        idle.stop().await;
        rig.tell_many("task.failed", 0, 5000).await;
        let mut trimmer = Trimmer::default();
        for _ in 0..3 {
            trimmer
                .run_once(&mut connection, &[(BROADCAST.into(), 100)])
                .await;
        }
        let length: u64 = redis::cmd("XLEN")
            .arg(BROADCAST)
            .query_async(&mut connection)
            .await
            .unwrap();
        assert_eq!(
            length, 5000,
            "nothing was trimmed that is not in the ledger"
        );
        let running = [rig.fill("w-1"), rig.fill("w-2")];
        rig.until_written().await;
        for running in running {
            running.stop().await;
        }
        assert_eq!(rig.history(&Filter::default()).await.len(), 5000);
        // A call removes a part.
        let mut trimmed = async || {
            let mut done = trimmer
                .run_once(&mut connection, &[(BROADCAST.into(), 100)])
                .await;
            done.remove(0).unwrap().removed
        };
        while trimmed().await > 0 {}
        let length: u64 = redis::cmd("XLEN")
            .arg(BROADCAST)
            .query_async(&mut connection)
            .await
            .unwrap();
        assert!(
            length < 1000,
            "{length} entries are left of what is in the ledger"
        );
    }
}

#[tokio::test]
async fn old_rows_go_and_the_others_stay() {
    for store in Store::both() {
        let rig = Rig::new(store).await;
        let mut connection = rig.connection.clone();
        for id in ["1000-0", "2000-0"] {
            redis::cmd("XADD")
                .arg(&[BROADCAST, id, "type", "task.completed"])
                .exec_async(&mut connection)
                .await
                .unwrap();
        }
        rig.tell("task.completed", &json!({"task_id": "t"})).await;
        let running = rig.fill("w-1");
        rig.until_written().await;
        running.stop().await;
        let database = rig.store.database();
        // Another bus that keeps its facts in the same database says itself for how long.
        assert_eq!(database.forget("other", Duration::ZERO).await.unwrap(), 0);
        assert_eq!(
            database
                .forget("cb", Duration::from_secs(24 * 3600))
                .await
                .unwrap(),
            2
        );
        assert_eq!(rig.history(&Filter::default()).await.len(), 1);
    }
}

#[tokio::test]
async fn the_views_tell_each_kind_of_fact() {
    use convoke::sqlx::{self, Row};
    for store in Store::both() {
        let rig = Rig::new(store).await;
        rig.tell("leader.elected", &json!({"id": "w-1", "term": 4}))
            .await;
        rig.tell(
            "task.failed",
            &json!({"task_id": "t-1", "instance_id": "w-1", "error": "no"}),
        )
        .await;
        rig.tell(
            "task.cancelled",
            &json!({"task_id": "t-2", "instance_id": "w-1", "reason": "twice"}),
        )
        .await;
        for (done, kind) in [(1, "batch.progress"), (2, "batch.completed")] {
            let failures = json!([{"item": 1, "error": "bad"}]);
            rig.tell(
                kind,
                &json!({"batch_id": "b-1", "processor_id": "w-1", "items_processed": done,
                "items_failed": 1, "total": 2, "fence": "odd", "failures": failures}),
            )
            .await;
        }
        rig.tell(
            "quorum.decided",
            &json!({"decision": "d-1", "value": "yes", "vote_count": 2,
            "votes": {"w-1": "yes", "w-2": "yes"}}),
        )
        .await;
        rig.tell("operator.paused", &json!({"by": "me"})).await;
        rig.add(
            DEAD,
            &[
                ("type", b"image.resize"),
                ("id", b"e-1"),
                ("deadreason", b"poison"),
            ],
        )
        .await;
        let running = rig.fill("w-1");
        rig.until_written().await;
        running.stop().await;
        for (query, told) in [
            (
                "SELECT kind FROM convoke_lifecycle WHERE term = 4",
                "leader.elected",
            ),
            (
                "SELECT task FROM convoke_task_outcomes WHERE status = 'failed' AND error = 'no'",
                "t-1",
            ),
            (
                "SELECT task FROM convoke_task_outcomes WHERE status = 'cancelled' AND reason = 'twice'",
                "t-2",
            ),
            (
                "SELECT status FROM convoke_batches WHERE batch = 'b-1' AND items_processed = 2",
                "completed",
            ),
            (
                "SELECT CAST(failure AS text) FROM convoke_batch_failures WHERE batch = 'b-1'",
                "bad",
            ),
            (
                "SELECT decision FROM convoke_decisions WHERE status = 'decided' AND vote_count = 2",
                "d-1",
            ),
            (
                "SELECT instance FROM convoke_votes WHERE decision = 'd-1' AND CAST(value AS text) LIKE '%yes%' ORDER BY 1 DESC",
                "w-2",
            ),
            (
                "SELECT event FROM convoke_dead_letters WHERE reason = 'poison'",
                "e-1",
            ),
            (
                "SELECT kind FROM convoke_operator_actions",
                "operator.paused",
            ),
        ] {
            let text: String = match &rig.store {
                Store::File(path) => {
                    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
                    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
                    sqlx::query(query)
                        .fetch_one(&pool)
                        .await
                        .expect(query)
                        .get(0)
                }
                Store::Server(postgres) => {
                    let pool = sqlx::PgPool::connect(&postgres.url()).await.unwrap();
                    sqlx::query(query)
                        .fetch_one(&pool)
                        .await
                        .expect(query)
                        .get(0)
                }
            };
            assert!(text.contains(told), "{query}: {text}");
        }
    }
}
