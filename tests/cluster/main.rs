//! The bus on a Redis Cluster.

#[path = "../support/mod.rs"]
mod support;

mod away;
mod boxes;
mod foreign;
mod gone;
mod idle;
mod moves;
mod operators;
mod owned;
mod partitions;
mod paths;
mod plain;
mod rig;
mod tls;
