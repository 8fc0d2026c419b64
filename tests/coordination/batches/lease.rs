//! Who holds a batch, for how long, and under which fence.

use super::{LEASE, asker, batches, hold, ok, running, wanted};
use crate::fleet::Fleet;
use convoke::coordination::batches::{Acquired, Advanced, Asker};
use convoke::streams::commit::Publication;
use std::time::Duration;

#[tokio::test]
async fn one_instance_at_a_time_holds_a_batch_and_the_others_are_told_who() {
    let mut fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let wanted = wanted("b-1", 3);
    let (first, finished) = hold(&batches, &wanted, asker("w-1", "e-1")).await;
    assert_eq!((first.processor_id.as_str(), first.total), ("w-1", 3));
    assert!(first.fence > 1_700_000_000_000_000 && finished.is_empty());
    let again = hold(&batches, &wanted, asker("w-1", "e-1")).await;
    assert_eq!(again.0, first, "the same call again");
    let progress = running(&batches, &wanted, first.fence, &ok([0])).await;
    assert_eq!((progress.processed, progress.failed), (1, 0));
    match batches.acquire(&wanted, asker("w-2", "e-2")).await.unwrap() {
        Acquired::Busy {
            progress,
            left,
            same_event,
        } => {
            assert_eq!(
                (progress.processor_id.as_str(), progress.processed),
                ("w-1", 1)
            );
            // The clock may have stepped back since.
            let most = LEASE + Duration::from_secs(5);
            assert!(left > Duration::from_secs(20) && left <= most && !same_event);
        }
        other => panic!("{other:?}"),
    }
    // The same event on another entry, as after a retry, is the same request, but no takeover.
    let retried = Asker {
        event: "e-1",
        ..asker("w-2", "e-2")
    };
    let told = batches.acquire(&wanted, retried).await.unwrap();
    assert!(
        matches!(
            told,
            Acquired::Busy {
                same_event: true,
                ..
            }
        ),
        "{told:?}"
    );
    assert_eq!(fleet.fact_names().await[0], "batch.started");
}

#[tokio::test]
async fn a_lease_that_ran_out_or_was_given_back_goes_to_whoever_asks_with_a_higher_fence() {
    let mut fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let wanted = wanted("b-1", 20);
    let asks = Asker {
        may_hold: false,
        ..asker("w-9", "e-9")
    };
    assert_eq!(
        batches.acquire(&wanted, asks).await.unwrap(),
        Acquired::Free
    );
    assert!(
        fleet.all_keys().await.is_empty(),
        "who may not hold it changes nothing"
    );
    let (first, _) = hold(&batches, &wanted, asker("w-1", "e-1")).await;
    running(&batches, &wanted, first.fence, &ok([0, 1, 9])).await;
    fleet.run("HSET cb:batch:b-1 expires 1000").await;
    assert_eq!(
        batches.acquire(&wanted, asks).await.unwrap(),
        Acquired::Free
    );
    let (second, finished) = hold(&batches, &wanted, asker("w-2", "e-2")).await;
    assert!(second.fence > first.fence);
    assert_eq!((second.processor_id.as_str(), second.processed), ("w-2", 3));
    assert_eq!(finished, [0b1100_0000, 0b0100_0000]);
    assert!(batches.give_back("b-1", second.fence).await.unwrap());
    // The very run that gave it back is one like any other.
    let (third, _) = hold(&batches, &wanted, asker("w-2", "e-2")).await;
    assert!(third.fence > second.fence);
    // A clock that stands far back does not bring a fence back.
    fleet
        .run("HSET cb:batch:b-1 fence 9000000000000000 expires 0")
        .await;
    let (fourth, _) = hold(&batches, &wanted, asker("w-4", "e-4")).await;
    assert_eq!(fourth.fence, 9_000_000_000_000_001);
    let names = fleet.fact_names().await;
    assert_eq!(names[0], "batch.started");
    assert!(
        names[1..].iter().all(|name| name == "batch.progress"),
        "{names:?}"
    );
}

#[tokio::test]
async fn whoever_took_the_holders_entry_over_holds_its_batch_at_once() {
    let fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let wanted = wanted("b-1", 2);
    let (first, _) = hold(&batches, &wanted, asker("w-1", "e-1")).await;
    // Even under the same name: it may be the process that was started in its place.
    for (deliveries, instance) in [(2, "w-1"), (3, "w-2")] {
        let heir = Asker {
            run: instance,
            deliveries,
            ..asker(instance, "e-1")
        };
        let (next, _) = hold(&batches, &wanted, heir).await;
        assert!(next.fence > first.fence);
    }
    let refused = batches.progress(&wanted, first.fence, &ok([0]), &[]).await;
    assert!(matches!(refused.unwrap(), Advanced::Lost(now) if now.processor_id == "w-2"));
}

