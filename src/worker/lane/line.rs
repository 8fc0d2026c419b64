//! The line of subjects of a lane whose partition this worker owns.
//!
//! Of the events with one subject one at a time is under way, in the order of their entries: from where it starts until
//! what became of it is *committed*. What is behind it waits here, in memory, pending with this consumer. An event that is
//! to be tried again waits here too, and keeps its place: so nothing of its subject passes it, and other subjects go on.
//! Events without a subject have no order; they wait here only for their next try.
//!
//! Whoever loses sight of an entry (its outcome was refused, somebody else claimed it) leaves its subject closed: until it
//! is in hand again, or a look through all that is pending has not found it.

use crate::connect::clock::NEVER;
use crate::protocol::event::{EntryId, Event};
use crate::streams::commit::Receipt;
use crate::streams::fence::Fence;
use crate::streams::hold::Held;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Events of a partition that wait at the most before it is not read.
const MOST: usize = 1024;
/// And their bytes.
const BYTES: usize = 16 << 20;

/// An event of the line.
pub(super) struct Lined {
    pub(super) receipt: Receipt,
    pub(super) event: Event,
}

impl Lined {
    fn entry(&self) -> EntryId {
        self.receipt.entry
    }

    fn size(&self) -> usize {
        self.event.entry().size()
    }

    fn subject(&self) -> Option<&str> {
        self.event.subject().filter(|subject| !subject.is_empty())
    }
}

/// Who is under way of a subject, and who waits behind it.
struct Place {
    first: EntryId,
    behind: VecDeque<Lined>,
}

/// See the module.
pub(super) struct Line {
    fence: Arc<Fence>,
    subjects: HashMap<Arc<str>, Place>,
    /// The subjects of what is under way.
    busy: HashMap<EntryId, Arc<str>>,
    /// What may start, since what was before it has ended.
    woken: VecDeque<Lined>,
    /// What waits for its next try.
    held: BTreeMap<(Instant, EntryId), Lined>,
    /// The same while that is noted on the server; and when it is due.
    noting: HashMap<Receipt, (Lined, Instant)>,
    /// What is noted of entries that are in hand.
    notes: HashMap<EntryId, Held>,
    /// What was under way and is out of sight.
    lost: HashSet<EntryId>,
    /// What of them is in hand again, and did not come yet.
    found: HashSet<EntryId>,
    /// What of them the look which is under way has not found yet.
    sought: HashSet<EntryId>,
    /// All that is pending before that one is in hand, while somebody looks.
    reach: EntryId,
    /// How many entries have left the lane's hands since the last read began.
    pub(super) dropped: usize,
    waiting: usize,
    bytes: usize,
    full: bool,
}

