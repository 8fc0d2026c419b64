//! What `deploy/README.md` says of the users is what the server lets them do: every command that it
//! knows, on every family of keys, in both layouts.

use super::{Guarded, root, users};
use convoke::protocol::keys::Keys;
use redis::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// The family of commands that name no key.
const NO_KEY: &str = "no key";
/// Stands for the commands that concern the client's own connection.
const OWN: &str = "*own connection*";
/// Commands that only newer servers know.
const NEWER: [&str; 5] = [
    "WAITAOF",
    "CLIENT SETINFO",
    "CLIENT NO-TOUCH",
    "CLIENT CAPA",
    "CLIENT IMPORT-SOURCE",
];
/// Tries in one pipeline.
const PIPELINE: usize = 2000;

type Commands = BTreeSet<String>;

/// What the page says.
struct Page {
    /// The keys of each family.
    families: BTreeMap<String, Vec<String>>,
    /// What each user may do with the keys of a family.
    may: BTreeMap<(String, String), Commands>,
}

/// The cells of a line of a table.
fn cells(line: &str) -> Vec<&str> {
    let inside = line.trim().trim_start_matches('|').trim_end_matches('|');
    inside.split('|').map(str::trim).collect()
}

/// The words in backticks.
fn quoted(cell: &str) -> impl Iterator<Item = String> + '_ {
    cell.split('`').skip(1).step_by(2).map(str::to_owned)
}

/// The lines of the table that begins with that heading.
fn table<'a>(page: &'a str, heading: &str) -> impl Iterator<Item = Vec<&'a str>> {
    let from = page.find(heading).unwrap_or_else(|| panic!("{heading}"));
    let lines = page[from..].lines().skip(2);
    lines.take_while(|line| line.starts_with('|')).map(cells)
}

impl Page {
    fn read() -> Self {
        let text = fs::read_to_string(root().join("deploy/README.md")).expect("the page");
        let mut families: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for row in table(&text, "| family | plain |") {
            let keys = quoted(row[1]).chain(quoted(row[2]));
            families.entry(row[0].to_owned()).or_default().extend(keys);
        }
        families.insert(NO_KEY.to_owned(), Vec::new());
        let own: Commands = table(&text, "| stands for | commands |")
            .flat_map(|row| quoted(row[1]).collect::<Vec<_>>())
            .collect();
        assert!(own.len() > 10, "{own:?}");
        let mut may: BTreeMap<(String, String), Commands> = BTreeMap::new();
        for row in table(&text, "| user | keys | may |") {
            let user = row[0].trim_matches('`').to_owned();
            let mut commands: Commands = quoted(row[2]).collect();
            if row[2].contains(OWN) {
                commands.extend(own.iter().cloned());
            }
            let named: Vec<&str> = match row[1] {
                "all" => families.keys().map(String::as_str).collect(),
                some => some.split(", ").collect(),
            };
            for family in named.into_iter().filter(|name| *name != "foreign") {
                assert!(families.contains_key(family), "{user}: {family}");
                if row[1] == "all" && family == NO_KEY {
                    continue;
                }
                let so_far = may.entry((user.clone(), family.to_owned()));
                so_far.or_default().extend(commands.iter().cloned());
            }
        }
        Self { families, may }
    }

    fn users(&self) -> BTreeSet<&str> {
        self.may.keys().map(|(user, _)| user.as_str()).collect()
    }
}

/// A command as the server describes it.
struct Known {
    /// Such as `XINFO STREAM`.
    name: String,
    /// How many words it has at least.
    words: usize,
    /// Where its keys are, for each of its specifications: the first, and what counts them.
    keys: Vec<(usize, Option<(usize, usize)>)>,
    /// Its keys stand behind a word.
    by_word: bool,
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        other => panic!("{other:?} is no text"),
    }
}

fn list(value: &Value) -> &[Value] {
    match value {
        Value::Array(values) | Value::Set(values) => values,
        Value::Nil => &[],
        other => panic!("{other:?} is no list"),
    }
}

