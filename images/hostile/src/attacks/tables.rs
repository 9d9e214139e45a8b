//! Page tables that must not come to be: bad bits, large pages, the hypervisor's slots, loops, and
//! native stores to tables that take none.

use xen_abi::mmu::{Level, Pte, ext};
use xen_abi::{GuestVa, Mfn, hypercall as nr};

use super::{call, extended, update};
use crate::memory::{self, RO, RW, SCRATCH, VICTIMS};
use crate::trap::{Regs, attempt};
use crate::verdict::{Answer, Verdicts};

const OK: Answer = Answer::Value(0);

pub(super) fn all(verdicts: &mut Verdicts) {
    bits(verdicts);
    hypervisor_slots(verdicts);
    loops(verdicts);
    native_stores(verdicts);
    types(verdicts);
    counts(verdicts);
}

fn bits(verdicts: &mut Verdicts) {
    let own = VICTIMS.mfn(0);
    let window = memory::window(2);
    let place = memory::entry_address(Level::L1, window);
    for (name, bit) in [
        ("write-through", Pte::PWT),
        ("uncached", Pte::PCD),
        ("pat", Pte::PSE),
    ] {
        let answer = update(place, Pte::new(own, RW | bit).0);
        verdicts.note(
            format_args!("bits.l1.{name}"),
            answer,
            answer == OK || answer.is_refusal(),
        );
        update(place, 0);
    }
    // Physical address bits that no frame has.
    let answer = update(place, RW | 0x000f_0000_0000_0000);
    verdicts.refused(format_args!("bits.l1.high-frame"), answer);
    for level in [Level::L2, Level::L3, Level::L4] {
        let place = memory::table(level, window).unwrap_or(Mfn(0)).addr() + 301 * 8;
        for (name, frame) in [("own", own), ("frame-0", Mfn(0)), ("aligned", Mfn(0x200))] {
            let answer = update(place, Pte::new(frame, RW | Pte::PSE).0);
            verdicts.refused(format_args!("superpage.{name}.{level:?}"), answer);
        }
        let answer = update(place, Pte::new(own, RW | Pte::PCD).0);
        verdicts.note(
            format_args!("bits.{level:?}.uncached"),
            answer,
            answer == OK || answer.is_refusal(),
        );
        update(place, 0);
    }
}

/// Entries of the hypervisor's slots, in the live root and in a new one.
fn hypervisor_slots(verdicts: &mut Verdicts) {
    let root = memory::root();
    let l3 = memory::table(Level::L3, memory::window(2)).unwrap_or(Mfn(0));
    for slot in 256..272u64 {
        let place = root.addr() + slot * 8;
        let before = memory::table_entry(root, slot as usize);
        for value in [0, Pte::new(l3, RW).0, Pte::new(root, RW).0] {
            let answer = update(place, value);
            let untouched = memory::table_entry(root, slot as usize).frame() == before.frame();
            // Xen takes such updates and drops them.
            verdicts.note(
                format_args!("slot.{slot}.{:#x}", value & 0xfff),
                if untouched {
                    Answer::Is("kept")
                } else {
                    answer
                },
                untouched,
            );
        }
    }
    // A root of our own whose slots are full of our own tables: pinned, they are the hypervisor's.
    for index in 0..512 {
        VICTIMS.set(index, memory::table_entry(root, index).0);
    }
    for index in 256..272 {
        VICTIMS.set(index, Pte::new(l3, RW).0);
    }
    let own = VICTIMS.mfn(0);
    memory::map(VICTIMS.va(0), own, RO);
    let answer = extended(ext::PIN_L4_TABLE, own.0, 0);
    verdicts.wanted(format_args!("slot.pin-own"), answer, &[OK]);
    // Xen fills them in when the table is loaded at the latest.
    let answer = extended(ext::NEW_BASEPTR, own.0, 0);
    verdicts.wanted(format_args!("slot.load-own"), answer, &[OK]);
    let kept = (256..272).any(|index| memory::table_entry(own, index).frame() == l3);
    let mut regs = Regs::marked();
    regs.rsi = 0xffff_8300_0000_0000;
    let read = Answer::of_code(attempt(&[0x8a, 0x06], &mut regs));
    verdicts.refused(format_args!("slot.read-own"), read);
    verdicts.quietly(format_args!("slot.overwritten"), !kept);
    let answer = extended(ext::NEW_BASEPTR, root.0, 0);
    verdicts.wanted(format_args!("slot.back"), answer, &[OK]);
    let answer = extended(ext::UNPIN_TABLE, own.0, 0);
    verdicts.wanted(format_args!("slot.unpin-own"), answer, &[OK]);
    memory::release_victim(0);
}

