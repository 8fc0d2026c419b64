//! A wire between clients and a server that fails as wires do, and at the worst moment.
//!
//! It knows where a command ends, so it can cut before or behind one of a certain name. What a failing
//! wire swallowed is gone for good: such a connection stays silent after the proxy passes again, as a
//! half-open one does, and only new connections work.

use super::Redis;
use super::between::Places;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the wire does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    /// Each piece waits this many ms at the most, at random.
    Delay(u64),
    /// Each piece waits this many ms, and up to as many more, at random: the server is far.
    Far(u64),
    /// Nothing comes through in either direction; new connections are accepted.
    Swallow,
    /// The same for the connections of now; new ones pass.
    SwallowOld,
    /// What clients send does not arrive.
    Deaf,
    /// What the server answers does not arrive.
    Mute,
    /// Connections are reset, those of now and new ones.
    Reset,
    /// They are closed.
    Close,
    /// They are closed, and nobody listens.
    Refuse,
    /// They are closed; new ones are accepted and lead nowhere.
    Nowhere,
    /// The server's answers arrive a byte every 10 ms.
    Drip,
}

impl Mode {
    /// As long as a piece waits.
    async fn wait(self) {
        let ms = match self {
            Mode::Delay(most) => fastrand::u64(0..=most),
            Mode::Far(least) => fastrand::u64(least..=2 * least),
            _ => return,
        };
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

/// Where a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The server does not get the command.
    Before,
    /// The server runs the command; its answer does not arrive.
    After,
    /// Half of what the server answers next arrives.
    Half,
    /// The server does not get the command, and nobody hears of that: the connection stays open and silent.
    Silent,
}

/// Cuts that are still to be made.
#[derive(Clone, Copy, Debug)]
struct Order {
    cut: Cut,
    /// Behind which command; any, if none.
    command: Option<&'static str>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    mode: Mode,
    order: Option<Order>,
    /// Rises with every change.
    epoch: u64,
}

struct Shared {
    /// Which addresses are told in the place of which.
    places: Places,
    state: watch::Sender<State>,
    left: AtomicU32,
}

/// Forwards connections to a server, or to the nodes of a cluster.
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    listening: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.iter().for_each(|listens| listens.abort());
        self.set(Mode::Close);
    }
}

impl Proxy {
    /// A wire to the server on that port.
    pub(crate) async fn to(server: u16) -> Self {
        let port = super::free_port();
        Self::at(&[(server, port)], Places::default()).await
    }

    /// The same to each node of what may be a cluster: what happens to one happens to all.
    pub(crate) async fn before(redis: &Redis) -> Self {
        let places = Places::before(redis);
        Self::at(places.all(), places.clone()).await
    }

    async fn at(ports: &[(u16, u16)], places: Places) -> Self {
        let state = State {
            mode: Mode::Pass,
            order: None,
            epoch: 0,
        };
        let shared = Arc::new(Shared {
            places,
            state: watch::Sender::new(state),
            left: AtomicU32::new(0),
        });
        let mut listening = Vec::new();
        for (server, port) in ports {
            let listener = TcpListener::bind(("127.0.0.1", *port)).await.unwrap();
            let listens = listen(*server, *port, listener, shared.clone());
            listening.push(tokio::spawn(listens));
        }
        Self {
            port: ports[0].1,
            shared,
            listening,
        }
    }

    /// The URL of a user at that server, or cluster, by these wires.
    pub(crate) fn url_of(&self, redis: &Redis, user: &str) -> String {
        self.shared.places.url(&redis.url_for(user))
    }

    /// `redis://…` for a user of `deploy/users.acl`.
    pub(crate) fn url_for(&self, user: &str) -> String {
        super::url_at(self.port, user)
    }

    /// Behaves so from now on.
    pub(crate) fn set(&self, mode: Mode) {
        self.shared.state.send_modify(|state| {
            state.mode = mode;
            state.epoch += 1;
        });
    }

    /// Cuts this many connections as they do that, and passes all else.
    pub(crate) fn cut(&self, cut: Cut, command: Option<&'static str>, times: u32) {
        self.shared.left.store(times, Ordering::SeqCst);
        self.shared.state.send_modify(|state| {
            state.mode = Mode::Pass;
            state.order = Some(Order { cut, command });
            state.epoch += 1;
        });
    }

