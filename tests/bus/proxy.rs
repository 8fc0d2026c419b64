//! A wire between a client and a server that can be cut at the worst moment.

use crate::support::url_at;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Forwards connections to a server.
pub struct Proxy {
    port: u16,
    cut: Arc<AtomicBool>,
}

impl Proxy {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let cut = Arc::new(AtomicBool::new(false));
        let cuts = cut.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", port)).await;
                if let Ok(server) = server {
                    tokio::spawn(forward(client, server, cuts.clone()));
                }
            }
        });
        Self { port: own, cut }
    }

    pub fn url_for(&self, user: &str) -> String {
        url_at(self.port, user)
    }

    /// The next answer of the server does not arrive: the connection is cut after the server ran
    /// what it was sent.
    pub fn cut_next_answer(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }

    pub fn has_cut(&self) -> bool {
        !self.cut.load(Ordering::SeqCst)
    }
}

async fn forward(mut client: TcpStream, mut server: TcpStream, cut: Arc<AtomicBool>) {
    let (mut from_client, mut from_server) = (vec![0; 65536], vec![0; 65536]);
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => match read {
                Ok(count @ 1..) => {
                    if server.write_all(&from_client[..count]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
            read = server.read(&mut from_server) => match read {
                Ok(count @ 1..) => {
                    if cut.swap(false, Ordering::SeqCst) {
                        return;
                    }
                    if client.write_all(&from_server[..count]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}