/// A root that contains itself.
fn loops(verdicts: &mut Verdicts) {
    let root = memory::root();
    for (name, flags) in [("rw", RW), ("ro", RO)] {
        let answer = update(root.addr() + 100 * 8, Pte::new(root, flags).0);
        verdicts.note(
            format_args!("loop.l4-in-itself.{name}"),
            answer,
            answer.is_refusal() || flags == RO && answer == OK,
        );
        update(root.addr() + 100 * 8, 0);
    }
    for level in [Level::L3, Level::L2] {
        let table = memory::table(level, memory::window(2)).unwrap_or(Mfn(0));
        let answer = update(table.addr() + 303 * 8, Pte::new(table, RW).0);
        verdicts.refused(format_args!("loop.{level:?}-in-itself"), answer);
        update(table.addr() + 303 * 8, 0);
    }
}

/// Stores by instruction to live tables: only those of the lowest level may take effect.
fn native_stores(verdicts: &mut Verdicts) {
    let window = memory::window(2);
    let at = |level: Level| {
        let table = memory::table(level, window).unwrap_or(Mfn(0));
        let index = if level == Level::L1 {
            level.index(GuestVa(window))
        } else {
            303
        };
        memory::va_of(table) + index as u64 * 8
    };
    let good = Pte::new(VICTIMS.mfn(1), RW).0;
    let bad = Pte::new(memory::root(), RW).0;
    for (name, code) in [
        ("mov", &[0x48, 0x89, 0x07][..]),
        ("mov-32", &[0x89, 0x07]),
        ("mov-8", &[0x88, 0x07]),
        ("xchg", &[0x48, 0x87, 0x07]),
        ("cmpxchg", &[0xf0, 0x48, 0x0f, 0xb1, 0x0f]),
        ("or", &[0xf0, 0x48, 0x09, 0x07]),
        ("add", &[0x48, 0x01, 0x07]),
        ("xadd", &[0xf0, 0x48, 0x0f, 0xc1, 0x07]),
        ("bts", &[0xf0, 0x48, 0x0f, 0xba, 0x2f, 0x01]),
        ("stos", &[0x48, 0xab]),
        ("movnti", &[0x48, 0x0f, 0xc3, 0x07]),
        ("movups", &[0x0f, 0x11, 0x07]),
        ("cmpxchg16b", &[0xf0, 0x48, 0x0f, 0xc7, 0x0f]),
        ("unaligned", &[0x48, 0x89, 0x47, 0x03]),
        ("across-pages", &[0x48, 0x89, 0x47, 0xfc]),
    ] {
        for level in [Level::L1, Level::L2, Level::L3, Level::L4] {
            for (what, value) in [("good", good), ("bad", bad)] {
                update(memory::entry_address(Level::L1, window), 0);
                let mut regs = Regs::marked();
                regs.rdi = at(level);
                if name == "across-pages" {
                    regs.rdi &= !0xfff;
                }
                (regs.rax, regs.rcx) = (value, value);
                if name == "cmpxchg" {
                    regs.rax = 0;
                }
                let before = memory::table_entry(memory::root(), 303);
                let answer = Answer::of_code(attempt(code, &mut regs));
                let entry = memory::entry(Level::L1, window).unwrap_or(Pte(0));
                let harmless = memory::table_entry(memory::root(), 303) == before
                    && !(entry.is_writable() && entry.frame() == memory::root())
                    && (level == Level::L1 || answer.is_refusal());
                verdicts.note(
                    format_args!("store.{name}.{level:?}.{what}"),
                    answer,
                    harmless,
                );
            }
        }
    }
    update(memory::entry_address(Level::L1, window), 0);
}

