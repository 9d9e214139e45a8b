//! What a move asks of a disk, and what the guest may learn of it: nothing.

use xen_abi::blkif::{op, status};

use super::{GOOD, POOR, connected, settle, tear_down};
use crate::points::disk::model::Backend;
use crate::points::{Device, Progress};

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
    assert_eq!(world.device.in_flight(), 1);
    world.backend.take(&world.mem);
    assert!(world.backend.finish(&world.mem, 0));
    world.host_kick();
    assert_eq!(world.quiesce(), Progress::Done);
    world.resume();
    assert_eq!(world.device.in_flight(), 1, "taken up again");
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
    world.finish_unplug();
}
