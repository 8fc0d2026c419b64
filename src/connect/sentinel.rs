//! Finding the primary that Sentinels watch, and noticing that it moved.
//!
//! All Sentinels are asked at once. As soon as more than half have answered, and a moment later, the
//! answer with the highest configuration epoch wins: a Sentinel that was cut off together with the old
//! primary still names that one, under a lower epoch. What is found is the word of Sentinels; who
//! connects asks the server itself for its role.
//!
//! Where three or more are named, one alone is not believed: an address that was not known before counts
//! only if two of them say the same, and its epoch is the highest that two of them reach. So a Sentinel
//! that lies, under whatever epoch, can neither lead anyone to a server of its own nor hold anyone at the
//! old one.
//!
//! While anyone holds connections, they are asked every second: a primary that was cut off, or stands
//! still, does not tell its clients that another one took its place. Each move raises the *generation*;
//! connections of an older one are not used any more.

use super::sentinel_url::SentinelUrl;
use super::sentinel_view::{SentinelView, Voice, address, agree, confirmed};
use super::url::{RedisUrl, settings};
use crate::connect::error::BusError;
use crate::connect::resp::wire::Wire;
use crate::connect::socket::tcp_settings;
use crate::connect::tls::Tls;
use crate::mutex::locked;
use futures_util::stream::{FuturesUnordered, StreamExt};
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

/// How long a Sentinel may take to answer, connecting included.
const ASK: Duration = Duration::from_millis(500);
/// How long the others are waited for when more than half have answered.
const GRACE: Duration = Duration::from_millis(50);
/// From this many Sentinels on, a second one must confirm what is new.
const SEVERAL: usize = 3;
/// How often they are asked while nothing else asks them.
const LOOK: Duration = Duration::from_secs(1);

/// Where the primary is.
pub(crate) struct Primary {
    pub info: ConnectionInfo,
    pub generation: u64,
}

/// The Sentinels of one primary.
pub(crate) struct Sentinels {
    service: String,
    encrypted: bool,
    tls: Tls,
    login: RedisConnectionInfo,
    /// Where it stands in a file, that is read again for who logs in.
    url: RedisUrl,
    seats: Vec<(String, ConnectionInfo)>,
    generation: AtomicU64,
    named: Mutex<Option<SentinelView>>,
    asking: tokio::sync::Mutex<Asking>,
    watching: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Asking {
    /// Kept open from one time to the next.
    wires: Vec<Option<Wire>>,
    last: Option<(Instant, Result<SentinelView, String>)>,
}

impl fmt::Debug for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sentinels({})", self.service)
    }
}

pub(super) fn endpoint(tls: bool, host: &str, port: u16) -> ConnectionAddr {
    let host = host.to_owned();
    match tls {
        true => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: false,
            tls_params: None,
        },
        false => ConnectionAddr::Tcp(host, port),
    }
}

impl Sentinels {
    /// The Sentinels that the URL names; asks nobody yet.
    pub(crate) fn new(url: &SentinelUrl, tls: Tls) -> Result<Self, BusError> {
        let mut seats = Vec::with_capacity(url.sentinels.len());
        for (host, port) in &url.sentinels {
            let info = endpoint(url.tls, host, *port).into_connection_info()?;
            let info = info.set_redis_settings(settings(&url.own));
            seats.push((address(host, *port), info));
        }
        Ok(Self {
            service: url.service.clone(),
            encrypted: url.tls,
            tls,
            login: settings(&url.nodes).set_db(url.db),
            url: RedisUrl::default(),
            asking: tokio::sync::Mutex::new(Asking {
                wires: seats.iter().map(|_| None).collect(),
                last: None,
            }),
            seats,
            generation: AtomicU64::new(0),
            named: Mutex::default(),
            watching: Mutex::default(),
        })
    }

    /// The same, for a URL that may stand in a file.
    pub(crate) fn following(self, url: &RedisUrl) -> Self {
        let url = url.clone();
        Self { url, ..self }
    }

