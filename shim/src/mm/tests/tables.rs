//! Becoming a table and ceasing to be one: pins, bases, links.

use xen_abi::mmu::{FIRST_XEN_SLOT, Level, MmuUpdate, Pte};
use xen_abi::{Errno, Mfn, Pfn};

use super::super::{Flush, FrameUse, Ledger, MAX_REFERENCES, Mm, Owner, Tlb};
use super::machine::{
    END, HOLE, KERNEL_RO, KERNEL_RW, Machine, OUTSIDE, READ_ONLY, SHARED, SHIM, USER_RW, done,
};
use super::scan::Scan;
use crate::mem::Frames;
use crate::testing::FakeFrames;

fn request(table: Mfn, index: usize, val: u64) -> MmuUpdate {
    MmuUpdate {
        ptr: table.addr() + index as u64 * 8,
        val,
    }
}

#[test]
fn pinning_a_root_checks_and_adjusts_the_whole_tree() {
    let mut machine = Machine::new();
    let [l4, l3, l2, l1] = machine.tree();
    machine.poke(l1, 3, Mfn(20), KERNEL_RW);
    machine.poke(l1, 4, Mfn(21), USER_RW);
    machine.frames.store64(l1, 5 * 8, 0xdead_0000_beef_0ff8);
    assert_eq!(machine.mm().pin(Level::L4, l4), Ok(Flush::None));
    assert_eq!(
        machine.peek(l1, 3).flags(),
        KERNEL_RW | Pte::USER | Pte::GUEST_KERNEL
    );
    assert_eq!(machine.peek(l1, 4).flags(), USER_RW | Pte::GLOBAL);
    assert_eq!(
        machine.peek(l1, 5),
        Pte(0xdead_0000_beef_0ff8),
        "a swap entry"
    );
    for (table, kind) in [
        (l4, FrameUse::L4),
        (l3, FrameUse::L3),
        (l2, FrameUse::L2),
        (l1, FrameUse::L1),
        (Mfn(20), FrameUse::Writable),
    ] {
        assert_eq!(machine.ledger.used_as(table), kind);
        assert_eq!(machine.counts(table), (1, 0));
    }
    Scan::new(&machine).pin(Level::L4, l4).check();
    assert_eq!(machine.mm().unpin(l4), Ok(Flush::None));
    Scan::new(&machine).check();
}

#[test]
fn every_root_holds_the_shims_slots() {
    let mut machine = Machine::new();
    machine.poke(Mfn(4), FIRST_XEN_SLOT, SHIM, USER_RW);
    machine.poke(Mfn(4), FIRST_XEN_SLOT + 15, Mfn(4), USER_RW);
    assert_eq!(machine.mm().pin(Level::L4, Mfn(4)), Ok(Flush::None));
    Scan::new(&machine).pin(Level::L4, Mfn(4)).check();
    let update = request(Mfn(4), FIRST_XEN_SLOT + 15, 0);
    assert_eq!(update_entry(&mut machine, update), Err(Errno::EINVAL));
}

fn update_entry(machine: &mut Machine, request: MmuUpdate) -> Result<Flush, Errno> {
    let m2p = super::machine::FakeM2p::default();
    machine.mm().mmu_update(request, &m2p)
}

#[test]
fn a_pin_is_given_and_taken_once() {
    let mut machine = Machine::new();
    assert_eq!(machine.mm().pin(Level::L1, Mfn(4)), Ok(Flush::None));
    assert_eq!(machine.mm().pin(Level::L1, Mfn(4)), Err(Errno::EINVAL));
    assert_eq!(machine.mm().pin(Level::L2, Mfn(4)), Err(Errno::EINVAL));
    assert_eq!(machine.counts(Mfn(4)), (1, 0));
    assert_eq!(machine.mm().unpin(Mfn(4)), Ok(Flush::None));
    assert_eq!(machine.mm().unpin(Mfn(4)), Err(Errno::EINVAL));
    assert_eq!(machine.mm().unpin(OUTSIDE), Err(Errno::EINVAL));
}

#[test]
fn only_the_guests_own_frames_become_tables() {
    let mut machine = Machine::new();
    for mfn in [SHIM, SHARED, READ_ONLY, HOLE, OUTSIDE, Mfn(u64::MAX)] {
        for level in [Level::L1, Level::L2, Level::L3, Level::L4] {
            assert_eq!(machine.mm().pin(level, mfn), Err(Errno::EINVAL), "{mfn:?}");
        }
    }
    Scan::new(&machine).check();
}

