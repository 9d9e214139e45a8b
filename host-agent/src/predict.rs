//! What is to be expected of a migration, from what was measured before it.
//!
//! The rounds are played through in figures: each sends what the one before left dirty, over a way as
//! fast as it was probed, while a guest as busy as it was watched dirties more.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::job::{Compression, Estimate, JobOptions, OnTimeout, PAGE_SIZE};

/// What is expected.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Prediction {
    /// Rounds, the last with the guest suspended.
    pub rounds: u32,
    /// On the wire.
    pub bytes: u64,
    /// From the order until the guest runs at the destination.
    pub total_ms: f64,
    /// While it runs nowhere.
    pub blackout_ms: f64,
    /// As probed, in bytes per second; less if the operator wants it so.
    pub bytes_per_second: f64,
}

/// A round has to be this much shorter than the last to pay.
const SHORTER: f64 = 0.8;
/// So many rounds in a row may fail to pay.
const FORGIVEN: u32 = 2;

/// What is done to pages on a way of this speed: [`Compression::Auto`] becomes what is faster.
#[must_use]
pub fn compression(estimate: &Estimate, way: f64, options: &JobOptions) -> Compression {
    let way = options.bandwidth.map_or(way, |limit| way.min(limit as f64));
    match options.compress {
        Compression::Auto if compressed(estimate, way) > way => Compression::Zstd(1),
        Compression::Auto => Compression::None,
        other => other,
    }
}

/// Bytes of pages per second over a way of this speed, if they are compressed for it.
fn compressed(estimate: &Estimate, way: f64) -> f64 {
    let share = estimate.compressed_share.clamp(0.0, 1.0);
    // One processor may have to do both.
    1.0 / (share / way.max(1.0) + 1.0 / estimate.compress_bytes_per_second.max(1.0))
}

/// Plays it through.  `way` is the speed of the way in bytes per second.
#[must_use]
pub fn predict(estimate: &Estimate, way: f64, options: &JobOptions) -> Prediction {
    let is_packed = compression(estimate, way, options) != Compression::None;
    let share = if is_packed {
        estimate.compressed_share.clamp(0.0, 1.0)
    } else {
        1.0
    };
    let effective = |way: f64| {
        let way = way.max(1.0);
        if is_packed {
            compressed(estimate, way)
        } else {
            way
        }
    };
    // In the first round all frames are read, those that are all zero too.
    let reading =
        estimate.pages as f64 * PAGE_SIZE as f64 / estimate.read_bytes_per_second.max(1.0);
    let limit = |way: f64| options.bandwidth.map_or(way, |limit| way.min(limit as f64));
    let page = (PAGE_SIZE + 8) as f64;
    let mut pages = estimate.pages as f64 * (1.0 - estimate.zero_share.clamp(0.0, 1.0));
    let mut prediction = Prediction {
        bytes_per_second: limit(way),
        ..Prediction::default()
    };
    let (way, limited) = (effective(way), effective(limit(way)));
    let (mut bytes, mut seconds) = (estimate.constant_bytes as f64, reading);
    let target = Duration::from_millis(options.max_downtime_ms).as_secs_f64();
    let timeout = options.timeout_ms.map(|ms| ms as f64 / 1000.0);
    let mut unpaid = 0;
    loop {
        let time = pages * page / limited;
        prediction.rounds += 1;
        bytes += pages * page * share;
        seconds += time;
        pages = dirtied(estimate, time);
        let expected = pages * page / limited;
        unpaid = if expected <= time * SHORTER {
            0
        } else {
            unpaid + 1
        };
        let is_late = timeout.is_some_and(|timeout| seconds >= timeout);
        let gives_up = is_late || (timeout.is_none() && unpaid >= FORGIVEN);
        if expected <= target || gives_up || prediction.rounds >= options.max_rounds {
            // A job that the operator wants aborted then has no blackout at all.
            if is_late && expected > target && options.on_timeout == OnTimeout::Abort {
                pages = 0.0;
            }
            break;
        }
    }
    // With the guest suspended the limit does not hold.
    let rest = pages * page / way;
    prediction.rounds += 1;
    prediction.bytes = (bytes + pages * page * share) as u64;
    prediction.blackout_ms = rest * 1000.0 + estimate.fixed_blackout_ms;
    prediction.total_ms = seconds * 1000.0 + prediction.blackout_ms;
    prediction
}

