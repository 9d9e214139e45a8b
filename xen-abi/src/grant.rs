//! Grant tables, version 1, and their operations (`xen/include/public/grant_table.h`).

use core::mem::{offset_of, size_of};

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::PAGE_SIZE;

/// Sub-operations of `grant_table_op` (`GNTTABOP_*`).
pub mod op {
    #![expect(missing_docs, reason = "each is the header's name without its prefix")]
    pub const MAP_GRANT_REF: u64 = 0;
    pub const UNMAP_GRANT_REF: u64 = 1;
    pub const SETUP_TABLE: u64 = 2;
    pub const DUMP_TABLE: u64 = 3;
    pub const TRANSFER: u64 = 4;
    pub const COPY: u64 = 5;
    pub const QUERY_SIZE: u64 = 6;
    pub const UNMAP_AND_REPLACE: u64 = 7;
    pub const SET_VERSION: u64 = 8;
    pub const GET_STATUS_FRAMES: u64 = 9;
    pub const GET_VERSION: u64 = 10;
    pub const SWAP_GRANT_REF: u64 = 11;
    pub const CACHE_FLUSH: u64 = 12;
}

/// The `status` members of the operations (`GNTST_*`).
pub mod status {
    #![expect(missing_docs, reason = "each is the header's name without its prefix")]
    pub const OKAY: i16 = 0;
    pub const GENERAL_ERROR: i16 = -1;
    pub const BAD_DOMAIN: i16 = -2;
    pub const BAD_GNTREF: i16 = -3;
    pub const BAD_HANDLE: i16 = -4;
    pub const BAD_VIRT_ADDR: i16 = -5;
    pub const BAD_DEV_ADDR: i16 = -6;
    pub const NO_DEVICE_SPACE: i16 = -7;
    pub const PERMISSION_DENIED: i16 = -8;
    pub const BAD_PAGE: i16 = -9;
    pub const BAD_COPY_ARG: i16 = -10;
    pub const ADDRESS_TOO_BIG: i16 = -11;
    pub const EAGAIN: i16 = -12;
    pub const NO_SPACE: i16 = -13;
}

/// References below this one belong to the toolstack (`GNTTAB_NR_RESERVED_ENTRIES`).
pub const RESERVED_ENTRIES: u32 = 8;

/// An entry of a version 1 table (`grant_entry_v1_t`).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EntryV1 {
    /// A set of [`EntryFlags`]; written last, for it makes the entry valid.
    pub flags: u16,
    /// Whom access is granted to.
    pub domid: u16,
    /// The frame number that is granted.
    pub frame: u32,
}

/// Entries in a frame of a version 1 table.
pub const ENTRIES_PER_FRAME: u32 = (PAGE_SIZE / size_of::<EntryV1>()) as u32;

bitflags! {
    /// `GTF_*`: an entry's type (two bits) and how it may be, or is being, used.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EntryFlags: u16 {
        /// The type that lets a domain map or copy the frame.
        const PERMIT_ACCESS = 1;
        /// The type that lets a domain give us a frame.
        const ACCEPT_TRANSFER = 2;
        /// The bits that hold the type.
        const TYPE_MASK = 3;
        /// The grantee may only read.
        const READONLY = 1 << 2;
        /// Set by the hypervisor while the grantee has the frame in use.
        const READING = 1 << 3;
        /// Set by the hypervisor while the grantee has the frame in use for writing.
        const WRITING = 1 << 4;
        /// Only a part of the frame is granted (version 2).
        const SUB_PAGE = 1 << 8;
        /// Others, of no meaning here.
        const _ = !0;
    }
}

/// `GNTMAP_*`: how a grant is to be mapped.
pub mod map_flags {
    /// For devices: only the bus address is wanted.
    pub const DEVICE_MAP: u32 = 1 << 0;
    /// For the CPU, at `host_addr`.
    pub const HOST_MAP: u32 = 1 << 1;
    /// Without the right to write.
    pub const READONLY: u32 = 1 << 2;
    /// For the application, too, not only the kernel.
    pub const APPLICATION_MAP: u32 = 1 << 3;
    /// `host_addr` is the machine address of a page table entry, not a linear address.
    pub const CONTAINS_PTE: u32 = 1 << 4;
}

/// `struct gnttab_map_grant_ref`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MapGrantRef {
    /// Where to map: a linear address, or that of a page table entry.
    pub host_addr: u64,
    /// A set of [`map_flags`].
    pub flags: u32,
    /// The reference.
    pub reference: u32,
    /// The domain that granted.
    pub dom: u16,
    /// Result: one of [`status`].
    pub status: i16,
    /// Result: names the mapping.
    pub handle: u32,
    /// Result: the frame's bus address.
    pub dev_bus_addr: u64,
}