fn number(value: &Value) -> i64 {
    match value {
        Value::Int(number) => *number,
        other => panic!("{other:?} is no number"),
    }
}

/// A part of a list of names and values in turn.
fn part<'a>(map: &'a Value, name: &str) -> &'a Value {
    let pairs = list(map).chunks_exact(2);
    let found = pairs.into_iter().find(|pair| text(&pair[0]) == name);
    &found.unwrap_or_else(|| panic!("{name}"))[1]
}

impl Known {
    /// All commands of the server; those that have subcommands are these.
    fn all(connection: &mut redis::Connection) -> Vec<Self> {
        let told: Value = redis::cmd("COMMAND").query(connection).expect("commands");
        let mut all = Vec::new();
        for command in list(&told) {
            Self::collect(command, &mut all);
        }
        all
    }

    fn collect(told: &Value, into: &mut Vec<Self>) {
        let told = list(told);
        let below = list(&told[9]);
        if !below.is_empty() {
            below.iter().for_each(|one| Self::collect(one, into));
            return;
        }
        let name = text(&told[0]).to_uppercase().replace('|', " ");
        let mut known = Self {
            words: number(&told[1]).unsigned_abs() as usize,
            keys: Vec::new(),
            by_word: false,
            name,
        };
        for specification in list(&told[8]) {
            let begin = part(specification, "begin_search");
            let find = part(specification, "find_keys");
            if text(part(begin, "type")) != "index" {
                known.by_word = true;
                continue;
            }
            let at = number(part(part(begin, "spec"), "index")) as usize;
            let counted = (text(part(find, "type")) == "keynum").then(|| {
                let of = part(find, "spec");
                let count = number(part(of, "keynumidx")) as usize;
                (at + count, at + number(part(of, "firstkey")) as usize)
            });
            known.keys.push((at, counted));
        }
        into.push(known);
    }

    /// Whether it can be called without a key.
    fn goes_without(&self) -> bool {
        let script = ["EVAL", "FCALL"].iter().any(|of| self.name.starts_with(of));
        script || self.keys.is_empty() && !self.by_word
    }

    /// A call of it, with that key wherever one stands.
    fn call(&self, key: Option<&str>) -> Vec<String> {
        let fixed = |words: &str| {
            let key = key.unwrap_or_default();
            words
                .split(' ')
                .map(|word| word.replace('%', key))
                .collect()
        };
        match self.name.as_str() {
            "XREAD" => return fixed("XREAD STREAMS % 0"),
            "XREADGROUP" => return fixed("XREADGROUP GROUP g c STREAMS % >"),
            _ => assert!(
                !self.by_word || !self.keys.is_empty(),
                "how are the keys of {} given?",
                self.name
            ),
        }
        let mut words: Vec<String> = self.name.split(' ').map(str::to_owned).collect();
        let mut put = |at: usize, word: &str| {
            while words.len() <= at {
                words.push("1".into());
            }
            word.clone_into(&mut words[at]);
        };
        for (at, counted) in &self.keys {
            match (counted, key) {
                (Some((count, first)), Some(key)) => {
                    put(*count, "1");
                    put(*first, key);
                }
                (Some((count, _)), None) => put(*count, "0"),
                (None, Some(key)) => put(*at, key),
                (None, None) => {}
            }
        }
        while words.len() < self.words {
            words.push("1".into());
        }
        words
    }
}

