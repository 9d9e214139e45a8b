//! Segments, descriptor tables and the kernel stack: `set_gdt`, `update_descriptor`,
//! `set_segment_base`, `stack_switch`, and the LDT part of `mmuext_op`.

use alloc::vec::Vec;

use xen_abi::trap::FIRST_RESERVED_GDT_ENTRY;
use xen_abi::{Errno, GuestVa, Mfn, PAGE_SIZE};

use super::{Answer, Args, element, read};
use crate::cpu::Machine;
use crate::guest::{Guest, mm};
use crate::host::Host;
use crate::mm::check_ldt;

/// Descriptors in a page.
const PER_PAGE: u64 = PAGE_SIZE as u64 / 8;

/// Whether an address is canonical.
pub(super) fn is_canonical(address: u64) -> bool {
    // Moves the two good halves next to each other around 0, so that one test covers both.
    address.wrapping_add(1 << 47) >> 48 == 0
}

impl<M: Machine, H: Host> Guest<M, H> {
    /// `set_gdt(frames, entries)`.
    pub(super) fn set_gdt(&mut self, v: usize, [list, entries, ..]: Args) -> Answer {
        // Before the list is read: it bounds the list to 14 frames, and the pages above are the
        // shim's.
        if entries > FIRST_RESERVED_GDT_ENTRY {
            return Err(Errno::EINVAL);
        }
        let frames = (0..entries.div_ceil(PER_PAGE))
            .map(|index| Ok(Mfn(read::<u64>(&self.m, element::<u64>(list, index)?)?)))
            .collect::<Result<Vec<_>, Errno>>()?;
        self.load_gdt(v, frames)?;
        Ok(0)
    }

    /// Makes `frames` the guest's descriptor table.
    pub(crate) fn load_gdt(&mut self, v: usize, frames: Vec<Mfn>) -> Result<(), Errno> {
        // The new pages first: one may be in both tables, and a refusal must leave the old table
        // loaded.
        mm!(self).get_gdt(&frames)?;
        // Shown to the CPU before the old pages go: as ordinary memory again, the guest could write
        // them under a CPU that still loads from them. What is in the segment registers stays, as
        // under Xen.
        self.m.load_gdt(&frames);
        let old = core::mem::replace(&mut self.vcpus[v].gdt, frames);
        mm!(self).put_gdt(&old);
        Ok(())
    }

    /// `update_descriptor(address, descriptor)`.
    pub(super) fn update_descriptor(&mut self, [address, raw, ..]: Args) -> Answer {
        mm!(self).update_descriptor(address, raw)?;
        Ok(0)
    }

    /// `MMUEXT_SET_LDT`: takes a reference to every page of the table that is mapped now.  Pages
    /// that are not read as zeroes, so a selector in them is refused by the CPU.
    pub(super) fn set_ldt(&mut self, v: usize, base: GuestVa, entries: u64) -> Result<(), Errno> {
        // A count beyond 32 bits is too many in any case; cut off it could look like a good one.
        let entries = u32::try_from(entries).map_err(|_| Errno::EINVAL)?;
        check_ldt(base, u64::from(entries))?;
        if self.vcpus[v].ldt == (base, entries) && entries == 0 {
            return Ok(());
        }
        let root = self.vcpus[v].spaces.as_ref().ok_or(Errno::EINVAL)?.kernel();
        let mut frames = Vec::new();
        for page in 0..u64::from(entries).div_ceil(PER_PAGE) {
            let va = base
                .checked_add(page * PAGE_SIZE as u64)
                .ok_or(Errno::EINVAL)?;
            // A page that is missing or bad is no error: Xen maps each page when it is first used
            // (`pv_map_ldt_shadow_page`), and a kernel may load a table before it fills it.
            match mm!(self).get_ldt_page(root, va) {
                Ok(frame) => frames.push(frame),
                Err(_) => break,
            }
        }
        // What lies beyond the last page that is there can not be used.
        let entries = entries.min(frames.len() as u32 * PER_PAGE as u32);
        // As for the GDT: what the CPU reads changes before the old pages become the guest's to
        // write.
        self.m.load_ldt(&frames, entries);
        let vcpu = &mut self.vcpus[v];
        vcpu.ldt = (base, entries);
        for old in core::mem::replace(&mut vcpu.ldt_frames, frames) {
            mm!(self).put_descriptors(old);
        }
        Ok(())
    }

    /// `stack_switch(ss, rsp)`.
    pub(super) fn stack_switch(&mut self, v: usize, [ss, sp, ..]: Args) -> Answer {
        let vcpu = &mut self.vcpus[v];
        // The guest's kernel runs in ring 3; Xen's `fixup_guest_stack_selector` forces the same.
        vcpu.kernel_ss = ss & 0xffff | 3;
        // Any value: an exception frame that cannot be written there ends the guest and nobody
        // else.
        vcpu.kernel_sp = sp;
        Ok(0)
    }

    /// `set_segment_base(which, value)`.
    pub(super) fn set_segment_base(&mut self, v: usize, [which, value, ..]: Args) -> Answer {
        match which {
            // WRMSR and WRGSBASE would fault in ring 0 on such a base.
            0..=2 if !is_canonical(value) => Err(Errno::EINVAL),
            0 => {
                self.m.set_fs_base(value);
                Ok(0)
            }
            1 => {
                // The base of user mode is not loaded while the kernel runs; the switch exchanges
                // them.
                self.vcpus[v].other_gs_base = value;
                Ok(0)
            }
            2 => {
                self.m.exchange_gs_base(value);
                Ok(0)
            }
            3 => {
                // As Xen: null selectors stay as they are, and the base of null is 0 on any processor.
                let selector = value as u16;
                let privilege = if selector & !3 == 0 { 0 } else { 3 };
                let base = self.m.load_gs_selector(selector | privilege);
                self.vcpus[v].other_gs_base = base.unwrap_or(0);
                Ok(0)
            }
            _ => Err(Errno::EINVAL),
        }
    }
}
