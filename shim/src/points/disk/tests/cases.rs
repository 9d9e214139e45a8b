//! Requests, good and bad, and what becomes of them.

use xen_abi::Mfn;
use xen_abi::blkif::{Request, SLOT_SIZE, op, status};
use zerocopy::{FromZeros, IntoBytes};

use super::guest::Guest;
use super::{GOOD, POOR, connected, settle, tear_down};
use crate::points::Device;
use crate::points::device::model::{Peer, grant, put_entry, reference};
use crate::points::disk::model::{Backend, World};

#[test]
fn data_gets_through_both_ways() {
    for (order, features) in [(0, GOOD), (2, GOOD), (0, POOR), (4, POOR)] {
        let (mut world, mut guest) = connected(features, order);
        for round in 0..6 {
            for (operation, count) in [
                (op::WRITE, 1),
                (op::READ, 11),
                (op::WRITE, 30),
                (op::READ, 40),
                (op::FLUSH_DISKCACHE, 0),
            ] {
                guest.ask(&world, operation, round * 97 + count * 20, count);
            }
            settle(&mut world, &mut guest);
        }
        assert!(guest.answers.len() > 20);
        assert!(guest.answers.iter().all(|answer| *answer == status::OKAY));
        guest.check_disk(&world);
        let most = if features == GOOD { 40 } else { 11 };
        assert_eq!(world.backend.largest, most, "split only where needed");
        tear_down(world);
    }
}

#[test]
fn a_ring_holds_what_may_be_in_flight_and_no_more() {
    for (disks, frames) in [(1, 8), (2, 4), (4, 2), (8, 1), (27, 1)] {
        let mut world = World::new(Backend::new(4, GOOD));
        world.device.share(disks);
        world.handshake();
        assert_eq!(world.backend.ring_frames(), frames, "of {disks} disks");
    }
    let mut world = World::new(Backend::new(1, GOOD));
    world.handshake();
    assert_eq!(world.backend.ring_frames(), 2, "as many as it takes");
}

#[test]
fn an_answer_waits_until_the_backend_lets_go() {
    let (mut world, mut guest) = connected(GOOD, 0);
    guest.ask(&world, op::READ, 0, 3);
    guest.push(&mut world);
    world.guest_kick();
    world.backend.take(&world.mem);
    world.backend.perform(&world.mem, 0);
    world.backend.answer(&world.mem, 0, status::OKAY, true);
    world.host_kick();
    guest.reap(&world);
    assert_eq!(guest.waiting(), 1);
    assert!(world.device.wants_retry());
    world.retry();
    assert!(world.device.wants_retry(), "still in use");
    world.backend.let_go(&world.mem);
    world.retry();
    guest.reap(&world);
    assert_eq!((guest.waiting(), world.device.wants_retry()), (0, false));
    tear_down(world);
}

#[test]
fn without_references_requests_wait_and_are_not_lost() {
    let (mut world, mut guest) = connected(GOOD, 2);
    // Leave only a few: the table has 2 x 512 - 8, the ring has 4 of them.
    let mut taken = Vec::new();
    {
        use crate::host::{Access, HostGrants};
        let mut grants = world.host_table.via(&world.mem, &mut world.allowed);
        while let Some(grant) = grants.grant(
            crate::testing::surroundings::BACKEND,
            Mfn(0),
            Access::ReadOnly,
        ) {
            taken.push(grant);
        }
        for _ in 0..5 {
            assert!(grants.end(taken.pop().unwrap()));
        }
    }
    guest.ask(&world, op::WRITE, 0, 30);
    guest.ask(&world, op::FLUSH_DISKCACHE, 400, 11);
    guest.push(&mut world);
    world.guest_kick();
    for _ in 0..20 {
        world.backend.take(&world.mem);
        while !world.backend.taken.is_empty() {
            world.backend.finish(&world.mem, 0);
        }
        world.host_kick();
    }
    guest.reap(&world);
    assert_eq!(guest.waiting(), 1, "a flush with data is not split");
    assert!(world.device.wants_retry(), "nobody else would wake it");
    {
        use crate::host::HostGrants;
        let mut grants = world.host_table.via(&world.mem, &mut world.allowed);
        taken.drain(..).for_each(|grant| assert!(grants.end(grant)));
    }
    settle(&mut world, &mut guest);
    assert!(guest.answers.iter().all(|answer| *answer == status::OKAY));
    guest.check_disk(&world);
    tear_down(world);
}

