//! What the guest may map, and how entries are changed by hypercall.

use xen_abi::mmu::{Level, MmuUpdate, Pte, UvmFlags, update};
use xen_abi::{Errno, GuestVa, Mfn};

use super::super::{Flush, FrameUse};
use super::machine::{
    HOLE, KERNEL_RO, KERNEL_RW, Machine, OUTSIDE, READ_ONLY, SHARED, SHIM, USER_RW, done,
};
use super::scan::Scan;
use crate::mem::Frames;

/// Makes a machine whose frame 4 is the root of a live tree; frame 7 translates the first 2 MiB.
fn live() -> Machine {
    let mut machine = Machine::new();
    let [l4, ..] = machine.tree();
    done(machine.mm().pin(Level::L4, l4));
    machine
}

fn map(machine: &mut Machine, va: u64, frame: Mfn, flags: u64) -> Result<Flush, Errno> {
    let pte = Pte::new(frame, flags);
    let mut mm = machine.mm();
    mm.update_va_mapping(Mfn(4), GuestVa(va), pte, UvmFlags::NONE)
}

#[test]
fn a_table_is_mapped_read_only_or_not_at_all() {
    let mut machine = live();
    for table in [4, 5, 6, 7].map(Mfn) {
        assert_eq!(map(&mut machine, 0, table, KERNEL_RW), Err(Errno::EINVAL));
        assert_eq!(map(&mut machine, 0, table, KERNEL_RO), Ok(Flush::None));
    }
    machine.mm().get_descriptors(Mfn(9)).expect("all zero");
    assert_eq!(map(&mut machine, 0, Mfn(9), USER_RW), Err(Errno::EINVAL));
    Scan::new(&machine)
        .pin(Level::L4, Mfn(4))
        .descriptors(Mfn(9))
        .check();
}

#[test]
fn a_writable_page_is_no_table_until_its_last_writable_mapping_goes() {
    let mut machine = live();
    done(map(&mut machine, 0, Mfn(20), KERNEL_RW));
    done(map(&mut machine, 0x1000, Mfn(20), USER_RW));
    for va in [0, 0x1000] {
        assert_eq!(machine.mm().pin(Level::L1, Mfn(20)), Err(Errno::EINVAL));
        assert_eq!(
            machine.mm().get_descriptors(Mfn(20)),
            Err(Errno::EINVAL),
            "nor descriptors"
        );
        done(map(&mut machine, va, Mfn(20), KERNEL_RO));
    }
    assert_eq!(machine.counts(Mfn(20)), (0, 2));
    assert_eq!(machine.mm().pin(Level::L1, Mfn(20)), Ok(Flush::None));
}

#[test]
fn foreign_frames_are_mapped_as_far_as_they_are_lent() {
    let mut machine = live();
    for frame in [SHIM, HOLE, OUTSIDE, Mfn((1 << 40) - 1)] {
        for flags in [KERNEL_RO, KERNEL_RW] {
            assert_eq!(map(&mut machine, 0, frame, flags), Err(Errno::EINVAL));
        }
    }
    assert_eq!(
        map(&mut machine, 0, READ_ONLY, KERNEL_RW),
        Err(Errno::EINVAL)
    );
    assert_eq!(map(&mut machine, 0, READ_ONLY, KERNEL_RO), Ok(Flush::None));
    assert_eq!(
        map(&mut machine, 0x1000, SHARED, KERNEL_RW),
        Ok(Flush::None)
    );
    assert_eq!(
        map(&mut machine, 0x2000, SHARED, KERNEL_RO),
        Ok(Flush::None)
    );
    Scan::new(&machine).pin(Level::L4, Mfn(4)).check();
}

#[test]
fn a_refused_entry_leaves_the_old_one() {
    let mut machine = live();
    done(map(&mut machine, 0, Mfn(20), KERNEL_RW));
    let before = machine.peek(Mfn(7), 0);
    assert_eq!(map(&mut machine, 0, Mfn(4), USER_RW), Err(Errno::EINVAL));
    let uncached = map(&mut machine, 0, Mfn(21), USER_RW | Pte::PCD);
    assert_eq!(uncached, Err(Errno::EINVAL));
    assert_eq!(machine.peek(Mfn(7), 0), before);
    Scan::new(&machine).pin(Level::L4, Mfn(4)).check();
}

#[test]
fn an_update_through_an_address_needs_tables_there() {
    let mut machine = live();
    for va in [
        0x20_0000,
        0x8000_0000_0000,
        0xffff_8000_0000_0000,
        0xffff_87ff_ffff_f000,
        0xffff_ffff_8000_0000,
        u64::MAX,
    ] {
        assert_eq!(
            map(&mut machine, va, Mfn(20), KERNEL_RW),
            Err(Errno::EINVAL)
        );
    }
    let mut mm = machine.mm();
    let mut set = |root, flags| mm.update_va_mapping(root, GuestVa(0x3123), Pte(0), flags);
    assert_eq!(
        set(Mfn(4), UvmFlags(6)),
        Ok(Flush::Page(GuestVa(0x3123))),
        "as asked"
    );
    assert_eq!(set(Mfn(4), UvmFlags::TLB_FLUSH), Ok(Flush::Full));
    for no_root in [Mfn(5), Mfn(20), SHIM, OUTSIDE] {
        assert_eq!(set(no_root, UvmFlags::NONE), Err(Errno::EINVAL));
    }
}

