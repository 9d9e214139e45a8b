//! Privileged instructions, each, and the traps that famously hit a hypervisor on its own stack.

use xen_abi::physdev::op as physdev;
use xen_abi::{Errno, hypercall as nr};

use super::call;
use crate::console::say;
use crate::memory::{self, SCRATCH};
use crate::trap::{self, End, Regs, attempt};
use crate::verdict::{Answer, Verdicts};

/// Instructions that must trap in a kernel that is not privileged, with `rsi` a readable address,
/// and all other registers marked.
pub const PRIVILEGED: [(&str, &[u8]); 27] = [
    ("hlt", &[0xf4]),
    ("lgdt", &[0x0f, 0x01, 0x16]),
    ("lidt", &[0x0f, 0x01, 0x1e]),
    ("lldt", &[0x0f, 0x00, 0xd0]),
    ("ltr", &[0x0f, 0x00, 0xd8]),
    ("lmsw", &[0x0f, 0x01, 0xf0]),
    ("invd", &[0x0f, 0x08]),
    ("invlpg", &[0x0f, 0x01, 0x3e]),
    ("invpcid", &[0x66, 0x0f, 0x38, 0x82, 0x06]),
    ("swapgs", &[0x0f, 0x01, 0xf8]),
    ("sysretq", &[0x48, 0x0f, 0x07]),
    ("sysexit", &[0x48, 0x0f, 0x35]),
    ("vmmcall", &[0x0f, 0x01, 0xd9]),
    ("vmcall", &[0x0f, 0x01, 0xc1]),
    ("vmrun", &[0x0f, 0x01, 0xd8]),
    ("vmload", &[0x0f, 0x01, 0xda]),
    ("stgi", &[0x0f, 0x01, 0xdc]),
    ("clgi", &[0x0f, 0x01, 0xdd]),
    ("skinit", &[0x0f, 0x01, 0xde]),
    ("monitor", &[0x0f, 0x01, 0xc8]),
    ("mwait", &[0x0f, 0x01, 0xc9]),
    ("rdpmc", &[0x0f, 0x33]),
    ("clac", &[0x0f, 0x01, 0xca]),
    ("stac", &[0x0f, 0x01, 0xcb]),
    ("mov-to-cr8", &[0x44, 0x0f, 0x22, 0xc0]),
    ("rsm", &[0x0f, 0xaa]),
    ("ud2", &[0x0f, 0x0b]),
];

pub(super) fn all(verdicts: &mut Verdicts) {
    tables(verdicts);
    for (name, code) in PRIVILEGED {
        let mut regs = Regs::marked();
        regs.rsi = SCRATCH.va(0);
        regs.rax = 0;
        let end = attempt(code, &mut regs);
        let answer = Answer::of_code(end);
        // In ring 3 a VMMCALL reaches the host, which answers EPERM to it.
        let denied = Answer::of(regs.rax) == Answer::Errno(Errno::EPERM);
        let fine = answer.is_refusal() || name.ends_with("mcall") && denied;
        verdicts.note(format_args!("instruction.{name}"), answer, fine);
    }
    control(verdicts);
    ports(verdicts);
    registers(verdicts);
    debug(verdicts);
}

/// Runs code that leaves something in rax.
fn rax_after(code: &[u8]) -> Option<u64> {
    let mut regs = Regs::marked();
    regs.rax = 0;
    regs.rcx = 0;
    (attempt(code, &mut regs) == End::Done).then_some(regs.rax)
}

