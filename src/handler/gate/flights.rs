//! Equal runs at once: the first one runs, the others wait for what it leaves in the cache.

use crate::mutex::locked;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// The payloads that are being run.
#[derive(Debug, Default)]
pub struct Flights(Mutex<HashMap<Arc<[u8]>, watch::Receiver<()>>>);

/// What becomes of a run whose payload may be under way already.
#[derive(Debug)]
pub enum Boarding {
    /// The run is the first.
    First(Flight),
    /// An equal one is under way.
    Behind(Landing),
}

/// The first run of a payload; dropped, the others go on.
#[derive(Debug)]
pub struct Flight {
    flights: Arc<Flights>,
    payload: Arc<[u8]>,
    _landed: watch::Sender<()>,
}

/// The end of the run that is under way.
#[derive(Debug)]
pub struct Landing(watch::Receiver<()>);

impl Flights {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<[u8]>, watch::Receiver<()>>> {
        locked(&self.0)
    }

    /// Begins a run of that payload, unless one is under way.
    pub fn board(self: &Arc<Self>, payload: &[u8]) -> Boarding {
        let mut flights = self.lock();
        if let Some(landing) = flights.get(payload) {
            return Boarding::Behind(Landing(landing.clone()));
        }
        let (landed, landing) = watch::channel(());
        let payload: Arc<[u8]> = payload.into();
        flights.insert(payload.clone(), landing);
        Boarding::First(Flight {
            flights: self.clone(),
            payload,
            _landed: landed,
        })
    }
}

impl Landing {
    /// Waits until that run has ended.
    pub async fn landed(mut self) {
        // Nothing is ever sent: it ends when the sender goes away.
        while self.0.changed().await.is_ok() {}
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.payload);
    }
}
