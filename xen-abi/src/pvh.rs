//! What a PVH guest is started with (`xen/include/public/arch-x86/hvm/start_info.h`).
//!
//! `ebx` holds the physical address of a [`HvmStartInfo`] at the entry point; everything else is
//! reached from there.  All addresses are guest physical.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Value of [`HvmStartInfo::magic`]: `"xEn3"` with the top bit of the `E` set.
pub const MAGIC: u32 = 0x336e_c578;

/// The block that the loader leaves for the guest (`struct hvm_start_info`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HvmStartInfo {
    /// [`MAGIC`].
    pub magic: u32,
    /// Version of this block; the memory map is there from 1 on.
    pub version: u32,
    /// `SIF_*` flags, see [`start_info`](crate::start_info).
    pub flags: u32,
    /// Entries in the module list.
    pub nr_modules: u32,
    /// Address of an array of [`ModlistEntry`].
    pub modlist_paddr: u64,
    /// Address of the NUL-terminated command line, or 0.
    pub cmdline_paddr: u64,
    /// Address of the ACPI RSDP, or 0.
    pub rsdp_paddr: u64,
    /// Address of an array of [`MemmapEntry`]; only if `version` is at least 1.
    pub memmap_paddr: u64,
    /// Entries in the memory map; only if `version` is at least 1.
    pub memmap_entries: u32,
    /// Must be zero.
    pub reserved: u32,
}

/// A file that the loader placed in memory (`struct hvm_modlist_entry`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ModlistEntry {
    /// Address of the first byte.
    pub paddr: u64,
    /// Length in bytes.
    pub size: u64,
    /// Address of the module's NUL-terminated command line, or 0.
    pub cmdline_paddr: u64,
    /// Must be zero.
    pub reserved: u64,
}

/// A range of the physical address space (`struct hvm_memmap_table_entry`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemmapEntry {
    /// First address.
    pub addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// What is there; one of the values in [`e820`].
    pub kind: u32,
    /// Must be zero.
    pub reserved: u32,
}

/// Types of a [`MemmapEntry`] (`XEN_HVM_MEMMAP_TYPE_*`), those of the BIOS call E820.
pub mod e820 {
    /// Ordinary memory.
    pub const RAM: u32 = 1;
    /// Not to be used.
    pub const RESERVED: u32 = 2;
    /// ACPI tables, memory once they were read.
    pub const ACPI: u32 = 3;
    /// Memory that firmware keeps.
    pub const NVS: u32 = 4;
    /// Faulty memory.
    pub const UNUSABLE: u32 = 5;
    /// Not to be used; disabled by firmware.
    pub const DISABLED: u32 = 6;
    /// Persistent memory.
    pub const PMEM: u32 = 7;
}

const _: () = {
    assert!(size_of::<HvmStartInfo>() == 56);
    assert!(offset_of!(HvmStartInfo, modlist_paddr) == 16);
    assert!(offset_of!(HvmStartInfo, rsdp_paddr) == 32);
    assert!(offset_of!(HvmStartInfo, memmap_paddr) == 40);
    assert!(offset_of!(HvmStartInfo, memmap_entries) == 48);
    assert!(size_of::<ModlistEntry>() == 32);
    assert!(offset_of!(ModlistEntry, cmdline_paddr) == 16);
    assert!(size_of::<MemmapEntry>() == 24);
    assert!(offset_of!(MemmapEntry, kind) == 16);
};