/// `struct gnttab_unmap_grant_ref`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UnmapGrantRef {
    /// The CPU mapping to undo, or 0.
    pub host_addr: u64,
    /// The device mapping to undo, or 0.
    pub dev_bus_addr: u64,
    /// Names the mapping.
    pub handle: u32,
    /// Result: one of [`status`].
    pub status: i16,
    /// Padding.
    pub pad: u16,
}

/// `struct gnttab_setup_table`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetupTable {
    /// Whose table.
    pub dom: u16,
    /// Padding.
    pub pad0: u16,
    /// How many frames are wanted at least.
    pub nr_frames: u32,
    /// Result: one of [`status`].
    pub status: i16,
    /// Padding.
    pub pad1: [u16; 3],
    /// Guest address of a list of `nr_frames` frame numbers (64 bits each) to be filled.
    pub frame_list: u64,
}

/// One side of a [`CopyOp`] (`struct gnttab_copy_ptr`).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CopyPtr {
    /// A frame number, or in its lower half a reference.
    pub frame_or_ref: u64,
    /// Whose.
    pub domid: u16,
    /// The first byte within the frame.
    pub offset: u16,
    /// Padding.
    pub pad: u32,
}

/// `GNTCOPY_source_gref`: the source is named by a reference.
pub const COPY_SOURCE_GREF: u16 = 1 << 0;
/// `GNTCOPY_dest_gref`: the destination is named by a reference.
pub const COPY_DEST_GREF: u16 = 1 << 1;

/// `struct gnttab_copy`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CopyOp {
    /// Where from.
    pub source: CopyPtr,
    /// Where to.
    pub dest: CopyPtr,
    /// Number of bytes.
    pub len: u16,
    /// [`COPY_SOURCE_GREF`] and [`COPY_DEST_GREF`].
    pub flags: u16,
    /// Result: one of [`status`].
    pub status: i16,
    /// Padding.
    pub pad: u16,
}

/// `struct gnttab_query_size`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct QuerySize {
    /// Whose table.
    pub dom: u16,
    /// Padding.
    pub pad0: u16,
    /// Result: frames that it has.
    pub nr_frames: u32,
    /// Result: frames that it may have.
    pub max_nr_frames: u32,
    /// Result: one of [`status`].
    pub status: i16,
    /// Padding.
    pub pad1: u16,
}

/// `struct gnttab_set_version`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetVersion {
    /// The version that is wanted; result: the one in effect.
    pub version: u32,
}

/// `struct gnttab_get_status_frames`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetStatusFrames {
    /// How many frames are wanted.
    pub nr_frames: u32,
    /// Whose.
    pub dom: u16,
    /// Result: one of [`status`].
    pub status: i16,
    /// Guest address of the list to be filled.
    pub frame_list: u64,
}

/// `struct gnttab_get_version`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetVersion {
    /// Whose table.
    pub dom: u16,
    /// Padding.
    pub pad: u16,
    /// Result: the version in effect.
    pub version: u32,
}

/// `struct gnttab_swap_grant_ref`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SwapGrantRef {
    /// One reference.
    pub ref_a: u32,
    /// The other.
    pub ref_b: u32,
    /// Result: one of [`status`].
    pub status: i16,
    /// Padding.
    pub pad: u16,
}

const _: () = {
    assert!(size_of::<EntryV1>() == 8);
    assert!(offset_of!(EntryV1, domid) == 2 && offset_of!(EntryV1, frame) == 4);
    assert!(ENTRIES_PER_FRAME == 512);
    assert!(size_of::<MapGrantRef>() == 32);
    assert!(offset_of!(MapGrantRef, dom) == 16 && offset_of!(MapGrantRef, status) == 18);
    assert!(offset_of!(MapGrantRef, handle) == 20);
    assert!(size_of::<UnmapGrantRef>() == 24 && offset_of!(UnmapGrantRef, status) == 20);
    assert!(size_of::<SetupTable>() == 24);
    assert!(offset_of!(SetupTable, status) == 8 && offset_of!(SetupTable, frame_list) == 16);
    assert!(size_of::<CopyOp>() == 40 && offset_of!(CopyOp, dest) == 16);
    assert!(offset_of!(CopyPtr, offset) == 10 && offset_of!(CopyOp, status) == 36);
    assert!(size_of::<QuerySize>() == 16 && offset_of!(QuerySize, status) == 12);
    assert!(size_of::<GetStatusFrames>() == 16 && offset_of!(GetStatusFrames, status) == 6);
    assert!(size_of::<GetVersion>() == 8);
    assert!(size_of::<SwapGrantRef>() == 12);
};
