//! What must not happen: a secret that is shown, a connection that trusts the wrong one, bytes that
//! stop a worker.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod canary;
mod corpus;
mod tls;
