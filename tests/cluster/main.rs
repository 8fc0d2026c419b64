//! The bus on a Redis Cluster.

#[path = "../support/mod.rs"]
mod support;

mod boxes;
mod moves;
mod operators;
mod owned;
mod partitions;
mod paths;
mod rig;
mod tls;
