//! Predicts a migration from measurements made before it.
//!
//! It simulates the rounds: each sends what the last one left dirty at the measured speed, while the guest
//! dirties memory at the measured rate.  The policy of real migrations decides when to stop.  What cannot be
//! measured beforehand comes from earlier jobs.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::job::{Compression, Estimate, JobOptions, PAGE_SIZE};
use crate::save::policy::{Limits, Progress, Round, Verdict};

/// A prediction.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Prediction {
    /// Rounds, including the last one with the guest suspended.
    pub rounds: u32,
    /// Bytes on the wire.
    pub bytes: u64,
    /// From the request until the guest runs at the destination.
    pub total_ms: f64,
    /// The part of it in which rounds run.
    pub copying_ms: f64,
    /// The blackout.
    pub blackout_ms: f64,
    /// The part of it in which both ends read and compare all memory; 0 without verification.
    #[serde(default)]
    pub verifying_ms: f64,
    /// The measured speed in bytes per second, or the operator's limit.
    pub bytes_per_second: f64,
}

/// What earlier jobs have shown and no measurement can.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Past {
    /// From the end of the measurements to the first round: the destination's toolstack starts.
    pub preparing_ms: f64,
    /// How much longer rounds take than the speeds of their parts suggest: the destination has work of its
    /// own, and builds the domain meanwhile.
    pub slowness: f64,
    /// Suspend and take-over: the part of the blackout in which no memory is copied.
    pub blackout_ms: f64,
}

impl Default for Past {
    fn default() -> Self {
        Self {
            preparing_ms: 1000.0,
            slowness: 1.0,
            blackout_ms: 200.0,
        }
    }
}

impl Past {
    /// Longest plausible time: a day.
    const MOST_MS: f64 = 86_400_000.0;

    /// Whether these figures are plausible.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let is_time = |ms: f64| (0.0..=Self::MOST_MS).contains(&ms);
        is_time(self.preparing_ms)
            && is_time(self.blackout_ms)
            && (0.1..=100.0).contains(&self.slowness)
    }

    /// The part of the blackout that is left for memory: at least a third, because long suspends and
    /// take-overs must not keep the rounds going for ever.
    #[must_use]
    pub fn for_memory(&self, blackout: Duration) -> Duration {
        let taken = Duration::try_from_secs_f64(self.blackout_ms / 1000.0).unwrap_or_default();
        blackout.saturating_sub(taken).max(blackout / 3)
    }

    /// What a job has shown, compared with this prediction, which was made from `self`.
    #[must_use]
    pub fn corrected(
        &self,
        expected: &Prediction,
        preparing: Duration,
        copying: Duration,
        blackout: Duration,
    ) -> Self {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let rest = expected.blackout_ms - self.blackout_ms;
        Self {
            preparing_ms: ms(preparing),
            slowness: (self.slowness * ms(copying) / expected.copying_ms.max(1.0))
                .clamp(0.1, 100.0),
            blackout_ms: (ms(blackout) - rest).max(0.0),
        }
    }
}

/// The compression at this speed: [`Compression::Auto`] becomes whatever is faster.
#[must_use]
pub fn compression(estimate: &Estimate, way: f64, options: &JobOptions) -> Compression {
    let way = options.bandwidth.map_or(way, |limit| way.min(limit as f64));
    match options.compress {
        Compression::Auto if compressed(estimate, way) > way => Compression::Zstd(1),
        Compression::Auto => Compression::None,
        other => other,
    }
}

/// Bytes of pages per second at this speed of the network, with this compression.
fn compressed(estimate: &Estimate, way: f64) -> f64 {
    let share = estimate.compressed_share.clamp(0.0, 1.0);
    // One processor may have to do both.
    1.0 / (share / way.max(1.0) + 1.0 / estimate.compress_bytes_per_second.max(1.0))
}

