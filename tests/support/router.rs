//! One connection to all nodes of a cluster, for a test that looks by the plain names of keys: `TEST_CLUSTER` has the
//! suites run on a cluster. What is tested never goes through here.

#![allow(dead_code)] // Each test binary uses a part.

use super::tagged::{OF_A_DOMAIN, is_of_a_slot, plain, tag_among, tagged};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Commands for all nodes, whatever is in them.
const FOR_ALL: [&str; 13] = [
    "ACL", "AUTH", "CLIENT", "CONFIG", "DBSIZE", "DEBUG", "FLUSHALL", "FLUSHDB", "FUNCTION",
    "INFO", "KEYS", "SCRIPT", "SLOWLOG",
];
/// Commands without a key that one node answers.
const FOR_ONE: [&str; 17] = [
    "PING",
    "HELLO",
    "TIME",
    "WAIT",
    "REPLICAOF",
    "SHUTDOWN",
    "SAVE",
    "BGSAVE",
    "BGREWRITEAOF",
    "LATENCY",
    "COMMAND",
    "SELECT",
    "LASTSAVE",
    "ROLE",
    "MONITOR",
    "CLUSTER",
    "ECHO",
];

/// The pattern of all keys, as they are called on the server that is asked, whichever it is.
pub(crate) const ANY_NAME: &str = "[{c]*";

/// Where a test looks.
pub(crate) struct Router {
    port: u16,
}

struct Shared {
    /// The nodes' ports; each has an equal share of the slots.
    nodes: Vec<u16>,
    /// Where names are that do not tell their slot.
    known: Mutex<HashMap<String, String>>,
}

#[derive(Clone, Debug)]
enum Answer {
    Line(Vec<u8>),
    Number(i64),
    Bulk(Option<Vec<u8>>),
    List(Option<Vec<Answer>>),
}

type Words = Vec<Vec<u8>>;
type Wire = BufReader<TcpStream>;

impl Router {
    /// For nodes at these ports, which share the slots evenly.
    pub(crate) fn to(nodes: Vec<u16>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let shared = Arc::new(Shared {
            nodes,
            known: Mutex::default(),
        });
        // Both end with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || Session::new(shared, stream).serve());
            }
        });
        Self { port }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

struct Session {
    shared: Arc<Shared>,
    client: Wire,
    nodes: Vec<Option<Wire>>,
    login: Option<Words>,
    /// What is to be done together, since a MULTI.
    queued: Option<Vec<Words>>,
}

fn text(word: &[u8]) -> &str {
    std::str::from_utf8(word).unwrap_or_default()
}

/// Whether a look for keys is one for those with a tag.
fn looks_for_tags(words: &[Vec<u8>]) -> bool {
    let looks = words[0].eq_ignore_ascii_case(b"KEYS");
    let pattern = words.get(1).filter(|_| looks);
    pattern.is_some_and(|it| it.starts_with(b"{cb") || *it == ANY_NAME.as_bytes())
}

/// As `crc16` of the protocol.
fn slot_of(key: &[u8]) -> usize {
    let open = key.iter().position(|&byte| byte == b'{');
    let inside = open.and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|&byte| byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    let crc = inside.unwrap_or(key).iter().fold(0u16, |crc, &byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => (crc << 1) ^ 0x1021,
        })
    });
    usize::from(crc) % 16384
}

/// Which of its words is the key by which a command finds its node.
fn key_at(words: &[Vec<u8>]) -> Option<usize> {
    let name = text(&words[0]).to_uppercase();
    let at = match name.as_str() {
        "EVAL" | "EVALSHA" if words.get(2).is_some_and(|count| count != b"0") => 3,
        "EVAL" | "EVALSHA" => return None,
        "XREAD" | "XREADGROUP" => {
            let mut all = words.iter();
            1 + all.position(|word| word.eq_ignore_ascii_case(b"STREAMS"))?
        }
        "DEBUG"
            if words
                .get(1)
                .is_some_and(|word| word.eq_ignore_ascii_case(b"OBJECT")) =>
        {
            2
        }
        "XINFO" | "XGROUP" | "OBJECT" | "MEMORY" => 2,
        _ if FOR_ALL.contains(&name.as_str()) || FOR_ONE.contains(&name.as_str()) => return None,
        _ => 1,
    };
    (at < words.len()).then_some(at)
}

