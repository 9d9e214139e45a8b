//! vCPU operations (`xen/include/public/vcpu.h`) and the context a vCPU is started with
//! (`struct vcpu_guest_context`, `xen/include/public/arch-x86/xen.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::trap::TrapInfo;

/// Sub-operations of `vcpu_op` (`VCPUOP_*`).
pub mod op {
    #![expect(missing_docs, reason = "each is the header's name without its prefix")]
    pub const INITIALISE: u64 = 0;
    pub const UP: u64 = 1;
    pub const DOWN: u64 = 2;
    pub const IS_UP: u64 = 3;
    pub const GET_RUNSTATE_INFO: u64 = 4;
    pub const REGISTER_RUNSTATE_MEMORY_AREA: u64 = 5;
    pub const SET_PERIODIC_TIMER: u64 = 6;
    pub const STOP_PERIODIC_TIMER: u64 = 7;
    pub const SET_SINGLESHOT_TIMER: u64 = 8;
    pub const STOP_SINGLESHOT_TIMER: u64 = 9;
    pub const REGISTER_VCPU_INFO: u64 = 10;
    pub const SEND_NMI: u64 = 11;
    pub const GET_PHYSID: u64 = 12;
    pub const REGISTER_VCPU_TIME_MEMORY_AREA: u64 = 13;
}

/// States of a vCPU as accounted in [`RunstateInfo`] (`RUNSTATE_*`).
pub mod runstate {
    #![expect(missing_docs, reason = "each is the header's name without its prefix")]
    pub const RUNNING: u32 = 0;
    pub const RUNNABLE: u32 = 1;
    pub const BLOCKED: u32 = 2;
    pub const OFFLINE: u32 = 3;
    /// In `state_entry_time`: an update is in progress (`XEN_RUNSTATE_UPDATE`).
    pub const UPDATE: u64 = 1 << 63;
}

/// `struct vcpu_runstate_info`; times in nanoseconds of system time.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RunstateInfo {
    /// One of [`runstate`].
    pub state: u32,
    /// Padding.
    pub pad: u32,
    /// When the state was entered.
    pub state_entry_time: u64,
    /// Time spent in each state.
    pub time: [u64; 4],
}
const _: () = assert!(size_of::<RunstateInfo>() == 48);

/// `struct vcpu_set_singleshot_timer`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetSingleshotTimer {
    /// Absolute system time, nanoseconds.
    pub timeout_abs_ns: u64,
    /// Bit 0: refuse a deadline that has passed with `ETIME`.
    pub flags: u32,
    /// Padding.
    pub pad: u32,
}

/// `struct vcpu_register_vcpu_info`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegisterVcpuInfo {
    /// Frame of the new place.
    pub mfn: u64,
    /// Offset in it.
    pub offset: u32,
    /// Unused.
    pub rsvd: u32,
}

/// `struct cpu_user_regs` of a 64-bit guest.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UserRegs {
    /// r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi.
    pub gprs: [u64; 15],
    /// `error_code`.
    pub error_code: u32,
    /// `entry_vector`.
    pub entry_vector: u32,
    /// Instruction pointer.
    pub rip: u64,
    /// Code selector.
    pub cs: u16,
    /// Padding.
    pub pad0: u16,
    /// `saved_upcall_mask`.
    pub saved_upcall_mask: u8,
    /// Padding.
    pub pad1: [u8; 3],
    /// Flags.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack selector, then es, ds, fs, gs, each in the low half of a quadword.
    pub ss_es_ds_fs_gs: [u64; 5],
}
const _: () = assert!(size_of::<UserRegs>() == 200);

/// `struct vcpu_guest_context` of a 64-bit guest.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "each is the header's name")]
pub struct GuestContext {
    pub fpu: [u8; 512],
    pub flags: u64,
    pub user_regs: UserRegs,
    pub trap_ctxt: [TrapInfo; 256],
    pub ldt_base: u64,
    pub ldt_ents: u64,
    pub gdt_frames: [u64; 16],
    pub gdt_ents: u64,
    pub kernel_ss: u64,
    pub kernel_sp: u64,
    pub ctrlreg: [u64; 8],
    pub debugreg: [u64; 8],
    pub event_callback_eip: u64,
    pub failsafe_callback_eip: u64,
    pub syscall_callback_eip: u64,
    pub vm_assist: u64,
    pub fs_base: u64,
    pub gs_base_kernel: u64,
    pub gs_base_user: u64,
}
const _: () = assert!(size_of::<GuestContext>() == 5168);
