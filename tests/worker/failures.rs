//! Failures: retries, dead letters, circuits, deadlines.

use crate::rig::{Rig, text};
use crate::support::{Redis, name, until};
use convoke::client::publish::Outgoing;
use convoke::connect::clock::local_now;
use convoke::handler::policy::RetryPolicy;
use convoke::protocol::error::Code;
use convoke::streams::commit::MAX_PUBLICATIONS;
use convoke::{Context, HandlerError, Policy, Worker};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

type Log = Arc<Mutex<Vec<(u32, Instant)>>>;

async fn fail(context: Context, (): ()) -> Result<(), HandlerError> {
    let log = context.state::<Log>()?;
    let attempt = context.event().attempt();
    log.lock().unwrap().push((attempt, Instant::now()));
    Err(HandlerError::unavailable("the printer is on fire"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_always_fails_runs_as_often_as_it_may_and_then_is_a_dead_letter() {
    let rig = Rig::new().await;
    let log = Log::default();
    let retry = RetryPolicy {
        max_attempts: 4,
        base: Duration::from_millis(100),
        factor: 3.0,
        cap: Duration::from_secs(2),
    };
    let policy = Policy::new().retry(retry);
    let worker = rig.start(rig.builder().state(log.clone()).handler_with(
        "mail.send",
        fail,
        policy,
    ));
    let event = Outgoing::new("mail.send", &())
        .id("m-1")
        .field("tenant", "t7");
    rig.client.publish(&event).await.unwrap();
    let dead = rig.wait_for("cb:dead:mail", 1).await;
    assert_eq!(text(&dead[0], "id"), "m-1");
    assert_eq!(text(&dead[0], "tenant"), "t7");
    assert_eq!(text(&dead[0], "deadreason"), "unavailable");
    assert_eq!(text(&dead[0], "deadmessage"), "the printer is on fire");
    assert_eq!(text(&dead[0], "deadattempts"), "4");
    let attempts: Vec<u32> = log
        .lock()
        .unwrap()
        .iter()
        .map(|(attempt, _)| *attempt)
        .collect();
    assert_eq!(attempts, [1, 2, 3, 4]);
    assert_eq!(rig.pending("cb:events:mail").await, 0);
    assert!(rig.entries("cb:results:mail").await.is_empty());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_keeps_failing_is_answered_once_after_its_last_attempt() {
    let rig = Rig::new().await;
    let log = Log::default();
    let worker = rig.start(rig.builder().state(log.clone()).handler("mail.send", fail));
    let error = rig.refused("mail.send", &()).await;
    assert_eq!(error.code, Code::Unavailable);
    assert_eq!(log.lock().unwrap().len(), 5);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_that_is_permanent_is_not_tried_again() {
    let rig = Rig::new().await;
    let calls = Arc::new(AtomicU32::new(0));
    async fn refuse(context: Context, (): ()) -> Result<(), HandlerError> {
        context
            .state::<Arc<AtomicU32>>()?
            .fetch_add(1, Ordering::SeqCst);
        Err(HandlerError::not_found("no such user"))
    }
    let worker = rig.start(
        rig.builder()
            .state(calls.clone())
            .handler("mail.send", refuse),
    );
    assert_eq!(rig.refused("mail.send", &()).await.code, Code::NotFound);
    rig.client
        .publish(&Outgoing::new("mail.send", &()))
        .await
        .unwrap();
    let dead = rig.wait_for("cb:dead:mail", 1).await;
    assert_eq!(text(&dead[0], "deadreason"), "not_found");
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_says_when_runs_no_sooner_and_later_costs_no_attempt() {
    const WAIT: Duration = Duration::from_millis(700);
    async fn fetch(context: Context, (): ()) -> Result<usize, HandlerError> {
        let log = context.state::<Log>()?;
        let attempt = context.event().attempt();
        let mut log = log.lock().unwrap();
        log.push((attempt, Instant::now()));
        match log.len() {
            1 => {
                let mut busy = HandlerError::unavailable("too many requests");
                busy.retry_after = Some(WAIT);
                Err(busy)
            }
            2 => Err(HandlerError::later(WAIT, "the disk is full")),
            runs => Ok(runs),
        }
    }
    let rig = Rig::new().await;
    let log = Log::default();
    let builder = rig.builder().state(log.clone());
    let worker = rig.start(builder.handler("web.fetch", fetch));
    let reply = rig.ask("web.fetch", &()).await.unwrap();
    assert_eq!(reply.decode::<usize>().unwrap(), 3);
    let log = log.lock().unwrap().clone();
    let attempts: Vec<u32> = log.iter().map(|(attempt, _)| *attempt).collect();
    assert_eq!(attempts, [1, 2, 2]);
    for pair in log.windows(2) {
        let wait = pair[1].1 - pair[0].1;
        // It is the server's clock that says so, in whole ms.
        assert!(wait >= WAIT - Duration::from_millis(20), "{wait:?}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_takes_too_long_is_tried_again() {
    let rig = Rig::new().await;
    async fn slow_at_first(context: Context, (): ()) -> Result<u32, HandlerError> {
        if context.event().attempt() == 1 {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        Ok(context.event().attempt())
    }
    let policy = Policy::new().timeout(Duration::from_millis(100));
    let worker = rig.start(
        rig.builder()
            .handler_with("mail.send", slow_at_first, policy),
    );
    let reply = rig.ask("mail.send", &()).await.unwrap();
    assert_eq!(reply.decode::<u32>().unwrap(), 2);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_circuit_answers_requests_at_once_and_delivers_events_later() {
    let rig = Rig::new().await;
    let broken = Arc::new(AtomicBool::new(true));
    async fn send(context: Context, (): ()) -> Result<(), HandlerError> {
        if context.state::<Arc<AtomicBool>>()?.load(Ordering::SeqCst) {
            return Err(HandlerError::internal("down").permanent());
        }
        Ok(())
    }
    let policy = Policy::new().circuit(3, Duration::from_secs(3));
    let worker = rig.start(rig.builder().state(broken.clone()).handler_with(
        "mail.send",
        send,
        policy,
    ));
    for _ in 0..3 {
        assert_eq!(rig.refused("mail.send", &()).await.code, Code::Internal);
    }
    let error = rig.refused("mail.send", &()).await;
    assert_eq!(error.code, Code::Unavailable, "{error}");
    let event = Outgoing::new("mail.send", &()).id("later");
    rig.client.publish(&event).await.unwrap();
    broken.store(false, Ordering::SeqCst);
    let results = rig.wait_for("cb:results:mail", 1).await;
    assert_eq!(text(&results[0], "correlationid"), "later");
    assert_eq!(text(&results[0], "status"), "ok");
    assert!(rig.entries("cb:dead:mail").await.is_empty());
    assert!(rig.ask("mail.send", &()).await.is_ok());
    rig.wait_for_fact("circuit.closed", 1).await;
    let facts: Vec<String> = rig
        .entries("cb:broadcast")
        .await
        .iter()
        .map(|fact| text(fact, "type"))
        .collect();
    let circuit: Vec<&String> = facts
        .iter()
        .filter(|kind| kind.starts_with("circuit"))
        .collect();
    assert_eq!(circuit, ["circuit.opened", "circuit.closed"]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn past_its_deadline_an_event_is_not_run() {
    let rig = Rig::new().await;
    let calls = Arc::new(AtomicU32::new(0));
    async fn count(context: Context, (): ()) -> Result<(), HandlerError> {
        context
            .state::<Arc<AtomicU32>>()?
            .fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    let late = Outgoing::new("mail.send", &()).id("late").deadline(1);
    let asked = late.clone().reply_to(name("mail", "cb:reply:test"));
    rig.client.publish(&late).await.unwrap();
    rig.client.publish(&asked).await.unwrap();
    let worker = rig.start(
        rig.builder()
            .state(calls.clone())
            .handler("mail.send", count),
    );
    let replies = rig.wait_for("cb:reply:test", 1).await;
    assert_eq!(text(&replies[0], "status"), "deadline_exceeded");
    until("nothing is pending", || async {
        rig.pending("cb:events:mail").await == 0
    })
    .await;
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    assert!(rig.entries("cb:dead:mail").await.is_empty());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_limit_holds_for_all_replicas_and_loses_no_event() {
    let rig = Rig::new().await;
    async fn send(_: Context, (): ()) -> Result<(), HandlerError> {
        Ok(())
    }
    let policy = || Policy::new().rate_limit(5, Duration::from_secs(2));
    let mut other = rig.settings();
    other.id = "other".into();
    let one = rig.start(rig.builder().handler_with("mail.send", send, policy()));
    let two = rig.start(Worker::builder().settings(other).handler_with(
        "mail.send",
        send,
        policy(),
    ));
    let (began, mut refused) = (Instant::now(), 0);
    for _ in 0..10 {
        match rig.ask("mail.send", &()).await {
            Ok(_) => {}
            Err(convoke::client::request::RequestError::Remote(error)) => {
                assert_eq!(error.code, Code::ResourceExhausted);
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    // On a slow machine it was more than one period.
    let periods = began.elapsed().as_millis() / 2000 + 1;
    assert!(
        10 - refused <= 5 * periods + 2,
        "{refused} refused in {periods} periods"
    );
    for n in 0..6 {
        rig.client
            .publish(&Outgoing::new("mail.send", &()).id(format!("e-{n}")))
            .await
            .unwrap();
    }
    rig.wait_for("cb:results:mail", 6).await;
    assert!(rig.entries("cb:dead:mail").await.is_empty());
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_run_publishes_so_many_events_and_no_more() {
    let rig = Rig::new().await;
    let fill = async |context: Context, events: u64| {
        for n in 0..events {
            context.publish("effect.made", &n)?;
        }
        Ok::<_, HandlerError>(events)
    };
    let worker = rig.start(rig.builder().handler("number.fill", fill));
    let most = MAX_PUBLICATIONS as u64;
    rig.ask("number.fill", &most).await.unwrap();
    let refused = rig.refused("number.fill", &(most + 1)).await;
    assert_eq!(refused.code, Code::ResourceExhausted);
    assert!(
        refused.message.contains("at most 250 events"),
        "{refused:?}"
    );
    let made = rig.wait_for("cb:events:effect", MAX_PUBLICATIONS).await;
    assert_eq!(made.len(), MAX_PUBLICATIONS);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_a_circuit_opened_while_the_server_was_away_is_told_when_it_is_back() {
    let mut rig = Rig::on(Redis::durable()).await;
    let (began, ends) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
    let (begins, ended) = (began.clone(), ends.clone());
    let fails = move |_: Context, (): ()| {
        begins.fetch_add(1, Ordering::SeqCst);
        let ended = ended.clone();
        async move {
            ended.acquire().await.unwrap().forget();
            Err::<(), _>(HandlerError::internal("down").permanent())
        }
    };
    let policy = Policy::new().circuit(1, Duration::from_secs(60));
    let builder = rig.builder().handler_with("mail.send", fails, policy);
    let worker = rig.start(builder);
    rig.client
        .publish(&Outgoing::new("mail.send", &()))
        .await
        .unwrap();
    until("it runs", || async { began.load(Ordering::SeqCst) == 1 }).await;
    rig.redis.kill();
    let before = local_now();
    ends.add_permits(1);
    until("it ends", || async { ends.available_permits() == 0 }).await;
    // So that whoever tells it has tried in vain.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let back = local_now();
    rig.redis.restart();
    rig.connection = rig.redis.connection().await;
    let opened = rig.wait_for_fact("circuit.opened", 1).await;
    let data: serde_json::Value = rmp_serde::from_slice(opened[0].get("data").unwrap()).unwrap();
    let at = data["at"].as_u64().unwrap();
    assert!((before..back).contains(&at), "{before} {at} {back}");
    worker.stop().await;
}
