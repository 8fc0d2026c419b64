//! Connections: which one is used for what.
//!
//! - A **dedicated** connection per blocking reader: a blocked command on a shared connection
//!   blocks everyone, and its time-out must be longer than the block.
//! - A connection of its own per committer: `WATCH` is a property of the connection. It and the
//!   group readers' are **wires** (see [`crate::connect::resp::wire`]).
//! - A **pool** for handlers and coordination, never for blocking reads.
//!
//! Every connection has a time-out for each answer and for being made, and TCP keepalive, so a
//! half-open link is noticed. A connection is not repaired: whoever holds it drops it and asks for
//! another one.
//!
//! Each new connection is asked who is there (see [`crate::connect::greeting`]). Where Sentinels watch the primary,
//! they are asked for it first, and a pooled connection is asked for its role each time that it is lent.
//!
//! On a cluster a connector leads to the node of one slot: that of the control plane, unless it is asked for the one
//! [toward](Connector::toward) a key. What is sent on its pooled connections goes to the node of its own key.

pub use crate::connect::backoff::reconnect_delay;
pub use crate::connect::pool::Pooled;

use super::lending::{Lending, PrimaryPool, answers_within, pool_of};
use super::options::ConnectOptions;
use super::socket::tcp_settings;
use super::url::RedisUrl;
use crate::connect::clock::ClockSource;
use crate::connect::cluster::Cluster;
use crate::connect::cluster::family::Family;
use crate::connect::epoch::Epoch;
use crate::connect::error::BusError;
use crate::connect::greeting::{Known, Lacks};
use crate::connect::loaded::Loads;
use crate::connect::locator::Locator;
use crate::connect::opening::Failure;
use crate::connect::pool::{Manager, Pool};
use crate::connect::resp::wire::Wire;
use crate::connect::sentinel::Sentinels;
use crate::connect::sentinel_view::Voice;
use crate::connect::tls::Tls;
use redis::aio::MultiplexedConnection;
use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, Script,
};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a blocking read may wait on the server. Short, because a read is never cancelled: this
/// is what shutdown may have to wait.
pub const BLOCK: Duration = Duration::from_millis(1000);
/// How long an answer may take that does not block.
pub const ANSWER: Duration = Duration::from_secs(5);
/// The oldest server that has what the bus needs.
const OLDEST: (u32, u32) = (7, 0);

/// Makes connections to one server, to the primary that Sentinels watch, or to the node of a cluster's slot.
#[derive(Clone)]
pub struct Connector {
    /// Who logs in may change where it stands in a file.
    pub(super) url: RedisUrl,
    pub(super) place: Destination,
    pub(super) tls: Tls,
    pub(super) known: Arc<Known>,
    /// What this process loads into the server for everyone.
    pub(super) loads: Option<Arc<Loads>>,
}

#[derive(Clone)]
pub(super) enum Destination {
    Server {
        client: Arc<Client>,
        pool: Pool,
    },
    Moving {
        locator: Locator,
        pool: Arc<Mutex<Option<PrimaryPool>>>,
        lending: Lending,
        /// The connectors to other slots of the same cluster.
        family: Arc<Family>,
    },
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    /// Prepares for what the options name, with their certificates and a pool of that many
    /// connections; connects nothing yet.
    ///
    /// # Errors
    /// `Tls`: a file of certificates or of the key cannot be used.
    pub fn of(options: impl Into<ConnectOptions>, pool_size: usize) -> Result<Self, BusError> {
        let options = options.into();
        let lending = Lending::of(pool_size);
        let made = Self::with(&options.url, Tls::read(&options)?, lending)?;
        Ok(made.toward_control(&options.namespace))
    }

    /// To the slot of the control plane, where there are any.
    fn toward_control(self, namespace: &str) -> Self {
        match self.slot() {
            Some(_) => self.toward(&format!("{{{namespace}}}")),
            None => self,
        }
    }

    /// The same, for who has no time to wait: a pooled connection is lent, and answers, within `answer`,
    /// or is given up, so that wires that died silently do not hold all of the pool.
    ///
    /// # Errors
    /// As for [`Connector::of`].
    #[doc(hidden)]
    pub fn prompt(
        options: impl Into<ConnectOptions>,
        pool_size: usize,
        answer: Duration,
    ) -> Result<Self, BusError> {
        let options = options.into();
        let lending = Lending {
            answer: answer.min(ANSWER),
            ..Lending::of(pool_size)
        };
        let made = Self::with(&options.url, Tls::read(&options)?, lending)?;
        Ok(made.toward_control(&options.namespace))
    }

