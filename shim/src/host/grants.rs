//! The shim's real grant table: which frames of ours the host's backends may use.
//!
//! The table's frames are shared with the Xen underneath and survive nothing: after a migration
//! the new domain's table is empty and every earlier reference is void
//! ([`HostGrantTable::reset`]).  In the same domain the table stays, and
//! [`HostGrantTable::abandon`] ends what it can.  The order of the stores in an entry is the interface's contract
//! (`xen/include/public/grant_table.h`).

use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use xen_abi::grant::{ENTRIES_PER_FRAME, EntryFlags, RESERVED_ENTRIES};
use xen_abi::{DomId, Mfn};

use super::{Access, HostGrants, HostRef};
use crate::mem::Frames;

/// Bytes of an entry, and the offsets of its members.
const ENTRY: usize = 8;
const FLAGS: usize = 0;
const DOMID: usize = 2;
const FRAME: usize = 4;

/// Where more frames of the table come from: the glue asks the Xen underneath to map the next one.
pub trait TableFrames {
    /// Maps frame number `index` of the table and returns where, or `None` when the host allows
    /// no more.
    fn map_next(&mut self, index: usize) -> Option<Mfn>;
}

/// A table that can not grow.
impl TableFrames for () {
    fn map_next(&mut self, _index: usize) -> Option<Mfn> {
        None
    }
}

/// Which references of the real table are free, and where the table is.
#[derive(Debug, Default)]
pub struct HostGrantTable {
    frames: Vec<Mfn>,
    free: Vec<u32>,
    /// One bit for each reference; set while it is taken.
    taken: Vec<u64>,
    /// The references that [`HostGrantTable::abandon`] could not end.
    stuck: Vec<u64>,
    outstanding: usize,
    /// The host said no once; it is not asked for every further grant.
    full: bool,
}

impl HostGrantTable {
    /// Makes a table without any frame.
    pub const fn new() -> Self {
        Self {
            frames: Vec::new(),
            free: Vec::new(),
            taken: Vec::new(),
            stuck: Vec::new(),
            outstanding: 0,
            full: false,
        }
    }

    /// Forgets everything: the table of a new domain is empty and its frames are to be mapped anew.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// Ends every grant, in the domain that it was made in.  What a backend still has in use stays
    /// taken, and is *stuck* until whoever made it ends it: an entry that changed under a mapping would name another
    /// frame than is mapped, and a frame that is used anew would be the backend's, too.
    pub fn abandon(&mut self, mem: &dyn Frames) {
        let taken: Vec<u32> = (0..self.taken.len() as u32 * 64)
            .filter(|&reference| self.is_taken(reference))
            .collect();
        let mut via = self.via_to_end(mem);
        for reference in taken {
            // What is in use fails and stays taken.
            let _ = via.end(HostRef(reference));
        }
        self.stuck.clone_from(&self.taken);
    }

    /// Number of references that are taken.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Number of references that the frames mapped so far can hold, the reserved ones left out.
    pub fn capacity(&self) -> usize {
        self.taken.len() * 64
            // The reserved entries lie in the first frame, so without it there is nothing to leave
            // out.
            - if self.taken.is_empty() {
                0
            } else {
                RESERVED_ENTRIES as usize
            }
    }

    /// Adds the table's next frame.
    pub fn add_frame(&mut self, frame: Mfn) {
        let first = self.frames.len() as u32 * ENTRIES_PER_FRAME;
        self.frames.push(frame);
        self.taken
            .resize(self.frames.len() * (ENTRIES_PER_FRAME / 64) as usize, 0);
        // The toolstack fills the lowest for its own daemons (console, xenstore).
        let first_free = first.max(RESERVED_ENTRIES);
        // Lowest first, so that few entries are in the CPU's caches.
        self.free
            .extend((first_free..first + ENTRIES_PER_FRAME).rev());
    }

    /// Joins the table with memory and a source of frames, for use by the devices.
    pub fn via<'a>(
        &'a mut self,
        mem: &'a dyn Frames,
        more: &'a mut dyn TableFrames,
    ) -> HostGrantsVia<'a> {
        HostGrantsVia {
            table: self,
            mem,
            more: Some(more),
        }
    }

    fn via_to_end<'a>(&'a mut self, mem: &'a dyn Frames) -> HostGrantsVia<'a> {
        HostGrantsVia {
            table: self,
            mem,
            more: None,
        }
    }

    fn place(&self, reference: u32) -> Option<(Mfn, usize)> {
        let frame = self.frames.get((reference / ENTRIES_PER_FRAME) as usize)?;
        Some((*frame, (reference % ENTRIES_PER_FRAME) as usize * ENTRY))
    }

    fn is_taken(&self, reference: u32) -> bool {
        has_bit(&self.taken, reference)
    }
}

