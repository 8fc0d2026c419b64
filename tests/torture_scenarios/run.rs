//! Runs a scenario as often as the environment says, with faults between its steps.
//!
//! `TORTURE_STEPS` is for all scenarios together. A failure prints its steps, shrunk, and how to have it
//! again: `TORTURE_SEED`, and `TORTURE_CASE`, which is the number of the case to begin with.

use crate::support::torture::{self, Report, size};
use crate::world::World;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::time::Instant;
use tokio::runtime::Runtime;

/// Steps of the longest case.
const LONGEST: usize = 50;

/// One step, or a fault.
#[derive(Clone, Debug)]
pub(crate) enum Step<S> {
    Do(S),
    /// The answer is lost, and the call is made again.
    Lost(S),
    /// The server's clock goes by this many ms.
    Clock(i64),
    /// The server forgets its scripts.
    Forget,
    /// The server is killed, and starts again.
    Restart,
}

/// A thing that has rules.
pub(crate) trait Scenario: Sized + 'static {
    const NAME: &'static str;
    /// How many of a hundred steps are its own: the cheaper, the more.
    const SHARE: u64;
    /// By how many ms its clock may go at a time; what is listed often happens often.
    const CLOCK: &'static [i64];
    type Step: Clone + Debug + 'static;

    fn steps() -> BoxedStrategy<Self::Step>;
    fn begin(world: &World) -> Self;
    /// Does the step, twice if its first answer was lost, and compares the answer with the model's.
    async fn take(&mut self, world: &mut World, step: &Self::Step, lost: bool);
    /// After each step and fault.
    async fn check(&mut self, world: &mut World);
    async fn end(&mut self, _: &mut World) {}
}

fn with_faults<S: Scenario>() -> impl Strategy<Value = Vec<Step<S::Step>>> {
    let clock = prop::sample::select(S::CLOCK);
    let step = prop_oneof![
        8400 => S::steps().prop_map(Step::Do),
        800 => S::steps().prop_map(Step::Lost),
        700 => clock.prop_map(Step::Clock),
        97 => Just(Step::Forget),
        3 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..LONGEST)
}

async fn case<S: Scenario>(world: &mut World, steps: &[Step<S::Step>]) {
    world.clear().await;
    let mut scene = S::begin(world);
    for step in steps {
        match step {
            Step::Do(step) => scene.take(world, step, false).await,
            Step::Lost(step) => scene.take(world, step, true).await,
            Step::Clock(ms) => world.move_clock(*ms).await,
            Step::Forget => world.forget_scripts().await,
            Step::Restart => world.restart().await,
        }
        scene.check(world).await;
    }
    scene.end(world).await;
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// One case, of these steps.
pub(crate) fn these<S: Scenario>(steps: &[Step<S::Step>]) {
    runtime().block_on(async {
        if let Some(mut world) = World::start().await {
            case::<S>(&mut world, steps).await;
        }
    });
}

/// What was run.
#[derive(Default)]
struct Counts {
    steps: Cell<u64>,
    lost: Cell<u64>,
    clock: Cell<u64>,
    forgot: Cell<u64>,
}

impl Counts {
    fn count<S>(&self, steps: &[Step<S>]) {
        let of = |cell: &Cell<u64>, is: fn(&Step<S>) -> bool| {
            let found = steps.iter().filter(|step| is(step)).count() as u64;
            cell.set(cell.get() + found);
        };
        of(&self.steps, |_| true);
        of(&self.lost, |step| matches!(step, Step::Lost(_)));
        of(&self.clock, |step| matches!(step, Step::Clock(_)));
        of(&self.forgot, |step| matches!(step, Step::Forget));
    }
}

/// As many cases as asked for.
pub(crate) fn all<S: Scenario>() {
    let most = size("TORTURE_STEPS", 18_000, 10_000_000) * S::SHARE / 100;
    let first = std::env::var("TORTURE_CASE").ok();
    let first: u64 = first.map_or(0, |text| text.parse().unwrap());
    let (runtime, strategy, counts) = (runtime(), with_faults::<S>(), Counts::default());
    let Some(world) = runtime.block_on(World::start()) else {
        return;
    };
    let world = RefCell::new(world);
    let (mut number, mut told) = (first, Instant::now());
    while counts.steps.get() < most {
        let config = Config {
            cases: 1,
            failure_persistence: None,
            max_shrink_iters: 5_000,
            rng_seed: RngSeed::Fixed(torture::dice(&format!("{} {number}", S::NAME)).u64(..)),
            ..Config::default()
        };
        let done = TestRunner::new(config).run(&strategy, |steps| {
            counts.count(&steps);
            runtime.block_on(case::<S>(&mut world.borrow_mut(), &steps));
            Ok(())
        });
        if let Err(TestError::Fail(why, steps)) = &done {
            panic!(
                "{why}\nby {steps:#?}\nagain: TORTURE_SEED={} TORTURE_CASE={number} scripts/torture \
                 scenarios",
                torture::seed()
            );
        }
        done.unwrap();
        number += 1;
        if torture::is_full() && told.elapsed().as_secs() >= 60 {
            told = Instant::now();
            println!(
                "{}: {} steps in {} cases",
                S::NAME,
                counts.steps.get(),
                number - first
            );
        }
    }
    Report::default()
        .event(counts.steps.get(), "steps of scenarios")
        .event(number - first, "scenarios")
        .fault(counts.lost.get(), "answers lost in scenarios")
        .fault(counts.clock.get(), "moves of the clock in scenarios")
        .fault(counts.forgot.get(), "losses of scripts in scenarios")
        .fault(
            world.borrow().restarts,
            "restarts of the server in scenarios",
        )
        .tell(S::NAME);
}
