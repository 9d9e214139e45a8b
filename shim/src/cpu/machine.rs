//! What the logic needs of the CPU it runs on.

use bitflags::bitflags;
use xen_abi::Mfn;

use crate::mem::{Frames, GuestMemory};
use crate::mm::{M2p, Tlb};

bitflags! {
    /// What a host raises on a CPU besides events, whatever that CPU is doing.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct HostTraps: u8 {
        /// A non-maskable interrupt (`xl trigger DOMAIN nmi`).
        const NMI = 1 << 0;
        /// A machine check that this CPU goes on after.
        const MACHINE_CHECK = 1 << 1;
    }
}

/// The CPU and the memory of the machine, as one vCPU sees them.
///
/// On bare metal these are instructions; in tests a record of what was asked.
pub trait Machine: Frames + GuestMemory + Tlb + M2p + Sized {
    /// Makes `l4` the active page table, which drops every non-global translation.
    fn load_page_table(&mut self, l4: Mfn);
    /// Makes `l4` the active page table before the guest runs or its memory is accessed, whichever
    /// comes first.  The one that is active now must stay what it is until then.
    ///
    /// A load drops the translations of the shim's own pages, too, so the later the better; and
    /// one that is taken back in time costs nothing.
    fn switch_page_table(&mut self, l4: Mfn);
    /// Returns the address of the last page fault (CR2).
    fn fault_address(&self) -> u64;
    /// Drops the translation of one page on this CPU.
    fn flush_page(&self, va: u64);
    /// Returns the guest's active GS base.
    fn gs_base(&self) -> u64;
    /// Sets the guest's active GS base, which must be canonical, and returns the old one.
    fn exchange_gs_base(&mut self, base: u64) -> u64;
    /// Returns the FS base.
    fn fs_base(&self) -> u64;
    /// Sets the FS base, which must be canonical.
    fn set_fs_base(&mut self, base: u64);
    /// Loads GS from the guest's descriptor tables, a bad selector as null, and returns the base
    /// that came with it; the active GS base stays.  With null comes none: Intel's processors clear
    /// the base then, AMD's leave what was there.
    fn load_gs_selector(&mut self, selector: u16) -> Option<u64>;
    /// Puts the guest's descriptor frames into the first pages of the GDT window.
    fn load_gdt(&mut self, frames: &[Mfn]);
    /// Puts the guest's frames into the LDT window and loads it with `entries` descriptors.
    fn load_ldt(&mut self, frames: &[Mfn], entries: u32);
    /// Loads debug register `index` (0–3, 6, 7) with a value that was checked.
    fn set_debug_register(&mut self, index: u8, value: u64);
    /// Takes DR6: returns it, and resets it for the next exception, since the CPU only ever sets
    /// bits there.
    fn take_debug_status(&mut self) -> u64;
    /// Takes what the host has raised on this CPU since the last call.
    fn take_host_traps(&self) -> HostTraps;
    /// Adapts to a host that may have another processor: what protects the guest from its own
    /// programs depends on it.
    fn host_changed(&mut self);
    /// Makes the guest's next FPU instruction trap, or not (`CR0.TS` while in ring 3).
    fn set_task_switched(&mut self, on: bool);
    /// Reads the time stamp counter.
    fn tsc(&self) -> u64;
    /// Sets the guest-visible CR4 bits TSD, DE and FSGSBASE in the real CR4.
    fn set_guest_cr4(&mut self, bits: u64);
    /// Sets XCR0, checked against the policy.
    fn set_xcr0(&mut self, value: u64);
    /// Returns XCR0.
    fn xcr0(&self) -> u64;
    /// Reads a model-specific register of the machine; `None` where that faults.
    fn read_msr(&self, index: u32) -> Option<u64>;
    /// Writes a model-specific register whose value the policy has accepted; a fault is ignored.
    fn write_msr(&mut self, index: u32, value: u64);
    /// Returns how many bytes of the shim's heap are in use, for reports; 0 where nobody counts.
    fn heap_in_use(&self) -> u64 {
        0
    }
}
