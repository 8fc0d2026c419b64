//! The bus against a real server: what it promises while others take over, flush, kill and stall.

#[path = "../support/mod.rs"]
mod support;

mod cancel;
mod claim;
mod commit;
mod commit_far;
mod commit_one;
mod delayed;
mod domains;
mod groups;
mod history;
mod later;
mod outage;
mod own;
mod owned;
mod park;
mod pool;
mod publish;
mod replay;
mod request;
mod sentinels;
mod setup;
mod trim;
