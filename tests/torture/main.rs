//! The torture rig: real servers, real worker processes and bad wires under load, then the question
//! whether each event had its outcome, once.
//!
//! Every schedule is drawn from one seed, which is told at the end: `TORTURE_SEED` draws the same
//! schedule again (not the same timing). `scripts/torture` tells more.

#[path = "../support/mod.rs"]
mod support;

mod attacks;
mod facts;
mod history;
mod hygiene;
mod load;
mod outcomes;
mod worker;
mod world;

mod clocks;
mod far;
mod groups;
mod held;
mod hostile;
mod kills;
mod long;
mod outages;
mod pairs;
mod planted;
mod poison;
mod power;
mod repeats;
mod rolling;
mod schedules;
mod server;
mod soak;
mod takeover;
mod trickle;
mod wires;

#[test]
fn a_worker_process() {
    worker::process();
}
