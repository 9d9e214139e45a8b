//! Where the shim's own mappings lie in every address space: L4 slots 256–271, which the PV ABI
//! leaves to the hypervisor.  Slot 256 is the only one whose content the guest may use.

/// First L4 slot of the shim.
pub const FIRST_SLOT: usize = 256;
/// How many slots are the shim's.
pub const SLOTS: usize = 16;
/// Machine-to-physical table, read-only for the guest (ABI: `HYPERVISOR_VIRT_START`).
pub const M2P: u64 = 0xffff_8000_0000_0000;
/// Descriptor windows of each vCPU.
pub const WINDOWS: u64 = 0xffff_8200_0000_0000;
/// Distance between two vCPUs' windows.
pub const WINDOW_STRIDE: u64 = 0x20_0000;
/// Within a vCPU's window: 16 pages of GDT.
pub const GDT_OFFSET: u64 = 0;
/// Within a vCPU's window: 16 pages of LDT.
pub const LDT_OFFSET: u64 = 0x1_0000;
/// Within a vCPU's window: the IDT.
pub const IDT_OFFSET: u64 = 0x2_0000;
/// Within a vCPU's window: its TSS and what the entry code finds at GS base.
pub const STATE_OFFSET: u64 = 0x2_1000;
/// Within a vCPU's window: the entry stack, then those of #DB, NMI, #MC and #DF.  Each is
/// [`ENTRY_STACK_PAGES`] long with a page that does not exist before it.
pub const STACKS_OFFSET: u64 = 0x2_2000;
/// Pages of each of them.
pub const ENTRY_STACK_PAGES: usize = 2;
/// The image, as in `link.ld`.
pub const IMAGE: u64 = 0xffff_82d0_4000_0000;
/// Where the image is loaded, as in `link.ld`.
pub const IMAGE_PHYSICAL: u64 = 0x20_0000;
/// All of the domain's memory, for the shim only.
pub const DIRECT: u64 = 0xffff_8300_0000_0000;

/// Bytes of a vCPU's stack.
pub const STACK_SIZE: usize = 0x1_0000;

/// Returns the index of `va` in a table of `level` (1–4).
pub const fn index(va: u64, level: u32) -> usize {
    (va >> (12 + 9 * (level - 1)) & 511) as usize
}

/// Frame numbers where the pages that belong to the host appear.  The toolstack puts nothing
/// between the ACPI tables (from 0xfc000) and the local APIC (0xfee00), and RAM ends below.
pub mod gfn {
    use xen_abi::Mfn;

    /// The shared info page.
    pub const SHARED_INFO: Mfn = Mfn(0xfe000);
    /// The first frame of the host's grant table.
    pub const GRANT_TABLE: Mfn = Mfn(0xfe100);
    /// How many of those there can be.
    pub const GRANT_FRAMES: u64 = 64;
}
