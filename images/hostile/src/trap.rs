//! Hypercalls, and code that may go wrong: [`attempt`] runs it and says how it ended.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use xen_abi::callback::{MASK_EVENTS, REGISTER, Register, kind};
use xen_abi::evtchn::{BindVirq, op as evtchn, virq};
use xen_abi::sched::{self, ShutdownReason};
use xen_abi::trap::{FLAT_RING3_CS64, TrapInfo};
use xen_abi::vcpu::op as vcpu;
use xen_abi::{elfnote, hypercall as nr};

use crate::call::hypercall;
use crate::console::{self, say};
use crate::memory::{self, SCRATCH};

global_asm!(
    include_str!("entry.s"),
    XEN_VERSION = const elfnote::XEN_VERSION,
    GUEST_OS = const elfnote::GUEST_OS,
    LOADER = const elfnote::LOADER,
    ENTRY = const elfnote::ENTRY,
    VIRT_BASE = const elfnote::VIRT_BASE,
    PADDR_OFFSET = const elfnote::PADDR_OFFSET,
    options(att_syntax)
);

unsafe extern "C" {
    fn run(regs: *mut Regs, code: *const u8) -> u64;
    fn run_done();
    fn event_entry();
    fn fpu_entry();
    fn debug_entry();
    static first_fpu: [u8; 512];
    static first_gprs: [u64; 14];
    static trap_addresses: [u64; 36];
    static trap_vector: AtomicU64;
    static trap_rax: AtomicU64;
    static trap_words: [AtomicU64; 3];
    static event_count: AtomicU64;
    static event_mask: AtomicU64;
    static event_info: AtomicU64;
    static event_bits: AtomicU64;
}

/// Vector numbers of the callbacks that have none.
pub const FAILSAFE: u64 = 32;
/// See [`FAILSAFE`].
pub const SYSCALL: u64 = 33;

/// The registers that an attempt starts and ends with, in the order that `entry.s` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rsp: u64,
}

impl Regs {
    /// Registers that are recognised when they come back.
    pub fn marked() -> Self {
        let mark = |n: u64| 0x7e57_0000_0000_0000 | n << 8;
        Self {
            rax: mark(0),
            rbx: mark(1),
            rcx: mark(2),
            rdx: mark(3),
            rsi: mark(4),
            rdi: mark(5),
            rbp: mark(6),
            r8: mark(7),
            r9: mark(8),
            r10: mark(9),
            r11: mark(10),
            r12: mark(11),
            r13: mark(12),
            r14: mark(13),
            r15: mark(14),
            rsp: memory::stack_middle(),
        }
    }

    /// Registers for a hypercall.
    pub fn call(number: u64, args: [u64; 5]) -> Self {
        Self {
            rax: number,
            rdi: args[0],
            rsi: args[1],
            rdx: args[2],
            r10: args[3],
            r8: args[4],
            ..Self::marked()
        }
    }
}

