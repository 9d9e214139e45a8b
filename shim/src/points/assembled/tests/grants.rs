//! The guest's calls for its grant table.

use xen_abi::grant::{
    CopyOp, MapGrantRef, QuerySize, SetupTable, UnmapGrantRef, map_flags, op, status,
};
use xen_abi::{DomId, GuestVa, Mfn};

use super::world::World;
use crate::host::HostEvent;
use crate::mem::Frames;
use crate::mm::work::LONGEST_STEP;
use crate::testing::Bench;

#[test]
fn the_guests_grant_table_is_shared_with_it_and_listed() {
    let mut world = World::started();
    let (at, list) = (world.bench.page(0), world.bench.page(1));
    let setup = SetupTable {
        dom: DomId::SELF.0,
        nr_frames: 2,
        frame_list: list,
        ..SetupTable::default()
    };
    world.bench.put(at, &setup);
    assert_eq!(world.grant_table_op(op::SETUP_TABLE, at, 1), Ok(0));
    let answer: SetupTable = world.bench.get(at);
    assert_eq!(answer.status, status::OKAY);
    let frames: [u64; 2] = world.bench.get(list);
    for frame in frames {
        let owner = world.bench.guest.ledger.owner(Mfn(frame));
        assert_eq!(owner, crate::mm::Owner::Shared, "{frame}");
    }
    // A list that the guest can not have written is an error that it hears of.
    let setup = SetupTable {
        frame_list: 0xffff_8300_0000_0000,
        ..setup
    };
    world.bench.put(at, &setup);
    assert_eq!(world.grant_table_op(op::SETUP_TABLE, at, 1), Ok(0));
    let answer: SetupTable = world.bench.get(at);
    assert_eq!(answer.status, status::BAD_VIRT_ADDR);

    let einval = Err(xen_abi::Errno::EINVAL);
    assert_eq!(world.grant_table_op(op::SETUP_TABLE, at, 2), einval);
    assert_eq!(world.grant_table_op(op::COPY, at, 1 << 31), einval);
    let efault = Err(xen_abi::Errno::EFAULT);
    assert_eq!(world.grant_table_op(op::COPY, 0x1000, 1), efault);
    assert_eq!(world.grant_table_op(99, at, 1), Err(xen_abi::Errno::ENOSYS));
    world.bench.put(
        at,
        &QuerySize {
            dom: 1,
            ..QuerySize::default()
        },
    );
    assert_eq!(world.grant_table_op(op::QUERY_SIZE, at, 1), Ok(0));
    let size: QuerySize = world.bench.get(at);
    assert_eq!((size.nr_frames, size.max_nr_frames), (2, 64));
}

#[test]
fn a_copy_between_the_guests_own_frames_goes_through_its_ledger() {
    let mut world = World::started();
    let (at, from, to) = (
        world.bench.page(0),
        world.bench.page(1),
        world.bench.page(2),
    );
    let text = *b"hello";
    world.bench.put(from, &text);
    let (source, dest) = (world.bench.frame(from), world.bench.frame(to));
    let table = world.bench.guest.m.root;
    for (dest, expected) in [
        (dest, status::OKAY),
        (table, status::GENERAL_ERROR),
        (Bench::SHIM, status::BAD_PAGE),
    ] {
        let mut copy = CopyOp {
            len: 5,
            ..CopyOp::default()
        };
        copy.source.frame_or_ref = source.0;
        copy.dest.frame_or_ref = dest.0;
        (copy.source.domid, copy.dest.domid) = (DomId::SELF.0, DomId::SELF.0);
        world.bench.put(at, &copy);
        assert_eq!(world.grant_table_op(op::COPY, at, 1), Ok(0));
        let answer: CopyOp = world.bench.get(at);
        assert_eq!(answer.status, expected, "to {dest:?}");
    }
    let copied: [u8; 5] = world.bench.get(to);
    assert_eq!(copied, text);
    world.bench.check();
}

