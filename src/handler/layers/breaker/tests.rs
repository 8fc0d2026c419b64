use super::*;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

fn policy() -> CircuitPolicy {
    CircuitPolicy {
        failures: 3,
        open_for: 100 * MS,
        open_cap: 350 * MS,
        probes: 2,
        successes: 2,
    }
}

fn admitted(breaker: &mut Breaker, now: Instant) -> Ticket {
    match breaker.admit(now) {
        Passage::Run(ticket) => ticket,
        Passage::Refused(wait) => panic!("refused for {wait:?}"),
    }
}

fn refused(breaker: &mut Breaker, now: Instant) -> Duration {
    match breaker.admit(now) {
        Passage::Run(_) => panic!("admitted"),
        Passage::Refused(wait) => wait,
    }
}

fn run(breaker: &mut Breaker, verdict: Verdict, now: Instant) -> Option<Transition> {
    let ticket = admitted(breaker, now);
    breaker.finish(ticket, verdict, now)
}

fn opened(now: Instant) -> Breaker {
    let mut breaker = Breaker::new(policy());
    assert_eq!(run(&mut breaker, Verdict::Bad, now), None);
    assert_eq!(run(&mut breaker, Verdict::Bad, now), None);
    assert_eq!(
        run(&mut breaker, Verdict::Bad, now),
        Some(Transition::Opened)
    );
    breaker
}

#[test]
fn only_failures_in_a_row_open_it() {
    let now = Instant::now();
    let mut breaker = Breaker::new(policy());
    for _ in 0..10 {
        run(&mut breaker, Verdict::Bad, now);
        run(&mut breaker, Verdict::Bad, now);
        run(&mut breaker, Verdict::Good, now);
    }
    assert_eq!(breaker.state(now), CircuitState::Closed);
    run(&mut breaker, Verdict::Bad, now);
    run(&mut breaker, Verdict::None, now);
    run(&mut breaker, Verdict::Bad, now);
    run(&mut breaker, Verdict::None, now);
    assert_eq!(
        run(&mut breaker, Verdict::Bad, now),
        Some(Transition::Opened)
    );
    assert_eq!(breaker.state(now), CircuitState::Open);
}

#[test]
fn the_open_time_doubles_to_the_cap_and_begins_anew_after_closing() {
    let mut now = Instant::now();
    let mut breaker = opened(now);
    for expected in [100, 200, 350, 350] {
        assert_eq!(refused(&mut breaker, now), expected * MS);
        now += expected * MS - MS;
        assert_eq!(refused(&mut breaker, now), MS);
        assert_eq!(breaker.state(now), CircuitState::Open);
        now += MS;
        assert_eq!(breaker.state(now), CircuitState::HalfOpen);
        let change = run(&mut breaker, Verdict::Bad, now);
        assert_eq!(change, Some(Transition::Reopened));
    }
    now += 350 * MS;
    assert_eq!(run(&mut breaker, Verdict::Good, now), None);
    assert_eq!(
        run(&mut breaker, Verdict::Good, now),
        Some(Transition::Closed)
    );
    assert_eq!(breaker.state(now), CircuitState::Closed);
    for _ in 0..3 {
        run(&mut breaker, Verdict::Bad, now);
    }
    assert_eq!(refused(&mut breaker, now), 100 * MS);
}

#[test]
fn a_probe_without_a_verdict_frees_its_place() {
    let now = Instant::now();
    let mut breaker = opened(now);
    let now = now + 100 * MS;
    let first = admitted(&mut breaker, now);
    let _second = admitted(&mut breaker, now);
    assert_eq!(refused(&mut breaker, now), PROBING);
    assert_eq!(breaker.finish(first, Verdict::None, now), None);
    assert_eq!(breaker.state(now), CircuitState::HalfOpen);
    admitted(&mut breaker, now);
    assert_eq!(refused(&mut breaker, now), PROBING);
}

#[test]
fn what_was_admitted_before_a_transition_has_no_say_after_it() {
    let now = Instant::now();
    let mut breaker = Breaker::new(policy());
    let late: Vec<_> = (0..4).map(|_| admitted(&mut breaker, now)).collect();
    for _ in 0..3 {
        run(&mut breaker, Verdict::Bad, now);
    }
    let now = now + 100 * MS;
    let _probe = admitted(&mut breaker, now);
    for (ticket, verdict) in
        late.into_iter()
            .zip([Verdict::Good, Verdict::Good, Verdict::Bad, Verdict::None])
    {
        assert_eq!(breaker.finish(ticket, verdict, now), None);
    }
    assert_eq!(breaker.state(now), CircuitState::HalfOpen);
    admitted(&mut breaker, now);
    assert_eq!(refused(&mut breaker, now), PROBING);
}

#[test]
fn events_that_failed_before_do_not_keep_it_open_for_others_but_a_handler_that_is_down_does() {
    let now = Instant::now();
    let mut breaker = opened(now);
    let now = now + 100 * MS;
    for _ in 1..DOUBTS {
        assert_eq!(run(&mut breaker, Verdict::Doubtful, now), None);
    }
    assert_eq!(run(&mut breaker, Verdict::Good, now), None);
    assert_eq!(
        run(&mut breaker, Verdict::Good, now),
        Some(Transition::Closed)
    );
    let mut breaker = opened(now);
    let now = now + 100 * MS;
    for _ in 1..DOUBTS {
        assert_eq!(run(&mut breaker, Verdict::Doubtful, now), None);
    }
    let change = run(&mut breaker, Verdict::Doubtful, now);
    assert_eq!(change, Some(Transition::Reopened));
}

