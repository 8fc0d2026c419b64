//! Events for later: whatever is published comes out once, in the order in which it is due, and not before.

use crate::run::Scenario;
use crate::world::{BEGIN, DAY, HOUR, SECOND, Tail, World};
use convoke::client::publish::{Outgoing, Published};
use convoke::client::{Client, ClientOptions};
use convoke::protocol::keys::StreamKeys;
use convoke::streams::delay::{Promoted, decode_member, promote};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

/// Bytes of a member at the most.
const MOST: usize = 1 << 20;

#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    Now,
    /// In this many seconds.
    After(u32),
    /// This many seconds after the case began, or before that.
    At(i32),
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Publish {
        id: u8,
        when: When,
        dedup: bool,
    },
    Promote {
        most: u8,
    },
    /// Two promoters at once.
    Both {
        most: u8,
    },
}

use Step::*;

/// Where an id's first event is: `None` on the stream, else when it is due.
struct First {
    due: Option<u64>,
    /// Until when it is remembered.
    until: u64,
}

pub(crate) struct Scene {
    client: Client,
    route: StreamKeys,
    window: u64,
    /// Events that wait: when each is due, and its number.
    queue: Vec<(u64, u64)>,
    /// The numbers of those that came out since the last check.
    out: Vec<u64>,
    firsts: BTreeMap<u8, First>,
    published: u64,
    events: Tail,
}

fn number_in<'a>(fields: impl Iterator<Item = &'a [u8]>) -> u64 {
    let words: Vec<&[u8]> = fields.collect();
    let mut pairs = words.chunks(2);
    let found = pairs.find(|pair| pair[0] == b"n").unwrap();
    std::str::from_utf8(found[1]).unwrap().parse().unwrap()
}

impl Scene {
    /// How long an id is remembered whose event is due then.
    fn until(&self, due: Option<u64>, now: u64) -> u64 {
        due.unwrap_or(now).max(now) + self.window
    }

    /// What publishing must answer: whether it is a duplicate, and where the first one is.
    fn publish(&mut self, id: u8, dedup: bool, due: Option<u64>, now: u64) -> (bool, Option<u64>) {
        if dedup {
            // It is remembered through the last millisecond.
            self.firsts
                .retain(|known, first| *known != id || first.until >= now);
            if let Some(first) = self.firsts.get(&id) {
                let due = first.due;
                let until = self.until(due, now);
                self.firsts.insert(id, First { due, until });
                return (true, due);
            }
            let until = self.until(due, now);
            self.firsts.insert(id, First { due, until });
        }
        match due {
            Some(due) => self.queue.push((due, self.published)),
            None => self.out.push(self.published),
        }
        (false, due)
    }

