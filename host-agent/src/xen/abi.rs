//! Structures and numbers of Xen's toolstack interface (`xen/include/public/domctl.h`, `hvm/hvm_op.h`,
//! `hvm/params.h`).
//!
//! `domctl` and `sysctl` are not stable: each release may change a structure, and announces it by an
//! interface version that every call carries.  [`Interface`] knows the two that these structures were
//! held against, 4.17's and 4.20's, in which everything used here is laid out alike; other releases are
//! refused by name, before anything is done.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::job::{Error, Result};

/// The releases whose interface this agent speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interface {
    /// Xen 4.17.
    V4_17,
    /// Xen 4.20.
    V4_20,
}

impl Interface {
    /// For a release that says it is `major.minor`.
    ///
    /// # Errors
    /// [`Error::Refused`] for any other.
    pub(crate) fn of(major: u32, minor: u32) -> Result<Self> {
        match (major, minor) {
            (4, 17) => Ok(Self::V4_17),
            (4, 20) => Ok(Self::V4_20),
            _ => Err(Error::Refused(format!(
                "this host runs Xen {major}.{minor}, whose toolstack interface is not supported; 4.17 and \
                 4.20 are"
            ))),
        }
    }

    /// `XEN_DOMCTL_INTERFACE_VERSION`.
    pub(crate) const fn domctl(self) -> u32 {
        match self {
            Self::V4_17 => 0x15,
            Self::V4_20 => 0x17,
        }
    }

    /// `XEN_SYSCTL_INTERFACE_VERSION`.
    pub(crate) const fn sysctl(self) -> u32 {
        match self {
            Self::V4_17 | Self::V4_20 => 0x15,
        }
    }
}

/// Bytes of `struct xen_domctl` and `struct xen_sysctl` that hold the operation's own structure.
pub(crate) const BODY: usize = 128;

/// What `struct xen_domctl` begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct DomctlHeader {
    pub(crate) cmd: u32,
    pub(crate) interface_version: u32,
    pub(crate) domain: u16,
    pub(crate) pad: [u16; 3],
}
const _: () = assert!(size_of::<DomctlHeader>() == 16);

/// What `struct xen_sysctl` begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct SysctlHeader {
    pub(crate) cmd: u32,
    pub(crate) interface_version: u32,
}
const _: () = assert!(size_of::<SysctlHeader>() == 8);

/// Operations of `domctl` (`XEN_DOMCTL_*`), the same in both releases.
pub(crate) mod domctl {
    pub(crate) const UNPAUSEDOMAIN: u32 = 4;
    pub(crate) const GETDOMAININFO: u32 = 5;
    pub(crate) const SHADOW_OP: u32 = 10;
    pub(crate) const SETVCPUCONTEXT: u32 = 12;
    pub(crate) const GETVCPUCONTEXT: u32 = 13;
    pub(crate) const SCHEDULER_OP: u32 = 16;
    pub(crate) const RESUMEDOMAIN: u32 = 27;
    pub(crate) const GETHVMCONTEXT: u32 = 33;
    pub(crate) const SETHVMCONTEXT: u32 = 34;
    pub(crate) const MAX_MEM: u32 = 11;
    pub(crate) const SETTSCINFO: u32 = 60;
    pub(crate) const GETTSCINFO: u32 = 59;
    pub(crate) const GETPAGEFRAMEINFO3: u32 = 61;
    pub(crate) const GET_CPU_POLICY: u32 = 82;
}

/// Operations of `sysctl` (`XEN_SYSCTL_*`).
pub(crate) mod sysctl {
    pub(crate) const PHYSINFO: u32 = 3;
}