#[test]
fn a_tree_that_is_bad_anywhere_is_refused_as_a_whole() {
    for bad in [
        Pte::new(SHIM, KERNEL_RO),
        Pte::new(HOLE, KERNEL_RO),
        Pte::new(OUTSIDE, KERNEL_RW),
        Pte::new(READ_ONLY, KERNEL_RW),
        Pte::new(Mfn(5), KERNEL_RW),
        Pte::new(Mfn(20), KERNEL_RW | Pte::PCD),
        Pte(!0),
    ] {
        let mut machine = Machine::new();
        let [l4, _, l2, l1] = machine.tree();
        machine.poke(l1, 0, Mfn(20), KERNEL_RW);
        machine.poke(l1, 1, Mfn(7), KERNEL_RO);
        machine.poke(l2, 1, Mfn(8), KERNEL_RW);
        machine.poke(l2, 2, Mfn(7), KERNEL_RW);
        machine.frames.store64(Mfn(8), 511 * 8, bad.0);
        assert_eq!(
            machine.mm().pin(Level::L4, l4),
            Err(Errno::EINVAL),
            "{bad:?}"
        );
        Scan::new(&machine).check();
    }
}

#[test]
fn no_table_names_itself_or_one_of_its_level() {
    for level in [Level::L2, Level::L3, Level::L4] {
        let mut machine = Machine::new();
        machine.poke(Mfn(4), 0, Mfn(4), USER_RW);
        assert_eq!(machine.mm().pin(level, Mfn(4)), Err(Errno::EINVAL));
        machine.poke(Mfn(4), 0, Mfn(0), 0);
        machine.poke(Mfn(5), 0, Mfn(4), USER_RW);
        assert_eq!(machine.mm().pin(level, Mfn(4)), Ok(Flush::None));
        assert_eq!(machine.mm().pin(level, Mfn(5)), Err(Errno::EINVAL));
        Scan::new(&machine).pin(level, Mfn(4)).check();
    }
}

#[test]
fn a_base_keeps_its_tree_until_the_next_is_loaded() {
    let mut machine = Machine::new();
    let [l4, ..] = machine.tree();
    let mut spaces = machine.mm().enter(l4, None).expect("good");
    done(machine.mm().pin(Level::L4, l4));
    done(machine.mm().unpin(l4));
    assert_eq!(machine.ledger.used_as(Mfn(7)), FrameUse::L1);
    assert_eq!(
        machine.mm().new_baseptr(&mut spaces, SHIM),
        Err(Errno::EINVAL)
    );
    assert_eq!(spaces.kernel(), l4);
    assert_eq!(
        machine.mm().new_baseptr(&mut spaces, Mfn(9)),
        Ok(Flush::Full)
    );
    assert_eq!(machine.ledger.used_as(Mfn(7)), FrameUse::None);
    assert_eq!(
        machine.mm().new_user_baseptr(&mut spaces, Mfn(9)),
        Ok(Flush::Full)
    );
    assert_eq!(machine.counts(Mfn(9)), (2, 0));
    Scan::new(&machine).spaces(&spaces).check();
    assert_eq!(
        machine.mm().new_user_baseptr(&mut spaces, Mfn(0)),
        Ok(Flush::Full)
    );
    assert_eq!(spaces.user(), None);
    assert_eq!(machine.mm().leave(&mut Some(spaces)), Ok(()));
    Scan::new(&machine).check();
}

#[test]
fn linking_a_table_checks_it_and_unlinking_flushes() {
    let mut machine = Machine::new();
    let [l4, _, l2, l1] = machine.tree();
    done(machine.mm().pin(Level::L4, l4));
    machine.poke(Mfn(8), 0, Mfn(20), KERNEL_RW);
    let link = request(l2, 1, Pte::new(Mfn(8), USER_RW).0);
    assert_eq!(update_entry(&mut machine, link), Ok(Flush::None));
    assert_eq!(machine.ledger.used_as(Mfn(8)), FrameUse::L1);
    Scan::new(&machine).pin(Level::L4, l4).check();
    let wrong = request(l2, 1, Pte::new(l4, USER_RW).0);
    assert_eq!(update_entry(&mut machine, wrong), Err(Errno::EINVAL));
    assert_eq!(machine.peek(l2, 1).frame(), Mfn(8));
    let other = request(l2, 1, Pte::new(l1, USER_RW).0);
    assert_eq!(update_entry(&mut machine, other), Ok(Flush::Full));
    assert_eq!(machine.ledger.used_as(Mfn(8)), FrameUse::None);
    assert_eq!(
        update_entry(&mut machine, request(l2, 0, 0)),
        Ok(Flush::Full)
    );
    Scan::new(&machine).pin(Level::L4, l4).check();
}