/// What can be read before anything was written.
pub(super) fn first_values(verdicts: &mut Verdicts) {
    for (name, code, wanted) in [
        ("cr0", &[0x0f, 0x20, 0xc0][..], 0x8005_0033),
        ("cr4", &[0x0f, 0x20, 0xe0], 0x660),
        ("dr6", &[0x0f, 0x21, 0xf0], 0xffff_0ff0),
        ("dr7", &[0x0f, 0x21, 0xf8], 0x400),
    ] {
        let answer = rax_after(code).map_or(Answer::Is("trap"), Answer::Value);
        verdicts.wanted(
            format_args!("first.{name}"),
            answer,
            &[Answer::Value(wanted)],
        );
    }
    // CR4 reads as it is written back.
    let before = rax_after(&[0x0f, 0x20, 0xe0]);
    rax_after(&[0x0f, 0x20, 0xe0, 0x0f, 0x22, 0xe0]);
    let same = before == rax_after(&[0x0f, 0x20, 0xe0]);
    verdicts.quietly(format_args!("first.cr4-again"), same);
}

/// SGDT, SIDT, SLDT, STR and SMSW work in ring 3, as under Xen; what they tell is the same
/// everywhere, and nothing of where the shim has its memory.
fn tables(verdicts: &mut Verdicts) {
    /// The window of vCPU 0 (`shim/src/machine/layout.rs`).
    const WINDOW: core::ops::Range<u64> = 0xffff_8200_0000_0000..0xffff_8200_0020_0000;
    for (name, code) in [("sgdt", [0x0f, 0x01, 0x06]), ("sidt", [0x0f, 0x01, 0x0e])] {
        SCRATCH.fill(0);
        let mut regs = Regs::marked();
        regs.rsi = SCRATCH.va(0);
        let end = attempt(&code, &mut regs);
        let base = SCRATCH.get(0) >> 16 | SCRATCH.get(1) << 48;
        verdicts.note(
            format_args!("tables.{name} ({base:#x})"),
            Answer::of_code(end),
            end == End::Done && WINDOW.contains(&base),
        );
    }
    for (name, code) in [("sldt", [0x0f, 0x00, 0xc0]), ("str", [0x0f, 0x00, 0xc8])] {
        let selector = rax_after(&code).map(|rax| rax & 0xffff);
        let answer = selector.map_or(Answer::Is("trap"), Answer::Value);
        // No selector, or one of the hypervisor's part of the descriptor table.
        let fine = selector.is_some_and(|selector| selector == 0 || selector >= 0xe000);
        verdicts.note(format_args!("tables.{name}"), answer, fine);
    }
    let (word, cr0) = (
        rax_after(&[0x0f, 0x01, 0xe0]),
        rax_after(&[0x0f, 0x20, 0xc0]),
    );
    let low = |value: Option<u64>| value.map(|value| value & 0xffff);
    let answer = low(word).map_or(Answer::Is("trap"), Answer::Value);
    verdicts.note(format_args!("tables.smsw"), answer, low(word) == low(cr0));
}

/// CR0, CR3, CR4, XCR0: only harmless values, and those read back.
fn control(verdicts: &mut Verdicts) {
    let set = |code: &[u8], value| {
        let mut regs = Regs::marked();
        regs.rax = value;
        attempt(code, &mut regs)
    };
    for (name, code, value) in [
        ("cr0-paging-off", &[0x0f, 0x22, 0xc0], 1u64),
        ("cr0-protection-off", &[0x0f, 0x22, 0xc0], 0),
        ("cr0-wp-off", &[0x0f, 0x22, 0xc0], 0x8004_0033),
        ("cr0-high", &[0x0f, 0x22, 0xc0], !0),
        ("cr3-zero", &[0x0f, 0x22, 0xd8], 0),
        ("cr3-foreign", &[0x0f, 0x22, 0xd8], 0x20_0000),
        ("cr4-zero", &[0x0f, 0x22, 0xe0], 0),
        ("cr4-ones", &[0x0f, 0x22, 0xe0], !0),
        ("cr4-vmxe", &[0x0f, 0x22, 0xe0], 1 << 13 | 0x620),
    ] {
        // What matters is that the CPU still runs in the same way afterwards, as the rest shows.
        let answer = Answer::of_code(set(code, value));
        let refused = answer.is_refusal() || name.starts_with("cr4");
        verdicts.note(format_args!("control.{name}"), answer, refused);
    }
    let mut regs = Regs::marked();
    regs.rcx = 0;
    for (name, low, high) in [
        ("none", 0u64, 0u64),
        ("no-x87", 2, 0),
        ("all", 0xffff_ffff, 0xffff_ffff),
    ] {
        (regs.rax, regs.rdx) = (low, high);
        let answer = Answer::of_code(attempt(&[0x0f, 0x01, 0xd1], &mut regs));
        verdicts.refused(format_args!("control.xcr0-{name}"), answer);
    }
    let mut regs = Regs::marked();
    regs.rax = memory::root().addr();
    let answer = Answer::of_code(attempt(&[0x0f, 0x22, 0xd8], &mut regs));
    verdicts.wanted(format_args!("control.cr3-own"), answer, &[Answer::Ran]);
}

