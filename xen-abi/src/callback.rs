//! Guest callbacks (`xen/include/public/callback.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `CALLBACKOP_register`.
pub const REGISTER: u64 = 0;
/// `CALLBACKOP_unregister`.
pub const UNREGISTER: u64 = 1;

/// Which callback (`CALLBACKTYPE_*`).
pub mod kind {
    #![expect(missing_docs, reason = "each is the header's name without its prefix")]
    pub const EVENT: u16 = 0;
    pub const FAILSAFE: u16 = 1;
    pub const SYSCALL: u16 = 2;
    pub const NMI: u16 = 4;
    pub const SYSENTER: u16 = 5;
    pub const SYSCALL32: u16 = 7;
}

/// In [`Register::flags`]: events are masked on entry (`CALLBACKF_mask_events`).
pub const MASK_EVENTS: u16 = 1;

/// `struct callback_register`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Register {
    /// One of [`kind`].
    pub kind: u16,
    /// [`MASK_EVENTS`].
    pub flags: u16,
    /// Padding.
    pub pad: u32,
    /// The handler.
    pub address: u64,
}
const _: () = assert!(size_of::<Register>() == 16);