#[test]
fn a_lying_backend_fails_the_disk_and_harms_nothing() {
    type Lie = fn(&mut World);
    let lies: [Lie; 5] = [
        // An answer of before, whose number belongs to another request by now.
        |world| {
            let (id, operation) = (world.backend.taken[0].id, world.backend.taken[0].operation);
            world
                .backend
                .respond(&world.mem, id ^ 1 << 32, operation, 0);
        },
        |world| {
            world.backend.respond(&world.mem, 77, op::READ, 0);
        },
        |world| {
            let id = world.backend.taken[0].id;
            world.backend.respond(&world.mem, id, op::WRITE, 0);
        },
        |world| world.backend.corrupt_ring(&world.mem, 1000),
        |world| world.backend.corrupt_ring(&world.mem, u32::MAX),
    ];
    for lie in lies {
        let (mut world, mut guest) = connected(GOOD, 0);
        for i in 0..3 {
            guest.ask(&world, op::READ, i * 100, 12);
        }
        guest.push(&mut world);
        world.guest_kick();
        world.backend.take(&world.mem);
        lie(&mut world);
        world.host_kick();
        assert!(world.attached().is_err());
        guest.reap(&world);
        assert_eq!(guest.waiting(), 3, "the backend has the pages mapped");
        world.handshake();
        world.retry();
        guest.reap(&world);
        assert_eq!(guest.answers, [status::ERROR; 3]);
        guest.ask(&world, op::WRITE, 0, 1);
        guest.push(&mut world);
        world.guest_kick();
        guest.reap(&world);
        assert_eq!(guest.answers[3], status::ERROR);
        assert_eq!(world.back("state"), Some("4"), "nobody took the disk away");
        // The next host makes it good.
        world.quiesce();
        world.migrate(Backend::new(4, GOOD));
        world.resume();
        guest.ask(&world, op::READ, 0, 20);
        settle(&mut world, &mut guest);
        assert_eq!(guest.answers[4], status::OKAY);
        tear_down(world);
    }
}

/// Puts one raw request and returns how it was answered.
fn raw(world: &mut World, guest: &mut Guest, change: impl FnOnce(&mut Request)) -> i16 {
    let mut request = Request::new_zeroed();
    request.operation = op::READ;
    request.nr_segments = 1;
    request.id = 42;
    request.seg[0].gref = reference(Mfn(60));
    change(&mut request);
    guest.ring.put(&world.mem, request.as_bytes());
    guest.push(world);
    world.guest_kick();
    assert_eq!(guest.ring.pending(&world.mem), Ok(1), "answered at once");
    let slot: [u8; SLOT_SIZE] = guest.ring.copy_response(&world.mem, 0);
    guest.ring.consume(1);
    assert_eq!(slot[..8], 42u64.to_le_bytes());
    assert_eq!(world.device.in_flight(), 0);
    i16::from_le_bytes([slot[10], slot[11]])
}

