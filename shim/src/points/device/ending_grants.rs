//! Grants that were taken back while the backend may still have had them in use, and the frames
//! that are out of use until it has let go.

use alloc::vec::Vec;

use xen_abi::Mfn;

use crate::host::HostRef;
use crate::points::Cx;

/// What has to wait for the end of a grant.
#[derive(Debug)]
pub enum Held {
    /// Nothing: somebody else keeps the frame.
    Nothing,
    /// A frame of ours, which goes back into the pool.
    Own(Mfn),
    /// The hold of a frame of the guest, taken for writing or not.
    Guest {
        /// The frame.
        frame: Mfn,
        /// Whether it was held for writing.
        write: bool,
    },
}

impl Held {
    fn release(self, cx: &mut Cx<'_>) {
        match self {
            Self::Nothing => {}
            Self::Own(frame) => cx.pool.give_back(frame),
            Self::Guest { frame, write } => cx.grants.release(frame, write),
        }
    }
}

/// Grants to end, and what waits for it.
#[derive(Debug, Default)]
pub struct EndingGrants(Vec<(HostRef, Held)>);

impl EndingGrants {
    /// Whether nothing is waited for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a frame of the guest is among them.
    pub fn has_guest_frames(&self) -> bool {
        let is_guests = |(_, held): &(_, Held)| matches!(held, Held::Guest { .. });
        self.0.iter().any(is_guests)
    }

    /// Ends a grant, now or later.
    pub fn add(&mut self, cx: &mut Cx<'_>, grant: HostRef, held: Held) {
        if cx.host_grants.end(grant) {
            held.release(cx);
        } else {
            self.0.push((grant, held));
        }
    }

    /// Tries again to end what could not be ended before.
    pub fn end(&mut self, cx: &mut Cx<'_>) {
        for (grant, held) in core::mem::take(&mut self.0) {
            self.add(cx, grant, held);
        }
    }

    /// The table of the grants was given up.  What waits for one that is stuck goes on waiting.
    pub fn forget(&mut self, cx: &mut Cx<'_>) {
        for (grant, held) in core::mem::take(&mut self.0) {
            self.forget_one(cx, grant, held);
        }
    }

    /// As [`forget`](Self::forget), for a grant that was not among those to end.
    pub fn forget_one(&mut self, cx: &mut Cx<'_>, grant: HostRef, held: Held) {
        match cx.host_grants.is_stuck(grant) {
            true => self.0.push((grant, held)),
            false => held.release(cx),
        }
    }
}