fn has_bit(words: &[u64], reference: u32) -> bool {
    let word = words.get((reference / 64) as usize);
    word.is_some_and(|word| word & (1 << (reference % 64)) != 0)
}

/// A [`HostGrantTable`] together with what it needs to act.
pub struct HostGrantsVia<'a> {
    table: &'a mut HostGrantTable,
    mem: &'a dyn Frames,
    /// `None` for a caller that only ends grants.
    more: Option<&'a mut dyn TableFrames>,
}

impl HostGrants for HostGrantsVia<'_> {
    fn grant(&mut self, to: DomId, frame: Mfn, access: Access) -> Option<HostRef> {
        // A version 1 entry has 32 bits for the frame number, which is 16 TiB.
        let number = u32::try_from(frame.0).ok()?;
        if self.table.free.is_empty() && !self.table.full {
            let index = self.table.frames.len();
            match self.more.as_mut().and_then(|more| more.map_next(index)) {
                Some(frame) => self.table.add_frame(frame),
                // For good: each further request would be a hypercall for the same answer. A new
                // domain asks again, with a new table.
                None => self.table.full = true,
            }
        }
        let reference = self.table.free.pop()?;
        let (table_frame, at) = self
            .table
            .place(reference)
            .expect("a free reference lies in the table");
        // Noted before the entry is valid: from the flags on it counts as in use, whatever the
        // backend does.
        self.table.taken[(reference / 64) as usize] |= 1 << (reference % 64);
        self.table.outstanding += 1;

        let flags = match access {
            Access::ReadOnly => EntryFlags::PERMIT_ACCESS | EntryFlags::READONLY,
            Access::ReadWrite => EntryFlags::PERMIT_ACCESS,
        };
        self.mem.store32(table_frame, at + FRAME, number);
        self.mem.store16(table_frame, at + DOMID, to.0);
        // The flags make the entry valid, so they come last.
        fence(Ordering::Release);
        self.mem.store16(table_frame, at + FLAGS, flags.bits());
        Some(HostRef(reference))
    }

    fn end(&mut self, grant: HostRef) -> bool {
        // A reference from before the last reset ended with its table.
        if !self.table.is_taken(grant.0) {
            return true;
        }
        let (frame, at) = self
            .table
            .place(grant.0)
            .expect("a taken reference lies in the table");
        // Xen sets these while a backend has the frame mapped or copies from it. An entry cleared
        // then would free a reference that still leads to the frame.
        let in_use = (EntryFlags::READING | EntryFlags::WRITING).bits();
        // Compare and exchange, and not a store: Xen may set a bit between the look and the store,
        // and the backend would keep a mapping that nobody knows of.
        let mut flags = self.mem.load16(frame, at + FLAGS);
        loop {
            if flags & in_use != 0 {
                return false;
            }
            match self.mem.cas16(frame, at + FLAGS, flags, 0) {
                seen if seen == flags => break,
                // Only the hypervisor writes here besides us, and only the bits just looked at.
                seen => flags = seen,
            }
        }
        self.table.taken[(grant.0 / 64) as usize] &= !(1 << (grant.0 % 64));
        self.table.outstanding -= 1;
        // The exchange is a full barrier, so nothing that is done with the frame from here on can
        // come before the entry is void.
        self.table.free.push(grant.0);
        true
    }

    fn is_stuck(&self, grant: HostRef) -> bool {
        // A reference that was ended since may be somebody else's by now, and so is not stuck.
        self.table.is_taken(grant.0) && has_bit(&self.table.stuck, grant.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};
    use xen_abi::{DomId, Mfn};

    use super::{HostGrantTable, TableFrames};
    use crate::host::{Access, HostGrants, HostRef};
    use crate::mem::Frames;
    use crate::testing::FakeFrames;

    struct UpTo(usize);
    impl TableFrames for UpTo {
        fn map_next(&mut self, index: usize) -> Option<Mfn> {
            (index < self.0).then_some(Mfn(100 + index as u64))
        }
    }

    fn machine() -> FakeFrames {
        let mem = FakeFrames::default();
        (100..104).for_each(|mfn| mem.add(Mfn(mfn)));
        mem
    }

    #[test]
    fn an_entry_names_domain_frame_and_access() {
        let (mem, mut table) = (machine(), HostGrantTable::new());
        let mut more = UpTo(1);
        let mut grants = table.via(&mem, &mut more);
        let read = grants
            .grant(DomId(7), Mfn(0x1234), Access::ReadOnly)
            .unwrap();
        let write = grants
            .grant(DomId(7), Mfn(0x1235), Access::ReadWrite)
            .unwrap();
        assert_eq!(
            (read, write),
            (HostRef(8), HostRef(9)),
            "0 to 7 are not ours"
        );
        assert_eq!(mem.load64(Mfn(100), 64), 0x0000_1234_0007_0005);
        assert_eq!(mem.load64(Mfn(100), 72), 0x0000_1235_0007_0001);
        assert!(
            grants
                .grant(DomId(7), Mfn(1 << 32), Access::ReadOnly)
                .is_none()
        );
        assert_eq!(table.outstanding(), 2);
    }

    #[test]
    fn a_grant_in_use_is_not_ended() {
        let (mem, mut table) = (machine(), HostGrantTable::new());
        let mut more = UpTo(1);
        let mut grants = table.via(&mem, &mut more);
        let grant = grants.grant(DomId(0), Mfn(1), Access::ReadWrite).unwrap();
        mem.store16(Mfn(100), 64, 0x19);
        assert!(!grants.end(grant));
        mem.store16(Mfn(100), 64, 0x1);
        assert!(grants.end(grant));
        assert_eq!(mem.load16(Mfn(100), 64), 0);
        assert_eq!(table.outstanding(), 0);
    }

    #[test]
    fn a_reset_voids_what_was_granted() {
        let (mem, mut table) = (machine(), HostGrantTable::new());
        let mut more = UpTo(1);
        let old = table
            .via(&mem, &mut more)
            .grant(DomId(0), Mfn(1), Access::ReadOnly)
            .unwrap();
        table.reset();
        assert_eq!((table.outstanding(), table.capacity()), (0, 0));
        assert!(table.via(&mem, &mut more).end(old));
        assert_eq!(table.outstanding(), 0);
    }

    proptest! {
        /// References are never given twice, none is lost, and the table stops where the host does.
        #[test]
        fn references_are_unique_and_bounded(steps in prop::collection::vec((0u8..8, 0usize..2048), 1..3000)) {
            let (mem, mut table) = (machine(), HostGrantTable::new());
            let mut more = UpTo(4);
            let mut live = BTreeMap::new();
            for (serial, (action, pick)) in steps.into_iter().enumerate() {
                let mut grants = table.via(&mem, &mut more);
                if action > 0 {
                    match grants.grant(DomId(1), Mfn(serial as u64), Access::ReadOnly) {
                        Some(grant) => prop_assert!(live.insert(grant, serial).is_none()),
                        None => prop_assert_eq!(live.len(), 4 * 512 - 8),
                    }
                } else if let Some((&grant, _)) = live.iter().nth(pick % live.len().max(1)) {
                    prop_assert!(grants.end(grant));
                    live.remove(&grant);
                }
                prop_assert_eq!(table.outstanding(), live.len());
            }
            for (grant, serial) in live {
                let at = (grant.0 % 512) as usize * 8;
                prop_assert_eq!(u64::from(mem.load32(Mfn(100 + u64::from(grant.0) / 512), at + 4)), serial as u64);
                prop_assert!(table.via(&mem, &mut more).end(grant));
            }
            prop_assert_eq!(table.outstanding(), 0);
        }
    }

    #[test]
    fn an_abandoned_table_keeps_what_is_in_use() {
        let frames = FakeFrames::new(101);
        let mut table = HostGrantTable::new();
        let mut more = UpTo(1);
        let mut via = table.via(&frames, &mut more);
        let [used, unused] = [1, 2].map(|frame| {
            via.grant(DomId(0), Mfn(frame), Access::ReadWrite)
                .expect("there is room")
        });
        let at = used.0 as usize * 8;
        let flags = frames.load16(Mfn(100), at);
        frames.store16(Mfn(100), at, flags | 0x18);
        table.abandon(&frames);
        assert_eq!(table.outstanding(), 1);
        let via = table.via_to_end(&frames);
        assert_eq!(
            [used, unused].map(|grant| via.is_stuck(grant)),
            [true, false]
        );
        assert_eq!(
            frames.load32(Mfn(100), at + 4),
            1,
            "still the frame that is mapped"
        );
        assert_eq!(frames.load16(Mfn(100), unused.0 as usize * 8), 0);
    }
}
