//! The disk against models of everything around it.

mod guest;

mod bounds;
mod cases;
mod ends;
mod moves;
mod properties;

use xen_abi::blkif::{op, status};

use self::guest::Guest;
use crate::points::device::model::Peer;
use crate::points::device::tests::Class;
use crate::points::disk::model::{Backend, World};
use crate::points::{Device, Progress};
use crate::testing::FakeFrames;

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
        world.device
    );
}

/// Closes and unplugs the disk in an orderly way.
fn tear_down(mut world: World) {
    world.guest_state(5);
    assert_eq!(world.back("state"), Some("5"));
    world.guest_state(6);
    assert!(world.device.is_gone() || world.back("state") == Some("6"));
    world.finish_unplug();
}

impl Class for Backend {
    type Guest = Guest;

    fn good() -> Self {
        Self::new(4, GOOD)
    }

    fn poor() -> Self {
        Self::new(0, &[("feature-flush-cache", "1"), ("sectors", "10")])
    }

    fn lie(&self, mem: &FakeFrames) {
        self.corrupt_ring(mem, 1000);
    }

    fn join(world: &mut World) -> Guest {
        Guest::connect(world, 1)
    }

    fn ask(world: &mut World, guest: &mut Guest) {
        assert!(guest.ask(world, op::WRITE, 100, 40));
        guest.push(world);
    }

    fn settle(world: &mut World, guest: &mut Guest) -> usize {
        world.guest_kick();
        settle(world, guest);
        guest.check_disk(world);
        let failed = |answer: &&i16| **answer != status::OKAY;
        guest.answers.iter().filter(failed).count()
    }
}