#[test]
fn an_address_is_found_in_its_table() {
    let mut machine = live();
    done(map(&mut machine, 0x3000, Mfn(20), KERNEL_RO));
    let found = machine.mm().walk(Mfn(4), GuestVa(0x3fff)).expect("tables");
    assert_eq!((found.table, found.index), (Mfn(7), 3));
    assert_eq!(found.entry.frame(), Mfn(20));
    assert_eq!(machine.mm().walk(Mfn(4), GuestVa(1 << 30)), None);
}

fn send(machine: &mut Machine, ptr: u64, val: u64) -> Result<Flush, Errno> {
    let m2p = std::mem::take(&mut machine.m2p);
    let result = machine.mm().mmu_update(MmuUpdate { ptr, val }, &m2p);
    machine.m2p = m2p;
    result
}

#[test]
fn accessed_and_dirty_bits_survive_only_when_asked_for() {
    let mut machine = live();
    let flags = Pte::PRESENT | Pte::RW | Pte::USER;
    let entry = Mfn(7).addr();
    let new = Pte::new(Mfn(20), flags).0;
    done(send(&mut machine, entry, new));
    machine
        .frames
        .fetch_or64(Mfn(7), 0, Pte::ACCESSED | Pte::DIRTY);
    let read_only = Pte::new(Mfn(20), flags & !Pte::RW).0;
    done(send(&mut machine, entry | update::PRESERVE_AD, read_only));
    assert!(machine.peek(Mfn(7), 0).has(Pte::ACCESSED | Pte::DIRTY));
    assert_eq!(machine.counts(Mfn(20)), (0, 1));
    done(send(&mut machine, entry, read_only));
    assert!(!machine.peek(Mfn(7), 0).has(Pte::DIRTY));
}

#[test]
fn an_update_of_plain_memory_is_a_plain_store() {
    let mut machine = live();
    for frame in [Mfn(20), SHARED] {
        let sent = send(&mut machine, frame.addr() + 16, 0x1234_5678_9abc_def1);
        assert_eq!(sent, Ok(Flush::None));
        assert_eq!(machine.peek(frame, 2), Pte(0x1234_5678_9abc_def1));
    }
    machine.mm().get_descriptors(Mfn(9)).expect("all zero");
    for frame in [Mfn(9), SHIM, READ_ONLY, HOLE, OUTSIDE] {
        assert_eq!(send(&mut machine, frame.addr(), 0), Err(Errno::EINVAL));
    }
    assert_eq!(send(&mut machine, !7, 0), Err(Errno::EINVAL));
    assert_eq!(
        send(&mut machine, Mfn(20).addr() | 4, 0),
        Err(Errno::ENOSYS)
    );
}

#[test]
fn the_guest_names_its_own_frames_only() {
    let mut machine = live();
    for frame in [Mfn(4), Mfn(20), SHARED] {
        let sent = send(&mut machine, frame.addr() | update::MACHPHYS, 77);
        assert_eq!(sent, Ok(Flush::None));
        assert_eq!(machine.m2p.get(frame), 77);
    }
    for frame in [SHIM, READ_ONLY, HOLE, OUTSIDE] {
        let sent = send(&mut machine, frame.addr() | update::MACHPHYS, 77);
        assert_eq!(sent, Err(Errno::EINVAL));
    }
}

#[test]
fn pages_are_cleared_and_copied_unless_they_are_tables() {
    let mut machine = live();
    machine.poke(Mfn(20), 511, Mfn(1), 5);
    let l1 = machine.peek(Mfn(6), 0);
    assert_eq!(machine.mm().copy_page(Mfn(21), Mfn(20)), Ok(()));
    assert_eq!(machine.peek(Mfn(21), 511), Pte::new(Mfn(1), 5));
    assert_eq!(machine.mm().copy_page(Mfn(21), Mfn(6)), Ok(()));
    assert_eq!(machine.peek(Mfn(21), 0), l1);
    assert_eq!(machine.mm().clear_page(Mfn(20)), Ok(()));
    assert_eq!(machine.peek(Mfn(20), 511), Pte(0));
    for bad in [Mfn(4), Mfn(7), SHIM, READ_ONLY, HOLE, OUTSIDE] {
        assert_eq!(machine.mm().clear_page(bad), Err(Errno::EINVAL));
        assert_eq!(machine.mm().copy_page(bad, Mfn(20)), Err(Errno::EINVAL));
    }
    for bad in [SHIM, HOLE, OUTSIDE] {
        assert_eq!(machine.mm().copy_page(Mfn(20), bad), Err(Errno::EINVAL));
    }
    assert_eq!(machine.ledger.used_as(Mfn(20)), FrameUse::None);
}