#[test]
fn bad_requests_get_an_error_each() {
    let (mut world, mut guest) = connected(POOR, 0);
    grant(&world, Mfn(60), true);
    put_entry(&world, 300, 1 | 250 << 32);
    let held = world.ledger.holds.len();
    let mut answer = |change: fn(&mut Request)| raw(&mut world, &mut guest, change);
    assert_eq!(
        answer(|_| {}),
        status::ERROR,
        "reading into a read-only page"
    );
    assert_eq!(answer(|r| r.nr_segments = 0), status::ERROR);
    assert_eq!(answer(|r| r.nr_segments = 12), status::ERROR);
    assert_eq!(answer(|r| r.nr_segments = 255), status::ERROR);
    assert_eq!(answer(|r| r.seg[0].gref = u32::MAX), status::ERROR);
    assert_eq!(answer(|r| r.seg[0].gref = 300), status::ERROR);
    assert_eq!(answer(|r| r.seg[0].last_sect = 8), status::ERROR);
    assert_eq!(answer(|r| r.seg[0].first_sect = 1), status::ERROR);
    assert_eq!(
        answer(|r| (r.operation, r.sector_number) = (1, 2048)),
        status::ERROR
    );
    assert_eq!(
        answer(|r| (r.operation, r.sector_number) = (1, u64::MAX)),
        status::ERROR
    );
    assert_eq!(answer(|r| r.operation = 2), status::EOPNOTSUPP);
    assert_eq!(answer(|r| r.operation = 5), status::EOPNOTSUPP);
    assert_eq!(answer(|r| r.operation = 77), status::EOPNOTSUPP);
    assert_eq!(
        answer(|r| (r.operation, r.nr_segments) = (6, 2)),
        status::EOPNOTSUPP,
        "an indirect barrier"
    );
    assert_eq!(world.ledger.holds.len(), held, "no hold is left");
    tear_down(world);
}

#[test]
fn parts_of_large_sectors_can_not_be_had() {
    let large = &[("sector-size", "4096"), ("feature-flush-cache", "1")];
    let (mut world, mut guest) = connected(large, 0);
    grant(&world, Mfn(60), false);
    let mut answer = |change: fn(&mut Request)| raw(&mut world, &mut guest, change);
    assert_eq!(answer(|r| r.seg[0].last_sect = 6), status::ERROR);
    assert_eq!(
        answer(|r| (r.seg[0].first_sect, r.seg[0].last_sect) = (4, 7)),
        status::ERROR
    );
    assert_eq!(
        answer(|r| (r.sector_number, r.seg[0].last_sect) = (4, 7)),
        status::ERROR
    );
    assert!(
        guest.ask(&world, op::READ, 2003, 1),
        "a whole page, but at sector 2003"
    );
    settle(&mut world, &mut guest);
    assert_eq!(guest.answers, [status::ERROR]);
    tear_down(world);
}

#[test]
fn a_read_only_disk_is_not_written() {
    for read_only in [("mode", "r"), ("info", "4"), ("info", "1")] {
        let (mut world, mut guest) = connected(
            &[
                read_only,
                ("feature-flush-cache", "1"),
                ("feature-discard", "1"),
            ],
            0,
        );
        grant(&world, Mfn(60), true);
        let mut answer = |change: fn(&mut Request)| raw(&mut world, &mut guest, change);
        assert_eq!(answer(|r| r.operation = op::WRITE), status::ERROR);
        assert_eq!(answer(|r| r.operation = op::DISCARD), status::ERROR);
        assert_eq!(answer(|r| r.operation = op::FLUSH_DISKCACHE), status::ERROR);
        guest.ask(&world, op::READ, 0, 20);
        guest.ask(&world, op::FLUSH_DISKCACHE, 0, 0);
        settle(&mut world, &mut guest);
        assert_eq!(guest.answers, [status::OKAY; 2]);
        tear_down(world);
    }
}

#[test]
fn a_guest_that_lies_about_its_ring_is_left_alone() {
    use crate::mem::Frames;
    let (mut world, mut guest) = connected(POOR, 0);
    guest.ask(&world, op::WRITE, 0, 1);
    guest.push(&mut world);
    world.guest_kick();
    world.mem.store32(Mfn(0), 0, 5000);
    world.guest_kick();
    world.backend.take(&world.mem);
    world.backend.finish(&world.mem, 0);
    world.host_kick();
    guest.reap(&world);
    assert_eq!(guest.waiting(), 0, "what was asked before is answered");
    tear_down(world);
}
