//! What the machine-to-physical table says of a frame: it is read as an attempt, for it has holes.

use xen_abi::mmu::{INVALID_M2P_ENTRY, M2P_VIRT_START};
use xen_abi::{Mfn, Pfn};

use crate::memory;
use crate::trap::{End, Regs, attempt};

/// What the machine-to-physical table says; `None` where it can not be read.
pub fn m2p(mfn: Mfn) -> Option<u64> {
    let mut regs = Regs::marked();
    regs.rsi = M2P_VIRT_START.checked_add(mfn.0.checked_mul(8)?)?;
    // mov (%rsi), %rax
    let end = attempt(&[0x48, 0x8b, 0x06], &mut regs);
    (end == End::Done).then_some(regs.rax)
}

/// Whether a frame is this domain's.
pub fn is_own(frame: Mfn) -> bool {
    m2p(frame).is_some_and(|pfn| {
        pfn != INVALID_M2P_ENTRY && pfn < memory::nr_pages() && memory::mfn(Pfn(pfn)) == frame
    })
}

/// Whether a frame is one of the page tables that the builder made.
pub fn is_first_table(frame: Mfn) -> bool {
    let (Pfn(first), count) = memory::first_tables();
    is_own(frame) && m2p(frame).is_some_and(|pfn| (first..first + count).contains(&pfn))
}
