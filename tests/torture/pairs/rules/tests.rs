//! Each rule turns red on a history that breaks it.

use super::super::parts::{Numbered, Pair, Part};
use super::super::seen::{Answer, Change, End, How, Life, Run, Seen};
use super::judge;
use convoke::protocol::event::EntryId;
use std::collections::HashSet;
use std::time::Duration;

const MS: u64 = 1_000_000;

/// The nth event of the pair of these parts.
fn event(parts: [Part; 2], nth: usize) -> Numbered {
    let pair = Pair::all().find(|pair| pair.parts() == parts).unwrap();
    let mut of_pair = (0..).map(Numbered).filter(|event| event.pair() == pair);
    of_pair.nth(nth).unwrap()
}

/// Events that ran one after the other in one process, each well and as it should be.
struct Story {
    seen: Seen,
    now: u64,
}

impl Story {
    fn new() -> Self {
        let mut seen = Seen::default();
        let life = Life {
            started: 1,
            ..Life::default()
        };
        seen.lives.insert("w-1/1".into(), life.clone());
        seen.lives.insert("w-2/2".into(), life);
        Self { seen, now: MS }
    }

    fn run(&mut self, event: Numbered) -> &mut Run {
        self.now += MS;
        let number = self.seen.runs.len() as u64;
        let run = Run {
            event,
            process: "w-1/1".into(),
            number,
            entry: EntryId { ms: 1, seq: number },
            attempt: 1,
            deliveries: 1,
            began: self.now,
            draining: false,
            end: Some(End {
                ns: self.now + MS / 2,
                how: How::Ok,
                took: Duration::from_micros(500),
            }),
        };
        let answer = Answer {
            status: "ok".into(),
            made_by: (run.process.clone(), number),
            ns: self.now + MS,
        };
        self.seen.published.insert(event, "ok".into());
        self.seen.answers.entry(event).or_default().push(answer);
        if !event.pair().has(Part::Cache) {
            self.seen.effects.insert(event.0, 1);
        }
        if event.pair().has(Part::Layer) {
            self.seen.layers.push(run.clone());
        }
        self.seen.runs.push(run);
        self.seen.runs.last_mut().unwrap()
    }

    fn answer(&mut self, event: Numbered) -> &mut Answer {
        self.seen
            .answers
            .get_mut(&event)
            .unwrap()
            .last_mut()
            .unwrap()
    }

    fn life(&mut self) -> &mut Life {
        self.seen.lives.get_mut("w-1/1").unwrap()
    }

    fn change(&mut self, parts: [Part; 2], opened: bool) {
        self.now += MS;
        self.seen.changes.push(Change {
            process: "w-1/1".into(),
            kind: event(parts, 0).pair().kind(),
            opened,
            ns: self.now,
        });
    }
}

use Part::{Cache, Circuit, Concurrency, Layer, Ordered, Rate, Timeout};

/// What is wrong with such a story, which is right except for what is done to it.
#[track_caller]
fn breaks(said: &str, tell: impl FnOnce(&mut Story)) {
    let mut story = Story::new();
    tell(&mut story);
    let (_, problems) = judge(&story.seen);
    let told: HashSet<&String> = problems.told().iter().collect();
    assert!(
        !told.is_empty() && told.iter().all(|told| told.contains(said)),
        "{said}: {told:#?}"
    );
}

#[test]
fn what_is_lawful_is_found_so() {
    let mut story = Story::new();
    for pair in Pair::all() {
        let events = (0..).map(Numbered).filter(|event| event.pair() == pair);
        for event in events.take(12) {
            story.run(event);
        }
    }
    let (counts, problems) = judge(&story.seen);
    assert_eq!(problems.told(), [""; 0]);
    assert_eq!(counts.acknowledged, 22 * 12);
}

#[test]
fn outcomes_are_judged() {
    let one = event([Ordered, Timeout], 0);
    breaks("is lost", |story| {
        story.run(one);
        story.seen.answers.clear();
    });
    breaks("has 2 answers", |story| {
        story.run(one);
        let again = story.answer(one).clone();
        story.seen.answers.get_mut(&one).unwrap().push(again);
    });
    breaks("2 effects", |story| {
        story.run(one);
        story.seen.effects.insert(one.0, 2);
    });
    breaks("is dead", |story| story.seen.dead.push(one.id()));
    breaks("one delivery was run twice", |story| {
        story.run(one);
        let mut again = story.seen.runs[0].clone();
        (again.process, again.began) = ("w-2/2".into(), 9 * MS);
        story.seen.runs.push(again);
    });
    breaks("none failed before", |story| {
        story.run(event([Ordered, Layer], 0));
        let mut again = story.seen.runs[0].clone();
        (again.attempt, again.entry.seq) = (2, 7);
        story.seen.layers.push(Run {
            process: "w-2/2".into(),
            ..again.clone()
        });
        (again.process, again.number) = ("w-2/2".into(), 7);
        story.seen.runs.push(again);
    });
    breaks("while its worker drained", |story| {
        story.life().told = Some(1);
        story.now = 3_000 * MS;
        story.run(one).draining = true;
    });
    breaks("what others had begun before", |story| {
        for at in 0..5 {
            story.run(event([Ordered, Timeout], at));
            let mut taken = story.seen.runs.last().unwrap().clone();
            (taken.process, taken.deliveries, taken.began) = ("w-2/2".into(), 2, 1);
            story.seen.runs.push(taken);
        }
    });
}

