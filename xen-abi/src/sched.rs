//! Scheduler operations (`xen/include/public/sched.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Sub-operations of `sched_op` (`SCHEDOP_*`).
pub mod op {
    #![expect(missing_docs, reason = "each is the header's name without its prefix")]
    pub const YIELD: u64 = 0;
    pub const BLOCK: u64 = 1;
    pub const SHUTDOWN: u64 = 2;
    pub const POLL: u64 = 3;
    pub const REMOTE_SHUTDOWN: u64 = 4;
    pub const SHUTDOWN_CODE: u64 = 5;
    pub const WATCHDOG: u64 = 6;
    pub const PIN_OVERRIDE: u64 = 7;
}

/// Why a domain stops (`SHUTDOWN_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct ShutdownReason(pub u32);

impl ShutdownReason {
    /// Clean power-off.
    pub const POWEROFF: Self = Self(0);
    /// Clean reboot.
    pub const REBOOT: Self = Self(1);
    /// State is to be saved.
    pub const SUSPEND: Self = Self(2);
    /// The guest crashed.
    pub const CRASH: Self = Self(3);
    /// The guest's watchdog expired.
    pub const WATCHDOG: Self = Self(4);
    /// The highest reason that the interface defines (`SHUTDOWN_MAX`).
    pub const MAX: u32 = 5;
}

/// `struct sched_poll`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Poll {
    /// Address of an array of ports.
    pub ports: u64,
    /// Its length.
    pub nr_ports: u32,
    /// Padding.
    pub pad: u32,
    /// Absolute system time in nanoseconds, 0 for none.
    pub timeout: u64,
}
