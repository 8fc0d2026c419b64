//! The words of the bus: names, fields, payloads and their bounds. Nothing here talks to a server.

#[doc(hidden)]
pub mod bounds;
#[doc(hidden)]
pub mod canonical;
#[doc(hidden)]
pub mod dead;
#[doc(hidden)]
pub mod digits;
#[doc(hidden)]
pub mod domain;
#[doc(hidden)]
pub mod entry;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod event;
#[doc(hidden)]
pub mod histogram;
#[doc(hidden)]
pub mod json;
#[doc(hidden)]
pub mod keys;
pub(crate) mod mismatch;
#[doc(hidden)]
pub mod msgpack;
#[doc(hidden)]
pub mod outcome;
pub mod pattern;
#[doc(hidden)]
pub mod progress;
#[doc(hidden)]
pub mod rate;
#[doc(hidden)]
pub mod reply;
#[doc(hidden)]
pub mod trace;

pub use dead::Letter;
pub use entry::{Entry, EntryId, ParseEntryIdError};
pub use error::{Code, HandlerError, Refusal};
pub use event::{Event, Limits, Malformed};
pub use keys::{Keys, NameError, StreamKind, StreamName};
pub use msgpack::PayloadLimits;
pub use progress::Progress;
pub use reply::{MalformedReply, RemoteError, Reply};
pub use trace::TraceContext;
