//! Descriptors and selectors: gates and system segments into the tables, the hypervisor's selectors
//! out of them.

use xen_abi::mmu::ext;
use xen_abi::{callback, hypercall as nr};

use super::{call, extended};
use crate::memory::{self, GDT, RO, SCRATCH, VICTIMS};
use crate::trap::{self, End, Regs, attempt, observed};
use crate::verdict::{Answer, Verdicts};

/// In 32-bit code a kernel has no stack that it could be told of anything on.
const CODE_32: u32 = 0xe020;
const OK: Answer = Answer::Value(0);

pub(super) fn all(verdicts: &mut Verdicts) {
    contents(verdicts);
    tables(verdicts);
    selectors(verdicts);
    returns(verdicts);
    addresses(verdicts);
}

/// Every type of descriptor, of each privilege.
fn contents(verdicts: &mut Verdicts) {
    let place = GDT.mfn(0).addr() + 8 * 8;
    let set = |raw| call(nr::UPDATE_DESCRIPTOR, [place, raw, 0, 0, 0]);
    for kind in 0..32u64 {
        for dpl in [0, 3] {
            let raw = 0x00af_8000_0000_ffff | kind << 40 | dpl << 45;
            let answer = set(raw);
            let left = GDT.get(8);
            let is_system = kind < 16 && kind != 0;
            // A code or data segment must have ended with privilege 3, or be refused.
            let harmless = if is_system {
                answer.is_refusal() || left >> 40 & 0x1f == 0
            } else {
                answer.is_refusal() || left >> 45 & 3 == 3 || kind == 0
            };
            verdicts.note(
                format_args!("descriptor.type-{kind}.dpl-{dpl}"),
                answer,
                harmless,
            );
            set(0);
        }
    }
    for (name, address) in [
        ("unaligned", place + 4),
        ("hypervisor-part", GDT.mfn(0).addr() + (14 << 12)),
        ("all-ones", !0),
    ] {
        let answer = call(
            nr::UPDATE_DESCRIPTOR,
            [address, 0x00cf_f300_0000_ffff, 0, 0, 0],
        );
        // Behind the table lies some frame of ours, or not: only the table itself is special.
        let harmless = answer.is_refusal() || name == "hypervisor-part";
        verdicts.note(format_args!("descriptor.{name}"), answer, harmless);
    }
}

fn tables(verdicts: &mut Verdicts) {
    let scratch = SCRATCH.va(0);
    let frame = VICTIMS.mfn(4);
    SCRATCH.set(0, frame.0);
    let set = |list, entries| call(nr::SET_GDT, [list, entries, 0, 0, 0]);
    verdicts.refused(format_args!("gdt.writable-page"), set(scratch, 512));
    // A call gate to kernel code in a page that is otherwise fine.
    VICTIMS.set(4 * 512 + 20, 0x0000_ec00_e008_0000);
    memory::map(VICTIMS.va(4), frame, RO);
    verdicts.refused(format_args!("gdt.gate-inside"), set(scratch, 512));
    memory::release_victim(4);
    VICTIMS.set(4 * 512 + 20, 0);
    memory::map(VICTIMS.va(4), frame, RO);
    verdicts.wanted(format_args!("gdt.clean-page"), set(scratch, 512), &[OK]);
    let answer = Answer::of(memory::map(VICTIMS.va(4), frame, memory::RW));
    verdicts.refused(format_args!("gdt.map-writable"), answer);
    memory::set_gdt();
    memory::release_victim(4);
    for (name, list, entries) in [
        ("too-many", scratch, 7169),
        ("far-too-many", scratch, !0),
        ("wild-list", 0xffff_8300_0000_0000, 512),
        ("non-canonical-list", 0x8000_0000_0000, 512),
        ("unmapped-list", 0x1000, 512),
    ] {
        verdicts.refused(format_args!("gdt.{name}"), set(list, entries));
    }
    for (name, base, entries) in [
        ("too-many", VICTIMS.va(4), 8193),
        ("far-too-many", VICTIMS.va(4), !0),
        ("unaligned", VICTIMS.va(4) + 8, 512),
        ("hypervisor", 0xffff_8300_0000_0000, 512),
        ("m2p", 0xffff_8000_0000_0000, 512),
        ("non-canonical", 0x8000_0000_0000, 512),
        ("wraps", 0xffff_ffff_ffff_f000, 8192),
    ] {
        let answer = extended(ext::SET_LDT, base, entries);
        let then = load(0x8e, 0xc0, 0x0007);
        // Xen looks at an LDT's address when a selector of it is used.
        verdicts.note(
            format_args!("ldt.{name}"),
            answer,
            answer.is_refusal() || then.is_refusal(),
        );
        extended(ext::SET_LDT, 0, 0);
    }
}

