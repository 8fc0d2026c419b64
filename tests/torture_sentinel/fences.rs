//! What is handed out once must not be handed out twice, though a failover forgot that it was.

use crate::connector;
use crate::support::sentinel::{DOWN_AFTER, Deployment, SERVICE};
use crate::support::until;
use convoke::coordination::batches::batch::{BatchPlan, Mode};
use convoke::coordination::batches::{Acquired, Asker, Batches};
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::instance::Registering;
use convoke::coordination::tasks::task::NewTask;
use convoke::coordination::tasks::{Assignment, Tasks};
use convoke::protocol::keys::Keys;
use std::time::Duration;

struct Hands {
    batches: Batches,
    instances: Instances,
    tasks: Tasks,
}

/// One of each that rises.
#[derive(Debug)]
struct Numbers {
    batch: u64,
    incarnation: u64,
    term: u64,
    task: u64,
}

impl Hands {
    fn worker(&self) -> Registering {
        Registering {
            id: "w-1".into(),
            roles: vec!["worker".into()],
            capacity: 1,
            capabilities: vec!["a.b".into()],
            metadata: Vec::new(),
            ttl_ms: 30_000,
            incarnation: None,
            announces: false,
        }
    }

    fn wanted(&self) -> BatchPlan {
        BatchPlan::new("b-1", "a.b", Mode::Exclusive, &[vec![1], vec![2]], 30_000).unwrap()
    }

    /// Registers again, is elected, takes the batch over, is given the task again.
    async fn next(&self, run: &str) -> Numbers {
        until("it is gone", || async {
            self.instances.unregister("w-1", None).await.is_ok()
        })
        .await;
        let registered = self.instances.register(&self.worker()).await.unwrap();
        let incarnation = registered.incarnation;
        let contest = self.instances.contend("w-1", incarnation).await.unwrap();
        if let Some(before) = self.batches.find("b-1").await.unwrap() {
            self.batches.give_back("b-1", before.fence).await.unwrap();
        }
        let asker = Asker {
            instance: run,
            run,
            entry: run,
            deliveries: 1,
            event: run,
            may_hold: true,
        };
        let acquired = self.batches.acquire(&self.wanted(), asker).await.unwrap();
        let Acquired::Held(held, _) = acquired else {
            panic!("{acquired:?}");
        };
        let task = NewTask::new("t-1", "a.b");
        self.tasks.create(&task).await.unwrap();
        Numbers {
            batch: held.fence,
            incarnation,
            term: contest.lead.expect("it leads").term,
            task: self
                .tasks
                .get("t-1")
                .await
                .unwrap()
                .unwrap()
                .task
                .fence
                .unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fences_terms_and_incarnations_rise_across_a_failover_that_forgot_the_last_ones() {
    let deployment = tokio::task::block_in_place(Deployment::start);
    let (connector, keys) = (connector(&deployment.url()), Keys::new("cb").unwrap());
    let hands = Hands {
        batches: Batches::new(connector.clone(), keys.clone()),
        instances: Instances::of_process(connector.clone(), keys.clone(), "test"),
        tasks: Tasks::new(connector.clone(), keys.clone()),
    };
    let old = deployment.primary();
    let first = hands.next("r-1").await;
    tokio::task::block_in_place(|| deployment.nodes[old].until_replicated());
    // It is found down once it has given them, however long that takes.
    let down_after = |ms: u128| {
        deployment.tell(&format!(
            "SENTINEL SET {SERVICE} down-after-milliseconds {ms}"
        ));
    };
    tokio::task::block_in_place(|| down_after(60_000));
    deployment.nodes[old].cut(true);
    let forgotten = hands.next("r-2").await;
    assert_eq!(connector.generation(), 0, "the old primary gave them");
    tokio::task::block_in_place(|| down_after(DOWN_AFTER.as_millis()));
    let stale = Assignment {
        task: "t-1".into(),
        instance: "w-1".into(),
        fence: forgotten.task,
    };
    tokio::task::block_in_place(|| deployment.until_moved(old));
    deployment.nodes[old].cut(false);
    until("the new primary is in use", || async {
        connector.generation() > 0 && connector.ping().await.is_ok()
    })
    .await;
    let known = hands.batches.find("b-1").await.unwrap().unwrap();
    assert_eq!(known.fence, first.batch, "the failover forgot");
    // Whoever got them meanwhile has nothing in its hands.
    let done = hands
        .batches
        .renew("b-1", forgotten.batch, Duration::from_secs(1));
    assert!(!done.await.unwrap());
    hands.tasks.complete(&stale, &[], &[]).await.unwrap_err();
    let next = hands.next("r-3").await;
    for (before, forgotten, next) in [
        (first.batch, forgotten.batch, next.batch),
        (first.incarnation, forgotten.incarnation, next.incarnation),
        (first.term, forgotten.term, next.term),
        (first.task, forgotten.task, next.task),
    ] {
        assert!(
            before < forgotten && forgotten < next,
            "{first:?} {forgotten:?} {next:?}"
        );
    }
    hands.tasks.complete(&stale, &[], &[]).await.unwrap_err();
    let done = hands
        .batches
        .renew("b-1", forgotten.batch, Duration::from_secs(1));
    assert!(!done.await.unwrap());
}
