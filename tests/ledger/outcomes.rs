//! Outcomes of events are in the ledger where that is set, and hold up no commit.

use crate::rig::{Rig, Store};
use crate::support;
use crate::support::keys;
use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::ledger::outcomes::OutcomeFilter;
use convoke::protocol::outcome::EventOutcome;
use convoke::{Context, HandlerError, Policy, Worker};
use redis::AsyncCommands;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

struct Keeper {
    client: Client,
    drain: CancellationToken,
    worker: tokio::task::JoinHandle<()>,
}

/// Fails once, and publishes when it does not.
async fn makes(context: Context, n: u64) -> Result<u64, HandlerError> {
    match (n, context.event().attempt()) {
        (0, _) => Err(HandlerError::invalid_argument("n: 0")),
        (1, 1) => Err(HandlerError::internal("not yet")),
        _ => {
            context.publish("mail.send", &n)?;
            Ok(n)
        }
    }
}

async fn done(_: Context, n: u64) -> Result<u64, HandlerError> {
    Ok(n)
}

impl Keeper {
    fn start(rig: &Rig, outcomes: &[&str]) -> Self {
        let mut settings = rig.settings();
        settings.id = "w-1".into();
        settings.backoff_base = Duration::from_millis(10);
        settings.ledger_outcomes = outcomes.iter().map(|&one| one.to_owned()).collect();
        let connector = Connector::new(&settings.redis_url, 2).unwrap();
        let keys = keys();
        let client = Client::new(connector, keys, ClientOptions::default()).unwrap();
        let worker = Worker::builder()
            .settings(settings)
            .handler_with("order.make", makes, Policy::new())
            .handler("mail.send", done);
        let worker = worker.build().unwrap();
        let drain = CancellationToken::new();
        let until = drain.clone();
        Self {
            client,
            drain,
            worker: tokio::spawn(async move { worker.run_until(until).await.unwrap() }),
        }
    }

    async fn publish(&self, kind: &str, n: u64) {
        let event = Outgoing::new(kind, &n)
            .id(format!("e-{n}"))
            .subject("shop-7")
            .source("shop");
        self.client.publish(&event).await.unwrap();
    }

    async fn stop(self) {
        self.drain.cancel();
        self.worker.await.unwrap();
    }
}

fn filter() -> OutcomeFilter {
    OutcomeFilter {
        namespace: "cb".into(),
        ..OutcomeFilter::default()
    }
}

async fn kept(rig: &Rig, filter: &OutcomeFilter) -> Vec<EventOutcome> {
    // The worker makes the tables.
    let asked = rig.store.database().outcomes(filter, 100_000).await;
    asked.unwrap_or_default()
}