/// `mov %ax, %SEG` with this selector.
fn load(opcode: u8, modrm: u8, selector: u16) -> Answer {
    let mut regs = Regs::marked();
    regs.rax = selector.into();
    Answer::of_code(attempt(&[opcode, modrm], &mut regs))
}

/// Loads, far jumps and far returns.
fn selectors(verdicts: &mut Verdicts) {
    let (mut loaded, mut entered) = (0, 0);
    for selector in
        (0xe000..=0xffffu32).filter(|selector| selector & 4 == 0 && selector & !3 != CODE_32)
    {
        let selector = selector as u16;
        for segment in [0xc0, 0xd8, 0xe0, 0xe8] {
            // Anything that can be loaded as data has privilege 3 by the CPU's own rule.
            if load(0x8e, segment, selector) == Answer::Ran {
                loaded += 1;
            }
        }
        let mut regs = Regs::marked();
        memory::set_stack(0, trap::done_address());
        memory::set_stack(1, selector.into());
        // lretq
        let end = attempt(&[0x48, 0xcb], &mut regs);
        if end == End::Done {
            entered += 1;
            let fine = selector | 3 == 0xe033;
            verdicts.quietly(format_args!("selector.far-return.{selector:#x}"), fine);
        }
    }
    // Null, the two flat data segments and the two flat code segments, with each RPL that works.
    verdicts.note(
        format_args!("selector.all ({loaded} loads, {entered} far returns went through)"),
        Answer::Is("counted"),
        entered <= 4,
    );
    for (name, selector) in [
        ("null", 0u64),
        ("hypervisor-cs", 0xe008),
        ("tss", 0xe040),
        ("beyond", 0xfff8),
    ] {
        let answer = call(nr::SET_SEGMENT_BASE, [3, selector, 0, 0, 0]);
        verdicts.wanted(format_args!("selector.gs-user.{name}"), answer, &[OK]);
    }
    let mut regs = Regs::marked();
    regs.rax = 0;
    attempt(&[0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xe0, 0x8e, 0xe8], &mut regs);
}