impl Session {
    fn new(shared: Arc<Shared>, client: TcpStream) -> Self {
        client.set_nodelay(true).ok();
        let nodes = shared.nodes.iter().map(|_| None).collect();
        Self {
            shared,
            client: BufReader::new(client),
            nodes,
            login: None,
            queued: None,
        }
    }

    /// Until either side is gone.
    fn serve(mut self) {
        while let Ok(words) = read_words(&mut self.client) {
            // What looks by plain names is a test; who logged in knows the others, and who looks for them is told them.
            let tagged = self.login.is_some() || looks_for_tags(&words);
            let Ok(answer) = self.answer(words) else {
                return;
            };
            let answer = match tagged {
                false => renamed(answer),
                true => answer,
            };
            let mut bytes = Vec::new();
            write_answer(&answer, &mut bytes);
            if self.client.get_mut().write_all(&bytes).is_err() {
                return;
            }
        }
    }

    fn answer(&mut self, words: Words) -> io::Result<Answer> {
        let name = text(&words[0]).to_uppercase();
        if let (Some(queued), false) = (&mut self.queued, name == "EXEC" || name == "DISCARD") {
            queued.push(words);
            return Ok(Answer::Line(b"+QUEUED".into()));
        }
        match name.as_str() {
            "MULTI" => {
                self.queued = Some(Vec::new());
                Ok(Answer::Line(b"+OK".into()))
            }
            "DISCARD" => {
                self.queued = None;
                Ok(Answer::Line(b"+OK".into()))
            }
            "EXEC" => {
                let all = self.queued.take().unwrap_or_default();
                self.together(all)
            }
            "SCAN" => {
                let pattern = words
                    .windows(2)
                    .find(|two| two[0].eq_ignore_ascii_case(b"MATCH"));
                let pattern = pattern.map_or(b"*".to_vec(), |two| two[1].clone());
                let keys = self.alone(vec![b"KEYS".into(), pattern])?;
                let whole = Answer::Bulk(Some(b"0".into()));
                Ok(Answer::List(Some(vec![whole, keys])))
            }
            "KEYS" if words.len() == 2 => {
                let mut all = Vec::new();
                for pattern in patterns(text(&words[1])) {
                    if let Answer::List(Some(keys)) =
                        self.at_all(&[b"KEYS".to_vec(), pattern.into_bytes()])?
                    {
                        all.extend(keys);
                    }
                }
                Ok(Answer::List(Some(all)))
            }
            // Keys of one command may be in several slots.
            "DEL" | "UNLINK" | "EXISTS" if words.len() > 2 => {
                let mut sum = 0;
                for key in &words[1..] {
                    match self.alone(vec![words[0].clone(), key.clone()])? {
                        Answer::Number(number) => sum += number,
                        other => return Ok(other),
                    }
                }
                Ok(Answer::Number(sum))
            }
            _ => self.alone(words),
        }
    }

    fn alone(&mut self, words: Words) -> io::Result<Answer> {
        if text(&words[0]).eq_ignore_ascii_case("AUTH") {
            self.login = Some(words.clone());
        }
        if text(&words[0]).eq_ignore_ascii_case("KEYS")
            || text(&words[0]).eq_ignore_ascii_case("SCAN")
        {
            return self.answer(words);
        }
        if let Some(answer) = self.of_clients(&words)? {
            return Ok(answer);
        }
        let words = self.named(words)?;
        match key_at(&words) {
            Some(at) => {
                let node = self.node_of(&words[at]);
                self.at(node, &words)
            }
            None if FOR_ALL.contains(&text(&words[0]).to_uppercase().as_str()) => {
                self.at_all(&words)
            }
            None => self.at(0, &words),
        }
    }

