//! Descriptors and the pages that hold them.

use xen_abi::mmu::{Level, Pte};
use xen_abi::{Errno, GuestVa, Mfn};

use super::super::{FrameUse, check_descriptor, check_ldt};
use super::machine::{KERNEL_RO, KERNEL_RW, Machine, OUTSIDE, SHARED, SHIM, done};
use super::scan::Scan;
use crate::mem::Frames;

const CODE64_RING0: u64 = 0x00af_9b00_0000_ffff;
const DATA_RING3: u64 = 0x00cf_f300_0000_ffff;
const TSS: u64 = 0x0000_8900_0000_0067;
const CALL_GATE: u64 = 0x0000_ec00_0010_0000;

#[test]
fn segments_get_ring_3_and_gates_are_refused() {
    assert_eq!(check_descriptor(0), Ok(0));
    assert_eq!(check_descriptor(CODE64_RING0), Ok(0x00af_fb00_0000_ffff));
    assert_eq!(check_descriptor(DATA_RING3), Ok(DATA_RING3));
    assert_eq!(check_descriptor(TSS), Err(Errno::EINVAL));
    assert_eq!(check_descriptor(CALL_GATE), Err(Errno::EINVAL));
    // 64-bit and 32-bit code at once; as data the bits mean something else.
    let both = CODE64_RING0 | 1 << 54;
    assert_eq!(check_descriptor(both), Err(Errno::EINVAL));
    assert!(check_descriptor(both & !(1 << 43)).is_ok());
    let absent = CALL_GATE & !(1 << 47);
    assert_eq!(check_descriptor(absent), Ok(absent));
    for kind in 1..16 {
        let system = 1 << 47 | kind << 40;
        assert_eq!(check_descriptor(system), Err(Errno::EINVAL));
    }
}

#[test]
fn a_page_of_descriptors_is_checked_once_and_as_a_whole() {
    let mut machine = Machine::new();
    machine.frames.store64(Mfn(9), 16, CODE64_RING0);
    machine.mm().get_gdt(&[Mfn(9), Mfn(9)]).expect("good");
    assert_eq!(machine.peek(Mfn(9), 2), Pte(0x00af_fb00_0000_ffff));
    assert_eq!(machine.counts(Mfn(9)), (2, 0));
    machine.frames.store64(Mfn(10), 511 * 8, CALL_GATE);
    for bad in [Mfn(10), SHIM, SHARED, OUTSIDE] {
        let refused = machine.mm().get_gdt(&[Mfn(9), Mfn(11), bad]);
        assert_eq!(refused, Err(Errno::EINVAL));
    }
    Scan::new(&machine)
        .descriptors(Mfn(9))
        .descriptors(Mfn(9))
        .check();
    machine.mm().put_gdt(&[Mfn(9), Mfn(9)]);
    assert_eq!(machine.ledger.used_as(Mfn(9)), FrameUse::None);
}

#[test]
fn a_descriptor_is_stored_in_descriptor_pages_and_plain_memory() {
    let mut machine = Machine::new();
    machine.mm().get_descriptors(Mfn(9)).expect("all zero");
    done(machine.mm().pin(Level::L1, Mfn(7)));
    for mfn in [Mfn(9), Mfn(20)] {
        let at = mfn.addr() + 0xff8;
        let stored = machine.mm().update_descriptor(at, CODE64_RING0);
        assert_eq!(stored, Ok(()));
        assert_eq!(machine.peek(mfn, 511), Pte(0x00af_fb00_0000_ffff));
        let refused = machine.mm().update_descriptor(at, TSS);
        assert_eq!(refused, Err(Errno::EINVAL));
    }
    for at in [
        Mfn(9).addr() + 4,
        Mfn(7).addr(),
        SHIM.addr(),
        OUTSIDE.addr(),
        !7,
    ] {
        let refused = machine.mm().update_descriptor(at, DATA_RING3);
        assert_eq!(refused, Err(Errno::EINVAL));
    }
}

#[test]
fn an_ldt_lies_in_the_guests_address_space() {
    let page = 0x1000;
    assert_eq!(check_ldt(GuestVa(7), 0), Ok(()));
    for base in [0, page, 0x7fff_ffff_f000, 0xffff_8800_0000_0000] {
        assert_eq!(check_ldt(GuestVa(base), 512), Ok(()));
    }
    for (base, entries) in [
        (page, 8193),
        (page, u64::MAX),
        (8, 1),
        (0x7fff_ffff_f000, 513),
        (0x8000_0000_0000, 1),
        (0xffff_8000_0000_0000, 1),
        (0xffff_87ff_ffff_f000, 1024),
        (0xffff_ffff_ffff_f000, 513),
    ] {
        assert_eq!(check_ldt(GuestVa(base), entries), Err(Errno::EINVAL));
    }
}

#[test]
fn an_ldt_page_is_taken_from_the_guests_tables() {
    let mut machine = Machine::new();
    let [l4, _, _, l1] = machine.tree();
    machine.poke(l1, 1, Mfn(20), KERNEL_RO);
    machine.poke(l1, 2, Mfn(21), KERNEL_RW);
    done(machine.mm().pin(Level::L4, l4));
    let mut mm = machine.mm();
    assert_eq!(mm.get_ldt_page(l4, GuestVa(0x1000)), Ok(Mfn(20)));
    assert_eq!(mm.get_ldt_page(l4, GuestVa(0x2000)), Err(Errno::EINVAL));
    assert_eq!(mm.get_ldt_page(l4, GuestVa(0x3000)), Err(Errno::EFAULT));
    assert_eq!(mm.get_ldt_page(l4, GuestVa(1 << 40)), Err(Errno::EFAULT));
    Scan::new(&machine)
        .pin(Level::L4, l4)
        .descriptors(Mfn(20))
        .check();
}

#[test]
fn a_page_written_through_a_stale_translation_is_flushed_before_it_is_checked() {
    let mut machine = Machine::new();
    machine
        .ledger
        .get_writable(Mfn(9), &machine.tlb)
        .expect("plain");
    machine.ledger.put_writable(Mfn(9));
    machine.mm().get_descriptors(Mfn(9)).expect("all zero");
    assert_eq!(machine.tlb.flushes.get(), 1);
}
