//! `physdev_op` (`xen/include/public/physdev.h`): what a guest without devices uses of it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Sub-operations (`PHYSDEVOP_*`).
pub mod op {
    #![expect(missing_docs, reason = "each is the header's name without its prefix")]
    pub const IRQ_STATUS_QUERY: u64 = 5;
    pub const SET_IOPL: u64 = 6;
    pub const SET_IOBITMAP: u64 = 7;
    pub const EOI: u64 = 12;
}

/// `struct physdev_set_iobitmap`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetIobitmap {
    /// Address of the bitmap, a set bit refusing the port.
    pub bitmap: u64,
    /// How many ports it covers.
    pub nr_ports: u32,
    /// Padding.
    pub pad: u32,
}
