//! However much a guest asks for, little is in flight, and a suspend waits for no more than that.

use xen_abi::blkif::{RequestDiscard, Response, op, status};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{GOOD, Guest, POOR, connected, settle, tear_down};
use crate::points::Progress;
use crate::points::disk::budget::Budget;
use crate::points::disk::features::DISCARD_SECTORS;
use crate::points::disk::model::{Backend, World};
use crate::points::ring::FrontRing;

/// Asks for a discard that the model of the guest knows nothing of.
fn discard(world: &mut World, guest: &mut Guest, id: u64, first: u64, sectors: u64) {
    let mut request = RequestDiscard::new_zeroed();
    request.operation = op::DISCARD;
    request.id = id;
    request.sector_number = first;
    request.nr_sectors = sectors;
    guest.ring.put(&world.mem, request.as_bytes());
    if guest.push(world) {
        world.guest_kick();
    }
}

/// The guest's answers to what its model knows nothing of.
fn answers(world: &World, ring: &mut FrontRing<112>) -> Vec<(u64, i16)> {
    let mut all = Vec::new();
    while ring.final_check(&world.mem).expect("an honest ring") {
        let slot = ring.copy_response(&world.mem, 0);
        ring.consume(1);
        let response = Response::read_from_bytes(&slot[..16]).unwrap();
        all.push((response.id, response.status));
    }
    all
}

/// Lets the backend answer one request after the other until the disk is quiet, and returns how
/// many that took.
fn drain(world: &mut World) -> usize {
    let mut completions = 0;
    while world.quiesce() == Progress::Waiting {
        world.backend.take(&world.mem);
        assert!(!world.backend.taken.is_empty(), "it waits for nothing");
        let wakes = world.backend.finish(&world.mem, 0);
        completions += 1;
        if wakes {
            world.host_kick();
        }
        assert!(completions < 10_000, "it is never quiet");
    }
    completions
}

#[test]
fn a_drain_asks_the_host_for_nothing_more() {
    for cancelled in [true, false] {
        // A ring of the host that is smaller than the guest's, so that there is a backlog.
        let mut world = World::new(Backend::new(0, POOR));
        world.handshake();
        let mut guest = Guest::connect(&mut world, 2);
        for i in 0..60 {
            assert!(guest.ask(&world, op::WRITE, i * 8, 1));
        }
        assert!(guest.ask(&world, op::FLUSH_DISKCACHE, 0, 0));
        if guest.push(&mut world) {
            world.guest_kick();
        }
        assert_eq!(drain(&mut world), 32, "what was in flight and no more");
        assert!(world.backend.taken.is_empty());
        guest.reap(&world);
        assert_eq!(guest.waiting(), 61 - 32, "the rest waits");
        if !cancelled {
            world.migrate(Backend::new(0, POOR));
            world.backend.take(&world.mem);
            assert!(world.backend.taken.is_empty(), "the guest does not run yet");
        }
        world.resume();
        world.backend.take(&world.mem);
        assert!(!world.backend.taken.is_empty(), "and is taken up");
        settle(&mut world, &mut guest);
        guest.check_disk(&world);
        tear_down(world);
    }
}

#[test]
fn what_is_in_flight_has_a_bound() {
    let (mut world, mut guest) = connected(GOOD, 3);
    world.device.protocol.budget = Budget::exactly(64 << 10, 12);
    for i in 0..100 {
        guest.ask(&world, op::WRITE, i * 9, 1);
    }
    settle(&mut world, &mut guest);
    assert_eq!(world.backend.most.0, 12, "requests");
    for i in 0..5 {
        assert!(guest.ask(&world, op::READ, i * 200, 23));
    }
    settle(&mut world, &mut guest);
    let bytes = world.backend.most.1;
    assert!((40 << 10..=64 << 10).contains(&bytes), "{bytes} bytes");
    // One that is larger than the bound goes alone.
    assert!(guest.ask(&world, op::READ, 0, 60));
    assert!(guest.ask(&world, op::READ, 1000, 60));
    settle(&mut world, &mut guest);
    assert_eq!(world.backend.most.0, 12);
    assert!(world.backend.most.1 < 60 * 4096, "{:?}", world.backend.most);
    guest.check_disk(&world);
    tear_down(world);
}

