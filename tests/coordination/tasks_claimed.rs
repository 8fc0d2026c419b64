//! Tasks that instances take by themselves.

use crate::fleet::Fleet;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::instances::instance::Registering;
use convoke::coordination::tasks::claim::{
    Claim, Claimed, MAX_CLAIMED, MAX_CLAIMED_BYTES, MAX_CLAIMS,
};
use convoke::coordination::tasks::task::{NewTask, TaskStatus};
use convoke::coordination::tasks::{Assignment, Tasks};
use std::collections::BTreeSet;

/// An external instance that has said by an empty claim that it takes its work by itself.
async fn claimer(fleet: &Fleet, id: &str, capacity: u32, kinds: &[&str]) {
    external(fleet, id, capacity, kinds).await;
    assert_eq!(claim(fleet, id, 1, "first").await, [""; 0]);
}

async fn external(fleet: &Fleet, id: &str, capacity: u32, kinds: &[&str]) -> Vec<String> {
    let mut registering = Registering::new(id, ["worker"]);
    registering.capacity = capacity;
    registering.capabilities = kinds.iter().map(|&kind| kind.to_owned()).collect();
    let registered = fleet.asked().register(&registering).await.unwrap();
    registered.assigned
}

async fn claimed(fleet: &Fleet, id: &str, limit: usize, asked: &str) -> Vec<Claimed> {
    fleet
        .tasks
        .claim(Claim::new(id, limit, &[], asked))
        .await
        .unwrap()
}

fn ids(claimed: &[Claimed]) -> Vec<String> {
    claimed.iter().map(|task| task.task.clone()).collect()
}

async fn claim(fleet: &Fleet, id: &str, limit: usize, asked: &str) -> Vec<String> {
    ids(&claimed(fleet, id, limit, asked).await)
}

async fn complete(tasks: &Tasks, instance: &str, claimed: &Claimed) {
    let assignment = Assignment {
        task: claimed.task.clone(),
        instance: instance.to_owned(),
        fence: claimed.fence,
    };
    tasks.complete(&assignment, &[0xc0], &[]).await.unwrap();
}

#[tokio::test]
async fn an_instance_takes_the_most_urgent_then_the_oldest_and_never_above_its_capacity() {
    let mut fleet = Fleet::start().await;
    claimer(&fleet, "x-1", 4, &["a.b", "c.d"]).await;
    for (id, kind, priority) in [
        ("low", "a.b", 10),
        ("old", "a.b", 50),
        ("young", "c.d", 50),
        ("youngest", "a.b", 50),
        ("high", "c.d", 90),
        ("other", "e.f", 100),
    ] {
        let mut task = NewTask::new(id, kind);
        task.priority = priority;
        task.payload = vec![7];
        let created = fleet.tasks.create(&task).await.unwrap();
        assert_eq!(created.status, TaskStatus::Pending, "it takes by itself");
    }
    let first = claimed(&fleet, "x-1", 2, "c-1").await;
    assert_eq!(ids(&first), ["high", "old"]);
    assert_eq!(
        (
            first[0].kind.as_str(),
            first[0].payload.as_slice(),
            first[0].attempt
        ),
        ("c.d", &[7][..], 1)
    );
    assert_eq!(fleet.assignment("high").await.fence, first[0].fence);
    assert_eq!(claim(&fleet, "x-1", 9, "c-2").await, ["young", "youngest"]);
    assert_eq!(fleet.slot("x-1").await, (4, 4));
    assert_eq!(claim(&fleet, "x-1", 9, "c-3").await, [""; 0], "it is full");
    complete(&fleet.tasks, "x-1", &first[0]).await;
    assert_eq!(fleet.task("low").await.status, TaskStatus::Pending);
    assert_eq!(claim(&fleet, "x-1", 9, "c-4").await, ["low"]);
    assert_eq!(fleet.task("other").await.status, TaskStatus::Pending);
    assert!(!fleet.all_keys().await.contains(&"cb:inbox:x-1".to_owned()));
}