    /// How often the primary has moved, as far as is known.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Asks where the primary is. Those who ask while others ask share the answer.
    pub(crate) async fn primary(self: &Arc<Self>) -> Result<Primary, BusError> {
        self.watch();
        self.look().await.map_err(BusError::NoPrimary)?;
        let named = locked(&self.named);
        // Both under the lock: a move changes both.
        let generation = self.generation();
        let named = named.as_ref().ok_or(BusError::Moved)?;
        let info = endpoint(self.encrypted, &named.host, named.port).into_connection_info()?;
        let info = info
            .set_redis_settings(self.login.clone())
            .set_tcp_settings(tcp_settings());
        Ok(Primary {
            info: self.url.renewed(&info).unwrap_or(info),
            generation,
        })
    }

    /// Asks, and notes what it finds.
    async fn look(&self) -> Result<(), String> {
        let asked = Instant::now();
        let mut asking = self.asking.lock().await;
        if let Some((at, answer)) = &asking.last
            && *at >= asked
        {
            return answer.clone().map(|_| ());
        }
        let voices = self.ask_all(&mut asking.wires, false).await;
        let answer = self.judge(&voices);
        asking.last = Some((Instant::now(), answer.clone()));
        answer.map(|view| self.note(view))
    }

    /// Asks all at once; unless it waits for all, not longer than it takes to be sure.
    async fn ask_all(&self, wires: &mut [Option<Wire>], all: bool) -> Vec<Voice> {
        let mut pending: FuturesUnordered<_> = self
            .seats
            .iter()
            .zip(wires)
            .map(|((sentinel, info), wire)| async move {
                let view = match timeout(ASK, self.ask(info, wire)).await {
                    Ok(view) => view.map_err(|error| error.to_string()),
                    Err(_) => Err(format!("no answer within {} ms", ASK.as_millis())),
                };
                Voice {
                    sentinel: sentinel.clone(),
                    view,
                }
            })
            .collect();
        let mut voices: Vec<Voice> = Vec::with_capacity(self.seats.len());
        let mut until = None;
        loop {
            let next = match until {
                None => pending.next().await,
                Some(until) => timeout_at(until, pending.next()).await.ok().flatten(),
            };
            let Some(voice) = next else {
                return voices;
            };
            voices.push(voice);
            let views: Vec<&SentinelView> =
                voices.iter().filter_map(|v| v.view.as_ref().ok()).collect();
            let enough = views.len() > self.seats.len() / 2;
            // Where they differ, the others may confirm one of them.
            if !all && until.is_none() && enough && (!self.several() || agree(&views)) {
                until = Some(Instant::now() + GRACE);
            }
        }
    }

    /// Asks one, on the connection that was kept, or else on a new one.
    async fn ask(
        &self,
        info: &ConnectionInfo,
        kept: &mut Option<Wire>,
    ) -> Result<SentinelView, BusError> {
        // Taken out: given up half-way it is of no use any more.
        if let Some(mut wire) = kept.take()
            && let Ok(view) = self.ask_on(&mut wire).await
        {
            *kept = Some(wire);
            return Ok(view);
        }
        // The limit of this whole try is shorter, and says more.
        let renewed = self.url.renewed_sentinel(info);
        let info = renewed.as_ref().unwrap_or(info);
        let mut wire = Box::pin(Wire::open(info, &self.tls, 2 * ASK)).await?;
        let view = self.ask_on(&mut wire).await?;
        *kept = Some(wire);
        Ok(view)
    }

    async fn ask_on(&self, wire: &mut Wire) -> Result<SentinelView, BusError> {
        let words: [&[u8]; 3] = [b"SENTINEL", b"MASTER", self.service.as_bytes()];
        match wire.ask(&words).await {
            Ok(reply) => SentinelView::parse(reply),
            Err(BusError::Redis(error))
                if error
                    .detail()
                    .is_some_and(|d| d.contains("unknown command")) =>
            {
                Err(BusError::Unsupported("this is no Sentinel".into()))
            }
            Err(error) => Err(error),
        }
    }

