//! The number spaces of the interface, each its own type so that they cannot be mixed.

use core::fmt;

/// log2 of the page size.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page of every x86 Xen guest.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// A frame number of the guest's *machine* memory.  Inside the shim it equals the guest frame
/// number that the hypervisor underneath knows the page by, and so survives a migration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Mfn(pub u64);

/// A frame number of the guest's pseudo-physical memory, dense from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Pfn(pub u64);

/// A virtual address that the guest *claims* is its own; nothing is known of it until it was used
/// through a checked access.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct GuestVa(pub u64);

/// An event channel port, of whichever domain the context names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Port(pub u32);

/// A domain id (`domid_t`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct DomId(pub u16);

impl DomId {
    /// The calling domain (`DOMID_SELF`).
    pub const SELF: Self = Self(0x7ff0);
    /// The first id that names no ordinary domain (`DOMID_FIRST_RESERVED`).
    pub const FIRST_RESERVED: Self = Self(0x7ff0);
    /// Owner of I/O memory (`DOMID_IO`).
    pub const IO: Self = Self(0x7ff1);
    /// The hypervisor itself (`DOMID_XEN`).
    pub const XEN: Self = Self(0x7ff2);
    /// No domain (`DOMID_INVALID`).
    pub const INVALID: Self = Self(0x7ff4);
}

impl Mfn {
    /// Returns the machine address of the frame's first byte.
    pub const fn addr(self) -> u64 {
        self.0 << PAGE_SHIFT
    }

    /// Returns the frame that holds machine address `addr`.
    pub const fn of(addr: u64) -> Self {
        Self(addr >> PAGE_SHIFT)
    }
}

impl GuestVa {
    /// Returns the address `bytes` further on, or `None` when that wraps.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(va) => Some(Self(va)),
            None => None,
        }
    }
}

macro_rules! debug_hex {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    )*};
}
debug_hex!(Mfn, Pfn, GuestVa);

macro_rules! debug_dec {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    )*};
}
debug_dec!(Port, DomId);
