//! Emulated stores to live L1 entries.

use xen_abi::mmu::{Level, Pte};
use xen_abi::{Errno, Mfn};

use super::super::Store;
use super::machine::{KERNEL_RO, KERNEL_RW, Machine, SHIM, USER_RW};
use super::scan::Scan;
use crate::mem::Frames;

const L1: Mfn = Mfn(7);

fn live() -> Machine {
    let mut machine = Machine::new();
    machine.poke(L1, 0, Mfn(20), USER_RW);
    machine.mm().pin(Level::L1, L1).expect("good");
    machine
}

fn check(machine: &Machine) {
    Scan::new(machine).pin(Level::L1, L1).check();
}

#[test]
fn an_exchange_returns_the_entry_and_drops_its_reference() {
    let mut machine = live();
    let before = machine.peek(L1, 0);
    let seen = machine.mm().store_l1(L1, 0, 8, Store::Write(0));
    assert_eq!(seen, Ok(before.0));
    assert_eq!(machine.counts(Mfn(20)), (0, 0));
    check(&machine);
}

#[test]
fn a_new_entry_is_adjusted_and_counted() {
    let mut machine = live();
    let new = Pte::new(Mfn(21), KERNEL_RW);
    let mut mm = machine.mm();
    assert_eq!(mm.store_l1(L1, 8, 8, Store::Write(new.0)), Ok(0));
    assert_eq!(machine.peek(L1, 1), new.with(Pte::USER | Pte::GUEST_KERNEL));
    assert_eq!(machine.counts(Mfn(21)), (1, 0));
    check(&machine);
}

#[test]
fn a_comparison_decides_and_reports_what_is_there() {
    let mut machine = live();
    let before = machine.peek(L1, 0).0;
    let new = Pte::new(Mfn(21), KERNEL_RO).0;
    let old = before ^ Pte::DIRTY;
    let miss = Store::CompareExchange { old, new };
    assert_eq!(machine.mm().store_l1(L1, 0, 8, miss), Ok(before));
    assert_eq!(machine.peek(L1, 0).0, before);
    let hit = Store::CompareExchange { old: before, new };
    assert_eq!(machine.mm().store_l1(L1, 0, 8, hit), Ok(before));
    assert_eq!(machine.peek(L1, 0).frame(), Mfn(21));
    check(&machine);
}

#[test]
fn bits_are_cleared_and_set_in_place() {
    let mut machine = live();
    let before = machine.peek(L1, 0).0;
    let mut mm = machine.mm();
    let seen = mm.store_l1(L1, 0, 8, Store::And(!Pte::RW));
    assert_eq!(seen, Ok(before));
    assert_eq!(machine.counts(Mfn(20)), (0, 1), "write protected");
    let mut mm = machine.mm();
    mm.store_l1(L1, 0, 8, Store::Or(Pte::RW)).expect("plain");
    mm.store_l1(L1, 0, 1, Store::And(!Pte::ACCESSED))
        .expect("plain");
    mm.store_l1(L1, 4, 4, Store::Xor(1 << 31)).expect("NX");
    assert_eq!(machine.peek(L1, 0).0, before & !Pte::ACCESSED | Pte::NX);
    assert_eq!(machine.counts(Mfn(20)), (1, 0));
    check(&machine);
}

#[test]
fn narrow_stores_are_merged_into_the_entry() {
    let mut machine = live();
    let before = machine.peek(L1, 0).0;
    let mut mm = machine.mm();
    let low = mm.store_l1(L1, 0, 4, Store::Write(!0 << 32));
    assert_eq!(low, Ok(before & 0xffff_ffff), "only the operand counts");
    assert_eq!(machine.peek(L1, 0).0, 0);
    let mut mm = machine.mm();
    mm.store_l1(L1, 7, 1, Store::Add(0x180))
        .expect("not present");
    mm.store_l1(L1, 2, 2, Store::Write(0x1234))
        .expect("not present");
    assert_eq!(machine.peek(L1, 0).0, 0x8000_0000_1234_0000);
    check(&machine);
}

#[test]
fn what_a_hypercall_would_refuse_is_refused() {
    let mut machine = live();
    let before = machine.peek(L1, 0);
    for new in [
        Pte::new(SHIM, KERNEL_RO),
        Pte::new(L1, KERNEL_RW),
        Pte::new(Mfn(21), KERNEL_RW | Pte::PSE),
    ] {
        let refused = machine.mm().store_l1(L1, 0, 8, Store::Write(new.0));
        assert_eq!(refused, Err(Errno::EINVAL));
    }
    for (table, offset, width) in [
        (Mfn(20), 0, 8),
        (SHIM, 0, 8),
        (Mfn(1 << 50), 0, 8),
        (L1, 4, 8),
        (L1, 4096, 8),
        (L1, usize::MAX, 1),
        (L1, 0, 3),
        (L1, 0, 0),
    ] {
        let refused = machine.mm().store_l1(table, offset, width, Store::Write(0));
        assert_eq!(refused, Err(Errno::EINVAL));
    }
    assert_eq!(machine.peek(L1, 0), before);
    check(&machine);
}

#[test]
fn a_read_only_alias_of_the_table_is_no_obstacle() {
    let mut machine = live();
    let alias = Pte::new(L1, KERNEL_RO).0;
    let mut mm = machine.mm();
    mm.store_l1(L1, 16, 8, Store::Write(alias)).expect("plain");
    assert_eq!(machine.frames.load64(L1, 16) & Pte::RW, 0);
    check(&machine);
}
