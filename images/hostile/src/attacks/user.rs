//! Attacks out of user mode: hypercalls, privileged instructions, and the kernel's and hypervisor's
//! memory.

use xen_abi::mmu::{Pte, ext};
use xen_abi::{Errno, hypercall as nr};

use super::extended;
use crate::call;
use crate::memory::{self, RO, RW, VICTIMS};
use crate::trap::{self, End, Regs, SYSCALL, observed, rax_at_trap};
use crate::verdict::{Answer, Verdicts};

/// First of the victims that are used: L4, L3, L2, L1, a page of code, a page of stack.
const FIRST: usize = 10;
/// Where the code is.
const CODE: u64 = 0x40_0000;
/// Ends every attack that goes through: `ud2`.
const END: [u8; 2] = [0x0f, 0x0b];
/// Vector of that.
const UD: u64 = 6;

pub(super) fn all(verdicts: &mut Verdicts) {
    let word = |page: usize, index: usize| (FIRST + page) * 512 + index;
    let link = |page, index, to, flags| {
        VICTIMS.set(
            word(page, index),
            Pte::new(VICTIMS.mfn(FIRST + to), flags).0,
        );
    };
    link(0, 0, 1, RW);
    link(1, 0, 2, RW);
    link(2, 2, 3, RW);
    link(3, 0, 4, RO);
    link(3, 1, 5, RW);
    for page in 0..4 {
        memory::map(VICTIMS.va(FIRST + page), VICTIMS.mfn(FIRST + page), RO);
    }
    let root = VICTIMS.mfn(FIRST).0;
    let answer = extended(ext::PIN_L4_TABLE, root, 0);
    verdicts.wanted(format_args!("user.pin"), answer, &[Answer::Value(0)]);
    let answer = extended(ext::NEW_USER_BASEPTR, root, 0);
    verdicts.wanted(format_args!("user.load"), answer, &[Answer::Value(0)]);
    if answer == Answer::Value(0) {
        attacks(verdicts);
    }
    extended(ext::NEW_USER_BASEPTR, 0, 0);
    extended(ext::UNPIN_TABLE, root, 0);
    (0..6).for_each(|page| memory::release_victim(FIRST + page));
    for index in 0..512 {
        (0..6).for_each(|page| VICTIMS.set(word(page, index), 0));
    }
}

/// Runs code in user mode, with rsi as given; how it ended, and rax.
fn enter(code: &[u8], rsi: u64) -> (End, u64) {
    let bytes = code.iter().chain(&END).copied();
    let page = VICTIMS.va(FIRST + 4);
    for (offset, byte) in (0u64..).zip(bytes) {
        // SAFETY: inside a page of this kernel's image, which is writable here.
        unsafe { ((page + offset) as *mut u8).write_volatile(byte) };
    }
    let frame = [
        0x1234_5678,
        0,
        0,
        0,
        CODE,
        0xe033,
        0x200,
        CODE + 0x1800,
        0xe02b,
    ];
    for (n, value) in frame.into_iter().enumerate() {
        memory::set_stack(n, value);
    }
    // The kernel's own stack must not be where the frame is.
    xen_stack();
    let mut regs = Regs::marked();
    regs.rax = nr::IRET;
    regs.rsi = rsi;
    (observed(&mut regs), rax_at_trap())
}

fn xen_stack() {
    call::hypercall(
        nr::STACK_SWITCH,
        [0xe02b, memory::stack_middle() + 0x800, 0, 0, 0],
    );
}

fn attacks(verdicts: &mut Verdicts) {
    let (end, rax) = enter(&[0x90], 0);
    verdicts.note(
        format_args!("user.runs"),
        Answer::of_code(end),
        end == End::Trap(UD, 0) && rax == 0x1234_5678,
    );
    // mov $17, %eax; xor %edi, %edi; syscall
    let (end, rax) = enter(&[0xb8, 17, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05], 0);
    verdicts.note(
        format_args!("user.hypercall"),
        Answer::of_code(end),
        end == End::Trap(SYSCALL, 0) && rax == 17,
    );
    for (name, address) in [
        ("kernel-text", memory::text()),
        ("kernel-table", memory::va_of(memory::root())),
        ("hole", 0xffff_8300_0000_0000),
        ("image", 0xffff_82d0_4000_0000),
        ("descriptor-window", 0xffff_8200_0000_0000),
    ] {
        // mov (%rsi), %rax
        let (end, _) = enter(&[0x48, 0x8b, 0x06], address);
        let blamed = matches!(end, End::Trap(14, error) if error & 4 != 0);
        verdicts.note(
            format_args!("user.read.{name}"),
            Answer::of_code(end),
            blamed,
        );
    }
    // Reading the machine-to-physical table is allowed.
    let (end, _) = enter(&[0x48, 0x8b, 0x06], 0xffff_8000_0000_0000);
    let fine = matches!(end, End::Trap(14 | UD, _));
    verdicts.note(format_args!("user.read.m2p"), Answer::of_code(end), fine);
    for (name, code) in [
        ("write-m2p", &[0x48, 0x89, 0x06][..]),
        ("hlt", &[0xf4]),
        ("cli", &[0xfa]),
        ("sti", &[0xfb]),
        ("in", &[0xec]),
        ("out", &[0xee]),
        ("rdmsr", &[0x0f, 0x32]),
        ("wrmsr", &[0x0f, 0x30]),
        ("mov-cr3", &[0x0f, 0x20, 0xd8]),
        ("mov-dr7", &[0x0f, 0x21, 0xf8]),
        ("clts", &[0x0f, 0x06]),
        ("invlpg", &[0x0f, 0x01, 0x3e]),
        ("wbinvd", &[0x0f, 0x09]),
        ("lgdt", &[0x0f, 0x01, 0x16]),
        ("swapgs", &[0x0f, 0x01, 0xf8]),
        ("xsetbv", &[0x0f, 0x01, 0xd1]),
        ("int-80", &[0xcd, 0x80]),
        ("int-13", &[0xcd, 0x0d]),
        ("int-14", &[0xcd, 0x0e]),
    ] {
        let (end, _) = enter(code, 0xffff_8000_0000_0000);
        // XSETBV does not exist while OSXSAVE is clear.
        let refused = matches!(end, End::Trap(13 | 14, _))
            || name == "xsetbv" && matches!(end, End::Trap(UD, _));
        verdicts.note(format_args!("user.{name}"), Answer::of_code(end), refused);
    }
    let (end, rax) = enter(&[0x0f, 0x01, 0xd9], 0);
    let fine = end == End::Trap(UD, 0) && (rax == 0x1234_5678 || rax == Errno::EPERM.to_rax());
    verdicts.note(format_args!("user.vmmcall"), Answer::of_code(end), fine);
    let (end, _) = enter(&[0xcc], 0);
    verdicts.note(
        format_args!("user.int3"),
        Answer::of_code(end),
        end == End::Trap(3, 0),
    );
    trap::repair();
}
