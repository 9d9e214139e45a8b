//! Segment descriptors: what the guest may load, and the pages that hold them.
//!
//! The CPU reads the guest's GDT and LDT pages directly, so they are checked like page tables: all
//! descriptors when a page gets that use, and each change after.  Code and data segments can not
//! hurt once their privilege level is 3; every kind of gate and system segment is refused.

use xen_abi::mmu::{ENTRIES, HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START, Pte, ext, is_canonical};
use xen_abi::{Errno, GuestVa, Mfn, PAGE_SIZE};

use super::Mm;
use super::frame::FrameUse;
use super::ledger::{Dropped, Granted};
use super::work::DESCRIPTORS;
use crate::mem::Frames;

const PRESENT: u64 = 1 << 47;
const DPL: u64 = 3 << 45;
/// Code or data, as opposed to system.
const SEGMENT: u64 = 1 << 44;
const TYPE: u64 = 15 << 40;
/// Within [`TYPE`]: code, as opposed to data.
const CODE: u64 = 1 << 43;
/// 64-bit code, and 32-bit operands.
const LONG: u64 = 1 << 53;
const BIG: u64 = 1 << 54;

/// Checks a descriptor and returns it as it has to stand in memory.
///
/// A system descriptor of type 0 is harmless, since loading it faults.
///
/// # Errors
/// `EINVAL` for a gate or a system segment, and for code that claims to be 64-bit and 32-bit at once:
/// not every CPU refuses to load that, and VMRUN takes no such state (AMD64 APM vol. 2 §15.5.1), so
/// the host could never run the vCPU again, nor move it.
#[inline]
pub const fn check_descriptor(raw: u64) -> Result<u64, Errno> {
    if raw & PRESENT == 0 {
        // Loading it faults, so the other bits are the guest's, whatever they say.
        return Ok(raw);
    }
    if raw & SEGMENT == 0 && raw & TYPE != 0 {
        return Err(Errno::EINVAL);
    }
    let both = CODE | LONG | BIG;
    if raw & SEGMENT != 0 && raw & both == both {
        return Err(Errno::EINVAL);
    }
    // Kernel and user mode of the guest are both ring 3, which cannot load a data segment of a
    // lower DPL.
    Ok(raw | DPL)
}

/// Checks the arguments of `MMUEXT_SET_LDT`.
///
/// # Errors
/// `EINVAL` when the table is too long, not page-aligned, or not in the guest's address space.
pub const fn check_ldt(base: GuestVa, entries: u64) -> Result<(), Errno> {
    if entries == 0 {
        return Ok(());
    }
    if entries > ext::MAX_LDT_ENTRIES || base.0 & (PAGE_SIZE as u64 - 1) != 0 {
        return Err(Errno::EINVAL);
    }
    // A lying length must not wrap around to an address that looks low.
    let Some(last) = base.checked_add(entries * 8 - 1) else {
        return Err(Errno::EINVAL);
    };
    let below = last.0 < HYPERVISOR_VIRT_START && is_canonical(last);
    let above = base.0 >= HYPERVISOR_VIRT_END;
    if below || above {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

impl<F: Frames + ?Sized> Mm<'_, F> {
    /// Takes a reference to a frame as a page of descriptors, checking it if it is the first.
    /// Each page of a GDT holds one, and each page of an LDT that the CPU can see.
    ///
    /// # Errors
    /// `EINVAL` when the frame is not the guest's, is in another use, or holds a bad descriptor.
    pub fn get_descriptors(&mut self, mfn: Mfn) -> Result<(), Errno> {
        let kind = FrameUse::Descriptors;
        // From here on nobody can write the page: a frame has one use, and `get_table` has flushed
        // stale writable translations. So what is checked below is what the CPU will load.
        if self.ledger.get_table(mfn, kind, self.tlb)? == Granted::Again {
            return Ok(());
        }
        // Not divided: the 16 pages of a whole LDT come to one step.
        self.ledger.work().spend(DESCRIPTORS);
        for index in 0..ENTRIES {
            let raw = self.load(mfn, index).0;
            match check_descriptor(raw) {
                Ok(new) if new == raw => {}
                Ok(new) => self.store(mfn, index, Pte(new)),
                Err(error) => {
                    // Descriptors adjusted so far keep their DPL: in a page of data it means
                    // nothing.
                    self.put_descriptors(mfn);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Drops a reference that [`get_descriptors`](Self::get_descriptors) took; no CPU uses the page
    /// on its behalf any more.
    pub fn put_descriptors(&mut self, mfn: Mfn) {
        self.ledger
            .put_table(mfn, FrameUse::Descriptors, Dropped::Link);
    }

    /// Takes references to all pages of a new GDT, or to none.
    ///
    /// # Errors
    /// As [`get_descriptors`](Self::get_descriptors).
    pub fn get_gdt(&mut self, pages: &[Mfn]) -> Result<(), Errno> {
        for (done, &page) in pages.iter().enumerate() {
            if let Err(error) = self.get_descriptors(page) {
                // The page at `done` has already given back its own reference. The same frame may
                // be in the list twice; each time counts.
                self.put_gdt(&pages[..done]);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Drops the references to the pages of a GDT that is no longer loaded.
    pub fn put_gdt(&mut self, pages: &[Mfn]) {
        pages.iter().for_each(|&page| self.put_descriptors(page));
    }

    /// Takes a reference to the page of an LDT at `va`, under L4 table `root`, and returns it.
    ///
    /// # Errors
    /// `EFAULT` when nothing is mapped there, `EINVAL` when the page may not hold descriptors.
    pub fn get_ldt_page(&mut self, root: Mfn, va: GuestVa) -> Result<Mfn, Errno> {
        // The guest may have changed its tables without a flush, so its TLB may say something else.
        // What the checked tables say is what counts, and that frame is checked in turn.
        let entry = self.walk(root, va).ok_or(Errno::EFAULT)?.entry;
        if !entry.is_present() {
            return Err(Errno::EFAULT);
        }
        self.get_descriptors(entry.frame())?;
        Ok(entry.frame())
    }

    /// Stores a descriptor at a machine address (`update_descriptor`), in a page of descriptors or
    /// of data.
    ///
    /// # Errors
    /// `EINVAL` when the descriptor is bad, the address is not 8-aligned, or the page is neither.
    pub fn update_descriptor(&mut self, address: u64, raw: u64) -> Result<(), Errno> {
        let mfn = Mfn::of(address);
        let new = check_descriptor(raw)?;
        // A store across two descriptors would make two that nobody has checked.
        if !address.is_multiple_of(8) {
            return Err(Errno::EINVAL);
        }
        // A page of descriptors needs no flush: it stays what the CPUs know it as. A page of data
        // may have been a table until just now. Tables and frames that are not the guest's are
        // refused in there.
        if self.ledger.used_as(mfn) != FrameUse::Descriptors {
            self.ledger.open_for_stores(mfn, self.tlb)?;
        }
        let offset = address as usize & (PAGE_SIZE - 1);
        // One store of all 64 bits: a CPU that loads the segment meanwhile sees the old descriptor
        // or the new one, never half of each.
        self.frames.store64(mfn, offset, new);
        Ok(())
    }
}
