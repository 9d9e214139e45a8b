//! Single cases that a random run meets too rarely, or where one wants to see why.

use xen_abi::netif::status;

use super::guest::{Guest, Wishes};
use crate::mem::Frames;
use crate::points::device::model::Peer;
use crate::points::device::tests::Class;
use crate::points::net::model::World;
use crate::points::net::model::backend::{Backend, Packet};
use crate::points::{Device, Progress};
use crate::testing::FakeFrames;

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
    let why = world.device.attached().expect_err("no GSO");
    assert!(why.contains("feature-gso-tcpv4 feature-gso-tcpv6"), "{why}");
    world.migrate(Backend::new(FULL));
    assert_eq!(world.device.attached(), Ok(Progress::Done));
    assert_eq!(world.guest_view(), view);
    world.resume();
    guest.reap(&world);
    assert_eq!(guest.unanswered(), 0);
    world.tear_down();
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
    assert!(!world.device.wants_retry());
    world.tear_down();
}

impl Class for Backend {
    type Guest = Guest;

    fn good() -> Self {
        Self::new(FULL)
    }

    fn poor() -> Self {
        Self::new(&FULL[..2])
    }

    fn lie(&self, mem: &FakeFrames) {
        if let Some(ring) = self.ring_frames().first() {
            mem.store32(*ring, 8, 1000);
        }
    }

    fn join(world: &mut World) -> Guest {
        Guest::connect(world, WISHES)
    }

    fn ask(world: &mut World, guest: &mut Guest) {
        assert!(guest.send(world, &[60], None, false, false));
        guest.publish(world);
    }

    fn settle(world: &mut World, guest: &mut Guest) -> usize {
        world.guest_kick();
        for _ in 0..100 {
            world.backend.serve(&world.mem);
            world.host_kick();
            world.retry();
            guest.reap(world);
        }
        assert_eq!(guest.unanswered(), 0, "{:?}", world.device);
        guest.errors[0]
    }
}