#[test]
fn results_are_judged() {
    let (one, other) = (event([Cache, Layer], 0), event([Cache, Layer], 1));
    let equal = event([Cache, Layer], 12);
    breaks("no run made its result", |story| {
        story.run(one);
        story.answer(one).made_by.1 = 7;
    });
    breaks("did not end well", |story| {
        story.run(one).end.as_mut().unwrap().how = How::Failed;
    });
    breaks("of another payload", |story| {
        story.run(one);
        story.run(other);
        story.answer(other).made_by.1 = 0;
    });
    breaks("is another event's", |story| {
        // Of another type, with the same payload.
        let of_other = event([Cache, Timeout], 0);
        story.run(one);
        story.run(of_other);
        story.answer(of_other).made_by.1 = 0;
    });
    breaks("its result is too old", |story| {
        story.run(one);
        story.now += 5_000 * MS;
        story.run(equal);
        story.answer(equal).made_by.1 = 0;
        story.answer(equal).ns = 90_000 * MS;
    });
    breaks("its result was kept", |story| {
        story.run(one);
        story.now += 1_000 * MS;
        story.run(equal);
    });
    breaks("took too long", |story| {
        let timed = event([Cache, Timeout], 0);
        story.run(timed).end.as_mut().unwrap().took = Duration::from_millis(301);
    });
}

#[test]
fn admission_is_judged() {
    let nth = |parts| move |nth| event(parts, nth);
    breaks("2 at a time", |story| {
        let event = nth([Ordered, Timeout]);
        story.run(event(0)).end.as_mut().unwrap().ns += 9 * MS;
        story.run(event(5));
    });
    breaks("out of order", |story| {
        let event = nth([Ordered, Timeout]);
        story.run(event(0)).entry.seq = 9;
        story.run(event(5));
    });
    breaks("3 runs of pair.concurrency_timeout", |story| {
        let event = nth([Concurrency, Timeout]);
        for at in 0..3 {
            story.run(event(at)).end.as_mut().unwrap().ns += 9 * MS;
        }
    });
    breaks("20 and one in", |story| {
        let event = nth([Rate, Timeout]);
        for at in 0..21 {
            let process = ["w-1/1", "w-2/2"][at % 2];
            let event = event(2 * at);
            story.run(event).process = process.into();
            story.answer(event).made_by.0 = process.into();
        }
    });
    breaks("it ran for", |story| {
        let late = story.run(event([Rate, Timeout], 0));
        late.end.as_mut().unwrap().ns += 5_000 * MS;
    });
    let parts = [Circuit, Timeout];
    let fail = |story: &mut Story, times: u64| {
        for at in 0..times {
            let event = event(parts, at as usize);
            story.run(event).end.as_mut().unwrap().how = How::Failed;
            // The next try is the one that answers.
            let mut again = story.seen.runs.last().unwrap().clone();
            (again.attempt, again.entry.seq, again.number) = (2, 100 + at, 100 + at);
            again.process = "w-2/2".into();
            again.end.as_mut().unwrap().how = How::Ok;
            story.answer(event).made_by = ("w-2/2".into(), 100 + at);
            story.seen.runs.push(again);
        }
    };
    breaks("2 bad runs", |story| {
        fail(story, 2);
        story.change(parts, true);
    });
    breaks("3 bad runs", |story| {
        fail(story, 3);
        story.change(parts, true);
        story.change(parts, true);
    });
    breaks("opened: false", |story| {
        fail(story, 1);
        story.change(parts, false);
    });
    let layered = event([Rate, Layer], 0);
    breaks("without its layer", |story| {
        story.run(layered);
        story.seen.layers.clear();
    });
    breaks("called twice", |story| {
        story.run(layered);
        let call = story.seen.layers[0].clone();
        story.seen.layers.push(call);
    });
    breaks("not ready", |story| {
        story.seen.unready.push("a call".into());
    });
}
