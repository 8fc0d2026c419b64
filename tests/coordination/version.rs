//! The version of the state: it rises with each change of what it shows, and with nothing else.

use crate::batches::{LEASE, asker, batches, failed, ok, wanted};
use crate::fleet::Fleet;
use crate::support::{Redis, keys, users};
use convoke::connect::connector::Connector;
use convoke::coordination::ballots::ballot::{BallotStatus, Vote};
use convoke::coordination::batches::{Acquired, Advanced};
use convoke::coordination::instances::gossip::{Observed, Opinion};
use convoke::coordination::instances::instance::{Beat, Registering};
use convoke::coordination::tasks::claim::Claim;
use convoke::coordination::tasks::task::NewTask;
use convoke::coordination::tasks::update::TaskChange;
use convoke::coordination::view::View;
use convoke::protocol::keys::Keys;
use convoke::settings::RedisUrl;

/// Looks at the version after each step.
struct Watch {
    url: String,
    keys: Keys,
    last: u64,
}

impl Watch {
    async fn of(fleet: &Fleet) -> Self {
        let mut watch = Self {
            url: fleet.redis.url(),
            keys: fleet.keys.clone(),
            last: 0,
        };
        watch.last = watch.read().await;
        watch.stayed("nothing happened").await;
        watch
    }

    /// One who reads it for the first time.
    fn view(&self) -> View {
        let connector = Connector::new(&RedisUrl::new(&self.url), 2).unwrap();
        View::new(connector, self.keys.clone())
    }

    async fn read(&self) -> u64 {
        self.view().version().await.unwrap()
    }

    /// It rose, and is the same however often it is read and by whom.
    async fn rose(&mut self, what: &str) {
        let version = self.read().await;
        assert!(version > self.last, "{what}: {version}, was {}", self.last);
        self.last = version;
        self.stayed(what).await;
    }

    async fn stayed(&self, what: &str) {
        let view = self.view();
        for _ in 0..2 {
            assert_eq!(view.version().await.unwrap(), self.last, "{what}");
        }
    }
}

fn beat(load: Option<f64>) -> Beat {
    Beat {
        load,
        ..Beat::new("w-1", None)
    }
}

async fn says(fleet: &Fleet, observer: &str, opinion: Opinion) {
    let observed = Observed::from([("w-1".to_owned(), opinion)]);
    let said = fleet.instances.observe(observer, None, &observed).await;
    said.unwrap();
}

#[tokio::test]
async fn each_change_of_an_instance_raises_it_and_a_pulse_that_says_nothing_new_does_not() {
    let mut fleet = Fleet::start().await;
    let mut watch = Watch::of(&fleet).await;
    for id in ["w-1", "w-2", "w-3", "w-4"] {
        fleet.register(id, &["worker"]).await;
        watch.rose("registered").await;
    }
    fleet.register("w-1", &["worker"]).await;
    watch.stayed("registered again as it was").await;
    let mut other = Registering::new("w-1", ["worker"]);
    other.ttl_ms += 1000;
    fleet.instances.register(&other).await.unwrap();
    watch.rose("another ttl").await;
    other.roles.push("db".into());
    fleet.instances.register(&other).await.unwrap();
    watch.rose("another role").await;

    fleet.instances.heartbeat(&beat(Some(0.5))).await.unwrap();
    watch.rose("another load").await;
    for load in [Some(0.5), None] {
        fleet.instances.heartbeat(&beat(load)).await.unwrap();
        watch.stayed("a pulse that says nothing new").await;
    }
    says(&fleet, "w-2", Opinion::Suspect).await;
    watch.rose("suspect").await;
    for opinion in [Opinion::Suspect, Opinion::Healthy] {
        let voice = if opinion == Opinion::Suspect {
            "w-2"
        } else {
            "w-3"
        };
        says(&fleet, voice, opinion).await;
        watch.stayed("suspect still").await;
    }
    says(&fleet, "w-2", Opinion::Healthy).await;
    watch.rose("not suspect any more").await;
    says(&fleet, "w-2", Opinion::Suspect).await;
    watch.rose("suspect again").await;
    fleet.instances.heartbeat(&beat(None)).await.unwrap();
    watch.rose("a suspect one pulsed").await;
    for what in ["suspect", "lost by the word of a majority"] {
        let observer = if what == "suspect" { "w-2" } else { "w-3" };
        says(&fleet, observer, Opinion::Suspect).await;
        watch.rose(what).await;
    }
    fleet.expire("w-4").await;
    let swept = fleet.instances.sweep(16).await.unwrap();
    assert_eq!(swept.lost.len(), 1, "{swept:?}");
    watch.rose("lost").await;

    fleet.expire("w-2").await;
    watch.rose("expired by time alone").await;
    let pulse = Beat::new("w-2", None);
    assert!(fleet.instances.heartbeat(&pulse).await.unwrap().alive);
    watch.rose("back to life").await;
    let registered = fleet.register("w-3", &["worker"]).await;
    watch.stayed("nothing happened").await;
    let incarnation = registered.incarnation;
    for expected in [true, false] {
        let led = fleet.instances.contend("w-3", incarnation).await.unwrap();
        assert!(led.lead.is_some());
        match expected {
            true => watch.rose("elected").await,
            false => watch.stayed("leads on").await,
        }
    }
    fleet.run("HSET cb:leader until 1000").await;
    watch.rose("the lead ended by time alone").await;
    fleet.instances.unregister("w-3", None).await.unwrap();
    watch.rose("unregistered").await;
    fleet.instances.unregister("w-3", None).await.unwrap();
    watch.stayed("unregistered before").await;
    fleet.run("ZADD cb:instances:lost XX 1000 w-1").await;
    watch.rose("its loss is too long ago to be told").await;
}

