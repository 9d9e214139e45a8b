//! Memory operations (`xen/include/public/memory.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Sub-operations of `memory_op` (`XENMEM_*`).
pub mod op {
    #![expect(missing_docs, reason = "each is the header's name without its prefix")]
    pub const INCREASE_RESERVATION: u64 = 0;
    pub const DECREASE_RESERVATION: u64 = 1;
    pub const MAXIMUM_RAM_PAGE: u64 = 2;
    pub const CURRENT_RESERVATION: u64 = 3;
    pub const MAXIMUM_RESERVATION: u64 = 4;
    pub const MACHPHYS_MFN_LIST: u64 = 5;
    pub const POPULATE_PHYSMAP: u64 = 6;
    pub const ADD_TO_PHYSMAP: u64 = 7;
    pub const MEMORY_MAP: u64 = 9;
    pub const MACHINE_MEMORY_MAP: u64 = 10;
    pub const EXCHANGE: u64 = 11;
    pub const MACHPHYS_MAPPING: u64 = 12;
    pub const MAXIMUM_GPFN: u64 = 14;
    /// How many bits of the command word are the sub-operation (`MEMOP_EXTENT_SHIFT`).
    pub const EXTENT_SHIFT: u32 = 6;
}

/// Where `XENMEM_add_to_physmap` takes the page from (`XENMAPSPACE_*`).
pub mod space {
    /// The shared info page.
    pub const SHARED_INFO: u32 = 0;
    /// A frame of the grant table.
    pub const GRANT_TABLE: u32 = 1;
}

/// `struct xen_memory_reservation`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Reservation {
    /// Address of an array of frame numbers.
    pub extent_start: u64,
    /// Its length.
    pub nr_extents: u64,
    /// log2 of the pages in each extent.
    pub extent_order: u32,
    /// `XENMEMF_*`.
    pub mem_flags: u32,
    /// Whose memory.
    pub domid: u16,
    /// Padding.
    pub pad: [u16; 3],
}
const _: () = assert!(size_of::<Reservation>() == 32);

/// `struct xen_add_to_physmap`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AddToPhysmap {
    /// Whose physical map.
    pub domid: u16,
    /// Used with ranges only.
    pub size: u16,
    /// One of [`space`].
    pub space: u32,
    /// Index into the space.
    pub idx: u64,
    /// Where the page is to appear.
    pub gpfn: u64,
}
const _: () = assert!(size_of::<AddToPhysmap>() == 24);

/// `struct xen_memory_map`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryMap {
    /// In: how many entries there is room for; out: how many were written.
    pub nr_entries: u32,
    /// Padding.
    pub pad: u32,
    /// Address of the entries.
    pub buffer: u64,
}
const _: () = assert!(size_of::<MemoryMap>() == 16);

/// `struct e820entry`, as PV guests get it (`xen/include/asm-x86/e820.h`).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
pub struct E820Entry {
    /// First byte.
    pub addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// One of [`crate::pvh::e820`].
    pub kind: u32,
}
const _: () = assert!(size_of::<E820Entry>() == 20);

/// `struct xen_machphys_mapping`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MachphysMapping {
    /// First address of the machine-to-physical table.
    pub v_start: u64,
    /// Where it ends.
    pub v_end: u64,
    /// Its last index.
    pub max_mfn: u64,
}