/// Ports: nothing without the privilege, all ones with it.
fn ports(verdicts: &mut Verdicts) {
    let input = |port: u64| {
        let mut regs = Regs::marked();
        regs.rdx = port;
        let end = attempt(&[0xec], &mut regs);
        (Answer::of_code(end), regs.rax & 0xff)
    };
    let mut open = 0;
    for port in 0..=0xffffu64 {
        if input(port).0 == Answer::Ran {
            open += 1;
        }
        if port == 0x100 {
            // The rest of the space, more coarsely.
            break;
        }
    }
    verdicts.note(
        format_args!("port.unprivileged ({open} open)"),
        Answer::Is(if open == 0 { "closed" } else { "open" }),
        open == 0,
    );
    SCRATCH.set(0, 1);
    call(nr::PHYSDEV_OP, [physdev::SET_IOPL, SCRATCH.va(0), 0, 0, 0]);
    let mut strange = 0;
    for port in [
        0x20u64, 0x60, 0x70, 0x80, 0xe9, 0x3f8, 0xb2, 0xcf8, 0xcfc, 0x511, 0xffff,
    ] {
        let mut regs = Regs::marked();
        regs.rdx = port;
        regs.rax = u64::from(b'!');
        attempt(&[0xee], &mut regs);
        let (answer, value) = input(port);
        strange += u64::from(answer == Answer::Ran && value != 0xff);
    }
    verdicts.note(
        format_args!("port.privileged ({strange} not all ones)"),
        Answer::Is(if strange == 0 { "empty" } else { "alive" }),
        strange == 0,
    );
    // String forms, from and to where nothing may be read or written.
    for (name, code) in [("outs", [0xf3, 0x6e]), ("ins", [0xf3, 0x6c])] {
        for address in [
            0xffff_8300_0000_0000u64,
            0x8000_0000_0000,
            0x1000,
            memory::text(),
        ] {
            let mut regs = Regs::marked();
            (regs.rsi, regs.rdi, regs.rcx, regs.rdx) = (address, address, 3, 0xe9);
            let answer = Answer::of_code(attempt(&code, &mut regs));
            let fine = answer.is_refusal() || name == "outs" && address == memory::text();
            verdicts.note(format_args!("port.{name}.{address:#x}"), answer, fine);
        }
    }
    SCRATCH.set(0, 0);
    call(nr::PHYSDEV_OP, [physdev::SET_IOPL, SCRATCH.va(0), 0, 0, 0]);
    // A bitmap at a wild address: no access, no crash.
    for address in [0xffff_8300_0000_0000u64, 0x8000_0000_0000, 0x1000, !0xfff] {
        SCRATCH.set(0, address);
        SCRATCH.set(1, 65536);
        let answer = call(
            nr::PHYSDEV_OP,
            [physdev::SET_IOBITMAP, SCRATCH.va(0), 0, 0, 0],
        );
        let (port, _) = input(0xe9);
        verdicts.note(
            format_args!("port.bitmap-{address:#x}"),
            answer,
            port.is_refusal(),
        );
    }
    SCRATCH.set(1, 0);
    call(
        nr::PHYSDEV_OP,
        [physdev::SET_IOBITMAP, SCRATCH.va(0), 0, 0, 0],
    );
}

