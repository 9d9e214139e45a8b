//! The block device protocol (`xen/include/public/io/blkif.h`), in the layout of x86-64.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a ring slot: the larger of request and response.
pub const SLOT_SIZE: usize = 112;
/// Segments that fit into an ordinary request (`BLKIF_MAX_SEGMENTS_PER_REQUEST`).
pub const MAX_SEGMENTS: usize = 11;
/// Pages that an indirect request may name (`BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`).
pub const MAX_INDIRECT_PAGES: usize = 8;
/// Bytes of a sector in every quantity of the protocol, whatever the disk's own sector size.
pub const SECTOR_SIZE: u64 = 512;
/// Sectors in a page, and so in a segment at most.
pub const SECTORS_PER_PAGE: u8 = 8;
/// Segments that one page of an indirect request holds.
pub const SEGMENTS_PER_PAGE: usize = crate::PAGE_SIZE / size_of::<Segment>();
/// What a 64-bit frontend writes to its `protocol` node (`XEN_IO_PROTO_ABI_X86_64`).
pub const PROTOCOL: &str = "x86_64-abi";

/// Operations (`BLKIF_OP_*`).
pub mod op {
    #![expect(missing_docs, reason = "each is the header's name without its prefix")]
    pub const READ: u8 = 0;
    pub const WRITE: u8 = 1;
    pub const WRITE_BARRIER: u8 = 2;
    pub const FLUSH_DISKCACHE: u8 = 3;
    pub const DISCARD: u8 = 5;
    pub const INDIRECT: u8 = 6;
}

/// What a response says (`BLKIF_RSP_*`).
pub mod status {
    #![expect(missing_docs, reason = "each is the header's name without its prefix")]
    pub const OKAY: i16 = 0;
    pub const ERROR: i16 = -1;
    pub const EOPNOTSUPP: i16 = -2;
}

/// Bits of the backend's `info` node (`VDISK_*`).
pub mod info {
    /// A CD-ROM.
    pub const CDROM: u32 = 1;
    /// A removable medium.
    pub const REMOVABLE: u32 = 2;
    /// Not writable.
    pub const READONLY: u32 = 4;
}

/// `BLKIF_DISCARD_SECURE`: no copy of the data may survive.
pub const DISCARD_SECURE: u8 = 1;

/// A part of a frame to read into or write from (`struct blkif_request_segment`).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Segment {
    /// The frame's grant reference.
    pub gref: u32,
    /// First sector within the frame.
    pub first_sect: u8,
    /// Last sector within the frame, included.
    pub last_sect: u8,
    /// Padding.
    pub pad: u16,
}

/// A read, write, barrier or flush (`struct blkif_request`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Request {
    /// One of [`op`].
    pub operation: u8,
    /// How many of `seg` are used.
    pub nr_segments: u8,
    /// The device's number, of no use today.
    pub handle: u16,
    /// Padding.
    pub pad: u32,
    /// The sender's own name for the request, returned in the response.
    pub id: u64,
    /// First sector on the disk.
    pub sector_number: u64,
    /// Where the data is.
    pub seg: [Segment; MAX_SEGMENTS],
}

/// A discard (`struct blkif_request_discard`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RequestDiscard {
    /// [`op::DISCARD`].
    pub operation: u8,
    /// [`DISCARD_SECURE`] or 0.
    pub flag: u8,
    /// The device's number, of no use today.
    pub handle: u16,
    /// Padding.
    pub pad: u32,
    /// The sender's own name for the request, returned in the response.
    pub id: u64,
    /// First sector on the disk.
    pub sector_number: u64,
    /// How many sectors.
    pub nr_sectors: u64,
    /// The rest of the slot.
    pub rest: [u64; 10],
}

/// A read or write whose segments are kept in pages of their own
/// (`struct blkif_request_indirect`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RequestIndirect {
    /// [`op::INDIRECT`].
    pub operation: u8,
    /// [`op::READ`] or [`op::WRITE`].
    pub indirect_op: u8,
    /// How many segments there are.
    pub nr_segments: u16,
    /// Padding.
    pub pad0: u32,
    /// The sender's own name for the request, returned in the response.
    pub id: u64,
    /// First sector on the disk.
    pub sector_number: u64,
    /// The device's number, of no use today.
    pub handle: u16,
    /// Padding.
    pub pad1: u16,
    /// Grant references of the pages with the [`Segment`]s.
    pub indirect_grefs: [u32; MAX_INDIRECT_PAGES],
    /// Padding.
    pub pad2: u32,
    /// The rest of the slot.
    pub rest: [u64; 6],
}

/// `struct blkif_response`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Response {
    /// The request's.
    pub id: u64,
    /// The request's; of an indirect request, what it does.
    pub operation: u8,
    /// Padding.
    pub pad0: u8,
    /// One of [`status`].
    pub status: i16,
    /// Padding.
    pub pad1: u32,
}

const _: () = {
    assert!(size_of::<Segment>() == 8 && SEGMENTS_PER_PAGE == 512);
    assert!(size_of::<Request>() == SLOT_SIZE);
    assert!(offset_of!(Request, id) == 8 && offset_of!(Request, seg) == 24);
    assert!(size_of::<RequestDiscard>() == SLOT_SIZE);
    assert!(offset_of!(RequestDiscard, nr_sectors) == 24);
    assert!(size_of::<RequestIndirect>() == SLOT_SIZE);
    assert!(offset_of!(RequestIndirect, nr_segments) == 2);
    assert!(offset_of!(RequestIndirect, handle) == 24);
    assert!(offset_of!(RequestIndirect, indirect_grefs) == 28);
    assert!(size_of::<Response>() == 16);
    assert!(offset_of!(Response, operation) == 8 && offset_of!(Response, status) == 10);
};
