//! The host's request to suspend: from the moment that it reaches the shim until `Guest::catch_up` takes it.
//!
//! A toolstack writes `suspend` to `control/shutdown`, and gives up if that is not acknowledged within 60 s (libxl:
//! "guest didn't acknowledge suspend"); so the mirror acknowledges at once, whatever the guest is doing.  Both the
//! acknowledgement and the withdrawal are transactions, so exactly one of them holds.  After the acknowledgement the
//! host waits up to 60 s more for the domain to stop: the request is *due*.
//!
//! libxl knows a faster way, a port in `device/suspend/event-channel` that it notifies instead.  The shim offers none:
//! such a request cannot be withdrawn.  A domain that is paused while it is asked would suspend itself when it is
//! unpaused, with nobody there to let it go on.  The same would happen after an acknowledgement, so a request is
//! stale once it is [`STALE_NS`] old.

use alloc::vec::Vec;

use xen_abi::Errno;

use crate::host::store::replace::REPLACED;

/// A domain that has not suspended itself so long after the request was read must not do so any more, nanoseconds.
/// It is longer than any drain, and shorter than what a toolstack waits for: 60 s in libxl, and 40 s for an agent
/// that finds what another one has left behind.
pub const STALE_NS: u64 = 35_000_000_000;

/// The request, if there is one.
#[derive(Debug, Default)]
pub struct SuspendRequest {
    /// The host's time when events were last taken, nanoseconds.
    now_ns: u64,
    /// When it was read in the store.  The acknowledgement is on its way there: it may still be withdrawn.
    read_at: Option<u64>,
    /// The host waits for the domain to stop; the request was read at this time, and acknowledged later.
    due_since: Option<u64>,
}

impl SuspendRequest {
    /// The domain is a new one, and was asked for nothing.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// The host's time before the events that come next, nanoseconds.
    pub fn set_now(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// The request was read in the store.  Returns whether it is to be acknowledged, which it is once.
    #[must_use = "the host waits for the acknowledgement"]
    pub fn found_in_store(&mut self) -> bool {
        let is_new = self.read_at.is_none();
        // The node may be read again before the answer is there. The earliest time counts: it errs
        // towards stale.
        self.read_at.get_or_insert(self.now_ns);
        is_new
    }

    /// The attempt to acknowledge it has this result.  Returns whether it is due now; else it was withdrawn.
    pub fn acknowledged(&mut self, result: Result<Vec<u8>, Errno>) -> bool {
        let since = self.read_at.take();
        match result {
            Ok(outcome) if outcome == REPLACED => {
                // The time of the reading and not of this answer, which may have taken any time to
                // come.
                self.due_since = since;
                return true;
            }
            Ok(_) => log::warn!("xenstore: the host has withdrawn its request to suspend"),
            Err(error) => log::error!("xenstore: acknowledging the suspend: {error}"),
        }
        false
    }

    /// Whether the host waits for the domain to stop.
    #[inline]
    pub fn is_due(&self) -> bool {
        self.due_since.is_some()
    }

    /// Takes the request, if there is one.  Returns the host's time when it was read in the store, nanoseconds; the
    /// acknowledgement came after.
    pub fn take(&mut self) -> Option<u64> {
        self.due_since.take()
    }
}
