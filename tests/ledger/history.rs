//! Asking what happened.

use crate::rig::{DEAD, Rig, Store};
use crate::support::keys;
use crate::support::users;
use convoke::ledger::fact::Fact;
use convoke::ledger::history::{Cursor, Filter};
use serde_json::{Value, json};
use std::process::{Command, Output};

async fn filled(store: Store) -> Rig {
    let rig = Rig::new(store).await;
    for (kind, data) in [
        ("instance.registered", json!({"id": "w-1"})),
        (
            "task.completed",
            json!({"task_id": "same", "instance_id": "w-1"}),
        ),
        (
            "batch.completed",
            json!({"batch_id": "same", "processor_id": "w-2"}),
        ),
        (
            "quorum.decided",
            json!({"decision": "same", "value": "\u{1b}[2J"}),
        ),
        ("taskx.completed", json!({})),
    ] {
        rig.tell(kind, &data).await;
    }
    // On another stream: the order of one ms is that of the streams' names, and the clock may step back.
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    rig.add(
        DEAD,
        &[
            ("type", b"task.create"),
            ("id", b"same"),
            ("deadreason", b"internal"),
        ],
    )
    .await;
    let running = rig.fill("w-1");
    rig.until_written().await;
    running.stop().await;
    rig
}

fn kinds(facts: &[Fact]) -> Vec<&str> {
    facts.iter().map(|fact| fact.kind.as_str()).collect()
}

