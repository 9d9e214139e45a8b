//! What a CPU may still remember of a frame when it becomes something else: the change is flushed
//! first, within the list of operations and not at its end, and no oftener than it must be.

use xen_abi::mmu::{Level, MmuUpdate, Pte, UvmFlags};
use xen_abi::{GuestVa, Mfn};

use super::super::{AddressSpaces, Flush, FrameUse, Mm};
use super::machine::{FakeM2p, KERNEL_RO, KERNEL_RW, Machine, SHIM, USER_RW, done};
use crate::testing::FakeFrames;

/// The L1 table at the end of the tree.
const L1: Mfn = Mfn(7);
const L2: Mfn = Mfn(6);

type Fake<'a> = Mm<'a, FakeFrames>;

fn set(mm: &mut Fake<'_>, table: Mfn, index: usize, pte: Pte) -> Flush {
    let ptr = table.addr() + index as u64 * 8;
    let request = MmuUpdate { ptr, val: pte.0 };
    let set = mm.mmu_update(request, &FakeM2p::default());
    set.expect("its own")
}

/// Makes a machine whose CPU 0 runs on a tree and knows all of it.
fn running() -> (Machine, AddressSpaces) {
    let mut machine = Machine::new();
    let [l4, ..] = machine.tree();
    machine.poke(Mfn(9), 0, Mfn(20), KERNEL_RW);
    let spaces = machine.mm().enter(l4, None).expect("good tables");
    machine.run(0, &spaces);
    (machine, spaces)
}

/// Makes something else of a table, that holds the entry if it is for the guest to say.
type Use = fn(&mut Fake<'_>, Pte);

#[test]
fn a_table_that_may_still_be_walked_is_forgotten_before_it_is_anything_else() {
    let evil = Pte::new(SHIM, USER_RW);
    let uses: [(&str, Use); 8] = [
        ("a raw store", |mm, evil| {
            let _ = set(mm, L1, 1, evil);
        }),
        ("a cleared page", |mm, _| {
            mm.clear_page(L1).expect("data");
        }),
        ("a copy", |mm, _| mm.copy_page(L1, Mfn(9)).expect("data")),
        ("a hypercall page", |mm, _| {
            mm.fill_page(L1, &[0xcc; 4096]).expect("data");
        }),
        ("a descriptor", |mm, _| {
            mm.update_descriptor(L1.addr(), 0x00cf_9300_0000_ffff)
                .expect("data");
        }),
        ("descriptors", |mm, _| {
            mm.get_descriptors(L1).expect("all zero");
        }),
        ("another table", |mm, _| {
            done(mm.pin(Level::L2, L1));
        }),
        ("what a device writes", |mm, _| {
            mm.ledger.get_writable(L1, mm.tlb).expect("data");
        }),
    ];
    for (name, becomes) in uses {
        let (mut machine, _spaces) = running();
        assert_eq!(machine.ledger.used_as(L1), FrameUse::L1);
        // One list: the flush that the first request owes comes after the second.
        let mut mm = machine.mm();
        assert_eq!(set(&mut mm, L2, 0, Pte(0)), Flush::Full);
        becomes(&mut mm, evil);
        assert_eq!(machine.tlb.flushes.get(), 1, "{name}");
        machine.check_cpus();
    }
}

#[test]
fn what_it_was_before_a_frame_may_be_again_at_once() {
    let (mut machine, spaces) = running();
    let mut mm = machine.mm();
    let link = mm.frames.words(L2)[0];
    assert_eq!(set(&mut mm, L2, 0, Pte(0)), Flush::Full);
    assert_eq!(set(&mut mm, L2, 0, Pte(link)), Flush::None);
    let page = |flags| Pte::new(Mfn(21), flags);
    for pte in [page(KERNEL_RW), page(KERNEL_RO), page(KERNEL_RW), Pte(0)] {
        assert_eq!(set(&mut mm, L1, 0, pte), Flush::None);
    }
    assert_eq!(machine.tlb.flushes.get(), 0);
    machine.run(0, &spaces);
    machine.check_cpus();
}

#[test]
fn a_table_that_was_only_looked_at_needs_no_flush() {
    let mut machine = Machine::new();
    machine.poke(Mfn(7), 3, SHIM, KERNEL_RW);
    for _ in 0..3 {
        assert!(machine.mm().pin(Level::L1, Mfn(7)).is_err());
        done(machine.mm().pin(Level::L1, Mfn(8)));
        done(machine.mm().unpin(Mfn(8)));
        for frame in [Mfn(7), Mfn(8)] {
            machine
                .ledger
                .open_for_stores(frame, &machine.tlb)
                .expect("data");
        }
    }
    assert_eq!(machine.tlb.flushes.get(), 0);
}

/// Linux pins each L1 table besides the root, and gives them back one by one when a process ends.
#[test]
fn a_process_that_ends_costs_one_flush_however_many_tables_it_has() {
    let mut machine = Machine::new();
    let [l4, _, l2, _] = machine.tree();
    let tables = [7, 8, 9, 10, 11, 12].map(Mfn);
    for (index, table) in tables.into_iter().enumerate() {
        machine.poke(l2, index, table, USER_RW);
        machine.poke(table, 0, Mfn(30), USER_RW);
    }
    // The kernel's own tables, through which it maps those of the process.
    for (table, child) in [(20, 21), (21, 22), (22, 23)] {
        machine.poke(Mfn(table), 0, Mfn(child), KERNEL_RW);
    }
    let kernel = machine.mm().enter(Mfn(20), None).expect("good tables");
    let process = machine.mm().enter(l4, None).expect("good tables");
    done(machine.mm().pin(Level::L4, l4));
    for table in tables {
        done(machine.mm().pin(Level::L1, table));
    }
    machine.run(1, &process);
    assert_eq!(machine.mm().leave(&mut Some(process)), Ok(()));
    machine.run(0, &kernel);
    let flushes = machine.tlb.flushes.get();
    done(machine.mm().unpin(l4));
    for (index, table) in tables.into_iter().enumerate() {
        done(machine.mm().unpin(table));
        let (va, pte) = (GuestVa(index as u64 * 4096), Pte::new(table, KERNEL_RW));
        let mut mm = machine.mm();
        done(mm.update_va_mapping(kernel.kernel(), va, pte, UvmFlags::NONE));
        machine.run(0, &kernel);
        machine.check_cpus();
    }
    assert_eq!(machine.tlb.flushes.get() - flushes, 1);
}