#[test]
fn absurd_policies_are_bounded() {
    let now = Instant::now();
    let mut breaker = Breaker::new(CircuitPolicy {
        failures: 0,
        open_for: Duration::MAX,
        open_cap: Duration::MAX,
        probes: 0,
        successes: 0,
    });
    assert_eq!(
        run(&mut breaker, Verdict::Bad, now),
        Some(Transition::Opened)
    );
    assert_eq!(refused(&mut breaker, now), LONGEST);
    let now = now + LONGEST;
    assert_eq!(
        run(&mut breaker, Verdict::Good, now),
        Some(Transition::Closed)
    );
    let mut breaker = Breaker::new(CircuitPolicy {
        open_for: Duration::ZERO,
        open_cap: Duration::ZERO,
        ..policy()
    });
    for _ in 0..3 {
        run(&mut breaker, Verdict::Bad, now);
    }
    assert_eq!(refused(&mut breaker, now), SHORTEST);
}

#[derive(Clone, Debug)]
enum Step {
    Ask,
    Finish(usize, Verdict),
    Wait(u64),
    Back(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let verdict = prop_oneof![
        Just(Verdict::Good),
        Just(Verdict::Bad),
        Just(Verdict::Bad),
        Just(Verdict::None)
    ];
    prop_oneof![
        4 => Just(Step::Ask),
        4 => (any::<usize>(), verdict).prop_map(|(which, verdict)| Step::Finish(which, verdict)),
        2 => (0u64..200).prop_map(Step::Wait),
        1 => (0u64..500).prop_map(Step::Back),
    ]
}

proptest! {
    #[test]
    fn any_sequence_of_events_keeps_the_rules(
        failures in 0u32..4,
        open_for in 0u64..100,
        open_cap in 0u64..400,
        probes in 0u32..4,
        successes in 0u32..4,
        steps in proptest::collection::vec(step(), 1..400),
    ) {
        let policy = CircuitPolicy {
            failures,
            open_for: Duration::from_millis(open_for),
            open_cap: Duration::from_millis(open_cap),
            probes,
            successes,
        };
        let cap = policy.open_cap.max(SHORTEST);
        let mut breaker = Breaker::new(policy);
        // Room for the clock to go back.
        let mut now = Instant::now() + Duration::from_secs(3600);
        let mut running: Vec<(Ticket, bool)> = Vec::new();
        let mut probing = 0;
        let mut good_probes = 0;
        let mut in_a_row = 0;
        let mut open_length = None;
        let mut open = false;
        for step in steps {
            match step {
                Step::Wait(ms) => now += Duration::from_millis(ms),
                Step::Back(ms) => now -= Duration::from_millis(ms),
                Step::Ask => match breaker.admit(now) {
                    Passage::Run(ticket) => {
                        probing += u32::from(open);
                        prop_assert!(probing <= probes.max(1));
                        prop_assert_ne!(breaker.state(now), CircuitState::Open);
                        running.push((ticket, open));
                    }
                    Passage::Refused(wait) => {
                        prop_assert!(open);
                        prop_assert!(wait <= cap || probing == probes.max(1));
                    }
                },
                Step::Finish(which, verdict) => {
                    if running.is_empty() {
                        continue;
                    }
                    let (ticket, probe) = running.swap_remove(which % running.len());
                    let current = ticket.period == breaker.period;
                    if current && probe {
                        probing -= 1;
                        good_probes += u32::from(verdict == Verdict::Good);
                    } else if current {
                        in_a_row = match verdict {
                            Verdict::Good => 0,
                            Verdict::Bad | Verdict::Doubtful => in_a_row + 1,
                            Verdict::None => in_a_row,
                        };
                    }
                    let change = breaker.finish(ticket, verdict, now);
                    match change {
                        None => {}
                        Some(Transition::Opened) => {
                            prop_assert!(!open);
                            prop_assert_eq!(in_a_row, failures.max(1));
                            open = true;
                        }
                        Some(Transition::Reopened) => {
                            prop_assert!(open && probe && verdict == Verdict::Bad);
                        }
                        Some(Transition::Closed) => {
                            prop_assert!(open && probe);
                            prop_assert_eq!(good_probes, successes.max(1));
                            open = false;
                            open_length = None;
                        }
                    }
                    if change.is_some() {
                        (probing, good_probes, in_a_row) = (0, 0, 0);
                    }
                    if let (Some(Transition::Opened | Transition::Reopened), Phase::Open { length, .. }) =
                        (change, &breaker.phase)
                    {
                        prop_assert!(*length <= cap);
                        if let Some(before) = open_length {
                            prop_assert!(*length > before || *length == cap);
                        }
                        open_length = Some(*length);
                    }
                }
            }
            prop_assert_eq!(breaker.state(now) == CircuitState::Closed, !open);
        }
    }
}
