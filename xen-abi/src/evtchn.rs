//! Event channel operations (`xen/include/public/event_channel.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Sub-operations of `event_channel_op` (`EVTCHNOP_*`).
pub mod op {
    #![expect(missing_docs, reason = "each is the header's name without its prefix")]
    pub const BIND_INTERDOMAIN: u64 = 0;
    pub const BIND_VIRQ: u64 = 1;
    pub const BIND_PIRQ: u64 = 2;
    pub const CLOSE: u64 = 3;
    pub const SEND: u64 = 4;
    pub const STATUS: u64 = 5;
    pub const ALLOC_UNBOUND: u64 = 6;
    pub const BIND_IPI: u64 = 7;
    pub const BIND_VCPU: u64 = 8;
    pub const UNMASK: u64 = 9;
    pub const RESET: u64 = 10;
    pub const INIT_CONTROL: u64 = 11;
    pub const EXPAND_ARRAY: u64 = 12;
    pub const SET_PRIORITY: u64 = 13;
}

/// What `EVTCHNOP_status` reports (`EVTCHNSTAT_*`).
pub mod status {
    #![expect(missing_docs, reason = "each is the header's name without its prefix")]
    pub const CLOSED: u32 = 0;
    pub const UNBOUND: u32 = 1;
    pub const INTERDOMAIN: u32 = 2;
    pub const PIRQ: u32 = 3;
    pub const VIRQ: u32 = 4;
    pub const IPI: u32 = 5;
}

/// Virtual interrupts (`VIRQ_*`, `xen/include/public/xen.h`).
pub mod virq {
    /// The vCPU's timer; one for each vCPU.
    pub const TIMER: u32 = 0;
    /// A request to dump state; one for each vCPU.
    pub const DEBUG: u32 = 1;
    /// Hardware performance counters; one for each vCPU.
    pub const XENPMU: u32 = 13;
    /// How many numbers there are (`NR_VIRQS`).
    pub const COUNT: u32 = 24;
}

/// `struct evtchn_bind_interdomain`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BindInterdomain {
    /// The other domain.
    pub remote_dom: u16,
    /// Padding.
    pub pad: u16,
    /// Its port.
    pub remote_port: u32,
    /// Result: our port.
    pub local_port: u32,
}

/// `struct evtchn_bind_virq`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BindVirq {
    /// Which virtual interrupt.
    pub virq: u32,
    /// On which vCPU.
    pub vcpu: u32,
    /// Result: our port.
    pub port: u32,
}

/// `struct evtchn_bind_ipi`, and with the members the other way round `struct evtchn_bind_vcpu`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BindIpi {
    /// On which vCPU.
    pub vcpu: u32,
    /// Result: our port.
    pub port: u32,
}

/// `struct evtchn_bind_vcpu`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BindVcpu {
    /// Our port.
    pub port: u32,
    /// The vCPU that it is to notify.
    pub vcpu: u32,
}

/// `struct evtchn_alloc_unbound`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AllocUnbound {
    /// Domain that the port belongs to.
    pub dom: u16,
    /// Domain that may bind to it.
    pub remote_dom: u16,
    /// Result: the port.
    pub port: u32,
}

/// `struct evtchn_status`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Status {
    /// Domain that the port belongs to.
    pub dom: u16,
    /// Padding.
    pub pad: u16,
    /// The port.
    pub port: u32,
    /// Result: `EVTCHNSTAT_*`.
    pub status: u32,
    /// Result: the vCPU that it notifies.
    pub vcpu: u32,
    /// Result: `u.unbound.dom` or `u.interdomain.dom` (low 16 bits), or `u.virq`.
    pub detail: u32,
    /// Result: `u.interdomain.port`.
    pub remote_port: u32,
}
const _: () = assert!(size_of::<Status>() == 24);
const _: () = assert!(size_of::<AllocUnbound>() == 8);
const _: () = assert!(size_of::<BindInterdomain>() == 12);
