//! A page-table walker that shares nothing with the code that writes page tables.

use xen_abi::Mfn;

use crate::mem::Frames;
use crate::testing::FakeFrames;

/// What an address is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) frame: Mfn,
    pub(super) writable: bool,
}

/// Looks `va` up in the tree at `l4`.
pub(super) fn walk(frames: &FakeFrames, l4: Mfn, va: u64) -> Option<Mapped> {
    let mut table = l4;
    let mut writable = true;
    for shift in [39, 30, 21, 12] {
        let index = (va >> shift) as usize & 0x1ff;
        let entry = frames.load64(table, index * 8);
        if entry & 1 == 0 {
            assert_eq!(entry, 0, "an absent entry is empty");
            return None;
        }
        assert_eq!(entry & 0xfff0_0000_0000_0f9c, 0, "odd bits in {entry:#x}");
        writable &= entry & 2 != 0;
        table = Mfn((entry & 0x000f_ffff_ffff_f000) >> 12);
    }
    Some(Mapped {
        frame: table,
        writable,
    })
}

/// Returns all page tables of the tree, with every frame that it maps and how often.
pub(super) fn census(frames: &FakeFrames, l4: Mfn) -> (Vec<Mfn>, Vec<(Mfn, bool)>) {
    let mut level = vec![l4];
    let mut tables = Vec::new();
    for depth in 0..4 {
        let entries = level
            .iter()
            .flat_map(|&table| (0..512).map(move |index| (index, frames.load64(table, index * 8))));
        let present: Vec<_> = entries.filter(|(_, entry)| entry & 1 == 1).collect();
        if depth == 0 {
            let reserved = |index: &usize| (256..272).contains(index);
            assert!(!present.iter().any(|(index, _)| reserved(index)));
        }
        let frame = |entry: u64| Mfn((entry & 0x000f_ffff_ffff_f000) >> 12);
        tables.append(&mut level);
        if depth == 3 {
            let pages = present
                .iter()
                .map(|&(_, entry)| (frame(entry), entry & 2 != 0));
            return (tables, pages.collect());
        }
        level = present.iter().map(|&(_, entry)| frame(entry)).collect();
    }
    unreachable!("the last level returns");
}