    /// What a command about connections answers. Each node counts them by itself: here their numbers tell the node.
    fn of_clients(&mut self, words: &Words) -> io::Result<Option<Answer>> {
        let is = |at: usize, word: &[u8]| {
            let words = words.get(at);
            words.is_some_and(|is| is.eq_ignore_ascii_case(word))
        };
        let nodes = self.nodes.len();
        if is(0, b"CLIENT") && is(1, b"KILL") && is(2, b"ID") && words.len() == 4 {
            let id: usize = text(&words[3]).parse().unwrap_or(0);
            let mut words = words.clone();
            words[3] = (id / nodes).to_string().into_bytes();
            return self.at(id % nodes, &words).map(Some);
        }
        if !is(0, b"CLIENT") || !is(1, b"LIST") {
            return Ok(None);
        }
        let mut all = String::new();
        for node in 0..nodes {
            let Answer::Bulk(Some(listed)) = self.at(node, words)? else {
                return Ok(None);
            };
            for line in String::from_utf8_lossy(&listed).lines() {
                let words = line.strip_prefix("id=").and_then(|it| it.split_once(' '));
                let Some((id, rest)) = words else { continue };
                let id = id.parse().unwrap_or(0) * nodes + node;
                all += &format!("id={id} {rest}\n");
            }
        }
        Ok(Some(Answer::Bulk(Some(all.into_bytes()))))
    }

    /// What is in one slot is one transaction, each after the other; on one server all of it would be.
    fn together(&mut self, all: Vec<Words>) -> io::Result<Answer> {
        let mut parts: Vec<(Option<usize>, Vec<Words>)> = Vec::new();
        for words in all {
            let words = self.named(words)?;
            let slot = key_at(&words).map(|at| slot_of(&words[at]));
            match parts.last_mut() {
                Some((last, part)) if slot.is_some() && *last == slot => part.push(words),
                _ => parts.push((slot, vec![words])),
            }
        }
        let mut answers = Vec::new();
        for (_, part) in parts {
            let Some(at) = key_at(&part[0]) else {
                for words in part {
                    answers.push(self.alone(words)?);
                }
                continue;
            };
            let node = self.node_of(&part[0][at]);
            self.at(node, &[b"MULTI".to_vec()])?;
            for words in &part {
                self.at(node, words)?;
            }
            match self.at(node, &[b"EXEC".to_vec()])? {
                Answer::List(Some(said)) => answers.extend(said),
                other => return Ok(other),
            }
        }
        Ok(Answer::List(Some(answers)))
    }

    fn node_of(&self, key: &[u8]) -> usize {
        // As `Cluster::slots` shares them out.
        let count = self.nodes.len();
        let from = |number: usize| 16384 * number / count;
        (0..count)
            .rfind(|&number| from(number) <= slot_of(key))
            .unwrap_or(0)
    }

    /// A command with the names that keys have on a cluster.
    fn named(&mut self, words: Words) -> io::Result<Words> {
        let texts = words.iter().skip(1).map(|word| text(word));
        let beside = tag_among(texts);
        let mut named = vec![words[0].clone()];
        for word in &words[1..] {
            let name = text(word);
            named.push(match name.starts_with("cb:") {
                false => word.clone(),
                true if is_of_a_slot(name) => self.found(name, beside.as_deref())?.into_bytes(),
                true => tagged(name, None).into_bytes(),
            });
        }
        Ok(named)
    }