impl Regs {
    /// Whether a hypercall that began with `before` left alone what it must: all but the result, what
    /// SYSCALL itself destroys, and the arguments, which one that is interrupted may advance.
    pub fn kept(&self, before: &Self) -> bool {
        let own = Self {
            rax: before.rax,
            rcx: before.rcx,
            r11: before.r11,
            rdi: before.rdi,
            rsi: before.rsi,
            rdx: before.rdx,
            r10: before.r10,
            r8: before.r8,
            ..*self
        };
        own == *before
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It ran to its end.
    Done,
    /// A trap: vector, and error code if it has one.
    Trap(u64, u64),
}

/// Bytes of a piece of attempted code, with the way back.
const SLOT: usize = 64;
/// How many of them are kept.
const SLOTS: usize = 1024;

/// Where attempted code is put.  Each piece has a place of its own for as long as no other one needs
/// it, since a store to a page of code is dear, most of all in an emulated machine.
#[repr(C, align(4096))]
struct Code(UnsafeCell<[[u8; SLOT]; SLOTS]>);
// SAFETY: there is one CPU, and handlers do not touch the pages.
unsafe impl Sync for Code {}
static CODE: Code = Code(UnsafeCell::new([[0; SLOT]; SLOTS]));

impl Code {
    /// The address of `code`, followed by the way back.
    fn place(&self, code: &[u8]) -> *const u8 {
        let mut whole = [0; SLOT];
        let (body, rest) = whole.split_at_mut(code.len());
        body.copy_from_slice(code);
        // jmp *0(%rip), followed by the address.
        rest[..6].copy_from_slice(&[0xff, 0x25, 0, 0, 0, 0]);
        rest[6..14].copy_from_slice(&done_address().to_le_bytes());
        let hash = code.iter().fold(0usize, |hash, &byte| {
            (hash ^ usize::from(byte)).wrapping_mul(0x9e37_79b1)
        });
        let slot = self.0.get().cast::<[u8; SLOT]>();
        // SAFETY: the index is below the number of slots.
        let slot = unsafe { slot.add(hash / 64 % SLOTS) };
        // SAFETY: valid, and nothing runs or writes there now.
        unsafe {
            if slot.read_volatile() != whole {
                slot.write_volatile(whole);
            }
        }
        slot.cast()
    }
}

/// Where attempted code comes back to.
pub fn done_address() -> u64 {
    run_done as *const () as u64
}

/// What this kernel began with: the FPU's registers as FXSAVE stores them, and the general ones that
/// carry nothing, all but rsi and rsp.
pub fn first_registers() -> (&'static [u8; 512], &'static [u64; 14]) {
    // SAFETY: written by the first instructions only.
    unsafe { (&first_fpu, &first_gprs) }
}

/// Runs `code` with `regs`, which then are what it left.
pub fn attempt(code: &[u8], regs: &mut Regs) -> End {
    // SAFETY: whatever the code does, it comes back through `run_done` or a handler, which restore
    // what Rust code relies on.
    let trapped = unsafe { run(regs, CODE.place(code)) } != 0;
    if !trapped {
        return End::Done;
    }
    let word = |n: usize| {
        // SAFETY: set by the handler, which has ended.
        unsafe { trap_words[n].load(Ordering::Relaxed) }
    };
    // SAFETY: as above.
    let vector = unsafe { trap_vector.load(Ordering::Relaxed) };
    let has_error = u8::try_from(vector).is_ok_and(xen_abi::trap::vector::has_error_code);
    End::Trap(vector, if has_error { word(0) } else { 0 })
}

/// What rax held when the last attempt trapped.
pub fn rax_at_trap() -> u64 {
    // SAFETY: set by the handler.
    unsafe { trap_rax.load(Ordering::Relaxed) }
}

const SYSCALL_INSN: [u8; 2] = [0x0f, 0x05];

/// Makes a hypercall with every register under observation.
pub fn observed(regs: &mut Regs) -> End {
    attempt(&SYSCALL_INSN, regs)
}

/// The address of a trap's handler.
fn handler(vector: usize) -> u64 {
    match vector {
        1 => debug_entry as *const () as u64,
        7 => fpu_entry as *const () as u64,
        // SAFETY: a constant table.
        _ => unsafe { trap_addresses[vector] },
    }
}

/// Sets everything that random attacks may have changed and that this kernel needs.
pub fn repair() {
    let mut table = [TrapInfo::default(); 33];
    for (vector, entry) in (0u8..32).zip(&mut table) {
        *entry = TrapInfo {
            vector,
            flags: if vector == 3 { 3 } else { 0 },
            cs: FLAT_RING3_CS64,
            pad: 0,
            address: handler(vector.into()),
        };
    }
    hypercall(nr::SET_TRAP_TABLE, [&raw const table as u64, 0, 0, 0, 0]);
    repair_callbacks();
}

/// Sets the callbacks, the kernel stack and the debug registers.
pub fn repair_callbacks() {
    // SAFETY: a constant table.
    let callback = |n: u64| unsafe { trap_addresses[n as usize] };
    for (kind, address) in [
        (kind::EVENT, event_entry as *const () as u64),
        (kind::FAILSAFE, callback(FAILSAFE)),
        (kind::SYSCALL, callback(SYSCALL)),
        (kind::SYSENTER, callback(34)),
        (kind::SYSCALL32, callback(35)),
    ] {
        let register = Register {
            kind,
            flags: MASK_EVENTS,
            pad: 0,
            address,
        };
        hypercall(
            nr::CALLBACK_OP,
            [REGISTER, &raw const register as u64, 0, 0, 0],
        );
    }
    hypercall(nr::STACK_SWITCH, [0xe02b, memory::stack_middle(), 0, 0, 0]);
    hypercall(nr::SET_DEBUGREG, [7, 0, 0, 0, 0]);
}

/// Makes sure that a timer event comes within 10 ms, whatever has happened to the timer.
pub fn arm() {
    let mut bind = BindVirq {
        virq: virq::TIMER,
        ..BindVirq::default()
    };
    // Bound already, mostly.
    hypercall(
        nr::EVENT_CHANNEL_OP,
        [evtchn::BIND_VIRQ, &raw mut bind as u64, 0, 0, 0],
    );
    let period = 10_000_000u64;
    hypercall(
        nr::VCPU_OP,
        [vcpu::SET_PERIODIC_TIMER, 0, &raw const period as u64, 0, 0],
    );
    memory::unmask_events();
}

/// How many times the event callback was entered.
pub fn events() -> u64 {
    // SAFETY: only incremented, by the handler.
    unsafe { event_count.load(Ordering::Relaxed) }
}

/// Takes over traps and events.
pub fn init() {
    let (mask, info, bits) = memory::event_words();
    // SAFETY: the three are only read by `entry.s`, and all point into pages that stay mapped.
    unsafe {
        event_mask.store(mask, Ordering::Relaxed);
        event_info.store(info, Ordering::Relaxed);
        event_bits.store(bits, Ordering::Relaxed);
    }
    repair();
    arm();
    SCRATCH.fill(0);
}

/// The vCPU's info page has moved.
pub fn info_moved(info: u64) {
    // SAFETY: as in `init`.
    unsafe {
        event_mask.store(info + 1, Ordering::Relaxed);
        event_info.store(info, Ordering::Relaxed);
    }
}

/// Ends the domain.
pub fn shutdown(reason: ShutdownReason) -> ! {
    loop {
        hypercall(
            nr::SCHED_OP,
            [sched::op::SHUTDOWN, &raw const reason.0 as u64, 0, 0, 0],
        );
    }
}

/// Entered from `entry.s`: a trap in this kernel's own code.
#[unsafe(no_mangle)]
extern "C" fn fatal_trap() -> ! {
    // SAFETY: set by the handler.
    let (vector, words) = unsafe {
        (
            trap_vector.load(Ordering::Relaxed),
            [0, 1, 2].map(|n: usize| trap_words[n].load(Ordering::Relaxed)),
        )
    };
    say!("hostile: BROKEN trap {vector} in itself: {words:x?}");
    console::drain();
    shutdown(ShutdownReason::CRASH)
}
