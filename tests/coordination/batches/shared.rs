//! Batches that are nobody's.

use super::{LEASE, asker, batches, ok, running, wanted};
use crate::fleet::Fleet;
use convoke::coordination::batches::batch::BatchPlan;
use convoke::coordination::batches::{Acquired, Advanced, Asker, BatchProgress, Batches};

async fn share(
    batches: &Batches,
    wanted: &BatchPlan,
    asker: Asker<'_>,
) -> (BatchProgress, Vec<u8>) {
    match batches.share(wanted, asker).await.unwrap() {
        Acquired::Shared(progress, finished) => (progress, finished),
        other => panic!("not shared: {other:?}"),
    }
}

#[tokio::test]
async fn all_who_go_on_with_a_batch_have_one_fence_and_an_item_counts_once() {
    let mut fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let wanted = wanted("b-1", 3);
    let (first, finished) = share(&batches, &wanted, asker("w-1", "e-1")).await;
    assert!(first.fence > 1_700_000_000_000_000 && finished.is_empty());
    running(&batches, &wanted, first.fence, &ok([0])).await;
    // The same event, of which somebody else thinks that its worker died.
    let again = Asker {
        run: "r-2",
        deliveries: 2,
        ..asker("w-2", "e-1")
    };
    let (second, finished) = share(&batches, &wanted, again).await;
    assert_eq!((second.fence, finished), (first.fence, vec![0x80]));
    for _ in 0..2 {
        let progress = running(&batches, &wanted, first.fence, &ok([0, 1])).await;
        assert_eq!((progress.processed, progress.failed), (2, 0));
    }
    assert!(batches.renew("b-1", second.fence, LEASE).await.unwrap());
    for _ in 0..2 {
        let last = ok([1, 2]);
        let last = batches.progress(&wanted, first.fence, &last, &[]).await;
        let Ok(Advanced::Completed(progress)) = last else {
            panic!("it has three items");
        };
        assert_eq!(progress.processed, 3);
    }
    let told = fleet.fact_names().await;
    let completed = told.iter().filter(|told| *told == "batch.completed");
    assert_eq!(completed.count(), 1);
    let asked = batches.share(&wanted, asker("w-3", "e-3")).await.unwrap();
    assert!(matches!(asked, Acquired::Completed(_)), "{asked:?}");
}

#[tokio::test]
async fn who_leaves_a_batch_of_nobodys_takes_it_from_nobody() {
    let fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let wanted = wanted("b-1", 3);
    let (first, _) = share(&batches, &wanted, asker("w-1", "e-1")).await;
    let beside = Asker {
        run: "r-2",
        deliveries: 2,
        ..asker("w-2", "e-1")
    };
    share(&batches, &wanted, beside).await;
    assert!(batches.give_back("b-1", first.fence).await.unwrap());
    assert!(batches.renew("b-1", first.fence, LEASE).await.unwrap());
    // The one who is at it dies, and its event goes to a third one.
    let third = Asker {
        run: "r-3",
        deliveries: 3,
        ..asker("w-3", "e-1")
    };
    share(&batches, &wanted, third).await;
}

#[tokio::test]
async fn who_asks_with_another_event_is_told_who_is_at_it_until_nobody_is() {
    let mut fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let wanted = wanted("b-1", 3);
    let (first, _) = share(&batches, &wanted, asker("w-1", "e-1")).await;
    let busy = |told: &Acquired| match told {
        Acquired::Busy {
            progress,
            same_event,
            ..
        } => Some((progress.processor_id.clone(), *same_event)),
        _ => None,
    };
    let told = batches.share(&wanted, asker("w-2", "e-2")).await.unwrap();
    assert_eq!(busy(&told), Some(("w-1".to_owned(), false)));
    // Nor does one take it that would hold a batch.
    let told = batches.acquire(&wanted, asker("w-2", "e-2")).await.unwrap();
    assert_eq!(busy(&told), Some(("w-1".to_owned(), false)));
    let only_asks = Asker {
        may_hold: false,
        run: "r-2",
        ..asker("w-2", "e-1")
    };
    let told = batches.share(&wanted, only_asks).await.unwrap();
    assert_eq!(busy(&told), Some(("w-1".to_owned(), true)));
    fleet.run("HSET cb:batch:b-1 expires 1000").await;
    let told = batches.share(&wanted, only_asks).await.unwrap();
    assert_eq!(told, Acquired::Free);
    // In whatever pattern that one answers.
    let told = batches.acquire(&wanted, asker("w-2", "e-2")).await.unwrap();
    let Acquired::Shared(second, _) = told else {
        panic!("{told:?}");
    };
    assert_eq!(
        (second.fence, second.processor_id.as_str()),
        (first.fence, "w-2")
    );
}

#[tokio::test]
async fn a_batch_that_somebody_holds_stays_his_whatever_is_chosen_then() {
    let mut fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let wanted = wanted("b-1", 3);
    let held = batches.acquire(&wanted, asker("w-1", "e-1")).await.unwrap();
    let Acquired::Held(held, _) = held else {
        panic!("{held:?}");
    };
    let told = batches.share(&wanted, asker("w-2", "e-2")).await.unwrap();
    assert!(matches!(told, Acquired::Busy { .. }), "{told:?}");
    fleet.run("HSET cb:batch:b-1 expires 1000").await;
    let told = batches.share(&wanted, asker("w-2", "e-2")).await.unwrap();
    let Acquired::Held(next, _) = told else {
        panic!("{told:?}");
    };
    assert!(next.fence > held.fence);
    let late = ok([0]);
    let late = batches.progress(&wanted, held.fence, &late, &[]).await;
    assert!(matches!(late, Ok(Advanced::Lost(_))), "{late:?}");
}