    /// The name of what a slot has: beside what else the command names, or where it is.
    fn found(&mut self, name: &str, beside: Option<&str>) -> io::Result<String> {
        let known = |shared: &Shared| shared.known.lock().expect("no panic").get(name).cloned();
        let found = match (beside, known(&self.shared)) {
            (Some(tag), _) => tagged(name, Some(tag)),
            (None, Some(known)) => known,
            (None, None) => {
                let rest = name.strip_prefix("cb:").unwrap_or(name);
                let pattern = format!("{{cb*}}:{rest}");
                match self.at_all(&[b"KEYS".to_vec(), pattern.into_bytes()])? {
                    Answer::List(Some(keys)) => match keys.into_iter().next() {
                        Some(Answer::Bulk(Some(key))) => text(&key).to_owned(),
                        _ => return Ok(tagged(name, None)),
                    },
                    _ => return Ok(tagged(name, None)),
                }
            }
        };
        let mut known = self.shared.known.lock().expect("no panic");
        known.insert(name.to_owned(), found.clone());
        Ok(found)
    }

    fn wire(&mut self, node: usize) -> io::Result<&mut Wire> {
        if self.nodes[node].is_none() {
            let stream = TcpStream::connect(("127.0.0.1", self.shared.nodes[node]))?;
            stream.set_nodelay(true)?;
            let mut wire = BufReader::new(stream);
            if let Some(login) = &self.login {
                send(&mut wire, login)?;
                read_answer(&mut wire)?;
            }
            self.nodes[node] = Some(wire);
        }
        self.nodes[node]
            .as_mut()
            .ok_or_else(|| io::Error::other("no wire"))
    }

    fn at(&mut self, node: usize, words: &[Vec<u8>]) -> io::Result<Answer> {
        let wire = self.wire(node)?;
        send(wire, words)?;
        read_answer(wire)
    }

    fn at_all(&mut self, words: &[Vec<u8>]) -> io::Result<Answer> {
        for node in 0..self.nodes.len() {
            send(self.wire(node)?, words)?;
        }
        let mut answers = Vec::new();
        for node in 0..self.nodes.len() {
            answers.push(read_answer(self.wire(node)?)?);
        }
        let first = answers.remove(0);
        Ok(answers.into_iter().fold(first, merged))
    }
}

/// What two nodes answered, as one would.
fn merged(one: Answer, other: Answer) -> Answer {
    match (one, other) {
        (Answer::Number(one), Answer::Number(other)) => Answer::Number(one + other),
        (Answer::List(Some(mut one)), Answer::List(Some(other))) => {
            one.extend(other);
            Answer::List(Some(one))
        }
        (Answer::Bulk(Some(one)), Answer::Bulk(Some(other))) if one.contains(&b'\n') => {
            Answer::Bulk(Some(sums(text(&one), text(&other)).into_bytes()))
        }
        (one, _) => one,
    }
}

/// The calls of both in the lines of `INFO commandstats`, and the memory of both; what the first says in all others.
fn sums(one: &str, other: &str) -> String {
    let count = |line: &str| -> Option<(String, u64, String)> {
        let (name, rest) = match line.split_once(":calls=") {
            Some((name, rest)) => (format!("{name}:calls"), rest),
            None => (line.split_once(':')?.0.to_owned(), line.split_once(':')?.1),
        };
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (count, rest) = rest.split_at(digits);
        let adds = name.ends_with(":calls") || name.starts_with("used_memory");
        let adds = adds && (rest.is_empty() || rest.starts_with(','));
        adds.then_some((name, count.parse().ok()?, rest.to_owned()))
    };
    let mut counted: BTreeMap<String, (u64, String)> = BTreeMap::new();
    let mut lines = Vec::new();
    for (number, line) in one.lines().chain(other.lines()).enumerate() {
        match count(line) {
            Some((name, more, rest)) => counted.entry(name).or_insert((0, rest)).0 += more,
            None if number < one.lines().count() => lines.push(line.to_owned()),
            None => {}
        }
    }
    lines.extend(counted.into_iter().map(|(name, (count, rest))| {
        let equals = if name.ends_with(":calls") { '=' } else { ':' };
        format!("{name}{equals}{count}{rest}")
    }));
    lines.join("\r\n") + "\r\n"
}

