//! How much each script does, seen from outside: by `MONITOR`, and by the server's own slow log.

use crate::support::Redis;
use convoke::connect::script::{script, script_with};
use redis::{Script, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread::JoinHandle;

/// Files of functions that others are put together with.
pub(super) const PARTS: [&str; 15] = [
    "fenced.lua",
    "told.lua",
    "letters.lua",
    "held.lua",
    "copies.lua",
    "ballot.lua",
    "places.lua",
    "decoded.lua",
    "suspects.lua",
    "member.lua",
    "entry_ids.lua",
    "version.lua",
    "tasks.lua",
    "aggregate_global_metrics.lua",
    "server_time.lua",
];
/// Those that one script has all of.
const REPLAYS: [&str; 4] = ["told.lua", "letters.lua", "held.lua", "copies.lua"];
const END: &str = "the end of what is watched";

/// The longest run of a script.
#[derive(Clone, Debug, Default)]
pub(super) struct Longest {
    /// Commands.
    pub(crate) calls: usize,
    /// Most elements that one command asked for or was given.
    pub(crate) widest: usize,
    /// Commands that take as long as their whole key is.
    pub(crate) whole: BTreeSet<String>,
    /// The server's time for each run, in their order, where that is measured.
    pub(crate) micros: Vec<u64>,
}

/// Every script of the program, by the file that it is in.
pub(super) fn files() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "lua") {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                let source = std::fs::read_to_string(&path).unwrap();
                assert!(found.insert(name, source).is_none(), "two of one name");
            }
        }
    }
    found
}

pub(super) struct Meter {
    /// The file of each script, by the name that the server gives it.
    names: HashMap<String, String>,
    pub(crate) longest: BTreeMap<String, Longest>,
    timed: bool,
}

impl Meter {
    /// One that counts; or one that measures times, which being watched would make longer.
    pub(super) fn new(timed: bool) -> Self {
        let files = files();
        let mut names = HashMap::new();
        for (name, source) in &files {
            let replays = REPLAYS.map(|part| files[part].as_str());
            let mut made = vec![
                script(source),
                Script::new(source),
                script_with(&replays, source),
            ];
            for first in PARTS {
                let first = files[first].as_str();
                made.push(script_with(&[first], source));
                made.extend(PARTS.map(|part| script_with(&[first, &files[part]], source)));
            }
            for script in made {
                names.insert(script.get_hash().to_owned(), name.clone());
            }
        }
        Self {
            names,
            longest: BTreeMap::new(),
            timed,
        }
    }

    /// Does something, and notes what the scripts did meanwhile.
    pub(super) async fn of<T>(&mut self, redis: &Redis, does: impl Future<Output = T>) -> T {
        if self.timed {
            let mut look = redis.connect();
            let settings = [
                ("slowlog-log-slower-than", "0"),
                ("slowlog-max-len", "1000000"),
            ];
            for (name, value) in settings {
                let set = redis::cmd("CONFIG").arg(&["SET", name, value]).to_owned();
                set.exec(&mut look).unwrap();
            }
            redis::cmd("SLOWLOG").arg("RESET").exec(&mut look).unwrap();
            let done = does.await;
            self.read_slowlog(&mut look);
            return done;
        }
        let watch = Watch::begin(redis);
        let done = does.await;
        for line in watch.end(redis) {
            self.note(line);
        }
        done
    }

    fn file(&self, hash: &str) -> String {
        let file = self.names.get(hash);
        file.unwrap_or_else(|| panic!("a script of no file: {hash}"))
            .clone()
    }

    fn note(&mut self, run: Run) {
        let file = self.file(&run.hash);
        let longest = self.longest.entry(file).or_default();
        longest.calls = longest.calls.max(run.calls);
        longest.widest = longest.widest.max(run.widest);
        longest.whole.extend(run.whole);
    }

    fn read_slowlog(&mut self, look: &mut redis::Connection) {
        type Row = (u64, u64, u64, Vec<Vec<u8>>, Value, Value);
        let rows: Vec<Row> = redis::cmd("SLOWLOG")
            .arg(&["GET", "-1"])
            .query(look)
            .unwrap();
        for (_, _, micros, words, _, _) in rows.into_iter().rev() {
            if words[0].eq_ignore_ascii_case(b"EVALSHA") {
                let file = self.file(&String::from_utf8_lossy(&words[1]));
                self.longest.entry(file).or_default().micros.push(micros);
            }
        }
    }
}