/// What each user may do, by what the server says.
fn tried(
    connection: &mut redis::Connection,
    page: &Page,
    all: &[Known],
) -> BTreeMap<(String, String), Commands> {
    let mut tries = Vec::new();
    for user in users::ALL {
        for (family, keys) in &page.families {
            for known in all {
                if family == NO_KEY && known.goes_without() {
                    tries.push((user, family, known, None));
                } else if family != NO_KEY && (known.by_word || !known.keys.is_empty()) {
                    let each = keys.iter().map(|key| (user, family, known, Some(key)));
                    tries.extend(each);
                }
            }
        }
    }
    let mut said = Vec::with_capacity(tries.len());
    for some in tries.chunks(PIPELINE) {
        let mut pipe = redis::pipe();
        for (user, _, known, key) in some {
            let call = known.call(key.map(String::as_str));
            pipe.cmd("ACL").arg("DRYRUN").arg(user).arg(call);
        }
        let answers: Vec<String> = pipe.query(connection).expect("whole calls");
        said.extend(answers);
    }
    println!("{} calls of {} commands", tries.len(), all.len());
    let mut may: BTreeMap<(String, String), Commands> = BTreeMap::new();
    let mut refused = may.clone();
    for ((user, family, known, _), said) in tries.iter().zip(said) {
        let into = match said == "OK" {
            true => &mut may,
            false => &mut refused,
        };
        let place = into.entry((user.to_string(), family.to_string()));
        place.or_default().insert(known.name.clone());
    }
    for (place, commands) in &may {
        let both: Vec<_> = match refused.get(place) {
            Some(refused) => commands.intersection(refused).collect(),
            None => Vec::new(),
        };
        assert!(
            both.is_empty(),
            "{place:?}: {both:?} on some of the keys only"
        );
    }
    may
}

#[test]
fn the_table_of_users_is_what_the_server_allows() {
    let page = Page::read();
    let guarded = Guarded::start();
    let mut connection = guarded.redis.connect();
    let all = Known::all(&mut connection);
    let known: Commands = all.iter().map(|known| known.name.clone()).collect();
    assert!(known.len() > 300, "{known:?}");
    let shipped: BTreeSet<String> = users::deployed()
        .lines()
        .filter_map(|line| line.split(' ').nth(1).map(str::to_owned))
        .filter(|user| user != "default")
        .collect();
    assert_eq!(
        shipped,
        users::ALL.iter().map(ToString::to_string).collect()
    );
    assert_eq!(page.users(), users::ALL.into_iter().collect());

    let may = tried(&mut connection, &page, &all);
    let places: BTreeSet<_> = may.keys().chain(page.may.keys()).collect();
    // What a test of poor servers takes away from everyone.
    let taken = users::taken_away();
    let is_taken = |command: &String| {
        let command = command.to_lowercase();
        taken
            .iter()
            .any(|taken| command.split(' ').next() == Some(taken))
    };
    let nothing = Commands::new();
    let mut wrong = Vec::new();
    for place in places {
        let (user, family) = place;
        let told = page.may.get(place).unwrap_or(&nothing);
        let allowed = may.get(place).unwrap_or(&nothing);
        for command in told.difference(allowed) {
            if is_taken(command) {
                continue;
            }
            if known.contains(command) {
                wrong.push(format!(
                    "{user} may not {command} on {family}, the table says it may"
                ));
            } else if !NEWER.contains(&command.as_str()) {
                wrong.push(format!("{user}, {family}: no server knows {command}"));
            }
        }
        for command in allowed.difference(told) {
            wrong.push(format!(
                "{user} may {command} on {family}, the table does not say so"
            ));
        }
    }
    assert!(wrong.is_empty(), "deploy/README.md: {wrong:#?}");
}