/// The patterns of a cluster's keys for one of plain names.
fn patterns(plain: &str) -> Vec<String> {
    if plain == "cb:*" {
        return vec!["{cb*".into()];
    }
    let Some(rest) = plain.strip_prefix("cb:") else {
        return vec![plain.to_owned()];
    };
    let mut all = vec![format!("{{cb}}:{rest}")];
    match tagged(plain, None) {
        tagged if tagged != all[0] => all.push(tagged),
        _ => all.push(format!("{{cb:*}}:{rest}")),
    }
    let parts: Vec<&str> = rest.splitn(3, ':').collect();
    match parts[..] {
        // Of any domain, and with more behind it.
        [kind, "*"] => all.push(format!("{{cb:*:0}}:{kind}:*")),
        ["*", domain, more] => {
            all.extend(OF_A_DOMAIN.map(|kind| format!("{{cb:{domain}:0}}:{kind}:{more}")));
        }
        _ => {}
    }
    all
}

fn renamed(answer: Answer) -> Answer {
    match answer {
        Answer::Bulk(Some(bytes)) => {
            let renamed = plain(text(&bytes)).map(String::into_bytes);
            Answer::Bulk(Some(renamed.unwrap_or(bytes)))
        }
        Answer::List(Some(all)) => Answer::List(Some(all.into_iter().map(renamed).collect())),
        other => other,
    }
}

fn line(wire: &mut Wire) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    wire.read_until(b'\n', &mut line)?;
    match line.strip_suffix(b"\r\n") {
        Some(line) => Ok(line.to_vec()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn length(line: &[u8]) -> i64 {
    text(&line[1..]).parse().unwrap_or(-1)
}

fn bulk(wire: &mut Wire, length: i64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize + 2];
    wire.read_exact(&mut bytes)?;
    bytes.truncate(length as usize);
    Ok(bytes)
}

fn read_words(wire: &mut Wire) -> io::Result<Words> {
    let head = line(wire)?;
    if head.first() != Some(&b'*') {
        return Ok(head
            .split(|&byte| byte == b' ')
            .map(<[u8]>::to_vec)
            .collect());
    }
    let mut words = Vec::new();
    for _ in 0..length(&head) {
        let head = line(wire)?;
        words.push(bulk(wire, length(&head))?);
    }
    match words.is_empty() {
        true => Err(io::ErrorKind::InvalidData.into()),
        false => Ok(words),
    }
}

fn send(wire: &mut Wire, words: &[Vec<u8>]) -> io::Result<()> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).bytes());
        bytes.extend(word);
        bytes.extend(b"\r\n");
    }
    wire.get_mut().write_all(&bytes)
}

fn read_answer(wire: &mut Wire) -> io::Result<Answer> {
    let head = line(wire)?;
    Ok(match (head.first(), length(&head)) {
        (Some(b':'), number) => Answer::Number(number),
        (Some(b'$'), -1) => Answer::Bulk(None),
        (Some(b'$'), length) => Answer::Bulk(Some(bulk(wire, length)?)),
        (Some(b'*'), -1) => Answer::List(None),
        (Some(b'*'), length) => {
            let all: io::Result<Vec<Answer>> = (0..length).map(|_| read_answer(wire)).collect();
            Answer::List(Some(all?))
        }
        _ => Answer::Line(head),
    })
}

fn write_answer(answer: &Answer, bytes: &mut Vec<u8>) {
    match answer {
        Answer::Line(line) => bytes.extend(line),
        Answer::Number(number) => bytes.extend(format!(":{number}").bytes()),
        Answer::Bulk(None) => bytes.extend(b"$-1"),
        Answer::Bulk(Some(bulk)) => {
            bytes.extend(format!("${}\r\n", bulk.len()).bytes());
            bytes.extend(bulk);
        }
        Answer::List(None) => bytes.extend(b"*-1"),
        Answer::List(Some(all)) => {
            bytes.extend(format!("*{}\r\n", all.len()).bytes());
            all.iter().for_each(|one| write_answer(one, bytes));
            return;
        }
    }
    bytes.extend(b"\r\n");
}
