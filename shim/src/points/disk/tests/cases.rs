//! What a disk must do, case by case.

use xen_abi::Mfn;
use xen_abi::blkif::{Request, SLOT_SIZE, op, status};
use zerocopy::{FromZeros, IntoBytes};

use super::guest::Guest;
use crate::points::disk::model::backend::Backend;
use crate::points::disk::model::world::{FRONT, World, grant, put_entry, reference};
use crate::points::{Device, Progress};

const GOOD: &[(&str, &str)] = &[
    ("feature-flush-cache", "1"),
    ("feature-barrier", "1"),
    ("feature-discard", "1"),
    ("feature-max-indirect-segments", "256"),
];
const POOR: &[(&str, &str)] = &[("feature-flush-cache", "1")];

fn connected(features: &[(&'static str, &str)], order: u32) -> (World, Guest) {
    let mut world = World::new(Backend::new(4, features));
    world.handshake();
    assert_eq!(world.attached(), Ok(Progress::Done));
    let guest = Guest::connect(&mut world, order);
    assert_eq!(world.back("state"), Some("4"));
    (world, guest)
}

/// Lets everything that was asked be done and answered.
fn settle(world: &mut World, guest: &mut Guest) {
    if guest.push(world) {
        world.guest_kick();
    }
    for _ in 0..10_000 {
        world.backend.take(&world.mem);
        let mut kick = false;
        while !world.backend.taken.is_empty() {
            kick |= world.backend.finish(&world.mem, 0);
        }
        world.backend.let_go(&world.mem);
        if kick {
            world.host_kick();
        }
        world.retry();
        guest.reap(world);
        if guest.waiting() == 0 {
            return;
        }
        if guest.push(world) {
            world.guest_kick();
        }
    }
    panic!(
        "{} requests are never answered: {:?}",
        guest.waiting(),
        world.vbd
    );
}

/// Closes and unplugs the disk in an orderly way.
fn tear_down(mut world: World) {
    world.guest_state(5);
    assert_eq!(world.back("state"), Some("5"));
    world.guest_state(6);
    assert!(world.vbd.is_gone() || world.back("state") == Some("6"));
    finish_unplug(world);
}

fn finish_unplug(mut world: World) {
    world.unplug();
    world.handshake();
    // The backend lets go of the ring only when it has closed.
    world.retry();
    world.assert_nothing_leaked();
}

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
fn the_guest_sees_the_same_disk_on_every_host() {
    let (mut world, mut guest) = connected(GOOD, 1);
    let before = world.guest_view();
    for features in [POOR, GOOD, &[("feature-flush-cache", "0")]] {
        guest.ask(&world, op::WRITE, 100, 40);
        guest.ask(&world, op::WRITE_BARRIER, 700, 3);
        guest.ask(&world, op::DISCARD, 900, 0);
        guest.ask(&world, op::FLUSH_DISKCACHE, 0, 0);
        settle(&mut world, &mut guest);
        assert_eq!(world.quiesce(), Progress::Done);
        world.ports.raised = false;
        world.migrate(Backend::new(0, features));
        assert_eq!(world.attached(), Ok(Progress::Done));
        world.resume();
        assert!(world.ports.raised, "one event after a move");
        assert_eq!(world.guest_view(), before);
    }
    guest.ask(&world, op::WRITE_BARRIER, 700, 3);
    settle(&mut world, &mut guest);
    guest.check_disk(&world);
    assert!(guest.answers.iter().all(|answer| *answer == status::OKAY));
    tear_down(world);
}

#[test]
fn a_disk_that_is_missing_after_a_move_is_waited_for() {
    let (mut world, mut guest) = connected(GOOD, 1);
    let before = world.guest_view();
    for dies in [false, true] {
        guest.ask(&world, op::WRITE, 100, 40);
        settle(&mut world, &mut guest);
        assert_eq!(world.quiesce(), Progress::Done);
        // Asked for while nobody is there to take it.
        guest.ask(&world, op::WRITE, 300, 7);
        guest.push(&mut world);
        if dies {
            world.migrate_to_dying(Backend::new(2, POOR));
            assert_eq!(world.attached(), Err("the backend is gone".to_owned()));
            world.backend_returns();
        } else {
            world.migrate_to_nothing(Backend::new(2, POOR));
            let why = world.attached().expect_err("there is none");
            assert!(why.starts_with("this host has no device/vbd/"), "{why}");
            world.appear();
        }
        assert_eq!(world.attached(), Ok(Progress::Done));
        world.resume();
        settle(&mut world, &mut guest);
        assert_eq!(world.guest_view(), before, "the guest learned of it");
    }
    assert!(guest.answers.iter().all(|answer| *answer == status::OKAY));
    guest.check_disk(&world);
    tear_down(world);
}

#[test]
fn a_barrier_becomes_flush_write_flush_with_nothing_beside_it() {
    let (mut world, mut guest) = connected(GOOD, 0);
    world.quiesce();
    world.migrate(Backend::new(0, POOR));
    world.resume();
    guest.ask(&world, op::WRITE, 0, 4);
    guest.ask(&world, op::WRITE_BARRIER, 100, 2);
    guest.ask(&world, op::WRITE, 200, 4);
    guest.push(&mut world);
    world.guest_kick();
    world.backend.take(&world.mem);
    assert_eq!(world.backend.taken.len(), 1, "the barrier waits");
    settle(&mut world, &mut guest);
    let (write, flush) = (op::WRITE, op::FLUSH_DISKCACHE);
    assert_eq!(world.backend.done, [write, flush, write, flush, write]);
}

#[test]
fn a_drain_takes_nothing_and_a_cancelled_move_loses_nothing() {
    let (mut world, mut guest) = connected(GOOD, 0);
    guest.ask(&world, op::WRITE, 0, 20);
    guest.push(&mut world);
    world.guest_kick();
    assert_eq!(world.quiesce(), Progress::Waiting);
    guest.ask(&world, op::WRITE, 500, 3);
    guest.push(&mut world);
    world.guest_kick();
    assert_eq!(world.vbd.in_flight(), 1);
    world.backend.take(&world.mem);
    assert!(world.backend.finish(&world.mem, 0));
    world.host_kick();
    assert_eq!(world.quiesce(), Progress::Done);
    world.resume();
    assert_eq!(world.vbd.in_flight(), 1, "taken up again");
    settle(&mut world, &mut guest);
    guest.check_disk(&world);
    tear_down(world);
}

#[test]
fn what_could_not_be_drained_is_asked_again_in_order() {
    let (mut world, mut guest) = connected(GOOD, 0);
    for i in 0..8 {
        guest.ask(&world, op::WRITE, i * 60, 8);
    }
    guest.ask(&world, op::FLUSH_DISKCACHE, 0, 0);
    guest.push(&mut world);
    world.guest_kick();
    world.backend.take(&world.mem);
    world.backend.perform(&world.mem, 3);
    world.backend.finish(&world.mem, 1);
    world.quiesce();
    world.migrate(Backend::new(2, POOR));
    world.resume();
    world.backend.take(&world.mem);
    assert!(
        world
            .backend
            .taken
            .iter()
            .all(|taken| taken.operation == op::WRITE),
        "the flush waits for what was before it"
    );
    settle(&mut world, &mut guest);
    assert_eq!(world.backend.done.last(), Some(&op::FLUSH_DISKCACHE));
    guest.check_disk(&world);
    tear_down(world);
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
    assert!(world.vbd.wants_retry());
    world.retry();
    assert!(world.vbd.wants_retry(), "still in use");
    world.backend.let_go(&world.mem);
    world.retry();
    guest.reap(&world);
    assert_eq!((guest.waiting(), world.vbd.wants_retry()), (0, false));
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
        while let Some(grant) = grants.grant(crate::points::fake::BACKEND, Mfn(0), Access::ReadOnly)
        {
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
    assert!(world.vbd.wants_retry(), "nobody else would wake it");
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

#[test]
fn a_host_that_can_not_stand_in_is_refused_and_requests_wait() {
    let (mut world, mut guest) = connected(GOOD, 0);
    world.quiesce();
    world.migrate(Backend::new(
        0,
        &[("feature-flush-cache", "1"), ("sectors", "10")],
    ));
    assert!(world.attached().unwrap_err().contains("10 sectors"));
    world.resume();
    guest.ask(&world, op::WRITE, 0, 1);
    guest.push(&mut world);
    world.guest_kick();
    guest.reap(&world);
    assert_eq!(guest.waiting(), 1);
    world.migrate(Backend::new(0, POOR));
    world.resume();
    settle(&mut world, &mut guest);
    guest.check_disk(&world);
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
    assert_eq!(world.vbd.in_flight(), 0);
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
fn what_a_driver_that_went_had_asked_is_not_asked_of_the_next_host() {
    let (mut world, mut guest) = connected(GOOD, 0);
    guest.ask(&world, op::READ, 0, 30);
    guest.push(&mut world);
    world.guest_kick();
    world.backend.take(&world.mem);
    world.guest_state(5);
    world.guest_state(6);
    world.quiesce();
    world.migrate(Backend::new(0, POOR));
    world.resume();
    world.backend.take(&world.mem);
    assert!(world.backend.taken.is_empty());
    assert_eq!(world.back("state"), Some("6"));
    finish_unplug(world);
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

#[test]
fn a_driver_that_goes_is_waited_for_and_the_next_one_starts_clean() {
    let (mut world, mut guest) = connected(GOOD, 0);
    guest.ask(&world, op::READ, 0, 30);
    guest.push(&mut world);
    world.guest_kick();
    world.backend.take(&world.mem);
    world.guest_state(5);
    world.guest_state(6);
    assert_eq!(world.back("state"), Some("5"), "a read is in flight");
    world.guest_state(1);
    world.backend.finish(&world.mem, 0);
    world.host_kick();
    assert_eq!(world.back("state"), Some("2"), "ready for the next");
    assert!(world.ledger.holds.is_empty());
    world.store.0.retain(|path, _| !path.contains("/ring-"));
    let mut guest = Guest::connect(&mut world, 0);
    guest.ask(&world, op::WRITE, 0, 30);
    settle(&mut world, &mut guest);
    guest.check_disk(&world);
    tear_down(world);
}

#[test]
fn drivers_that_make_no_sense_do_not_connect() {
    for (key, value) in [
        ("ring-ref", "4000000000"),
        ("ring-ref", "1"),
        ("event-channel", "100"),
        ("ring-page-order", "5"),
        ("protocol", "x86_32-abi"),
    ] {
        let mut world = World::new(Backend::new(0, GOOD));
        world.handshake();
        grant(&world, Mfn(0), false);
        for (node, good) in [("ring-ref", "8"), ("event-channel", "9"), (key, value)] {
            world
                .store
                .0
                .insert(format!("{FRONT}/{node}"), good.to_owned());
        }
        world.guest_state(3);
        assert_eq!(world.back("state"), Some("5"), "{key}={value}");
        assert!(world.ledger.holds.is_empty());
        tear_down(world);
    }
}

#[test]
fn the_host_unplugs_a_disk_in_use() {
    let (mut world, mut guest) = connected(GOOD, 0);
    guest.ask(&world, op::WRITE, 0, 30);
    guest.push(&mut world);
    world.guest_kick();
    world.backend.set_state(&mut world.real, 5);
    world.handshake();
    assert_eq!(
        (world.back("online"), world.back("state")),
        (Some("0"), Some("5"))
    );
    settle(&mut world, &mut guest);
    assert_eq!(
        guest.answers,
        [status::OKAY],
        "served until the driver closes"
    );
    tear_down(world);
}

#[test]
fn a_disk_taken_by_force_fails_what_is_in_flight() {
    let (mut world, mut guest) = connected(GOOD, 0);
    guest.ask(&world, op::WRITE, 0, 30);
    guest.push(&mut world);
    world.guest_kick();
    world.backend.take(&world.mem);
    world.backend.vanish(&mut world.real, &world.mem);
    world.handshake();
    guest.reap(&world);
    assert_eq!(guest.answers, [status::ERROR]);
    tear_down(world);
}

#[test]
fn a_disk_that_no_driver_wanted_is_unplugged() {
    let mut world = World::new(Backend::new(0, GOOD));
    world.handshake();
    finish_unplug(world);
    finish_unplug(World::new(Backend::new(0, GOOD)));
}

#[test]
fn a_larger_disk_is_made_known() {
    let (mut world, _guest) = connected(GOOD, 0);
    world.backend.set(&mut world.real, "sectors", "4096");
    world.backend.set_state(&mut world.real, 4);
    world.handshake();
    assert_eq!(world.back("sectors"), Some("4096"));
}

#[test]
fn a_backend_left_connected_is_led_around() {
    let mut world = World::new(Backend::new(2, GOOD));
    world.backend.set_state(&mut world.real, 4);
    world.handshake();
    // The model says Closed to both Closing and Closed; a real one begins again at Initialising.
    world.backend.set_state(&mut world.real, 2);
    world.handshake();
    assert_eq!(world.attached(), Ok(Progress::Done));
}
