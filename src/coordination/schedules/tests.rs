//! The pure half: which ticks there are, and what is to be done when.

use super::plan::{Clockwork, LATE, MADE_UP, Missed, Plan};
use super::schedule::event_id;
use super::timing::{Timing, When, due};
use proptest::prelude::*;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

fn cron(expression: &str, zone: &str) -> Timing {
    let when = When {
        cron: Some(expression.into()),
        time_zone: zone.into(),
        ..When::default()
    };
    when.timing().unwrap()
}

fn refused(expression: &str, zone: &str) -> String {
    let when = When {
        cron: Some(expression.into()),
        time_zone: zone.into(),
        ..When::default()
    };
    when.timing().unwrap_err().to_string()
}

fn at(text: &str) -> u64 {
    let time: jiff::Timestamp = text.parse().unwrap();
    u64::try_from(time.as_millisecond()).unwrap()
}

/// The ticks after `from` until `until`, as their ids show them.
fn ticks(timing: &Timing, from: &str, until: &str) -> Vec<String> {
    let ticks = std::iter::successors(timing.next_after(at(from) - 1), |tick| {
        timing.next_after(*tick)
    });
    let ticks = ticks.take_while(|tick| *tick <= at(until));
    ticks
        .map(|tick| event_id("n", tick)[2..].to_owned())
        .collect()
}

fn clockwork(timing: &Timing, missed: Missed, jitter: u64) -> Clockwork<'_> {
    Clockwork {
        name: "n",
        timing,
        missed,
        jitter,
    }
}

#[test]
fn in_the_night_in_which_an_hour_is_missing_each_day_has_its_tick() {
    // Berlin, 2027-03-28: 02:00 is 03:00 at once.
    let nightly = cron("30 2 * * *", "Europe/Berlin");
    assert_eq!(
        ticks(&nightly, "2027-03-27T00:00:00Z", "2027-03-29T23:00:00Z"),
        [
            "2027-03-27T01:30:00Z",
            "2027-03-28T01:00:00Z",
            "2027-03-29T00:30:00Z"
        ]
    );
    // What ticks by the hour has one tick less.
    let hourly = cron("0 * * * *", "Europe/Berlin");
    let night = ticks(&hourly, "2027-03-27T23:00:00Z", "2027-03-28T21:59:59Z");
    assert_eq!(night.len(), 23);
    assert_eq!(
        night[..3],
        [
            "2027-03-27T23:00:00Z",
            "2027-03-28T00:00:00Z",
            "2027-03-28T01:00:00Z"
        ]
    );
    let quarters = cron("*/15 2 * * *", "Europe/Berlin");
    assert_eq!(
        ticks(&quarters, "2027-03-27T23:00:00Z", "2027-03-28T21:00:00Z").len(),
        0
    );
}

#[test]
fn in_the_night_that_has_an_hour_twice_nothing_named_ticks_twice() {
    // Berlin, 2026-10-25: 03:00 is 02:00 again.
    let nightly = cron("30 2 * * *", "Europe/Berlin");
    assert_eq!(
        ticks(&nightly, "2026-10-24T00:00:00Z", "2026-10-26T23:00:00Z"),
        [
            "2026-10-24T00:30:00Z",
            "2026-10-25T00:30:00Z",
            "2026-10-26T01:30:00Z"
        ]
    );
    let hourly = cron("0 * * * *", "Europe/Berlin");
    assert_eq!(
        ticks(&hourly, "2026-10-24T22:00:00Z", "2026-10-25T22:59:59Z").len(),
        25
    );
    let minutes = cron("* * * * *", "Europe/Berlin");
    assert_eq!(
        ticks(&minutes, "2026-10-24T22:00:00Z", "2026-10-25T22:59:59Z").len(),
        25 * 60
    );
    // Where the change is half an hour only.
    let howe = cron("45 1 * * *", "Australia/Lord_Howe");
    assert_eq!(
        ticks(&howe, "2026-04-01T00:00:00Z", "2026-04-11T00:00:00Z").len(),
        10
    );
}

#[test]
fn a_day_that_a_zone_left_out_is_left_out() {
    // Apia had no 2011-12-30.
    let daily = cron("0 12 * * *", "Pacific/Apia");
    assert_eq!(
        ticks(&daily, "2011-12-29T00:00:00Z", "2012-01-01T00:00:00Z"),
        [
            "2011-12-29T22:00:00Z",
            "2011-12-30T22:00:00Z",
            "2011-12-31T22:00:00Z"
        ]
    );
}

