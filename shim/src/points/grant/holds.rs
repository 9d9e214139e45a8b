//! What keeps a frame fit for use while a device or a backend has it.

use xen_abi::Mfn;

use crate::mm::{Ledger, Owner, Tlb};

/// The frame ledger's part in the use of grants.
pub trait FrameHolds {
    /// Takes a hold of a frame of the guest: until it is released the frame stays the guest's, and
    /// one held for `write` can not become a page table.  `false` when the frame is not the
    /// guest's, or can not be written now.
    fn hold(&mut self, frame: Mfn, write: bool) -> bool;
    /// Ends one hold that was taken with the same `write`.
    fn release(&mut self, frame: Mfn, write: bool);
}

/// The frame ledger, with the CPUs that may have to forget what a frame was before a device writes it.
pub struct Holds<'a> {
    /// Owner and use of each frame.
    pub ledger: &'a mut Ledger,
    /// How to flush at once.
    pub tlb: &'a dyn Tlb,
}

impl FrameHolds for Holds<'_> {
    fn hold(&mut self, frame: Mfn, write: bool) -> bool {
        // What the shim shares with the guest is not the guest's to pass on: the shim takes such
        // frames back, and then no backend may know them.
        if self.ledger.owner(frame) != Owner::Guest {
            return false;
        }
        match write {
            true => self.ledger.get_writable(frame, self.tlb).is_ok(),
            false => self.ledger.get_plain(frame).is_ok(),
        }
    }

    fn release(&mut self, frame: Mfn, write: bool) {
        match write {
            true => self.ledger.put_writable(frame),
            false => self.ledger.put_plain(frame),
        }
    }
}

#[cfg(test)]
mod tests {
    use xen_abi::Mfn;

    use super::{FrameHolds, Holds};
    use crate::mm::{Ledger, Owner, Tlb};

    struct NoFlush;

    impl Tlb for NoFlush {
        fn flush_everything(&self) {
            unreachable!("nothing changes its use");
        }
    }

    #[test]
    fn only_the_guests_frames_are_held_and_they_stay_its() {
        let mut ledger = Ledger::new(Mfn(4), &[(Mfn(0), 4)]).unwrap();
        ledger.give_to_guest(Mfn(1)).unwrap();
        ledger
            .change_owner(Mfn(2), Owner::Shim, Owner::Shared)
            .unwrap();
        for write in [false, true] {
            let mut holds = Holds {
                ledger: &mut ledger,
                tlb: &NoFlush,
            };
            for other in [0, 2, 3, 4, u64::MAX] {
                assert!(!holds.hold(Mfn(other), write), "{other}");
            }
            assert!(holds.hold(Mfn(1), write));
            assert!(holds.ledger.reclaim(Mfn(1)).is_err(), "in use");
            holds.release(Mfn(1), write);
        }
        ledger.reclaim(Mfn(1)).unwrap();
    }
}
