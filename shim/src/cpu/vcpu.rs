//! The state of one guest vCPU.

use alloc::boxed::Box;
use alloc::vec::Vec;

use bitflags::bitflags;
use xen_abi::trap::TrapInfo;
use xen_abi::vcpu::RunstateInfo;
use xen_abi::{GuestVa, Mfn};

use super::first;
use crate::mm::AddressSpaces;

bitflags! {
    /// Services that the guest asked for with `vm_assist` (`VMASST_TYPE_*`, by bit).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Assist: u64 {
        /// Segments of 4 GiB, without meaning for a 64-bit guest.
        const FOUR_GB_SEGMENTS = 1 << 0;
        /// Its notification, likewise.
        const FOUR_GB_SEGMENTS_NOTIFY = 1 << 1;
        /// Stores to page tables are emulated (always done).
        const WRITABLE_PAGETABLES = 1 << 2;
        /// PAE tables above 4 GiB, without meaning.
        const PAE_EXTENDED_CR3 = 1 << 3;
        /// The guest kernel's IOPL is counted as on bare metal.
        const ARCHITECTURAL_IOPL = 1 << 4;
        /// Runstate updates are marked in progress.
        const RUNSTATE_UPDATE_FLAG = 1 << 5;
        /// The machine-to-physical table is hidden from user mode.
        const M2P_STRICT = 1 << 32;
    }
}

/// A handler of the guest for something that is not a trap.
#[derive(Clone, Copy, Debug, Default)]
pub struct Callback {
    /// Address; 0 while none is registered.
    pub address: u64,
    /// Whether events are masked on entry.
    pub masks_events: bool,
}

/// Where the guest keeps a vCPU's `vcpu_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfoPage {
    /// Frame.
    pub frame: Mfn,
    /// Offset in it, a multiple of 8.
    pub offset: usize,
    /// Whether the guest chose the place, which it may do once.
    pub is_registered: bool,
}

/// Deadlines of a vCPU, in the *guest's* system time, nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timer {
    /// `set_timer_op` and `VCPUOP_set_singleshot_timer`.
    pub singleshot: Option<u64>,
    /// `VCPUOP_set_periodic_timer`: next deadline and period.
    pub periodic: Option<(u64, u64)>,
    /// `SCHEDOP_poll`'s timeout, while it polls.
    pub poll: Option<u64>,
}

/// Everything that belongs to one guest vCPU and is not in its registers.
pub struct Vcpu {
    /// Number, from 0.
    pub id: u32,
    /// Whether it was given a context (`VCPUOP_initialise`, or the builder).
    pub is_initialised: bool,
    /// Whether it runs at all (`VCPUOP_up`).
    pub is_up: bool,
    /// Whether it waits for an event.
    pub is_blocked: bool,
    /// The ports that it polls while blocked in `SCHEDOP_poll`.
    pub polling: Vec<u32>,
    /// Whether the guest's kernel runs, as opposed to its user programs.
    pub in_kernel: bool,
    /// Exception handlers, by vector; elsewhere, so that the rest of a vCPU shares a page.
    pub traps: Box<[TrapInfo; 256]>,
    /// Event callback.
    pub event: Callback,
    /// Failsafe callback.
    pub failsafe: Callback,
    /// System call callback for 64-bit programs.
    pub syscall: Callback,
    /// System call callback for 32-bit programs.
    pub syscall32: Callback,
    /// SYSENTER callback.
    pub sysenter: Callback,
    /// An NMI waits to be delivered.
    pub nmi_pending: bool,
    /// An NMI was delivered and the guest has not returned from it.
    pub nmi_blocked: bool,
    /// A machine check waits to be delivered.
    pub machine_check_pending: bool,
    /// A machine check was delivered and the guest has not returned from it.
    pub machine_check_blocked: bool,
    /// Kernel stack selector, as set by `stack_switch`.
    pub kernel_ss: u64,
    /// Kernel stack pointer, as set by `stack_switch`.
    pub kernel_sp: u64,
    /// Top-level page tables of the guest's kernel and user.
    pub spaces: Option<AddressSpaces>,
    /// The GS base that is *not* active: the user's while in the kernel and the other way round.
    pub other_gs_base: u64,
    /// Virtual I/O privilege level.
    pub iopl: u8,
    /// Guest's bitmap of refused ports, and how many it covers.
    pub io_bitmap: (GuestVa, u32),
    /// Virtual CR0.TS.
    pub task_switched: bool,
    /// CR4 as the guest reads it.
    pub cr4: u64,
    /// Debug registers 0–7 as the guest set them.
    pub debug: [u64; 8],
    /// Frames of the guest's GDT.
    pub gdt: Vec<Mfn>,
    /// Linear address and length of the guest's LDT.
    pub ldt: (GuestVa, u32),
    /// Frames of the LDT that are in use.
    pub ldt_frames: Vec<Mfn>,
    /// Where events and time are published.
    pub info: InfoPage,
    /// Accounting.
    pub runstate: RunstateInfo,
    /// Where the guest wants a copy of it.
    pub runstate_area: Option<GuestVa>,
    /// Where the guest wants a copy of its time info.
    pub time_area: Option<GuestVa>,
    /// Deadlines.
    pub timer: Timer,
    /// Virtual `MISC_FEATURES_ENABLES`.
    pub misc_features: u64,
    /// Virtual `SPEC_CTRL`.
    pub spec_ctrl: u64,
    /// Address masks of the breakpoints.
    pub breakpoint_masks: [u32; 4],
    /// `TSC_AUX`.
    pub tsc_aux: u32,
    /// Version of the host's time info that was last copied to the guest.
    pub time_version: u32,
}

impl Vcpu {
    /// Makes a vCPU that has not been started.
    pub fn new(id: u32, info: InfoPage) -> Self {
        Self {
            id,
            is_initialised: false,
            is_up: false,
            is_blocked: false,
            polling: Vec::new(),
            in_kernel: true,
            traps: Box::new([TrapInfo::default(); 256]),
            event: Callback::default(),
            failsafe: Callback::default(),
            syscall: Callback::default(),
            syscall32: Callback::default(),
            sysenter: Callback::default(),
            nmi_pending: false,
            nmi_blocked: false,
            machine_check_pending: false,
            machine_check_blocked: false,
            kernel_ss: 0,
            kernel_sp: 0,
            spaces: None,
            other_gs_base: 0,
            iopl: 0,
            io_bitmap: (GuestVa(0), 0),
            task_switched: false,
            cr4: first::CR4,
            debug: first::DEBUG,
            gdt: Vec::new(),
            ldt: (GuestVa(0), 0),
            ldt_frames: Vec::new(),
            info,
            runstate: RunstateInfo::default(),
            runstate_area: None,
            time_area: None,
            timer: Timer::default(),
            misc_features: 0,
            spec_ctrl: 0,
            breakpoint_masks: [0; 4],
            tsc_aux: 0,
            time_version: 0,
        }
    }

    /// Returns the earliest deadline of any kind.
    pub fn next_deadline(&self) -> Option<u64> {
        let periodic = self.timer.periodic.map(|(next, _)| next);
        [self.timer.singleshot, periodic, self.timer.poll]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns the privilege that the guest's code counts as having for I/O and `INT n`: user 3,
    /// kernel 1, or 0 with [`Assist::ARCHITECTURAL_IOPL`].
    pub fn virtual_cpl(&self, assist: Assist) -> u8 {
        match (self.in_kernel, assist.contains(Assist::ARCHITECTURAL_IOPL)) {
            (false, _) => 3,
            (true, false) => 1,
            (true, true) => 0,
        }
    }
}