#[test]
fn a_grant_to_oneself_is_mapped_by_the_guests_own_tables() {
    let mut world = World::started();
    let (args, granted, at) = (
        world.bench.page(0),
        world.bench.page(1),
        world.bench.page(2),
    );
    let frame = world.bench.frame(granted);
    let old = world.bench.frame(at);
    world.bench.put(granted, b"there");
    // Reference 8 of the table's first frame grants it to the guest itself.
    let table = world.bench.guest.points.shared.grants.frames()[0];
    let entry = 1 | 1 << 16 | frame.0 << 32;
    world.bench.guest.m.store64(table, 64, entry);
    let map = MapGrantRef {
        host_addr: at,
        flags: map_flags::HOST_MAP | map_flags::READONLY,
        reference: 8,
        dom: 1,
        ..MapGrantRef::default()
    };
    world.bench.put(args, &map);
    assert_eq!(world.grant_table_op(op::MAP_GRANT_REF, args, 1), Ok(0));
    let map: MapGrantRef = world.bench.get(args);
    assert_eq!(map.status, status::OKAY);
    assert_eq!(&world.bench.get::<[u8; 5]>(at), b"there");
    assert_ne!(world.bench.frame(at), old);

    let unmap = UnmapGrantRef {
        host_addr: at,
        handle: map.handle,
        ..UnmapGrantRef::default()
    };
    // Somewhere else is not where it was mapped.
    for (host_addr, expected) in [(granted + 0x1000_0000, status::GENERAL_ERROR), (at, 0)] {
        world.bench.put(args, &UnmapGrantRef { host_addr, ..unmap });
        assert_eq!(world.grant_table_op(op::UNMAP_GRANT_REF, args, 1), Ok(0));
        let answer: UnmapGrantRef = world.bench.get(args);
        assert_eq!(answer.status, expected);
    }
    let mut byte = [0];
    let gone = crate::mem::GuestMemory::read_guest(&world.bench.guest.m, GuestVa(at), &mut byte);
    assert!(gone.is_err(), "nothing is mapped there any more");
    world.bench.check();
}

#[test]
fn an_entry_begins_at_a_multiple_of_its_size() {
    let mut world = World::started();
    let (args, granted, at) = (
        world.bench.page(0),
        world.bench.page(1),
        world.bench.page(2),
    );
    let frame = world.bench.frame(granted);
    let spaces = world.bench.guest.vcpus[0].spaces.as_ref();
    let root = spaces.expect("it has tables").kernel();
    let place = world.bench.mm().walk(root, GuestVa(at)).expect("a table");
    let entry = place.table.addr() + place.index as u64 * 8;
    let table = world.bench.guest.points.shared.grants.frames()[0];
    world
        .bench
        .guest
        .m
        .store64(table, 64, 1 | 1 << 16 | frame.0 << 32);
    for (host_addr, expected) in [
        (entry + 4, status::GENERAL_ERROR),
        (entry + 1, status::GENERAL_ERROR),
        (entry, status::OKAY),
    ] {
        let map = MapGrantRef {
            host_addr,
            flags: map_flags::HOST_MAP | map_flags::READONLY | map_flags::CONTAINS_PTE,
            reference: 8,
            dom: 1,
            ..MapGrantRef::default()
        };
        world.bench.put(args, &map);
        assert_eq!(world.grant_table_op(op::MAP_GRANT_REF, args, 1), Ok(0));
        let answer: MapGrantRef = world.bench.get(args);
        assert_eq!(answer.status, expected, "{host_addr:#x}");
    }
    world.bench.check();
}

#[test]
fn a_long_list_makes_way_for_the_host_and_is_taken_up_again() {
    const COUNT: u64 = 4096 / size_of::<CopyOp>() as u64;
    let mut world = World::started();
    let list = world.bench.page(0);
    let page = world.bench.page(1);
    let frame = world.bench.frame(page);
    let mut copy = CopyOp {
        len: 4096,
        status: 1,
        ..CopyOp::default()
    };
    (copy.source.frame_or_ref, copy.dest.frame_or_ref) = (frame.0, frame.0);
    (copy.source.domid, copy.dest.domid) = (DomId::SELF.0, DomId::SELF.0);
    let place = |index: u64| list + index * size_of::<CopyOp>() as u64;
    for busy in [true, false] {
        for index in 0..COUNT {
            world.bench.put(place(index), &copy);
        }
        if busy {
            let events = &mut world.bench.guest.host.events;
            events.push_back(HostEvent::Console);
        } else {
            world.bench.guest.host.events.clear();
        }
        let mut rest = Some((GuestVa(list), COUNT));
        let mut turns = 0;
        while let Some((at, count)) = rest {
            assert_eq!((at.0, count), (place(turns), COUNT - turns));
            rest = world
                .with(|points, env| points.shared.grant_table_op(env, 0, op::COPY, at, count))
                .expect("a good list");
            turns += 1;
        }
        assert_eq!(turns, if busy { COUNT } else { 1 });
        for index in 0..COUNT {
            let answer: CopyOp = world.bench.get(place(index));
            assert_eq!(answer.status, status::OKAY);
        }
        let longest = world.bench.guest.ledger.work().take_longest();
        assert!(longest > 0 && longest <= LONGEST_STEP, "{longest} units");
    }
}
