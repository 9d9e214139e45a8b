//! What every hypercall answers to arguments at the edge, to be laid beside what Xen answers.
//!
//! No answer is right or wrong by itself here: a kernel may rely on any of them, so the runner
//! compares those of the shim with those of real Xen.  A line holds one sub-operation and the answer
//! to each *shape* of its argument: `answers MEMORY_OP.4: null=EFAULT zeros=0 …`.  A value that is
//! not zero is told as `value`, since what it counts differs from one domain to the next.
//!
//! Each call is one that a kernel survives.  What would end it or take its callbacks away is left
//! out ([`is_deadly`] and the lists below); what it needs is set again after each line.

use core::fmt::{self, Write};

use xen_abi::mmu::{Level, Pte, UvmFlags, ext};
use xen_abi::{Mfn, hypercall as nr};

use crate::attacks::{call, first_foreign, is_deadly};
use crate::console::say;
use crate::memory::{self, GDT, RO, RW, SCRATCH, VICTIMS};
use crate::trap;
use crate::verdict::Answer;

/// A domain's name for itself.
const SELF: u64 = 0x7ff0;
/// One more than the highest number that is tried; from [`LAST`] on there are none.
const NUMBERS: u64 = 64;
/// The first number that the interface leaves free for the architecture.
const ARCHITECTURE: u64 = 48;