    /// Publishes until it is stored. After a restart of the server a first try tells that it may be; then
    /// nothing was, since nobody was there.
    async fn stored(&self, world: &mut World, event: &Outgoing) -> Published {
        loop {
            match self.client.publish(event).await {
                Ok(published) => return published,
                Err(error) if world.restarts > 0 => drop(error),
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn promoted(&self, world: &World, most: u8) -> Promoted {
        let mut connection = world.connector.pooled().await.unwrap();
        let promoted = promote(&mut connection, &self.route, most.into(), MOST).await;
        match promoted {
            Ok(promoted) => promoted,
            // The server was started again since: a worker calls again.
            Err(_) => {
                world.connector.forget_pooled();
                let mut connection = world.connector.pooled().await.unwrap();
                promote(&mut connection, &self.route, most.into(), MOST)
                    .await
                    .unwrap()
            }
        }
    }
}

impl Scenario for Scene {
    const NAME: &'static str = "delays";
    const SHARE: u64 = 25;
    const CLOCK: &'static [i64] = &[
        1,
        1,
        -1,
        -1,
        SECOND,
        SECOND,
        -SECOND,
        60 * SECOND,
        60 * SECOND,
        -60 * SECOND,
        HOUR,
        HOUR,
        -HOUR,
        HOUR + 1,
        DAY,
        -DAY,
    ];
    type Step = Step;

    fn steps() -> BoxedStrategy<Step> {
        let seconds = prop::sample::select(&[0u32, 1, 1, 2, 60, 60, 3600, 7200][..]);
        let at = prop::sample::select(&[-3600i32, 0, 1, 60, 3600, 86_400][..]);
        let when = prop_oneof![
            1 => Just(When::Now),
            4 => seconds.prop_map(When::After),
            1 => at.prop_map(When::At),
        ];
        let most = prop_oneof![Just(1u8), Just(2), Just(100)];
        prop_oneof![
            5 => (0..6u8, when, any::<bool>())
                .prop_map(|(id, when, dedup)| Publish { id, when, dedup }),
            3 => most.clone().prop_map(|most| Promote { most }),
            1 => most.prop_map(|most| Both { most }),
        ]
        .boxed()
    }

    fn begin(world: &World) -> Self {
        let options = ClientOptions::default();
        let window = options.dedup_window.as_millis() as u64;
        let keys = world.keys.clone();
        Self {
            route: keys.route("image", 0),
            client: Client::new(world.connector.clone(), keys, options).unwrap(),
            window,
            queue: Vec::new(),
            out: Vec::new(),
            firsts: BTreeMap::new(),
            published: 0,
            events: Tail::default(),
        }
    }

    async fn take(&mut self, world: &mut World, step: &Step, lost: bool) {
        let times = 1 + u8::from(lost);
        match *step {
            Publish { id, when, dedup } => {
                self.published += 1;
                let number = self.published.to_string();
                let event = Outgoing::new("image.made", &7).field("n", number);
                let event = event.id(format!("e-{id}")).dedup(dedup);
                let at = |seconds: i32| BEGIN.saturating_add_signed(i64::from(seconds) * SECOND);
                let event = match when {
                    When::Now => event,
                    When::After(seconds) => event.delay(Duration::from_secs(seconds.into())),
                    When::At(seconds) => event.at(at(seconds)),
                };
                let due = match when {
                    When::Now => None,
                    When::After(seconds) => Some(world.now + u64::from(seconds) * 1000),
                    When::At(seconds) => Some(at(seconds)),
                };
                for _ in 0..times {
                    let published = self.stored(world, &event).await;
                    let expected = self.publish(id, dedup, due, world.now);
                    let is = match published {
                        Published::Stored { duplicate, .. } => (duplicate, None),
                        Published::Scheduled { due_ms, duplicate } => (duplicate, Some(due_ms)),
                    };
                    assert_eq!(is, expected, "{step:?}");
                }
            }
            Promote { most } => {
                for _ in 0..times {
                    let promoted = self.promoted(world, most).await;
                    self.came_out(world, promoted.moved, u64::from(most)).await;
                    assert_eq!(promoted.dead, 0);
                    let next = self.queue.iter().map(|(due, _)| *due).min();
                    assert_eq!(promoted.next_due_ms, next);
                }
            }
            Both { most } => {
                let (a, b) = tokio::join!(self.promoted(world, most), self.promoted(world, most));
                let moved = a.moved + b.moved;
                self.came_out(world, moved, 2 * u64::from(most)).await;
            }
        }
    }

    async fn check(&mut self, world: &mut World) {
        let mut pipe = redis::pipe();
        let queue = pipe.cmd("ZRANGE").arg(&self.route.delayed);
        queue.arg(&["0", "-1", "WITHSCORES"]);
        self.events.ask(&mut pipe, &self.route.events);
        let (waiting, events): (Vec<(Vec<u8>, u64)>, redis::Value) = world.look(&pipe).await;
        let mut waits: Vec<(u64, u64)> = waiting
            .iter()
            .map(|(member, due)| {
                let (_, fields) = decode_member(member, MOST).unwrap();
                (*due, number_in(fields.iter().map(Vec::as_slice)))
            })
            .collect();
        waits.sort_unstable();
        self.queue.sort_unstable();
        assert_eq!(waits, self.queue, "what waits");
        let entries = self.events.read(events);
        let out: Vec<u64> = entries
            .iter()
            .map(|entry| number_in(entry.words()))
            .collect();
        assert_eq!(out, self.out, "what came out");
        self.out.clear();
    }
}

impl Scene {
    /// That this many came out: those that are due, the earliest first.
    async fn came_out(&mut self, world: &mut World, moved: u64, most: u64) {
        let due = self.queue.iter().filter(|(due, _)| *due <= world.now);
        assert_eq!(moved, most.min(due.count() as u64), "came out");
        let mut pipe = redis::pipe();
        self.events.ask(&mut pipe, &self.route.events);
        let (events,): (redis::Value,) = world.look(&pipe).await;
        // What was published at once, and not promoted, is among them only if it was before this step.
        let entries = self.events.read(events);
        assert_eq!(entries.len() as u64, moved);
        let mut last = 0;
        for entry in &entries {
            let number = number_in(entry.words());
            let at = self.queue.iter().position(|(_, waits)| *waits == number);
            let (due, _) = self.queue.remove(at.expect("it did not wait"));
            assert!(due <= world.now, "before its time");
            assert!(last <= due, "out of order");
            last = due;
        }
        let left = self.queue.iter().map(|(due, _)| *due).min();
        assert!(
            left.is_none_or(|left| last <= left),
            "an earlier one was left"
        );
    }
}