/// The `iret` hypercall and the instruction, to selectors and addresses that must not be reached.
fn returns(verdicts: &mut Verdicts) {
    let frame = |rip, cs, rflags, rsp, ss| {
        for (n, value) in [0, 0, 0, 0, rip, cs, rflags, rsp, ss]
            .into_iter()
            .enumerate()
        {
            memory::set_stack(n, value);
        }
        let mut regs = Regs::marked();
        regs.rax = nr::IRET;
        let end = observed(&mut regs);
        trap::repair_callbacks();
        Answer::of_code(end)
    };
    let (done, stack) = (trap::done_address(), memory::stack_middle());
    let good = frame(done, 0xe030, 0x200, stack, 0xe02b);
    verdicts.wanted(format_args!("iret.good"), good, &[Answer::Ran]);
    for cs in [
        0u64, 0x8, 0x10, 0xe000, 0xe008, 0xe010, 0xe018, 0xe028, 0xe038, 0xe040, 0xfff8,
    ] {
        let answer = frame(done, cs, 0x200, stack, 0xe02b);
        // 32-bit code at a 64-bit address faults where it lands.
        verdicts.refused(format_args!("iret.cs-{cs:#x}"), answer);
    }
    for ss in [0u64, 0x8, 0xe000, 0xe008, 0xe010, 0xe030, 0xe038, 0xfff8] {
        let answer = frame(done, 0xe030, 0x200, stack, ss);
        // Entry 1 of the table is a data segment of this kernel's own.
        let fine = answer.is_refusal() || matches!(ss, 0 | 8);
        verdicts.note(format_args!("iret.ss-{ss:#x}"), answer, fine);
    }
    for (name, rip) in [
        ("hole", 0xffff_8300_0000_0000u64),
        ("m2p", 0xffff_8000_0000_0000),
        ("image", 0xffff_82d0_4000_0000),
        ("non-canonical", 0x8000_0000_0000),
        ("null", 0),
    ] {
        let answer = frame(rip, 0xe030, 0x200, stack, 0xe02b);
        verdicts.refused(format_args!("iret.rip-{name}"), answer);
    }
    for bit in 0..64 {
        let answer = frame(done, 0xe030, 1 << bit, stack, 0xe02b);
        let fine = answer == Answer::Ran || bit == 8 && answer.is_refusal();
        verdicts.quietly(format_args!("iret.rflags-{bit}: {answer}"), fine);
        // Privileged things must still be privileged.
        let mut regs = Regs::marked();
        let end = attempt(&[0xfa, 0x0f, 0x20, 0xd8, 0xf4], &mut regs);
        verdicts.quietly(
            format_args!("iret.rflags-{bit} gave privilege"),
            end != End::Done,
        );
    }
    for cs in [0u64, 8, 0xe008, 0xe010, 0xe033] {
        memory::set_stack(0, done);
        memory::set_stack(1, cs);
        memory::set_stack(2, 0x3202);
        memory::set_stack(3, stack);
        memory::set_stack(4, 0xe02b);
        let mut regs = Regs::marked();
        // iretq
        let answer = Answer::of_code(attempt(&[0x48, 0xcf], &mut regs));
        verdicts.note(
            format_args!("iretq.cs-{cs:#x}"),
            answer,
            answer.is_refusal() || cs == 0xe033,
        );
    }
}

/// Addresses to be entered or loaded later.
fn addresses(verdicts: &mut Verdicts) {
    let scratch = SCRATCH.va(0);
    for (name, address) in [
        ("hole", 0xffff_8300_0000_0000u64),
        ("image", 0xffff_82d0_4000_0000),
        ("non-canonical", 0x8000_0000_0000),
        ("almost-canonical", 0xffff_7fff_ffff_ffff),
    ] {
        for kind in [0u64, 1, 2, 4, 5, 7] {
            SCRATCH.set(0, kind);
            SCRATCH.set(1, address);
            let answer = call(nr::CALLBACK_OP, [callback::REGISTER, scratch, 0, 0, 0]);
            trap::repair_callbacks();
            // Xen takes any canonical address here; entering it faults.
            let fine = answer.is_refusal() || address >> 47 == 0x1ffff;
            verdicts.note(format_args!("address.callback-{kind}.{name}"), answer, fine);
        }
        SCRATCH.set(0, address);
        let answer = call(nr::NMI_OP, [0, scratch, 0, 0, 0]);
        let canonical = address >> 47 == 0x1ffff;
        verdicts.note(
            format_args!("address.nmi.{name}"),
            answer,
            answer.is_refusal() || canonical,
        );
        SCRATCH.set(0, 0x0e00);
        SCRATCH.set(1, address);
        SCRATCH.set(2, 0);
        SCRATCH.set(3, 0);
        let answer = call(nr::SET_TRAP_TABLE, [scratch, 0, 0, 0, 0]);
        verdicts.note(
            format_args!("address.trap.{name}"),
            answer,
            answer.is_refusal() || canonical,
        );
        trap::repair();
        let answer = call(nr::SET_CALLBACKS, [address, address, address, 0, 0]);
        // Xen takes any address here; entering it faults.
        verdicts.note(format_args!("address.callbacks.{name}"), answer, true);
        trap::repair();
        for which in 0..3 {
            let answer = call(nr::SET_SEGMENT_BASE, [which, address, 0, 0, 0]);
            // A segment base may lie in the hypervisor's range: using it faults.
            let fine = answer.is_refusal() || address == 0xffff_8300_0000_0000 || name == "image";
            verdicts.note(format_args!("address.base-{which}.{name}"), answer, fine);
            call(nr::SET_SEGMENT_BASE, [which, 0, 0, 0, 0]);
        }
    }
    trap::repair();
}