#[tokio::test]
async fn each_word_about_a_task_and_each_claim_raises_it() {
    let fleet = Fleet::start().await;
    let mut watch = Watch::of(&fleet).await;
    let mut task = NewTask::new("t-5", "c.d");
    task.priority = 9;
    fleet.tasks.create(&task).await.unwrap();
    watch.rose("waits").await;
    let change = TaskChange {
        priority: Some(8),
        ..TaskChange::default()
    };
    for expected in [true, false] {
        fleet.tasks.update("t-5", &change, "e-1").await.unwrap();
        match expected {
            true => watch.rose("updated").await,
            false => watch.stayed("updated before").await,
        }
    }
    let external = Registering::new("x-1", ["worker"]);
    fleet.asked().register(&external).await.unwrap();
    watch.rose("registered, with a task").await;
    fleet
        .tasks
        .claim(Claim::new("x-1", 1, &[], "c-0"))
        .await
        .unwrap();
    watch.rose("it claims from now on").await;
    fleet.tasks.unassign("t-5", "e-2").await.unwrap();
    watch.rose("unassigned").await;
    fleet.tasks.unassign("t-5", "e-2").await.unwrap();
    watch.stayed("unassigned before").await;
    fleet
        .tasks
        .claim(Claim::new("x-1", 1, &[], "c-1"))
        .await
        .unwrap();
    watch.rose("claimed").await;
    for again in ["c-1", "c-2"] {
        fleet
            .tasks
            .claim(Claim::new("x-1", 1, &[], again))
            .await
            .unwrap();
        watch.stayed("nothing was claimed").await;
    }
    for id in ["w-1", "w-2"] {
        fleet.worker(id, 1, &["a.b"]).await;
        watch.rose("registered").await;
    }
    fleet.create("t-4").await;
    watch.rose("assigned").await;
    let holder = fleet.assignment("t-4").await.instance;
    let other = if holder == "w-1" { "w-2" } else { "w-1" };
    for expected in [true, false] {
        fleet.tasks.assign("t-4", other, "e-3").await.unwrap();
        match expected {
            true => watch.rose("assigned to another").await,
            false => watch.stayed("assigned before").await,
        }
    }
}

#[tokio::test]
async fn each_change_of_a_task_raises_it() {
    let mut fleet = Fleet::start().await;
    let mut watch = Watch::of(&fleet).await;
    fleet.create("t-1").await;
    watch.rose("created").await;
    fleet.create("t-1").await;
    watch.stayed("created before").await;
    fleet.worker("w-1", 2, &["a.b"]).await;
    watch.rose("assigned").await;
    fleet.worker("w-2", 2, &["a.b"]).await;
    watch.rose("registered").await;
    fleet.create("t-2").await;
    watch.rose("assigned at once").await;
    let assignment = fleet.assignment("t-1").await;
    for expected in [true, false] {
        let done = fleet.tasks.complete(&assignment, &[0xc0], &[]).await;
        done.unwrap();
        match expected {
            true => watch.rose("completed").await,
            false => watch.stayed("completed before").await,
        }
    }
    fleet.fail("t-2", "once", true).await;
    watch.rose("failed, and tried again").await;
    fleet.fail("t-2", "for good", false).await;
    watch.rose("failed for good").await;
    fleet
        .tasks
        .create(&NewTask::new("t-3", "c.d"))
        .await
        .unwrap();
    watch.rose("waits").await;
    for expected in [true, false] {
        fleet.tasks.cancel("t-3", "").await.unwrap();
        match expected {
            true => watch.rose("cancelled").await,
            false => watch.stayed("cancelled before").await,
        }
    }
    fleet.create("t-4").await;
    watch.rose("assigned").await;
    let holder = fleet.assignment("t-4").await.instance;
    fleet.tasks.retire(&holder).await.unwrap();
    watch.rose("retired").await;
    fleet.tasks.release(&holder).await.unwrap();
    watch.rose("released").await;
    fleet.tasks.assign_waiting().await.unwrap();
    watch.stayed("nobody to be given").await;
    for name in ["tasks.list", "tasks.get"] {
        fleet.tasks.snapshot(None, 10).await.unwrap();
        fleet.tasks.get("t-4").await.unwrap();
        watch.stayed(name).await;
    }
    // The next one that ends pushes it out of what is kept.
    fleet.run("ZADD cb:tasks:done XX 1000 t-1").await;
    watch.stayed("nothing was told").await;
    fleet.tasks.assign_waiting().await.unwrap();
    watch.rose("one that ended is forgotten").await;
    assert!(fleet.tasks.get("t-1").await.unwrap().is_none());
}