/// One run of a script.
#[derive(Debug, Default)]
struct Run {
    hash: String,
    calls: usize,
    widest: usize,
    whole: BTreeSet<String>,
}

/// What each node does that there is.
struct Watch(Vec<JoinHandle<Vec<Run>>>);

impl Watch {
    fn begin(redis: &Redis) -> Self {
        let begun = redis.ports().into_iter().map(|port| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(b"MONITOR\r\n").unwrap();
            let mut lines = BufReader::with_capacity(1 << 20, stream);
            let mut line = Vec::new();
            lines.read_until(b'\n', &mut line).unwrap();
            assert_eq!(line, b"+OK\r\n");
            std::thread::spawn(move || watch(lines))
        });
        Self(begun.collect())
    }

    fn end(self, redis: &Redis) -> Vec<Run> {
        for port in redis.ports() {
            let node = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
            let mut look = node.get_connection().unwrap();
            redis::cmd("ECHO").arg(END).exec(&mut look).unwrap();
        }
        let all = self.0.into_iter().map(|watch| watch.join().unwrap());
        all.flatten().collect()
    }
}

fn watch(mut lines: impl BufRead) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    loop {
        let mut line = Vec::new();
        assert!(
            lines.read_until(b'\n', &mut line).unwrap() > 0,
            "the server hung up"
        );
        let words = words(&line);
        let name = words[0].to_ascii_uppercase();
        let of_script = line.split(|&byte| byte == b'"').next();
        if of_script.is_some_and(|head| head.ends_with(b" lua] ")) {
            let run = runs.last_mut().expect("a script runs");
            run.calls += 1;
            match asked(&name, &words) {
                Some(count) => run.widest = run.widest.max(count),
                None => _ = run.whole.insert(name),
            }
        } else if name == "EVALSHA" {
            runs.push(Run {
                hash: words[1].clone(),
                ..Run::default()
            });
        } else if name == "ECHO" && words[1] == END {
            return runs;
        }
    }
}

/// The words of a line of `MONITOR`, which stand in quotes.
fn words(line: &[u8]) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = line.iter().copied();
    while let Some(byte) = bytes.next() {
        match (&mut word, byte) {
            (None, b'"') => word = Some(Vec::new()),
            (None, _) => {}
            (Some(_), b'"') => {
                let whole = word.take().unwrap_or_default();
                words.push(String::from_utf8_lossy(&whole).into_owned());
            }
            (Some(word), b'\\') => word.extend(bytes.next()),
            (Some(word), byte) => word.push(byte),
        }
    }
    words
}

/// How many elements a command goes through at the most; `None`: as many as its key has.
fn asked(name: &str, words: &[String]) -> Option<usize> {
    let has = |word: &str| words.iter().any(|w| w.eq_ignore_ascii_case(word));
    let after = |word: &str, behind: usize| {
        let at = words.iter().position(|w| w.eq_ignore_ascii_case(word))?;
        words.get(at + behind)?.parse().ok()
    };
    match name {
        "ZRANGE" if !has("BYSCORE") && !has("BYLEX") => {
            let (from, to): (i64, i64) = (words[2].parse().ok()?, words[3].parse().ok()?);
            let count = to.checked_sub(from)? + 1;
            (to >= 0).then(|| usize::try_from(count).unwrap_or(0))
        }
        "ZRANGE" | "ZRANGEBYSCORE" | "ZRANGEBYLEX" | "ZREVRANGEBYSCORE" => after("LIMIT", 2),
        "XTRIM" => after("LIMIT", 1),
        "XRANGE" if words[2] == words[3] => Some(1),
        "XRANGE" => after("COUNT", 1),
        "XPENDING" => words.get(5)?.parse().ok(),
        "HGETALL" | "HKEYS" | "HVALS" | "SMEMBERS" | "ZINTERSTORE" | "SINTERSTORE" | "COPY"
        | "ZRANGESTORE" | "ZREMRANGEBYSCORE" | "ZREMRANGEBYRANK" | "DEL" | "XINFO" => None,
        _ => Some(words.len()),
    }
}
