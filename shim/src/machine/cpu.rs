//! One vCPU's instructions, as the library asks for them.

use core::sync::atomic::{AtomicU8, Ordering};

use log::info;
use unmoved_shim::cpu::defences::{Defences, HAS_ARCH_CAPABILITIES};
use unmoved_shim::cpu::{HostTraps, Machine, first};
use unmoved_shim::emulate::cpuid::Vendor;
use unmoved_shim::mem::Frames;
use unmoved_shim::mm::{M2p, Tlb};
use unmoved_shim::registers::{cr4, msr};
use xen_abi::Mfn;

use super::instructions;
use super::tables::{self, ENTRY_SPLIT, ENTRY_TS, EXIT_CLEAR, EXIT_SWITCH, PerCpu, Windows};
use super::{globals, heap, memory, paging};

/// CR4 bits that the guest may change.
const GUEST_CR4: u64 = cr4::TSD | cr4::DE | cr4::FSGSBASE | cr4::OSXSAVE;
/// DE is for the guest's debugging only; FSGSBASE and OSXSAVE stay on, since the shim uses the
/// first and a guest that has seen the second in CPUID may use it.
const CR4_ALWAYS: u64 = cr4::FSGSBASE | cr4::OSXSAVE;

/// The machine.
pub struct Bare {
    windows: Windows,
    percpu: *mut PerCpu,
    /// First frame of the machine-to-physical table.
    m2p: Mfn,
    has_xsave: bool,
    /// What the operator says about split tables.
    split: Option<bool>,
}

// SAFETY: the pointer leads to a block that belongs to this vCPU for ever.
unsafe impl Send for Bare {}

unsafe extern "C" {
    fn read_msr_safe(index: u32, value: *mut u64) -> u32;
    fn write_msr_safe(index: u32, value: u64) -> u32;
    fn load_gs(selector: u32) -> u32;
}

impl Bare {
    /// Takes the machine over.
    pub fn new(
        windows: Windows,
        percpu: *mut PerCpu,
        m2p: Mfn,
        has_xsave: bool,
        split: Option<bool>,
    ) -> Self {
        let mut bare = Self {
            windows,
            percpu,
            m2p,
            has_xsave,
            split,
        };
        bare.host_changed();
        bare
    }

    /// Prepares the page tables that ring 3 runs on next, if they are not the shim's; nothing of the
    /// guest's may change afterwards.
    ///
    /// The copy is made each time: no flush need announce a new entry in the guest's table, and the
    /// copy costs little beside the loads of CR3.
    #[inline]
    pub fn before_guest(&self) {
        // SAFETY: the block is this vCPU's, and nothing holds a reference into it.
        let flags = unsafe { (*self.percpu).entry_flags };
        // The usual case: the entry code itself loads what `EXIT_SWITCH` asks for, after all of the
        // shim's work.
        if flags & ENTRY_SPLIT == 0 {
            return;
        }
        // SAFETY: as above.
        let (next, split) = unsafe { ((*self.percpu).next_table, (*self.percpu).guest_table) };
        // Ring 3 gets a copy of the table that comes next, loaded or not. A load that was put off
        // is made on the way in (`shim_table`).
        let table = if flags & EXIT_SWITCH == 0 {
            instructions::cr3()
        } else {
            next
        };
        self.entry_flags(|flags| flags & !EXIT_SWITCH);
        // SAFETY: as above.
        unsafe { (*self.percpu).shim_table = table };
        paging::copy_guest_slots(Mfn::of(table), Mfn::of(split));
    }

    /// Changes the bits that the entry code looks at.
    #[inline]
    fn entry_flags(&self, change: impl FnOnce(u8) -> u8) {
        // SAFETY: the block is this vCPU's, and nothing holds a reference into it.
        let flags = unsafe { &raw mut (*self.percpu).entry_flags };
        // SAFETY: as above.
        unsafe { flags.write(change(flags.read())) };
    }

    /// Loads the page table of a switch that was put off, before anything is done through it.
    #[inline]
    pub(super) fn settle(&self) {
        // SAFETY: the block is this vCPU's, and nothing holds a reference into it.
        let (flags, next) = unsafe { ((*self.percpu).entry_flags, (*self.percpu).next_table) };
        // Copies go through the MMU by whatever CR3 holds, and that is still the table of the mode
        // that the guest has left.
        if flags & EXIT_SWITCH != 0 {
            self.entry_flags(|flags| flags & !EXIT_SWITCH);
            // SAFETY: it is a table that the ledger has checked, by `switch_page_table`.
            unsafe { instructions::set_cr3(next) };
        }
    }
}