    /// Prepares for what `url` names, trusting what the system trusts.
    pub fn new(url: &RedisUrl, pool_size: usize) -> Result<Self, BusError> {
        Self::with(url, Tls::default(), Lending::of(pool_size))
    }

    fn with(url: &RedisUrl, tls: Tls, lending: Lending) -> Result<Self, BusError> {
        if let Some(watchers) = url.sentinels() {
            let watchers = watchers.map_err(BusError::Unsupported)?;
            let sentinels = Sentinels::new(&watchers, tls.clone())?.following(url);
            let locator = Locator::Sentinels(Arc::new(sentinels));
            return Ok(Self::moving(url, tls, locator, lending));
        }
        if let Some(nodes) = url.cluster() {
            let nodes = nodes.map_err(BusError::Unsupported)?;
            let cluster = Arc::new(Cluster::new(&nodes, url, tls.clone()));
            let locator = Locator::Slot(cluster, 0);
            return Ok(Self::moving(url, tls, locator, lending));
        }
        url.check().map_err(BusError::Unsupported)?;
        let info = url.expose().into_connection_info()?;
        let info = info.set_tcp_settings(tcp_settings());
        let client = Arc::new(Client::open(tls.apply(info)?)?);
        let known = Arc::new(Known::of_a_plain_url());
        let config = answers_within(lending.answer);
        let place = client.get_connection_info().clone();
        let manager = Manager::new(url, place, config, known.clone())?;
        let pool = pool_of(manager, lending)?;
        Ok(Self {
            url: url.clone(),
            place: Destination::Server { client, pool },
            tls,
            known,
            loads: None,
        })
    }

    fn moving(url: &RedisUrl, tls: Tls, locator: Locator, lending: Lending) -> Self {
        let place = Destination::Moving {
            locator,
            pool: Arc::default(),
            lending,
            family: Arc::default(),
        };
        Self {
            url: url.clone(),
            place,
            tls,
            known: Arc::default(),
            loads: None,
        }
    }

    /// The same for a process whose user may load scripts: it loads these for everyone, as soon as it
    /// connects to a server that it has not seen yet.
    #[must_use]
    pub fn loading(self, scripts: Vec<&'static Script>) -> Self {
        let loads = Some(Arc::new(Loads::new(scripts)));
        Self { loads, ..self }
    }

    /// Has the server know what this process loads for everyone; it may have been made to forget.
    ///
    /// # Errors
    /// A server does not answer; the others know it all the same.
    #[doc(hidden)]
    pub async fn keep_loaded(&self) -> Result<(), BusError> {
        let mut outcome = self.keep_loaded_here().await;
        if let Destination::Moving { family, .. } = &self.place {
            // Scripts are a node's, whichever of its slots one asks for.
            let mut nodes = BTreeSet::from([self.generation()]);
            for slot in family.slots() {
                let there = self.toward_slot(slot);
                if nodes.insert(there.generation()) {
                    outcome = outcome.and(there.keep_loaded_here().await);
                }
            }
        }
        outcome
    }

    async fn keep_loaded_here(&self) -> Result<(), BusError> {
        if let Some(loads) = &self.loads {
            let mut connection = self.pooled().await?;
            loads.load(&mut connection, self.epoch()).await?;
        }
        Ok(())
    }

    /// The same with a pool of its own, of one connection that is not there yet: what hangs on this one's is not
    /// waited for. It is lent, and answers, within `answer`.
    ///
    /// # Errors
    /// The address cannot be used.
    #[doc(hidden)]
    pub fn apart(&self, answer: Duration) -> Result<Self, BusError> {
        let lending = Lending {
            answer: answer.min(ANSWER),
            ..Lending::of(1)
        };
        let place = match &self.place {
            Destination::Server { client, .. } => {
                let config = answers_within(lending.answer);
                let place = client.get_connection_info().clone();
                let manager = Manager::new(&self.url, place, config, self.known.clone())?;
                Destination::Server {
                    client: client.clone(),
                    pool: pool_of(manager, lending)?,
                }
            }
            Destination::Moving { locator, .. } => Destination::Moving {
                locator: locator.clone(),
                pool: Arc::default(),
                lending,
                family: Arc::default(),
            },
        };
        Ok(Self {
            place,
            ..self.clone()
        })
    }

