//! Traps, selectors and the `iret` frame of a 64-bit PV guest
//! (`xen/include/public/arch-x86/xen.h` and `xen-x86_64.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Ring-3 32-bit code selector that every PV guest may use (`FLAT_RING3_CS32`).
pub const FLAT_RING3_CS32: u16 = 0xe023;
/// Ring-3 data selector (`FLAT_RING3_DS32`, `FLAT_RING3_SS64`).
pub const FLAT_RING3_DS: u16 = 0xe02b;
/// Ring-3 64-bit code selector (`FLAT_RING3_CS64`).
pub const FLAT_RING3_CS64: u16 = 0xe033;
/// Descriptor index of the first descriptor that belongs to the hypervisor
/// (`FIRST_RESERVED_GDT_ENTRY`).
pub const FIRST_RESERVED_GDT_ENTRY: u64 = 14 * 512;

/// One entry of the table that `set_trap_table` takes (`struct trap_info`).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TrapInfo {
    /// Exception or interrupt number.
    pub vector: u8,
    /// Bits 1:0 lowest privilege that may raise it by `INT n`; bit 2 masks events on entry.
    pub flags: u8,
    /// Code selector; ignored by a 64-bit guest.
    pub cs: u16,
    /// Padding.
    pub pad: u32,
    /// Handler address; zero ends the table.
    pub address: u64,
}
const _: () = assert!(size_of::<TrapInfo>() == 16);

impl TrapInfo {
    /// In `flags`: events are masked on entry.
    pub const MASKS_EVENTS: u8 = 1 << 2;

    /// Returns the lowest privilege that may raise this trap by `INT n` (`TI_GET_DPL`).
    pub const fn dpl(&self) -> u8 {
        self.flags & 3
    }

    /// Whether entering the handler masks events (`TI_GET_IF`).
    pub const fn masks_events(&self) -> bool {
        self.flags & Self::MASKS_EVENTS != 0
    }
}

/// What the guest leaves on its stack for the `iret` hypercall (`struct iret_context`).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IretContext {
    /// To be restored.
    pub rax: u64,
    /// To be restored unless [`Self::FLAG_IN_SYSCALL`] is set.
    pub r11: u64,
    /// To be restored unless [`Self::FLAG_IN_SYSCALL`] is set.
    pub rcx: u64,
    /// `VGCF_*`.
    pub flags: u64,
    /// Where to go on.
    pub rip: u64,
    /// Code selector; its two low bits say whether to go to user mode (3) or kernel mode.
    pub cs: u64,
    /// Flags; IF is the event mask, inverted.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack selector.
    pub ss: u64,
}
const _: () = assert!(size_of::<IretContext>() == 72);

impl IretContext {
    /// Return as `SYSRET` does (`VGCF_in_syscall`).
    pub const FLAG_IN_SYSCALL: u64 = 1 << 8;
}

/// Exception vectors (SDM Vol. 3A §6.15).
pub mod vector {
    /// `#DE`.
    pub const DIVIDE: u8 = 0;
    /// `#DB`.
    pub const DEBUG: u8 = 1;
    /// NMI.
    pub const NMI: u8 = 2;
    /// `#BP`.
    pub const BREAKPOINT: u8 = 3;
    /// `#UD`.
    pub const INVALID_OPCODE: u8 = 6;
    /// `#NM`.
    pub const DEVICE_NOT_AVAILABLE: u8 = 7;
    /// `#DF`.
    pub const DOUBLE_FAULT: u8 = 8;
    /// `#TS`.
    pub const INVALID_TSS: u8 = 10;
    /// `#NP`.
    pub const NOT_PRESENT: u8 = 11;
    /// `#SS`.
    pub const STACK: u8 = 12;
    /// `#GP`.
    pub const GENERAL_PROTECTION: u8 = 13;
    /// `#PF`.
    pub const PAGE_FAULT: u8 = 14;
    /// `#AC`.
    pub const ALIGNMENT_CHECK: u8 = 17;
    /// `#MC`.
    pub const MACHINE_CHECK: u8 = 18;
    /// `INT 0x80`, which Linux gives to 32-bit programs.
    pub const INT80: u8 = 0x80;

    /// Whether the CPU pushes an error code with this exception.
    pub const fn has_error_code(vector: u8) -> bool {
        matches!(vector, 8 | 10..=14 | 17 | 21)
    }
}

/// RFLAGS bits (SDM Vol. 1 §3.4.3).
pub mod rflags {
    /// Bit 1, always set.
    pub const RESERVED: u64 = 1 << 1;
    /// Trap after each instruction.
    pub const TF: u64 = 1 << 8;
    /// Interrupts enabled.
    pub const IF: u64 = 1 << 9;
    /// String instructions count down.
    pub const DF: u64 = 1 << 10;
    /// Privilege needed for I/O.
    pub const IOPL: u64 = 3 << 12;
    /// Nested task.
    pub const NT: u64 = 1 << 14;
    /// Resume past an instruction breakpoint.
    pub const RF: u64 = 1 << 16;
    /// Virtual-8086 mode.
    pub const VM: u64 = 1 << 17;
    /// Alignment check, or user access by the supervisor.
    pub const AC: u64 = 1 << 18;
    /// Everything that a guest may set for itself: arithmetic flags, TF, DF, NT, RF, AC, ID.
    pub const GUEST: u64 = 0x0025_4dd5;
}
