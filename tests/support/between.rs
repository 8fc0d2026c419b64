//! Goes between a client and a real server, and changes or slows what the server says.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

/// The port of one who goes between; `passes` gets each piece before the client does.
pub(crate) fn between(port: u16, passes: fn(&mut [u8])) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let own = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
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
            std::thread::spawn(move || {
                let mut buffer = vec![0; 1 << 20];
                while let Ok(count @ 1..) = server.read(&mut buffer) {
                    passes(&mut buffer[..count]);
                    if client.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                client.shutdown(Shutdown::Both).ok();
            });
        }
    });
    own
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
