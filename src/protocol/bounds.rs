//! What an instance and a batch may ask for. The settings are held to it, and so is whoever asks by an event.

use std::ops::RangeInclusive;

/// Roles that one instance may hold.
pub const MAX_ROLES: usize = 32;
/// The highest capacity.
pub const MAX_CAPACITY: u32 = 1_000_000;
/// How long a pulse may keep an instance alive, in ms.
pub const TTL_MS: RangeInclusive<u64> = 100..=3_600_000;
/// How long the holder of a batch may keep it without a sign of life, in ms.
pub const LEASE_MS: RangeInclusive<u64> = 100..=86_400_000;