/// Distinct pages that are written in so many seconds.
fn dirtied(estimate: &Estimate, seconds: f64) -> f64 {
    let written = estimate.dirty_pages_per_second * seconds;
    // What is written again and again counts once, however long it takes.
    let hot = (estimate.hot_pages as f64).max(1.0);
    let seen_hot = hot * (1.0 - (-written / hot).exp());
    let cold = (estimate.dirty_pages_per_second - hot).max(0.0) * seconds;
    (seen_hot + cold).min(estimate.pages as f64).min(written)
}

#[cfg(test)]
mod tests {
    use super::{compression, predict};
    use crate::job::{Compression, Estimate, JobOptions};

    const WAY: f64 = 100e6;

    fn guest(dirty_pages_per_second: f64, hot_pages: u64) -> Estimate {
        Estimate {
            pages: 100_000,
            zero_share: 0.5,
            compressed_share: 0.3,
            compress_bytes_per_second: 500e6,
            read_bytes_per_second: 1e15,
            dirty_pages_per_second,
            hot_pages,
            constant_bytes: 16_384,
            fixed_blackout_ms: 50.0,
        }
    }

    #[test]
    fn an_idle_guest_takes_one_round_and_the_rest() {
        let found = predict(&guest(0.0, 0), WAY, &JobOptions::default());
        assert_eq!(found.rounds, 2);
        assert!((found.blackout_ms - 50.0).abs() < 1e-9);
        assert!((2050.0..2200.0).contains(&found.total_ms), "{found:?}");
    }

    #[test]
    fn a_busier_guest_takes_longer_and_a_slower_way_too() {
        let idle = predict(&guest(100.0, 100), WAY, &JobOptions::default());
        let busy = predict(&guest(20_000.0, 15_000), WAY, &JobOptions::default());
        assert!(busy.blackout_ms > idle.blackout_ms);
        assert!(busy.bytes > idle.bytes);
        let slow = JobOptions {
            bandwidth: Some(10_000_000),
            ..JobOptions::default()
        };
        let slow = predict(&guest(100.0, 100), WAY, &slow);
        assert!(slow.total_ms > 9.0 * idle.total_ms, "{slow:?} {idle:?}");
    }

    #[test]
    fn a_slow_way_is_worth_compressing_for_and_a_fast_one_is_not() {
        let options = JobOptions {
            compress: Compression::Auto,
            ..JobOptions::default()
        };
        let guest = guest(100.0, 100);
        assert_eq!(compression(&guest, WAY, &options), Compression::Zstd(1));
        assert_eq!(compression(&guest, 10e9, &options), Compression::None);
        let slow = JobOptions {
            bandwidth: Some(1_000_000),
            ..options.clone()
        };
        assert_eq!(compression(&guest, 10e9, &slow), Compression::Zstd(1));
        let plain = predict(&guest, WAY, &JobOptions::default());
        let packed = predict(&guest, WAY, &options);
        assert!(packed.bytes < plain.bytes / 2, "{packed:?} {plain:?}");
        assert!(packed.total_ms < plain.total_ms, "{packed:?} {plain:?}");
    }

    #[test]
    fn it_ends_whatever_the_guest_does() {
        for dirty in [0.0, 1e3, 1e6, 1e12] {
            let found = predict(&guest(dirty, 100_000), 1.0, &JobOptions::default());
            assert!(found.rounds <= 31 && found.total_ms.is_finite());
        }
    }
}
