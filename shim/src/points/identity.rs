//! What the guest is told about itself and the hypervisor, frozen at first boot.
//!
//! A guest that moves to another host, with another Xen, keeps getting these answers: they live in
//! the shim's memory and nothing asks the host again.

use xen_abi::{DomId, Errno};

/// Longest string of a `xen_version` answer that is kept, NUL included.
pub const STRING: usize = 64;

/// The frozen answers.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The guest's domain id.
    pub domid: DomId,
    /// The backends' domain id.
    pub backend: DomId,
    /// The guest's UUID, as the toolstack gave it.
    pub uuid: [u8; 16],
    /// `XENVER_version`: major version in the upper half, minor in the lower.
    pub version: u32,
    /// `XENVER_extraversion`, NUL-terminated.
    pub extraversion: [u8; 16],
}

impl Identity {
    /// The domain id that every guest believes to have.
    pub const GUEST: DomId = DomId(1);
    /// The domain id that every guest's backends seem to have.
    pub const BACKEND: DomId = DomId(0);
    /// The version of Xen whose interface the shim offers, the same on every host: what is
    /// underneath is not the guest's business, and a fleet has more than one.
    pub const VERSION: u32 = 4 << 16 | 17;
    /// Its extra version.
    pub const EXTRAVERSION: [u8; 16] = *b".0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    /// `XENVER_capabilities`.
    pub const CAPABILITIES: &str = "xen-3.0-x86_64 ";
    /// What an unprivileged guest reads where it has no business to.
    pub const DENIED: &str = "<denied>";

    /// Returns how a call is refused that names a domain other than the guest.  As far as a guest
    /// can tell there is one other domain, wherever it runs: that of its backends.
    pub fn refusal(domain: u16) -> Errno {
        if DomId(domain) == Self::BACKEND {
            Errno::EPERM
        } else {
            Errno::ESRCH
        }
    }
}