/// MSRs: none may show or take an address of the hypervisor's.
fn registers(verdicts: &mut Verdicts) {
    const LSTAR: u64 = 0xc000_0082;
    let (mut readable, mut shown) = (0u64, 0u64);
    let ranges = [
        0..0x2000u64,
        0x4000_0000..0x4000_0100,
        0xc000_0000..0xc000_2000,
        0xc001_0000..0xc001_2000,
    ];
    for index in ranges.into_iter().flatten() {
        let mut regs = Regs::marked();
        regs.rcx = index;
        if attempt(&[0x0f, 0x32], &mut regs) == End::Done {
            readable += 1;
            let value = regs.rdx << 32 | regs.rax & 0xffff_ffff;
            // FS and GS base hold what the guest put there.
            if (0xffff_8100_0000_0000..0xffff_8800_0000_0000).contains(&value) {
                say!("leak: MSR {index:#x} = {value:#x}");
                shown += 1;
            }
        }
    }
    verdicts.note(
        format_args!("msr.readable ({readable})"),
        Answer::Is(if shown == 0 { "harmless" } else { "leaking" }),
        shown == 0,
    );
    for (name, index, value) in [
        ("star", 0xc000_0081u64, 0u64),
        ("lstar", LSTAR, memory::text()),
        ("cstar", 0xc000_0083, memory::text()),
        ("sfmask", 0xc000_0084, 0),
        ("efer", 0xc000_0080, 0),
        ("sysenter-cs", 0x174, 8),
        ("sysenter-esp", 0x175, memory::text()),
        ("sysenter-eip", 0x176, memory::text()),
        ("apic-base", 0x1b, 0xfee0_0000),
        ("pat", 0x277, 0),
        ("mtrr-default", 0x2ff, 0),
        ("vm-cr", 0xc001_0114, 0),
        ("vm-hsave", 0xc001_0117, 0x1000),
        ("smbase", 0xc001_0111, 0x1000),
        ("x2apic-icr", 0x830, 0),
        ("tsc", 0x10, 0),
        ("fs-base", 0xc000_0100, 0x8000_0000_0000),
        ("gs-base", 0xc000_0101, 0x8000_0000_0000),
        ("shadow-gs-base", 0xc000_0102, 0x8000_0000_0000),
        ("hypercall-page-of-hypervisor", 0x4000_0000, 0x20_0000),
        ("unknown", 0xdead_beef, 0),
    ] {
        let mut regs = Regs::marked();
        (regs.rcx, regs.rax, regs.rdx) = (index, value & 0xffff_ffff, value >> 32);
        let answer = Answer::of_code(attempt(&[0x0f, 0x30], &mut regs));
        verdicts.refused(format_args!("msr.write-{name}"), answer);
    }
}

/// All four breakpoints enabled, reads and writes, 8 bytes.
const WATCH: u64 = 0xbbbb_00ff;

/// Watches the words that the hypervisor copies on our behalf, and the stack that it writes to.
pub fn watch() -> Answer {
    let scratch = SCRATCH.va(0);
    let stack = memory::stack_middle() - 8;
    let watched = [scratch, scratch + 8, stack, scratch + 16];
    for (index, address) in watched.into_iter().enumerate() {
        call(nr::SET_DEBUGREG, [index as u64, address, 0, 0, 0]);
    }
    call(nr::SET_DEBUGREG, [7, WATCH, 0, 0, 0])
}

