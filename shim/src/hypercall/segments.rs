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
    address.wrapping_add(1 << 47) >> 48 == 0
}

impl<M: Machine, H: Host> Guest<M, H> {
    /// `set_gdt(frames, entries)`.
    pub(super) fn set_gdt(&mut self, v: usize, [list, entries, ..]: Args) -> Answer {
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
        mm!(self).get_gdt(&frames)?;
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
            match mm!(self).get_ldt_page(root, va) {
                Ok(frame) => frames.push(frame),
                Err(_) => break,
            }
        }
        // What lies beyond the last page that is there can not be used.
        let entries = entries.min(frames.len() as u32 * PER_PAGE as u32);
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
        vcpu.kernel_ss = ss & 0xffff | 3;
        vcpu.kernel_sp = sp;
        Ok(0)
    }

    /// `set_segment_base(which, value)`.
    pub(super) fn set_segment_base(&mut self, v: usize, [which, value, ..]: Args) -> Answer {
        match which {
            0..=2 if !is_canonical(value) => Err(Errno::EINVAL),
            0 => {
                self.m.set_fs_base(value);
                Ok(0)
            }
            1 => {
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
