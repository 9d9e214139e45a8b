//! How a domain stands, as Xen tells it in [`DomainInfo::flags`].

use bitflags::bitflags;

use super::abi::DomainInfo;

bitflags! {
    /// [`DomainInfo::flags`] (`XEN_DOMINF_*`).  Unknown bits are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct DomainFlags: u32 {
        const DYING = 1 << 0;
        const HVM_GUEST = 1 << 1;
        const SHUTDOWN = 1 << 2;
        const PAUSED = 1 << 3;
        const BLOCKED = 1 << 4;
        /// The shutdown reason.
        const SHUTDOWN_REASON = 255 << SHUTDOWN_SHIFT;
        const _ = !0;
    }
}

/// Lowest bit of the shutdown reason (`XEN_DOMINF_shutdownshift`).
const SHUTDOWN_SHIFT: u32 = 16;
/// `SHUTDOWN_suspend` (`xen/include/public/sched.h`).
pub(crate) const SHUTDOWN_SUSPEND: u32 = 2;
/// `SHUTDOWN_crash`.
pub(crate) const SHUTDOWN_CRASH: u32 = 3;

impl DomainFlags {
    /// The shutdown reason (`SHUTDOWN_*`), if the domain has shut down.
    pub(crate) fn shutdown_reason(self) -> Option<u32> {
        let reason = (self & Self::SHUTDOWN_REASON).bits() >> SHUTDOWN_SHIFT;
        self.contains(Self::SHUTDOWN).then_some(reason)
    }
}

impl DomainInfo {
    /// The domain's state.
    pub(crate) const fn state(&self) -> DomainFlags {
        DomainFlags::from_bits_retain(self.flags)
    }
}
