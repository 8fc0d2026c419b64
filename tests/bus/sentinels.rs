//! Three Sentinels, one of which lies under a high epoch.

use crate::support::{Redis, free_port, keys, skip_on_cluster, until, users};
use convoke::client::publish::{Outgoing, PublishError};
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::settings::RedisUrl;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Something that answers as a Sentinel does, whatever it is told to say.
struct Sentinel {
    port: u16,
    says: Arc<Mutex<(u16, u64)>>,
    asked: Arc<AtomicU64>,
}

impl Sentinel {
    fn saying(primary: u16, epoch: u64) -> Self {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let (says, asked) = (
            Arc::new(Mutex::new((primary, epoch))),
            Arc::<AtomicU64>::default(),
        );
        let (told, counted) = (says.clone(), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (told, counted) = (told.clone(), counted.clone());
                std::thread::spawn(move || answer(&stream.unwrap(), &told, &counted));
            }
        });
        Self { port, says, asked }
    }

    fn say(&self, primary: u16, epoch: u64) {
        *self.says.lock().unwrap() = (primary, epoch);
    }

    /// Waits until it was asked a few times more.
    async fn heard(&self) {
        let before = self.asked.load(Ordering::Relaxed);
        until("it is asked", || async {
            self.asked.load(Ordering::Relaxed) > before + 3
        })
        .await;
    }
}

fn answer(stream: &TcpStream, says: &Mutex<(u16, u64)>, asked: &AtomicU64) {
    let mut reader = BufReader::new(stream);
    while let Some(words) = command(&mut reader) {
        let said = if words.first().is_some_and(|word| word == "SENTINEL") {
            asked.fetch_add(1, Ordering::Relaxed);
            let (port, epoch) = *says.lock().unwrap();
            let (port, epoch) = (port.to_string(), epoch.to_string());
            let words = ["ip", "127.0.0.1", "port", &port, "config-epoch", &epoch];
            let bulks = words.map(|word| format!("${}\r\n{word}\r\n", word.len()));
            format!("*6\r\n{}", bulks.concat())
        } else {
            "+OK\r\n".to_owned()
        };
        if (&mut &*stream).write_all(said.as_bytes()).is_err() {
            return;
        }
    }
}

fn command(reader: &mut impl BufRead) -> Option<Vec<String>> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let count: usize = line.trim().strip_prefix('*')?.parse().ok()?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut length = String::new();
        reader.read_line(&mut length).ok()?;
        let length: usize = length.trim().strip_prefix('$')?.parse().ok()?;
        let mut word = vec![0; length + 2];
        reader.read_exact(&mut word).ok()?;
        word.truncate(length);
        words.push(String::from_utf8(word).ok()?);
    }
    Some(words)
}

fn client(sentinels: &[Sentinel; 3]) -> Client {
    let seats = sentinels
        .each_ref()
        .map(|sentinel| format!("127.0.0.1:{}", sentinel.port));
    let url = format!(
        "redis+sentinel://{}:{}@{}/bus",
        users::PUBLISHER,
        users::PASSWORD,
        seats.join(",")
    );
    let connector = Connector::new(&RedisUrl::new(url), 2).unwrap();
    Client::new(connector, keys(), ClientOptions::default()).unwrap()
}

async fn publish(client: &Client) -> Result<(), PublishError> {
    let published = client.publish(&Outgoing::new("image.resize", &7)).await;
    published.map(|_| ())
}

async fn stored(redis: &Redis) -> u64 {
    let mut connection = redis.connection().await;
    let length = redis::cmd("XLEN").arg("cb:events:image").to_owned();
    length.query_async(&mut connection).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sentinel_that_lies_under_a_high_epoch_leads_nobody_away() {
    if skip_on_cluster("Sentinels watch no cluster") {
        return;
    }
    let (own, other) = (Redis::start(), Redis::start());
    let sentinels: [Sentinel; 3] = std::array::from_fn(|_| Sentinel::saying(own.port(), 1));
    let [liar, honest, also] = &sentinels;
    let before = client(&sentinels);
    publish(&before).await.unwrap();

    liar.say(other.port(), u64::MAX);
    liar.heard().await;
    publish(&before).await.unwrap();
    publish(&client(&sentinels)).await.unwrap();
    assert_eq!((stored(&own).await, stored(&other).await), (3, 0));

    // A failover is one when a second one says so, and the liar cannot hold anyone back.
    liar.say(own.port(), u64::MAX);
    honest.say(other.port(), 2);
    honest.heard().await;
    publish(&before).await.unwrap();
    assert_eq!((stored(&own).await, stored(&other).await), (4, 0));
    also.say(other.port(), 2);
    until("the primary is found where it moved", || async {
        publish(&before).await.ok();
        stored(&other).await > 0
    })
    .await;
    let left = stored(&own).await;
    publish(&client(&sentinels)).await.unwrap();
    assert_eq!(stored(&own).await, left);
}
