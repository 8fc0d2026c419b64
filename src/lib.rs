//! A message-bus worker for Redis Streams.
//!
//! A **worker** runs handlers on events. An event's acknowledgement, its reply and everything that its
//! handler published take effect in one atomic step, or not at all:
//!
//! ```no_run
//! use convoke::{Context, HandlerError, Policy, State, Worker};
//! use std::time::Duration;
//!
//! struct Lens { height: u32 }
//!
//! async fn resize(ctx: Context, width: u32, lens: State<Lens>) -> Result<u32, HandlerError> {
//!     let pixels = width * lens.height;
//!     ctx.publish("image.resized", &pixels)?;
//!     Ok(pixels)
//! }
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! Worker::builder()
//!     .redis("redis://127.0.0.1")
//!     .handler_with("image.resize", resize, Policy::new().timeout(Duration::from_secs(5)))
//!     .state(Lens { height: 480 })
//!     .run()
//!     .await?;
//! # Ok(())
//! # }
//! ```
//!
//! A payload that is a struct derives `Deserialize` and `JsonSchema`, a result `Serialize` and `JsonSchema`. Settings come from the
//! environment and a file by [`Worker::from_env`]. The worker's log goes to stderr, unless the program has a subscriber of `tracing`.
//!
//! A **client** publishes events and asks for answers:
//!
//! ```no_run
//! use convoke::{Client, Event};
//! use std::time::Duration;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("redis://127.0.0.1").await?;
//! client.publish(Event::new("image.resize", &640).id("order-4711").dedup(true)).await?;
//! let pixels: u32 = client.ask("image.resize", &640).within(Duration::from_secs(5)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! **SQL** takes effect once, however often its event is run (feature `ledger-sqlite` or `ledger-postgres`). A **test** of a handler needs
//! no server (feature [`testing`]):
//!
//! ```
//! use convoke::sqlx::{self, SqlitePool};
//! use convoke::{Context, HandlerError, State, ledger, testing};
//!
//! async fn charge(
//!     ctx: Context,
//!     cents: i64,
//!     pool: State<SqlitePool>,
//! ) -> Result<i64, HandlerError> {
//!     let update = "UPDATE account SET cents = cents - ? RETURNING cents";
//!     ctx.once(&pool, async |transaction| {
//!         let left = sqlx::query_scalar(update).bind(cents);
//!         Ok(left.fetch_one(transaction).await?)
//!     })
//!     .await
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = SqlitePool::connect("sqlite::memory:").await?;
//! ledger::migrate(&pool).await?;
//! sqlx::query("CREATE TABLE account AS SELECT 100 AS cents").execute(&pool).await?;
//! let run = testing::run(charge, &30).state(pool).await;
//! assert_eq!(run.result(), Ok(70));
//! # Ok(())
//! # }
//! ```
//!
//! What such a service depends on:
//!
//! ```toml
//! [dependencies]
//! convoke = { path = "…", default-features = false, features = ["worker", "config", "logs", "ledger-sqlite"] }
//! schemars = "1"
//! serde = { version = "1", features = ["derive"] }
//! tokio = { version = "1", features = ["full"] }
//!
//! [dev-dependencies]
//! convoke = { path = "…", default-features = false, features = ["testing"] }
//! ```
//!
//! | for | look at |
//! |---|---|
//! | a handler, and what it may do | [`Context`], [`State`], [`HandlerError`] |
//! | how it is run: time-out, retries, rate, order, circuit breaker, layers | [`Policy`] |
//! | many events at once | [`Batches`], [`Batch`], [`Builder::batch_handler`](worker::Builder::batch_handler) |
//! | SQL that takes effect once, and the outbox | [`Context::once`], [`ledger::migrate`], [`ledger::Post`] |
//! | what can be set | [`Settings`] |
//! | a client in another language, how all of it works, who is trusted with what | [`docs`] |
//!
//! Programs that run are in `tests/examples` of the repository.
//!
//! | feature | brings |
//! |---|---|
//! | none (`default-features = false`) | a client |
//! | `worker` | a worker, the built-in handlers |
//! | `config` | settings from a file and the environment: [`Settings::load`], [`Worker::from_env`] |
//! | `logs` | a worker writes its logs to stderr where nobody else takes them |
//! | `ledger-sqlite` | the ledger in SQLite; [`once`](Context::once) and the outbox for a service's own SQLite |
//! | `ledger-postgres` | the same with PostgreSQL |
//! | `mcp` | the health of an MCP server |
//! | `operator` | looking at a bus and putting it right: [`operator`] |
//! | `testing` | a handler's test without a server: [`testing`] |
//! | `cli` (default) | all of these, and the program |

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]
// The front page links to what the features bring.
#![cfg_attr(not(feature = "cli"), allow(rustdoc::broken_intra_doc_links))]

// Tests and the program are other crates: what only they need is public and hidden. It may change at any time.
#[cfg(feature = "worker")]
#[doc(hidden)]
pub mod builtin;
pub mod client;
#[doc(hidden)]
pub mod connect;
#[cfg(feature = "worker")]
#[doc(hidden)]
pub mod coordination;
pub mod docs;
#[cfg(feature = "worker")]
pub mod handler;
#[cfg(any(feature = "ledger-sqlite", feature = "ledger-postgres"))]
pub mod ledger;
mod mutex;
#[cfg(feature = "operator")]
pub mod operator;
pub mod protocol;
pub mod settings;
#[doc(hidden)]
pub mod streams;
#[cfg(feature = "worker")]
#[doc(hidden)]
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "worker")]
pub mod worker;

pub use client::Client;
pub use client::publish::Outgoing as Event;
#[cfg(feature = "worker")]
pub use handler::{Batch, Batches, Context, Policy, State};
pub use protocol::error::{Code, HandlerError};
pub use protocol::progress::Progress;
pub use settings::Settings;
#[cfg(any(feature = "ledger-sqlite", feature = "ledger-postgres"))]
pub use sqlx;
#[cfg(feature = "worker")]
pub use worker::Worker;
// Their types stand in signatures.
#[cfg(feature = "worker")]
pub use tokio_util::sync::CancellationToken;
pub use {redis, rmpv, serde_json};
#[cfg(feature = "worker")]
pub use {schemars, tower};
