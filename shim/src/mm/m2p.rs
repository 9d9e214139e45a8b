//! The machine-to-physical table: which of its own frames the guest calls what.
//!
//! The guest reads it at a fixed address; the shim only writes it.

use alloc::vec::Vec;

use xen_abi::mmu::{ENTRIES, INVALID_M2P_ENTRY};
use xen_abi::{Mfn, Pfn};

use crate::mem::Frames;

/// Writes the machine-to-physical table.
pub trait M2p {
    /// Sets the entry of `mfn`, which exists, to `value`: a [`Pfn`] or [`INVALID_M2P_ENTRY`], or
    /// whatever the guest asked for.
    fn set(&self, mfn: Mfn, value: u64);

    /// Sets the entry of `mfn` to a frame of the guest.
    fn set_pfn(&self, mfn: Mfn, pfn: Pfn) {
        self.set(mfn, pfn.0);
    }

    /// Sets the entry of `mfn` to no frame of the guest.
    fn invalidate(&self, mfn: Mfn) {
        self.set(mfn, INVALID_M2P_ENTRY);
    }
}

/// A table kept in frames of the shim, 512 entries in each.
#[derive(Debug)]
pub struct M2pTable<'a, F: Frames + ?Sized> {
    frames: &'a F,
    table: Vec<Option<Mfn>>,
}

impl<'a, F: Frames + ?Sized> M2pTable<'a, F> {
    /// Makes a table of the given frames, each for the next 512 entries, and invalidates them all;
    /// `None` where there is no RAM to have entries for.
    pub fn new(frames: &'a F, table: Vec<Option<Mfn>>) -> Self {
        for &frame in table.iter().flatten() {
            for index in 0..ENTRIES {
                frames.store64(frame, index * 8, INVALID_M2P_ENTRY);
            }
        }
        Self { frames, table }
    }

    /// Returns the entry of `mfn`.
    pub fn get(&self, mfn: Mfn) -> u64 {
        self.place(mfn)
            .map_or(INVALID_M2P_ENTRY, |(frame, offset)| {
                self.frames.load64(frame, offset)
            })
    }

    fn place(&self, mfn: Mfn) -> Option<(Mfn, usize)> {
        let index = mfn.0 as usize;
        let frame = (*self.table.get(index / ENTRIES)?)?;
        Some((frame, index % ENTRIES * 8))
    }
}

impl<F: Frames + ?Sized> M2p for M2pTable<'_, F> {
    fn set(&self, mfn: Mfn, value: u64) {
        // Without RAM there is no entry, and nobody asks for one: frames without RAM are never the
        // guest's.
        if let Some((frame, offset)) = self.place(mfn) {
            self.frames.store64(frame, offset, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{M2p, M2pTable};
    use crate::testing::FakeFrames;
    use xen_abi::mmu::INVALID_M2P_ENTRY;
    use xen_abi::{Mfn, Pfn};

    #[test]
    fn entries_are_invalid_until_set_and_holes_stay_so() {
        let frames = FakeFrames::new(4);
        let m2p = M2pTable::new(&frames, vec![Some(Mfn(2)), None, Some(Mfn(3))]);
        assert_eq!(m2p.get(Mfn(0)), INVALID_M2P_ENTRY);
        m2p.set_pfn(Mfn(1025), Pfn(7));
        m2p.set_pfn(Mfn(600), Pfn(8));
        m2p.set_pfn(Mfn(1 << 40), Pfn(9));
        assert_eq!(m2p.get(Mfn(1025)), 7);
        assert_eq!(m2p.get(Mfn(600)), INVALID_M2P_ENTRY);
        m2p.invalidate(Mfn(1025));
        assert_eq!(m2p.get(Mfn(1025)), INVALID_M2P_ENTRY);
    }
}
