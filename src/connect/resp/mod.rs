//! RESP by hand, where a general client costs more than the server does.

pub mod sieve;
pub mod wire;
