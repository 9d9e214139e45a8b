//! Memory that the guest may ask for later (`maxmem=` above `memory=`).
//!
//! A PVH domain's memory map covers `maxmem`, but the host has only `memory` behind it, and puts a
//! frame there when it is first touched: a domain that touches more is ended.  A PV guest starts
//! with `memory` and asks for more.  So the frames that have nothing behind them go back to the
//! host at once, as a balloon driver's would, and the guest may ask for them as if it had given
//! them up.

use log::warn;
use unmoved_shim::boot::{FreeMemory, share};
use unmoved_shim::mm::Ledger;
use xen_abi::Mfn;

use super::handed::Handed;
use crate::machine::xen;

/// The frames to be asked for later.
pub(super) struct Later(FreeMemory);

impl Later {
    /// How many there are.
    pub(super) fn frames(&self) -> u64 {
        self.0.frames()
    }

    /// Lists them as given up, so that the guest gets the lowest first.
    pub(super) fn list(&self, ledger: &mut Ledger) {
        // Each goes to the head of the list, so what is put in last is had first: low frames, in
        // ascending order. `take_last` made the ranges from the top down.
        let descending = self.0.ranges().iter();
        for frame in descending.flat_map(|&(start, end)| (start..end).rev()) {
            if ledger.give_later(Mfn(frame)).is_err() {
                // The guest then has less to ask for; no reason not to start.
                warn!("frame {frame:#x} can not be had later");
            }
        }
    }
}

/// Gives the frames without memory behind them back to the host, and takes them out of what was
/// handed over.  Returns how many frames of RAM there were with them, and the frames.
pub(super) fn give_back(handed: &mut Handed) -> (u64, Later) {
    let of_ram = handed.ram.frames();
    let missing = match xen::reserved_frames() {
        Ok(reserved) => share::missing(of_ram, reserved),
        Err(errno) => {
            // Taken for a host that has all of it, which is the usual case.
            warn!("the host does not say how much memory there is: {errno}");
            0
        }
    };
    // The highest frames: nothing has touched them, and they are not needed to start.
    let later = handed.memory.take_last(missing);
    for &(start, end) in later.ranges() {
        // Out of RAM for the ledger too: the frame is nobody's until it is listed.
        handed.ram.reserve(start, end);
        let given = xen::give_back(Mfn(start), end - start);
        if given < end - start {
            warn!("the host keeps {} frames", end - start - given);
        }
    }
    (of_ram, Later(later))
}