/// Something to point to: its name, and its address once it is there.
type Shape = (&'static str, fn() -> u64);

/// Addresses that no argument can be read from, or written to.
const BAD: [Shape; 6] = [
    ("null", || 0),
    ("unmapped", || 0x7fff_ffff_f000),
    ("non-canonical", || 0x8000_0000_0000),
    ("hypervisor", || 0xffff_8300_0000_0000),
    ("wraps", || !7),
    ("read-only", memory::text),
];

/// Arguments that can be read and written.
const GOOD: [Shape; 4] = [
    ("zeros", || filled(0, 0)),
    ("ones", || filled(!0, !0)),
    ("self", || filled(SELF, 0)),
    ("odd", || filled(0, 0) + 1),
];

/// Fills the scratch page with `rest` behind `first`, and gives its address.
fn filled(first: u64, rest: u64) -> u64 {
    for word in 0..512 {
        SCRATCH.set(word, rest);
    }
    SCRATCH.set(0, first);
    SCRATCH.va(0)
}

/// A line that grows by one answer after another.
struct Line {
    text: [u8; 480],
    len: usize,
}

impl Line {
    fn new() -> Self {
        Self {
            text: [0; 480],
            len: 0,
        }
    }

    fn add(&mut self, shape: &str, answer: Answer) {
        // A line that is full says so by being cut: the runner finds no answer for the shape.
        let _ = match answer {
            Answer::Value(0) => write!(self, " {shape}=0"),
            Answer::Value(_) => write!(self, " {shape}=value"),
            other => write!(self, " {shape}={other}"),
        };
    }

    fn say(&self, number: u64, part: fmt::Arguments<'_>) {
        let text = core::str::from_utf8(&self.text[..self.len]).unwrap_or("");
        say!("answers {}.{part}:{text}", nr::name(number));
        trap::repair();
        memory::set_gdt();
    }
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let end = self.len + s.len();
        let place = self.text.get_mut(self.len..end).ok_or(fmt::Error)?;
        place.copy_from_slice(s.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// Makes all calls.
pub fn all() {
    pointers();
    vcpus();
    tables();
    extended();
    mappings();
    values();
    trap::arm();
    say!("answers: done");
}

/// Calls of the form `(command, pointer, count)`.
fn pointers() {
    for (number, commands) in [
        (nr::MEMORY_OP, 29),
        (nr::XEN_VERSION, 13),
        (nr::GRANT_TABLE_OP, 14),
        (nr::EVENT_CHANNEL_OP, 15),
        (nr::SCHED_OP, 9),
        (nr::PHYSDEV_OP, 34),
        (nr::CALLBACK_OP, 4),
        (nr::NMI_OP, 3),
        (nr::HVM_OP, 26),
        (nr::XENPMU_OP, 9),
        (nr::HYPFS_OP, 6),
        (nr::ARGO_OP, 6),
        (nr::KEXEC_OP, 9),
        (nr::XSM_OP, 3),
        (nr::XENOPROF_OP, 16),
        (nr::TMEM_OP, 3),
        (nr::DM_OP, 3),
    ] {
        for command in (0..commands).filter(|&command| !is_deadly(number, command)) {
            let mut line = Line::new();
            for (name, pointer) in BAD.into_iter().chain(GOOD) {
                if !takes_callback(number, command, name) {
                    line.add(name, call(number, [command, pointer(), 1, 0, 0]));
                }
            }
            line.say(number, format_args!("{command}"));
        }
    }
    for number in [nr::PLATFORM_OP, nr::SYSCTL, nr::DOMCTL, nr::SCHED_OP_COMPAT] {
        let mut line = Line::new();
        for (name, pointer) in BAD.into_iter().chain(GOOD) {
            let first = if number == nr::SCHED_OP_COMPAT {
                7
            } else {
                pointer()
            };
            line.add(name, call(number, [first, pointer(), 0, 0, 0]));
        }
        line.say(number, format_args!("any"));
    }
    for number in (43..NUMBERS).filter(|number| !(ARCHITECTURE..56).contains(number)) {
        let mut line = Line::new();
        line.add("zeros", call(number, [0; 5]));
        line.say(number, format_args!("{number}"));
    }
}

/// Whether a call sets a callback at an address that holds none, by which the next event would end
/// this kernel.
fn takes_callback(number: u64, command: u64, shape: &str) -> bool {
    number == nr::CALLBACK_OP
        && command == 0
        && matches!(shape, "zeros" | "odd" | "read-only" | "self")
}

/// `vcpu_op(command, vcpu, pointer)`: of this vCPU, and of those that do not exist.
fn vcpus() {
    for command in (0..15).filter(|&command| !is_deadly(nr::VCPU_OP, command)) {
        let mut line = Line::new();
        for (name, pointer) in BAD.into_iter().chain(GOOD) {
            // What lies at frame 0x7ff0 is another thing in each domain.
            if name != "self" {
                line.add(name, call(nr::VCPU_OP, [command, 0, pointer(), 0, 0]));
            }
        }
        for (name, vcpu) in [("vcpu-1", 1), ("vcpu-8192", 8192), ("vcpu-all", !0)] {
            line.add(name, call(nr::VCPU_OP, [command, vcpu, filled(0, 0), 0, 0]));
        }
        line.say(nr::VCPU_OP, format_args!("{command}"));
    }
}

/// Frames of each kind that an entry or an argument can name.
fn frames() -> [(&'static str, Mfn); 7] {
    [
        ("own", VICTIMS.mfn(0)),
        ("root", memory::root()),
        ("gdt", GDT.mfn(0)),
        ("shared-info", Mfn::of(memory::shared_info())),
        ("foreign", Mfn(first_foreign(0x200))),
        ("no-ram", Mfn(0x7_ffff_ffff)),
        ("too-high", Mfn(!0 >> 12)),
    ]
}

/// `mmu_update`: each command on an entry of each kind of frame, and each kind of value in an entry
/// that maps a page.
fn tables() {
    let update = |ptr: u64, val: u64| {
        SCRATCH.set(0, ptr);
        SCRATCH.set(1, val);
        call(nr::MMU_UPDATE, [SCRATCH.va(0), 1, 0, SELF, 0])
    };
    for command in 0..8 {
        let mut line = Line::new();
        for (name, frame) in frames() {
            // An empty entry at the end of a table changes nothing where it is allowed.
            let entry = 511 * 8;
            if name != "root" && !(command == 1 && name == "own") {
                line.add(name, update(frame.addr() | entry | command, 0));
            }
        }
        let entry = memory::entry_address(Level::L1, memory::window(4));
        line.add("l1", update(entry | command & 3, 0));
        line.add("misaligned", update(entry | 4 | command & 3, 0));
        line.say(nr::MMU_UPDATE, format_args!("{command}"));
    }
    let entry = memory::entry_address(Level::L1, memory::window(4));
    for (name, flags) in [
        ("ro", RO),
        ("rw", RW),
        ("kernel", RO & !Pte::USER),
        ("pat", RO | Pte::PSE),
        ("global", RO | Pte::GLOBAL),
        ("uncached", RO | Pte::PCD | Pte::PWT),
        ("nx", RO | Pte::NX),
        ("avail", RO | Pte::AVAIL),
        ("avail-high", RO | Pte::AVAIL_HIGH),
    ] {
        let mut line = Line::new();
        for (kind, frame) in frames() {
            line.add(kind, update(entry, Pte::new(frame, flags).0));
            update(entry, 0);
        }
        line.say(nr::MMU_UPDATE, format_args!("value-{name}"));
    }
    let mut line = Line::new();
    for (name, pointer) in BAD {
        line.add(name, call(nr::MMU_UPDATE, [pointer(), 1, 0, SELF, 0]));
    }
    for (name, count, domain) in [
        ("none", 0, SELF),
        ("too-many", 0x7fff_ffff, SELF),
        ("domain-0", 0, 0),
        ("domain-io", 0, 0x7ff1),
        ("domain-xen", 0, 0x7ff2),
        ("domain-cow", 0, 0x7ff3),
        ("domain-none", 0, 0x7ff4),
        ("domain-high", 0, 0x7ff0_7ff0),
    ] {
        line.add(
            name,
            call(nr::MMU_UPDATE, [SCRATCH.va(0), count, 0, domain, 0]),
        );
    }
    line.say(nr::MMU_UPDATE, format_args!("list"));
}

/// `mmuext_op`: each command on each kind of frame.
fn extended() {
    let extended = |command: u64, arg1: u64, arg2: u64| {
        SCRATCH.set(0, command);
        SCRATCH.set(1, arg1);
        SCRATCH.set(2, arg2);
        call(nr::MMUEXT_OP, [SCRATCH.va(0), 1, 0, SELF, 0])
    };
    for command in 0..24 {
        let mut line = Line::new();
        for (name, frame) in frames() {
            // The root must stay what it is; the others are no roots.
            let own = name == "root" && command == u64::from(ext::UNPIN_TABLE);
            if !own {
                line.add(name, extended(command, frame.0, 0));
            }
        }
        for (name, address) in [
            ("hypervisor", 0xffff_8300_0000_0000),
            ("non-canonical", 0x8000_0000_0000),
            ("misaligned", memory::window(4) + 1),
        ] {
            line.add(name, extended(command, address, 1));
        }
        line.say(nr::MMUEXT_OP, format_args!("{command}"));
        for n in 0..2 {
            memory::release_victim(n);
        }
    }
    let mut line = Line::new();
    for (name, pointer) in BAD {
        line.add(name, call(nr::MMUEXT_OP, [pointer(), 1, 0, SELF, 0]));
    }
    for (name, count, domain) in [
        ("none", 0, SELF),
        ("domain-0", 0, 0),
        ("domain-xen", 0, 0x7ff2),
    ] {
        line.add(
            name,
            call(nr::MMUEXT_OP, [SCRATCH.va(0), count, 0, domain, 0]),
        );
    }
    line.say(nr::MMUEXT_OP, format_args!("list"));
}

/// `update_va_mapping(va, value, flags)`, and grants mapped by the address of an entry.
fn mappings() {
    let own = Pte::new(VICTIMS.mfn(0), RO).0;
    for (name, value) in [
        ("clear", 0),
        ("own", own),
        ("root", Pte::new(memory::root(), RW).0),
    ] {
        let mut line = Line::new();
        for (place, va) in [
            ("window", memory::window(4)),
            ("misaligned", memory::window(4) + 1),
            ("no-table", 0x7fff_ffff_f000),
            ("non-canonical", 0x8000_0000_0000),
            ("hypervisor", 0xffff_8300_0000_0000),
        ] {
            line.add(place, call(nr::UPDATE_VA_MAPPING, [va, value, 0, 0, 0]));
        }
        for (flags, bits) in [
            ("flush", UvmFlags::TLB_FLUSH.0),
            ("page", UvmFlags::INVLPG.0),
            ("kind-3", 3),
            ("all", UvmFlags::TLB_FLUSH.0 | UvmFlags::ALL),
            ("bad-mask", UvmFlags::TLB_FLUSH.0 | 0x8000_0000_0000),
        ] {
            let args = [memory::window(4), value, bits, 0, 0];
            line.add(flags, call(nr::UPDATE_VA_MAPPING, args));
        }
        line.say(nr::UPDATE_VA_MAPPING, format_args!("{name}"));
    }
    memory::map(memory::window(4), Mfn(0), 0);
}

/// Calls whose arguments are values.
fn values() {
    for register in 0..9 {
        let mut line = Line::new();
        for (name, value) in [
            ("zero", 0),
            ("hypervisor", 0xffff_8300_0000_0000),
            ("non-canonical", 0x8000_0000_0000),
            ("all", !0),
            ("io-break", 0x0002_0000),
            ("general-detect", 0x2000),
        ] {
            line.add(name, call(nr::SET_DEBUGREG, [register, value, 0, 0, 0]));
        }
        line.add("get", call(nr::GET_DEBUGREG, [register, 0, 0, 0, 0]));
        line.say(nr::SET_DEBUGREG, format_args!("{register}"));
    }
    for which in 0..6 {
        let mut line = Line::new();
        for (name, base) in [
            ("kernel", memory::text()),
            ("hypervisor", 0xffff_8300_0000_0000),
            ("non-canonical", 0x8000_0000_0000),
            ("selector", 0xffff),
            ("zero", 0),
        ] {
            line.add(name, call(nr::SET_SEGMENT_BASE, [which, base, 0, 0, 0]));
        }
        line.say(nr::SET_SEGMENT_BASE, format_args!("{which}"));
    }
    for command in 0..4 {
        let mut line = Line::new();
        for (name, kind) in [
            ("0", 0),
            ("1", 1),
            ("2", 2),
            ("3", 3),
            ("4", 4),
            ("5", 5),
            ("6", 6),
            ("40", 40),
        ] {
            // Nothing of what this kernel needs hangs on 0 to 2 and 5; 3 and 4 are for 32 bits.
            line.add(name, call(nr::VM_ASSIST, [command, kind, 0, 0, 0]));
        }
        line.say(nr::VM_ASSIST, format_args!("{command}"));
    }
    for command in 0..3 {
        let mut line = Line::new();
        for (name, count) in [("none", 0), ("one", 1), ("all", !0)] {
            line.add(
                name,
                call(nr::CONSOLE_IO, [command, count, SCRATCH.va(0), 0, 0]),
            );
        }
        line.add("null", call(nr::CONSOLE_IO, [command, 1, 0, 0, 0]));
        line.say(nr::CONSOLE_IO, format_args!("{command}"));
    }
    for (name, frame) in frames() {
        let mut line = Line::new();
        for (kind, descriptor) in [
            ("zero", 0),
            ("code", 0x00af_fb00_0000_ffff),
            ("data-0", 0x00cf_9300_0000_ffff),
            ("gate", 0x0000_8e00_0000_0000),
            ("tss", 0x0000_8900_0000_0000),
        ] {
            let args = [frame.addr() + 8 * 100, descriptor, 0, 0, 0];
            line.add(kind, call(nr::UPDATE_DESCRIPTOR, args));
        }
        line.add(
            "misaligned",
            call(nr::UPDATE_DESCRIPTOR, [frame.addr() + 4, 0, 0, 0, 0]),
        );
        line.say(nr::UPDATE_DESCRIPTOR, format_args!("{name}"));
    }
    for (name, entries) in [
        ("0", 0),
        ("1", 1),
        ("512", 512),
        ("513", 513),
        ("7168", 7168),
        ("7169", 7169),
        ("all", !0),
    ] {
        let mut line = Line::new();
        for (kind, frame) in frames() {
            SCRATCH.fill(frame.0);
            line.add(kind, call(nr::SET_GDT, [SCRATCH.va(0), entries, 0, 0, 0]));
        }
        line.add("null", call(nr::SET_GDT, [0, entries, 0, 0, 0]));
        line.say(nr::SET_GDT, format_args!("{name}"));
    }
    let mut line = Line::new();
    for (name, pointer) in BAD
        .into_iter()
        .filter(|(name, _)| *name != "null" && *name != "read-only")
    {
        line.add(name, call(nr::SET_TRAP_TABLE, [pointer(), 0, 0, 0, 0]));
    }
    line.say(nr::SET_TRAP_TABLE, format_args!("table"));
    let mut line = Line::new();
    for (name, pointer) in BAD {
        line.add(name, call(nr::MULTICALL, [pointer(), 1, 0, 0, 0]));
    }
    for (name, count) in [("none", 0), ("all", !0), ("too-many", 0x1_0000_0000)] {
        line.add(name, call(nr::MULTICALL, [0, count, 0, 0, 0]));
    }
    line.say(nr::MULTICALL, format_args!("list"));
    let mut line = Line::new();
    for (name, stack) in [
        ("hypervisor", 0xffff_8300_0000_0000),
        ("non-canonical", 0x8000_0000_0000),
        ("zero", 0),
    ] {
        line.add(name, call(nr::STACK_SWITCH, [0xe02b, stack, 0, 0, 0]));
    }
    line.say(nr::STACK_SWITCH, format_args!("stack"));
    let mut line = Line::new();
    for (name, deadline) in [
        ("past", 1),
        ("never", 0),
        ("far", !0 >> 1),
        ("negative", !0),
    ] {
        line.add(name, call(nr::SET_TIMER_OP, [deadline, 0, 0, 0, 0]));
    }
    line.say(nr::SET_TIMER_OP, format_args!("deadline"));
}
