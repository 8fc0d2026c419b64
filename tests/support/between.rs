//! Goes between a client and a real server, and changes or slows what the server says.

use super::{Redis, free_port};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

/// Who stands before which servers: the ports of both. The nodes of a cluster name each other, and who goes between has
/// to be named in their place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    all: Vec<(u16, u16)>,
    /// They are nodes of a cluster.
    named: bool,
}

impl Places {
    /// For each of the nodes, or the one server, a port before it.
    pub(crate) fn before(redis: &Redis) -> Self {
        let ports = redis.ports().into_iter();
        Self {
            all: ports.map(|port| (port, free_port())).collect(),
            named: redis.is_cluster(),
        }
    }

    /// `(server, before it)`.
    pub(crate) fn all(&self) -> &[(u16, u16)] {
        &self.all
    }

    /// The URL that leads there.
    pub(crate) fn url(&self, url: &str) -> String {
        let places = self.all.iter();
        places.fold(url.to_owned(), |url, (server, before)| {
            url.replace(
                &format!("127.0.0.1:{server}"),
                &format!("127.0.0.1:{before}"),
            )
        })
    }

    /// Has what a node of a cluster says of the others' addresses, and of its own, lead there as well.
    pub(crate) fn translate(&self, bytes: &mut [u8]) {
        for (server, before) in self.all.iter().filter(|_| self.named) {
            // A node that has met no other one does not know its name.
            for host in ["127.0.0.1\r\n:", "$0\r\n\r\n:", "127.0.0.1:"] {
                // Both have five digits.
                let (from, to) = (format!("{host}{server}"), format!("{host}{before}"));
                let mut at = 0;
                while let Some(found) = find(&bytes[at..], from.as_bytes()) {
                    at += found;
                    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
                }
            }
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    let first = |from: usize| bytes[from..].iter().position(|byte| *byte == what[0]);
    let mut at = 0;
    while let Some(found) = first(at) {
        at += found;
        if bytes[at..].starts_with(what) {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// The port of one who goes between; `passes` gets each piece before the client does.
pub(crate) fn between(port: u16, passes: fn(&mut [u8])) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let own = listener.local_addr().unwrap().port();
    std::thread::spawn(move || serve(port, &listener, passes, &Places::default()));
    own
}

/// The URL of one who goes between a user and a server, or each node of a cluster.
pub(crate) fn between_all(redis: &Redis, user: &str, passes: fn(&mut [u8])) -> String {
    let places = Places::before(redis);
    for (port, own) in places.all.clone() {
        let listener = TcpListener::bind(("127.0.0.1", own)).unwrap();
        let places = places.clone();
        std::thread::spawn(move || serve(port, &listener, passes, &places));
    }
    places.url(&redis.url_for(user))
}

fn serve(port: u16, listener: &TcpListener, passes: fn(&mut [u8]), places: &Places) {
    for client in listener.incoming() {
        let mut client = client.unwrap();
        let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)) else {
            continue;
        };
        let (mut asks, mut asked) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || {
            std::io::copy(&mut asks, &mut asked).ok();
            asked.shutdown(Shutdown::Write).ok();
        });
        let places = places.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            while let Ok(count @ 1..) = server.read(&mut buffer) {
                places.translate(&mut buffer[..count]);
                passes(&mut buffer[..count]);
                if client.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            client.shutdown(Shutdown::Both).ok();
        });
    }
}

/// Lets a megabyte through in a second, and what is small at once.
pub(crate) fn slowly(bytes: &mut [u8]) {
    if bytes.len() > 16 << 10 {
        std::thread::sleep(Duration::from_micros(bytes.len() as u64));
    }
}

/// Empties the sections of what `INFO` answers: their names are left.
pub(crate) fn empty_sections(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(begin) = bytes[at..].windows(4).position(|w| w == b"\r\n# ") {
        let text = at + begin + 2;
        at = text;
        let head = &bytes[..text - 2];
        let Some(dollar) = head.iter().rposition(|b| *b == b'$') else {
            continue;
        };
        let length = std::str::from_utf8(&head[dollar + 1..]);
        let Some(length) = length.ok().and_then(|length| length.parse::<usize>().ok()) else {
            continue;
        };
        let end = (text + length).min(bytes.len());
        let mut begins = true;
        for byte in &mut bytes[text..end] {
            let ends = *byte == b'\n';
            if begins && !matches!(*byte, b'\r' | b'\n') {
                // What looks like a heading tells nothing.
                *byte = b'#';
            }
            begins = ends;
        }
        at = end;
    }
}
