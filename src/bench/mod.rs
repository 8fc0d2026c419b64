//! The loops by hand that a worker is measured against.

pub(crate) mod bare;
pub(crate) mod load;
pub(crate) mod raw;
