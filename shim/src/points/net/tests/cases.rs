//! Single cases that a random run meets too rarely, or where one wants to see why.

use xen_abi::netif::status;

use super::guest::{Guest, Wishes};
use crate::mem::Frames;
use crate::points::net::model::backend::{Backend, Packet};
use crate::points::net::model::world::World;
use crate::points::{Device, Progress};

const FULL: &[(&str, bool)] = &[
    ("feature-rx-copy", true),
    ("feature-sg", true),
    ("feature-gso-tcpv4", true),
    ("feature-gso-tcpv6", true),
    ("feature-split-event-channels", true),
];
const WISHES: Wishes = Wishes {
    split: true,
    sg: true,
    gso: [true; 2],
};

fn connected() -> (World, Guest) {
    let mut world = World::new(Backend::new(FULL));
    world.handshake();
    let guest = Guest::connect(&mut world, WISHES);
    world.handshake();
    (world, guest)
}

#[test]
fn a_packet_goes_out_with_all_that_belongs_to_it() {
    let (mut world, mut guest) = connected();
    assert!(guest.send(&world, &[100, 1200, 7], Some((1448, 1)), true, false));
    guest.push(&mut world);
    world.backend.take(&world.mem);
    assert_eq!(world.backend.sent, guest.sent);
    while world.backend.waiting() > 0 {
        world.backend.answer(&world.mem, 0, status::OKAY, false);
    }
    world.host_kick();
    guest.reap(&world);
    assert_eq!((guest.unanswered(), guest.errors), (0, [0, 0]));
    world.tear_down();
}

#[test]
fn a_part_in_use_is_answered_only_when_the_backend_has_let_go() {
    let (mut world, mut guest) = connected();
    guest.send(&world, &[60], None, false, false);
    guest.push(&mut world);
    world.backend.take(&world.mem);
    world.backend.answer(&world.mem, 0, status::OKAY, true);
    world.host_kick();
    world.retry();
    guest.reap(&world);
    assert_eq!(guest.unanswered(), 1);
    world.backend.let_go(&world.mem);
    world.retry();
    guest.reap(&world);
    assert_eq!(guest.unanswered(), 0);
    world.tear_down();
}

#[test]
fn a_packet_in_several_buffers_arrives_and_a_half_one_fails_at_a_move() {
    let (mut world, mut guest) = connected();
    guest.post(&world, 10, false);
    guest.push(&mut world);
    let packet = Packet {
        bytes: (0..900u16).map(|n| n as u8).collect(),
        gso: Some((300, 2)),
        is_blank: true,
    };
    let parts = [300; 3];
    world.backend.deliver(&world.mem, &packet, &parts, 9, false);
    world.host_kick();
    guest.reap(&world);
    assert_eq!(guest.received, std::slice::from_ref(&packet));

    world.backend.deliver(&world.mem, &packet, &parts, 2, false);
    world.host_kick();
    guest.reap(&world);
    assert_eq!((guest.received.len(), guest.errors[1]), (1, 0), "kept back");
    assert_eq!(world.quiesce(), Progress::Done);
    world.migrate(Backend::new(FULL));
    world.resume();
    guest.reap(&world);
    assert_eq!(guest.errors[1], 3, "two parts and the extra between them");

    // What the guest had posted is with the new host.
    guest.post(&world, 10, false);
    guest.push(&mut world);
    world.backend.deliver(&world.mem, &packet, &parts, 9, false);
    world.host_kick();
    guest.reap(&world);
    assert_eq!(guest.received.len(), 2);
    world.tear_down();
}

#[test]
fn a_host_that_offers_too_little_is_refused_and_a_better_one_taken() {
    let (mut world, mut guest) = connected();
    guest.send(&world, &[60], None, false, false);
    guest.push(&mut world);
    let view = world.guest_view();
    world.migrate(Backend::new(&FULL[..2]));
    let why = world.vif.attached().expect_err("no GSO");
    assert!(why.contains("feature-gso-tcpv4 feature-gso-tcpv6"), "{why}");
    world.migrate(Backend::new(FULL));
    assert_eq!(world.vif.attached(), Ok(Progress::Done));
    assert_eq!(world.guest_view(), view);
    world.resume();
    guest.reap(&world);
    assert_eq!(guest.unanswered(), 0);
    world.tear_down();
}

