//! A worker in this process, against a real server.

#[path = "../support/mod.rs"]
mod support;

mod basics;
mod rig;