#[test]
fn expressions_are_what_people_know_and_others_are_refused() {
    let from = "2026-11-29T12:00:00Z";
    for (expression, next) in [
        ("0 0 1 1 *", "2027-01-01T00:00:00Z"),
        ("*/10 * * * * *", "2026-11-29T12:00:00Z"),
        ("0 9 * * MON-FRI", "2026-11-30T09:00:00Z"),
        ("0 0 L * *", "2026-11-30T00:00:00Z"),
        ("0 0 29 2 *", "2028-02-29T00:00:00Z"),
        ("@daily", "2026-11-30T00:00:00Z"),
    ] {
        let timing = cron(expression, "UTC");
        let next_tick = event_id("n", timing.next_after(at(from) - 1).unwrap());
        assert_eq!(next_tick[2..], *next, "{expression}");
    }
    for (expression, zone) in [
        ("", "UTC"),
        ("* * * *", "UTC"),
        ("61 * * * *", "UTC"),
        ("* * * * * * * *", "UTC"),
        ("ä * * * *", "UTC"),
        ("* * * * *", "Mars/Olympus"),
        ("* * * * *", "../../etc/passwd"),
        ("* * * * *", "/etc/localtime"),
        ("* * * * *", ""),
    ] {
        let said = refused(expression, zone);
        assert!(
            said.starts_with("cron: ") || said.starts_with("time_zone: "),
            "{said}"
        );
    }
    // It is found soon that it never ticks.
    assert_eq!(cron("0 0 30 2 *", "UTC").next_after(at(from)), None);
    assert_eq!(
        cron("* * * * * * 2020", "Europe/Berlin").next_after(at(from)),
        None
    );
}

#[test]
fn an_outage_is_made_up_for_as_the_schedule_says() {
    let second = Timing::Every(SECOND);
    let plan = |missed, pending, now| {
        clockwork(&second, missed, 0)
            .plan(pending, now)
            .map(|plan: Plan| {
                let fire = plan.fire.map(|fire| fire.at);
                let left = plan
                    .left_out
                    .map(|left| (left.count, left.first, left.last));
                (left, fire, plan.next.map(|next| next.at))
            })
    };
    let (pending, now) = (10 * SECOND, 14 * SECOND + 1);
    let left = |count, last| Some((count, pending, last));
    assert_eq!(plan(Missed::Once, pending, pending - 1), None);
    let on_time = Some((None, Some(pending), Some(pending + SECOND)));
    for missed in [Missed::Once, Missed::Skip, Missed::All] {
        assert_eq!(plan(missed, pending, pending), on_time, "{missed:?}");
    }
    let last = Some((left(4, 13 * SECOND), Some(14 * SECOND), Some(15 * SECOND)));
    assert_eq!(plan(Missed::Once, pending, now), last);
    assert_eq!(plan(Missed::Skip, pending, now), last);
    assert_eq!(plan(Missed::All, pending, now), on_time);
    // An hour.
    let hour = pending + HOUR;
    let all = plan(Missed::All, pending, hour).unwrap();
    assert_eq!(all.1, Some(hour - (MADE_UP - 1) * SECOND));
    assert_eq!(all.0.unwrap().0, 3601 - MADE_UP);
    // A daily one that is over a minute late.
    let daily = Timing::Every(DAY);
    let late = |late| {
        clockwork(&daily, Missed::Skip, 0)
            .plan(DAY, DAY + late)
            .unwrap()
    };
    assert_eq!(late(LATE).fire.map(|fire| fire.at), Some(DAY));
    let skipped = late(LATE + 1);
    assert_eq!((skipped.fire, skipped.left_out.unwrap().count), (None, 1));
    assert_eq!(skipped.next.unwrap().at, 2 * DAY);
    // Once is over then.
    let once = Timing::At(5 * SECOND);
    let plan = clockwork(&once, Missed::Once, 0)
        .plan(5 * SECOND, HOUR)
        .unwrap();
    assert_eq!(
        (plan.fire.unwrap().at, plan.next, plan.left_out),
        (5 * SECOND, None, None)
    );
}

fn timings() -> impl Strategy<Value = Timing> {
    let zones = prop::sample::select(vec![
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
        "America/Sao_Paulo",
    ]);
    let expressions = prop::sample::select(vec![
        "* * * * * *",
        "*/7 * * * * *",
        "* * * * *",
        "*/15 2 * * *",
        "30 2 * * *",
        "0 0 * * *",
        "15,45 1-3 * * *",
        "0 3 * * SUN",
        "0 0 L * *",
        "0 0 13 * FRI",
        "0 12 1 */3 *",
    ]);
    prop_oneof![
        (expressions, zones).prop_map(|(expression, zone)| cron(expression, zone)),
        (SECOND..3 * DAY).prop_map(Timing::Every),
        (2000 * DAY..30_000 * DAY).prop_map(Timing::At),
    ]
}