#[test]
fn flushes_count_as_much_work() {
    let (mut world, mut guest) = connected(GOOD, 3);
    for i in 0..100 {
        assert!(guest.ask(&world, op::FLUSH_DISKCACHE, i, 0));
    }
    settle(&mut world, &mut guest);
    assert_eq!(world.backend.most.0, 8);
    assert_eq!(guest.answers.len(), 100);
}

const LARGE: &[(&str, &str)] = &[
    ("sectors", "4294967296"),
    ("feature-flush-cache", "1"),
    ("feature-discard", "1"),
    ("discard-granularity", "196608"),
    ("discard-alignment", "65536"),
];

/// Whether the parts are one after the other, and where they end.
fn end_of(discarded: &[(u64, u64)], first: u64) -> u64 {
    discarded.iter().fold(first, |at, &(sector, sectors)| {
        assert_eq!(sector, at, "nothing twice, nothing left out");
        assert!(
            (1..=DISCARD_SECTORS).contains(&sectors),
            "{sectors} sectors"
        );
        at + sectors
    })
}

#[test]
fn a_long_discard_is_done_in_parts_and_goes_on_where_it_was_on_another_host() {
    let (mut world, mut guest) = connected(LARGE, 0);
    let (first, sectors) = (5, (10 << 30) / 512);
    discard(&mut world, &mut guest, 77, first, sectors);
    assert_eq!(drain(&mut world), 8);
    assert_eq!(answers(&world, &mut guest.ring), [], "it is not over");
    let mut discarded = world.backend.discarded.clone();
    for &(sector, sectors) in &discarded {
        let end = (sector + sectors) * 512;
        assert_eq!(end % 196_608, 65_536, "a unit of the storage is not cut");
    }

    world.migrate(Backend::new(2, LARGE));
    world.resume();
    loop {
        world.backend.take(&world.mem);
        if world.backend.taken.is_empty() {
            break;
        }
        assert!(world.backend.taken.len() <= 8);
        assert_eq!(answers(&world, &mut guest.ring), []);
        if world.backend.finish(&world.mem, 0) {
            world.host_kick();
        }
    }
    discarded.append(&mut world.backend.discarded);
    assert_eq!(answers(&world, &mut guest.ring), [(77, status::OKAY)]);
    // The model of the backend takes from the front what it swapped there.
    discarded.sort_unstable();
    assert_eq!(end_of(&discarded, first), first + sectors);
    tear_down(world);
}

#[test]
fn a_part_of_a_discard_that_fails_fails_it_once() {
    let (mut world, mut guest) = connected(LARGE, 0);
    discard(&mut world, &mut guest, 78, 0, (10 << 30) / 512);
    let mut count = 0;
    loop {
        world.backend.take(&world.mem);
        if world.backend.taken.is_empty() {
            break;
        }
        count += 1;
        let answer = match count {
            3 => status::ERROR,
            4 => status::EOPNOTSUPP,
            _ => status::OKAY,
        };
        if world.backend.answer(&world.mem, 0, answer, false) {
            world.host_kick();
        }
    }
    assert!(count < 12, "the rest of it is of no use: {count}");
    assert_eq!(answers(&world, &mut guest.ring), [(78, status::ERROR)]);
    tear_down(world);
}

#[test]
fn a_discard_that_the_next_host_can_not_do_is_over() {
    let (mut world, mut guest) = connected(LARGE, 0);
    discard(&mut world, &mut guest, 79, 0, 4 << 20);
    drain(&mut world);
    world.migrate(Backend::new(2, &LARGE[..2]));
    world.resume();
    assert_eq!(answers(&world, &mut guest.ring), [(79, status::OKAY)]);
    tear_down(world);
}