    /// Passes everything; how many of the cuts that were ordered were not made.
    pub(crate) fn heal(&self) -> u32 {
        let left = self.shared.left.swap(0, Ordering::SeqCst);
        self.shared.state.send_modify(|state| {
            state.mode = Mode::Pass;
            state.order = None;
            state.epoch += 1;
        });
        left
    }

    /// The next answer of the server does not arrive: the connection is cut after the server ran
    /// what it was sent.
    pub(crate) fn cut_next_answer(&self) {
        self.cut(Cut::After, None, 1);
    }

    pub(crate) fn has_cut(&self) -> bool {
        self.shared.left.load(Ordering::SeqCst) == 0
    }
}

async fn listen(server: u16, port: u16, first: TcpListener, shared: Arc<Shared>) {
    let mut state = shared.state.subscribe();
    let mut listener = Some(first);
    loop {
        let mode = state.borrow_and_update().mode;
        if mode == Mode::Refuse {
            listener = None;
            if state.changed().await.is_err() {
                return;
            }
            continue;
        }
        let Some(open) = &listener else {
            match TcpListener::bind(("127.0.0.1", port)).await {
                Ok(again) => listener = Some(again),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            continue;
        };
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            accepted = open.accept() => if let Ok((client, _)) = accepted {
                let born = shared.state.borrow().epoch;
                tokio::spawn(connect(server, client, shared.clone(), born));
            },
        }
    }
}

async fn connect(server: u16, mut client: TcpStream, shared: Arc<Shared>, born: u64) {
    let mode = shared.state.borrow().mode;
    match mode {
        Mode::Reset => {
            client.set_zero_linger().ok();
            return;
        }
        Mode::Close | Mode::Refuse => return,
        Mode::Nowhere => return discard(&mut client).await,
        _ => {}
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
        return;
    };
    server.set_nodelay(true).ok();
    client.set_nodelay(true).ok();
    let wire = Wire {
        client,
        server,
        shared,
        born,
        // What is read at a time is what they have room for.
        up: Vec::with_capacity(ROOM),
        down: Vec::with_capacity(ROOM),
        deaf: false,
        mute: false,
        armed: None,
        looks: false,
    };
    wire.carry().await;
}

/// Reads until the other side closes.
async fn discard(stream: &mut TcpStream) {
    let mut bytes = vec![0; 16 * 1024];
    while matches!(stream.read(&mut bytes).await, Ok(1..)) {}
}

/// Bytes that are carried at a time, at least.
const ROOM: usize = 64 * 1024;

/// One connection.
struct Wire {
    client: TcpStream,
    server: TcpStream,
    shared: Arc<Shared>,
    born: u64,
    /// From the client, not forwarded yet: less than a command.
    up: Vec<u8>,
    /// From the server, not forwarded yet.
    down: Vec<u8>,
    deaf: bool,
    mute: bool,
    /// What becomes of the next answer.
    armed: Option<Cut>,
    /// It was asked last which node has what.
    looks: bool,
}

/// How the turn of a wire ended.
enum Turn {
    On,
    Cut,
    ServerGone,
    Over,
}

impl Wire {
    async fn carry(mut self) {
        let shared = self.shared.clone();
        let mut states = shared.state.subscribe();
        loop {
            let state = *states.borrow_and_update();
            let is_old = self.born < state.epoch;
            match state.mode {
                Mode::Reset => {
                    self.client.set_zero_linger().ok();
                    return;
                }
                Mode::Close | Mode::Refuse => return,
                Mode::Nowhere if is_old => return,
                Mode::Swallow | Mode::Nowhere => (self.deaf, self.mute) = (true, true),
                Mode::SwallowOld if is_old => (self.deaf, self.mute) = (true, true),
                Mode::Deaf => self.deaf = true,
                Mode::Mute => self.mute = true,
                _ => {}
            }
            let drips = state.mode == Mode::Drip && !self.down.is_empty();
            let turn = tokio::select! {
                changed = states.changed() => match changed {
                    Ok(()) => Turn::On,
                    Err(_) => Turn::Over,
                },
                read = self.client.read_buf(&mut self.up) => match read {
                    Ok(1..) => self.forward(state).await,
                    _ => Turn::Over,
                },
                read = self.server.read_buf(&mut self.down), if !drips => match read {
                    Ok(1..) => self.answer(state).await,
                    _ => Turn::ServerGone,
                },
                () = tokio::time::sleep(Duration::from_millis(10)), if drips => {
                    let byte = self.down.remove(0);
                    match self.client.write_all(&[byte]).await {
                        Ok(()) => Turn::On,
                        Err(_) => Turn::Over,
                    }
                }
            };
            match turn {
                Turn::On => {}
                Turn::Over => return,
                // Whoever does not hear the server does not hear it go.
                Turn::ServerGone if self.mute => return discard(&mut self.client).await,
                Turn::ServerGone => return,
                Turn::Cut => {
                    drop(self.client);
                    // What was forwarded is run: the server sees the end behind it.
                    self.server.shutdown().await.ok();
                    let rest = discard(&mut self.server);
                    tokio::time::timeout(Duration::from_secs(2), rest)
                        .await
                        .ok();
                    return;
                }
            }
        }
    }