/// Times around the changes of the clock, more than others.
fn times() -> impl Strategy<Value = u64> {
    let near = |text: &'static str| (at(text) - DAY)..(at(text) + DAY);
    prop_oneof![
        near("2027-03-28T01:00:00Z"),
        near("2026-10-25T01:00:00Z"),
        near("2027-03-14T07:00:00Z"),
        near("2026-11-01T06:00:00Z"),
        near("2026-10-03T15:30:00Z"),
        8000 * DAY..25_000 * DAY,
    ]
}

fn missed() -> impl Strategy<Value = Missed> {
    prop::sample::select(vec![Missed::Skip, Missed::Once, Missed::All])
}

proptest! {
    #[test]
    fn ticks_rise_and_none_lies_between(timing in timings(), from in times(), at in 0..10_000_u64) {
        let Some(next) = timing.next_after(from) else { return Ok(()) };
        prop_assert!(next > from);
        // From anywhere before it, it is the next one.
        let between = from + (next - from - 1) * at / 10_000;
        prop_assert_eq!(timing.next_after(between), Some(next));
        prop_assert_eq!(timing.next_after(next - 1), Some(next));
        if let Some(then) = timing.next_after(next) {
            prop_assert!(then > next);
        }
    }

    #[test]
    fn the_last_tick_is_the_last(timing in timings(), from in times(), ahead in 0..40 * DAY) {
        let Some(first) = timing.next_after(from) else { return Ok(()) };
        let until = first + ahead;
        let last = timing.last_until(first, until);
        prop_assert!((first..=until).contains(&last));
        prop_assert!(timing.next_after(last).is_none_or(|next| next > until));
        prop_assert_eq!(timing.next_after(last - 1), Some(last));
    }

    #[test]
    fn an_event_is_due_after_its_tick_and_before_the_next(
        timing in timings(), from in times(), jitter in 0..DAY,
    ) {
        let Some(tick) = timing.next_after(from) else { return Ok(()) };
        let due = |tick| due(&timing, "n", jitter, tick);
        prop_assert!(due(tick) >= tick && due(tick) <= tick + jitter);
        prop_assert_eq!(due(tick), due(tick));
        if let Some(next) = timing.next_after(tick) {
            prop_assert!(due(tick) < next);
        }
    }

    /// Whoever looks whenever: each tick is stored or told as left out, once, in order.
    #[test]
    fn each_tick_is_stored_or_left_out_once(
        timing in timings(), missed in missed(), jitter in prop_oneof![Just(0), 0..HOUR],
        from in times(), pauses in prop::collection::vec(0..5 * MINUTE, 1..20),
    ) {
        let work = clockwork(&timing, missed, jitter);
        let Some(first) = work.after(from) else { return Ok(()) };
        let (mut now, mut pending) = (first.due, Some(first.at));
        let mut stored = Vec::new();
        let mut left_out = 0;
        for pause in pauses {
            now += pause;
            let mut steps = 0;
            while let Some(plan) = pending.and_then(|tick| work.plan(tick, now)) {
                if let Some(left) = plan.left_out {
                    prop_assert_eq!(left.first, pending.unwrap());
                    prop_assert!(!left.is_more);
                    left_out += left.count;
                }
                if let Some(fire) = plan.fire {
                    prop_assert!(fire.due <= now && fire.at >= pending.unwrap());
                    stored.push(fire.at);
                }
                pending = plan.next.map(|next| next.at);
                steps += 1;
                prop_assert!(steps <= MADE_UP);
                if missed != Missed::All {
                    prop_assert!(pending.and_then(|tick| work.plan(tick, now)).is_none());
                }
            }
        }
        prop_assert!(stored.is_sorted_by(|a, b| a < b));
        let ticks = std::iter::successors(Some(first.at), |tick| timing.next_after(*tick));
        let ticks = ticks.take_while(|tick| pending.is_none_or(|pending| *tick < pending));
        prop_assert_eq!(ticks.count() as u64, stored.len() as u64 + left_out);
    }

    #[test]
    fn no_expression_panics(expression in "[0-9*/,#?LWMONJAN@a-z +-]{0,40}", from in times()) {
        let when = When { cron: Some(expression), time_zone: "Europe/Berlin".into(), ..When::default() };
        if let Ok(timing) = when.timing() {
            timing.next_after(from);
        }
    }
}