#[tokio::test]
async fn what_nobody_could_take_is_found_by_who_claims_and_comes_to_be_able_to() {
    let fleet = Fleet::start().await;
    claimer(&fleet, "x-1", 9, &["a.b"]).await;
    let mut parked = NewTask::new("parked", "a.b");
    parked.requires = vec!["c.d".to_owned()];
    for task in [parked, NewTask::new("other", "c.d")] {
        let created = fleet.tasks.create(&task).await.unwrap();
        assert_eq!(created.status, TaskStatus::Pending);
    }
    assert_eq!(claim(&fleet, "x-1", 9, "c-1").await, [""; 0]);
    let registered = external(&fleet, "x-1", 9, &["a.b", "c.d"]).await;
    assert_eq!(registered, [""; 0], "it takes by itself");
    assert_eq!(claim(&fleet, "x-1", 9, "c-2").await, ["parked", "other"]);
}

#[tokio::test]
async fn it_gets_only_what_it_fits_and_what_it_names() {
    let fleet = Fleet::start().await;
    claimer(&fleet, "x-1", 9, &["a.b", "c.d"]).await;
    claimer(&fleet, "x-any", 9, &[]).await;
    for (id, kind, requires, role) in [
        ("plain", "a.b", "", "worker"),
        ("named", "c.d", "", "worker"),
        ("demands", "a.b", "c.d", "worker"),
        ("too-much", "a.b", "e.f", "worker"),
        ("gpu", "a.b", "", "gpu"),
        ("other", "e.f", "", "worker"),
    ] {
        let mut task = NewTask::new(id, kind);
        task.role = role.into();
        task.requires = requires.split_whitespace().map(str::to_owned).collect();
        fleet.tasks.create(&task).await.unwrap();
    }
    let only = |kinds: &[&str]| -> Vec<String> { kinds.iter().map(|&kind| kind.into()).collect() };
    let kinds = only(&["c.d", "e.f"]);
    let named = fleet
        .tasks
        .claim(Claim::new("x-1", 9, &kinds, "c-1"))
        .await
        .unwrap();
    assert_eq!(ids(&named), ["named"]);
    let any = fleet
        .tasks
        .claim(Claim::new("x-any", 9, &only(&["e.f"]), "c-1"))
        .await;
    assert_eq!(ids(&any.unwrap()), ["other"]);
    assert_eq!(claim(&fleet, "x-1", 9, "c-2").await, ["plain", "demands"]);
    assert_eq!(claim(&fleet, "x-any", 9, "c-2").await, [""; 0]);
    let waits = fleet
        .tasks
        .list(Some(TaskStatus::Pending), 10)
        .await
        .unwrap();
    assert_eq!(waits.len(), 2);
}

#[tokio::test]
async fn the_same_claim_again_takes_nothing_more_and_is_answered_the_same() {
    let fleet = Fleet::start().await;
    claimer(&fleet, "x-1", 9, &["a.b"]).await;
    claimer(&fleet, "x-2", 9, &["a.b"]).await;
    for number in 0..9 {
        fleet.create(&format!("t-{number}")).await;
    }
    let first = claimed(&fleet, "x-1", 2, "c-1").await;
    assert_eq!(claimed(&fleet, "x-1", 2, "c-1").await, first);
    let second = claimed(&fleet, "x-1", 2, "c-2").await;
    assert_eq!(ids(&second), ["t-2", "t-3"]);
    // An older one too; but not what is done since, or went to others.
    assert_eq!(claimed(&fleet, "x-1", 5, "c-1").await, first);
    complete(&fleet.tasks, "x-1", &first[0]).await;
    assert_eq!(claimed(&fleet, "x-1", 5, "c-1").await, first[1..]);
    fleet.fail("t-1", "no", true).await;
    assert_eq!(claimed(&fleet, "x-1", 5, "c-1").await, []);
    let again = claimed(&fleet, "x-1", 1, "c-3").await;
    assert_eq!((again[0].task.as_str(), again[0].attempt), ("t-1", 2));
    // Another instance's claim of that id is another claim.
    assert_eq!(claim(&fleet, "x-2", 1, "c-1").await, ["t-4"]);
    // One that found nothing is not kept: it may find something when it comes again.
    external(&fleet, "x-3", 0, &["a.b"]).await;
    assert_eq!(claim(&fleet, "x-3", 1, "c-1").await, [""; 0]);
    external(&fleet, "x-3", 2, &["a.b"]).await;
    assert_eq!(claim(&fleet, "x-3", 1, "c-1").await, ["t-5"]);
    assert_eq!(claim(&fleet, "x-3", 1, "c-1").await, ["t-5"]);
}