impl Tlb for Bare {
    fn flush_everything(&self) {
        // Global pages are never in use (CR4.PGE is off), so this drops everything.  It costs no VM
        // exit, which a change of CR4.PGE would.
        // SAFETY: the table stays the one that is loaded.
        unsafe { instructions::set_cr3(instructions::cr3()) };
    }
}

impl M2p for Bare {
    fn set(&self, mfn: Mfn, value: u64) {
        self.store64(
            Mfn(self.m2p.0 + mfn.0 / 512),
            (mfn.0 % 512) as usize * 8,
            value,
        );
    }
}

impl Machine for Bare {
    fn load_page_table(&mut self, l4: Mfn) {
        // A switch that was put off is overtaken by this load; it must not come after it on the way
        // out.
        self.entry_flags(|flags| flags & !EXIT_SWITCH);
        // SAFETY: the ledger has checked the table, and that put the shim's own slots into it.
        unsafe { instructions::set_cr3(l4.addr()) };
    }

    #[inline]
    fn switch_page_table(&mut self, l4: Mfn) {
        // SAFETY: the block is this vCPU's, and nothing holds a reference into it.
        let (flags, next) = unsafe {
            (
                (*self.percpu).entry_flags,
                &raw mut (*self.percpu).next_table,
            )
        };
        // There and back without a look at guest memory in between: the old table is still loaded.
        // Without a pending switch the same table is loaded again: where both modes share one, the
        // switch has to flush all the same.
        if flags & EXIT_SWITCH != 0 && instructions::cr3() == l4.addr() {
            return self.entry_flags(|flags| flags & !EXIT_SWITCH);
        }
        // SAFETY: as above.
        unsafe { next.write(l4.addr()) };
        self.entry_flags(|flags| flags | EXIT_SWITCH);
    }

    fn fault_address(&self) -> u64 {
        instructions::cr2()
    }

    fn flush_page(&self, va: u64) {
        // Any address of the guest's choice: INVLPG does nothing with a non-canonical one (SDM Vol.
        // 2A).
        instructions::invlpg(va);
    }

    fn gs_base(&self) -> u64 {
        instructions::read_msr(msr::KERNEL_GS_BASE)
    }

    #[inline]
    fn exchange_gs_base(&mut self, base: u64) -> u64 {
        // SAFETY: FSGSBASE was checked and enabled at boot; bases are checked for being canonical
        // where they come from the guest.
        unsafe { instructions::exchange_guest_gs(base) }
    }

    fn fs_base(&self) -> u64 {
        instructions::fs_base()
    }

    fn set_fs_base(&mut self, base: u64) {
        // SAFETY: nothing in the shim uses FS.
        unsafe { instructions::write_msr(msr::FS_BASE, base) };
    }

    fn load_gs_selector(&mut self, selector: u16) -> Option<u64> {
        // The load writes the active base, which is the shim's.
        let own = instructions::read_msr(msr::GS_BASE);
        // SAFETY: the load changes the shim's GS base, which is put back before anything uses it;
        // a fault is fixed up.
        let is_bad = unsafe { load_gs(selector.into()) } != 0;
        if is_bad {
            // SAFETY: as above; a null selector can not fault.
            unsafe { load_gs(0) };
        }
        // AMD's processors leave the base alone when a null selector is loaded, and what is left
        // would be the address of the `PerCpu` block.
        let is_null = is_bad || selector & !3 == 0;
        let base = (!is_null).then(|| instructions::read_msr(msr::GS_BASE));
        // SAFETY: it is what it was.
        unsafe { instructions::write_msr(msr::GS_BASE, own) };
        base
    }

    fn load_gdt(&mut self, frames: &[Mfn]) {
        // The frames are the caller's to hold: it has a reference to each for as long as it is
        // shown.
        self.windows.set_gdt(frames);
    }

    fn load_ldt(&mut self, frames: &[Mfn], entries: u32) {
        self.windows.set_ldt(frames, entries);
    }

    fn set_debug_register(&mut self, index: u8, value: u64) {
        // SAFETY: the library has checked the value.
        unsafe { instructions::set_debug_register(index, value) };
    }

