//! Page tables and their hypercalls, as a 64-bit PV guest sees them (`xen/include/public/xen.h`,
//! `arch-x86/xen-x86_64.h`; entry bits: SDM Vol. 3A §4.5).
//!
//! A PV guest's entries hold machine frame numbers and are used by the CPU as they stand, after the
//! hypervisor checked and adjusted them.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{GuestVa, Mfn, PAGE_SHIFT};

/// Entries in a page table of any level.
pub const ENTRIES: usize = 512;
/// First L4 slot that belongs to the hypervisor (`ROOT_PAGETABLE_FIRST_XEN_SLOT`).
pub const FIRST_XEN_SLOT: usize = 256;
/// Last L4 slot that belongs to the hypervisor (`ROOT_PAGETABLE_LAST_XEN_SLOT`).
pub const LAST_XEN_SLOT: usize = 271;
/// How many L4 slots belong to the hypervisor.
pub const XEN_SLOTS: usize = LAST_XEN_SLOT - FIRST_XEN_SLOT + 1;
/// First address of the hypervisor's part of the address space (`HYPERVISOR_VIRT_START`).
pub const HYPERVISOR_VIRT_START: u64 = 0xffff_8000_0000_0000;
/// First address after the hypervisor's part of the address space (`HYPERVISOR_VIRT_END`).
pub const HYPERVISOR_VIRT_END: u64 = 0xffff_8800_0000_0000;
/// Where the guest reads the machine-to-physical table (`MACH2PHYS_VIRT_START`).
pub const M2P_VIRT_START: u64 = 0xffff_8000_0000_0000;
/// First address after the window of the machine-to-physical table (`MACH2PHYS_VIRT_END`).
pub const M2P_VIRT_END: u64 = 0xffff_8040_0000_0000;
/// Machine-to-physical value of a frame that is not the guest's (`INVALID_M2P_ENTRY`).
pub const INVALID_M2P_ENTRY: u64 = !0;

/// Whether entry `index` of an L4 table is the guest's to set.
pub const fn is_guest_l4_slot(index: usize) -> bool {
    index < FIRST_XEN_SLOT || index > LAST_XEN_SLOT
}

/// The four levels of page tables; an entry of an L1 table maps a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// Page table: entries map pages.
    L1 = 1,
    /// Page directory.
    L2 = 2,
    /// Page directory pointer table.
    L3 = 3,
    /// Root.
    L4 = 4,
}

impl Level {
    /// Returns the level whose tables this level's entries name; `None` for L1.
    pub const fn child(self) -> Option<Self> {
        match self {
            Self::L1 => None,
            Self::L2 => Some(Self::L1),
            Self::L3 => Some(Self::L2),
            Self::L4 => Some(Self::L3),
        }
    }

    /// Returns log2 of the bytes of address space that one entry covers.
    pub const fn shift(self) -> u32 {
        PAGE_SHIFT + 9 * (self as u32 - 1)
    }

    /// Returns which entry of a table of this level translates `va`.
    pub const fn index(self, va: GuestVa) -> usize {
        (va.0 >> self.shift()) as usize & (ENTRIES - 1)
    }
}

/// Whether the CPU accepts `va` as a 48-bit virtual address.
pub const fn is_canonical(va: GuestVa) -> bool {
    let top = va.0 >> 47;
    top == 0 || top == (1 << 17) - 1
}

/// An entry of a page table of any level.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Pte(pub u64);

impl Pte {
    /// The entry translates; without it all other bits are software's.
    pub const PRESENT: u64 = 1 << 0;
    /// Writable.
    pub const RW: u64 = 1 << 1;
    /// Reachable from ring 3.
    pub const USER: u64 = 1 << 2;
    /// Write-through.
    pub const PWT: u64 = 1 << 3;
    /// Uncached.
    pub const PCD: u64 = 1 << 4;
    /// The CPU used the entry.
    pub const ACCESSED: u64 = 1 << 5;
    /// The CPU wrote through the entry (L1).
    pub const DIRTY: u64 = 1 << 6;
    /// Large page (L2, L3) or PAT (L1).
    pub const PSE: u64 = 1 << 7;
    /// Survives a switch of CR3 (L1).
    pub const GLOBAL: u64 = 1 << 8;
    /// Software's, low.
    pub const AVAIL: u64 = 7 << 9;
    /// The frame number, in place.
    pub const FRAME: u64 = 0x000f_ffff_ffff_f000;
    /// Marks a kernel page of a PV guest (`_PAGE_GUEST_KERNEL`): both of the guest's modes run in
    /// ring 3, so [`USER`](Self::USER) can not tell.
    pub const GUEST_KERNEL: u64 = 1 << 52;
    /// Software's, high; contains [`GUEST_KERNEL`](Self::GUEST_KERNEL).
    pub const AVAIL_HIGH: u64 = 0x7ff << 52;
    /// Not executable.
    pub const NX: u64 = 1 << 63;