/// The ids of the claims that are kept of an instance.
async fn kept(fleet: &Fleet, id: &str) -> Vec<String> {
    let log: Vec<u8> = redis::cmd("HGET")
        .arg("cb:tasks:data")
        .arg(format!("{id} claims"))
        .query_async(&mut fleet.connection.clone())
        .await
        .unwrap();
    let log = rmpv::decode::read_value(&mut &log[..]).unwrap();
    let claims = log.as_array().unwrap().iter();
    claims
        .map(|claim| claim[0].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn a_claim_is_answered_the_same_as_long_as_any_of_its_tasks_is_held() {
    let fleet = Fleet::start().await;
    claimer(&fleet, "x-1", 200, &["a.b"]).await;
    for number in 0..100 {
        fleet.create(&format!("t-{number:03}")).await;
    }
    let first = claimed(&fleet, "x-1", 2, "c-0").await;
    complete(&fleet.tasks, "x-1", &first[0]).await;
    let first = &first[1..];
    // However many come after it: those that took nothing, those whose tasks ended, and those that hold some.
    external(&fleet, "x-1", 1, &["a.b"]).await;
    for number in 0..20 {
        let id = format!("vain-{number}");
        assert_eq!(claim(&fleet, "x-1", 1, &id).await, [""; 0]);
    }
    assert_eq!(claimed(&fleet, "x-1", 2, "c-0").await, first);
    assert_eq!(kept(&fleet, "x-1").await, ["c-0"]);
    external(&fleet, "x-1", 200, &["a.b"]).await;
    for number in 0..20 {
        let one = claimed(&fleet, "x-1", 1, &format!("done-{number}")).await;
        complete(&fleet.tasks, "x-1", &one[0]).await;
    }
    assert_eq!(claimed(&fleet, "x-1", 2, "c-0").await, first);
    assert_eq!(kept(&fleet, "x-1").await.len(), 1 + 8);
    let mut held = Vec::new();
    for number in 1..MAX_CLAIMS + 8 {
        held.extend(claimed(&fleet, "x-1", 1, &format!("held-{number}")).await);
    }
    assert_eq!(held.len(), MAX_CLAIMS + 7);
    let refused = fleet
        .tasks
        .claim(Claim::new("x-1", 1, &[], "more"))
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, CoordinationError::Exhausted(said) if said.contains("64 older claims")),
        "{refused}"
    );
    assert_eq!(claimed(&fleet, "x-1", 2, "c-0").await, first);
    assert_eq!(claimed(&fleet, "x-1", 1, "held-9").await, held[8..9]);
    complete(&fleet.tasks, "x-1", &held[30]).await;
    assert_eq!(claim(&fleet, "x-1", 1, "more").await.len(), 1);
    let ids = kept(&fleet, "x-1").await;
    assert!(ids.len() == MAX_CLAIMS + 8 && !ids.contains(&"held-31".to_owned()));
    assert_eq!(claimed(&fleet, "x-1", 2, "c-0").await, first);
    for task in first.iter().chain(&held).filter(|task| **task != held[30]) {
        complete(&fleet.tasks, "x-1", task).await;
    }
    assert_eq!(claim(&fleet, "x-1", 1, "last").await.len(), 1);
    let ids = kept(&fleet, "x-1").await;
    assert!(ids.len() == 8 && ids[7] == "last", "{ids:?}");
}

#[tokio::test]
async fn what_it_was_sent_before_its_first_claim_comes_first() {
    let mut fleet = Fleet::start().await;
    for id in ["t-1", "t-2", "t-3", "t-4"] {
        fleet.create(id).await;
    }
    let assigned = external(&fleet, "x-1", 3, &["a.b"]).await;
    assert_eq!(assigned, ["t-1", "t-2", "t-3"]);
    let fences: Vec<_> = fleet.inbox("x-1").await;
    let first = claimed(&fleet, "x-1", 2, "c-1").await;
    assert_eq!(ids(&first), ["t-1", "t-2"]);
    assert_eq!(fences[0]["fence"], first[0].fence, "as it was sent");
    // From now on nothing is sent, whatever room there is.
    complete(&fleet.tasks, "x-1", &first[0]).await;
    assert_eq!(fleet.task("t-4").await.status, TaskStatus::Pending);
    assert!(fleet.tasks.assign_waiting().await.unwrap().is_empty());
    assert!(external(&fleet, "x-1", 3, &["a.b"]).await.is_empty());
    assert_eq!(fleet.inbox("x-1").await.len(), 3);
    assert_eq!(claim(&fleet, "x-1", 9, "c-2").await, ["t-3", "t-4"]);
    // What somebody gives it, too.
    fleet.worker("w-1", 1, &["a.b"]).await;
    fleet.create("t-5").await;
    external(&fleet, "x-1", 4, &["a.b"]).await;
    let placed = fleet.tasks.assign("t-5", "x-1", "").await.unwrap();
    let told = claimed(&fleet, "x-1", 9, "c-3").await;
    assert_eq!((ids(&told), told[0].attempt), (vec!["t-5".into()], 1));
    assert_eq!(Some(told[0].fence), placed.fence);
    assert_eq!(claim(&fleet, "x-1", 9, "c-4").await, [""; 0]);
    assert_eq!(fleet.inbox("x-1").await.len(), 3);
}