    fn take_debug_status(&mut self) -> u64 {
        let status = instructions::dr6();
        // SAFETY: the value has no reserved bit wrong.
        unsafe { instructions::set_debug_register(6, first::DR6) };
        status
    }

    #[inline]
    fn take_host_traps(&self) -> HostTraps {
        // SAFETY: the block is this vCPU's; only the entry code writes there as well, on this CPU.
        let traps = unsafe { AtomicU8::from_ptr(&raw mut (*self.percpu).host_traps) };
        // Looked at on each way out, and almost never set: a load costs less than a locked
        // exchange.
        if traps.load(Ordering::Relaxed) == 0 {
            return HostTraps::empty();
        }
        // One instruction, which an NMI comes before or after.
        HostTraps::from_bits_truncate(traps.swap(0, Ordering::Relaxed))
    }

    fn host_changed(&mut self) {
        let [_, ebx, ecx, edx] = instructions::cpuid(0, 0);
        let leaf7 = instructions::cpuid(7, 0)[3];
        // Asked only where CPUID says that the register is there.
        let capabilities = (leaf7 & HAS_ARCH_CAPABILITIES != 0)
            .then(|| self.read_msr(msr::ARCH_CAPABILITIES))
            .flatten();
        let vendor = Vendor::of([0, ebx, ecx, edx]);
        let defences = Defences::needed(vendor, leaf7, capabilities.unwrap_or(0), self.split);
        info!("{defences:?}");
        // Never taken back: a host that needs no fences only waits a little at them.
        if defences.fence_swapgs {
            tables::fence_swapgs();
        }
        let set = |on: bool, bit: u8| if on { bit } else { 0 };
        let bits =
            set(defences.split_tables, ENTRY_SPLIT) | set(defences.clear_buffers, EXIT_CLEAR);
        // Both together, when nothing of the guest runs: from the next way out on, entry and exit
        // agree about the tables.
        self.entry_flags(|flags| flags & !(ENTRY_SPLIT | EXIT_CLEAR) | bits);
    }

    fn set_task_switched(&mut self, on: bool) {
        // The exit path sets CR0.TS while this bit is set, the entry path clears it.
        let bit = if on { ENTRY_TS } else { 0 };
        self.entry_flags(|flags| flags & !ENTRY_TS | bit);
    }

    fn tsc(&self) -> u64 {
        instructions::rdtsc()
    }

    fn set_guest_cr4(&mut self, bits: u64) {
        let always = if self.has_xsave {
            CR4_ALWAYS
        } else {
            cr4::FSGSBASE
        };
        let value = instructions::cr4() & !GUEST_CR4 | bits & GUEST_CR4 | always;
        // A move to CR4 may be an exit to the host; most calls change nothing.
        if value != instructions::cr4() {
            // SAFETY: only bits that concern ring 3 change, all of them within the policy.
            unsafe { instructions::set_cr4(value) };
        }
    }

    fn set_xcr0(&mut self, value: u64) {
        if self.has_xsave {
            // SAFETY: the policy has accepted the value.
            unsafe { instructions::xsetbv(value) };
        }
    }

    fn xcr0(&self) -> u64 {
        if self.has_xsave {
            instructions::xgetbv()
        } else {
            1
        }
    }

    fn read_msr(&self, index: u32) -> Option<u64> {
        let mut value = 0;
        // SAFETY: a fault is fixed up, and reading a register changes nothing that matters here.
        let fault = unsafe { read_msr_safe(index, &raw mut value) };
        (fault == 0).then_some(value)
    }

    fn write_msr(&mut self, index: u32, value: u64) {
        // SAFETY: a fault is fixed up; the library only names registers of the guest's own.
        // A fault is nothing to tell: the library has checked the value, and a new host may lack
        // the register.
        let _ = unsafe { write_msr_safe(index, value) };
    }

    fn heap_in_use(&self) -> u64 {
        heap::in_use() as u64
    }
}

/// Returns the address of the machine-to-physical table's first word, for building it.
pub fn m2p_entry(m2p: Mfn, mfn: Mfn) -> *mut u64 {
    debug_assert!(mfn.0 < globals::frame_limit());
    memory::direct(m2p)
        .cast::<u64>()
        .wrapping_add(mfn.0 as usize)
}