/// Every name of a key that there is, in one layout.
fn every_key(keys: &Keys) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for domain in ["image", "system", "task"] {
        let route = keys.route(domain, 0);
        all.extend([
            route.events,
            route.results,
            route.dead,
            route.delayed,
            route.outbox,
        ]);
        all.insert(keys.moved_beside(&keys.events(domain, 0)));
        all.insert(keys.dedup(domain, 0, "1"));
        all.insert(keys.said(domain, 0, "1-1", "1"));
        all.insert(keys.replayed(domain, 0, "1-1"));
        all.insert(keys.reply(domain, 0, "me"));
        all.insert(keys.claims(domain, 0, "w-1"));
    }
    let inbox = keys.inbox_route("w-1");
    for dead in [
        keys.dead("image", 0),
        keys.dead("system", 0),
        keys.dead("task", 0),
        inbox.dead.clone(),
    ] {
        let dead = keys.stream_name(&dead).expect("a stream");
        all.insert(keys.repair_beside(&dead, "r"));
    }
    let repairs = keys.repairs();
    all.extend([repairs.plans, repairs.states]);
    all.extend([inbox.events, inbox.results, inbox.dead, inbox.delayed]);
    let tasks = keys.tasks();
    all.extend([
        tasks.tasks,
        tasks.data,
        tasks.waiting,
        tasks.heads,
        tasks.queue,
    ]);
    all.extend([
        tasks.held,
        tasks.slots,
        tasks.free,
        tasks.done,
        tasks.counts,
    ]);
    all.extend([
        keys.broadcast(),
        keys.instance("w-1"),
        keys.state(),
        keys.remade(),
        keys.active(),
        keys.role("worker"),
        keys.capabilities(),
        keys.lost(),
        keys.suspects(),
        keys.leader(),
        keys.reports("w-1"),
        keys.partition(),
        keys.pulses(),
        keys.metrics(),
        keys.reported("w-1", "p"),
        keys.external(),
        keys.lost_external(),
        keys.method("image.whole"),
        keys.domains(),
        keys.made("image"),
        keys.read_domains(),
        keys.limit("image.whole", "shop"),
        keys.seats("image.whole"),
        keys.ballot("d"),
        keys.electorate("d"),
        keys.votes("d"),
        keys.tally("d"),
        keys.ballots(),
        keys.batch("b"),
        keys.batch_finished("b"),
        keys.batches(),
    ]);
    all
}

#[test]
fn the_families_of_the_table_hold_every_key_of_the_bus() {
    let page = Page::read();
    let told: BTreeSet<String> = page.families.values().flatten().cloned().collect();
    for keys in [Keys::new("cb"), Keys::tagged("cb", 1)] {
        let keys = every_key(&keys.expect("a namespace"));
        let missing: Vec<_> = keys.difference(&told).collect();
        assert!(missing.is_empty(), "in no family: {missing:?}");
    }
}

#[test]
fn the_patterns_of_a_data_publisher_are_every_domain_but_those_of_the_control_plane() {
    let guarded = Guarded::start();
    let mut connection = guarded.redis.connect();
    let letters = "abcdefghijklmnopqrstuvwxyz0123456789_";
    let mut domains = BTreeSet::new();
    for control in ["system", "task"] {
        for end in 1..=control.len() {
            let begin = &control[..end];
            domains.insert(begin.to_owned());
            for letter in letters.chars() {
                domains.extend([format!("{letter}"), format!("{begin}{letter}")]);
                domains.insert(format!("{begin}{letter}x"));
            }
        }
    }
    domains.extend(["image", "x.system"].map(str::to_owned));
    for user in [users::DATA_PUBLISHER, users::SERVICE] {
        for domain in &domains {
            for words in [
                vec!["XADD", "cb:events:%", "*", "type", "%.a"],
                vec!["ZADD", "cb:delayed:%", "1", "m"],
                vec!["SET", "cb:dedup:%:1", ""],
                vec!["SET", "cb:dedup:%:system:task", ""],
                vec![
                    "EVALSHA",
                    "0",
                    "3",
                    "cb:events:%",
                    "cb:delayed:%",
                    "cb:dedup:%:1",
                ],
            ] {
                let words: Vec<String> = words.iter().map(|w| w.replace('%', domain)).collect();
                let said: String = redis::cmd("ACL")
                    .arg("DRYRUN")
                    .arg(user)
                    .arg(&words)
                    .query(&mut connection)
                    .expect("an answer");
                let is_control = ["system", "task"].contains(&domain.as_str());
                assert_eq!(said == "OK", !is_control, "{user}: {words:?}: {said}");
            }
        }
    }
}