#[test]
fn a_driver_that_comes_while_the_backend_is_broken_has_its_packets_when_it_works_again() {
    let (mut world, _) = connected();
    let tx = world.backend.ring_frames()[0];
    world.mem.store32(tx, 8, 1000);
    world.host_kick();
    assert!(world.vif.attached().is_err());
    for state in [5, 6] {
        world.guest_state(state);
        world.handshake();
    }
    world.retry();
    world.guest_state(1);
    let mut guest = Guest::connect(&mut world, WISHES);
    assert_eq!(world.back("state"), Some("4"), "as if nothing was wrong");
    guest.send(&world, &[60], None, false, false);
    guest.push(&mut world);
    guest.reap(&world);
    assert_eq!((guest.unanswered(), guest.errors), (0, [1, 0]), "lost");
    world.quiesce();
    world.migrate(Backend::new(FULL));
    world.resume();
    assert_eq!(world.vif.attached(), Ok(Progress::Done));
    guest.send(&world, &[60], None, false, false);
    guest.push(&mut world);
    world.backend.take(&world.mem);
    while world.backend.waiting() > 0 {
        world.backend.answer(&world.mem, 0, status::OKAY, false);
    }
    world.host_kick();
    guest.reap(&world);
    assert_eq!((guest.unanswered(), guest.errors), (0, [1, 0]));
    world.tear_down();
}

#[test]
fn an_interface_that_is_missing_after_a_move_is_waited_for() {
    let (mut world, mut guest) = connected();
    let view = world.guest_view();
    assert_eq!(world.quiesce(), Progress::Done);
    guest.send(&world, &[60], None, false, false);
    guest.push(&mut world);
    world.migrate_to_nothing(Backend::new(FULL));
    let why = world.vif.attached().expect_err("there is none");
    assert!(why.starts_with("this host has no device/vif/"), "{why}");
    world.appear();
    assert_eq!(world.vif.attached(), Ok(Progress::Done));
    world.resume();
    assert_eq!(world.guest_view(), view, "the guest learned of it");
    world.backend.take(&world.mem);
    assert!(world.backend.waiting() > 0, "what waited is sent");
    while world.backend.waiting() > 0 {
        world.backend.answer(&world.mem, 0, status::OKAY, false);
    }
    world.host_kick();
    guest.reap(&world);
    assert_eq!(guest.unanswered(), 0);
    world.tear_down();
}

#[test]
fn an_interface_moves_at_every_step_of_being_plugged() {
    for (has_driver, steps) in (0..40).map(|n| (n >= 20, n % 20)) {
        let mut world = World::new(Backend::new(FULL));
        let mut guest = None;
        if has_driver {
            world.handshake();
            guest = Some(Guest::connect(&mut world, WISHES));
        }
        let is_over = (0..steps).any(|_| !world.step());
        assert_eq!(world.quiesce(), Progress::Done);
        world.migrate(Backend::new(FULL));
        let attached = world.vif.attached();
        assert_eq!(attached, Ok(Progress::Done), "{has_driver}, {steps} steps");
        world.resume();
        let mut guest = guest.unwrap_or_else(|| Guest::connect(&mut world, WISHES));
        world.handshake();
        assert_eq!(world.back("state"), Some("4"));
        guest.send(&world, &[60], None, false, false);
        guest.push(&mut world);
        world.backend.take(&world.mem);
        assert_eq!(world.backend.sent, guest.sent);
        world.backend.answer(&world.mem, 0, status::OKAY, false);
        world.host_kick();
        world.tear_down();
        assert!(is_over || steps < 19, "plugging takes more steps than that");
    }
}

#[test]
fn an_interface_that_the_guest_was_not_told_of_may_be_missing_after_a_move() {
    let mut steps = 0;
    loop {
        let mut world = World::new(Backend::new(FULL));
        (0..steps).for_each(|_| assert!(world.step()));
        world.migrate_to_nothing(Backend::new(FULL));
        assert!(world.vif.attached().is_err(), "there is none");
        if world.vif.is_shown() {
            break;
        }
        world.unplug();
        world.resume();
        world.handshake();
        world.assert_nothing_left();
        let left = &world.real.nodes;
        assert!(left.is_empty(), "a directory came to be: {left:?}");
        steps += 1;
    }
    assert!(steps > 5, "it was shown after {steps} steps");
}

#[test]
fn a_move_is_announced_a_few_times() {
    let (mut world, _guest) = connected();
    world.migrate(Backend::new(FULL));
    world.resume();
    for _ in 0..1000 {
        world.retry();
        world.backend.take(&world.mem);
        while world.backend.waiting() > 0 {
            world.backend.answer(&world.mem, 0, status::OKAY, false);
        }
        world.host_kick();
    }
    assert_eq!(world.backend.announced, 5);
    assert!(!world.vif.wants_retry());
    world.tear_down();
}