    /// Whether the server was not given yet what this process loads for everyone.
    fn must_load(&self) -> Option<&Loads> {
        let epoch = self.epoch();
        self.loads.as_deref().filter(|loads| loads.are_due(epoch))
    }

    /// Where the primary is now, and the generation that it belongs to.
    async fn find(&self) -> Result<(Arc<Client>, u64), BusError> {
        match &self.place {
            Destination::Server { client, .. } => {
                match self.url.renewed(client.get_connection_info()) {
                    Some(info) => Ok((Arc::new(Client::open(info)?), 0)),
                    None => Ok((client.clone(), 0)),
                }
            }
            Destination::Moving { locator, .. } => {
                let primary = Box::pin(locator.primary()).await?;
                Ok((
                    Arc::new(Client::open(self.tls.apply(primary.info)?)?),
                    primary.generation,
                ))
            }
        }
    }

    /// Where the primary is now, without who connects.
    ///
    /// # Errors
    /// If no Sentinel names one.
    pub async fn address(&self) -> Result<ConnectionInfo, BusError> {
        let info = self.find().await?.0.get_connection_info().clone();
        Ok(info.set_redis_settings(RedisConnectionInfo::default()))
    }

    /// How often the primary has moved, as far as is known: what was connected before leads elsewhere.
    #[doc(hidden)]
    pub fn generation(&self) -> u64 {
        match &self.place {
            Destination::Server { .. } => 0,
            Destination::Moving { locator, .. } => locator.generation(),
        }
    }

    /// Fails if the primary has moved since that generation.
    ///
    /// # Errors
    /// `Moved`.
    #[doc(hidden)]
    pub fn check(&self, generation: u64) -> Result<(), BusError> {
        match self.generation() == generation {
            true => Ok(()),
            false => Err(BusError::Moved),
        }
    }

    /// Which history of the server's data was seen last, counted from the first. Each connection sees it
    /// when it is made: what is written from now on is in this one or a later one, and what is asked on
    /// a connection that is there already, in this one or an earlier one.
    #[doc(hidden)]
    pub fn epoch(&self) -> Epoch {
        self.known.epochs.last().of_slot(self.slot())
    }

    /// What the server calls that one: the same for every process; `None` where it does not tell.
    #[doc(hidden)]
    pub fn epoch_name(&self) -> Option<String> {
        self.known.epochs.name()
    }

    /// Fails if the connections of another connector lead elsewhere, as far as both know.
    ///
    /// # Errors
    /// `OtherEpoch`.
    #[doc(hidden)]
    pub fn check_same(&self, other: &Connector) -> Result<(), BusError> {
        match self.known.epochs.agrees_with(&other.known.epochs) {
            true => Ok(()),
            false => Err(BusError::OtherEpoch),
        }
    }

    /// Fails if a later history than that was seen.
    ///
    /// # Errors
    /// `OtherEpoch`.
    #[doc(hidden)]
    pub fn check_epoch(&self, epoch: Epoch) -> Result<(), BusError> {
        let here = match epoch.slot() {
            slot if slot == self.slot() => self.epoch(),
            Some(slot) => self.toward_slot(slot).epoch(),
            None => self.epoch(),
        };
        match here == epoch {
            true => Ok(()),
            false => Err(BusError::OtherEpoch),
        }
    }

    /// What each Sentinel says; `None` without Sentinels.
    #[doc(hidden)]
    pub async fn survey(&self) -> Option<Vec<Voice>> {
        match &self.place {
            Destination::Moving {
                locator: Locator::Sentinels(sentinels),
                ..
            } => Some(sentinels.survey().await),
            Destination::Server { .. } | Destination::Moving { .. } => None,
        }
    }

    /// A connection of one's own on which every answer arrives within 5 s.
    pub async fn dedicated(&self) -> Result<MultiplexedConnection, BusError> {
        self.open(ANSWER).await
    }

    /// A connection of one's own for commands that block for up to `block`.
    pub async fn blocking(&self, block: Duration) -> Result<MultiplexedConnection, BusError> {
        self.open(block + Duration::from_secs(2)).await
    }