fn told(outcome: &EventOutcome) -> (&str, u32, &str, Option<&str>) {
    let EventOutcome {
        kind,
        attempt,
        outcome,
        code,
        ..
    } = outcome;
    (kind, *attempt, outcome, code.as_deref())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_became_of_each_run_is_kept_beyond_the_trim_of_its_stream() {
    for store in Store::both() {
        let mut rig = Rig::new(store).await;
        let keeper = Keeper::start(&rig, &["*=all"]);
        for n in 0..3 {
            keeper.publish("order.make", n).await;
        }
        // 0 dies; 1 is tried twice; 1 and 2 each have another one sent.
        support::until("all outcomes are kept", || async {
            kept(&rig, &filter()).await.len() == 6
        })
        .await;
        let _: () = rig.connection.del("cb:events:order").await.unwrap();
        let of = |event: &str| OutcomeFilter {
            event: Some(event.into()),
            ..filter()
        };
        let dead = kept(&rig, &of("e-0")).await;
        let dead: Vec<_> = dead.iter().map(told).collect();
        assert_eq!(dead, [("order.make", 1, "dead", Some("invalid_argument"))]);
        let tried = kept(&rig, &of("e-1")).await;
        let steps: Vec<_> = tried.iter().map(told).collect();
        let expected = [
            ("order.make", 1, "retried", Some("internal")),
            ("order.make", 2, "done", None),
        ];
        assert_eq!(steps, expected);
        assert_eq!(tried[0].message.as_deref(), Some("not yet"));
        assert_eq!((&*tried[0].instance, tried[0].deliveries), ("w-1", 1));
        assert_eq!(tried[0].source.as_deref(), Some("shop"));
        let causes = OutcomeFilter {
            causes: vec!["e-1".into(), "e-2".into()],
            ..filter()
        };
        let sent = kept(&rig, &causes).await;
        assert!(
            sent.iter()
                .all(|one| told(one) == ("mail.send", 1, "done", None))
        );
        assert_eq!(sent.len(), 2);
        let about = OutcomeFilter {
            subject: Some("shop-7".into()),
            source: Some("shop".into()),
            ..filter()
        };
        assert_eq!(kept(&rig, &about).await.len(), 4);
        let later = OutcomeFilter {
            since: Some(i64::MAX),
            ..filter()
        };
        assert!(kept(&rig, &later).await.is_empty());
        keeper.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_domains_that_are_named_are_kept_and_what_is_old_is_deleted() {
    for store in Store::both() {
        let rig = Rig::new(store).await;
        let keeper = Keeper::start(&rig, &["mail=all"]);
        for n in 2..5 {
            keeper.publish("order.make", n).await;
        }
        support::until("those of mails are kept", || async {
            kept(&rig, &filter()).await.len() == 3
        })
        .await;
        keeper.stop().await;
        let all = kept(&rig, &filter()).await;
        assert!(all.iter().all(|one| one.kind == "mail.send"), "{all:?}");
        let database = rig.store.database();
        let young = database
            .forget_outcomes("cb", Duration::from_secs(3600))
            .await;
        assert_eq!(young.unwrap(), 0);
        // Where the clock stepped back, the last ones are not old yet.
        let old = AtomicU64::new(0);
        support::until("all are deleted", || async {
            let some = database.forget_outcomes("cb", Duration::ZERO).await;
            old.fetch_add(some.unwrap(), Ordering::Relaxed);
            old.load(Ordering::Relaxed) >= 3
        })
        .await;
        assert_eq!(old.into_inner(), 3);
        assert!(kept(&rig, &filter()).await.is_empty());
    }
}

/// Outcomes that are more than wait for the database at the most, and than are in hand besides.
const TOO_MANY: u64 = 12_000;
/// Fewer, none of which the database takes.
const SOME: u64 = 1000;

/// Publishes that many, and waits until each is settled: a thousand at a time, since all of them may take a slow machine
/// more than a minute.
async fn settled(rig: &Rig, keeper: &Keeper, many: u64) {
    for start in (0..many).step_by(1000) {
        let some = (start..start + 1000).map(|n| Outgoing::new("mail.send", &n));
        let some: Vec<Outgoing> = some.collect();
        for stored in keeper.client.publish_many(&some).await {
            stored.unwrap();
        }
        until_settled(rig).await;
    }
}

async fn until_settled(rig: &Rig) {
    support::until("all are settled, whatever the database does", || async {
        let mut groups = redis::cmd("XINFO");
        groups.arg("GROUPS").arg("cb:events:mail");
        let mut connection = rig.connection.clone();
        let groups = groups.query_async(&mut connection).await.unwrap();
        let groups: Vec<HashMap<String, redis::Value>> = groups;
        let workers = redis::Value::BulkString(b"workers".to_vec());
        let group = groups.iter().find(|group| group["name"] == workers);
        let left = group.map(|group| (&group["pending"], &group["lag"]));
        let nothing = redis::Value::Int(0);
        left == Some((&nothing, &nothing))
    })
    .await;
}

/// Waits until each of all is kept, or counted as lost, and gives how many are.
async fn accounted(rig: &Rig, all: u64) -> (i64, i64) {
    let (database, total) = (rig.store.database(), all as i64);
    let accounted = async || {
        let extent = database.outcomes_extent().await;
        extent.map_or((0, 0), |extent| (extent.rows, extent.lost))
    };
    support::until("each is kept or counted", || async {
        let (rows, lost) = accounted().await;
        rows + lost == total
    })
    .await;
    accounted().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_commit_waits_for_a_database_that_is_not_there_and_each_outcome_is_kept_or_counted() {
    for store in Store::both() {
        let rig = Rig::new(store).await;
        let keeper = Keeper::start(&rig, &["*=all"]);
        keeper.publish("mail.send", 1).await;
        support::until("the first is kept", || async {
            kept(&rig, &filter()).await.len() == 1
        })
        .await;
        let away = "ALTER TABLE convoke_outcomes RENAME TO away";
        rig.store.run(away).await;
        settled(&rig, &keeper, SOME).await;
        let back = "ALTER TABLE away RENAME TO convoke_outcomes";
        rig.store.run(back).await;
        accounted(&rig, 1 + SOME).await;
        keeper.publish("mail.send", 7).await;
        let seventh = OutcomeFilter {
            event: Some("e-7".into()),
            ..filter()
        };
        support::until("what comes then is kept", || async {
            kept(&rig, &seventh).await.len() == 1
        })
        .await;
        keeper.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_commit_waits_for_a_database_that_takes_nothing_and_what_is_too_much_is_counted() {
    use convoke::sqlx::{self, Connection};
    let rig = Rig::new(Store::file()).await;
    let Store::File(path) = &rig.store else {
        panic!("it is a file");
    };
    let keeper = Keeper::start(&rig, &["*=all"]);
    keeper.publish("mail.send", 1).await;
    support::until("the first is kept", || async {
        kept(&rig, &filter()).await.len() == 1
    })
    .await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut writes = sqlx::SqliteConnection::connect_with(&options)
        .await
        .unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE")
        .execute(&mut writes)
        .await
        .unwrap();
    settled(&rig, &keeper, TOO_MANY).await;
    sqlx::raw_sql("COMMIT").execute(&mut writes).await.unwrap();
    let (rows, lost) = accounted(&rig, 1 + TOO_MANY).await;
    // What waits has its bound, and so has what is in hand.
    assert!(lost >= 1000, "{rows} kept, {lost} lost");
    assert!(rows >= 10_000, "{rows} kept, {lost} lost");
    keeper.stop().await;
}