#[tokio::test]
async fn an_earlier_delivery_of_the_holders_entry_does_not_take_the_batch_from_it() {
    let mut fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let wanted = wanted("b-1", 2);
    let taken = Asker {
        deliveries: 2,
        ..asker("w-2", "e-1")
    };
    let (held, _) = hold(&batches, &wanted, taken).await;
    // It stood still with the entry in its hands, and goes on.
    let zombie = Asker {
        run: "late",
        ..asker("w-1", "e-1")
    };
    for expires in [None, Some("-100")] {
        if let Some(ago) = expires {
            let now: Vec<u64> = fleet.ask("TIME").await;
            let at = (now[0] * 1000).saturating_add_signed(ago.parse().unwrap());
            fleet.run(&format!("HSET cb:batch:b-1 expires {at}")).await;
        }
        let asked = batches.acquire(&wanted, zombie).await.unwrap();
        assert!(
            matches!(&asked, Acquired::Busy { progress, same_event: true, .. } if progress.fence == held.fence),
            "{asked:?}"
        );
    }
    // Nobody goes on with it: better an old delivery than none.
    fleet.run("HSET cb:batch:b-1 expires 1000").await;
    let (next, _) = hold(&batches, &wanted, zombie).await;
    assert!(next.fence > held.fence);
}

#[tokio::test]
async fn an_old_fence_changes_nothing() {
    let mut fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let wanted = wanted("b-1", 2);
    let (first, _) = hold(&batches, &wanted, asker("w-1", "e-1")).await;
    fleet.run("HSET cb:batch:b-1 expires 1000").await;
    let (second, _) = hold(&batches, &wanted, asker("w-2", "e-2")).await;
    let before: Vec<String> = fleet.ask("HGETALL cb:batch:b-1").await;
    let publication = Publication {
        stream: fleet.keys.events("effect", 0),
        fields: vec![b"type".to_vec(), b"effect.made".to_vec()],
    };
    let refused = batches
        .progress(&wanted, first.fence, &ok([0, 1]), &[publication])
        .await
        .unwrap();
    assert_eq!(refused, Advanced::Lost(second.clone()));
    assert!(!batches.renew("b-1", first.fence, LEASE).await.unwrap());
    assert!(!batches.give_back("b-1", first.fence).await.unwrap());
    let after: Vec<String> = fleet.ask("HGETALL cb:batch:b-1").await;
    assert_eq!(before.len(), after.len());
    assert!(before.iter().all(|word| after.contains(word)));
    let outbox = fleet.keys.outbox("system", 0);
    let written: u64 = fleet
        .ask(&format!(
            "EXISTS cb:events:effect {outbox} cb:batch:b-1:finished"
        ))
        .await;
    assert_eq!(written, 0);
    // A batch that is gone is nobody's.
    fleet.run("DEL cb:batch:b-1").await;
    let gone = batches.progress(&wanted, second.fence, &ok([0]), &[]).await;
    assert!(matches!(gone.unwrap(), Advanced::Lost(_)));
    assert!(!batches.renew("b-1", second.fence, LEASE).await.unwrap());
    assert!(!batches.renew("b-2", 0, LEASE).await.unwrap());
}

#[tokio::test]
async fn what_arrives_after_a_batch_was_given_back_does_not_bring_its_lease_back() {
    let mut fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let wanted = wanted("b-1", 2);
    let (first, _) = hold(&batches, &wanted, asker("w-1", "e-1")).await;
    assert!(batches.give_back("b-1", first.fence).await.unwrap());
    let before: Vec<String> = fleet.ask("HGETALL cb:batch:b-1").await;
    assert!(!batches.renew("b-1", first.fence, LEASE).await.unwrap());
    let late = batches.progress(&wanted, first.fence, &ok([0]), &[]).await;
    assert!(matches!(late.unwrap(), Advanced::Lost(_)));
    let after: Vec<String> = fleet.ask("HGETALL cb:batch:b-1").await;
    assert_eq!(before, after);
    // Said again, as after a lost answer.
    assert!(batches.give_back("b-1", first.fence).await.unwrap());
    let (second, finished) = hold(&batches, &wanted, asker("w-2", "e-1")).await;
    assert!(second.fence > first.fence);
    assert!(finished.is_empty());
}

#[tokio::test]
async fn progress_and_renewal_keep_the_lease_and_renewal_passes_while_the_memory_is_full() {
    let mut fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let wanted = wanted("b-1", 3);
    let (held, _) = hold(&batches, &wanted, asker("w-1", "e-1")).await;
    let left = async |fleet: &mut Fleet| {
        let (seconds, micros): (u64, u64) = fleet.ask("TIME").await;
        let expires: u64 = fleet.ask("HGET cb:batch:b-1 expires").await;
        expires.saturating_sub(seconds * 1000 + micros / 1000)
    };
    fleet.run("HSET cb:batch:b-1 expires 1000").await;
    running(&batches, &wanted, held.fence, &ok([0])).await;
    assert!(left(&mut fleet).await > 20_000);
    fleet.run("HSET cb:batch:b-1 expires 1000").await;
    fleet.run("PEXPIRE cb:batch:b-1 5000").await;
    fleet.run("CONFIG SET maxmemory 1").await;
    assert!(batches.renew("b-1", held.fence, LEASE).await.unwrap());
    assert!(left(&mut fleet).await > 20_000);
    for key in ["cb:batch:b-1", "cb:batch:b-1:finished"] {
        let ttl: i64 = fleet.ask(&format!("PTTL {key}")).await;
        assert!(ttl > 600_000_000, "{key}: {ttl}");
    }
}
