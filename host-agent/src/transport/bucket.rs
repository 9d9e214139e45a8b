//! A token bucket: the limit on bandwidth, shared by all connections of a job.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Bytes are paid for before they are sent; a debt is paid by waiting.
#[derive(Debug, Default)]
pub struct Bucket {
    /// When everything so far will have been paid.
    paid: Mutex<Option<Instant>>,
}

/// How much may be sent at once after a pause.
const BURST: Duration = Duration::from_millis(50);

impl Bucket {
    /// How long to wait before `bytes` may be sent at `rate` bytes per second.
    pub fn buy(&self, bytes: u64, rate: u64, now: Instant) -> Duration {
        let mut paid = self.paid.lock();
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let from = paid.map_or(earliest, |paid| paid.max(earliest));
        #[expect(
            clippy::cast_precision_loss,
            reason = "a limit need not be exact to the byte"
        )]
        let price = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        *paid = Some(from + price);
        (from + price).saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::Bucket;
    use std::time::{Duration, Instant};

    #[test]
    fn what_is_sent_in_a_second_is_the_limit_and_a_burst() {
        let (bucket, begin) = (Bucket::default(), Instant::now());
        let mut now = begin;
        let mut sent = 0;
        while now < begin + Duration::from_secs(1) {
            now += bucket.buy(4096, 1 << 20, now);
            sent += 4096;
        }
        let most = (1 << 20) + (1 << 20) / 20 + 4096;
        assert!(((1 << 20)..=most).contains(&sent), "{sent}");
    }

    #[test]
    fn a_pause_is_not_saved_up() {
        let (bucket, begin) = (Bucket::default(), Instant::now());
        bucket.buy(1000, 1000, begin);
        let later = begin + Duration::from_secs(100);
        let wait = bucket.buy(1000, 1000, later);
        assert_eq!(wait, Duration::from_millis(950));
    }
}