    /// Forwards whole commands.
    async fn forward(&mut self, state: State) -> Turn {
        if self.deaf {
            self.up.clear();
            return Turn::On;
        }
        state.mode.wait().await;
        let (mut whole, mut cut) = (0, false);
        while let Some((length, name)) = command(&self.up[whole..]) {
            self.looks = name.eq_ignore_ascii_case(b"CLUSTER");
            let order = state.order.filter(|order| {
                order
                    .command
                    .is_some_and(|command| name.eq_ignore_ascii_case(command.as_bytes()))
            });
            match order.map(|order| order.cut) {
                Some(Cut::Before) if self.take_ticket() => {
                    cut = true;
                    break;
                }
                Some(Cut::Silent) if self.take_ticket() => {
                    (self.deaf, self.mute) = (true, true);
                    break;
                }
                Some(cut @ (Cut::After | Cut::Half)) if self.armed.is_none() => {
                    self.armed = self.take_ticket().then_some(cut);
                }
                _ => {}
            }
            whole += length;
        }
        let sent = self.server.write_all(&self.up[..whole]).await;
        match self.deaf {
            true => self.up.clear(),
            false => drop(self.up.drain(..whole)),
        }
        match sent {
            _ if cut => Turn::Cut,
            Ok(()) => Turn::On,
            Err(_) => Turn::ServerGone,
        }
    }

    /// Forwards what the server answered.
    async fn answer(&mut self, state: State) -> Turn {
        if self.mute {
            self.down.clear();
            return Turn::On;
        }
        self.shared.places.translate(&mut self.down);
        match state.mode {
            Mode::Drip => return Turn::On,
            mode => mode.wait().await,
        }
        // A client looks at the slots by itself, whatever it is asked for.
        let any = state.order.filter(|order| order.command.is_none());
        let any = any.filter(|_| !self.looks);
        if self.armed.is_none()
            && let Some(order) = any
            && self.take_ticket()
        {
            self.armed = Some(order.cut);
        }
        let arrives = match self.armed {
            None => self.down.len(),
            Some(Cut::Half) => self.down.len() / 2,
            Some(_) => 0,
        };
        let sent = self.client.write_all(&self.down[..arrives]).await;
        self.down.clear();
        match sent {
            _ if self.armed.is_some() => Turn::Cut,
            Ok(()) => Turn::On,
            Err(_) => Turn::Over,
        }
    }

    fn take_ticket(&self) -> bool {
        let left = &self.shared.left;
        let taken = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            left.checked_sub(1)
        });
        taken.is_ok()
    }
}

/// The first command in the bytes, if it is there whole: its length and its name.
fn command(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let line = |from: usize| -> Option<(usize, usize)> {
        let end = from
            + bytes
                .get(from..)?
                .windows(2)
                .position(|two| two == b"\r\n")?;
        let digits = std::str::from_utf8(&bytes[from + 1..end]).ok()?;
        Some((digits.parse().ok()?, end + 2))
    };
    let (words, mut at) = line(0)?;
    let mut name = &bytes[..0];
    for word in 0..words {
        let (length, start) = line(at)?;
        at = start + length + 2;
        let text = bytes.get(start..at)?;
        if word == 0 {
            name = &text[..length];
        }
    }
    Some((at, name))
}
