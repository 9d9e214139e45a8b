//! When the CPUs last flushed, as far as a frame's line in the ledger remembers it.
//!
//! A frame that lost its last typed reference may still be reached as what it was: written through
//! a writable translation, or walked as a table through the paging-structure caches.  So the ledger
//! stamps it with the epoch of that moment, *after* the entry is gone, and each full flush begins
//! the next epoch.  The frame is clean once every CPU has flushed in a later epoch than its stamp;
//! only if it gets *another* use before that does anybody have to flush.  A process that ends costs
//! one flush this way, however many tables it had.
//!
//! There is one CPU and so one epoch.  With more, each keeps the epoch that it read just before its
//! own last flush, and a stamp is clean for it when it is smaller than that.
//!
//! Stamps are compared as they are, never modulo something.  When they run out, the flush at hand
//! starts them again.  Every CPU has then forgotten everything, so an earlier stamp does no harm by
//! looking old, and costs a needless flush where it looks new.

/// Bits of a stamp.
pub(super) const STAMP_BITS: u32 = 28;
/// Bits of a [short](Epoch::short) stamp.
pub(super) const SHORT_BITS: u32 = 6;

const LAST: u64 = (1 << STAMP_BITS) - 1;
const SHORT: u64 = (1 << SHORT_BITS) - 1;

/// The present epoch; 1 is the first, so that stamp 0 is always clean.
#[derive(Debug)]
pub(super) struct Epoch(u64);

impl Epoch {
    pub(super) const fn new() -> Self {
        Self(1)
    }

    /// Begins the next epoch: every CPU has just flushed every translation.
    #[inline]
    pub(super) const fn advance(&mut self) {
        // Starting over is safe only here: no CPU remembers anything, so no stamp from before can
        // be stale in truth. 0 is left out, for it stands for a frame that never had a use.
        self.0 = if self.0 == LAST { 1 } else { self.0 + 1 };
    }

    /// Returns the stamp of what happens now.
    #[inline]
    pub(super) const fn stamp(&self) -> u64 {
        self.0
    }

    /// Whether a CPU may remember something from when the stamp was made.
    #[inline]
    pub(super) const fn is_stale(&self, stamp: u64) -> bool {
        // `>=` and not `==`: stamps from before the last start are larger than the present epoch,
        // and must err towards a flush.
        stamp >= self.0
    }

    /// Returns a stamp's last bits, for where there is no room for more.
    #[inline]
    pub(super) const fn short(stamp: u64) -> u64 {
        stamp & SHORT
    }

    /// Returns the newest stamp that a short one may stand for, which may be newer than the one it
    /// was made from, never older.  None of these bits since the stamps began: clean.
    #[inline]
    pub(super) const fn newest(&self, short: u64) -> u64 {
        // The distance back to the latest epoch with these last bits, at most 63. A stamp from
        // longer ago looks younger than it is, which may cost a flush; none looks older.
        // Saturation: there was no such epoch since the stamps began.
        self.0.saturating_sub(self.0.wrapping_sub(short) & SHORT)
    }
}

#[cfg(test)]
mod tests {
    use super::{Epoch, LAST};

    #[test]
    fn a_stamp_is_stale_until_the_next_flush() {
        let mut epoch = Epoch::new();
        assert!(!epoch.is_stale(0), "never referred to");
        for _ in 0..1000 {
            let stamp = epoch.stamp();
            assert!(epoch.is_stale(stamp));
            epoch.advance();
            assert!(!epoch.is_stale(stamp));
        }
    }

    #[test]
    fn stamps_that_begin_anew_take_nothing_stale_for_clean() {
        let mut epoch = Epoch(LAST);
        let (old, last) = (LAST - 5, epoch.stamp());
        assert!(epoch.is_stale(last) && !epoch.is_stale(old));
        epoch.advance();
        // Both are clean in truth, and may be taken for stale.
        assert_eq!(epoch.stamp(), 1);
        let fresh = epoch.stamp();
        assert!(epoch.is_stale(fresh));
        epoch.advance();
        assert!(!epoch.is_stale(fresh));
    }

    #[test]
    fn a_short_stamp_is_never_taken_for_an_older_one() {
        for begun in [0, LAST - 100] {
            let mut epoch = Epoch(begun + 1);
            let stamp = epoch.stamp();
            let short = Epoch::short(stamp);
            for age in 0..100 {
                assert!(epoch.newest(short) >= stamp, "after {age} flushes");
                let is_stale = epoch.is_stale(epoch.newest(short));
                assert_eq!(is_stale, age % 64 == 0, "after {age} flushes");
                epoch.advance();
            }
        }
        // Since they began anew, a short stamp of now is still one of now.
        let mut epoch = Epoch(LAST);
        epoch.advance();
        let fresh = epoch.stamp();
        assert!(epoch.is_stale(epoch.newest(Epoch::short(fresh))));
    }
}
