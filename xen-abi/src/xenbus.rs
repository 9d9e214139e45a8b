//! States of a split device (`xen/include/public/io/xenbus.h`).

use core::fmt;

/// What one half of a device tells the other in its `state` node (`enum xenbus_state`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct XenbusState(pub u32);

impl XenbusState {
    /// No node, or nothing sensible in it.
    pub const UNKNOWN: Self = Self(0);
    /// Just made by the toolstack, or starting again.
    pub const INITIALISING: Self = Self(1);
    /// The half has published what it offers and waits for the other.
    pub const INIT_WAIT: Self = Self(2);
    /// The half has published its rings and ports.
    pub const INITIALISED: Self = Self(3);
    /// In use.
    pub const CONNECTED: Self = Self(4);
    /// About to go away, wanting the other to do so first.
    pub const CLOSING: Self = Self(5);
    /// Gone.
    pub const CLOSED: Self = Self(6);
    /// Being changed while connected (PCI only).
    pub const RECONFIGURING: Self = Self(7);
    /// Changed while connected (PCI only).
    pub const RECONFIGURED: Self = Self(8);
}

impl fmt::Debug for XenbusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::UNKNOWN => "Unknown",
            Self::INITIALISING => "Initialising",
            Self::INIT_WAIT => "InitWait",
            Self::INITIALISED => "Initialised",
            Self::CONNECTED => "Connected",
            Self::CLOSING => "Closing",
            Self::CLOSED => "Closed",
            Self::RECONFIGURING => "Reconfiguring",
            Self::RECONFIGURED => "Reconfigured",
            Self(other) => return write!(f, "XenbusState({other})"),
        };
        f.write_str(name)
    }
}
