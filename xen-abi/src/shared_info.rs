//! Where things lie in the shared info page and in `vcpu_info`
//! (`struct shared_info`, `struct vcpu_info`, `xen/include/public/xen.h`).
//!
//! Both sides change these words concurrently, so there are offsets here and no structures.

/// Bytes of one `vcpu_info`.
pub const VCPU_INFO_SIZE: usize = 64;
/// How many `vcpu_info` the page itself holds (`XEN_LEGACY_MAX_VCPUS`).
pub const LEGACY_MAX_VCPUS: usize = 32;
/// `evtchn_pending`, 64 words of 64 bits.
pub const EVTCHN_PENDING: usize = 2048;
/// `evtchn_mask`, 64 words of 64 bits.
pub const EVTCHN_MASK: usize = 2560;
/// Ports of the two-level ABI (`EVTCHN_2L_NR_CHANNELS`).
pub const EVTCHN_2L_PORTS: u32 = 4096;
/// `wc_version`, u32: odd while the wall clock is being written.
pub const WC_VERSION: usize = 3072;
/// `wc_sec`, u32: wall clock at system time 0, seconds, low half.
pub const WC_SEC: usize = 3076;
/// `wc_nsec`, u32.
pub const WC_NSEC: usize = 3080;
/// `wc_sec_hi`, u32: seconds, high half.
pub const WC_SEC_HI: usize = 3084;

/// Offsets within a `vcpu_info`.
pub mod vcpu_info {
    /// `evtchn_upcall_pending`, u8.
    pub const UPCALL_PENDING: usize = 0;
    /// `evtchn_upcall_mask`, u8.
    pub const UPCALL_MASK: usize = 1;
    /// `evtchn_pending_sel`, u64.
    pub const PENDING_SEL: usize = 8;
    /// `arch.cr2`, u64.
    pub const CR2: usize = 16;
    /// `time`, a [`vcpu_time_info`](super::time_info).
    pub const TIME: usize = 32;
}

/// Offsets within a `vcpu_time_info`, 32 bytes.
pub mod time_info {
    /// `version`, u32: odd while the rest is being written.
    pub const VERSION: usize = 0;
    /// `tsc_timestamp`, u64: the TSC at `system_time`.
    pub const TSC_TIMESTAMP: usize = 8;
    /// `system_time`, u64: nanoseconds.
    pub const SYSTEM_TIME: usize = 16;
    /// `tsc_to_system_mul`, u32: a 32-bit fraction.
    pub const TSC_TO_SYSTEM_MUL: usize = 24;
    /// `tsc_shift`, i8: applied before the multiplication.
    pub const TSC_SHIFT: usize = 28;
    /// `flags`, u8.
    pub const FLAGS: usize = 29;
    /// In `flags`: the TSC is in step on all vCPUs (`XEN_PVCLOCK_TSC_STABLE_BIT`).
    pub const FLAG_TSC_STABLE: u8 = 1;
    /// In `flags`: the guest was stopped by its host (`XEN_PVCLOCK_GUEST_STOPPED`).
    pub const FLAG_GUEST_STOPPED: u8 = 2;
}