/// Declares a structure with its size, and the offset of its last field, as the compiler of Xen has them.
macro_rules! layout {
    ($(#[$meta:meta])* $name:ident = $size:literal, $last:ident @ $offset:literal
     { $($field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub(crate) struct $name { $(pub(crate) $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $size && $size <= BODY);
        const _: () = assert!(core::mem::offset_of!($name, $last) == $offset);
    };
}

layout! {
    /// `struct xen_domctl_getdomaininfo`.
    DomainInfo = 112, gpaddr_bits @ 96 {
        domain: u16,
        pad1: u16,
        flags: u32,
        tot_pages: u64,
        max_pages: u64,
        outstanding_pages: u64,
        shr_pages: u64,
        paged_pages: u64,
        shared_info_frame: u64,
        cpu_time: u64,
        nr_online_vcpus: u32,
        max_vcpu_id: u32,
        ssidref: u32,
        handle: [u8; 16],
        cpupool: u32,
        gpaddr_bits: u8,
        pad2: [u8; 7],
        emulation_flags: u32,
        misc_flags: u32,
    }
}

/// `XEN_X86_EMU_LAPIC`: the only bit of [`DomainInfo::emulation_flags`] of a PVH domain
/// (`xen/include/public/arch-x86/xen.h`).
pub(crate) const EMULATED_LAPIC: u32 = 1 << 0;

layout! {
    /// `struct xen_domctl_shadow_op`.
    ShadowOp = 40, stats @ 32 {
        op: u32,
        mode: u32,
        mb: u32,
        pad: u32,
        dirty_bitmap: u64,
        pages: u64,
        stats: [u32; 2],
    }
}

/// Values of [`ShadowOp::op`] (`XEN_DOMCTL_SHADOW_OP_*`) and `mode`.
pub(crate) mod shadow {
    pub(crate) const OFF: u32 = 0;
    pub(crate) const ENABLE_LOGDIRTY: u32 = 2;
    pub(crate) const CLEAN: u32 = 11;
    /// `XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL`: the domain does not run any more.
    pub(crate) const LOGDIRTY_FINAL: u32 = 1 << 0;
}

layout! {
    /// `struct xen_domctl_scheduler_op`, for a scheduler with weights.
    SchedulerOp = 24, pad @ 12 {
        sched_id: u32,
        cmd: u32,
        weight: u16,
        cap: u16,
        pad: [u32; 3],
    }
}

/// Values of [`SchedulerOp::sched_id`] (`XEN_SCHEDULER_*`) and `cmd` (`XEN_DOMCTL_SCHEDOP_*`).
pub(crate) mod scheduler {
    pub(crate) const CREDIT: u32 = 5;
    pub(crate) const CREDIT2: u32 = 6;
    pub(crate) const PUTINFO: u32 = 0;
    pub(crate) const GETINFO: u32 = 1;
}

layout! {
    /// `struct xen_domctl_getpageframeinfo3`; at most 1024 frames.
    PageFrameInfo = 16, array @ 8 {
        num: u64,
        array: u64,
    }
}

layout! {
    /// `struct xen_domctl_hvmcontext`.
    HvmContext = 16, buffer @ 8 {
        size: u32,
        pad: u32,
        buffer: u64,
    }
}

layout! {
    /// `struct xen_domctl_cpu_policy`.
    CpuPolicy = 40, err_msr @ 32 {
        nr_leaves: u32,
        nr_msrs: u32,
        leaves: u64,
        msrs: u64,
        err_leaf: u32,
        err_subleaf: u32,
        err_msr: u32,
        pad: u32,
    }
}

/// Bytes of `xen_cpuid_leaf_t`.
pub(crate) const CPUID_LEAF: usize = 24;
/// Bytes of `xen_msr_entry_t`.
pub(crate) const MSR_ENTRY: usize = 16;

layout! {
    /// `struct xen_domctl_max_mem`.
    MaxMem = 8, max_memkb @ 0 {
        max_memkb: u64,
    }
}

layout! {
    /// `struct xen_domctl_tsc_info`.
    TscInfo = 24, elapsed_nsec @ 16 {
        tsc_mode: u32,
        gtsc_khz: u32,
        incarnation: u32,
        pad: u32,
        elapsed_nsec: u64,
    }
}

layout! {
    /// `struct xen_domctl_vcpucontext`.
    VcpuContext = 16, ctxt @ 8 {
        vcpu: u32,
        pad: u32,
        ctxt: u64,
    }
}

/// Bytes of `vcpu_guest_context_t` of a 64-bit domain.
pub(crate) const VCPU_GUEST_CONTEXT: usize = 0x1430;
/// Where in it `rax` is: after 512 bytes of FPU state, the flags and ten registers.
pub(crate) const VCPU_GUEST_CONTEXT_RAX: usize = 512 + 8 + 10 * 8;

layout! {
    /// `struct xen_sysctl_physinfo`.
    PhysInfo = 112, hw_cap @ 80 {
        threads_per_core: u32,
        cores_per_socket: u32,
        nr_cpus: u32,
        max_cpu_id: u32,
        nr_nodes: u32,
        max_node_id: u32,
        cpu_khz: u32,
        capabilities: u32,
        arch_capabilities: u32,
        pad: u32,
        total_pages: u64,
        free_pages: u64,
        scrub_pages: u64,
        outstanding_pages: u64,
        max_mfn: u64,
        hw_cap: [u32; 8],
    }
}

/// `struct xen_hvm_param`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct HvmParam {
    pub(crate) domid: u16,
    pub(crate) pad: u16,
    pub(crate) index: u32,
    pub(crate) value: u64,
}
const _: () = assert!(size_of::<HvmParam>() == 16);

/// `HVMOP_set_param`.
pub(crate) const HVMOP_SET_PARAM: u64 = 0;
/// `HVMOP_get_param`.
pub(crate) const HVMOP_GET_PARAM: u64 = 1;

/// Indices of parameters (`HVM_PARAM_*`).
pub(crate) mod param {
    pub(crate) const CALLBACK_IRQ: u32 = 0;
    pub(crate) const STORE_PFN: u32 = 1;
    pub(crate) const IOREQ_PFN: u32 = 5;
    pub(crate) const BUFIOREQ_PFN: u32 = 6;
    pub(crate) const VIRIDIAN: u32 = 9;
    pub(crate) const IDENT_PT: u32 = 12;
    pub(crate) const CONSOLE_PFN: u32 = 17;
    pub(crate) const ACPI_IOPORTS_LOCATION: u32 = 19;
    pub(crate) const PAGING_RING_PFN: u32 = 27;
    pub(crate) const MONITOR_RING_PFN: u32 = 28;
    pub(crate) const SHARING_RING_PFN: u32 = 29;
    pub(crate) const IOREQ_SERVER_PFN: u32 = 32;
    pub(crate) const NR_IOREQ_SERVER_PAGES: u32 = 33;
    pub(crate) const VM_GENERATION_ID_ADDR: u32 = 34;
    pub(crate) const X87_FIP_WIDTH: u32 = 36;
    pub(crate) const VM86_TSS_SIZED: u32 = 37;
    pub(crate) const MCA_CAP: u32 = 38;

    /// Those that name the frames of rings between a domain and its host, which each host makes anew.
    pub(crate) const RINGS: [u32; 4] = [STORE_PFN, CONSOLE_PFN, IOREQ_PFN, BUFIOREQ_PFN];

    /// Those that travel with a domain, in the order in which Xen's own writer gives them.
    pub(crate) const IN_STREAM: [u32; 16] = [
        STORE_PFN,
        IOREQ_PFN,
        BUFIOREQ_PFN,
        PAGING_RING_PFN,
        MONITOR_RING_PFN,
        SHARING_RING_PFN,
        VM86_TSS_SIZED,
        CONSOLE_PFN,
        ACPI_IOPORTS_LOCATION,
        VIRIDIAN,
        IDENT_PT,
        VM_GENERATION_ID_ADDR,
        IOREQ_SERVER_PFN,
        NR_IOREQ_SERVER_PAGES,
        X87_FIP_WIDTH,
        MCA_CAP,
    ];
}

#[cfg(test)]
mod tests {
    use super::{Interface, VCPU_GUEST_CONTEXT_RAX};

    #[test]
    fn only_releases_whose_structures_are_known_are_spoken_to() {
        assert_eq!(Interface::of(4, 17).unwrap().domctl(), 0x15);
        assert_eq!(Interface::of(4, 20).unwrap().domctl(), 0x17);
        for (major, minor) in [(4, 16), (4, 18), (4, 19), (4, 21), (5, 17)] {
            let error = Interface::of(major, minor).unwrap_err().to_string();
            assert!(error.contains(&format!("Xen {major}.{minor}")), "{error}");
        }
    }

    #[test]
    fn rax_follows_r15_to_r8() {
        assert_eq!(VCPU_GUEST_CONTEXT_RAX, 600);
    }
}
