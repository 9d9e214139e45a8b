//! Emulated stores to live L1 entries.

use xen_abi::mmu::{Level, Pte};
use xen_abi::{Errno, Mfn};

use super::machine::{HOLE, KERNEL_RO, KERNEL_RW, Machine, OUTSIDE, SHIM, USER_RW, done};
use super::scan::Scan;
use crate::emulate::ptstore::Entry;

const L1: Mfn = Mfn(7);

fn live() -> Machine {
    let mut machine = Machine::new();
    machine.poke(L1, 0, Mfn(20), USER_RW);
    done(machine.mm().pin(Level::L1, L1));
    machine
}

/// Stores in entry `index` of the table.
fn store(
    machine: &mut Machine,
    index: usize,
    expected: Option<u64>,
    new: Pte,
) -> Result<bool, Errno> {
    let mut mm = machine.mm();
    let mut entry = mm.live_entry(L1, index * 8).expect("live");
    entry.store(expected, new.0)
}

fn check(machine: &Machine) {
    Scan::new(machine).pin(Level::L1, L1).check();
}

#[test]
fn clearing_an_entry_drops_its_reference() {
    for exact in [false, true] {
        let mut machine = live();
        let before = machine.peek(L1, 0).0;
        let expected = exact.then_some(before);
        assert_eq!(store(&mut machine, 0, expected, Pte(0)), Ok(true));
        assert_eq!(machine.counts(Mfn(20)), (0, 0));
        check(&machine);
    }
}

#[test]
fn a_new_entry_is_adjusted_and_counted() {
    for expected in [None, Some(0)] {
        let mut machine = live();
        let new = Pte::new(Mfn(21), KERNEL_RW);
        assert_eq!(store(&mut machine, 1, expected, new), Ok(true));
        let adjusted = new.with(Pte::USER | Pte::GUEST_KERNEL);
        assert_eq!(machine.peek(L1, 1), adjusted);
        assert_eq!(machine.counts(Mfn(21)), (1, 0));
        check(&machine);
    }
}

#[test]
fn an_exchange_needs_the_entry_that_was_expected() {
    let mut machine = live();
    let before = machine.peek(L1, 0).0;
    for wrong in [
        before ^ Pte::DIRTY,
        before ^ Pte::RW,
        before & !Pte::PRESENT,
        0,
    ] {
        let new = Pte::new(Mfn(21), KERNEL_RO);
        assert_eq!(store(&mut machine, 0, Some(wrong), new), Ok(false));
        assert_eq!(machine.peek(L1, 0).0, before);
        check(&machine);
    }
}

#[test]
fn write_protection_turns_a_writable_reference_into_a_plain_one() {
    let mut machine = live();
    let before = machine.peek(L1, 0);
    let protected = before.without(Pte::RW);
    let stored = store(&mut machine, 0, Some(before.0), protected);
    assert_eq!(stored, Ok(true));
    assert_eq!(machine.counts(Mfn(20)), (0, 1));
    let old = store(&mut machine, 0, Some(protected.0), protected.with(Pte::NX));
    assert_eq!(old, Ok(true));
    assert_eq!(machine.counts(Mfn(20)), (0, 1));
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
        for expected in [None, Some(before.0)] {
            let refused = store(&mut machine, 0, expected, new);
            assert_eq!(refused, Err(Errno::EINVAL));
        }
    }
    assert_eq!(machine.peek(L1, 0), before);
    check(&machine);
}

#[test]
fn only_entries_of_live_l1_tables_are_changed_this_way() {
    let mut machine = live();
    machine.poke(Mfn(6), 0, L1, USER_RW);
    done(machine.mm().pin(Level::L2, Mfn(6)));
    let mut mm = machine.mm();
    for table in [Mfn(6), Mfn(20), SHIM, HOLE, OUTSIDE] {
        assert!(mm.live_entry(table, 0).is_none(), "{table:?}");
    }
    for offset in [4096, usize::MAX] {
        assert!(mm.live_entry(L1, offset).is_none());
    }
    assert!(mm.live_entry(L1, 4095).is_some());
}

#[test]
fn a_read_only_alias_of_the_table_is_no_obstacle() {
    let mut machine = live();
    let alias = Pte::new(L1, KERNEL_RO);
    assert_eq!(store(&mut machine, 2, None, alias), Ok(true));
    assert_eq!(machine.counts(L1), (1, 1));
    check(&machine);
}