/// Simulates the migration.  `way` is the speed of the network in bytes per second, `elapsed` the time that
/// the measurements took.
#[must_use]
pub fn predict(
    estimate: &Estimate,
    way: f64,
    options: &JobOptions,
    past: &Past,
    elapsed: Duration,
) -> Prediction {
    let is_packed = compression(estimate, way, options) != Compression::None;
    let share = if is_packed {
        estimate.compressed_share.clamp(0.0, 1.0)
    } else {
        1.0
    };
    let slowness = past.slowness.max(0.01);
    let effective = |way: f64| {
        let way = way.max(1.0);
        let fast = if is_packed {
            compressed(estimate, way)
        } else {
            way
        };
        fast / slowness
    };
    let limit = |way: f64| options.bandwidth.map_or(way, |limit| way.min(limit as f64));
    let page = (PAGE_SIZE + 8) as f64;
    let mut pages = estimate.pages as f64 * (1.0 - estimate.zero_share.clamp(0.0, 1.0));
    let mut prediction = Prediction {
        bytes_per_second: limit(way),
        ..Prediction::default()
    };
    let limits = Limits {
        max_downtime: past.for_memory(Duration::from_millis(options.max_downtime_ms)),
        timeout: options.timeout_ms.map(Duration::from_millis),
        on_timeout: options.on_timeout,
        max_rounds: options.max_rounds,
        // It is expected of a move that may be.
        max_blackout: None,
    };
    let (way, limited) = (effective(way), effective(limit(way)));
    // The first round reads all frames, including those that are all zero.
    let mut reading = estimate.pages as f64 * PAGE_SIZE as f64 * slowness
        / estimate.read_bytes_per_second.max(1.0);
    let (mut bytes, mut seconds) = (estimate.constant_bytes as f64, 0.0);
    let mut progress = Progress::default();
    loop {
        let time = pages * page / limited + std::mem::take(&mut reading);
        prediction.rounds += 1;
        bytes += pages * page * share;
        seconds += time;
        let round = Round {
            pages: pages as u64,
            time: duration(time),
        };
        pages = dirtied(estimate, time);
        match progress.after(round, pages as u64, duration(seconds), &limits) {
            Verdict::GoOn => {}
            Verdict::Stop(_) => break,
            // The operator wants such a job aborted, so there is no blackout.
            Verdict::GiveUp(_) => {
                pages = 0.0;
                break;
            }
        }
    }
    // The limit does not apply while the guest is suspended.
    let rest = pages * page / way;
    prediction.rounds += 1;
    prediction.bytes = (bytes + pages * page * share) as u64;
    if options.verifies() {
        // Each end reads all of it, one after the other; this assumes that both are equally fast.
        let all = estimate.pages as f64 * PAGE_SIZE as f64;
        prediction.verifying_ms = 2000.0 * all / estimate.read_bytes_per_second.max(1.0);
    }
    prediction.blackout_ms = rest * 1000.0 + prediction.verifying_ms + past.blackout_ms;
    prediction.copying_ms = seconds * 1000.0;
    prediction.total_ms = elapsed.as_secs_f64() * 1000.0
        + past.preparing_ms
        + prediction.copying_ms
        + prediction.blackout_ms;
    prediction
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// Distinct pages that are written in this many seconds.
fn dirtied(estimate: &Estimate, seconds: f64) -> f64 {
    let written = estimate.dirty_pages_per_second * seconds;
    // Pages that are written again and again count once, however long it takes.
    let hot = (estimate.hot_pages as f64).max(1.0);
    let seen_hot = hot * (1.0 - (-written / hot).exp());
    let cold = (estimate.dirty_pages_per_second - hot).max(0.0) * seconds;
    (seen_hot + cold).min(estimate.pages as f64).min(written)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Past, Prediction, compression};
    use crate::job::{Compression, Estimate, JobOptions, OnTimeout};

    const WAY: f64 = 100e6;
    const PAST: Past = Past {
        preparing_ms: 0.0,
        slowness: 1.0,
        blackout_ms: 50.0,
    };

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
        }
    }

    #[test]
    fn what_verifying_takes_is_a_part_of_the_blackout() {
        let slow = Estimate {
            read_bytes_per_second: 409_600_000.0,
            ..guest(0.0, 0)
        };
        let options = JobOptions {
            verify: Some(true),
            ..JobOptions::default()
        };
        let without = predict(&slow, WAY, &JobOptions::default());
        let with = predict(&slow, WAY, &options);
        // 100,000 pages, at each end.
        assert_eq!((without.verifying_ms, with.verifying_ms), (0.0, 2000.0));
        assert!((with.blackout_ms - without.blackout_ms - 2000.0).abs() < 1e-6);
        assert!((with.total_ms - without.total_ms - 2000.0).abs() < 1e-6);
    }

    fn predict(estimate: &Estimate, way: f64, options: &JobOptions) -> Prediction {
        super::predict(estimate, way, options, &PAST, Duration::ZERO)
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
    fn a_job_corrects_what_is_expected_of_the_next() {
        let guest = guest(0.0, 0);
        let options = JobOptions::default();
        let elapsed = Duration::from_secs(3);
        let first = super::predict(&guest, WAY, &options, &PAST, elapsed);
        // It took twice as long, the toolstack 5 s, and the blackout was 100 ms longer.
        let took = Duration::from_secs_f64(first.copying_ms * 2.0 / 1000.0);
        let blackout = Duration::from_secs_f64((first.blackout_ms + 100.0) / 1000.0);
        let past = PAST.corrected(&first, Duration::from_secs(5), took, blackout);
        let next = super::predict(&guest, WAY, &options, &past, elapsed);
        assert!(
            (next.copying_ms - first.copying_ms * 2.0).abs() < 1.0,
            "{next:?}"
        );
        assert!((next.blackout_ms - 150.0).abs() < 1.0, "{next:?}");
        let total = 3000.0 + 5000.0 + next.copying_ms + next.blackout_ms;
        assert!((next.total_ms - total).abs() < 1e-6, "{next:?}");
        // The same again changes nothing.
        let took = Duration::from_secs_f64(next.copying_ms / 1000.0);
        let again = past.corrected(&next, Duration::from_secs(5), took, blackout);
        assert!((again.slowness - past.slowness).abs() < 1e-6, "{again:?}");
    }

    #[test]
    fn what_is_no_memory_takes_its_part_of_a_blackout() {
        let past = |blackout_ms| Past {
            blackout_ms,
            ..PAST
        };
        let ms = Duration::from_millis;
        assert_eq!(past(100.0).for_memory(ms(300)), ms(200));
        assert_eq!(past(5000.0).for_memory(ms(300)), ms(100));
    }

    #[test]
    fn a_job_that_is_given_up_has_no_blackout_to_speak_of() {
        let options = JobOptions {
            timeout_ms: Some(1),
            ..JobOptions::default()
        };
        let busy = guest(20_000.0, 15_000);
        let aborted = predict(&busy, WAY, &options);
        assert_eq!(aborted.blackout_ms, PAST.blackout_ms);
        let stopped = JobOptions {
            on_timeout: OnTimeout::StopAndCopy,
            ..options
        };
        assert!(predict(&busy, WAY, &stopped).blackout_ms > 300.0);
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