#[test]
fn a_frame_written_through_a_stale_translation_is_flushed_before_it_becomes_a_table() {
    let mut machine = Machine::new();
    machine.poke(Mfn(7), 0, Mfn(8), KERNEL_RW);
    done(machine.mm().pin(Level::L1, Mfn(7)));
    assert_eq!(
        update_entry(
            &mut machine,
            request(Mfn(7), 0, Pte::new(Mfn(8), KERNEL_RO).0)
        ),
        Ok(Flush::None)
    );
    done(machine.mm().pin(Level::L1, Mfn(8)));
    assert_eq!(machine.tlb.flushes.get(), 1);
    done(machine.mm().unpin(Mfn(8)));
    done(machine.mm().pin(Level::L1, Mfn(8)));
    assert_eq!(machine.tlb.flushes.get(), 1, "once is enough");
    machine
        .ledger
        .get_writable(Mfn(9), &machine.tlb)
        .expect("plain");
    machine.ledger.put_writable(Mfn(9));
    machine.ledger.note_full_flush();
    done(machine.mm().pin(Level::L1, Mfn(9)));
    assert_eq!(machine.tlb.flushes.get(), 1, "somebody flushed meanwhile");
}

#[test]
fn counts_refuse_rather_than_wrap() {
    let mut machine = Machine::new();
    machine
        .ledger
        .get_writable(Mfn(20), &machine.tlb)
        .expect("plain");
    done(machine.mm().pin(Level::L4, Mfn(4)));
    for mfn in [Mfn(20), Mfn(4)] {
        machine
            .ledger
            .force_counts(mfn, MAX_REFERENCES, Ledger::MAX_PLAIN);
    }
    assert_eq!(
        machine.ledger.get_writable(Mfn(20), &machine.tlb),
        Err(Errno::ENOMEM)
    );
    assert_eq!(machine.ledger.get_plain(Mfn(20)), Err(Errno::ENOMEM));
    assert_eq!(machine.mm().enter(Mfn(4), None), Err(Errno::ENOMEM));
    assert_eq!(machine.counts(Mfn(20)), (MAX_REFERENCES, Ledger::MAX_PLAIN));
    assert_eq!(machine.ledger.used_as(Mfn(20)), FrameUse::Writable);
}

#[test]
fn a_referenced_frame_does_not_change_hands() {
    let mut machine = Machine::new();
    machine.poke(Mfn(7), 0, Mfn(20), KERNEL_RW);
    machine.poke(Mfn(7), 1, Mfn(21), KERNEL_RO);
    done(machine.mm().pin(Level::L1, Mfn(7)));
    let m2p = super::machine::FakeM2p::default();
    for mfn in [Mfn(7), Mfn(20), Mfn(21)] {
        assert_eq!(machine.mm().release(mfn, &m2p), Err(Errno::EBUSY));
        assert_eq!(machine.ledger.reclaim(mfn), Err(Errno::EBUSY));
    }
    done(machine.mm().unpin(Mfn(7)));
    assert_eq!(machine.mm().release(Mfn(20), &m2p), Ok(Flush::Full));
    assert_eq!(m2p.get(Mfn(20)), u64::MAX);
    assert_eq!(machine.ledger.owner(Mfn(20)), Owner::GivenUp);
    for mfn in [Mfn(20), SHIM, SHARED, HOLE, OUTSIDE] {
        assert_eq!(machine.mm().release(mfn, &m2p), Err(Errno::EINVAL));
    }
    let before = machine.ledger.guest_frames();
    assert_eq!(machine.mm().populate(Mfn(20), Pfn(5), &m2p), Ok(()));
    assert_eq!(machine.ledger.guest_frames(), before + 1);
    assert_eq!(m2p.get(Mfn(20)), 5);
    for mfn in [SHIM, Mfn(20), HOLE, Mfn(END)] {
        let taken = machine.mm().populate(mfn, Pfn(5), &m2p);
        assert_eq!(taken, Err(Errno::EINVAL));
    }
}

struct NoFlush;

