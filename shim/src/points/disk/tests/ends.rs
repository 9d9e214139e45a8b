//! Drivers that come and go, and disks that the host changes or takes away.

use xen_abi::Mfn;
use xen_abi::blkif::{op, status};

use super::guest::Guest;
use super::{GOOD, connected, settle, tear_down};
use crate::points::device::model::{Peer, grant};
use crate::points::disk::model::{Backend, World};

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
            world.front(node, good);
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
    world.backend_state(5);
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
fn a_larger_disk_is_made_known() {
    let (mut world, _guest) = connected(GOOD, 0);
    Backend::set(&mut world.real, "sectors", "4096");
    world.backend_state(4);
    world.handshake();
    assert_eq!(world.back("sectors"), Some("4096"));
}
