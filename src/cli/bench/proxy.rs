//! A wire to a server that is as long as it is told to be: what it carries arrives later, and as fast as without it.
//!
//! It has threads of its own: tokio's timer counts whole milliseconds, and distances are shorter.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that are carried at a time, at most.
const PIECE: usize = 64 * 1024;
/// Pieces that are under way in one direction at the most: memory is bounded, and no distance asks for as much.
const UNDER_WAY: usize = 4096;

/// Such a wire. Dropped, it takes no new connections; those that are there end with their clients.
pub(super) struct Proxy {
    port: u16,
    over: Arc<AtomicBool>,
}

impl Proxy {
    /// A wire to that server, whose way there and back takes that much longer.
    pub(super) fn to(host: &str, port: u16, round_trip: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let over = Arc::new(AtomicBool::new(false));
        let proxy = Self {
            port: listener.local_addr()?.port(),
            over: over.clone(),
        };
        let server = (host.to_owned(), port);
        thread::spawn(move || {
            for client in listener.incoming() {
                if over.load(Ordering::Acquire) {
                    return;
                }
                // Whoever cannot be connected sees the end of its connection.
                let connected = client.and_then(|client| {
                    let server = TcpStream::connect((server.0.as_str(), server.1))?;
                    connect(&client, &server, round_trip / 2)
                });
                if let Err(error) = connected {
                    tracing::debug!(%error, "a connection was not carried on");
                }
            }
        });
        Ok(proxy)
    }

    /// Where it listens, on the loopback.
    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        // Its thread waits for the next connection.
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok();
    }
}

fn connect(client: &TcpStream, server: &TcpStream, delay: Duration) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    carry(client, server, delay)?;
    carry(server, client, delay)
}

/// Carries one direction, in threads of its own.
fn carry(from: &TcpStream, to: &TcpStream, delay: Duration) -> io::Result<()> {
    let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
    if delay.is_zero() {
        thread::spawn(move || {
            let mut bytes = vec![0; PIECE];
            while let Some(length) = some(&mut from, &mut bytes)
                && to.write_all(&bytes[..length]).is_ok()
            {}
            end(&from, &to);
        });
        return Ok(());
    }
    let source = from.try_clone()?;
    let (sends, arrives) = sync_channel(UNDER_WAY);
    thread::spawn(move || send(&mut from, &sends, delay));
    thread::spawn(move || {
        arrive(&arrives, &mut to);
        end(&source, &to);
    });
    Ok(())
}

/// The next bytes; `None` at the end.
fn some(from: &mut TcpStream, bytes: &mut [u8]) -> Option<usize> {
    from.read(bytes).ok().filter(|length| *length > 0)
}

fn send(from: &mut TcpStream, sends: &SyncSender<(Instant, Vec<u8>)>, delay: Duration) {
    let mut bytes = vec![0; PIECE];
    while let Some(length) = some(from, &mut bytes) {
        let due = Instant::now() + delay;
        if sends.send((due, bytes[..length].to_vec())).is_err() {
            return;
        }
    }
}

fn arrive(arrives: &Receiver<(Instant, Vec<u8>)>, to: &mut TcpStream) {
    for (due, piece) in arrives {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&piece).is_err() {
            return;
        }
    }
}

/// Nothing more comes this way: the other side learns it, and nobody goes on to send.
fn end(from: &TcpStream, to: &TcpStream) {
    to.shutdown(Shutdown::Write).ok();
    from.shutdown(Shutdown::Read).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                thread::spawn(move || {
                    let (mut from, mut to) = (client.try_clone().unwrap(), client);
                    io::copy(&mut from, &mut to).ok();
                    to.shutdown(Shutdown::Write).ok();
                });
            }
        });
        port
    }

    #[test]
    fn everything_arrives_in_order_and_not_before_its_time() {
        for round_trip in [Duration::ZERO, Duration::from_millis(20)] {
            let proxy = Proxy::to("127.0.0.1", echo(), round_trip).unwrap();
            let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
            let began = Instant::now();
            client.write_all(b"x").unwrap();
            client.read_exact(&mut [0]).unwrap();
            assert!(began.elapsed() >= round_trip);
            let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
            let mut reading = client.try_clone().unwrap();
            let whole = sent.clone();
            let writing = thread::spawn(move || {
                client.write_all(&whole).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
            });
            let mut got = Vec::new();
            reading.read_to_end(&mut got).unwrap();
            writing.join().unwrap();
            assert!(got == sent);
        }
    }

    #[test]
    fn once_dropped_nobody_listens() {
        let port = echo();
        let proxy = Proxy::to("127.0.0.1", port, Duration::ZERO).unwrap();
        let at = proxy.port();
        drop(proxy);
        let refused = || TcpStream::connect((Ipv4Addr::LOCALHOST, at)).is_err();
        let began = Instant::now();
        while !refused() && began.elapsed() < Duration::from_secs(60) {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(refused());
    }
}
