//! The worker's half of the bus: what is done with a stream's entries, each rule with its scripts.

pub mod cancel;
pub mod claim;
pub mod commit;
pub mod delay;
pub mod domains;
#[doc(hidden)]
pub mod fence;
pub mod first;
#[doc(hidden)]
pub mod hold;
#[doc(hidden)]
pub mod made;
pub mod open;
pub mod outbox;
pub mod own;
pub mod park;
pub mod read;
pub mod remade;
pub mod trim;
