use super::trouble::TOLD;
use super::*;
use crate::coordination::instances::roster::Census;
use crate::coordination::metrics::Running;
use crate::coordination::totals::Global;

fn checks(census: Census, running: Running) -> Vec<(&'static str, bool)> {
    let global = Global {
        running: [("image.resize".to_owned(), running)].into(),
        ..Global::default()
    };
    let troubles = of_instances(&census, &global);
    troubles
        .iter()
        .map(|trouble| (trouble.check, trouble.severe))
        .collect()
}

#[test]
fn what_hangs_who_is_lost_and_a_partition_are_told() {
    let census = |active, recently_lost| Census {
        active,
        recently_lost,
        ..Census::default()
    };
    let runs = |runs, oldest_ms, full| Running {
        runs,
        oldest_ms,
        full,
    };
    assert_eq!(checks(census(3, 0), runs(4, 9_000, 1)), []);
    assert_eq!(checks(census(3, 0), runs(4, 10_000, 1)), [("runs", true)]);
    assert_eq!(checks(census(3, 0), runs(4, 59_000, 0)), []);
    assert_eq!(checks(census(3, 0), runs(4, 60_000, 0)), [("runs", false)]);
    // A few of many are nothing.
    assert_eq!(checks(census(100, 9), Running::default()), []);
    assert_eq!(
        checks(census(100, 12), Running::default()),
        [("lost", false)]
    );
    assert_eq!(
        checks(census(10, 300), Running::default()),
        [("lost", true), ("partition", true)]
    );
}

#[test]
fn of_many_like_each_other_the_first_are_told_and_how_many_more_there_are() {
    let many: Vec<Trouble> = (0..20)
        .map(|n| no_handler("a.b", &format!("s{n}")))
        .collect();
    let told = bounded(many);
    assert_eq!(told.len(), TOLD);
    assert!(told[TOLD - 1].what.ends_with("; 15 more are like that"));
}