impl Tlb for NoFlush {
    fn flush_everything(&self) {
        unreachable!("nothing changes its use");
    }
}

#[test]
fn what_was_given_up_comes_back_in_the_opposite_order_and_is_nobodys_meanwhile() {
    // 2 GiB, of which the guest gives all up but the first MiB.
    const ALL: u64 = 512 << 10;
    let mut ledger = Ledger::new(Mfn(ALL), &[(Mfn(0), ALL)]).expect("memory");
    (0..ALL).for_each(|mfn| ledger.give_to_guest(Mfn(mfn)).expect("the shim's"));
    let mut given = (256..ALL).map(|index| Mfn(256 + (index * 77_777) % (ALL - 256)));
    for mfn in given.clone() {
        if ledger.owner(mfn) == Owner::Guest {
            ledger.give_up(mfn).expect("unused");
        }
    }
    let count = ledger.given_up_frames();
    assert_eq!(count + ledger.guest_frames(), ALL);
    let mut last = given.next_back().expect("there are some");
    assert_eq!(ledger.last_given_up(), Some(last));
    assert_eq!(ledger.get_plain(last), Err(Errno::EINVAL));
    assert_eq!(ledger.get_writable(last, &NoFlush), Err(Errno::EINVAL));
    assert_eq!(ledger.clear_pinned(last), None);
    let info = ledger.info(last).expect("in range");
    assert_eq!(
        (info.typed, info.plain, info.used_as),
        (0, 0, FrameUse::None)
    );
    for owner in [Owner::Guest, Owner::Shim, Owner::Nobody] {
        let taken = ledger.change_owner(last, Owner::GivenUp, owner);
        assert_eq!(taken, Err(Errno::EINVAL));
        assert_eq!(
            ledger.change_owner(last, owner, Owner::GivenUp),
            Err(Errno::EINVAL)
        );
    }
    assert_eq!(ledger.reclaim(last), Err(Errno::EINVAL));
    assert_eq!(ledger.give_later(last), Err(Errno::EINVAL));
    for left in (0..count).rev() {
        last = ledger.last_given_up().expect("there are more");
        let before = ledger.given_up_before(last);
        ledger.have_again(last).expect("the last");
        assert_eq!(ledger.last_given_up(), before);
        assert_eq!(ledger.given_up_frames(), left);
    }
    assert_eq!(ledger.last_given_up(), None);
    assert_eq!(ledger.guest_frames(), ALL);
}

/// Does something in as many steps as it takes, and settles it.  Returns the result, and how often
/// others had their turn, each time with everything in order.
fn in_steps<R: PartialEq>(
    machine: &mut Machine,
    mut act: impl FnMut(&mut Mm<'_, FakeFrames>) -> Result<R, Errno>,
) -> (Result<R, Errno>, u32) {
    let mut steps = 0;
    let mut look = |machine: &Machine| {
        Scan::new(machine).check();
        machine.ledger.work().note_look();
        steps += 1;
        assert!(steps < 4000, "it comes to no end");
    };
    let mut result = act(&mut machine.mm());
    while result == Err(Errno::ERESTART) {
        look(machine);
        result = act(&mut machine.mm());
    }
    while machine.mm().finish_releases().is_err() {
        look(machine);
    }
    (result, steps)
}

#[test]
fn the_shortest_step_comes_further() {
    for end in [Pte::new(Mfn(20), KERNEL_RW), Pte::new(SHIM, KERNEL_RW)] {
        let mut machine = Machine::new();
        let [l4, _, l2, _] = machine.tree();
        machine.frames.store64(Mfn(8), 511 * 8, end.0);
        machine.poke(l2, 511, Mfn(8), USER_RW);
        machine.ledger.set_step(1);
        let (pinned, turns) = in_steps(&mut machine, |mm| mm.pin(Level::L4, l4));
        assert!(turns > 1000, "{turns}");
        if end.frame() == SHIM {
            assert_eq!(pinned, Err(Errno::EINVAL));
        } else {
            assert_eq!(pinned, Ok(Flush::None));
            Scan::new(&machine).pin(Level::L4, l4).check();
            let (unpinned, turns) = in_steps(&mut machine, |mm| mm.unpin(l4));
            assert_eq!(unpinned, Ok(Flush::None));
            assert!(turns > 3 * 500, "{turns}");
        }
        assert_eq!(machine.ledger.used_as(l4), FrameUse::None);
        Scan::new(&machine).check();
    }
}