    /// A connection to whatever answers, a replica as well: for looking at the server only.
    pub async fn unchecked(&self) -> Result<MultiplexedConnection, BusError> {
        let (client, _) = self.find().await?;
        let config = answers_within(ANSWER);
        // Apart, as below: it is large, and whoever connects would have it on the stack.
        let opening = Box::pin(client.get_multiplexed_async_connection_with_config(&config));
        let address = client.get_connection_info().addr();
        self.reach(address, opening).await
    }

    /// A hand-written connection on which every answer arrives within 5 s.
    #[doc(hidden)]
    pub async fn wire(&self) -> Result<Wire, BusError> {
        self.open_wire(ANSWER).await
    }

    /// A hand-written connection for commands that block for up to `block`.
    #[doc(hidden)]
    pub async fn blocking_wire(&self, block: Duration) -> Result<Wire, BusError> {
        self.open_wire(block + Duration::from_secs(2)).await
    }

    /// Opens a connection to there.
    async fn reach<T, E: Failure + Into<BusError>>(
        &self,
        address: &ConnectionAddr,
        opening: impl Future<Output = Result<T, E>>,
    ) -> Result<T, BusError> {
        let opened = self
            .known
            .opening
            .open(self.url.changes(), address, opening)
            .await;
        if let Some(refusal) = opened.as_ref().err().and_then(Failure::redis) {
            self.known.heard(refusal);
        }
        opened.map_err(|error| error.into().at(address))
    }

    async fn open_wire(&self, answer: Duration) -> Result<Wire, BusError> {
        let (client, generation) = self.find().await?;
        let info = client.get_connection_info();
        let opening = Box::pin(Wire::open(info, &self.tls, answer));
        let mut wire = self.reach(info.addr(), opening).await?;
        if let Destination::Moving { locator, .. } = &self.place {
            wire.generation = Some(locator.made_in(generation));
        }
        self.known.greet(&mut wire).await?;
        if self.is_in_doubt() {
            // Such a connection asks, once.
            self.dedicated().await?;
        }
        self.check_mode()?;
        if self.must_load().is_some() {
            // It loads them, and is not needed for more: once for each server that is met.
            self.dedicated().await?;
        }
        Ok(wire)
    }

    async fn open(&self, answer: Duration) -> Result<MultiplexedConnection, BusError> {
        let (client, _) = self.find().await?;
        let config = answers_within(answer);
        let opening = Box::pin(client.get_multiplexed_async_connection_with_config(&config));
        let address = client.get_connection_info().addr();
        let mut connection = self.reach(address, opening).await?;
        self.known.greet_by(&mut connection).await?;
        self.check_mode()?;
        if let Some(loads) = self.must_load() {
            loads.load(&mut connection, self.epoch()).await?;
        }
        Ok(connection)
    }

    /// Asks the server whether it is there; how long it took to have the answer.
    pub async fn ping(&self) -> Result<Duration, BusError> {
        let began = Instant::now();
        let mut connection = self.pooled().await?;
        redis::cmd("PING").exec_async(&mut connection).await?;
        Ok(began.elapsed())
    }

    /// Fails if the server is one that workers cannot use: too old, or a node of a cluster of which nobody knew. What
    /// it does not tell is no reason.
    pub async fn check_server(&self) -> Result<(), BusError> {
        self.dedicated().await?;
        let Some(version) = self.known.version() else {
            return Ok(());
        };
        let mut numbers = version.split('.').map_while(|part| part.parse().ok());
        let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if found >= OLDEST {
            Ok(())
        } else {
            Err(BusError::Unsupported(format!(
                "redis {version} is too old: {}.{} is the oldest that has what the bus needs",
                OLDEST.0, OLDEST.1
            )))
        }
    }

    /// What the server does not tell; nothing before the first connection.
    #[doc(hidden)]
    pub fn lacks(&self) -> Lacks {
        self.known.lacks()
    }

    /// How the server is asked for its time; connects, if nothing was connected yet.
    #[doc(hidden)]
    pub async fn clock(&self) -> Result<ClockSource, BusError> {
        if !self.known.is_greeted() {
            self.pooled().await?;
        }
        Ok(match self.known.is_timeless() {
            true => ClockSource::Key,
            false => ClockSource::Time,
        })
    }
}