    /// Makes an entry that names `frame`.
    pub const fn new(frame: Mfn, flags: u64) -> Self {
        Self(frame.addr() & Self::FRAME | flags)
    }

    /// Whether the CPU translates through this entry.
    pub const fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// Whether all of `flags` are set.
    pub const fn has(self, flags: u64) -> bool {
        self.0 & flags == flags
    }

    /// Whether the entry is present and writable.
    pub const fn is_writable(self) -> bool {
        self.has(Self::PRESENT | Self::RW)
    }

    /// Returns the frame that the entry names.
    pub const fn frame(self) -> Mfn {
        Mfn((self.0 & Self::FRAME) >> PAGE_SHIFT)
    }

    /// Returns the entry without its frame number.
    pub const fn flags(self) -> u64 {
        self.0 & !Self::FRAME
    }

    /// Returns the entry with `flags` set as well.
    pub const fn with(self, flags: u64) -> Self {
        Self(self.0 | flags)
    }

    /// Returns the entry with `flags` cleared.
    pub const fn without(self, flags: u64) -> Self {
        Self(self.0 & !flags)
    }
}

impl fmt::Debug for Pte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pte({:#x})", self.0)
    }
}

/// One request of `mmu_update` (`struct mmu_update`).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MmuUpdate {
    /// Machine address to change; the three low bits are one of [`update`].
    pub ptr: u64,
    /// The new entry, or the new frame number for [`update::MACHPHYS`].
    pub val: u64,
}
const _: () = assert!(size_of::<MmuUpdate>() == 16);

impl MmuUpdate {
    /// Returns what to do, one of [`update`].
    pub const fn command(&self) -> u64 {
        self.ptr & 7
    }

    /// Returns the frame to change.
    pub const fn frame(&self) -> Mfn {
        Mfn::of(self.ptr)
    }

    /// Returns which 8-byte entry of the frame to change.
    pub const fn index(&self) -> usize {
        (self.ptr >> 3) as usize & (ENTRIES - 1)
    }
}

/// Commands of `mmu_update` (`MMU_*`).
pub mod update {
    /// Checked store of an entry.
    pub const NORMAL: u64 = 0;
    /// Store in the machine-to-physical table.
    pub const MACHPHYS: u64 = 1;
    /// As [`NORMAL`], keeping the accessed and dirty bits that the entry had.
    pub const PRESERVE_AD: u64 = 2;
    /// As [`NORMAL`] for a frame number that is not translated; no difference for a PV guest.
    pub const NO_TRANSLATE: u64 = 3;
}

/// One operation of `mmuext_op` (`struct mmuext_op`).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MmuExtOp {
    /// One of [`ext`].
    pub cmd: u32,
    /// Padding.
    pub pad: u32,
    /// A machine frame number or a linear address.
    pub arg1: u64,
    /// A count, a frame number or the address of a vCPU mask.
    pub arg2: u64,
}
const _: () = assert!(size_of::<MmuExtOp>() == 24);

/// Commands of `mmuext_op` (`MMUEXT_*`).
pub mod ext {
    #![expect(missing_docs, reason = "each is the header's name without its prefix")]
    pub const PIN_L1_TABLE: u32 = 0;
    pub const PIN_L2_TABLE: u32 = 1;
    pub const PIN_L3_TABLE: u32 = 2;
    pub const PIN_L4_TABLE: u32 = 3;
    pub const UNPIN_TABLE: u32 = 4;
    pub const NEW_BASEPTR: u32 = 5;
    pub const TLB_FLUSH_LOCAL: u32 = 6;
    pub const INVLPG_LOCAL: u32 = 7;
    pub const TLB_FLUSH_MULTI: u32 = 8;
    pub const INVLPG_MULTI: u32 = 9;
    pub const TLB_FLUSH_ALL: u32 = 10;
    pub const INVLPG_ALL: u32 = 11;
    pub const FLUSH_CACHE: u32 = 12;
    pub const SET_LDT: u32 = 13;
    pub const NEW_USER_BASEPTR: u32 = 15;
    pub const CLEAR_PAGE: u32 = 16;
    pub const COPY_PAGE: u32 = 17;
    pub const FLUSH_CACHE_GLOBAL: u32 = 18;
    pub const MARK_SUPER: u32 = 19;
    pub const UNMARK_SUPER: u32 = 20;
    /// Most descriptors that `SET_LDT` takes.
    pub const MAX_LDT_ENTRIES: u64 = 8192;
}

