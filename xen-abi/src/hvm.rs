//! `hvm_op` as a PVH guest uses it (`xen/include/public/hvm/hvm_op.h`, `params.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `HVMOP_set_param`.
pub const SET_PARAM: u64 = 0;
/// `HVMOP_get_param`.
pub const GET_PARAM: u64 = 1;

/// Parameters (`HVM_PARAM_*`).
pub mod param {
    /// How events are announced: type in bits 63:56.
    pub const CALLBACK_IRQ: u32 = 0;
    /// Frame of the xenstore ring.
    pub const STORE_PFN: u32 = 1;
    /// Port of xenstored.
    pub const STORE_EVTCHN: u32 = 2;
    /// Frame of the console ring.
    pub const CONSOLE_PFN: u32 = 17;
    /// Port of the console daemon.
    pub const CONSOLE_EVTCHN: u32 = 18;
}

/// Value of `CALLBACK_IRQ` that injects `vector` whenever events are pending
/// (`HVM_PARAM_CALLBACK_TYPE_VECTOR`).
pub const fn callback_via_vector(vector: u8) -> u64 {
    2 << 56 | vector as u64
}

/// `struct xen_hvm_param`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Param {
    /// Whose parameter.
    pub domid: u16,
    /// Padding.
    pub pad: u16,
    /// One of [`param`].
    pub index: u32,
    /// The value.
    pub value: u64,
}
const _: () = assert!(size_of::<Param>() == 16);