#[tokio::test]
async fn each_filter_lets_through_what_it_names() {
    for store in Store::both() {
        let rig = filled(store).await;
        let same = || Some("same".to_owned());
        let base = Filter::default;
        for (filter, expected) in [
            (
                Filter {
                    task: same(),
                    ..base()
                },
                &["task.completed"][..],
            ),
            (
                Filter {
                    batch: same(),
                    ..base()
                },
                &["batch.completed"],
            ),
            (
                Filter {
                    decision: same(),
                    ..base()
                },
                &["quorum.decided"],
            ),
            (
                Filter {
                    event: same(),
                    ..base()
                },
                &["task.create"],
            ),
            (
                Filter {
                    dead: true,
                    ..base()
                },
                &["task.create"],
            ),
            (
                Filter {
                    instance: Some("w-1".into()),
                    ..base()
                },
                &["task.completed", "instance.registered"],
            ),
            (
                Filter {
                    kinds: vec!["task.*".into()],
                    ..base()
                },
                &["task.create", "task.completed"],
            ),
            (
                Filter {
                    kinds: vec!["task_.*".into()],
                    ..base()
                },
                &[],
            ),
            (
                Filter {
                    kinds: vec!["batch.completed".into(), "quorum.*".into()],
                    oldest_first: true,
                    ..base()
                },
                &["batch.completed", "quorum.decided"],
            ),
            (
                Filter {
                    namespace: "other".into(),
                    ..base()
                },
                &[],
            ),
            (
                Filter {
                    until: Some(1000),
                    ..base()
                },
                &[],
            ),
            (
                Filter {
                    kinds: vec!["' OR 1 = 1 --".into()],
                    ..base()
                },
                &[],
            ),
        ] {
            let facts = rig.history(&filter).await;
            assert_eq!(kinds(&facts), expected, "{filter:?}");
        }
        let all = rig.history(&Filter::default()).await;
        let middle = all[3].at;
        let since = rig
            .history(&Filter {
                since: Some(middle),
                ..base()
            })
            .await;
        let until = rig
            .history(&Filter {
                until: Some(middle),
                ..base()
            })
            .await;
        assert_eq!(since.len() + until.len(), all.len());
        assert!(since.iter().all(|fact| fact.at >= middle));
    }
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_repetition() {
    for store in Store::both() {
        let rig = Rig::new(store).await;
        rig.tell_many("task.completed", 0, 250).await;
        let running = rig.fill("w-1");
        rig.until_written().await;
        running.stop().await;
        let database = rig.store.database();
        for oldest_first in [true, false] {
            let mut filter = Filter {
                oldest_first,
                ..Filter::default()
            };
            let mut seen = Vec::new();
            loop {
                let page = database.history(&filter, 33).await.unwrap();
                let Some(last) = page.last() else { break };
                filter.after = Some(Cursor::of(last).to_string().parse().unwrap());
                seen.extend(page.iter().map(|fact| fact.data["n"].as_u64().unwrap()));
            }
            if !oldest_first {
                seen.reverse();
            }
            assert_eq!(seen, (0..250).collect::<Vec<_>>());
        }
    }
}

fn convoke(rig: &Rig, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CONVOKE_") {
            command.env_remove(name);
        }
    }
    command
        .env("CONVOKE_REDIS_URL", rig.redis.url_for(users::OPERATOR))
        .env("CONVOKE_DATABASE_URL", rig.store.url().expose())
        .args(args)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_prints_text_and_json_and_where_to_go_on() {
    for store in Store::both() {
        let rig = filled(store).await;
        let shown = convoke(&rig, &["history"]);
        assert!(shown.status.success(), "{shown:?}");
        let lines = text(&shown.stdout);
        assert_eq!(lines.lines().count(), 6, "{lines}");
        assert!(
            lines.contains("dead: internal event=same") && !lines.contains('\u{1b}'),
            "{lines}"
        );
        let first = convoke(&rig, &["history", "--limit", "4"]);
        let more = text(&first.stderr);
        let cursor = more.trim().rsplit(' ').next().unwrap();
        let rest = convoke(&rig, &["history", "--format", "json", "--after", cursor]);
        let rest: Vec<Value> = text(&rest.stdout)
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(rest.len(), 2);
        assert_eq!(rest[1]["type"], "instance.registered");
        assert_eq!(rest[1]["data"], json!({"id": "w-1"}));
        let none = convoke(
            &rig,
            &[
                "history",
                "--since",
                "2000-01-01",
                "--until",
                "2000-01-02T00:00:00Z",
            ],
        );
        assert!(
            none.status.success() && text(&none.stderr).contains("nothing"),
            "{none:?}"
        );

        let status = convoke(&rig, &["ledger", "status", "--format", "json"]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        assert_eq!(
            (&status["facts"], &status["error"]),
            (&json!(6), &Value::Null)
        );
        let migrated = convoke(&rig, &["ledger", "migrate"]);
        assert!(text(&migrated.stdout).contains("already"), "{migrated:?}");
        for args in [
            &["history", "--after", "x"][..],
            &["history", "--since", "soon"],
            &["ledger"],
        ] {
            assert_eq!(convoke(&rig, args).status.code(), Some(2), "{args:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_in_the_ledger_and_tells_nothing_twice() {
    for store in Store::both() {
        let rig = filled(store).await;
        let deaths = |rig: &Rig| -> Vec<String> {
            let shown = convoke(rig, &["trace", "same", "--ledger", "--format", "json"]);
            let lines = text(&shown.stdout);
            let steps = lines
                .lines()
                .map(|line| serde_json::from_str(line).unwrap());
            let died = steps.filter(|step: &Value| step["step"] == "died");
            died.map(|step| step["said"].as_str().unwrap().to_owned())
                .collect()
        };
        let there = deaths(&rig);
        assert!(!there.is_empty() && there.iter().all(|said| !said.contains("ledger")));
        redis::cmd("DEL")
            .arg(DEAD)
            .exec(&mut rig.redis.connect())
            .unwrap();
        let gone = convoke(&rig, &["trace", "same"]);
        assert_eq!(gone.status.code(), Some(1), "{gone:?}");
        let kept = deaths(&rig);
        assert_eq!(kept.len(), there.len(), "{kept:?}");
        assert!(kept[0].contains("dead: internal") && kept[0].contains("(ledger)"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_ledger_the_command_says_so_and_makes_none() {
    let rig = Rig::new(Store::file()).await;
    let Store::File(path) = &rig.store else {
        unreachable!()
    };
    let shown = convoke(&rig, &["history"]);
    assert_eq!(shown.status.code(), Some(2), "{shown:?}");
    assert!(
        text(&shown.stderr).contains("there is no ledger"),
        "{shown:?}"
    );
    assert!(!path.exists());
    let migrated = convoke(&rig, &["ledger", "migrate", "--format", "json"]);
    assert_eq!(text(&migrated.stdout), "{\"from\":0,\"to\":5}\n");
    let nowhere = "postgres://127.0.0.1:1/none";
    for command in [
        &["history"][..],
        &["ledger", "status"],
        &["ledger", "migrate"],
    ] {
        let failed = convoke(&rig, &[command, &["--database-url", nowhere]].concat());
        assert_eq!(failed.status.code(), Some(1));
        assert!(text(&failed.stderr).contains(nowhere), "{failed:?}");
    }
    let password = ["history", "--database-url", "postgres://u:secret@h/d"];
    let refused = convoke(&rig, &password);
    assert_eq!(refused.status.code(), Some(2));
    assert!(!text(&refused.stderr).contains("secret"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_keeps_the_ledger_of_all_that_happens() {
    use crate::support;
    use convoke::client::publish::Outgoing;
    use convoke::client::{Client, ClientOptions};
    use convoke::connect::connector::Connector;
    use convoke::{Context, HandlerError, Worker};
    use tokio_util::sync::CancellationToken;
    async fn broken(_: Context, _: u32) -> Result<u32, HandlerError> {
        Err(HandlerError::internal("broken").permanent())
    }
    for store in Store::both() {
        let rig = Rig::new(store).await;
        // Another kind of worker's, that keeps no ledger.
        rig.add(
            "cb:dead:mail",
            &[
                ("type", b"mail.send"),
                ("id", b"m-1"),
                ("deadreason", b"internal"),
            ],
        )
        .await;
        let mut capabilities = rig.connection.clone();
        let _: u32 = redis::cmd("ZADD")
            .arg(&["cb:capabilities", "0", "mail.send other"])
            .query_async(&mut capabilities)
            .await
            .unwrap();
        let drain = CancellationToken::new();
        let worker = Worker::builder()
            .settings(rig.settings())
            .handler("image.broken", broken);
        let running = tokio::spawn(worker.build().unwrap().run_until(drain.clone()));
        let connector = Connector::new(&rig.settings().redis_url, 2).unwrap();
        let client = Client::new(connector, keys(), ClientOptions::default()).unwrap();
        client
            .publish(&Outgoing::new("image.broken", &7).id("e-1"))
            .await
            .unwrap();
        let database = rig.store.database();
        for event in ["e-1", "m-1"] {
            support::until("the dead letter is in the ledger", || async {
                let filter = Filter {
                    event: Some(event.into()),
                    ..Filter::default()
                };
                matches!(database.history(&filter, 10).await, Ok(facts) if facts.len() == 1)
            })
            .await;
        }
        let filter = Filter {
            kinds: vec!["instance.registered".into()],
            ..Filter::default()
        };
        // It is on another stream than the dead letters.
        support::until("the registration is in the ledger", || async {
            matches!(database.history(&filter, 10).await, Ok(facts) if facts.len() == 1)
        })
        .await;
        drain.cancel();
        running.await.unwrap().unwrap();
    }
}