#[tokio::test]
async fn each_change_of_a_batch_raises_it() {
    let fleet = Fleet::start().await;
    let mut watch = Watch::of(&fleet).await;
    let batches = batches(&fleet);
    let wanted = wanted("b-1", 3);
    let held = batches.acquire(&wanted, asker("w-1", "e-1")).await.unwrap();
    let Acquired::Held(progress, _) = held else {
        panic!("{held:?}")
    };
    watch.rose("taken").await;
    batches.acquire(&wanted, asker("w-1", "e-1")).await.unwrap();
    batches.acquire(&wanted, asker("w-2", "e-2")).await.unwrap();
    watch.stayed("asked for").await;
    for expected in [true, false] {
        let fence = progress.fence;
        batches
            .progress(&wanted, fence, &ok([0]), &[])
            .await
            .unwrap();
        match expected {
            true => watch.rose("progress").await,
            false => watch.stayed("the same again").await,
        }
    }
    batches.renew("b-1", progress.fence, LEASE).await.unwrap();
    watch.stayed("renewed").await;
    batches.give_back("b-1", progress.fence).await.unwrap();
    let held = batches.acquire(&wanted, asker("w-2", "e-2")).await.unwrap();
    let Acquired::Held(next, _) = held else {
        panic!("{held:?}")
    };
    watch.rose("taken over").await;
    let late = batches
        .progress(&wanted, progress.fence, &ok([1]), &[])
        .await;
    assert!(matches!(late.unwrap(), Advanced::Lost(_)));
    watch.stayed("somebody else's").await;
    let last = [failed(1, "no"), ok([2]).remove(0)];
    let ended = batches.progress(&wanted, next.fence, &last, &[]).await;
    assert!(matches!(ended.unwrap(), Advanced::Completed(_)));
    watch.rose("ended").await;
}

#[tokio::test]
async fn each_vote_and_each_end_of_a_ballot_raises_it() {
    let fleet = Fleet::start().await;
    for id in ["w-1", "w-2", "w-3", "w-4"] {
        fleet.register(id, &[]).await;
    }
    let mut watch = Watch::of(&fleet).await;
    let vote = async |decision: &str, id: &str, expires_in_ms| {
        let vote = Vote {
            expires_in_ms,
            ..Vote::new(decision, id, vec![1])
        };
        fleet.ballots.vote(&vote).await.unwrap().status
    };
    assert_eq!(vote("d", "w-1", 60_000).await, BallotStatus::Open);
    watch.rose("opened").await;
    assert_eq!(vote("d", "w-1", 60_000).await, BallotStatus::Open);
    watch.stayed("the same vote").await;
    assert_eq!(vote("d", "w-2", 60_000).await, BallotStatus::Open);
    watch.rose("another vote").await;
    assert_eq!(vote("d", "w-3", 60_000).await, BallotStatus::Decided);
    watch.rose("decided").await;
    vote("d", "w-4", 60_000).await;
    watch.stayed("too late").await;
    // It is open still while it is looked at.
    vote("e", "w-1", 4000).await;
    watch.rose("opened").await;
    crate::support::until("it has expired", || async {
        let ballots = fleet.ballots.list(10).await.unwrap();
        ballots
            .iter()
            .any(|ballot| ballot.status == BallotStatus::Expired)
    })
    .await;
    watch.rose("expired by time alone").await;
}

#[tokio::test]
async fn it_falls_neither_with_the_data_nor_with_the_clock() {
    let mut fleet = Fleet::on(Redis::with_a_clock(), keys()).await;
    let mut watch = Watch::of(&fleet).await;
    for step in [-86_400, 2 * 86_400, -3600] {
        fleet.redis.step_clock(step).await;
        // Time alone may have changed something.
        let read = watch.read().await;
        assert!(read >= watch.last, "{step} s: {read}, was {}", watch.last);
        watch.last = read;
        fleet.register("w-1", &["worker"]).await;
        fleet.create(&format!("t-{step}")).await;
        watch.rose("after a step of the clock").await;
    }
    // A server that knows an older state than was told, as one that was a replica.
    let remembers = watch.view();
    watch.last = remembers.version().await.unwrap();
    fleet.run("HSET cb:state version 5").await;
    let told = remembers.version().await.unwrap();
    assert!(told > watch.last, "{told}, was {}", watch.last);
    watch.last = told;
    // One that is connected knows in which history the server is, where that tells.
    if !users::lack("info") {
        fleet.run("HSET cb:state history another").await;
        let told = remembers.version().await.unwrap();
        assert!(told > watch.last, "{told}, was {}", watch.last);
        watch.last = told;
    }
    // Further than it ever was.
    fleet.redis.step_clock(3 * 86_400).await;
    fleet.run("FLUSHALL").await;
    watch.rose("lost data").await;
    // Somebody wrote something else there.
    for what in ["read", "changed"] {
        fleet.run("SET cb:state odd").await;
        if what == "changed" {
            fleet.create("t-last").await;
        }
        watch.rose(what).await;
    }
}