#[tokio::test]
async fn what_is_claimed_is_assigned_and_goes_to_others_with_its_holder() {
    let mut fleet = Fleet::start().await;
    claimer(&fleet, "x-1", 3, &["a.b"]).await;
    for id in ["t-1", "t-2", "t-3"] {
        fleet.create(id).await;
    }
    let first = claimed(&fleet, "x-1", 3, "c-1").await;
    let listed = fleet
        .tasks
        .list(Some(TaskStatus::Assigned), 10)
        .await
        .unwrap();
    assert_eq!(listed.len(), 3);
    assert_eq!(fleet.tasks.counts().await.unwrap().assigned, 3);
    fleet.tasks.cancel("t-3", "").await.unwrap();
    fleet.worker("w-1", 9, &["a.b"]).await;
    fleet.tasks.unassign("t-2", "").await.unwrap();
    assert_eq!(fleet.assignment("t-2").await.instance, "w-1");
    fleet.expire("x-1").await;
    let swept = fleet.instances.sweep(16).await.unwrap();
    assert_eq!(swept.lost[0].tasks_reassigned, 1);
    let moved = fleet.assignment("t-1").await;
    assert!(moved.instance == "w-1" && moved.fence > first[0].fence);
    // Nothing of its claims is left, and as a new one it is sent tasks again.
    let left: Vec<String> = fleet.ask("HKEYS cb:tasks:data").await;
    assert!(
        !left.iter().any(|field| field.contains("claims")),
        "{left:?}"
    );
    let done = fleet.tasks.claim(Claim::new("x-1", 1, &[], "c-2")).await;
    assert!(matches!(
        done,
        Err(CoordinationError::FailedPrecondition(_))
    ));
    fleet.tasks.retire("w-1").await.unwrap();
    fleet.create("t-4").await;
    assert_eq!(external(&fleet, "x-1", 3, &["a.b"]).await, ["t-4"]);
    // A new incarnation that nobody swept before begins the same.
    claim(&fleet, "x-1", 1, "c-3").await;
    fleet.complete("t-4").await;
    fleet.expire("x-1").await;
    fleet.create("t-5").await;
    assert_eq!(external(&fleet, "x-1", 3, &["a.b"]).await, ["t-5"]);
}

#[tokio::test]
async fn nobody_claims_for_a_worker_or_for_one_who_is_not_there() {
    let fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b"]).await;
    fleet.create("held").await;
    fleet.create("t-1").await;
    let refused = async |instance: &str, limit: usize, kinds: &[String]| {
        let done = fleet
            .tasks
            .claim(Claim::new(instance, limit, kinds, "c-1"))
            .await;
        done.unwrap_err()
    };
    let sealed = refused("w-1", 1, &[]).await;
    assert!(
        matches!(&sealed, CoordinationError::PermissionDenied(said) if said.contains("w-1")),
        "{sealed}"
    );
    let gone = refused("x-1", 1, &[]).await;
    assert!(
        matches!(&gone, CoordinationError::FailedPrecondition(said) if said.contains("register")),
        "{gone}"
    );
    for (limit, kinds, field) in [
        (0, vec![], "limit: 0"),
        (MAX_CLAIMED + 1, vec![], "limit: 51"),
        (1, vec!["a.b".to_owned(); 17], "kinds: 17"),
        (1, vec!["ab".to_owned()], "kinds[0]"),
    ] {
        let invalid = refused("x-1", limit, &kinds).await;
        assert!(
            matches!(&invalid, CoordinationError::Invalid(said) if said.starts_with(field)),
            "{invalid}"
        );
    }
    assert_eq!(fleet.task("t-1").await.status, TaskStatus::Pending);
}

