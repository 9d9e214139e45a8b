//! Memory that came along in a move although the guest had given it up.
//!
//! Whoever reads a domain while it runs is not told of a frame that goes (Xen marks none that leaves the
//! P2M), so what the guest gave up after it was sent is there again on the new host, and counts as the
//! domain's.  Which frames these are nobody knows; but the guest has given up all of them.  So after a
//! move every frame of that list is handed to the new host once more, which refuses those that are not
//! there.  The list may be long, and the guest runs meanwhile: a few at each turn.

use xen_abi::Mfn;

use super::Guest;
use crate::cpu::Machine;
use crate::host::Host;
use crate::mm::Ledger;

/// Frames that are handed back at one turn: each is a call of the host.
const AT_ONCE: usize = 32;

/// Where in the list of given-up frames the next one is; `None` when there is nothing left.
///
/// The list only changes at its head.  All that lies before this frame has been handed back, or was given
/// up on this very host.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Leftovers(Option<Mfn>);

impl Leftovers {
    /// All that is in the list may have come along.
    pub(crate) fn after_a_move(ledger: &Ledger) -> Self {
        Self(ledger.last_given_up())
    }

    /// Whether there may be any.
    #[inline]
    pub(crate) fn are_there(self) -> bool {
        self.0.is_some()
    }

    /// Notes that `frame`, the head of the list, is about to leave it; returns whether there may be
    /// memory behind it.
    pub(crate) fn leaves(&mut self, frame: Mfn, ledger: &Ledger) -> bool {
        let may_be = self.0 == Some(frame);
        if may_be {
            self.0 = ledger.given_up_before(frame);
        }
        may_be
    }
}

impl<M: Machine, H: Host> Guest<M, H> {
    /// Hands a few of them back to the host.
    #[cold]
    pub(super) fn hand_back(&mut self) {
        for _ in 0..AT_ONCE {
            let Some(frame) = self.leftovers.0 else {
                break;
            };
            // Moved on whatever the host says of the frame: each is handed back once.
            self.leftovers.0 = self.ledger.given_up_before(frame);
            // Most frames have no memory behind them any more, and the host says so.
            let _ = self.host.release_frame(frame);
        }
    }
}
