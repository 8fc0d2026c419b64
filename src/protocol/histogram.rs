//! Times in buckets that can be added up, whoever counted them.
//!
//! A bucket is a range of microseconds. Below 8 µs each has its own; above, each octave is cut into
//! [`PER_OCTAVE`] equal parts. So a bucket is at most an eighth of its lower bound wide, its middle
//! is off by at most 6.25 %, and the buckets of an octave add up to it exactly.
//!
//! Histograms of the same samples are equal, however the samples were spread over recorders: adding
//! them up is adding counts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets of one octave, and of all below the first one.
pub const PER_OCTAVE: u16 = 8;
/// All buckets. The last one ends at 2^32 µs, which is over an hour; longer times count in it.
pub const BUCKETS: u16 = 240;

/// The bucket of a time in µs.
pub fn bucket_of(micros: u64) -> u16 {
    let micros = micros.min(u64::from(u32::MAX));
    if micros < 8 {
        return micros as u16;
    }
    let octave = 63 - micros.leading_zeros();
    let part = (micros >> (octave - 3)) & 7;
    (octave as u16 - 2) * PER_OCTAVE + part as u16
}

/// The least time of a bucket, in µs. That of [`BUCKETS`] is the end of the last one.
pub fn floor_of(bucket: u16) -> u64 {
    if bucket < PER_OCTAVE {
        return u64::from(bucket);
    }
    let octave = bucket / PER_OCTAVE + 2;
    u64::from(PER_OCTAVE + bucket % PER_OCTAVE) << (octave - 3)
}

/// Times by bucket, and their sum.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How many times lie in each bucket that has any; below [`BUCKETS`].
    pub counts: BTreeMap<u16, u64>,
    /// All of them together, in µs.
    pub sum: u64,
}

impl Histogram {
    /// How many times were counted.
    pub fn count(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Histogram) {
        for (&bucket, &count) in &other.counts {
            let sum = self.counts.entry(bucket).or_default();
            *sum = sum.saturating_add(count);
        }
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// The time, in ms, that the given part (0 to 1) of all times does not exceed: the middle of the
    /// bucket in which it lies. 0 where nothing was counted.
    pub fn quantile_ms(&self, part: f64) -> f64 {
        let rank = (part.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0) as u64;
        let mut below = 0;
        for (&bucket, &count) in &self.counts {
            below += count;
            if below >= rank {
                let (floor, end) = (floor_of(bucket), floor_of(bucket + 1));
                return (floor + end) as f64 / 2000.0;
            }
        }
        0.0
    }

    /// The mean, in ms; 0 where nothing was counted.
    pub fn mean_ms(&self) -> f64 {
        match self.count() {
            0 => 0.0,
            count => self.sum as f64 / count as f64 / 1000.0,
        }
    }

    /// Each octave's end in µs and its count, the first for all below 8 µs; the same ends always.
    pub fn octaves(&self) -> impl Iterator<Item = (u64, u64)> {
        (0..BUCKETS / PER_OCTAVE).map(|octave| {
            let first = octave * PER_OCTAVE;
            let within = self.counts.range(first..first + PER_OCTAVE);
            let count = within.map(|(_, count)| count).sum();
            (floor_of(first + PER_OCTAVE), count)
        })
    }
}

/// Counts times, from any thread.
#[derive(Debug)]
pub struct Recorder {
    counts: [AtomicU64; BUCKETS as usize],
    sum: AtomicU64,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; BUCKETS as usize],
            sum: AtomicU64::new(0),
        }
    }
}

impl Recorder {
    /// Counts one.
    pub fn record(&self, elapsed: Duration) {
        let micros = elapsed.as_micros().min(u128::from(u32::MAX)) as u64;
        self.counts[usize::from(bucket_of(micros))].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(micros, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn histogram(&self) -> Histogram {
        let counts = self.counts.iter().enumerate();
        let counts = counts.map(|(bucket, count)| (bucket as u16, count.load(Ordering::Relaxed)));
        Histogram {
            counts: counts.filter(|(_, count)| *count > 0).collect(),
            sum: self.sum.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(samples: &[u64]) -> Histogram {
        let recorder = Recorder::default();
        for &micros in samples {
            recorder.record(Duration::from_micros(micros));
        }
        recorder.histogram()
    }

    fn times() -> impl Strategy<Value = Vec<u64>> {
        let octaves = (0..34u32, any::<u64>()).prop_map(|(octave, bits)| bits >> (63 - octave));
        prop::collection::vec(octaves, 0..200)
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap_and_are_narrow() {
        assert_eq!((floor_of(0), floor_of(BUCKETS)), (0, 1 << 32));
        for bucket in 0..BUCKETS {
            let (floor, end) = (floor_of(bucket), floor_of(bucket + 1));
            assert_eq!((bucket_of(floor), bucket_of(end - 1)), (bucket, bucket));
            assert!(end - floor <= (floor / 8).max(1), "{bucket}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn nothing_counted_is_zero() {
        let none = Histogram::default();
        assert_eq!((none.quantile_ms(0.99), none.mean_ms()), (0.0, 0.0));
        assert_eq!(none.octaves().count(), 30);
    }

    proptest! {
        #[test]
        fn merged_histograms_equal_the_histogram_of_all_samples(parts in prop::collection::vec(times(), 0..6)) {
            let mut merged = Histogram::default();
            for part in &parts {
                merged.add(&of(part));
            }
            prop_assert_eq!(merged, of(&parts.concat()));
        }

        #[test]
        fn quantiles_are_off_by_no_more_than_half_a_bucket(samples in times(), part in 0.0..1.0f64) {
            prop_assume!(!samples.is_empty());
            let mut sorted: Vec<u64> = samples.iter().map(|&us| us.min(u64::from(u32::MAX))).collect();
            sorted.sort_unstable();
            let rank = (part * sorted.len() as f64).ceil().max(1.0) as usize;
            let exact = sorted[rank - 1] as f64 / 1000.0;
            let found = of(&samples).quantile_ms(part);
            prop_assert!((found - exact).abs() <= exact * 0.0626 + 0.000_501, "{found} for {exact}");
        }

        #[test]
        fn octaves_hold_every_sample_once_below_their_end(samples in times()) {
            let octaves: Vec<(u64, u64)> = of(&samples).octaves().collect();
            let mut below = 0;
            for (end, count) in octaves {
                below += count;
                let exact = samples.iter().filter(|&&us| us.min(u64::from(u32::MAX)) < end).count();
                prop_assert_eq!(below, exact as u64);
            }
            prop_assert_eq!(below, samples.len() as u64);
        }
    }
}
