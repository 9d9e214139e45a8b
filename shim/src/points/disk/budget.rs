//! How much of a disk may be in flight at the host.
//!
//! A suspend waits until the host has answered everything, and is refused when that takes longer
//! than `unmoved.drain`, 10 s.  So a guest that asks for much at a time must find a bound here,
//! or it could have every suspend refused.  The bound is such that even slow storage, which moves
//! 4 MiB a second or seeks a hundred times a second, answers all of it in 2 to 5 s; and such that
//! fast storage is kept busy, which needs its rate times its delay: 4 GB/s at 2 ms, or 1 GB/s at
//! 8 ms.  The disks of a guest share the bound, because they may well lie on the same storage.

use super::shadow::Step;

/// Bytes that all disks of a guest may have in flight.
const GUEST_BYTES: u64 = 8 << 20;
/// Requests that all disks of a guest may have in flight.
const GUEST_REQUESTS: usize = 256;
/// Bytes that a disk may have in flight, however many there are: one of its largest requests.
const LEAST_BYTES: u64 = 1 << 20;
/// Requests that a disk may have in flight, however many there are.
const LEAST_REQUESTS: usize = 16;

/// What a request is counted as when its length does not tell its work: a flush, which may have to
/// write what the host has cached, and a discard of up to [`DISCARD_SECTORS`](super::features::DISCARD_SECTORS).
const UNKNOWN_BYTES: u64 = 1 << 20;

/// A disk's share of what may be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// Bytes, as [`cost`] counts them.
    bytes: u64,
    /// Requests.
    requests: usize,
}

impl Default for Budget {
    /// The share of a disk that is alone.
    fn default() -> Self {
        Self::of(1)
    }
}

impl Budget {
    /// The share of one of `disks` disks.
    pub fn of(disks: usize) -> Self {
        let disks = disks.max(1);
        Self {
            bytes: (GUEST_BYTES / disks as u64).max(LEAST_BYTES),
            requests: (GUEST_REQUESTS / disks).max(LEAST_REQUESTS),
        }
    }

    /// How many requests may be in flight.
    pub fn requests(self) -> usize {
        self.requests
    }

    /// A share of so much.
    #[cfg(test)]
    pub const fn exactly(bytes: u64, requests: usize) -> Self {
        Self { bytes, requests }
    }

    /// Whether a request that costs `cost` may go out beside `requests` that cost `bytes`.  Alone
    /// any may.
    pub fn allows(self, cost: u64, requests: usize, bytes: u64) -> bool {
        requests == 0 || requests < self.requests && bytes.saturating_add(cost) <= self.bytes
    }
}

/// What a request with `data` bytes counts as.  A secure discard, which some storage does by
/// writing, goes alone.
pub(super) fn cost(step: Step, data: u64, is_secure: bool) -> u64 {
    use xen_abi::blkif::op;
    match step {
        Step::Data(op::READ | op::WRITE) => data,
        Step::Data(_) | Step::Bare(_) => data + UNKNOWN_BYTES,
        Step::Discard if is_secure => GUEST_BYTES,
        Step::Discard => UNKNOWN_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::Budget;

    #[test]
    fn disks_share_what_a_guest_may_have_and_none_gets_nothing() {
        let (alone, four, many) = (Budget::of(1), Budget::of(4), Budget::of(200));
        assert_eq!((alone.bytes, alone.requests), (8 << 20, 256));
        assert_eq!((four.bytes, four.requests), (2 << 20, 64));
        assert_eq!((many.bytes, many.requests), (1 << 20, 16));
        assert_eq!(Budget::of(0), alone);
    }

    #[test]
    fn what_is_too_large_goes_alone() {
        let budget = Budget::of(1);
        assert!(budget.allows(64 << 20, 0, 0));
        assert!(!budget.allows(64 << 20, 1, 512));
        assert!(budget.allows(4096, 255, (8 << 20) - 4096));
        assert!(!budget.allows(4096, 256, 0), "one request too many");
        assert!(!budget.allows(4097, 255, (8 << 20) - 4096));
    }
}