    /// Which of the answers holds.
    fn judge(&self, voices: &[Voice]) -> Result<SentinelView, String> {
        let views: Vec<&SentinelView> =
            voices.iter().filter_map(|v| v.view.as_ref().ok()).collect();
        let named = locked(&self.named).clone();
        if views.is_empty() {
            let failed = voices.iter().filter_map(|voice| {
                let error = voice.view.as_ref().err()?;
                Some(format!("{}: {error}", voice.sentinel))
            });
            let failed: Vec<String> = failed.collect();
            return Err(format!(
                "no Sentinel names one for {:?}: {}",
                self.service,
                failed.join("; ")
            ));
        };
        let newest = match self.several() {
            true => confirmed(&views, named.as_ref()),
            false => views.iter().copied().max_by_key(|view| view.epoch).cloned(),
        };
        let Some(newest) = newest else {
            let said: Vec<String> = views.iter().map(|view| view.address()).collect();
            return Err(format!(
                "of {} Sentinels {} answer and no two of them name the same address, which a new one needs: {}",
                self.seats.len(),
                views.len(),
                said.join(", ")
            ));
        };
        let known = named.map_or(0, |named| named.epoch);
        // A few that were cut off know only of what was; most of them may have been set up again.
        if newest.epoch < known && views.len() * 2 <= self.seats.len() {
            return Err(format!(
                "{} of {} Sentinels answer, with older news than was known",
                views.len(),
                self.seats.len()
            ));
        }
        Ok(newest)
    }

    /// Whether one of them alone is not to be believed.
    fn several(&self) -> bool {
        self.seats.len() >= SEVERAL
    }

    fn note(&self, view: SentinelView) {
        let mut named = locked(&self.named);
        if let Some(before) = &*named
            && (&before.host, before.port) != (&view.host, view.port)
        {
            self.generation.fetch_add(1, Ordering::AcqRel);
            tracing::info!(
                service = self.service,
                from = before.address(),
                to = view.address(),
                "the primary has moved"
            );
        }
        *named = Some(view);
    }

    /// Sees to it that they are asked every now and then, as long as anyone holds this.
    fn watch(self: &Arc<Self>) {
        let mut watching = locked(&self.watching);
        // Another runtime may have ended, and with it what ran there.
        if watching.as_ref().is_none_or(JoinHandle::is_finished) {
            *watching = Some(tokio::spawn(watch(Arc::downgrade(self))));
        }
    }

    /// What each of them says.
    pub(crate) async fn survey(&self) -> Vec<Voice> {
        let mut asking = self.asking.lock().await;
        let mut voices = self.ask_all(&mut asking.wires, true).await;
        let place = |voice: &Voice| self.seats.iter().position(|(at, _)| *at == voice.sentinel);
        voices.sort_by_key(place);
        voices
    }
}