/// The flags word of `update_va_mapping` (`UVMF_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct UvmFlags(pub u64);

/// Which vCPUs the flush of an `update_va_mapping` concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UvmScope {
    /// The calling one.
    Local,
    /// All of them.
    All,
    /// Those in the bit map at this guest address.
    Mask(GuestVa),
}

impl UvmFlags {
    /// Flush nothing.
    pub const NONE: Self = Self(0);
    /// Flush all translations.
    pub const TLB_FLUSH: Self = Self(1);
    /// Flush the translation of the changed page.
    pub const INVLPG: Self = Self(2);
    /// On every vCPU; without it the bits from 2 on are the address of a vCPU bit map, 0 for the
    /// calling vCPU only.
    pub const ALL: u64 = 1 << 2;

    /// Returns what to flush: [`NONE`](Self::NONE), [`TLB_FLUSH`](Self::TLB_FLUSH),
    /// [`INVLPG`](Self::INVLPG), or 3, which is no flush type.
    pub const fn kind(self) -> Self {
        Self(self.0 & 3)
    }

    /// Returns where to flush.
    pub const fn scope(self) -> UvmScope {
        match self.0 & !3 {
            0 => UvmScope::Local,
            Self::ALL => UvmScope::All,
            address => UvmScope::Mask(GuestVa(address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ENTRIES, Level, MmuUpdate, Pte, UvmFlags, UvmScope, is_canonical, update};
    use crate::{GuestVa, Mfn};

    #[test]
    fn an_address_splits_into_its_indexes() {
        let va = GuestVa(0xffff_8880_0040_3123);
        assert_eq!(Level::L4.index(va), 273);
        assert_eq!(Level::L3.index(va), 0);
        assert_eq!(Level::L2.index(va), 2);
        assert_eq!(Level::L1.index(va), 3);
    }

    #[test]
    fn only_sign_extended_addresses_are_canonical() {
        assert!(is_canonical(GuestVa(0x7fff_ffff_ffff)));
        assert!(!is_canonical(GuestVa(0x8000_0000_0000)));
        assert!(!is_canonical(GuestVa(0xffff_7fff_ffff_ffff)));
        assert!(is_canonical(GuestVa(0xffff_8000_0000_0000)));
    }

    #[test]
    fn an_entry_keeps_frame_and_flags_apart() {
        let pte = Pte::new(Mfn(0x12345), Pte::NX | Pte::RW | Pte::PRESENT);
        assert_eq!(pte.0, 0x8000_0000_1234_5003);
        assert_eq!(pte.frame(), Mfn(0x12345));
        assert_eq!(pte.flags(), Pte::NX | Pte::RW | Pte::PRESENT);
        assert!(pte.is_writable() && !pte.without(Pte::PRESENT).is_writable());
    }

    #[test]
    fn a_request_names_frame_entry_and_command() {
        let request = MmuUpdate {
            ptr: 0x1234_5ff8 | update::PRESERVE_AD,
            val: 0,
        };
        assert_eq!(request.frame(), Mfn(0x12345));
        assert_eq!(request.index(), ENTRIES - 1);
        assert_eq!(request.command(), update::PRESERVE_AD);
    }

    #[test]
    fn mapping_flags_name_the_vcpus() {
        assert_eq!(UvmFlags(2).scope(), UvmScope::Local);
        assert_eq!(UvmFlags(5).scope(), UvmScope::All);
        assert_eq!(UvmFlags(5).kind(), UvmFlags::TLB_FLUSH);
        assert_eq!(UvmFlags(0x1002).scope(), UvmScope::Mask(GuestVa(0x1000)));
    }
}