#[tokio::test]
async fn one_answer_holds_so_many_bytes_and_a_large_task_comes_alone() {
    let fleet = Fleet::start().await;
    claimer(&fleet, "x-1", 99, &["a.b"]).await;
    let bytes = |count: usize| {
        [
            vec![0xc6],
            (count as u32).to_be_bytes().to_vec(),
            vec![7; count],
        ]
        .concat()
    };
    for (id, count) in [
        ("a", 25_000),
        ("b", 25_000),
        ("c", 25_000),
        ("large", 900_000),
        ("d", 1),
    ] {
        let mut task = NewTask::new(id, "a.b");
        task.payload = bytes(count);
        fleet.tasks.create(&task).await.unwrap();
    }
    let mut answers = Vec::new();
    for number in 0..5 {
        let answer = claimed(&fleet, "x-1", 50, &format!("c-{number}")).await;
        let held: usize = answer.iter().map(|task| task.payload.len()).sum();
        assert!(answer.len() <= 1 || held <= MAX_CLAIMED_BYTES, "{held}");
        answers.push(ids(&answer).join(" "));
    }
    assert_eq!(answers, ["a b", "c", "large", "d", ""]);
    // So it is with what was sent before.
    for id in ["e", "f", "g"] {
        let mut task = NewTask::new(id, "c.d");
        task.payload = bytes(25_000);
        fleet.tasks.create(&task).await.unwrap();
    }
    assert_eq!(external(&fleet, "x-2", 3, &["c.d"]).await.len(), 3);
    assert_eq!(claim(&fleet, "x-2", 9, "c-1").await, ["e", "f"]);
    assert_eq!(claim(&fleet, "x-2", 9, "c-2").await, ["g"]);
}

#[tokio::test]
async fn a_claimer_finds_its_kind_behind_very_many_others() {
    let fleet = Fleet::start().await;
    for number in 0..200 {
        let mut stuck = NewTask::new(
            format!("stuck-{number}"),
            format!("no.body_{}", number % 150),
        );
        stuck.priority = 90;
        stuck.requires = vec![format!("lane.l{}", number % 60)];
        fleet.tasks.create(&stuck).await.unwrap();
    }
    // Parked, for nobody could take it.
    let task = NewTask::new("t-1", "z.last");
    fleet.tasks.create(&task).await.unwrap();
    external(&fleet, "x-any", 0, &[]).await;
    claim(&fleet, "x-any", 1, "c-0").await;
    external(&fleet, "x-any", 1, &[]).await;
    let found = fleet
        .tasks
        .claim(Claim::new("x-any", 1, &["z.last".into()], "c-1"))
        .await;
    assert_eq!(ids(&found.unwrap()), ["t-1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_claim_at_once_never_get_the_same_and_none_is_left() {
    let fleet = Fleet::start().await;
    for number in 0..4 {
        claimer(&fleet, &format!("x-{number}"), 5, &["a.b"]).await;
    }
    for number in 0..120 {
        fleet.create(&format!("t-{number:03}")).await;
    }
    let claimers: Vec<_> = (0..4)
        .map(|number| {
            let tasks = fleet.tasks.clone();
            tokio::spawn(async move {
                let id = format!("x-{number}");
                let mut got: Vec<(String, u64)> = Vec::new();
                for turn in 0.. {
                    let asked = format!("c-{turn}");
                    let mut claimed = tasks.claim(Claim::new(&id, 7, &[], &asked)).await.unwrap();
                    // Every answer is lost once.
                    claimed = match turn % 2 {
                        0 => tasks.claim(Claim::new(&id, 7, &[], &asked)).await.unwrap(),
                        _ => claimed,
                    };
                    assert!(claimed.len() <= 5);
                    if claimed.is_empty() {
                        return got;
                    }
                    for task in claimed {
                        complete(&tasks, &id, &task).await;
                        got.push((task.task, task.fence));
                    }
                }
                got
            })
        })
        .collect();
    let mut all = Vec::new();
    for claimer in claimers {
        all.extend(claimer.await.unwrap());
    }
    let tasks: BTreeSet<&String> = all.iter().map(|(task, _)| task).collect();
    assert_eq!((all.len(), tasks.len()), (120, 120));
    assert_eq!(fleet.tasks.counts().await.unwrap().completed, 120);
}