async fn watch(sentinels: Weak<Sentinels>) {
    let mut silent = false;
    loop {
        tokio::time::sleep(LOOK.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
        let Some(sentinels) = sentinels.upgrade() else {
            return;
        };
        let looked = sentinels.look().await;
        if let (Err(error), false) = (&looked, silent) {
            tracing::warn!(%error, "the primary cannot be confirmed; connections stay as they are");
        }
        silent = looked.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::resp::wire::Tokens;
    use crate::connect::url::RedisUrl;

    fn sentinels() -> Sentinels {
        let url = RedisUrl::new("redis+sentinel://a:1,b:1,c:1/bus");
        Sentinels::new(&url.sentinels().unwrap().unwrap(), Tls::default()).unwrap()
    }

    fn view(host: &str, epoch: u64) -> SentinelView {
        let reply = format!(
            "*6\r\n$2\r\nip\r\n${}\r\n{host}\r\n$4\r\nport\r\n$4\r\n6379\r\n\
             $12\r\nconfig-epoch\r\n${}\r\n{epoch}\r\n",
            host.len(),
            epoch.to_string().len()
        );
        SentinelView::parse(Tokens::new(reply.as_bytes())).unwrap()
    }

    fn voices(views: [Option<SentinelView>; 3]) -> Vec<Voice> {
        let voice = |view: Option<SentinelView>| Voice {
            sentinel: "s".into(),
            view: view.ok_or_else(|| "away".to_owned()),
        };
        views.map(voice).into()
    }

    #[test]
    fn the_newest_word_holds_and_a_few_with_older_news_are_not_believed() {
        let sentinels = sentinels();
        let judged = |views| sentinels.judge(&voices(views)).map(|view| view.address());
        let (old, new) = (Some(view("old", 1)), Some(view("::1", 2)));
        assert!(judged([None, None, None]).unwrap_err().contains("away"));
        let alone = judged([old.clone(), None, None]).unwrap_err();
        assert!(alone.contains("no two of them"), "{alone}");
        assert_eq!(
            judged([old.clone(), old.clone(), None]).unwrap(),
            "old:6379"
        );
        let mixed = [old.clone(), new.clone(), new.clone()];
        assert_eq!(judged(mixed).unwrap(), "[::1]:6379");
        sentinels.note(view("old", 1));
        assert_eq!(sentinels.generation(), 0);
        // What is known needs no second one; what is new does.
        assert_eq!(judged([old.clone(), None, None]).unwrap(), "old:6379");
        let first = [old.clone(), new.clone(), old.clone()];
        assert_eq!(judged(first).unwrap(), "old:6379");
        assert!(judged([new.clone(), None, None]).is_err());
        sentinels.note(view("::1", 2));
        sentinels.note(view("::1", 3));
        assert_eq!(sentinels.generation(), 1);
        assert!(judged([old.clone(), None, None]).is_err());
        let two = Sentinels::new(
            &RedisUrl::new("redis+sentinel://a:1,b:1/bus")
                .sentinels()
                .unwrap()
                .unwrap(),
            Tls::default(),
        )
        .unwrap();
        two.note(view("::1", 3));
        let few = two.judge(&voices([old.clone(), None, None])).unwrap_err();
        assert!(few.contains("1 of 2"), "{few}");
        // They were set up again.
        assert_eq!(judged([old.clone(), old, None]).unwrap(), "old:6379");
    }

    #[test]
    fn one_that_lies_is_not_believed_under_whatever_epoch() {
        let sentinels = sentinels();
        let judged = |views| sentinels.judge(&voices(views));
        let (known, liar) = (Some(view("known", 5)), Some(view("evil", u64::MAX)));
        let hers = judged([liar.clone(), known.clone(), known.clone()]).unwrap();
        assert_eq!((hers.address().as_str(), hers.epoch), ("known:6379", 5));
        assert!(judged([liar.clone(), known.clone(), None]).is_err());
        sentinels.note(hers);
        let still = judged([liar.clone(), known.clone(), None]).unwrap();
        assert_eq!(still.address(), "known:6379");
        assert!(judged([liar.clone(), None, None]).is_err());
        // Nor does it hold anyone at the old one.
        let (held, new) = (Some(view("known", u64::MAX)), Some(view("new", 6)));
        let moved = judged([held, new.clone(), new.clone()]).unwrap();
        assert_eq!((moved.address().as_str(), moved.epoch), ("new:6379", 6));
        // Nor does its epoch stay behind where it agrees for a while.
        let agreeing = Some(view("new", u64::MAX));
        let agreed = judged([agreeing, new, None]).unwrap();
        assert_eq!(agreed.epoch, 6);
    }

    #[test]
    fn what_is_no_view_is_refused() {
        for reply in [
            "$-1\r\n",
            "*0\r\n",
            "*2\r\n$4\r\nport\r\n$1\r\n1\r\n",
            "*4\r\n$2\r\nip\r\n$1\r\na\r\n$4\r\nport\r\n$5\r\n65536\r\n",
            "*4\r\n$2\r\nip\r\n$0\r\n\r\n$4\r\nport\r\n$1\r\n1\r\n",
            "*2\r\n:1\r\n:2\r\n",
            "*9\r\n",
        ] {
            assert!(
                SentinelView::parse(Tokens::new(reply.as_bytes())).is_err(),
                "{reply}"
            );
        }
    }
}
