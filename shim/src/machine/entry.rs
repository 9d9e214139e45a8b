//! The assembly, and what it calls.

use core::arch::global_asm;
use core::ptr;

use log::error;
use unmoved_shim::cpu::{HostTraps, Regs};
use unmoved_shim::guest::Guest;
use unmoved_shim::registers::msr;
use xen_abi::elfnote;
use xen_abi::trap::{FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_DS};

use super::layout::{self, index};
use super::{Bare, instructions, tables, xen};

global_asm!(
    include_str!("boot.s"),
    PHYS32_ENTRY = const elfnote::PHYS32_ENTRY,
    DIRECT_SLOT = const index(layout::DIRECT, 4),
    IMAGE_SLOT = const index(layout::IMAGE, 4),
    IMAGE_L3_INDEX = const index(layout::IMAGE, 3),
    STACK_SIZE = const layout::STACK_SIZE,
    CR0 = const unmoved_shim::cpu::first::CR0,
    options(att_syntax)
);
global_asm!(include_str!("rt.s"), options(att_syntax));
global_asm!(
    include_str!("entry.s"),
    PERCPU_ENTRY_TOP = const tables::PERCPU_ENTRY_TOP,
    PERCPU_STACK_TOP = const tables::PERCPU_STACK_TOP,
    PERCPU_SHIM_TABLE = const tables::PERCPU_SHIM_TABLE,
    PERCPU_GUEST_TABLE = const tables::PERCPU_GUEST_TABLE,
    PERCPU_FATAL_TABLE = const tables::PERCPU_FATAL_TABLE,
    PERCPU_SELECTOR = const tables::PERCPU_SELECTOR,
    PERCPU_HOST_TRAPS = const tables::PERCPU_HOST_TRAPS,
    PERCPU_SCRATCH = const tables::PERCPU_SCRATCH,
    PERCPU_ENTRY_FLAGS = const tables::PERCPU_ENTRY_FLAGS,
    PERCPU_NEXT_TABLE = const tables::PERCPU_NEXT_TABLE,
    ENTRY_TS = const tables::ENTRY_TS,
    ENTRY_SMAP = const tables::ENTRY_SMAP,
    ENTRY_SPLIT = const tables::ENTRY_SPLIT,
    EXIT_SWITCH = const tables::EXIT_SWITCH,
    EXIT_CLEAR = const tables::EXIT_CLEAR,
    HOST_NMI = const HostTraps::NMI.bits(),
    HOST_MACHINE_CHECK = const HostTraps::MACHINE_CHECK.bits(),
    MCG_STATUS = const msr::MCG_STATUS,
    SHIM_CS = const tables::SHIM_CS,
    GUEST_SS = const FLAT_RING3_DS,
    GUEST_CS64 = const FLAT_RING3_CS64,
    GUEST_CS32 = const FLAT_RING3_CS32,
    VECTOR_UPCALL = const unmoved_shim::cpu::UPCALL_VECTOR,
    VECTOR_SYSCALL = const Regs::SYSCALL,
    VECTOR_SYSCALL32 = const Regs::SYSCALL32,
    VECTOR_SYSENTER = const Regs::SYSENTER,
    VECTOR_FAILED_IRET = const Regs::FAILED_IRET,
    VECTOR_LOST_FRAME = const Regs::LOST_FRAME,
    options(att_syntax)
);

/// The guest as this image runs it.
pub type Hosted = Guest<Bare, xen::HostXen>;

/// Set once, before the guest runs, and never changed.
static mut GUEST: *mut Hosted = ptr::null_mut();

unsafe extern "C" {
    fn enter_guest(regs: *const Regs) -> !;
    static fault_copy_start: u8;
    static fault_copy_end: u8;
    static fault_rdmsr: u8;
    static fault_wrmsr: u8;
    static fault_ds: u8;
    static fault_es: u8;
    static fault_fs: u8;
    static fault_gs: u8;
    static fault_return: u8;
}

/// Starts the guest on this vCPU.
pub fn run(guest: &'static mut Hosted, regs: &Regs) -> ! {
    guest.m.before_guest();
    // SAFETY: no other vCPU runs, and the entry code is not used before `enter_guest`.
    unsafe { GUEST = guest };
    // SAFETY: the registers describe ring 3, and everything that the way back needs is loaded.
    unsafe { enter_guest(regs) }
}

/// Called by the entry stubs for every entry from ring 3.
#[unsafe(no_mangle)]
extern "C" fn shim_entry(regs: *mut Regs) -> u32 {
    // SAFETY: the stubs pass the frame at the top of this vCPU's entry stack, which nothing else refers
    // to, and the guest was set before ring 3 was first entered.  One vCPU runs, and it does not
    // come here again before this returns, so there is one reference at a time.
    let (guest, regs) = unsafe { (&mut *GUEST, &mut *regs) };
    let may_sysret = guest.enter(0, regs);
    // Last of all: the copy for ring 3 must have every entry that was changed until now.
    guest.m.before_guest();
    may_sysret.into()
}

/// Called by the entry stubs for a fault in ring 0: moves `rip` to the fixup of an instruction
/// that may fault; any other fault is a bug, and the end of the domain.
#[unsafe(no_mangle)]
extern "C" fn kernel_fault(frame: *mut Regs) {
    // SAFETY: the stubs pass the frame that they have just pushed.
    let frame = unsafe { &mut *frame };
    let at = |symbol: *const u8| symbol as u64;
    let copy = at(&raw const fault_copy_start)..at(&raw const fault_copy_end);
    let single = [
        &raw const fault_rdmsr,
        &raw const fault_wrmsr,
        &raw const fault_ds,
        &raw const fault_es,
        &raw const fault_fs,
        &raw const fault_gs,
    ];
    // By address and not by vector: whatever such an instruction faults with, the guest has chosen
    // its operand. A range for the copy, in which a fault may come at two instructions.
    if copy.contains(&frame.rip) || single.into_iter().any(|symbol| at(symbol) == frame.rip) {
        frame.rip = at(&raw const fault_return);
        return;
    }
    error!(
        "fault in the shim: vector {:#x} error {:#x} rip {:#x} rsp {:#x} cr2 {:#x}",
        frame.vector,
        frame.error,
        frame.rip,
        frame.rsp,
        instructions::cr2()
    );
    error!(
        "rax {:x} rbx {:x} rcx {:x} rdx {:x} rsi {:x} rdi {:x} rbp {:x}",
        frame.rax, frame.rbx, frame.rcx, frame.rdx, frame.rsi, frame.rdi, frame.rbp
    );
    // After the registers: a broken frame chain may fault again, and they are out by then.
    backtrace(frame.rbp);
    xen::crash()
}

/// Logs return addresses, which `addr2line -e unmoved-shim` turns into lines.
pub fn backtrace(mut frame: u64) {
    let stack = (layout::IMAGE, layout::IMAGE + 0x20_0000);
    for _ in 0..24 {
        if !frame.is_multiple_of(8) || !(stack.0..stack.1 - 16).contains(&frame) {
            return;
        }
        // SAFETY: the address lies in the image, which is mapped and holds the stack.
        let [next, address] = unsafe { *(frame as *const [u64; 2]) };
        error!("  from {address:#x}");
        // Frames lie ever higher, so a broken chain cannot go round.
        if next <= frame {
            return;
        }
        frame = next;
    }
}
