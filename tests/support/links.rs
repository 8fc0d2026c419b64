//! The wires between the nodes of a cluster. Any two nodes can be cut off from each other, while clients reach both.
//!
//! A node listens at 127.0.0.1, and tells the others an address of its own: somebody listens there at the same ports,
//! and passes on what it is sent. A node connects to the others from its address, which says who it is. Clients are
//! told 127.0.0.1, as the name of each.

#![allow(dead_code)] // Each test binary uses a part.

use std::collections::HashSet;
use std::net::IpAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What two nodes do to each other when the wire between them is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// What is sent waits, and arrives when the wire is mended, as packets do that are sent again.
    Silent,
    /// Their connections are closed, and new ones as soon as they are made.
    Closed,
}

#[derive(Clone, Debug, Default)]
struct Cuts {
    /// By the numbers of the nodes, the lower one first.
    pairs: HashSet<(usize, usize)>,
    are_closed: bool,
}

impl Cuts {
    fn passes(&self, pair: (usize, usize)) -> bool {
        !self.pairs.contains(&pair)
    }

    fn closes(&self, pair: (usize, usize)) -> bool {
        self.are_closed && self.pairs.contains(&pair)
    }
}

pub(crate) struct Links {
    /// A thread of its own: who waits for a test would have the nodes take each other for dead.
    runtime: Option<Runtime>,
    cuts: watch::Sender<Cuts>,
}

impl Drop for Links {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Links {
    pub(crate) fn new() -> Self {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build();
        Self {
            runtime: Some(runtime.expect("a runtime")),
            cuts: watch::Sender::default(),
        }
    }

    /// Where the other nodes reach that one.
    pub(crate) fn address(node: usize) -> String {
        format!("127.0.1.{}", node + 1)
    }

    /// What a node is started with, so that it is reached there.
    pub(crate) fn options(node: usize) -> Vec<String> {
        let address = Self::address(node);
        let options = [
            "--bind-source-addr",
            &address,
            "--cluster-announce-ip",
            &address,
            "--cluster-announce-hostname",
            "127.0.0.1",
            "--cluster-preferred-endpoint-type",
            "hostname",
        ];
        options.map(str::to_owned).to_vec()
    }

    /// Passes on what other nodes send to these ports of that one.
    pub(crate) fn serve(&self, node: usize, ports: [u16; 2]) {
        let runtime = self.runtime.as_ref().expect("it is not dropped");
        for port in ports {
            let listener = std::net::TcpListener::bind((Self::address(node), port));
            let listener = listener.expect("nobody else has the port of this node");
            listener.set_nonblocking(true).expect("a listener");
            let cuts = self.cuts.subscribe();
            runtime.spawn(async move {
                let listener = TcpListener::from_std(listener).expect("a listener");
                while let Ok((from, peer)) = listener.accept().await {
                    // Whom nobody knows is not let in.
                    if let Some(other) = number(peer.ip()) {
                        let pair = (node.min(other), node.max(other));
                        tokio::spawn(carry(from, port, pair, cuts.clone()));
                    }
                }
            });
        }
    }

    /// Cuts these off from each other, and nobody else.
    pub(crate) fn cut(&self, pairs: impl IntoIterator<Item = (usize, usize)>, manner: Manner) {
        let pairs = pairs.into_iter().map(|(a, b)| (a.min(b), a.max(b)));
        self.cuts.send_replace(Cuts {
            pairs: pairs.collect(),
            are_closed: manner == Manner::Closed,
        });
    }

    /// All reach each other again.
    pub(crate) fn mend(&self) {
        self.cuts.send_replace(Cuts::default());
    }
}

/// Which node has that address.
fn number(address: IpAddr) -> Option<usize> {
    match address {
        IpAddr::V4(address) => match address.octets() {
            [127, 0, 1, number] => usize::from(number).checked_sub(1),
            _ => None,
        },
        IpAddr::V6(_) => None,
    }
}

/// One connection.
async fn carry(from: TcpStream, port: u16, pair: (usize, usize), mut cuts: watch::Receiver<Cuts>) {
    let mut closes = cuts.clone();
    let carried = async {
        if cuts.wait_for(|cuts| cuts.passes(pair)).await.is_err() {
            return;
        }
        let Ok(to) = TcpStream::connect(("127.0.0.1", port)).await else {
            return;
        };
        from.set_nodelay(true).ok();
        to.set_nodelay(true).ok();
        let (asks, told) = from.into_split();
        let (tells, asked) = to.into_split();
        tokio::select! {
            () = pass(asks, asked, pair, cuts.clone()) => {}
            () = pass(tells, told, pair, cuts) => {}
        }
    };
    tokio::select! {
        _ = closes.wait_for(|cuts| cuts.closes(pair)) => {}
        () = carried => {}
    }
}

/// One of its directions, until its sender closes it.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    pair: (usize, usize),
    mut cuts: watch::Receiver<Cuts>,
) {
    let mut piece = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut piece).await.unwrap_or(0);
        // Its end arrives no sooner than its bytes would.
        if cuts.wait_for(|cuts| cuts.passes(pair)).await.is_err() || count == 0 {
            return;
        }
        if to.write_all(&piece[..count]).await.is_err() {
            // The other direction reads what is left, and the end.
            return std::future::pending().await;
        }
    }
}