impl Line {
    pub(super) fn new(fence: Arc<Fence>) -> Self {
        Self {
            fence,
            subjects: HashMap::new(),
            busy: HashMap::new(),
            woken: VecDeque::new(),
            held: BTreeMap::new(),
            noting: HashMap::new(),
            notes: HashMap::new(),
            lost: HashSet::new(),
            found: HashSet::new(),
            sought: HashSet::new(),
            reach: EntryId::default(),
            dropped: 0,
            waiting: 0,
            bytes: 0,
            full: false,
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    /// Whether too much waits: the partition is not read until half of it is gone.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    fn came(&mut self, size: usize) {
        self.waiting += 1;
        self.bytes += size;
        self.full |= self.waiting >= MOST || self.bytes >= BYTES;
    }

    fn went(&mut self, size: usize) {
        self.waiting -= 1;
        self.bytes -= size;
        self.full &= self.waiting > MOST / 2 || self.bytes > BYTES / 2;
    }

    /// How often an entry was delivered since it was last known that it kills nobody.
    pub(super) fn tries(&self, receipt: &Receipt) -> u32 {
        let noted = self.notes.get(&receipt.entry);
        let before = noted.map_or(0, |held| held.deliveries);
        receipt.deliveries.saturating_sub(before).max(1)
    }

    /// An event was read: it gets its place, and comes back if it may start now.
    pub(super) fn comes(&mut self, lined: Lined, now: Instant, server_now: u64) -> Option<Lined> {
        let entry = lined.entry();
        let was_lost = self.lost.remove(&entry) | self.found.remove(&entry);
        if let Some(subject) = lined.subject() {
            match self.subjects.get_mut(subject) {
                None => {
                    let subject: Arc<str> = subject.into();
                    self.busy.insert(entry, subject.clone());
                    let behind = VecDeque::new();
                    let place = Place {
                        first: entry,
                        behind,
                    };
                    self.subjects.insert(subject, place);
                }
                Some(place) if place.first == entry && was_lost => {}
                // The same entry may be under way still, as an earlier delivery.
                Some(place) => {
                    let size = lined.size();
                    let at = place
                        .behind
                        .partition_point(|before| before.entry() <= entry);
                    place.behind.insert(at, lined);
                    self.came(size);
                    return None;
                }
            }
        }
        self.unless_held(lined, now, server_now)
    }

    /// What is to be noted of one that came and waits, where it was taken over: it has not begun, so its deliveries up to
    /// now tell nothing of whether it kills its worker.
    pub(super) fn waits_unbegun(&mut self, receipt: &Receipt, attempt: u32) -> Option<Held> {
        if self.tries(receipt) <= 1 {
            return None;
        }
        let held = self.notes.entry(receipt.entry).or_insert(Held {
            attempt,
            due: 0,
            deliveries: 0,
            code: String::new(),
            message: String::new(),
        });
        held.deliveries = receipt.deliveries;
        Some(held.clone())
    }

    /// An event that has its place already is tried as often as is noted of it.
    pub(super) fn again(&self, event: &mut Event) {
        if let Some(held) = self.notes.get(&event.entry_id()) {
            event.tried(held.attempt);
        }
    }

    fn unless_held(&mut self, mut lined: Lined, now: Instant, server_now: u64) -> Option<Lined> {
        self.again(&mut lined.event);
        let noted = self.notes.get(&lined.entry());
        let wait = noted.map_or(0, |held| held.due.saturating_sub(server_now));
        if wait == 0 {
            return Some(lined);
        }
        let due = now + Duration::from_millis(wait).min(NEVER);
        self.came(lined.size());
        self.held.insert((due, lined.entry()), lined);
        None
    }

    /// The next one that may start now. While somebody looks, none behind what may not be in hand.
    pub(super) fn next(&mut self, now: Instant, server_now: u64, looks: bool) -> Option<Lined> {
        if let Some(first) = self.held.first_entry()
            && first.key().0 <= now
        {
            let lined = first.remove();
            self.went(lined.size());
            return Some(lined);
        }
        while let Some(next) = self.woken.front() {
            if looks && !self.has_all_before(next.entry()) {
                return None;
            }
            let lined = self.woken.pop_front()?;
            self.went(lined.size());
            if let Some(lined) = self.unless_held(lined, now, server_now) {
                return Some(lined);
            }
        }
        None
    }

    /// Whether one may start now, as far as is known without a look.
    pub(super) fn has_next(&self, now: Instant) -> bool {
        !self.woken.is_empty() || self.next_due().is_some_and(|due| due <= now)
    }

    /// When the next one is due that waits for its next try.
    pub(super) fn next_due(&self) -> Option<Instant> {
        Some(self.held.first_key_value()?.0.0)
    }

    /// An event whose turn it is waits until then, and nothing is noted of that.
    pub(super) fn waits(&mut self, lined: Lined, due: Instant) {
        self.came(lined.size());
        self.held.insert((due, lined.entry()), lined);
    }

    /// An event that was under way is to be tried again then: that is being noted.
    pub(super) fn holds(&mut self, mut lined: Lined, due: Instant, held: Held) {
        lined.event.tried(held.attempt);
        self.notes.insert(lined.entry(), held);
        self.came(lined.size());
        self.noting.insert(lined.receipt, (lined, due));
    }

    /// Notes that it was noted, or cannot be: it waits for its time.
    pub(super) fn noted(&mut self, receipt: &Receipt) {
        if let Some((lined, due)) = self.noting.remove(receipt) {
            self.held.insert((due, lined.entry()), lined);
        }
    }

    /// Drops it, since it is somebody else's.
    pub(super) fn not_noted(&mut self, receipt: &Receipt) {
        if let Some((lined, _)) = self.noting.remove(receipt) {
            self.went(lined.size());
        }
    }

    /// Whether anything is being noted.
    pub(super) fn is_noting(&self) -> bool {
        !self.noting.is_empty()
    }

    /// An entry was settled: the next one of its subject may start.
    pub(super) fn ended(&mut self, entry: EntryId) {
        self.notes.remove(&entry);
        self.fence.forgets(entry);
        self.lost.remove(&entry);
        self.found.remove(&entry);
        let Some(subject) = self.busy.remove(&entry) else {
            return;
        };
        let Some(place) = self.subjects.get_mut(&subject) else {
            return;
        };
        match place.behind.pop_front() {
            None => {
                self.subjects.remove(&subject);
            }
            Some(next) => {
                place.first = next.entry();
                self.busy.insert(next.entry(), subject);
                self.woken.push_back(next);
            }
        }
    }

    /// An entry was not settled, and is out of sight: nothing of its subject starts until it is found, if it was under way
    /// (which it says). Of one that waited that is up to who looks for it.
    pub(super) fn loses(&mut self, entry: EntryId) -> bool {
        let place = self.busy.get(&entry);
        let place = place.and_then(|subject| self.subjects.get_mut(subject));
        let is_it = |next: &Lined| next.entry() == entry;
        let was_under_way = place.is_some();
        match place {
            // It was taken again meanwhile.
            Some(place) if place.behind.front().is_some_and(is_it) => {
                self.woken.extend(place.behind.pop_front());
            }
            _ => {
                self.found.remove(&entry);
                self.lost.insert(entry);
            }
        }
        was_under_way
    }

    /// How many are out of sight.
    pub(super) fn out_of_sight(&self) -> usize {
        self.lost.len()
    }

    /// Somebody is to look through all that is pending, and does nothing else yet.
    pub(super) fn is_to_look(&mut self) {
        self.reach = EntryId::default();
    }

    /// Somebody lists all that is pending from its beginning.
    pub(super) fn looks(&mut self) {
        self.sought.clone_from(&self.lost);
    }

    /// Notes what of all that is pending was taken, and what is noted of it.
    pub(super) fn took(
        &mut self,
        entries: impl Iterator<Item = EntryId>,
        notes: HashMap<EntryId, Held>,
    ) {
        for entry in entries {
            self.sought.remove(&entry);
            if self.lost.remove(&entry) {
                self.found.insert(entry);
            }
        }
        self.notes.extend(notes);
    }

    /// All that is pending before that entry is in hand.
    pub(super) fn has_looked_to(&mut self, next: EntryId) {
        self.reach = self.reach.max(next);
    }

    /// All that is pending is in hand: what was not found is done with.
    pub(super) fn has_looked(&mut self) {
        for entry in std::mem::take(&mut self.sought) {
            if self.lost.contains(&entry) {
                self.ended(entry);
            }
        }
    }

    /// Whether all that is older than that entry is in hand, while somebody looks.
    pub(super) fn has_all_before(&self, entry: EntryId) -> bool {
        entry < self.reach
    }

    /// Whether something in hand waits for what a look through all that is pending has yet to find.
    pub(super) fn waits_for_a_look(&self) -> bool {
        let first = self.woken.front();
        !self.lost.is_empty() || first.is_some_and(|next| !self.has_all_before(next.entry()))
    }

    /// Takes out those that wait.
    pub(super) fn take_those(&mut self, those: impl Fn(&Lined) -> bool) -> Vec<Lined> {
        let mut taken: Vec<Lined> = Vec::new();
        let held = self.held.extract_if(.., |_, lined| those(lined));
        taken.extend(held.map(|(_, lined)| lined));
        let behind = self.subjects.values_mut().map(|place| &mut place.behind);
        for queue in behind.chain([&mut self.woken]) {
            if queue.iter().any(&those) {
                for lined in std::mem::take(queue) {
                    match those(&lined) {
                        true => taken.push(lined),
                        false => queue.push_back(lined),
                    }
                }
            }
        }
        for lined in &taken {
            self.went(lined.size());
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_util::sync::CancellationToken;

    fn line() -> Line {
        let fence = Fence::new("fence", 1, "held", CancellationToken::new());
        Line::new(Arc::new(fence))
    }

    fn id(ms: u64) -> EntryId {
        EntryId { ms, seq: 0 }
    }

    fn event(ms: u64, subject: Option<&str>) -> Lined {
        let mut fields = vec![b"type".to_vec(), b"a.b".to_vec()];
        if let Some(subject) = subject {
            fields.extend([b"subject".to_vec(), subject.into()]);
        }
        let entry = crate::protocol::event::Entry::new(id(ms), fields);
        let keys = crate::protocol::keys::Keys::new("cb").unwrap();
        let event = Event::parse(entry, &Default::default(), &keys, "cb:events:a").unwrap();
        Lined {
            receipt: Receipt {
                stream: 0,
                entry: id(ms),
                deliveries: 1,
                claims: 0,
                since: Instant::now(),
            },
            event,
        }
    }

    fn note(attempt: u32, due: u64) -> Held {
        Held {
            attempt,
            due,
            deliveries: 1,
            code: "internal".into(),
            message: String::new(),
        }
    }

    /// Whether it may start at once.
    fn starts(line: &mut Line, ms: u64, subject: &str) -> bool {
        let lined = event(ms, Some(subject));
        line.comes(lined, Instant::now(), 0).is_some()
    }

    fn next(line: &mut Line) -> Option<u64> {
        let next = line.next(Instant::now(), 0, false)?;
        Some(next.receipt.entry.ms)
    }

    #[test]
    fn one_of_a_subject_is_under_way_until_it_is_settled_and_others_go_on() {
        let mut line = line();
        assert!(starts(&mut line, 1, "s"));
        assert!(!starts(&mut line, 2, "s"));
        assert!(starts(&mut line, 3, "t"));
        assert!(!starts(&mut line, 4, "s"));
        let free = |ms| event(ms, None);
        assert!(line.comes(free(5), Instant::now(), 0).is_some());
        assert!(line.comes(free(6), Instant::now(), 0).is_some());
        assert_eq!((line.len(), next(&mut line)), (2, None));
        line.ended(id(1));
        assert_eq!((next(&mut line), next(&mut line)), (Some(2), None));
        line.ended(id(3));
        assert_eq!(next(&mut line), None);
        line.ended(id(2));
        assert_eq!((next(&mut line), line.len()), (Some(4), 0));
        line.ended(id(4));
        assert!(line.subjects.is_empty() && line.busy.is_empty());
    }

    #[test]
    fn what_is_to_be_tried_again_keeps_its_place_and_counts_its_tries() {
        let mut line = line();
        let first = line.comes(event(1, Some("s")), Instant::now(), 0).unwrap();
        assert!(!starts(&mut line, 2, "s"));
        let due = Instant::now();
        line.holds(first, due, note(2, 0));
        assert_eq!(next(&mut line), None, "it is being noted");
        let receipt = event(1, None).receipt;
        let noting: Vec<Receipt> = line.noting.keys().copied().collect();
        assert_eq!(noting[0].entry, receipt.entry);
        line.noted(&noting[0]);
        let again = line.next(Instant::now(), 0, false).unwrap();
        assert_eq!((again.receipt.entry.ms, again.event.attempt()), (1, 2));
        assert_eq!(next(&mut line), None);
        line.ended(id(1));
        assert_eq!(next(&mut line), Some(2));
    }

    #[test]
    fn what_another_owner_noted_is_waited_for_and_its_deliveries_do_not_count() {
        let mut line = line();
        let notes = HashMap::from([(id(1), note(3, 60_000))]);
        line.took([id(1)].into_iter(), notes);
        let mut lined = event(1, Some("s"));
        lined.receipt.deliveries = 3;
        assert_eq!(line.tries(&lined.receipt), 2);
        let now = Instant::now();
        assert!(line.comes(lined, now, 0).is_none());
        assert_eq!(line.next_due(), Some(now + Duration::from_secs(60)));
        assert!(line.next(now + Duration::from_secs(59), 0, false).is_none());
        let due = line.next(now + Duration::from_secs(60), 0, false).unwrap();
        assert_eq!(due.event.attempt(), 3);
    }

    #[test]
    fn the_deliveries_of_what_waits_behind_others_do_not_count() {
        let mut line = line();
        assert!(starts(&mut line, 1, "s"));
        let mut lined = event(2, Some("s"));
        lined.receipt.deliveries = 5;
        let receipt = lined.receipt;
        assert_eq!(line.tries(&receipt), 5);
        assert!(line.comes(lined, Instant::now(), 0).is_none());
        let held = line.waits_unbegun(&receipt, 1).unwrap();
        assert_eq!((held.deliveries, held.attempt, held.due), (5, 1, 0));
        assert_eq!(line.tries(&receipt), 1);
        assert_eq!(line.waits_unbegun(&receipt, 1), None);
        line.ended(id(1));
        assert_eq!(next(&mut line), Some(2));
    }

    #[test]
    fn nothing_passes_what_is_out_of_sight_until_a_look_has_not_found_it() {
        let mut line = line();
        for ms in [1, 2] {
            starts(&mut line, ms, "s");
        }
        line.loses(id(1));
        assert_eq!(next(&mut line), None);
        // A look that began before that proves nothing.
        line.has_looked();
        assert_eq!(next(&mut line), None);
        line.looks();
        line.took([id(1)].into_iter(), HashMap::new());
        // The next step lists from the beginning again, and does not find what is in hand.
        line.looks();
        line.has_looked();
        assert_eq!((next(&mut line), line.out_of_sight()), (None, 0));
        assert!(starts(&mut line, 1, "s"), "it was found");
        line.loses(id(1));
        line.looks();
        line.has_looked();
        assert_eq!(next(&mut line), Some(2));
    }

    #[test]
    fn the_same_entry_taken_again_waits_until_its_earlier_run_is_over() {
        let mut line = line();
        assert!(starts(&mut line, 1, "s"));
        assert!(!starts(&mut line, 1, "s"));
        assert!(!starts(&mut line, 2, "s"));
        line.loses(id(1));
        assert_eq!((next(&mut line), next(&mut line)), (Some(1), None));
        line.ended(id(1));
        assert_eq!(next(&mut line), Some(2));
    }

    #[test]
    fn while_somebody_looks_only_what_is_behind_nothing_unseen_starts() {
        let mut line = line();
        line.is_to_look();
        assert!(!line.has_all_before(id(1)));
        line.has_looked_to(id(5));
        for ms in [4, 6] {
            assert!(starts(&mut line, ms, &ms.to_string()));
            assert!(!starts(&mut line, ms + 10, &ms.to_string()));
        }
        line.ended(id(4));
        assert!(line.next(Instant::now(), 0, true).is_none());
        line.has_looked_to(id(15));
        let woken = line.next(Instant::now(), 0, true);
        assert_eq!(woken.unwrap().entry(), id(14));
        line.is_to_look();
        line.has_looked_to(id(5));
        assert!(line.has_all_before(id(4)) && !line.has_all_before(id(5)));
    }

    #[test]
    fn a_partition_of_which_too_much_waits_is_not_read_until_half_of_it_is_gone() {
        let mut line = line();
        starts(&mut line, 1, "s");
        for ms in 2..=MOST as u64 + 1 {
            assert!(!line.is_full());
            starts(&mut line, ms, "s");
        }
        assert!(line.is_full());
        let few = |lined: &Lined| lined.receipt.entry.ms <= MOST as u64 / 2;
        assert_eq!(line.take_those(few).len(), MOST / 2 - 1);
        assert!(line.is_full());
        assert_eq!(line.take_those(|_| true).len(), MOST / 2 + 1);
        assert!(!line.is_full() && line.len() == 0 && line.bytes == 0);
    }
}