/// One frame in two uses.
fn types(verdicts: &mut Verdicts) {
    let frame = VICTIMS.mfn(2);
    let va = VICTIMS.va(2);
    (0..512).for_each(|word| VICTIMS.set(1024 + word, 0));
    let pin = |level: u32| extended(level - 1, frame.0, 0);
    verdicts.refused(format_args!("type.pin-writable"), pin(1));
    memory::map(va, frame, RO);
    verdicts.wanted(format_args!("type.pin-l1"), pin(1), &[OK]);
    verdicts.refused(format_args!("type.pin-l1-again"), pin(1));
    verdicts.refused(format_args!("type.pin-as-l2"), pin(2));
    verdicts.refused(format_args!("type.pin-as-l4"), pin(4));
    let answer = call(nr::UPDATE_VA_MAPPING, [va, Pte::new(frame, RW).0, 2, 0, 0]);
    verdicts.refused(format_args!("type.map-pinned-writable"), answer);
    SCRATCH.set(0, frame.0);
    let answer = call(nr::SET_GDT, [SCRATCH.va(0), 512, 0, 0, 0]);
    verdicts.refused(format_args!("type.gdt-of-pinned"), answer);
    let answer = update(frame.addr(), Pte::new(frame, RW).0);
    verdicts.refused(format_args!("type.l1-maps-itself"), answer);
    let answer = update(frame.addr(), Pte::new(frame, RO).0);
    verdicts.wanted(format_args!("type.l1-maps-itself-ro"), answer, &[OK]);
    update(frame.addr(), 0);
    let answer = extended(ext::UNPIN_TABLE, frame.0, 0);
    verdicts.wanted(format_args!("type.unpin"), answer, &[OK]);
    let answer = extended(ext::UNPIN_TABLE, frame.0, 0);
    verdicts.refused(format_args!("type.unpin-again"), answer);
    // Content that makes no table, in the last entry of all.
    let window = memory::window(3);
    memory::map(window, frame, RW);
    // SAFETY: just mapped, or the attack before was answered wrongly and is told.
    unsafe { ((window + 511 * 8) as *mut u64).write_volatile(Pte::new(memory::root(), RW).0) };
    memory::map(window, Mfn(0), 0);
    for level in 1..5 {
        verdicts.refused(format_args!("type.pin-bad-content-l{level}"), pin(level));
    }
    memory::release_victim(2);
    for command in 21..32 {
        let answer = extended(command, frame.0, 0);
        verdicts.refused(format_args!("type.unknown-operation-{command}"), answer);
    }
}

/// Counts and lists that reach too far.
fn counts(verdicts: &mut Verdicts) {
    let end = SCRATCH.va(3) + 4096 - 16;
    for (name, number) in [("mmu-update", nr::MMU_UPDATE), ("mmuext-op", nr::MMUEXT_OP)] {
        for (what, list, count) in [
            ("top", !0u64 - 15, 2),
            ("huge", memory::text(), 0x7fff_ffff),
            ("all-ones", end, 0xffff_ffff),
            ("hole", 0xffff_8300_0000_0000, 1),
            ("m2p", 0xffff_8000_0000_0000, 8),
            ("non-canonical", 0x8000_0000_0000, 1),
        ] {
            let answer = call(number, [list, count, 0, 0x7ff0, 0]);
            verdicts.refused(format_args!("count.{name}.{what}"), answer);
        }
        for domain in [
            0x7ff1,
            0x7ff2,
            0x7ff4,
            0x7fff,
            0xffff,
            0x1_0000,
            0xffff_ffff,
        ] {
            let answer = call(number, [SCRATCH.va(0), 1, 0, domain, 0]);
            verdicts.refused(format_args!("count.{name}.domain-{domain:#x}"), answer);
        }
    }
    for (va, name) in [
        (0xffff_8300_0000_0000u64, "hole"),
        (0xffff_8000_0000_0000, "m2p"),
        (0x8000_0000_0000, "non-canonical"),
        (0x1000, "no-table"),
    ] {
        let entry = Pte::new(VICTIMS.mfn(1), RW).0;
        let answer = call(nr::UPDATE_VA_MAPPING, [va, entry, 2, 0, 0]);
        verdicts.refused(format_args!("count.va-mapping.{name}"), answer);
    }
}
