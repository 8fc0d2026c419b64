//! The settings that are flags.

use clap::{Args, ValueHint};
use serde::Serialize;

/// The settings that every command takes.
#[derive(Args, Serialize)]
pub(super) struct BusFlags {
    /// Where Redis is, without a password: redis://HOST:PORT/DB, rediss://… (TLS), or the Sentinels
    /// that watch it: redis+sentinel://HOST:PORT,HOST:PORT,HOST:PORT/SERVICE, rediss+sentinel://…
    /// [default: redis://127.0.0.1:6379]
    #[arg(long, global = true, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    redis_url: Option<String>,
    /// The file that holds the URL, which may have a password; it is read again for each new connection
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    redis_url_file: Option<String>,
    /// A PEM file of authorities to trust, in the place of the system's
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_ca: Option<String>,
    /// A PEM file of the certificate to show to the server
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cert: Option<String>,
    /// A PEM file of its private key
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_key: Option<String>,
    /// The first part of every key [default: cb]
    #[arg(long, global = true, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    /// Streams that each data domain is split over; 0: not at all [default: 0]
    #[arg(long, global = true, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    partitions: Option<u16>,
}

/// The settings of commands that ask the ledger.
#[derive(Args, Serialize)]
pub(super) struct DatabaseFlags {
    /// The ledger's database: sqlite:PATH or postgres://…, without a password
    /// [default: a file under the state directory]
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    database_url: Option<String>,
    /// The file that holds its URL, which may have a password
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    database_url_file: Option<String>,
}