/// Debug registers that point into the hypervisor, and those that make it trip over our data.
fn debug(verdicts: &mut Verdicts) {
    for (name, address) in [
        ("hole", 0xffff_8300_0000_0000u64),
        ("image", 0xffff_82d0_4000_0000),
        ("m2p", 0xffff_8000_0000_0000),
        ("non-canonical", 0x8000_0000_0000),
    ] {
        for index in 0..4 {
            let answer = call(nr::SET_DEBUGREG, [index, address, 0, 0, 0]);
            verdicts.refused(format_args!("debug.dr{index}.{name}"), answer);
        }
        let mut regs = Regs::marked();
        regs.rax = address;
        // mov %rax, %dr0
        let answer = Answer::of_code(attempt(&[0x0f, 0x23, 0xc0], &mut regs));
        verdicts.refused(format_args!("debug.mov-dr0.{name}"), answer);
    }
    for (name, index, value) in [
        ("dr7-high", 7u64, 1u64 << 32),
        ("dr6-high", 6, 1 << 63),
        ("dr7-io", 7, 0x0002_0002),
        ("dr8", 8, 0),
        ("dr-huge", !0, 0),
    ] {
        let answer = call(nr::SET_DEBUGREG, [index, value, 0, 0, 0]);
        verdicts.refused(format_args!("debug.{name}"), answer);
    }
    let scratch = SCRATCH.va(0);
    verdicts.wanted(format_args!("debug.watch"), watch(), &[Answer::Value(0)]);
    let mut outcomes = 0;
    for (number, command) in [
        (nr::XEN_VERSION, 1),
        (nr::XEN_VERSION, 6),
        (nr::EVENT_CHANNEL_OP, 5),
        (nr::MMU_UPDATE, scratch),
        (nr::MULTICALL, scratch),
    ] {
        let mut regs = Regs::call(number, [command, scratch, 0, 0x7ff0, 0]);
        if number == nr::MULTICALL || number == nr::MMU_UPDATE {
            regs.rsi = 1;
        }
        // Set by register, since a store would trip over the watch itself.
        trap::observed(&mut regs);
        outcomes += 1;
    }
    // mov (%rsi), %ss and a system call right behind it: the trap of the load is held back until
    // after the call has entered the hypervisor (CVE-2018-8897).
    call(nr::SET_DEBUGREG, [7, 0, 0, 0, 0]);
    SCRATCH.set(0, 0xe02b);
    for (name, code) in [
        ("syscall", &[0x8e, 0x16, 0x0f, 0x05][..]),
        ("int3", &[0x8e, 0x16, 0xcc]),
        ("int80", &[0x8e, 0x16, 0xcd, 0x80]),
        ("icebp", &[0x8e, 0x16, 0xf1]),
        ("sysenter", &[0x8e, 0x16, 0x0f, 0x34]),
        ("page-fault", &[0x8e, 0x16, 0x8a, 0x07]),
    ] {
        call(nr::SET_DEBUGREG, [7, WATCH, 0, 0, 0]);
        let mut regs = Regs::call(nr::XEN_VERSION, [0, 0, 0, 0, 0]);
        regs.rsi = scratch;
        let answer = Answer::of_code(attempt(code, &mut regs));
        call(nr::SET_DEBUGREG, [7, 0, 0, 0, 0]);
        verdicts.note(format_args!("debug.held-back.{name}"), answer, true);
    }
    // Single steps into system calls and traps.
    for (name, code) in [
        ("syscall", &[0x9d, 0x0f, 0x05][..]),
        ("int3", &[0x9d, 0xcc]),
        ("cpuid", &[0x9d, 0x0f, 0xa2]),
        ("rdmsr", &[0x9d, 0x0f, 0x32]),
        ("load-ss", &[0x9d, 0x8e, 0x16, 0x0f, 0x05]),
    ] {
        memory::set_stack(0, 0x102);
        let mut regs = Regs::call(nr::XEN_VERSION, [0, 0, 0, 0, 0]);
        (regs.rsi, regs.rcx) = (scratch, 0xc000_0080);
        let answer = Answer::of_code(attempt(code, &mut regs));
        verdicts.refused(format_args!("debug.step.{name}"), answer);
    }
    trap::repair();
    verdicts.quietly(format_args!("debug.survived"), outcomes == 5);
}
