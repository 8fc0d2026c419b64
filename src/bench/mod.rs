//! The loops by hand that a worker is measured against.

pub mod bare;
pub mod load;
pub mod raw;
